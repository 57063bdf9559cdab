//! How the matrices of a model are kept in memory.

use std::path::{Path, PathBuf};

use burn::tensor::DType;
use clap::ValueEnum;
use esamp::{errors::ConfigError, llama::Llama};
use thiserror::Error;

use crate::failure::Failure;

/// How matrices are kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum WeightsName {
    /// Four bytes per number.
    F32,
    /// The bits of a GGUF file.
    Packed,
}

/// The flag for it.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct WeightsArg {
    /// How matrices are kept in memory: packed as in a GGUF file, or as f32. The numbers that a model computes are the
    /// same [default: packed on flex, f32 elsewhere]
    #[arg(long, value_enum)]
    pub weights: Option<WeightsName>,
}

/// Weights that cannot be kept packed.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum WeightsError {
    #[error("--weights packed: expected --device flex, got {got}")]
    Device { got: String },
    #[error("--weights packed: expected a GGUF file, got the folder {}", got.display())]
    Folder { got: PathBuf },
}

impl From<WeightsError> for Failure {
    fn from(error: WeightsError) -> Self {
        Self::usage(error.to_string(), "drop --weights packed")
    }
}

impl WeightsArg {
    /// Refuses packed weights on another device than flex.
    pub fn check_device(self, device: &str) -> Result<(), WeightsError> {
        match self.weights {
            Some(WeightsName::Packed) if device != "flex" => {
                Err(WeightsError::Device { got: device.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses packed weights of a folder: its files have none.
    pub fn check_path(self, path: &Path) -> Result<(), WeightsError> {
        match self.weights {
            Some(WeightsName::Packed) if path.is_dir() => {
                Err(WeightsError::Folder { got: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// Unpacks the matrices of a model if the flag says so.
    pub fn apply(self, model: Llama) -> Result<Llama, ConfigError> {
        if self.weights == Some(WeightsName::F32) { model.cast(DType::F32) } else { Ok(model) }
    }
}

/// A number of bytes, in megabytes of a million.
pub fn megabytes(bytes: usize) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
