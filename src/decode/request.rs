//! Requests to the decode loop, and the events and completions it returns.

use std::{fmt, ops::Deref, sync::Arc};

use serde::Serialize;

use crate::{
    candidates::TokenMask,
    error::{ConfigError, RowError},
    id::{CompletionId, GroupId, PromptId, TokenId},
    novelty::Expects,
    sampler::Choice,
    sampling::{CheckedSampling, Sampling},
    text::{Detokenize, TextError},
};

/// What a caller submits: a prompt, the number of completions and the settings for them.
///
/// ```
/// use esamp::{Request, Sampling};
///
/// let request = Request::new(vec![1, 2, 3])
///     .with_completions(4)
///     .with_max_new_tokens(64)
///     .with_seed(7)
///     .with_sampling(Sampling::new().with_min_p(0.05));
/// ```
#[derive(Clone)]
pub struct Request {
    pub(super) prompt: Vec<TokenId>,
    pub(super) completions: usize,
    pub(super) max_new_tokens: usize,
    pub(super) min_new_tokens: usize,
    pub(super) seed: Option<u64>,
    pub(super) sampling: Sampling,
    pub(super) prompt_warm_up: usize,
    pub(super) stop_tokens: Vec<TokenId>,
    pub(super) stop_strings: Vec<String>,
    pub(super) wants_reference_log_probs: bool,
    pub(super) top_log_probs: usize,
    pub(super) masker: Option<Arc<dyn TokenMasker>>,
    pub(crate) group: Option<GroupId>,
}

impl Request {
    /// Creates a request for one completion of at most [`DEFAULT_MAX_NEW_TOKENS`](Self::DEFAULT_MAX_NEW_TOKENS)
    /// tokens with the default sampling settings and seed 0.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            completions: 1,
            max_new_tokens: Self::DEFAULT_MAX_NEW_TOKENS,
            min_new_tokens: 0,
            seed: None,
            sampling: Sampling::default(),
            prompt_warm_up: 0,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            wants_reference_log_probs: false,
            top_log_probs: 0,
            masker: None,
            group: None,
        }
    }

    /// Default maximum length of a completion, in tokens.
    pub const DEFAULT_MAX_NEW_TOKENS: usize = 128;

    /// The maximum number of completions per request; all of them run in one batch.
    pub const MAX_COMPLETIONS: usize = 1 << 16;

    /// The largest number of [`with_top_log_probs`](Self::with_top_log_probs), as in OpenAI's API.
    pub const MAX_TOP_LOG_PROBS: usize = 20;

    /// Maximum length of prompt and completion together, in tokens.
    pub(super) fn longest(&self, context_length: Option<usize>) -> usize {
        let length = self.prompt.len().saturating_add(self.max_new_tokens);
        length.min(context_length.unwrap_or(usize::MAX))
    }

    /// The source of the expected logits.
    pub(super) fn expects(&self) -> Expects {
        self.sampling.expects()
    }

    /// Sets the number of completions of the prompt, 1 to [`MAX_COMPLETIONS`](Self::MAX_COMPLETIONS). They share the
    /// prefill and, by default, the distiller.
    pub fn with_completions(mut self, completions: usize) -> Self {
        self.completions = completions;
        self
    }

    /// Sets the maximum number of tokens per completion, at least 1. The model's context length may allow fewer.
    pub fn with_max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Sets the minimum number of tokens per completion, at most the maximum: while a completion has fewer,
    /// [stop tokens](Self::with_stop_tokens) cannot be chosen, nor can a special token whose text is a
    /// [stop string](Self::with_stop_strings). A stop token may then be the next one, so it is not counted. (This is
    /// `min_new_tokens` of Hugging Face and `min_tokens` of vLLM.) The default is 0.
    ///
    /// Any other stop string ends a completion whenever its text occurs, and so does a full context. A completion for
    /// which only stop tokens are left, for example by its masker, fails with [`RowError::AllMasked`].
    ///
    /// Cost: a copy of the row of logits for each of these tokens.
    pub fn with_min_new_tokens(mut self, min_new_tokens: usize) -> Self {
        self.min_new_tokens = min_new_tokens;
        self
    }

    /// Sets the random seed. A completion's random numbers depend only on the seed, the prompt's tokens and the
    /// completion's index, not on other rows of the batch. Without a seed, a [`Decoder`](crate::Decoder) takes 0 and an
    /// [`Engine`](crate::engine::Engine) a new one for each request; [`Submitted::seed`] says which.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Sets the seed if none has been set.
    pub(crate) fn with_seed_if_none(mut self, seed: impl FnOnce() -> u64) -> Self {
        self.seed.get_or_insert_with(seed);
        self
    }

    pub(super) fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    /// Sets how tokens are chosen. [`Decoder::submit`](crate::Decoder::submit) validates the settings.
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Sets the number of warm-up updates on the prompt: before the first token the distiller does `updates`
    /// optimizer steps, each on all positions of the prompt together ([`Sampler::warm_up`](crate::Sampler::warm_up)).
    /// The default is 0, as in the paper: a prefill never trains. Completions that are not steered ignore this
    /// setting.
    ///
    /// With [`Sharing::PerPrompt`](crate::Sharing::PerPrompt) the warm-up runs once per prompt. With
    /// [`Sharing::PerCompletion`](crate::Sharing::PerCompletion) it runs once per completion, on the completion's own
    /// distiller. With [`Sharing::Global`](crate::Sharing::Global) it runs once per prompt, on the distiller that all
    /// prompts share.
    ///
    /// The model must record both tap sites at every position of the prompt
    /// ([`HiddenStateTap::wants_all_positions`](crate::HiddenStateTap::wants_all_positions)); otherwise the request
    /// fails with [`HiddenError::Positions`](crate::errors::HiddenError::Positions). Cost: the model's final norm
    /// over the prompt, and `updates` updates on as many rows as the prompt has tokens. With a
    /// [prefill budget](crate::Decoder::with_prefill_budget) they are spread over several steps; the first token follows
    /// the last of them.
    pub fn with_prompt_warm_up(mut self, updates: usize) -> Self {
        self.prompt_warm_up = updates;
        self
    }

    /// Whether distillers learn from its prompt.
    pub(super) fn warms_up(&self) -> bool {
        self.prompt_warm_up > 0 && self.expects() == Expects::Distiller
    }

    /// Sets the stop tokens (such as EOS), which end a completion. The stop token is the last of
    /// [`Completion::choices`] and has no text.
    pub fn with_stop_tokens(mut self, tokens: impl Into<Vec<TokenId>>) -> Self {
        self.stop_tokens = tokens.into();
        self
    }

    /// Sets the stop strings, which end a completion regardless of token boundaries, or at the special token of that
    /// text ([`Detokenize::special_token`](crate::Detokenize::special_token)). The text ends before the stop
    /// string; the tokens include all that were chosen. The decoder needs a detokenizer.
    pub fn with_stop_strings(
        mut self,
        strings: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.stop_strings = strings.into_iter().map(Into::into).collect();
        self
    }

    /// Requests the log-probability of each chosen token under the unmodified model ([`Choice::reference_log_prob`]).
    /// The log-probability under the sampled distribution is always returned.
    pub fn with_reference_log_probs(mut self) -> Self {
        self.wants_reference_log_probs = true;
        self
    }

    /// Requests the `tokens` most likely tokens of each position with their log-probabilities, 0 to
    /// [`MAX_TOP_LOG_PROBS`](Self::MAX_TOP_LOG_PROBS) ([`Choice::top_log_probs`]), and what
    /// [`with_reference_log_probs`](Self::with_reference_log_probs) requests: both are under the unmodified model.
    /// Costs another pass over the logits for each token of this request.
    pub fn with_top_log_probs(mut self, tokens: usize) -> Self {
        self.top_log_probs = tokens;
        self.with_reference_log_probs()
    }

    /// Makes the request part of a group: its completions share the distiller of all earlier and concurrent requests of
    /// the group, and the distiller is kept when they have ended. So a later request for the same prompt explores what
    /// the earlier ones have not said: "16 more, different from those I have". Its completions have the prompt id of
    /// the group's first request and the indices after those of the earlier ones, so with the same seed their random
    /// numbers differ too. The prompt may be another one.
    ///
    /// Kept until [`Decoder::release_group`](crate::Decoder::release_group) or until
    /// [`Decoder::with_max_groups`](crate::Decoder::with_max_groups) evicts it;
    /// [`Decoder::save_group`](crate::Decoder::save_group) keeps it beyond a restart. Needs distillers per prompt
    /// ([`Sharing::PerPrompt`](crate::Sharing::PerPrompt) or `Adaptive`).
    pub fn with_group(mut self, group: GroupId) -> Self {
        self.group = Some(group);
        self
    }

    /// Sets a masker that limits the tokens each row may choose at each step.
    pub fn with_masker(mut self, masker: impl TokenMasker + 'static) -> Self {
        self.masker = Some(Arc::new(masker));
        self
    }
}

/// A validated request.
pub(super) struct Accepted {
    request: Request,
    /// [`Request::sampling`], checked and prepared for the step.
    pub(super) ready: CheckedSampling,
    /// Stop strings that are the text of a special token, which has no text in a completion.
    pub(super) special_stops: Vec<(TokenId, String)>,
}

impl Accepted {
    pub(super) fn new(
        request: Request,
        detokenizer: Option<&dyn Detokenize>,
    ) -> Result<Self, ConfigError> {
        let ready = request.sampling.checked()?;
        let (min, max) = (request.min_new_tokens, request.max_new_tokens);
        ConfigError::check(min <= max, "min_new_tokens", "at most max_new_tokens", min)?;
        let (top, most) = (request.top_log_probs, Request::MAX_TOP_LOG_PROBS);
        ConfigError::check(top <= most, "top_log_probs", "0 to 20", top)?;
        let special = |stop: &String| Some((detokenizer?.special_token(stop)?, stop.clone()));
        let special_stops = request.stop_strings.iter().filter_map(special).collect();
        Ok(Self { request, ready, special_stops })
    }

    /// The source of the expected logits.
    pub(super) fn expects(&self) -> Expects {
        self.ready.reweighter().expects()
    }

    /// The tokens that end a completion.
    pub(super) fn ending_tokens(&self) -> impl Iterator<Item = TokenId> {
        let special = self.special_stops.iter().map(|&(token, _)| token);
        self.stop_tokens.iter().copied().chain(special)
    }
}

impl Deref for Accepted {
    type Target = Request;

    fn deref(&self) -> &Request {
        &self.request
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt.len())
            .field("completions", &self.completions)
            .field("max_new_tokens", &self.max_new_tokens)
            .field("seed", &self.seed)
            .field("sampling", &self.sampling)
            .finish_non_exhaustive()
    }
}

/// Decides which tokens a row may choose, for example by a grammar. Implemented for closures.
///
/// ```
/// use esamp::{CompletionId, TokenId, TokenMask, TokenMasker, errors::RowError};
///
/// /// Never the same token twice in a row.
/// struct NoStutter {
///     vocab: usize,
/// }
///
/// impl TokenMasker for NoStutter {
///     fn mask(
///         &self,
///         _row: CompletionId,
///         generated: &[TokenId],
///     ) -> Result<Option<TokenMask>, RowError> {
///         let Some(&last) = generated.last() else {
///             return Ok(None);
///         };
///         let mut mask = TokenMask::all(self.vocab);
///         mask.set(last, false);
///         Ok(Some(mask))
///     }
/// }
///
/// let masker = NoStutter { vocab: 8 };
/// assert!(masker.mask(CompletionId::new(0, 0), &[])?.is_none());
/// assert!(!masker.mask(CompletionId::new(0, 0), &[1, 5])?.unwrap().allows(5));
/// # Ok::<(), RowError>(())
/// ```
pub trait TokenMasker: Send + Sync {
    /// The tokens allowed after `generated`, the completion so far. `None` allows all tokens. Called once per row and
    /// step, before the forward pass.
    ///
    /// # Errors
    ///
    /// An error, for example [`RowError::masker`], ends the completion with [`FinishReason::Failed`]; the others
    /// continue.
    fn mask(&self, row: CompletionId, generated: &[TokenId])
    -> Result<Option<TokenMask>, RowError>;

    /// Called once when a completion of the request has ended, for any [reason](FinishReason), so that a masker
    /// can drop what it keeps for the row. Not called for completions that are dropped together with their decoder.
    fn ended(&self, row: CompletionId) {
        let _ = row;
    }
}

impl<F> TokenMasker for F
where
    F: Fn(CompletionId, &[TokenId]) -> Result<Option<TokenMask>, RowError> + Send + Sync,
{
    fn mask(
        &self,
        row: CompletionId,
        generated: &[TokenId],
    ) -> Result<Option<TokenMask>, RowError> {
        self(row, generated)
    }
}

impl<T: TokenMasker + ?Sized> TokenMasker for Arc<T> {
    fn mask(
        &self,
        row: CompletionId,
        generated: &[TokenId],
    ) -> Result<Option<TokenMask>, RowError> {
        (**self).mask(row, generated)
    }

    fn ended(&self, row: CompletionId) {
        (**self).ended(row);
    }
}

/// The ids of an accepted request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Submitted {
    /// The prompt.
    pub prompt: PromptId,
    /// Its completions, in the order of their index.
    pub completions: Vec<CompletionId>,
    /// The random seed.
    pub seed: u64,
}

/// An event of the decode loop.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A completion has a new token.
    Token {
        /// The completion.
        completion: CompletionId,
        /// The token and how it was chosen.
        choice: Choice,
        /// Text that can be shown now. Empty while a character or a possible stop string is incomplete, and if the
        /// decoder has no detokenizer.
        text: String,
    },
    /// A completion has ended.
    Finished {
        /// The completion.
        completion: Completion,
        /// The rest of the text, which was held back until now and is in no `Token` event.
        text: String,
    },
}

/// A completion that has ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The prompt, and the completion's index among the prompt's completions.
    pub id: CompletionId,
    /// The tokens, with the log-probability and novelty of each.
    pub choices: Vec<Choice>,
    /// The text, without special tokens and stop string; `None` if the decoder has no detokenizer.
    pub text: Option<String>,
    /// The reason why it ended.
    pub finish: FinishReason,
}

impl Completion {
    /// The ids of the tokens.
    pub fn tokens(&self) -> Vec<TokenId> {
        self.choices.iter().map(|choice| choice.token).collect()
    }
}

/// The reason why a completion ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token was chosen.
    StopToken(TokenId),
    /// A stop string occurred in the text.
    StopString(String),
    /// It reached the maximum number of new tokens.
    MaxNewTokens,
    /// Prompt and completion fill the model's context.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// No token could be chosen for it.
    Failed(RowError),
    /// Its tokens could not be turned into text.
    NoText(TextError),
    /// A step failed as a whole, or a panic has left it; the completion keeps the tokens it had.
    Aborted,
}

impl FinishReason {
    /// A short name for logs and files: `stop_token`, `stop_string`, `max_new_tokens`, `context_full`, `cancelled`,
    /// `failed`, `no_text` or `aborted`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::StopToken(_) => "stop_token",
            Self::StopString(_) => "stop_string",
            Self::MaxNewTokens => "max_new_tokens",
            Self::ContextFull => "context_full",
            Self::Cancelled => "cancelled",
            Self::Failed(_) => "failed",
            Self::NoText(_) => "no_text",
            Self::Aborted => "aborted",
        }
    }
}

/// Token counts and timings of the decode loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DecodeStats {
    /// Number of decode steps, each one forward pass over all running rows.
    pub steps: u64,
    /// Number of tokens chosen in decode steps. A completion's first token is chosen after the prefill and is not
    /// counted.
    pub decoded_tokens: u64,
    /// Time spent in decode steps, in seconds.
    pub decode_seconds: f64,
    /// Number of prompt tokens. Each prompt counts once, independently of its number of completions.
    pub prompt_tokens: u64,
    /// Time spent in prefills, in seconds.
    pub prefill_seconds: f64,
}

impl DecodeStats {
    /// Decoded tokens per second, over all rows; `None` before the first step.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.decoded_tokens as f64 / self.decode_seconds)
    }
}
