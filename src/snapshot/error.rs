//! Errors of writing and reading snapshots.

use thiserror::Error;

use crate::{
    error::{ConfigError, Printable},
    train::{Misfit, TrainError},
};

/// A snapshot of a sampler could not be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file could not be written or read.
    #[error("{}: cannot be written or read", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// The I/O error.
        source: std::io::Error,
    },
    /// The file is damaged, is not a snapshot, or was written by a newer version of this crate.
    #[error("{}: {}: expected {}, got {}", .path.display(), Printable(.what), Printable(.expected), Printable(.got))]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// The expected content.
        expected: String,
        /// The actual content.
        got: String,
    },
    /// A value is out of the range of the requested precision.
    #[error("{}: expected a number that f16 can hold, got {got}", Printable(.what))]
    Range {
        /// The tensor.
        what: String,
        /// The value.
        got: f32,
    },
    /// The content of the file does not fit the distiller.
    #[error("{}: expected {expected}, got {got}", Printable(.what))]
    Misfit {
        /// The quantity that does not match.
        what: String,
        /// The distiller's number.
        expected: usize,
        /// The file's number.
        got: usize,
    },
    /// The header could not be serialised.
    #[error("snapshot header: {}", Printable(.0))]
    Header(String),
    /// A device operation failed.
    #[error("device: {0}")]
    Device(String),
    /// A setting in the file is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Background learning has failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl SnapshotError {
    pub(crate) fn header(error: impl std::fmt::Display) -> Self {
        Self::Header(error.to_string())
    }
}

impl From<Misfit> for SnapshotError {
    fn from(Misfit { what, expected, got }: Misfit) -> Self {
        Self::Misfit { what, expected, got }
    }
}
