//! Files of traces that cannot be read.

use thiserror::Error;

/// A file of traces that cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A line could not be read.
    #[error("traces, line {line}: cannot be read")]
    Io {
        /// The line, from 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not begin as one of traces.
    #[error("traces, line 1: expected the header of a file of esamp traces, got {got}")]
    Format {
        /// What is there.
        got: String,
    },
    /// The file has a format that this version of the crate does not know.
    #[error("traces, line 1: expected format version {expected}, got {got}")]
    Version {
        /// The version that can be read.
        expected: u64,
        /// The file's.
        got: u64,
    },
    /// A line holds something else than a record.
    #[error("traces, line {line}: expected a record, got something else ({got})")]
    Line {
        /// The line, from 1.
        line: u64,
        /// What the parser says of it.
        got: String,
    },
    /// The file ends within a line.
    #[error(
        "traces, line {line}: expected a whole line, got the beginning of one (the file was cut off)"
    )]
    Truncated {
        /// The line, from 1: the last one.
        line: u64,
    },
}
