//! Weights without a checkpoint: for benchmarks of shapes and for tests.

use burn::tensor::Device;
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

use super::TensorSource;
use crate::{
    error::LoadError,
    llama::{Llama, LlamaConfig},
};

impl Llama {
    /// A model of this shape with random weights: uniform in ±√(3 / fan-in), norms 1, drawn on the host from `seed`.
    ///
    /// # Errors
    ///
    /// [`LoadError::Key`] when the configuration does not fit together.
    pub fn random(config: LlamaConfig, seed: u64, device: &Device) -> Result<Self, LoadError> {
        let mut source = RandomSource(ChaCha8Rng::seed_from_u64(seed));
        Self::from_source(config, &mut source, device)
    }
}

struct RandomSource(ChaCha8Rng);

impl TensorSource for RandomSource {
    fn take(&mut self, _name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        Ok(match *shape {
            [rows, columns] => {
                let bound = (3.0 / columns as f32).sqrt();
                (0..rows * columns).map(|_| self.0.random_range(-bound..bound)).collect()
            }
            _ => vec![1.0; shape.iter().product()],
        })
    }
}
