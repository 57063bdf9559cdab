//! Totals over a run.

use serde::{Deserialize, Serialize};

/// Totals over all steps of a sampler.
///
/// Every eligible row is one of three things: `eligible = steered + rows_warming + rows_not_finite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Calls of `Sampler::step` that had rows.
    pub steps: u64,
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens chosen from scores reweighted with what a distiller expected.
    pub steered: u64,
    /// Tokens chosen from scores reweighted with the logits of another model.
    pub contrasted: u64,
    /// Rows that were to be contrasted with another model and were sampled plainly, because one of its logits for a
    /// candidate was not finite.
    pub other_not_finite: u64,
    /// Steered tokens that differ from the one that the same random number would have chosen from the same candidates
    /// without steering.
    ///
    /// The two choices are coupled by their random number, candidates best first. On average the share of such tokens
    /// is at least the total variation distance between the two distributions, and more where steering changes the
    /// candidates' order. On greedy rows: the best candidate is another one.
    pub interventions: u64,
    /// Rows that could not be given a token: not a number, or everything masked.
    pub failed: u64,
    /// Rows that steering and learning were switched on for, and that were given a token.
    pub eligible: u64,
    /// Optimizer steps that had something to move, over all distillers.
    pub updates: u64,
    /// Rows that distillers have learned from.
    pub rows_learned: u64,
    /// Rows neither steered nor learned because a hidden state, or what came of it, was not finite.
    pub rows_not_finite: u64,
    /// Those of them whose deep state is finite: the distiller's prediction or the shallow state is not. A distiller that
    /// has diverged shows here.
    pub predictions_not_finite: u64,
    /// Distillers that started again from what was fitted to their first rows ([`Distiller::fit`](crate::distillers::Distiller::fit)).
    pub fits: u64,
    /// Distillers that were to be fitted and could not be: they have gone on as they were.
    pub fits_failed: u64,
    /// Rows predicted and learned, but not steered yet, because their distiller had not had enough updates
    /// ([`SamplerConfig::steps_before_steering`](crate::SamplerConfig::steps_before_steering)).
    pub rows_warming: u64,
    /// Optimizer steps on prompts, over all distillers; `updates` does not count them.
    pub warm_up_updates: u64,
    /// Positions of prompts left out of a warm-up because a hidden state was not finite.
    pub warm_up_rows_not_finite: u64,
    /// Candidates left by the filters, summed over tokens.
    pub candidates: u64,
    /// Tokens chosen while an observer was attached.
    pub observed: u64,
    /// Sum over *observed* tokens of [`RowTrace::mass_outside`](crate::telemetry::RowTrace::mass_outside): the probability mass
    /// that filters removed. Not summed without an observer, because it takes one more pass over the vocabulary.
    pub mass_outside: f64,
    /// Sum over steered rows of `‖deep − expected deep‖`.
    pub novelty_sum: f64,
    /// Sum over steered rows of `‖deep − expected deep‖ / ‖deep‖`. A row whose deep state is 0 adds nothing.
    pub relative_novelty_sum: f64,
    /// Sum over predicted rows of their squared error, averaged over the model's width, before the update.
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

    /// Mean squared error before the update, over all rows predicted; `None` before the first.
    pub fn mean_loss(&self) -> Option<f64> {
        mean(self.loss_sum, self.eligible.saturating_sub(self.rows_not_finite))
    }

    /// Share of the steered tokens that steering has changed; `None` before the first.
    pub fn intervention_rate(&self) -> Option<f64> {
        mean(self.interventions as f64, self.steered)
    }

    /// Mean probability mass that filters removed, over the tokens chosen while an observer was attached; `None` before
    /// the first.
    pub fn mean_mass_outside(&self) -> Option<f64> {
        mean(self.mass_outside, self.observed)
    }
}

fn mean(sum: f64, count: u64) -> Option<f64> {
    (count > 0).then(|| sum / count as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_sums_over_what_they_count() {
        let empty = Counters::default();
        assert_eq!((empty.intervention_rate(), empty.mean_mass_outside()), (None, None));
        let some = Counters {
            steered: 4,
            interventions: 1,
            observed: 2,
            mass_outside: 0.5,
            ..Counters::default()
        };
        assert_eq!((some.intervention_rate(), some.mean_mass_outside()), (Some(0.25), Some(0.25)));
    }

    #[test]
    fn counters_written_before_a_counter_existed_can_be_read() {
        let old: Counters = serde_json::from_str(r#"{"steps":3,"tokens":5}"#).unwrap();
        assert_eq!(old, Counters { steps: 3, tokens: 5, ..Counters::default() });
    }
}
