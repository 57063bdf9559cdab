//! Prefilling waiting prompts and choosing the first tokens of their completions.

use std::time::Instant;

use super::{
    Batch, Choices, Decoder, Ended, FinishReason, accept, forward, interrupted::Work, make_masks,
    other, row::Row, take_ended, warm_up::PromptWarmUp,
};
use crate::{
    causal_lm::{CausalLm, KvCache},
    id::{CompletionId, TokenId},
    sampler::{Phase, StepError, StepInput},
};

impl<M: CausalLm> Decoder<M> {
    /// Prefills the waiting prompts for which there is room, first in, first out: a small prompt does not overtake a
    /// large one that still waits for room.
    pub(super) fn prefill_waiting(&mut self) -> Result<(), StepError> {
        while self.waiting.front().is_some_and(|waiting| self.has_room(waiting)) {
            let started = Instant::now();
            let prefilled = self.prefill();
            self.stats.prefill_seconds += started.elapsed().as_secs_f64();
            // A failed prefill aborts only the completions of its prompt. The running rows continue at the next call.
            prefilled?;
        }
        Ok(())
    }

    /// Prefills the first waiting prompt, chooses the first token of each of its completions, and adds them to the
    /// batch.
    fn prefill(&mut self) -> Result<(), StepError> {
        let Some(waiting) = self.waiting.front() else {
            return Ok(());
        };
        let request = waiting.request.clone();
        let context = self.context_length(&request);
        let ids = waiting.completions.iter();
        let mut rows: Vec<_> =
            ids.map(|&id| Some(Row::new(id, request.clone(), context))).collect();
        let failed = make_masks(&mut rows, &mut self.work);
        // The prompt waits until its masks are made, so that a panic of its masker does not lose it.
        self.waiting.pop_front();
        self.joining = rows;
        self.end_joining(failed);
        self.joining.retain(Option::is_some);
        if self.joining.is_empty() {
            return Ok(());
        }

        self.work = Some(Work::Prefill);
        let (cache, choices) = match self.first_tokens(&request.prompt) {
            Ok(first) => first,
            Err(error) => {
                self.abort_joining();
                return Err(error);
            }
        };
        self.stats.prompt_tokens += request.prompt.len() as u64;
        let detokenizer = self.detokenizer.as_deref();
        let ended = accept(&mut self.joining, choices, detokenizer, &mut self.events);
        self.end_joining(ended);
        // Completions that all end with their first token do not join the batch.
        if self.joining.iter().all(Option::is_none) {
            self.joining.clear();
            return Ok(());
        }
        self.join(cache)
    }

    /// Adds the prefilled rows to the batch. If the batch's cache cannot append them, they are aborted.
    fn join(&mut self, cache: M::Cache) -> Result<(), StepError> {
        let Some(running) = &mut self.batch else {
            self.batch = Some(Batch { cache, rows: std::mem::take(&mut self.joining) });
            return Ok(());
        };
        self.work = Some(Work::Batch); // a panic may leave the cache of the running rows half changed
        match running.cache.append_rows(cache) {
            Ok(()) => {
                running.rows.append(&mut self.joining);
                Ok(())
            }
            Err(error) => {
                self.abort_joining();
                Err(error.into())
            }
        }
    }

    /// Runs the prompt of the joining rows through the model and chooses their first tokens.
    fn first_tokens(&mut self, prompt: &[TokenId]) -> Result<(M::Cache, Choices), StepError> {
        let chunk = self.prefill_chunk;
        let rows: Vec<&Row> = self.joining.iter().flatten().collect();
        let mut warm_up = PromptWarmUp::new(&rows, self.sites);
        let (cache, logits) =
            forward::prefill(&self.model, prompt, rows.len(), chunk, &mut warm_up)?;
        // The distillers learn from the prompt before the first token is chosen.
        warm_up.learn(&mut self.sampler, &rows)?;
        let contrasted: Vec<CompletionId> =
            other::contrasted(rows.iter().copied()).map(|row| row.id).collect();
        let other_logits = match &mut self.other {
            Some(other) if !contrasted.is_empty() => {
                // A panic may leave the other model's cache of the running rows half changed.
                self.work = Some(Work::Batch);
                let logits = other.prefill(prompt, &contrasted, chunk)?;
                self.work = Some(Work::Prefill);
                Some(logits)
            }
            _ => None,
        };
        let step_rows: Vec<_> = rows.iter().map(|row| row.step_row(Phase::FirstToken)).collect();
        let input = StepInput::new(&step_rows, logits, self.model.lm_head());
        // No hidden states: the first token is neither steered nor learned from.
        let output = self.sampler.step(input.with_other_logits(other_logits))?;
        Ok((cache, output.choices))
    }

    /// Ends the given rows of the prompt that is being prefilled. Their places stay.
    fn end_joining(&mut self, ended: Ended) {
        for (row, reason) in take_ended(&mut self.joining, ended) {
            self.hand_over(row, reason);
        }
    }

    /// Aborts the rows of the prompt that is being prefilled.
    pub(super) fn abort_joining(&mut self) {
        for row in std::mem::take(&mut self.joining).into_iter().flatten() {
            self.hand_over(row, FinishReason::Aborted);
        }
    }
}
