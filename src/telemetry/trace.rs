//! One token and one step, as an observer sees them.

use serde::{Deserialize, Serialize};

use super::Counters;
use crate::{
    bank::{Sharing, SlotKey},
    id::{CompletionId, TokenId},
};

/// Whether a row was steered, and if not, why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Steering {
    /// Its reweighter uses no expected logits: plain sampling (β = 0), or a reweighter of your own that needs none.
    Off,
    /// Reweighted with the logits of another model.
    Contrasted,
    /// To be contrasted with another model and sampled plainly, because one of its logits for a candidate was not finite.
    OtherNotFinite,
    /// Its logits came from the prompt, which is neither steered nor learned.
    FirstToken,
    /// Learned but not steered: its distiller was still warming up.
    Warming,
    /// Neither steered nor learned: its hidden state, or what came of it, was not finite.
    NotFinite,
    /// Steered, and learned from.
    Steered,
}

/// One token: what it was chosen from, and what steering had to do with it.
///
/// *The reference distribution* is the one over the row's candidates, which are the tokens that its filters have left,
/// from the model's logits at the row's temperature; *the new one* is over the same candidates, from the reweighted
/// scores. Information is in nats. For a greedy row both are at temperature 1, and its token is the best of the new one.
/// All numbers are finite.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RowTrace {
    /// Number of the step, from 0, since the sampler's beginning or last reset.
    pub step: u64,
    /// Whose token it is.
    #[serde(alias = "row")] // its name in files of earlier development versions
    pub completion: CompletionId,
    /// Its place in the completion: 0 is the first.
    pub position: u64,
    /// The token.
    pub token: TokenId,
    /// The token that the same random number would have chosen from the reference distribution; `None` where the row
    /// was not steered. [`Counters::interventions`] counts where the two differ.
    pub unsteered_token: Option<TokenId>,
    /// Whether the row was steered.
    pub steering: Steering,
    /// The row's temperature; 0 is greedy.
    pub temperature: f32,
    /// Number of candidates, at least 1.
    pub candidates: usize,
    /// The probability mass, in `[0, 1]`, that the filters removed: of softmax(logits / temperature) over all tokens
    /// that are not masked, the share on tokens that are not candidates. Absolute error below 1e-5.
    pub mass_outside: f64,
    /// Log-probability of the token in the new distribution.
    pub log_prob: f32,
    /// −log-probability of the token in the reference distribution.
    pub surprisal: f64,
    /// −log-probability of the token under the model as it is: temperature 1, all tokens, masks not applied. Where the
    /// row asked for it.
    pub model_surprisal: Option<f32>,
    /// Entropy of the reference distribution, between 0 and ln(candidates).
    pub reference_entropy: f64,
    /// Entropy of the new distribution, between 0 and ln(candidates).
    pub entropy: f64,
    /// KL(new ‖ reference), at least 0.
    pub kl: f64,
    /// How many candidates were ahead of the token in the reference distribution: 0 is the best.
    pub reference_rank: usize,
    /// How many candidates are ahead of the token in the new distribution: 0 is the best.
    pub rank: usize,
    /// `‖deep − expected deep‖`, in units of the hidden state; `None` where nothing was expected.
    pub novelty: Option<f32>,
    /// The novelty as a multiple of `‖deep‖`; `None` where there is no novelty, or the deep state is 0.
    pub relative_novelty: Option<f64>,
    /// The row's squared error, averaged over the model's width, before the update; `None` where nothing was expected.
    pub loss: Option<f64>,
    /// Slope of `δ = reference − expected` on the reference logits: `Σ δ·z / Σ z·z` over the candidates, all with the
    /// same weight, both centred.
    ///
    /// 1 says that the distiller expects every candidate alike: it has learned nothing yet that matters here. 0 says that
    /// δ is new direction only. `None` where nothing was expected or all references are equal.
    pub slope: Option<f64>,
    /// Slope of `new score − reference` on the reference logits: what the reweighter has made of it. The new
    /// distribution is the reference one at temperature `T / (1 + sharpening)`, and whatever is not on that line.
    ///
    /// ESamp gives β·slope; a reweighter that does not cool gives 0. `None` where the row was not steered or all
    /// references are equal.
    pub sharpening: Option<f64>,
    /// Share of the variance of `new score − reference` over the candidates that [`sharpening`](Self::sharpening)
    /// accounts for, in `[0, 1]`: **1 means that steering was a lower temperature and nothing else.** `None` where
    /// `sharpening` is, for fewer than three candidates, and where no score has changed. Scores are `f32`: where they
    /// have hardly changed, the share is that of their rounding.
    pub sharpening_share: Option<f64>,
}

/// One step, after all of its tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepTrace {
    /// Number of the step, from 0, since the sampler's beginning or last reset.
    pub step: u64,
    /// Rows that were given a token.
    pub rows: usize,
    /// Rows that were not.
    pub failed: usize,
    /// Rows whose scores were reweighted.
    pub steered: usize,
    /// Optimizer steps, one for each distiller that had rows and something to move.
    pub updates: usize,
    /// Distillers in use.
    pub distillers: usize,
    /// Mean over the rows with a [`RowTrace::loss`]: a point of the loss curve. `None` where there are none.
    pub loss: Option<f64>,
    /// The same for each slot on its own, in the order of their first row.
    pub slots: Vec<SlotTrace>,
    /// Totals after this step.
    pub counters: Counters,
}

/// The rows of one slot in one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SlotTrace {
    /// Which slot.
    pub slot: SlotKey,
    /// Its rows with a [`RowTrace::loss`].
    pub rows: usize,
    /// Their mean loss, before the update.
    pub loss: f64,
}

impl StepTrace {
    /// The step that these tokens were chosen in.
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
        slots.iter_mut().for_each(|slot| slot.loss /= slot.rows as f64);
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

/// A trace to change, for the tests of this module.
#[cfg(test)]
pub(super) fn example(step: u64, prompt: u64, request: u64, loss: Option<f64>) -> RowTrace {
    RowTrace {
        step,
        completion: CompletionId::new(prompt, request),
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
        let requests = [(10, 2.0), (11, 5.0), (12, 8.0)];
        let requests =
            requests.map(|(r, loss)| slot(SlotKey::Completion(CompletionId::new(0, r)), 1, loss));
        assert_eq!(step(Sharing::PerCompletion).slots, requests);
        let nothing = StepTrace::of(&tokens[3..], Sharing::PerPrompt, 0, 0, 0, counters);
        assert_eq!((nothing.loss, nothing.slots.len()), (None, 0));
    }
}
