//! Errors from reading trace files.

use thiserror::Error;

use crate::error::Printable;

/// An error from reading a trace file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A line could not be read.
    #[error("traces, line {line}: cannot be read")]
    Io {
        /// Line number, from 1.
        line: u64,
        /// The underlying I/O error.
        source: std::io::Error,
    },
    /// The file does not begin with the header of a trace file.
    #[error("traces, line 1: expected the header of a file of esamp traces, got {}", Printable(.got))]
    Format {
        /// What was found.
        got: String,
    },
    /// The file's format version is not supported by this version of the crate.
    #[error("traces, line 1: expected format version {expected}, got {got}")]
    Version {
        /// The supported version.
        expected: u64,
        /// The file's version.
        got: u64,
    },
    /// A line is not a valid record.
    #[error("traces, line {line}: expected a record, got something else ({})", Printable(.got))]
    Line {
        /// Line number, from 1.
        line: u64,
        /// The parser's message.
        got: String,
    },
    /// The file ends in the middle of a line.
    #[error(
        "traces, line {line}: expected a whole line, got the beginning of one (the file was cut off)"
    )]
    Truncated {
        /// Number of the last line, from 1.
        line: u64,
    },
}
