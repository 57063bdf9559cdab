//! Updates of distillers on the hidden states of a prompt, before the first token.

use std::collections::{HashMap, HashSet};

use super::{Sampler, StepError, input};
use crate::{bank::SlotKey, hidden::HiddenStates, id::CompletionId, telemetry::add};

/// A warm-up that is done in parts.
#[derive(Debug)]
pub(crate) struct WarmUp {
    /// Updates of each distiller.
    updates: usize,
    /// How many of them each distiller has had that has begun.
    done: HashMap<SlotKey, usize>,
    /// The prompt's states that are finite.
    states: HiddenStates,
    /// The number of its positions whose states are not.
    skipped: usize,
}

impl Sampler {
    /// Warms up the distillers of a prompt's completions on the prompt, before the first token: `updates` optimizer
    /// steps per distiller, each on all positions of `prompt` together. Each distiller is warmed up once, even if
    /// several completions share it. Returns the number of optimizer steps over all distillers, which
    /// [`Counters::warm_up_updates`](crate::Counters::warm_up_updates) counts.
    ///
    /// The paper never trains on a prompt. In a study on SmolLM2-135M, 20 steps reduced the relative error of the
    /// first five tokens from 1.0 to 0.8 (docs/guide/starting-points.md).
    ///
    /// All positions are used, including the last one: it predicts the first token, which is not steered. Positions
    /// whose states are not finite are skipped and counted in [`Counters::warm_up_rows_not_finite`](crate::Counters::warm_up_rows_not_finite). If none is left,
    /// or `updates` is 0, nothing happens. A second call trains again.
    ///
    /// # Errors
    ///
    /// [`StepError::Shape`] or [`StepError::DeviceMismatch`] when the states do not match this sampler's model, and any
    /// error of the trainer.
    pub fn warm_up(
        &mut self,
        completions: &[CompletionId],
        prompt: &HiddenStates,
        updates: usize,
    ) -> Result<usize, StepError> {
        let mut warm_up = self.begin_warm_up(prompt, updates)?;
        self.continue_warm_up(&mut warm_up, completions, usize::MAX)
    }

    /// Begins a warm-up that is done in parts, by [`continue_warm_up`](Self::continue_warm_up).
    pub(crate) fn begin_warm_up(
        &self,
        prompt: &HiddenStates,
        updates: usize,
    ) -> Result<WarmUp, StepError> {
        input::check_states("prompt's hidden states", prompt, self.d_model, &self.device)?;
        let finite = prompt.finite_rows()?;
        let skipped = prompt.rows() - finite.len();
        Ok(WarmUp { updates, done: HashMap::new(), states: prompt.at(&finite), skipped })
    }

    /// The number of updates that are left of a warm-up for these completions.
    pub(crate) fn warm_up_left(&self, warm_up: &WarmUp, completions: &[CompletionId]) -> usize {
        let done = |slot: &SlotKey| warm_up.done.get(slot).copied().unwrap_or(0);
        self.slots(completions).iter().map(|(slot, _)| warm_up.updates - done(slot)).sum()
    }

    /// The number of distillers of these completions.
    pub(crate) fn distillers_of(&self, completions: &[CompletionId]) -> usize {
        self.slots(completions).len()
    }

    /// Does up to `most` of the updates that are left of a warm-up for these completions, one distiller after the
    /// other. Returns their number. The parts together learn what all updates at once do, as long as nothing else
    /// trains the distillers in between.
    pub(crate) fn continue_warm_up(
        &mut self,
        warm_up: &mut WarmUp,
        completions: &[CompletionId],
        most: usize,
    ) -> Result<usize, StepError> {
        let mut updated = 0;
        for (slot, completion) in self.slots(completions) {
            let done = warm_up.done.get(&slot).copied();
            let part = (warm_up.updates - done.unwrap_or(0)).min(most - updated);
            if part == 0 {
                continue;
            }
            if done.is_none() {
                add(&mut self.counters.warm_up_rows_not_finite, warm_up.skipped as u64);
            }
            if warm_up.states.rows() == 0 {
                // There is nothing to learn from, so nothing is left.
                warm_up.done.insert(slot, warm_up.updates);
                continue;
            }
            let learned =
                self.trainer.warm_up(completion, &warm_up.states, part, done.is_none())?;
            warm_up.done.insert(slot, done.unwrap_or(0) + part);
            add(&mut self.counters.warm_up_updates, learned.updates as u64);
            add(&mut self.counters.fits, learned.fits as u64);
            add(&mut self.counters.fits_failed, learned.fits_failed as u64);
            updated += part;
        }
        Ok(updated)
    }

    /// Bytes that warm-ups take at most: the states of the prompts, `positions` over all of them, and an update on
    /// those of the longest one.
    pub(crate) fn warm_up_bytes(&self, positions: usize, longest: usize) -> usize {
        // The shallow and the deep state of each position, in `f32`.
        let state = 8 * self.d_model;
        let distiller = self.trainer.bytes_for(&[CompletionId::new(u64::MAX, 0)]);
        // What the update keeps for its gradients. A parameter of a matrix is used once per position, so the hidden
        // layers together have about as many units as there are parameters for each of the model's `d_model`.
        let update = ACTIVATIONS * state + distiller / self.d_model.max(1);
        positions.saturating_mul(state).saturating_add(longest.saturating_mul(update))
    }

    /// The distillers of these completions, each with the first completion that uses it.
    fn slots(&self, completions: &[CompletionId]) -> Vec<(SlotKey, CompletionId)> {
        let mut seen = HashSet::new();
        let slots = completions.iter().map(|&id| (self.config.sharing.slot(id), id));
        slots.filter(|(slot, _)| seen.insert(*slot)).collect()
    }
}

/// How many times the states of a position an update on it takes, without the hidden layers of the distiller: its
/// source, its prediction, and what goes backwards from there.
const ACTIVATIONS: usize = 3;
