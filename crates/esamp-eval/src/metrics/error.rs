//! Errors of metrics.

use std::fmt::Display;

use thiserror::Error;

/// An input that a metric is not defined for. Positions count from 0.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum MetricError {
    /// A value is outside its range.
    #[error("{what}: expected {expected}, got {got}")]
    OutOfRange {
        /// Which value.
        what: String,
        /// The valid range.
        expected: String,
        /// The value.
        got: String,
    },
    /// There are fewer inputs than the metric needs.
    #[error("{what}: expected at least {expected}, got {got}")]
    TooFew {
        /// What was counted.
        what: String,
        /// The number needed.
        expected: usize,
        /// The number given.
        got: usize,
    },
    /// Inputs that belong together have different lengths.
    #[error("{what}: expected {expected} values, got {got}")]
    Length {
        /// Which input.
        what: String,
        /// The length of the others.
        expected: usize,
        /// The length of this one.
        got: usize,
    },
    /// A value is infinite or NaN.
    #[error("{what}, value {at}: expected a finite number, got {got}")]
    NotFinite {
        /// Which input.
        what: String,
        /// The position in it.
        at: usize,
        /// The value.
        got: f64,
    },
    /// The values are constant, so a correlation is undefined.
    #[error("{what}: expected values that differ, got none that do")]
    Constant {
        /// Which values.
        what: String,
    },
}

impl MetricError {
    /// Returns an [`OutOfRange`](Self::OutOfRange) error unless `holds`.
    pub(super) fn check(
        holds: bool,
        what: impl Display,
        expected: impl Display,
        got: impl Display,
    ) -> Result<(), Self> {
        if holds {
            return Ok(());
        }
        let (what, expected, got) = (what.to_string(), expected.to_string(), got.to_string());
        Err(Self::OutOfRange { what, expected, got })
    }

    /// Returns a [`TooFew`](Self::TooFew) error unless `got` is at least `expected`.
    pub(super) fn at_least(what: impl Display, expected: usize, got: usize) -> Result<(), Self> {
        if got >= expected {
            return Ok(());
        }
        Err(Self::TooFew { what: what.to_string(), expected, got })
    }

    /// Returns a [`Length`](Self::Length) error unless the two are equal.
    pub(super) fn same_length(what: impl Display, expected: usize, got: usize) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::Length { what: what.to_string(), expected, got })
    }

    /// Returns a [`NotFinite`](Self::NotFinite) error for the first value that is not finite.
    pub(super) fn finite(what: impl Display, numbers: &[f64]) -> Result<(), Self> {
        match numbers.iter().position(|number| !number.is_finite()) {
            None => Ok(()),
            Some(at) => Err(Self::NotFinite { what: what.to_string(), at, got: numbers[at] }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wording() {
        let text = |error: Result<(), MetricError>| error.unwrap_err().to_string();
        assert_eq!(
            text(MetricError::check(false, "k", "at least 1", 0)),
            "k: expected at least 1, got 0"
        );
        assert_eq!(text(MetricError::at_least("texts", 2, 1)), "texts: expected at least 2, got 1");
        assert_eq!(text(MetricError::same_length("y", 3, 4)), "y: expected 3 values, got 4");
        assert_eq!(
            text(MetricError::finite("x", &[0.0, f64::NAN])),
            "x, value 1: expected a finite number, got NaN"
        );
        assert_eq!(
            MetricError::Constant { what: "x".to_owned() }.to_string(),
            "x: expected values that differ, got none that do"
        );
    }
}
