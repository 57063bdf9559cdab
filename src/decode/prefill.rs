//! Prefilling waiting prompts and choosing the first tokens of their completions.

use std::{sync::Arc, time::Instant};

use super::{
    Batch, Choices, Decoder, Ended, FinishReason, accept,
    forward::{Prefill, rows_of},
    interrupted::Work,
    make_masks, other,
    request::Accepted,
    row::Row,
    take_ended,
    warm_up::PromptWarmUp,
};
use crate::{
    causal_lm::{CausalLm, KvCache},
    error::ConfigError,
    id::CompletionId,
    sampler::{Phase, StepError, StepInput},
};

/// A prompt whose prefill has begun. Its rows are [`Decoder::joining`].
pub(super) struct Reading<C> {
    request: Arc<Accepted>,
    prefill: Prefill<C>,
    warm_up: PromptWarmUp,
}

impl<M: CausalLm> Decoder<M> {
    /// Default for [`with_prefill_chunk`](Self::with_prefill_chunk), in tokens. It bounds the memory of a prefill,
    /// and matrix products with this many rows are large enough to be fast.
    pub const DEFAULT_PREFILL_CHUNK: usize = 512;

    /// Sets the maximum number of prompt tokens per forward pass, at least 1. Attention then takes memory in
    /// proportion to `tokens` × prompt length instead of the square of the prompt length. The logits do not change.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `tokens` is 0.
    pub fn with_prefill_chunk(mut self, tokens: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("prefill_chunk", tokens)?;
        self.prefill_chunk = tokens;
        Ok(self)
    }

    /// Limits the number of prompt tokens that are read per step, at least 1. A long prompt then delays the running
    /// completions by no more than that at each step, and begins later. While none are running, a step reads a
    /// [chunk](Self::with_prefill_chunk) if that is more. The default is no limit: a step reads all prompts for which
    /// there is room.
    ///
    /// The tokens do not change, up to rounding: a prompt is read in the pieces that the budget allows, as with
    /// [`with_prefill_chunk`](Self::with_prefill_chunk).
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `tokens` is 0.
    pub fn with_prefill_budget(mut self, tokens: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("prefill_budget", tokens)?;
        self.prefill_budget = tokens;
        Ok(self)
    }

    /// Prefills the waiting prompts for which there is room, as far as the budget of the step allows.
    pub(super) fn prefill_waiting(&mut self) -> Result<(), StepError> {
        // Without rows that would wait for it, a prompt is read in chunks.
        let is_alone = self.rows().next().is_none();
        let least = if is_alone { self.prefill_chunk } else { 1 };
        let mut budget = self.prefill_budget.max(least);
        while budget > 0 {
            if self.reading.is_none() {
                let Some(at) = self.next_waiting() else { break };
                self.begin_prefill(at);
            }
            let started = Instant::now();
            let prefilled = self.continue_prefill(&mut budget);
            self.stats.prefill_seconds += started.elapsed().as_secs_f64();
            // A failed prefill aborts only the completions of its prompt. The running rows continue at the next call.
            prefilled?;
        }
        Ok(())
    }

    /// The place of the waiting prompt to prefill next: the first for which there is room, unless it would overtake one
    /// that has been overtaken too often.
    fn next_waiting(&mut self) -> Option<usize> {
        for group in self.groups_to_evict() {
            // It is known, so this cannot fail.
            let _ = self.release_group(group);
        }
        let at = self.first_with_room()?;
        for overtaken in self.waiting.iter_mut().take(at) {
            overtaken.overtaken += 1;
        }
        Some(at)
    }

    /// Begins the prefill of a waiting prompt, unless all of its completions fail before.
    fn begin_prefill(&mut self, at: usize) {
        let waiting = &self.waiting[at];
        let request = waiting.request.clone();
        let context = self.context_length(&request);
        let ids = waiting.completions.iter();
        let mut rows: Vec<_> =
            ids.map(|&id| Some(Row::new(id, request.clone(), context))).collect();
        let failed = make_masks(&mut rows, self.model.vocab_size(), &mut self.work);
        // The prompt waits until its masks are made, so that a panic of its masker does not lose it.
        self.waiting.remove(at);
        self.leave_queue(1);
        self.joining = rows;
        self.end_joining(failed);
        self.joining.retain(Option::is_some);
        if self.joining.is_empty() {
            return;
        }
        let rows: Vec<&Row> = self.joining.iter().flatten().collect();
        let warm_up = PromptWarmUp::new(&rows, self.sites);
        let prefill = Prefill::new(&self.model, rows.len());
        self.reading = Some(Reading { request, prefill, warm_up });
    }

    /// Reads on in the prompt whose prefill has begun. When it has been read, chooses the first token of each of its
    /// completions and adds them to the batch.
    fn continue_prefill(&mut self, budget: &mut usize) -> Result<(), StepError> {
        self.work = Some(Work::Prefill);
        let Some(reading) = &mut self.reading else {
            return Ok(());
        };
        let Reading { request, prefill, warm_up } = reading;
        let read = prefill.read(&self.model, &request.prompt, self.prefill_chunk, *budget, warm_up);
        match read {
            Ok(read) => *budget -= read,
            Err(error) => {
                self.abort_joining();
                return Err(error);
            }
        }
        if !prefill.is_complete(&request.prompt) {
            return Ok(());
        }
        let (cache, choices) = match self.first_tokens() {
            Ok(Some(first)) => first,
            Ok(None) => return Ok(()),
            Err(error) => {
                self.abort_joining();
                return Err(error);
            }
        };
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

    /// Chooses the first tokens of the joining rows, whose prompt has been read.
    fn first_tokens(&mut self) -> Result<Option<(M::Cache, Choices)>, StepError> {
        let Some(Reading { request, prefill, warm_up }) = self.reading.take() else {
            return Ok(None);
        };
        let prompt = &request.prompt;
        self.stats.prompt_tokens += prompt.len() as u64;
        if prefill.is_shared() {
            // Rows that were cancelled meanwhile need no place.
            self.joining.retain(Option::is_some);
        }
        let vocab = self.model.vocab_size();
        let (cache, logits) = prefill.finish(self.joining.len(), vocab)?;
        let live: Vec<usize> =
            (0..self.joining.len()).filter(|&at| self.joining[at].is_some()).collect();
        let (logits, _) = rows_of(logits, None, self.joining.len(), &live)?;
        let rows: Vec<&Row> = self.joining.iter().flatten().collect();
        // The distillers learn from the prompt before the first token is chosen.
        warm_up.learn(&mut self.sampler, &rows)?;
        let contrasted: Vec<CompletionId> =
            other::contrasted(rows.iter().copied()).map(|row| row.id).collect();
        let other_logits = match &mut self.other {
            Some(other) if !contrasted.is_empty() => {
                // A panic may leave the other model's cache of the running rows half changed.
                self.work = Some(Work::Batch);
                let logits = other.prefill(prompt, &contrasted, self.prefill_chunk)?;
                self.work = Some(Work::Prefill);
                Some(logits)
            }
            _ => None,
        };
        let step_rows: Vec<_> = rows.iter().map(|row| row.step_row(Phase::FirstToken)).collect();
        let input = StepInput::new(&step_rows, logits, self.model.lm_head());
        // No hidden states: the first token is neither steered nor learned from.
        let output = self.sampler.step(input.with_other_logits(other_logits))?;
        Ok(Some((cache, output.choices)))
    }

    /// Ends the given rows of the prompt that is being prefilled. Their places stay.
    pub(super) fn end_joining(&mut self, ended: Ended) {
        for (row, reason) in take_ended(&mut self.joining, ended) {
            self.hand_over(row, reason);
        }
    }

    /// Aborts the rows of the prompt that is being prefilled.
    pub(super) fn abort_joining(&mut self) {
        self.reading = None;
        for row in std::mem::take(&mut self.joining).into_iter().flatten() {
            self.hand_over(row, FinishReason::Aborted);
        }
    }
}
