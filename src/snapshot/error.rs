//! Snapshots that cannot be written or read.

use thiserror::Error;

use crate::{
    error::ConfigError,
    train::{Misfit, TrainError},
};

/// A snapshot of a sampler that cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file could not be written or read.
    #[error("{}: cannot be written or read", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is damaged, none of ours, or newer than this crate.
    #[error("{}: {what}: expected {expected}, got {got}", .path.display())]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A value does not fit into the precision in which it is to be stored.
    #[error("{what}: expected a number that f16 can hold, got {got}")]
    Range {
        /// The tensor.
        what: String,
        /// The value.
        got: f32,
    },
    /// What a file holds does not belong to the distiller.
    #[error("{what}: expected {expected}, got {got}")]
    Misfit {
        /// What was counted.
        what: String,
        /// How many the distiller has.
        expected: usize,
        /// How many the file has.
        got: usize,
    },
    /// The description of the sampler could not be written.
    #[error("snapshot header: {0}")]
    Header(String),
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// A setting in the file cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Learning in the background has failed.
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
