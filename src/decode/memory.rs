//! The memory that requests need, and the limit on it.

use super::{Decoder, GroupError, Request, Waiting};
use crate::{
    causal_lm::{BatchSize, CausalLm},
    id::{CompletionId, GroupId, PromptId},
    novelty::Expects,
};

/// Rows that run together, at their full length.
#[derive(Default)]
struct Load {
    rows: usize,
    /// Rows of the second model.
    others: usize,
    columns: usize,
    /// Rows that join the others.
    joining: usize,
    /// Tokens of the largest part of a prompt that is read.
    prefill: usize,
    /// Tokens of the prompts that warm-ups learn from, over all prompts, and of the longest one.
    warm_up: usize,
    longest_warm_up: usize,
    /// Completions that use a distiller, and those that hold one.
    distilled: Vec<CompletionId>,
}

impl Load {
    /// Adds a prompt that is read in parts of up to `tokens`.
    fn add_prompt(&mut self, request: &Request, tokens: usize) {
        self.prefill = self.prefill.max(tokens);
        if request.warms_up() {
            self.warm_up = self.warm_up.saturating_add(request.prompt.len());
            self.longest_warm_up = self.longest_warm_up.max(request.prompt.len());
        }
    }

    fn add(
        &mut self,
        expects: Expects,
        columns: usize,
        ids: impl IntoIterator<Item = CompletionId>,
    ) {
        for id in ids {
            self.rows += 1;
            match expects {
                Expects::Nothing => {}
                Expects::OtherModel => self.others += 1,
                Expects::Distiller => self.distilled.push(id),
            }
        }
        self.columns = self.columns.max(columns);
    }
}

impl<M: CausalLm> Decoder<M> {
    /// Limits memory, in bytes, in addition to the models' weights: prompts wait until
    /// [what they need](Self::bytes_needed) fits alongside what runs. If a prompt would have to wait for the distillers
    /// of [groups](Request::with_group) without completions, these are evicted, least recently used first. The default
    /// is no limit.
    ///
    /// What is counted is an upper bound on a CPU, if the model gives one
    /// ([`working_bytes`](CausalLm::working_bytes)), as [`Llama`](crate::llama::Llama) does. The library for matrix
    /// products has buffers in addition, about 2 MB per thread; texts, events and masks are not counted either. The
    /// guide has [the terms, and how close they are](crate::guide::performance).
    ///
    /// A prompt is never kept waiting when nothing else runs. The distillers of groups that have requests waiting can
    /// then exceed the limit: [`with_max_groups`](Self::with_max_groups) bounds them.
    pub fn with_memory_limit(mut self, bytes: usize) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// Bytes that a request takes at most when it runs alone and all of its completions reach their full length: the
    /// KV cache, its distillers, and the working memory of the largest step. See
    /// [`with_memory_limit`](Self::with_memory_limit).
    pub fn bytes_needed(&self, request: &Request) -> usize {
        let prompt = PromptId(self.next_prompt);
        let ids = (0..request.completions as u64).map(|index| CompletionId { prompt, index });
        let mut load = Load::default();
        load.add_prompt(request, self.prefill_tokens(request));
        load.add(request.expects(), self.longest(request), ids);
        self.bytes(&load)
    }

    /// Whether there is memory for a waiting prompt alongside the rows that run.
    pub(super) fn has_memory(&self, waiting: &Waiting) -> bool {
        let Some(limit) = self.memory_limit else {
            return true;
        };
        self.bytes_in_use(&self.load_with(Some(waiting), &self.sampler.held())) <= limit
    }

    /// Checks that there is memory for the distiller of another prompt alongside what runs.
    pub(super) fn check_memory_with(&self, prompt: PromptId) -> Result<(), GroupError> {
        let Some(limit) = self.memory_limit else {
            return Ok(());
        };
        let mut held = self.sampler.held();
        held.push(prompt);
        let needed = self.bytes_in_use(&self.load_with(None, &held));
        if needed > limit { Err(GroupError::MemoryLimit { limit, needed }) } else { Ok(()) }
    }

    fn bytes_in_use(&self, load: &Load) -> usize {
        self.bytes(load).saturating_add(self.sampler.unfreed_bytes())
    }

    /// The groups without completions whose memory the first waiting prompt needs. None if that would not suffice.
    pub(super) fn groups_to_evict(&self) -> Vec<GroupId> {
        let (Some(limit), Some(first)) = (self.memory_limit, self.waiting.front()) else {
            return Vec::new();
        };
        if !self.has_places(first) {
            return Vec::new();
        }
        let idle = self.idle_groups();
        let mut held = self.sampler.held();
        let mut evicted = 0;
        while self.bytes_in_use(&self.load_with(Some(first), &held)) > limit {
            let Some((_, prompt)) = idle.get(evicted) else {
                return Vec::new();
            };
            held.retain(|held| held != prompt);
            evicted += 1;
        }
        idle[..evicted].iter().map(|&(group, _)| group).collect()
    }

    /// The rows that run, the rows of a waiting prompt alongside them, and the distillers of the prompts in `held`.
    fn load_with(&self, waiting: Option<&Waiting>, held: &[PromptId]) -> Load {
        let mut load = Load::default();
        for row in self.rows() {
            load.add(row.expects(), row.longest(), [row.id]);
        }
        // Prompts join one after the other.
        let joining = self.reading.iter().map(|reading| (&reading.request, reading.rows.len()));
        let waits = waiting.map(|waiting| (&waiting.request, waiting.completions.len()));
        for (request, rows) in joining.chain(waits) {
            load.add_prompt(request, self.prefill_tokens(request));
            load.joining = if load.rows == 0 { 0 } else { load.joining.max(rows) };
        }
        if let Some(Waiting { request, completions, .. }) = waiting {
            load.add(request.expects(), self.longest(request), completions.iter().copied());
        }
        load.distilled.extend(held.iter().map(|&prompt| CompletionId { prompt, index: 0 }));
        load
    }

    /// The most tokens of a request's prompt that are read at once.
    fn prefill_tokens(&self, request: &Request) -> usize {
        request.prompt.len().min(self.prefill_chunk)
    }

    // Saturating, so that a request with enormous settings exceeds the limit instead of overflowing.
    fn bytes(&self, load: &Load) -> usize {
        let &Load { rows, others, columns, joining, prefill, .. } = load;
        let batch = |rows: usize| BatchSize {
            rows,
            columns,
            joining: joining.min(rows),
            pass: prefill.max(rows),
        };
        let cache =
            |rows: usize, per_token: usize| rows.saturating_mul(columns).saturating_mul(per_token);
        let model = cache(rows, self.model.kv_bytes_per_token())
            .saturating_add(self.model.working_bytes(batch(rows)));
        let other = self.other.as_ref().filter(|_| others > 0).map_or(0, |other| {
            let cache = cache(others, other.kv_bytes_per_token());
            cache.saturating_add(other.working_bytes(batch(others)))
        });
        let is_steered = others > 0 || !load.distilled.is_empty();
        let shape = [rows, self.model.vocab_size()];
        let sampler = self.sampler.bytes_for(shape, is_steered, &load.distilled);
        let warm_up = self.sampler.warm_up_bytes(load.warm_up, load.longest_warm_up);
        [other, sampler, warm_up].into_iter().fold(model, usize::saturating_add)
    }
}
