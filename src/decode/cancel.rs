//! Ending completions before they have finished.

use super::{Decoder, FinishReason, RequestError, row::Row};
use crate::{
    causal_lm::CausalLm,
    id::{CompletionId, PromptId},
};

impl<M: CausalLm> Decoder<M> {
    /// Cancels one completion, waiting, running or paused. It finishes with [`FinishReason::Cancelled`] and keeps the
    /// tokens it has.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when the completion has ended or does not exist.
    pub fn cancel(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        match self.cancel_where(|id| id == completion) {
            0 => Err(RequestError::UnknownCompletion { completion }),
            _ => Ok(()),
        }
    }

    /// Cancels all completions of a prompt, waiting or running, as [`cancel`](Self::cancel) does for one.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownPrompt`] when all of them have ended or the prompt does not exist.
    pub fn cancel_prompt(&mut self, prompt: PromptId) -> Result<(), RequestError> {
        match self.cancel_where(|id| id.prompt == prompt) {
            0 => Err(RequestError::UnknownPrompt { prompt }),
            _ => Ok(()),
        }
    }

    /// Cancels the completions for which `is_cancelled` returns true and returns their number. One call copies what is
    /// left of a cache once.
    pub(crate) fn cancel_where(&mut self, is_cancelled: impl Fn(CompletionId) -> bool) -> usize {
        self.recover();
        let count = self.end_where(is_cancelled, FinishReason::Cancelled);
        self.tell_maskers();
        count
    }

    /// Ends the waiting and running completions for which `is_ended` returns true and returns their number.
    pub(super) fn end_where(
        &mut self,
        is_ended: impl Fn(CompletionId) -> bool,
        reason: FinishReason,
    ) -> usize {
        let rows = self.batch.iter().flat_map(|batch| batch.rows.iter().enumerate());
        let running: Vec<(usize, FinishReason)> = rows
            .filter(|(_, row)| row.as_ref().is_some_and(|row| is_ended(row.id)))
            .map(|(at, _)| (at, reason.clone()))
            .collect();
        let mut waiting = Vec::new();
        for prompt in &mut self.waiting {
            for id in prompt.completions.extract_if(.., |id| is_ended(*id)) {
                waiting.push((id, prompt.request.clone()));
            }
        }
        let queued = self.waiting.len();
        self.waiting.retain(|prompt| !prompt.completions.is_empty());
        self.leave_queue(queued - self.waiting.len());
        let read = self.reading.iter_mut().flat_map(|reading| &mut reading.rows);
        let read: Vec<Row> = read.filter_map(|row| row.take_if(|row| is_ended(row.id))).collect();
        self.reading.retain(|reading| reading.rows.iter().any(Option::is_some));
        let count = running.len() + waiting.len() + read.len();
        self.end(running);
        for row in read {
            self.hand_over(row, reason.clone());
        }
        for (id, request) in waiting {
            // A waiting completion has no row yet. With an empty one it ends like any other: released and reported.
            let context = self.context_length(&request);
            self.hand_over(Row::new(id, request, context), reason.clone());
        }
        count + self.end_paused(is_ended, &reason)
    }
}
