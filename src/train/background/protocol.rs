//! What the two halves of a background trainer say to each other.
//
// The caller's half owns `visible`, the copy that predicts; the worker owns the copy that learns. They share no memory,
// only two channels: jobs go one way, results the other. Three rules make the outcome independent of the threads'
// timing:
//
// 1. At most one lesson is under way. The caller waits for the result of step t − 1, makes it visible, and only then
//    sends the lesson of step t. So the copies never differ by more than one lesson.
// 2. Requests begin, end and are warmed up between lessons. The caller applies such a change to its own copy at once,
//    so that it predicts with it, and sends it along with the next lesson. The worker applies changes before it learns:
//    in the same order relative to lessons as the caller.
// 3. A result that arrives replaces `visible`, and the worker made it without the changes since the lesson was sent.
//    The caller applies these to the new copy again. They stay in the list until they go out with the next lesson.
//
// `Replace` breaks the symmetry on purpose: after a reset or a load the caller's copy is the truth, and the list of
// changes is dropped with the worker's copy.

use burn::tensor::Tensor;

use crate::{
    hidden::HiddenStates,
    id::CompletionId,
    train::{error::TrainError, state::Learned, trainer::OnlineTrainer},
};

/// What happens to a trainer between two lessons.
#[derive(Clone, Debug)]
pub(super) enum Change {
    Begin(CompletionId),
    Release(CompletionId),
    /// Learning from a prompt. It is done by both halves: sent to the worker alone, it would become visible with a
    /// result, one lesson late.
    WarmUp(Box<(CompletionId, HiddenStates, usize)>),
}

impl Change {
    /// Does it to one of the two copies.
    pub(super) fn apply(&self, trainer: &mut impl OnlineTrainer) -> Result<Learned, TrainError> {
        match self {
            Self::Begin(row) => trainer.begin(*row),
            Self::Release(row) => trainer.release(*row),
            Self::WarmUp(prompt) => {
                let (row, hidden, updates) = &**prompt;
                return trainer.warm_up(*row, hidden, *updates);
            }
        }
        Ok(Learned::default())
    }
}

/// What the worker is to do.
#[derive(Debug)]
pub(super) enum Job<T> {
    Learn(Box<Lesson>),
    /// Go on from this state instead: after a reset or a load.
    Replace(Box<T>),
}

/// One step's rows, and what has happened since the lesson before.
#[derive(Debug)]
pub(super) struct Lesson {
    pub(super) changes: Vec<Change>,
    pub(super) rows: Vec<CompletionId>,
    pub(super) hidden: HiddenStates,
    pub(super) parts: Vec<Tensor<2>>,
}

/// The result of a lesson: a copy of the trainer that has learned it.
pub(super) type Done<T> = Result<(T, Learned), TrainError>;

/// The error of a worker that is gone without a result.
pub(super) fn ended() -> TrainError {
    TrainError::Worker { got: "one that has ended".to_owned() }
}
