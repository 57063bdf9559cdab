//! Errors that many modules raise: a setting that cannot work, a row without a token. Every other error is in the
//! module that raises it. Every message says what was expected and what came instead.

use thiserror::Error;

use crate::id::TokenId;

/// A setting that cannot work, found when it is made and not when it is used.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is outside of its range.
    #[error("{setting}: expected {expected}, got {got}")]
    OutOfRange {
        /// Name of the setting.
        setting: &'static str,
        /// The range, in words.
        expected: &'static str,
        /// The value that was set.
        got: String,
    },
    /// The thread that learns in the background could not be started.
    #[error("background learning: expected a thread for it, got none: {reason}")]
    Thread {
        /// What the system says.
        reason: String,
    },
    /// Another model speaks another language: its logits cannot be compared with the model's.
    #[error("other model: expected a vocabulary of {expected} tokens, got {got}")]
    Vocabulary {
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the other one.
        got: usize,
    },
    /// A tensor to start from has the wrong shape.
    #[error("{setting}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which tensor.
        setting: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
}

impl ConfigError {
    /// A [`Shape`](Self::Shape) error unless the two are the same.
    pub(crate) fn check_shape(
        setting: &'static str,
        expected: &[usize],
        got: &[usize],
    ) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::Shape { setting, expected: expected.to_vec(), got: got.to_vec() })
    }

    /// An [`OutOfRange`](Self::OutOfRange) error unless `got` is at least 1.
    pub(crate) fn at_least_one(setting: &'static str, got: usize) -> Result<(), Self> {
        Self::check(got >= 1, setting, "at least 1", got)
    }

    /// An [`OutOfRange`](Self::OutOfRange) error unless `holds`.
    pub(crate) fn check(
        holds: bool,
        setting: &'static str,
        expected: &'static str,
        got: impl std::fmt::Display,
    ) -> Result<(), Self> {
        if holds {
            return Ok(());
        }
        Err(Self::OutOfRange { setting, expected, got: got.to_string() })
    }
}

/// A row for which no token could be chosen; the other rows of the step are not affected.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RowError {
    /// The model's logits contain something that is not a number, or positive infinity.
    #[error("logits: expected numbers or -inf, got {got} for token {token}")]
    NotANumber {
        /// The first token with such a logit.
        token: TokenId,
        /// The logit.
        got: f32,
    },
    /// Every token is masked.
    #[error("logits: expected at least one token above -inf, got none in {vocab}")]
    AllMasked {
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// A mask has the wrong size.
    #[error("token mask: expected {expected} tokens, got {got}")]
    MaskSize {
        /// Size of the vocabulary.
        expected: usize,
        /// Size of the mask.
        got: usize,
    },
    /// A logit is to be biased, or a token of the prompt or the completion penalised, that the model does not know.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where it stands: "logit bias", "prompt" or "completion".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// A filter was run without the statistics of the row.
    #[error(
        "{filter}: expected statistics of the row, got none (a filter that wraps it has to pass on `uses_row_stats`)"
    )]
    RowStatsMissing {
        /// The filter.
        filter: &'static str,
    },
    /// A row is to be selected arithmetically and came without its code.
    #[error("arithmetic code: expected that of the row's last choice, got none")]
    CodeMissing,
    /// A row's arithmetic code cannot be one.
    #[error("arithmetic code: expected a number in [0, 1), got {got}")]
    Code {
        /// The code that came.
        got: f64,
    },
    /// A reweighter or a filter produced something that cannot be a score.
    #[error("score of token {token}: expected a number, got {got}")]
    Score {
        /// The token.
        token: TokenId,
        /// Its score.
        got: f32,
    },
}
