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
    /// Tokens chosen from reweighted scores.
    pub steered: u64,
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
    /// Rows predicted and learned, but not steered yet, because their distiller had not had enough updates
    /// (`SamplerConfig::steps_before_steering`).
    pub rows_warming: u64,
    /// Optimizer steps on prompts, over all distillers; `updates` does not count them.
    pub warm_up_updates: u64,
    /// Positions of prompts left out of a warm-up because a hidden state was not finite.
    pub warm_up_rows_not_finite: u64,
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
