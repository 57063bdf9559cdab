//! Admission: which requests are valid, and when there is room for them.

use super::{Batch, Decoder, Request, Waiting, row::Row};
use crate::{
    causal_lm::{CausalLm, KvCache},
    decode::error::RequestError,
    error::ConfigError,
    id::TokenId,
    novelty::Expects,
};

impl<M: CausalLm> Decoder<M> {
    /// Limits the KV cache of the running rows, in bytes, at their full length as counted by
    /// [`kv_bytes_needed`](Self::kv_bytes_needed). Prompts wait until they fit.
    ///
    /// This counts `rows · tokens · kv_bytes_per_token`, for both models if there are two, where `tokens` is the length
    /// of the longest row. It is not a limit on memory. Not counted are the weights, the spare capacity of a cache
    /// (that of [`Llama`](crate::llama::Llama) is at most as large again), a second copy of newcomers while they join
    /// the batch, logits and activations of a forward pass, and the distillers. The guide gives a [formula for all of
    /// them](crate::guide::performance).
    pub fn with_kv_limit(mut self, bytes: usize) -> Self {
        self.kv_limit = Some(bytes);
        self
    }

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

    /// A waiting prompt for which there is no room is overtaken by at most this number of prompts that were submitted
    /// later and for which there is. After that, all later ones wait for it.
    pub const MAX_OVERTAKEN: usize = 16;

    /// Bytes of KV cache that a request needs when it runs alone and all of its completions reach their full length.
    ///
    /// The cache of [`Llama`](crate::llama::Llama) doubles its capacity when it is full, so it may take up to twice
    /// as much. Its minimum capacity is 64 tokens per row.
    pub fn kv_bytes_needed(&self, request: &Request) -> usize {
        let others = if request.expects() == Expects::OtherModel { request.completions } else { 0 };
        self.kv_bytes(request.completions, others, self.longest(request))
    }

    /// Bytes of KV cache for `rows` rows of the model and `others` rows of the second model, `columns` tokens each.
    fn kv_bytes(&self, rows: usize, others: usize, columns: usize) -> usize {
        // Saturating, so that a request with enormous settings exceeds the limit instead of overflowing.
        let bytes =
            |rows: usize, per_token: usize| rows.saturating_mul(columns).saturating_mul(per_token);
        let other = self.other.as_ref().map_or(0, |other| other.kv_bytes_per_token());
        bytes(rows, self.model.kv_bytes_per_token()).saturating_add(bytes(others, other))
    }

    /// The maximum length of the request's sequences in tokens: the smallest context length of the models that read
    /// them.
    pub(super) fn context_length(&self, request: &Request) -> Option<usize> {
        let other = self.other.as_ref().filter(|_| request.expects() == Expects::OtherModel);
        let other = other.and_then(|other| other.context_length());
        self.model.context_length().into_iter().chain(other).min()
    }

    fn longest(&self, request: &Request) -> usize {
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
        let needed = self.kv_bytes_needed(request);
        match self.kv_limit {
            Some(limit) if needed > limit => Err(RequestError::CacheLimit { limit, needed }),
            _ => Ok(()),
        }
    }

    /// Whether there is room to prefill a prompt now.
    pub(super) fn has_room(&self, waiting: &Waiting) -> bool {
        let wants_other = waiting.request.expects() == Expects::OtherModel;
        if wants_other && self.other.as_ref().is_some_and(|other| !other.has_room()) {
            return false;
        }
        // Rows that have ended stay in such a cache, or nothing can join it. The prompt waits until the batch has
        // ended.
        let joins =
            |batch: &Batch<M::Cache>| batch.cache.can_drop_rows() && batch.cache.can_append_rows();
        if !self.batch.as_ref().is_none_or(joins) {
            return false;
        }
        let running = self.batch.iter().flat_map(|batch| batch.rows.iter().flatten());
        let running: Vec<&Row> =
            running.chain(self.paused.iter().map(|paused| &paused.row)).collect();
        if running.is_empty() {
            return true;
        }
        if running.len() + waiting.completions.len() > self.max_rows {
            return false;
        }
        let Some(limit) = self.kv_limit else {
            return true;
        };
        // All rows share the cache's last column, so each row takes as many columns as the longest one.
        let newcomer = self.longest(&waiting.request);
        // Counted at full length, so that the limit still holds when all rows have reached theirs.
        let longest = running.iter().map(|row| row.longest()).fold(newcomer, usize::max);
        let newcomers = waiting.completions.len();
        let others = running.iter().filter(|row| row.expects() == Expects::OtherModel).count();
        let others = others + if wants_other { newcomers } else { 0 };
        self.kv_bytes(running.len() + newcomers, others, longest) <= limit
    }
}
