//! Admission: which requests are valid, and when there is room for them.

use std::{collections::HashSet, iter};

use super::{Decoder, Request, Waiting, pause::Paused, row::Row};
use crate::{
    causal_lm::{CacheLimits, CausalLm, KvCache},
    decode::error::RequestError,
    error::ConfigError,
    id::TokenId,
    novelty::Expects,
};

impl<M: CausalLm> Decoder<M> {
    /// Limits the number of rows, at least 1: completions that run, are [paused](Self::pause), or whose prompt is being
    /// prefilled. Prompts wait until all of their completions have room. The default is no limit.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when `rows` is 0.
    pub fn with_max_rows(mut self, rows: usize) -> Result<Self, ConfigError> {
        ConfigError::at_least_one("max_rows", rows)?;
        self.max_rows = rows;
        Ok(self)
    }

    /// A prompt is overtaken by at most this number of later ones: by those for which there is room while it waits for
    /// room, and by those with fewer tokens left while it is read ([`with_prefill_budget`](Self::with_prefill_budget)).
    /// After that, the later ones wait for it.
    pub const MAX_OVERTAKEN: usize = 16;

    /// The maximum length of the request's sequences in tokens: the smallest context length of the models that read
    /// them.
    pub(super) fn context_length(&self, request: &Request) -> Option<usize> {
        let other = self.other.as_ref().filter(|_| request.expects() == Expects::OtherModel);
        let other = other.and_then(|other| other.context_length());
        self.model.context_length().into_iter().chain(other).min()
    }

    pub(super) fn longest(&self, request: &Request) -> usize {
        request.longest(self.context_length(request))
    }

    /// Checks that a request can run.
    pub(super) fn check(&self, request: &Request) -> Result<(), RequestError> {
        let vocab = self.model.vocab_size();
        if request.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        for (setting, value) in
            [("completions", request.completions), ("max_new_tokens", request.max_new_tokens)]
        {
            if value == 0 {
                return Err(RequestError::Nothing { setting });
            }
        }
        let most = Request::MAX_COMPLETIONS.min(self.max_rows);
        if request.completions > most {
            let (limit, got) = (most, request.completions);
            return Err(RequestError::TooManyCompletions { limit, got });
        }
        let biased: Vec<TokenId> = request.sampling.logit_bias.keys().copied().collect();
        for (place, tokens) in [
            ("prompt", &request.prompt),
            ("stop", &request.stop_tokens),
            ("logit bias", &biased),
            ("sequence breaker", &request.sampling.penalties.breakers()),
        ] {
            if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
                return Err(RequestError::UnknownToken { place, token, vocab });
            }
        }
        if request.expects() == Expects::OtherModel && self.other.is_none() {
            return Err(RequestError::NoOtherModel);
        }
        if let Some(limit) = self.context_length(request)
            && request.prompt.len() >= limit
        {
            return Err(RequestError::PromptTooLong { prompt: request.prompt.len(), limit });
        }
        if !request.stop_strings.is_empty() && self.detokenizer.is_none() {
            return Err(RequestError::NoDetokenizer);
        }
        if let Some(group) = request.group {
            self.check_group(group)?;
        }
        if let Some(error) = self.cache_shortage(request, iter::empty()) {
            return Err(error);
        }
        let needed = self.bytes_needed(request);
        match self.memory_limit {
            Some(limit) if needed > limit => Err(RequestError::MemoryLimit { limit, needed }),
            _ => Ok(()),
        }
    }

    /// Where the caches have too little room for a request alongside these rows, all at their full length.
    fn cache_shortage<'a>(
        &self,
        request: &Request,
        rows: impl Iterator<Item = &'a Row> + Clone,
    ) -> Option<RequestError> {
        let is_contrasted = |expects| expects == Expects::OtherModel;
        let of_model = (self.model.cache_limits(), self.cache_use(request, rows.clone()));
        let other = self.other.as_ref().filter(|_| is_contrasted(request.expects()));
        let of_other = other.map(|other| {
            let rows = rows.filter(|row| is_contrasted(row.expects()));
            (other.cache_limits(), self.cache_use(request, rows))
        });
        iter::once(of_model).chain(of_other).find_map(|(limits, needed)| {
            let pairs =
                [("rows", limits.rows, needed.rows), ("tokens", limits.tokens, needed.tokens)];
            let (what, limit, needed) =
                pairs.into_iter().find(|(_, limit, needed)| needed > limit)?;
            Some(RequestError::CacheLimit { what, limit, needed })
        })
    }

    /// What a request takes of a cache alongside these rows. The last token of a completion is not read.
    fn cache_use<'a>(&self, request: &Request, rows: impl Iterator<Item = &'a Row>) -> CacheLimits {
        let prompt = request.prompt.len();
        let new = self.longest(request).saturating_sub(prompt + 1);
        let tokens = request.completions.saturating_mul(new).saturating_add(prompt);
        let mut needed = CacheLimits { rows: request.completions, tokens };
        let mut prompts = HashSet::new();
        for row in rows {
            let prompt = row.prompt();
            let shared = if prompts.insert(prompt.as_ptr()) { 0 } else { prompt.len() };
            needed.rows += 1;
            needed.tokens = needed.tokens.saturating_add(row.longest() - 1 - shared);
        }
        needed
    }

    /// The rows of completions whose prompt is being read or has been.
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> + Clone {
        let running = self.batch.iter().flat_map(|batch| &batch.rows);
        let read = self.reading.iter().flat_map(|reading| &reading.rows);
        running.chain(read).flatten().chain(self.paused.iter().flat_map(Paused::rows))
    }

    /// Whether there is room to prefill a prompt now. A prompt is never kept waiting when nothing else runs.
    pub(super) fn has_room(&self, waiting: &Waiting) -> bool {
        self.has_places(waiting) && (self.rows().next().is_none() || self.has_memory(waiting))
    }

    /// Whether the batch and the caches have places for the rows of a prompt.
    pub(super) fn has_places(&self, waiting: &Waiting) -> bool {
        let is_contrasted = |request: &Request| request.expects() == Expects::OtherModel;
        let others_join = self.reading.iter().any(|reading| is_contrasted(&reading.request));
        if is_contrasted(&waiting.request)
            && self.other.as_ref().is_some_and(|other| !other.has_room(others_join))
        {
            return false;
        }
        // Rows that have ended stay in such a cache, or nothing can join it. The prompt waits until the batch has
        // ended, and the prompts that are being read.
        let running = self.batch.iter().map(|batch| &batch.cache);
        let mut caches = running.chain(self.reading.iter().map(|reading| reading.prefill.cache()));
        if !caches.all(|cache| cache.can_drop_rows() && cache.can_append_rows()) {
            return false;
        }
        let running = self.rows().count();
        let most = self.max_rows.saturating_sub(waiting.completions.len());
        running <= most && self.cache_shortage(&waiting.request, self.rows()).is_none()
    }

    /// The place of the first waiting prompt for which there is room, unless it would overtake one that has been
    /// overtaken too often.
    pub(super) fn first_with_room(&self) -> Option<usize> {
        for (at, waiting) in self.waiting.iter().enumerate() {
            if self.has_room(waiting) {
                return Some(at);
            }
            if waiting.overtaken >= Self::MAX_OVERTAKEN {
                return None;
            }
        }
        None
    }

    /// Whether a step would begin no waiting prompt because paused rows take the room.
    pub(super) fn are_prompts_blocked(&self) -> bool {
        !self.paused.is_empty()
            && self.first_with_room().is_none()
            && self.groups_to_evict().is_empty()
    }
}
