//! Prefilling waiting prompts and choosing the first tokens of their completions.

use std::{sync::Arc, time::Instant};

use super::{
    Batch, Choices, Decoder, FinishReason, accept,
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
    id::{CompletionId, TokenId},
    sampler::{Phase, Sampler, StepError, StepInput},
};

/// A prompt whose prefill has begun.
pub(super) struct Reading<C> {
    pub(super) request: Arc<Accepted>,
    pub(super) prefill: Prefill<C>,
    warm_up: PromptWarmUp,
    /// The rows of its completions. `None` marks one that has ended meanwhile.
    pub(super) rows: Vec<Option<Row>>,
    /// How many prompts that were submitted or have begun later have been read before it.
    overtaken: usize,
}

impl<C: KvCache> Reading<C> {
    /// The tokens that have not been read, and those of the warm-up updates that are left: each learns from the whole
    /// prompt.
    fn left(&self, sampler: &Sampler) -> usize {
        let updates = self.warm_up.left(sampler, &self.rows);
        updates.saturating_mul(self.request.prompt.len()).saturating_add(self.unread())
    }

    fn unread(&self) -> usize {
        self.prefill.left(&self.request.prompt)
    }

    /// The tokens of the smallest part of what is left: one, or those of an update.
    fn least(&self, sampler: &Sampler) -> usize {
        if self.unread() > 0 { 1 } else { self.left(sampler).min(self.request.prompt.len()) }
    }
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
    /// The prompt with the fewest tokens left is read first, and what is left of the budget goes to the next one. So a
    /// prompt that fits into the budget gets its first tokens at the next step, also while a long one is being read.
    /// The long one is overtaken at most [`MAX_OVERTAKEN`](Self::MAX_OVERTAKEN) times, and then read to its end first.
    ///
    /// A [warm-up update](crate::Request::with_prompt_warm_up) counts as many tokens as it learns from, those of the prompt. A
    /// step does as many of them as the budget allows, and one of a longer prompt if it does nothing else of the budget.
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

    /// Begins the waiting prompts for which there is room, and reads those that have begun, as far as the budget of the
    /// step allows.
    pub(super) fn prefill_waiting(&mut self) -> Result<(), StepError> {
        let mut read = 0;
        loop {
            while let Some(at) = self.next_waiting() {
                self.begin_prefill(at);
            }
            // Without rows that would wait for it, a prompt is read in chunks.
            let least = if self.batch.is_none() { self.prefill_chunk } else { 1 };
            let budget = self.prefill_budget.max(least).saturating_sub(read);
            let Some(at) = self.next_to_read().filter(|_| budget > 0) else {
                return Ok(());
            };
            // An update that does not fit is the first of the next step.
            if read > 0 && self.reading[at].least(&self.sampler) > budget {
                return Ok(());
            }
            let started = Instant::now();
            let prefilled = self.continue_prefill(at, budget);
            self.stats.prefill_seconds += started.elapsed().as_secs_f64();
            self.work = None;
            read += prefilled?;
        }
    }

    /// The place of the waiting prompt to begin next: the first for which there is room, unless it would overtake one
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

    /// The place of the prompt to read on in: one that has been overtaken too often, and otherwise the one with the
    /// fewest tokens left.
    fn next_to_read(&self) -> Option<usize> {
        let places = 0..self.reading.len();
        let due = places.clone().find(|&at| self.reading[at].overtaken >= Self::MAX_OVERTAKEN);
        due.or_else(|| places.min_by_key(|&at| self.reading[at].left(&self.sampler)))
    }

    /// Begins the prefill of a waiting prompt, unless all of its completions fail before.
    fn begin_prefill(&mut self, at: usize) {
        let waiting = &self.waiting[at];
        let (request, overtaken) = (waiting.request.clone(), waiting.overtaken);
        let context = self.context_length(&request);
        let ids = waiting.completions.iter();
        let mut rows: Vec<_> =
            ids.map(|&id| Some(Row::new(id, request.clone(), context))).collect();
        let failed = make_masks(&mut rows, self.model.vocab_size(), &mut self.work);
        // The prompt waits until its masks are made, so that a panic of its masker does not lose it.
        if let Some(waiting) = self.waiting.remove(at) {
            let first = waiting.completions.first();
            self.admitted.extend(first.map(|&completion| (completion, Instant::now())));
        }
        self.leave_queue(1);
        for (row, reason) in take_ended(&mut rows, failed) {
            self.hand_over(row, reason);
        }
        rows.retain(Option::is_some);
        if rows.is_empty() {
            return;
        }
        let warm_up = PromptWarmUp::new(rows.iter().flatten().next(), self.sites);
        let prefill = Prefill::new(&self.model, rows.len(), request.prompt.len());
        self.reading.push(Reading { request, prefill, warm_up, rows, overtaken });
    }

    /// Reads up to `budget` more tokens of a prompt whose prefill has begun, and goes on with its warm-up when it has been
    /// read. Returns the number of tokens, those of each update included. When nothing is left, chooses the first token of
    /// each of its completions and adds them to the batch.
    fn continue_prefill(&mut self, at: usize, budget: usize) -> Result<usize, StepError> {
        self.work = Some(Work::Read(at));
        let read = match self.read(at, budget) {
            Ok(read) => read,
            Err(error) => {
                self.abort_reading(at);
                return Err(error);
            }
        };
        if self.reading[at].left(&self.sampler) > 0 {
            return Ok(read);
        }
        for overtaken in &mut self.reading[..at] {
            overtaken.overtaken += 1;
        }
        self.finish_prefill(at)?;
        Ok(read)
    }

    /// Reads up to `budget` more tokens of a prompt, and goes on with its warm-up when it has been read.
    fn read(&mut self, at: usize, budget: usize) -> Result<usize, StepError> {
        let Reading { request, prefill, warm_up, rows, .. } = &mut self.reading[at];
        let prompt = &request.prompt;
        let read = prefill.read(&self.model, prompt, self.prefill_chunk, budget, warm_up)?;
        if prefill.left(prompt) > 0 {
            return Ok(read);
        }
        // At least one, so that a prompt that is longer than the budget is learned from too.
        let updates = ((budget - read) / prompt.len()).max(usize::from(read == 0));
        let updates = warm_up.learn(&mut self.sampler, rows, updates)?;
        Ok(read.saturating_add(updates.saturating_mul(prompt.len())))
    }

    /// Chooses the first tokens of a prompt that has been read, and adds its rows to the batch.
    fn finish_prefill(&mut self, at: usize) -> Result<(), StepError> {
        self.work = Some(Work::Join);
        let Reading { request, prefill, rows, .. } = self.reading.remove(at);
        self.joining = rows;
        let (cache, choices) = match self.first_tokens(&request.prompt, prefill) {
            Ok(first) => first,
            Err(error) => {
                self.abort_joining();
                return Err(error);
            }
        };
        let detokenizer = self.detokenizer.as_deref();
        let ended = accept(&mut self.joining, choices, detokenizer, &mut self.events);
        for (row, reason) in take_ended(&mut self.joining, ended) {
            self.hand_over(row, reason);
        }
        // Completions that all end with their first token do not join the batch.
        if self.joining.iter().all(Option::is_none) {
            self.joining.clear();
            return Ok(());
        }
        self.join(cache)
    }

    /// Adds the joining rows, which have this cache, to the batch. If the batch's cache cannot append them, they are aborted.
    pub(super) fn join(&mut self, cache: M::Cache) -> Result<(), StepError> {
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
    fn first_tokens(
        &mut self,
        prompt: &[TokenId],
        prefill: Prefill<M::Cache>,
    ) -> Result<(M::Cache, Choices), StepError> {
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
        let contrasted: Vec<CompletionId> =
            other::contrasted(rows.iter().copied()).map(|row| row.id).collect();
        let other_logits = match &mut self.other {
            Some(other) if !contrasted.is_empty() => {
                // A panic may leave the other model's cache of the running rows half changed.
                self.work = Some(Work::Batch);
                let logits = other.prefill(prompt, &contrasted, self.prefill_chunk)?;
                self.work = Some(Work::Join);
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

    /// Aborts a prompt that is being read.
    pub(super) fn abort_reading(&mut self, at: usize) {
        self.joining = self.reading.remove(at).rows;
        self.abort_joining();
    }

    /// Aborts the rows of the prompt whose first tokens are being chosen.
    pub(super) fn abort_joining(&mut self) {
        for row in std::mem::take(&mut self.joining).into_iter().flatten() {
            self.hand_over(row, FinishReason::Aborted);
        }
    }
}
