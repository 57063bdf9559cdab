//! Errors shared by several modules: an invalid setting, and a row without a token. Every other error is in the
//! module that raises it. Each message says what was expected and what was found.

use std::{
    any::Any,
    fmt::{self, Write},
};

use thiserror::Error;

use crate::id::TokenId;

/// A text from a file, as error messages show it. Files are untrusted: control characters would reach the terminal
/// that the message is printed on, characters that turn the writing direction would make it read differently, and a
/// megabyte would bury it. So the former two are escaped, and a long text is cut.
pub(crate) struct Printable<T>(pub(crate) T);

/// Characters of a text that are shown.
const SHOWN: usize = 400;

impl<T: AsRef<str>> fmt::Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, c) in self.0.as_ref().chars().enumerate() {
            if at == SHOWN {
                return f.write_str("…");
            }
            let turns = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
            if c.is_control() || turns || c == '\u{feff}' {
                write!(f, "{}", c.escape_default())?;
            } else {
                f.write_char(c)?;
            }
        }
        Ok(())
    }
}

/// The message of a panic that was caught.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message")
}

/// An invalid setting, reported when it is set or validated instead of when it is used.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is out of range.
    #[error("{setting}: expected {expected}, got {got}")]
    OutOfRange {
        /// The name of the setting.
        setting: &'static str,
        /// The range, in words.
        expected: &'static str,
        /// The value that was set.
        got: String,
    },
    /// The thread of background learning or of an [`Engine`](crate::engine::Engine) could not be started.
    #[error("{purpose}: expected a thread for it, got none: {reason}")]
    Thread {
        /// What the thread is for.
        purpose: &'static str,
        /// The operating system's error.
        reason: String,
    },
    /// The other model has a vocabulary of a different size, so its logits cannot be compared with the model's.
    #[error("other model: expected a vocabulary of {expected} tokens, got {got}")]
    Vocabulary {
        /// Vocabulary size of the model.
        expected: usize,
        /// Vocabulary size of the other model.
        got: usize,
    },
    /// Two parts that have to fit each other do not: a sampler, a distiller, an LM head and a model.
    #[error("{what}: expected {expected}, got {got}")]
    Mismatch {
        /// The part that was checked, and what of it.
        what: &'static str,
        /// What the other part requires.
        expected: String,
        /// The actual value.
        got: String,
    },
    /// An initial tensor has the wrong shape.
    #[error("{setting}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The tensor.
        setting: &'static str,
        /// The required shape.
        expected: Vec<usize>,
        /// The actual shape.
        got: Vec<usize>,
    },
}

impl ConfigError {
    /// Returns a [`Shape`](Self::Shape) error unless the shapes are equal.
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

    /// Returns a [`Mismatch`](Self::Mismatch) error unless the values are equal.
    pub(crate) fn check_equal<T: PartialEq + fmt::Debug>(
        what: &'static str,
        expected: T,
        got: T,
    ) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::Mismatch { what, expected: format!("{expected:?}"), got: format!("{got:?}") })
    }

    /// Returns an [`OutOfRange`](Self::OutOfRange) error unless `got` is at least 1.
    pub(crate) fn at_least_one(setting: &'static str, got: usize) -> Result<(), Self> {
        Self::check(got >= 1, setting, "at least 1", got)
    }

    /// Returns an [`OutOfRange`](Self::OutOfRange) error unless `holds`.
    pub(crate) fn check(
        holds: bool,
        setting: &'static str,
        expected: &'static str,
        got: impl fmt::Display,
    ) -> Result<(), Self> {
        if holds {
            return Ok(());
        }
        Err(Self::OutOfRange { setting, expected, got: got.to_string() })
    }
}

/// A row for which no token can be chosen. The other rows of the step are not affected.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RowError {
    /// The model's logits contain NaN or positive infinity.
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
    /// A mask was made from the wrong number of words.
    #[error("token mask: expected {expected} words of 64 tokens for {vocab} tokens, got {got}")]
    MaskWords {
        /// Number of tokens in the vocabulary.
        vocab: usize,
        /// The number of words that this takes.
        expected: usize,
        /// The number of words given.
        got: usize,
    },
    /// A masker could not say which tokens are allowed.
    #[error("token masker: {message}")]
    Masker {
        /// The masker's message.
        message: String,
    },
    /// A [logits processor](crate::LogitsProcessor) has failed, has panicked, or has returned a logit that is NaN or
    /// positive infinity.
    #[error("logits processor: {message}")]
    Processor {
        /// What went wrong.
        message: String,
    },
    /// A logit bias or a penalty refers to a token id outside the model's vocabulary.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where the id occurs: "logit bias", "sequence breaker", "prompt" or "completion".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// A filter ran without the statistics of the row.
    #[error(
        "{filter}: expected statistics of the row, got none (a filter that wraps it has to pass on `uses_row_stats`)"
    )]
    RowStatsMissing {
        /// The filter.
        filter: &'static str,
    },
    /// A row uses arithmetic selection but has no code.
    #[error("arithmetic code: expected that of the row's last choice, got none")]
    CodeMissing,
    /// A row's arithmetic code is outside [0, 1).
    #[error("arithmetic code: expected a number in [0, 1), got {got}")]
    Code {
        /// The row's code.
        got: f64,
    },
    /// A custom rule selected a token that is not a candidate.
    #[error("selected token: expected one of {candidates} candidates, got {token}")]
    NotACandidate {
        /// The token.
        token: TokenId,
        /// Number of candidates.
        candidates: usize,
    },
    /// A reweighter or a filter produced an invalid score.
    #[error("score of token {token}: expected a number, got {got}")]
    Score {
        /// The token.
        token: TokenId,
        /// Its score.
        got: f32,
    },
}

impl RowError {
    /// Creates the error of a masker from its message.
    pub fn masker(message: impl fmt::Display) -> Self {
        Self::Masker { message: message.to_string() }
    }

    /// Creates the error of a logits processor from its message.
    pub fn processor(message: impl fmt::Display) -> Self {
        Self::Processor { message: message.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_files_cannot_control_a_terminal() {
        let shown = |text: &str| Printable(text).to_string();
        assert_eq!(
            shown("a\u{1b}[31m\u{7}\r\n\u{9b}\u{202e}b é"),
            "a\\u{1b}[31m\\u{7}\\r\\n\\u{9b}\\u{202e}b é"
        );
        assert_eq!(shown(&"é".repeat(SHOWN)).chars().count(), SHOWN);
        assert_eq!(shown(&"é".repeat(1_000_000)), "é".repeat(SHOWN) + "…");
    }
}
