//! What follows when a panic of a custom part has left a step and the caller has caught it.

use super::{Decoder, FinishReason};
use crate::{causal_lm::CausalLm, id::CompletionId};

/// What a step is doing. It tells which rows a panic may leave between two tokens.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// Making the mask of this row. No row has changed yet.
    Mask(CompletionId),
    /// Prefilling a prompt and choosing its first tokens. The running rows have not changed yet.
    Prefill,
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
            Some(Work::Prefill) => self.abort_joining(),
            Some(Work::Batch) => {
                // A prompt that is still being read has its own cache, which the panic cannot have reached.
                if self.reading.is_none() {
                    self.abort_joining();
                }
                self.abort();
            }
        }
    }
}
