//! The messages between the two halves of a background trainer.
// The caller's half owns `visible`, the copy that predicts; the worker owns the copy that learns. They share no
// memory, only two channels: one for jobs and one for results. Three rules make the outcome independent of the timing
// of the threads:
//
// 1. At most one lesson is pending. The caller waits for the result of step t − 1, makes it visible, and only then
//    sends the lesson of step t. So the copies never differ by more than one lesson.
// 2. Completions begin, end, are warmed up and restarted between lessons. The caller applies such a change to its own
//    copy at once, so that it predicts with it, and sends it with the next lesson. The worker applies the changes
//    before it learns, so both copies see changes and lessons in the same order.
// 3. A result replaces `visible`, but the worker made it before the changes since the lesson was sent. The caller
//    applies these changes to the new copy again. They stay in the list until the next lesson carries them.
//
// `Replace` is the exception: after a reset or a load, and when no lesson is pending, the caller's copy is
// authoritative, and both the list of changes and the worker's copy are dropped.
//
// burn writes to a tensor in place if it has one owner. On a GPU each of the two threads has a stream of its own, and a
// stream waits for what another has written to a tensor that it reads, but not for another that still has to read a
// tensor that it writes. The two copies share tensors, and the one that is left with a tensor does not know whether the
// other's queued work still reads it. So neither half ever writes to a tensor of its copy in place: while it changes
// the copy, it keeps the old one (`_unwritten`), and with it a second owner.
//
// The caller blocks in one place only, while it waits for the result of a pending lesson
// (`BackgroundTrainer::receive`). The worker blocks only while it waits for a job: the result channel has room for the
// one result that can be outstanding. So the two halves cannot wait for each other.
//
// A failure, such as a panic in a distiller, takes the place of the lesson's result. The caller therefore sees it one
// learning step later, when it waits for that result. From then on, every call that can fail returns it.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;

use crate::{
    hidden::HiddenStates,
    id::CompletionId,
    train::{
        error::TrainError,
        slots::Misfit,
        state::{Learned, TrainerState},
        trainer::OnlineTrainer,
    },
};

/// A change to a trainer between two lessons.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Begin(CompletionId),
    Release(CompletionId),
    /// Warm-up updates on a prompt. Both halves do them: if only the worker did, they would become visible with a
    /// result, one lesson late.
    WarmUp(Box<(CompletionId, HiddenStates, usize, bool)>),
    Restart(Box<Restart>),
    /// Slots that were loaded.
    Adopt(Box<TrainerState>),
}

/// The arguments of [`OnlineTrainer::restart`], and its result for the caller's copy.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Restart {
    pub(super) failed: Vec<CompletionId>,
    pub(super) fine: Vec<CompletionId>,
    pub(super) broken: Vec<Vec<bool>>,
    /// The number of updates that it has undone there.
    pub(super) undone: u64,
}

impl Change {
    /// Applies the change to one of the two copies, without writing to the tensors that they share.
    pub(super) fn apply(
        &self,
        trainer: &mut (impl OnlineTrainer + Clone),
    ) -> Result<Learned, TrainError> {
        let _unwritten = trainer.clone();
        match self {
            Self::Begin(row) => trainer.begin(*row),
            Self::Release(row) => trainer.release(*row),
            Self::WarmUp(prompt) => {
                let (row, hidden, updates, is_first) = &**prompt;
                return trainer.warm_up(*row, hidden, *updates, *is_first);
            }
            Self::Restart(rows) => return trainer.restart(&rows.failed, &rows.fine, &rows.broken),
            Self::Adopt(state) => {
                // It has fitted the copy that predicts, which has the same distillers.
                let misfit = |misfit: Misfit| TrainError::Worker { got: misfit.what };
                trainer.adopt((**state).clone()).map_err(misfit)?;
            }
        }
        Ok(Learned::default())
    }
}

/// A job for the worker.
#[derive(Debug)]
pub(super) enum Job {
    Learn(Box<Lesson>),
    /// Replaces the worker's copy by what is in the [`Replacement`].
    Replace,
}

/// A state on its way to the worker. There is room for one: a newer one replaces one that the worker has not taken, so
/// that any number of resets costs the memory of one.
#[derive(Clone, Debug)]
pub(super) struct Replacement<T>(Arc<Mutex<Option<T>>>);

impl<T> Default for Replacement<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> Replacement<T> {
    /// Puts a state there. Returns whether it replaced one; if not, the worker has to be sent a [`Job::Replace`].
    pub(super) fn put(&self, state: T) -> bool {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        place.replace(state).is_some()
    }

    /// Takes the state.
    pub(super) fn take(&self) -> Option<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The rows of one step, and the changes since the previous lesson.
#[derive(Debug)]
pub(super) struct Lesson {
    pub(super) changes: Vec<Change>,
    pub(super) rows: Vec<CompletionId>,
    pub(super) hidden: HiddenStates,
    pub(super) parts: Vec<Tensor<2>>,
}

/// The result of a lesson: a copy of the trainer after the update.
pub(super) type Done<T> = Result<(T, Learned), TrainError>;

/// The error of a worker that ended without a result.
// A worker that fails sends its error before it ends. So this error means that the `TrainingWorker` was dropped
// without being run.
pub(super) fn ended() -> TrainError {
    TrainError::Worker { got: "one that has ended".to_owned() }
}
