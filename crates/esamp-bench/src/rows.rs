//! Synthetic rows, states and logits of a step.

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{CheckedSampling, CompletionId, DrawKey, Phase, StepRow};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

/// Decode rows of one prompt.
pub fn rows(count: usize, sampling: &CheckedSampling) -> Vec<StepRow<'_>> {
    let row = |row: u64| {
        StepRow::new(CompletionId::new(0, row), DrawKey::new(0, &[], row), &[], &[], sampling)
            .with_phase(Phase::Decode)
    };
    (0..count as u64).map(row).collect()
}

/// Deterministic values within ±0.5 that do not repeat; a different `scale` gives different values.
pub fn wave(shape: [usize; 2], scale: f32, device: &Device) -> Tensor<2> {
    let numbers: Vec<f32> =
        (0..shape[0] * shape[1]).map(|i| (i as f32 * scale).sin() * 0.5).collect();
    Tensor::from_data(TensorData::new(numbers, shape), device)
}

/// Logits shaped like a language model's: a few tokens far above a broad field.
pub fn logits(rows: usize, vocab: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut noise = || -> f32 { (0..6).map(|_| rng.random_range(-1.0f32..1.0)).sum() };
    (0..rows * vocab).map(|i| noise() * 2.0 + if i % 5003 == 0 { 12.0 } else { 0.0 }).collect()
}
