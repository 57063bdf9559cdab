//! What follows when a panic of a custom part has left a step and the caller has caught it.

use super::{Decoder, FinishReason};
use crate::{causal_lm::CausalLm, id::CompletionId};

/// What a step is doing. It tells which rows a panic may leave between two tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Making the mask of this row. No row has changed yet.
    Mask(CompletionId),
    /// Reading a prompt, that of this place. No other row has changed yet.
    Read(usize),
    /// Choosing the first tokens of the joining rows. The running rows have not changed yet.
    Join,
    /// Working on all running rows, and on those that join them.
    Batch,
}

impl<M: CausalLm> Decoder<M> {
    /// Ends the rows that a panic may have left between two tokens: the cache may have read a token twice or not at
    /// all, so that their next tokens would be wrong. Does nothing if the last step has returned.
    pub(super) fn recover(&mut self) {
        match self.work.take() {
            None => {}
            Some(Work::Mask(row)) => {
                self.end_where(|id| id == row, FinishReason::Aborted);
            }
            Some(Work::Read(at)) => self.abort_reading(at),
            Some(Work::Join) => self.abort_joining(),
            Some(Work::Batch) => {
                // Prompts that are still being read have their own caches, which the panic cannot have reached.
                self.abort_joining();
                self.abort();
            }
        }
    }
}
