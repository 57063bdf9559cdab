//! What a trainer knows, in a form that can leave it: to be exported, and written to a file.

use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::slots::SlotTensors;
use crate::{bank::Slot, hidden::HiddenStates, id::PromptId};

/// What is known of one slot. `R` stands for rows and `T` for its parameters and optimizer state:
///
/// - in a trainer, the rows themselves and a place among its slots ([`LiveSlot`]);
/// - exported, the rows and the tensors ([`ExportedSlot`]);
/// - in the header of a snapshot, the numbers of both, because the tensors are elsewhere in the file.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct SlotState<R, T> {
    /// Updates that it has had.
    pub(crate) updates: u64,
    /// Those of them that its optimizer state knows of: the ones since it was fitted.
    pub(crate) age: u64,
    pub(crate) is_fitted: bool,
    /// Rows of the steps that are to make one update together.
    pub(crate) gathered: R,
    /// Its first rows, where they are still being collected for a fit.
    pub(crate) first_rows: R,
    /// `None` until it predicts for the first time.
    pub(crate) tensors: Option<T>,
}

pub(crate) type LiveSlot = SlotState<Vec<HiddenStates>, usize>;
pub(crate) type ExportedSlot = Slot<SlotState<Vec<HiddenStates>, SlotTensors>>;

impl<R, T> SlotState<R, T> {
    /// The same state with something else in place of the tensors.
    pub(crate) fn try_with_tensors<U, E>(
        self,
        change: impl FnOnce(T) -> Result<U, E>,
    ) -> Result<SlotState<R, U>, E> {
        let Self { updates, age, is_fitted, gathered, first_rows, tensors } = self;
        let tensors = tensors.map(change).transpose()?;
        Ok(SlotState { updates, age, is_fitted, gathered, first_rows, tensors })
    }
}

/// What a call of [`OnlineTrainer::learn`](super::OnlineTrainer::learn) has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Learned {
    /// Optimizer steps, over all distillers.
    pub(crate) updates: usize,
    /// Rows that they learned from.
    pub(crate) rows: usize,
    /// Distillers that have started again from what was fitted to their first rows.
    pub(crate) fits: usize,
    /// Distillers that were to be fitted and could not be.
    pub(crate) fits_failed: usize,
}

impl std::ops::AddAssign for Learned {
    fn add_assign(&mut self, other: Self) {
        self.updates += other.updates;
        self.rows += other.rows;
        self.fits += other.fits;
        self.fits_failed += other.fits_failed;
    }
}

/// Everything that a trainer has learned; `S` stands for a slot and `E` for the evidence about a prompt.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TrainerState<S = ExportedSlot, E = (PromptId, Tensor<1>)> {
    pub(crate) slots: Vec<S>,
    /// Of an adaptive trainer, its evidence about each prompt.
    pub(crate) evidence: Vec<E>,
    /// Of an adaptive trainer, the slot that all prompts share.
    pub(crate) shared: Option<Box<TrainerState<S, E>>>,
    /// Of a trainer in the background, an update that is done and not visible yet, and what it learned.
    pub(crate) ahead: Option<(Box<TrainerState<S, E>>, Learned)>,
}

impl<S, E> TrainerState<S, E> {
    /// The state of a trainer that has slots and nothing else.
    pub(crate) fn new(slots: Vec<S>) -> Self {
        Self { slots, evidence: Vec::new(), shared: None, ahead: None }
    }

    /// The same state with other slots and evidence, each made from the old one and a name that no other part of the
    /// state has. Names begin with `place`; `context` is passed on.
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
