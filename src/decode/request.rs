//! What is asked of the decode loop, and what it gives back.

use std::{fmt, ops::Deref, sync::Arc};

use serde::Serialize;

use crate::{
    candidates::TokenMask,
    error::{ConfigError, RowError},
    id::{CompletionId, PromptId, TokenId},
    novelty::Expects,
    sampler::Choice,
    sampling::{CheckedSampling, Sampling},
    text::TextError,
};

/// A prompt and what to do with it.
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
    pub(super) seed: u64,
    pub(super) sampling: Sampling,
    pub(super) prompt_warm_up: usize,
    pub(super) stop_tokens: Vec<TokenId>,
    pub(super) stop_strings: Vec<String>,
    pub(super) wants_reference_log_probs: bool,
    pub(super) masker: Option<Arc<dyn TokenMasker>>,
}

impl Request {
    /// One completion of at most [`DEFAULT_MAX_NEW_TOKENS`](Self::DEFAULT_MAX_NEW_TOKENS) tokens with the paper's
    /// sampling settings and seed 0.
    pub fn new(prompt: Vec<TokenId>) -> Self {
        Self {
            prompt,
            completions: 1,
            max_new_tokens: Self::DEFAULT_MAX_NEW_TOKENS,
            seed: 0,
            sampling: Sampling::default(),
            prompt_warm_up: 0,
            stop_tokens: Vec::new(),
            stop_strings: Vec::new(),
            wants_reference_log_probs: false,
            masker: None,
        }
    }

    /// Length of a completion where none is set.
    pub const DEFAULT_MAX_NEW_TOKENS: usize = 128;

    /// The most completions of one request: all of them run in one batch.
    pub const MAX_COMPLETIONS: usize = 1 << 16;

    /// Tokens of prompt and completion together, at their longest.
    pub(super) fn longest(&self, context_length: Option<usize>) -> usize {
        let length = self.prompt.len().saturating_add(self.max_new_tokens);
        length.min(context_length.unwrap_or(usize::MAX))
    }

    /// Where its expected logits come from.
    pub(super) fn expects(&self) -> Expects {
        self.sampling.expects()
    }

    /// How many completions of the prompt to make, 1 to [`MAX_COMPLETIONS`](Self::MAX_COMPLETIONS). They share its prefill
    /// and, by default, its distiller.
    pub fn with_completions(mut self, completions: usize) -> Self {
        self.completions = completions;
        self
    }

    /// The most tokens of a completion, at least 1; the model's context may allow fewer.
    pub fn with_max_new_tokens(mut self, max_new_tokens: usize) -> Self {
        self.max_new_tokens = max_new_tokens;
        self
    }

    /// Seed of the random numbers. With the prompt's tokens and the completion's index it decides them, whoever else is
    /// in the batch.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// How tokens are chosen. [`Decoder::submit`](crate::Decoder::submit) checks the settings.
    pub fn with_sampling(mut self, sampling: Sampling) -> Self {
        self.sampling = sampling;
        self
    }

    /// Lets the prompt's distiller learn from the prompt before the first token: `updates` optimizer steps, each on all
    /// positions of the prompt together ([`Sampler::warm_up`](crate::Sampler::warm_up)). 0, the default, is the paper's way:
    /// a prefill never trains. Completions that are not steered ignore it.
    ///
    /// With [`Sharing::PerPrompt`](crate::Sharing::PerPrompt) it happens once for the prompt, with
    /// [`Sharing::PerCompletion`](crate::Sharing::PerCompletion) once for each completion, on its own distiller, and with
    /// [`Sharing::Global`](crate::Sharing::Global) once for the prompt, on the distiller that all prompts share.
    ///
    /// The model must show both tap sites at every position of the prompt
    /// ([`HiddenStateTap::wants_all_positions`](crate::HiddenStateTap::wants_all_positions)); one that does not fails the
    /// request with [`HiddenError::Positions`](crate::errors::HiddenError::Positions). Cost: the model's final norm over the prompt, and
    /// `updates` updates on as many rows as the prompt has tokens.
    pub fn with_prompt_warm_up(mut self, updates: usize) -> Self {
        self.prompt_warm_up = updates;
        self
    }

    /// Tokens that end a completion. The token is the last of [`Completion::choices`] and has no text.
    pub fn with_stop_tokens(mut self, tokens: impl Into<Vec<TokenId>>) -> Self {
        self.stop_tokens = tokens.into();
        self
    }

    /// Strings that end a completion, wherever token borders fall. The text ends before the string; the tokens are
    /// all those that were chosen. The loop needs a detokenizer for this.
    pub fn with_stop_strings(
        mut self,
        strings: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.stop_strings = strings.into_iter().map(Into::into).collect();
        self
    }

    /// Asks for the log-probability of each chosen token under the model as it is
    /// ([`Choice::reference_log_prob`]); that under the sampled distribution comes without asking.
    pub fn with_reference_log_probs(mut self) -> Self {
        self.wants_reference_log_probs = true;
        self
    }

    /// Limits the tokens that each row may choose at each step.
    pub fn with_masker(mut self, masker: impl TokenMasker + 'static) -> Self {
        self.masker = Some(Arc::new(masker));
        self
    }
}

/// A request that has been checked.
pub(super) struct Accepted {
    request: Request,
    /// [`Request::sampling`], ready for the step.
    pub(super) ready: CheckedSampling,
}

impl Accepted {
    pub(super) fn new(request: Request) -> Result<Self, ConfigError> {
        let ready = request.sampling.checked()?;
        Ok(Self { request, ready })
    }

    /// Where its expected logits come from.
    pub(super) fn expects(&self) -> Expects {
        self.ready.reweighter().expects()
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

/// Decides which tokens a row may choose: a grammar's place. Implemented for closures.
///
/// ```
/// use esamp::{CompletionId, TokenId, TokenMask, TokenMasker};
///
/// /// Never the same token twice in a row.
/// struct NoStutter {
///     vocab: usize,
/// }
///
/// impl TokenMasker for NoStutter {
///     fn mask(&self, _row: CompletionId, generated: &[TokenId]) -> Option<TokenMask> {
///         let last = *generated.last()?;
///         let others = (0..self.vocab as TokenId).filter(|&token| token != last);
///         Some(TokenMask::allowing(self.vocab, others))
///     }
/// }
///
/// let masker = NoStutter { vocab: 8 };
/// assert!(masker.mask(CompletionId::new(0, 0), &[]).is_none());
/// assert!(!masker.mask(CompletionId::new(0, 0), &[1, 5]).unwrap().allows(5));
/// ```
pub trait TokenMasker: Send + Sync {
    /// The tokens allowed after `generated`, the completion so far; `None` allows all.
    fn mask(&self, row: CompletionId, generated: &[TokenId]) -> Option<TokenMask>;
}

impl<F: Fn(CompletionId, &[TokenId]) -> Option<TokenMask> + Send + Sync> TokenMasker for F {
    fn mask(&self, row: CompletionId, generated: &[TokenId]) -> Option<TokenMask> {
        self(row, generated)
    }
}

impl<T: TokenMasker + ?Sized> TokenMasker for Arc<T> {
    fn mask(&self, row: CompletionId, generated: &[TokenId]) -> Option<TokenMask> {
        (**self).mask(row, generated)
    }
}

/// The names of a request that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Submitted {
    /// The prompt.
    pub prompt: PromptId,
    /// Its completions, in the order of their index.
    pub completions: Vec<CompletionId>,
}

/// What happens while the loop runs.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A completion has a new token.
    Token {
        /// Which completion.
        completion: CompletionId,
        /// The token and how it was chosen.
        choice: Choice,
        /// Text that can be shown now. Empty while a character or a possible stop string is incomplete, and where the
        /// loop has no detokenizer.
        text: String,
    },
    /// A completion has ended. Text that was held back until now is here.
    Finished {
        /// What came out.
        completion: Completion,
        /// The end of the text, which no `Token` event has shown.
        text: String,
    },
}

/// A completion that has ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completion {
    /// The prompt that it continues, and its index among the prompt's completions.
    pub id: CompletionId,
    /// The tokens, with the log-probability and novelty of each.
    pub choices: Vec<Choice>,
    /// The text, without special tokens and stop string; `None` where the loop has no detokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: FinishReason,
}

impl Completion {
    /// The ids of the tokens.
    pub fn tokens(&self) -> Vec<TokenId> {
        self.choices.iter().map(|choice| choice.token).collect()
    }
}

/// Why a completion ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum FinishReason {
    /// A stop token was chosen.
    StopToken(TokenId),
    /// A stop string came up.
    StopString(String),
    /// It has as many tokens as were asked for.
    MaxNewTokens,
    /// Prompt and completion fill the model's context.
    ContextFull,
    /// It was cancelled.
    Cancelled,
    /// No token could be chosen for it.
    Failed(RowError),
    /// Its tokens could not be turned into text.
    NoText(TextError),
    /// A step failed as a whole; what the completion had by then is kept.
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

/// How long what took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct DecodeStats {
    /// Decode steps: forward passes over all running rows.
    pub steps: u64,
    /// Tokens that came of them; a completion's first token comes of its prompt's prefill instead.
    pub decoded_tokens: u64,
    /// Seconds that they took.
    pub decode_seconds: f64,
    /// Tokens of prompts, each counted once however many completions it has.
    pub prompt_tokens: u64,
    /// Seconds that prefills took.
    pub prefill_seconds: f64,
}

impl DecodeStats {
    /// Decoded tokens per second, over all rows; `None` before the first step.
    pub fn tokens_per_second(&self) -> Option<f64> {
        (self.steps > 0).then(|| self.decoded_tokens as f64 / self.decode_seconds)
    }
}
