//! Traces of one token and of one step, as passed to observers.

use serde::{Deserialize, Serialize};

use super::Counters;
use crate::{
    bank::{Sharing, SlotKey},
    id::{CompletionId, TokenId},
};

/// Whether a row was steered, and the reason if it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Steering {
    /// The reweighter uses no expected logits: plain sampling (β = 0), or a custom reweighter that needs none.
    Off,
    /// Reweighted with the logits of another model.
    Contrasted,
    /// Meant to be contrasted with another model but sampled plainly, because one of its logits for a candidate was
    /// not finite.
    OtherNotFinite,
    /// The logits came from the prompt, so the row was neither steered nor learned from.
    FirstToken,
    /// Learned from but not steered: the distiller had had too few updates
    /// ([`SamplerConfig::updates_before_steering`](crate::SamplerConfig::updates_before_steering)).
    Untrained,
    /// Neither steered nor learned from: the hidden state, or a value computed from it, was not finite.
    NotFinite,
    /// Steered and learned from.
    Steered,
}

/// Trace of one token: the distributions it was chosen from and the effect of steering.
///
/// *The reference distribution* is over the row's candidates (the tokens that its filters kept), from the model's
/// logits at the row's temperature. *The new distribution* is over the same candidates, from the reweighted scores.
/// Information is in nats. For a greedy row both are at temperature 1, and its token is the best of the new
/// distribution. All numbers are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RowTrace {
    /// Number of the step, counted from 0 since the sampler was created or last reset.
    pub step: u64,
    /// The completion that the token belongs to.
    pub completion: CompletionId,
    /// Position of the token in the completion, from 0.
    pub position: u64,
    /// The token.
    pub token: TokenId,
    /// The token that the same random number would have chosen from the reference distribution. `None` if the row was
    /// not steered. [`Counters::interventions`] counts the tokens where the two differ.
    pub unsteered_token: Option<TokenId>,
    /// Whether the row was steered.
    pub steering: Steering,
    /// The row's temperature; 0 is greedy.
    pub temperature: f32,
    /// Number of candidates, at least 1.
    pub candidates: usize,
    /// The probability mass that the filters removed, in `[0, 1]`: the share of softmax(logits / temperature) over
    /// all unmasked tokens that is on tokens that are not candidates. The absolute error is below 1e-5.
    pub mass_outside: f64,
    /// Log-probability of the token in the new distribution.
    pub log_prob: f32,
    /// −log-probability of the token in the reference distribution.
    pub surprisal: f64,
    /// −log-probability of the token under the unmodified model: temperature 1, all tokens, no mask. `None` if the
    /// row did not ask for it.
    pub model_surprisal: Option<f32>,
    /// Entropy of the reference distribution, between 0 and ln(candidates).
    pub reference_entropy: f64,
    /// Entropy of the new distribution, between 0 and ln(candidates).
    pub entropy: f64,
    /// KL(new ‖ reference), at least 0.
    pub kl: f64,
    /// Rank of the token in the reference distribution, from 0 for the best candidate.
    pub reference_rank: usize,
    /// Rank of the token in the new distribution, from 0 for the best candidate.
    pub rank: usize,
    /// `‖deep − expected deep‖`, in units of the hidden state. `None` if nothing was expected.
    pub novelty: Option<f32>,
    /// The novelty divided by `‖deep‖`. `None` if there is no novelty or the deep state is 0.
    pub relative_novelty: Option<f64>,
    /// The row's squared error before the update, averaged over the model's width. `None` if nothing was expected.
    pub loss: Option<f64>,
    /// Slope of `δ = reference − expected` on the reference logits: `Σ δ·z / Σ z·z` over the candidates, equally
    /// weighted, both centred.
    ///
    /// 1 means that the distiller expects all candidates equally: it has learned nothing relevant here yet. 0 means
    /// that δ is purely a new direction. `None` if nothing was expected or all references are equal.
    pub slope: Option<f64>,
    /// Slope of `new score − reference` on the reference logits: the sharpening by the reweighter. The new
    /// distribution is the reference distribution at temperature `T / (1 + sharpening)`, plus the part of the change
    /// that the line does not explain.
    ///
    /// ESamp gives β·slope; a reweighter that does not sharpen gives 0. `None` if the row was not steered or all
    /// references are equal.
    pub sharpening: Option<f64>,
    /// Share of the variance of `new score − reference` over the candidates that [`sharpening`](Self::sharpening)
    /// explains, in `[0, 1]`: **1 means that steering only lowered the temperature.** `None` if `sharpening` is
    /// `None`, if there are fewer than three candidates, or if no score has changed. Scores are `f32`: if they have
    /// hardly changed, the share reflects rounding.
    pub sharpening_share: Option<f64>,
}

/// Trace of one step, passed to observers after its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepTrace {
    /// Number of the step, counted from 0 since the sampler was created or last reset.
    pub step: u64,
    /// Rows that were given a token.
    pub rows: usize,
    /// Rows that failed.
    pub failed: usize,
    /// Rows whose scores were reweighted.
    pub steered: usize,
    /// Optimizer steps: one for each distiller that had rows and something to update.
    pub updates: usize,
    /// Distillers in use.
    pub distillers: usize,
    /// Mean loss over the rows with a [`RowTrace::loss`]: one point of the loss curve. `None` if there are none.
    pub loss: Option<f64>,
    /// The loss of each slot, in the order of their first row.
    pub slots: Vec<SlotTrace>,
    /// Totals after this step.
    pub counters: Counters,
}

/// The rows of one slot in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SlotTrace {
    /// The slot.
    pub slot: SlotKey,
    /// Number of its rows with a [`RowTrace::loss`].
    pub rows: usize,
    /// Mean loss of these rows, before the update.
    pub loss: f64,
}

impl StepTrace {
    /// Builds the trace of the step in which these tokens were chosen.
    pub(crate) fn of(
        tokens: &[RowTrace],
        sharing: Sharing,
        failed: usize,
        updates: usize,
        distillers: usize,
        counters: Counters,
    ) -> Self {
        let mut slots: Vec<SlotTrace> = Vec::new();
        let mut place = std::collections::HashMap::new();
        for token in tokens {
            let Some(loss) = token.loss else {
                continue;
            };
            let slot = sharing.slot(token.completion);
            let at = *place.entry(slot).or_insert(slots.len());
            if at == slots.len() {
                slots.push(SlotTrace { slot, rows: 0, loss: 0.0 });
            }
            slots[at].rows += 1;
            slots[at].loss += loss;
        }
        let (rows, sum) =
            slots.iter().fold((0, 0.0), |(rows, sum), s| (rows + s.rows, sum + s.loss));
        for slot in &mut slots {
            slot.loss /= slot.rows as f64;
        }
        Self {
            step: counters.steps.saturating_sub(1),
            rows: tokens.len(),
            failed,
            steered: tokens.iter().filter(|t| t.steering == Steering::Steered).count(),
            updates,
            distillers,
            loss: (rows > 0).then(|| sum / rows as f64),
            slots,
            counters,
        }
    }
}

/// An example trace for the tests of this module.
#[cfg(test)]
pub(super) fn example(step: u64, prompt: u64, completion: u64, loss: Option<f64>) -> RowTrace {
    RowTrace {
        step,
        completion: CompletionId::new(prompt, completion),
        position: step,
        token: 7,
        unsteered_token: loss.map(|_| 3),
        steering: if loss.is_some() { Steering::Steered } else { Steering::Off },
        temperature: 0.8,
        candidates: 5,
        mass_outside: 0.1,
        log_prob: -0.3,
        surprisal: 1.7,
        model_surprisal: Some(2.3),
        reference_entropy: 1.1,
        entropy: 0.9,
        kl: 0.2,
        reference_rank: 2,
        rank: 0,
        novelty: loss.map(|loss| loss.sqrt() as f32),
        relative_novelty: loss.map(|_| 0.7),
        loss,
        slope: loss.map(|_| 0.45),
        sharpening: loss.map(|_| 0.1125),
        sharpening_share: loss.map(|_| 0.25),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PromptId;

    #[test]
    fn losses_are_means_per_slot_and_over_all_rows() {
        let tokens = [
            example(4, 1, 10, Some(2.0)),
            example(4, 0, 11, Some(5.0)),
            example(4, 1, 12, Some(8.0)),
            example(4, 2, 13, None),
        ];
        let counters = Counters { steps: 5, ..Counters::default() };
        let step = |sharing| StepTrace::of(&tokens, sharing, 1, 2, 3, counters);
        let got = step(Sharing::PerPrompt);
        assert_eq!((got.step, got.rows, got.failed, got.steered), (4, 4, 1, 3));
        assert_eq!((got.updates, got.distillers, got.loss), (2, 3, Some(5.0)));
        let slot = |slot, rows, loss| SlotTrace { slot, rows, loss };
        let prompts = [(1, 2, 5.0), (0, 1, 5.0)];
        let prompts = prompts.map(|(p, rows, loss)| slot(SlotKey::Prompt(PromptId(p)), rows, loss));
        assert_eq!(got.slots, prompts);
        assert_eq!(step(Sharing::Global).slots, [slot(SlotKey::Everyone, 3, 5.0)]);
        let completions = [(1, 10, 2.0), (0, 11, 5.0), (1, 12, 8.0)];
        let completions = completions
            .map(|(p, c, loss)| slot(SlotKey::Completion(CompletionId::new(p, c)), 1, loss));
        assert_eq!(step(Sharing::PerCompletion).slots, completions);
        let nothing = StepTrace::of(&tokens[3..], Sharing::PerPrompt, 0, 0, 0, counters);
        assert_eq!((nothing.loss, nothing.slots.len()), (None, 0));
    }
}
