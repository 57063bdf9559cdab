//! Counters: totals over a run.

use serde::{Deserialize, Serialize};

/// Totals over all steps of a sampler.
///
/// Every eligible row falls into one of three classes: `eligible = steered + rows_untrained + rows_not_finite`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Counters {
    /// Calls of `Sampler::step` with at least one row.
    pub steps: u64,
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens chosen from scores that were reweighted with a distiller's expected logits.
    pub steered: u64,
    /// Tokens chosen from scores that were reweighted with the logits of another model.
    pub contrasted: u64,
    /// Rows meant to be contrasted with another model but sampled plainly, because one of its logits for a candidate
    /// was not finite.
    pub other_not_finite: u64,
    /// Steered tokens that differ from the token that the same random number would have chosen from the same
    /// candidates without steering.
    ///
    /// The two choices share their random number, with candidates sorted best first. The expected share of such
    /// tokens is at least the total variation distance between the two distributions, and larger where steering
    /// changes the order of the candidates. For greedy rows, a token counts if the best candidate has changed.
    pub interventions: u64,
    /// Rows for which no token could be chosen, for example because a logit was NaN or every token was masked.
    pub failed: u64,
    /// Rows with steering and learning enabled that were given a token.
    pub eligible: u64,
    /// Optimizer steps with something to update, over all distillers.
    pub updates: u64,
    /// Rows that distillers learned from.
    pub rows_learned: u64,
    /// Rows neither steered nor learned from because a hidden state, or a value computed from it, was not finite.
    pub rows_not_finite: u64,
    /// The subset of `rows_not_finite` whose deep state is finite, so that the shallow state or the distiller's
    /// prediction is not. A diverged distiller shows up here.
    pub predictions_not_finite: u64,
    /// Distillers that had diverged and started again
    /// ([`TrainingConfig::restart_diverged`](crate::optim::TrainingConfig::restart_diverged)). A few of them in a run
    /// cost little; many mean that the learning rate is too high.
    pub restarts: u64,
    /// Updates that these distillers had had, on prompts and on generated tokens. What was learned in them is lost.
    pub updates_undone: u64,
    /// Distillers reinitialised with a fit to their first rows
    /// ([`Distiller::fit`](crate::distillers::Distiller::fit)).
    pub fits: u64,
    /// Distillers whose fit failed. They continue unchanged.
    pub fits_failed: u64,
    /// Rows predicted and learned from but not steered, because their distiller had not had enough updates
    /// ([`SamplerConfig::updates_before_steering`](crate::SamplerConfig::updates_before_steering)).
    pub rows_untrained: u64,
    /// Optimizer steps on prompts, over all distillers. Not included in `updates`.
    pub warm_up_updates: u64,
    /// Prompt positions left out of a warm-up because a hidden state was not finite.
    pub warm_up_rows_not_finite: u64,
    /// Copies from the device to the host that steps have waited for, without those of
    /// [`Sharing::Adaptive`](crate::Sharing::Adaptive). On a device with its own memory one per step is the aim
    /// ([`LogitsTransfer`](crate::unstable::LogitsTransfer)).
    pub transfers: u64,
    /// Rows whose logits were copied whole in a second transfer, because the best of them did not suffice for the
    /// filters.
    pub rows_read_whole: u64,
    /// Candidates that the filters kept, summed over tokens.
    pub candidates: u64,
    /// Tokens chosen while an observer was attached.
    pub observed: u64,
    /// Sum over *observed* tokens of [`RowTrace::mass_outside`](crate::telemetry::RowTrace::mass_outside): the
    /// probability mass that filters removed. Not computed without an observer, because it takes one more pass over
    /// the vocabulary.
    pub mass_outside: f64,
    /// Sum over steered rows of `‖deep − expected deep‖`.
    pub novelty_sum: f64,
    /// Sum over steered rows of `‖deep − expected deep‖ / ‖deep‖`. A row whose deep state is 0 contributes nothing.
    pub relative_novelty_sum: f64,
    /// Sum over predicted rows of their squared error before the update, averaged over the model's width.
    pub loss_sum: f64,
}

impl Counters {
    /// Mean of `‖deep − expected deep‖` over steered rows. `None` if there are none.
    pub fn mean_novelty(&self) -> Option<f64> {
        mean(self.novelty_sum, self.steered)
    }

    /// Mean of `‖deep − expected deep‖ / ‖deep‖` over steered rows. `None` if there are none.
    pub fn mean_relative_novelty(&self) -> Option<f64> {
        mean(self.relative_novelty_sum, self.steered)
    }

    /// Mean squared error before the update over all predicted rows. `None` if there are none.
    pub fn mean_loss(&self) -> Option<f64> {
        mean(self.loss_sum, self.eligible.saturating_sub(self.rows_not_finite))
    }

    /// Share of the steered tokens that steering changed. `None` if there are none.
    pub fn intervention_rate(&self) -> Option<f64> {
        mean(self.interventions as f64, self.steered)
    }

    /// Mean probability mass that filters removed, over the tokens chosen while an observer was attached. `None` if
    /// there are none.
    pub fn mean_mass_outside(&self) -> Option<f64> {
        mean(self.mass_outside, self.observed)
    }
}

/// Adds to a counter, which stays at the largest number instead of overflowing: a snapshot from elsewhere may contain
/// any number.
pub(crate) fn add(counter: &mut u64, count: u64) {
    *counter = counter.saturating_add(count);
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
