//! What happened, in numbers.

use serde::{Deserialize, Serialize};

/// Totals over all steps of a sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Counters {
    /// Calls of `Sampler::step` that had rows.
    pub steps: u64,
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens chosen from scores reweighted with what a distiller expected.
    pub steered: u64,
    /// Those of them whose states were mixed before the head: one projection instead of two
    /// ([`StepInput::from_head_input`](crate::StepInput::from_head_input)).
    pub mixed: u64,
    /// Tokens chosen from scores reweighted with the logits of another model.
    pub contrasted: u64,
    /// Rows that were to be contrasted with another model and were sampled plainly, because one of its logits for a
    /// candidate was not finite.
    pub other_not_finite: u64,
    /// Steered rows whose error could not be exchanged with another row's, because theirs was the only one of the step
    /// ([`ExpectedControl::ShuffledErrors`](crate::ExpectedControl::ShuffledErrors)).
    pub errors_not_shuffled: u64,
    /// Rows that could not be given a token: not a number, or everything masked.
    pub failed: u64,
    /// Rows that steering and learning were switched on for, and that were given a token.
    pub eligible: u64,
    /// Optimizer steps, over all distillers.
    pub updates: u64,
    /// Rows that distillers have learned from.
    pub rows_learned: u64,
    /// Rows neither steered nor learned because a hidden state, or what came of it, was not finite.
    pub rows_not_finite: u64,
    /// Candidates left by the filters, summed over tokens.
    pub candidates: u64,
    /// Sum over steered rows of `‖deep − expected deep‖`.
    pub novelty_sum: f64,
    /// Sum over steered rows of `‖deep − expected deep‖ / ‖deep‖`.
    pub relative_novelty_sum: f64,
    /// Sum over learned rows of their squared error, averaged over the model's width, before the update.
    pub loss_sum: f64,
}

impl Counters {
    /// Mean of `‖deep − expected deep‖` over steered rows; `None` before the first.
    pub fn mean_novelty(&self) -> Option<f64> {
        mean(self.novelty_sum, self.steered)
    }

    /// Mean of `‖deep − expected deep‖ / ‖deep‖` over steered rows; `None` before the first.
    pub fn mean_relative_novelty(&self) -> Option<f64> {
        mean(self.relative_novelty_sum, self.steered)
    }

    /// Mean squared error before the update, over all rows learned; `None` before the first.
    pub fn mean_loss(&self) -> Option<f64> {
        mean(self.loss_sum, self.rows_learned)
    }
}

fn mean(sum: f64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}
