//! The exported state of a trainer, which can be written to a file.

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::slots::SlotTensors;
use crate::{
    bank::{Slot, SlotKey},
    hidden::HiddenStates,
    id::{CompletionId, PromptId},
};

/// The state of one slot. `R` stands for rows and `T` for parameters and optimizer state:
///
/// - in a trainer, the rows themselves and a place among its slots ([`LiveSlot`]);
/// - exported, the rows and the tensors ([`ExportedSlot`]);
/// - in the header of a snapshot, the numbers of both, because the tensors are stored elsewhere in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SlotState<R, T> {
    /// The number of updates that the slot has had.
    pub(crate) updates: u64,
    /// The number of updates that its optimizer state has had: those since it was fitted.
    pub(crate) age: u64,
    pub(crate) is_fitted: bool,
    /// The rows that wait for the next update, from the steps so far.
    pub(crate) gathered: R,
    /// Its first rows, while they are collected for a fit.
    pub(crate) first_rows: R,
    /// `None` until the slot predicts for the first time.
    pub(crate) tensors: Option<T>,
}

pub(crate) type LiveSlot = SlotState<Vec<HiddenStates>, usize>;
pub(crate) type ExportedSlot = Slot<SlotState<Vec<HiddenStates>, SlotTensors>>;

impl<R, T> SlotState<R, T> {
    /// Returns the same state with the tensors converted by a function that can fail.
    pub(crate) fn try_with_tensors<U, E>(
        self,
        change: impl FnOnce(T) -> Result<U, E>,
    ) -> Result<SlotState<R, U>, E> {
        let Self { updates, age, is_fitted, gathered, first_rows, tensors } = self;
        let tensors = tensors.map(change).transpose()?;
        Ok(SlotState { updates, age, is_fitted, gathered, first_rows, tensors })
    }
}

/// What a call of [`OnlineTrainer::learn`](super::OnlineTrainer::learn) or
/// [`restart`](super::OnlineTrainer::restart) has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Learned {
    /// The number of optimizer steps, over all distillers.
    pub(crate) updates: usize,
    /// The number of rows that they learned from.
    pub(crate) rows: usize,
    /// The number of distillers that were fitted to their first rows.
    pub(crate) fits: usize,
    /// The number of distillers whose fit failed.
    pub(crate) fits_failed: usize,
    /// The number of distillers that were restarted.
    pub(crate) restarts: usize,
    /// The number of updates that restarted distillers had had.
    pub(crate) updates_undone: u64,
}

impl std::ops::AddAssign for Learned {
    fn add_assign(&mut self, other: Self) {
        self.updates += other.updates;
        self.rows += other.rows;
        self.fits += other.fits;
        self.fits_failed += other.fits_failed;
        self.restarts += other.restarts;
        self.updates_undone = self.updates_undone.saturating_add(other.updates_undone);
    }
}

/// Everything that a trainer has learned. `S` stands for a slot and `E` for the evidence about a prompt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TrainerState<S = ExportedSlot, E = (PromptId, Tensor<1>)> {
    pub(crate) slots: Vec<S>,
    /// For an adaptive trainer, its evidence about each prompt.
    pub(crate) evidence: Vec<E>,
    /// For an adaptive trainer, the slot that all prompts share.
    pub(crate) shared: Option<Box<TrainerState<S, E>>>,
    /// For a background trainer, an update that is done but not yet visible, and what it learned.
    pub(crate) ahead: Option<(Box<TrainerState<S, E>>, Learned)>,
}

impl<S, E> TrainerState<S, E> {
    /// The state of a trainer that has only slots.
    pub(crate) fn new(slots: Vec<S>) -> Self {
        Self { slots, evidence: Vec::new(), shared: None, ahead: None }
    }

    /// Converts the slots and the evidence. The functions get the old value and a name that is unique within the
    /// state. Names begin with `place`; `context` is passed through.
    pub(crate) fn try_map<C, T, F, X>(
        self,
        place: &str,
        context: &mut C,
        slot: fn(&mut C, &str, S) -> Result<T, X>,
        evidence: fn(&mut C, &str, E) -> Result<F, X>,
    ) -> Result<TrainerState<T, F>, X> {
        let Self { slots, evidence: known, shared, ahead } = self;
        let mut state = TrainerState::new(Vec::with_capacity(slots.len()));
        for (at, old) in slots.into_iter().enumerate() {
            state.slots.push(slot(context, &format!("{place}.{at}"), old)?);
        }
        for (at, old) in known.into_iter().enumerate() {
            state.evidence.push(evidence(context, &format!("{place}.evidence.{at}"), old)?);
        }
        if let Some(shared) = shared {
            let shared = shared.try_map(&format!("{place}.shared"), context, slot, evidence)?;
            state.shared = Some(Box::new(shared));
        }
        if let Some((ahead, learned)) = ahead {
            let ahead = ahead.try_map(&format!("{place}.ahead"), context, slot, evidence)?;
            state.ahead = Some((Box::new(ahead), learned));
        }
        Ok(state)
    }
}

impl TrainerState {
    /// What has been learned about one prompt, including an update that is done but not yet visible, and without what
    /// all prompts share.
    pub(crate) fn of_prompt(self, prompt: PromptId) -> Self {
        let Self { slots, evidence, shared: _, ahead } = self;
        if let Some((ahead, _)) = ahead {
            return ahead.of_prompt(prompt);
        }
        let key = SlotKey::Prompt(prompt);
        let mut state = Self::new(slots.into_iter().filter(|slot| slot.key == key).collect());
        state.evidence = evidence.into_iter().filter(|(about, _)| *about == prompt).collect();
        state
    }

    /// The same state about another prompt, with one member.
    pub(crate) fn for_prompt(mut self, prompt: PromptId, member: CompletionId) -> Self {
        for slot in &mut self.slots {
            (slot.key, slot.members) = (SlotKey::Prompt(prompt), BTreeSet::from([member]));
        }
        for (about, _) in &mut self.evidence {
            *about = prompt;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_learned_adds_up() {
        let of = |by: usize| Learned {
            updates: 2 * by,
            rows: 3 * by,
            fits: 4 * by,
            fits_failed: 5 * by,
            restarts: 6 * by,
            updates_undone: 7 * by as u64,
        };
        let mut sum = of(3);
        sum += of(4);
        assert_eq!(sum, of(7));
    }
}
