//! Rotary position embeddings (RoPE).

use burn::tensor::{Device, Tensor};

use super::config::{LlamaConfig, RopeScaling};
use crate::{
    host::rotate_halves,
    tensor::{from_f32, index, is_all},
};

/// Rotary frequencies: the angle per position for each pair of a head's dimensions (Su et al., *RoFormer*, arXiv
/// 2104.09864).
#[derive(Clone, Debug)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    /// Factor of cosines and sines: 1 except with YaRN.
    scale: f64,
}

/// Cosine and sine of the angles of some positions, `[rows, seq, 1, head_dim]` each. Both halves of a head use the
/// same values.
pub(super) struct Angles {
    cos: Tensor<4>,
    sin: Tensor<4>,
}

impl Rope {
    pub(super) fn new(config: &LlamaConfig) -> Self {
        let half = config.head_dim / 2;
        let theta = f64::from(config.rope_theta);
        let frequencies = (0..half)
            .map(|pair| {
                let frequency = theta.powf(-(pair as f64) / half as f64);
                scaled(frequency, pair, config)
            })
            .collect();
        let scale = match config.rope_scaling {
            RopeScaling::Yarn { attention_factor, .. } => f64::from(attention_factor),
            _ => 1.0,
        };
        Self { frequencies, scale }
    }

    /// Computes the angles of `positions[row][i]` in `f64` on the host: those of each position once. Rows of one prompt
    /// have the same positions.
    pub(super) fn angles(&self, positions: &[Vec<usize>], device: &Device) -> Angles {
        let (rows, seq) = (positions.len(), positions.first().map_or(0, Vec::len));
        let width = self.frequencies.len() * 2;
        let mut distinct: Vec<usize> = positions.iter().flatten().copied().collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut cos = Vec::with_capacity(distinct.len() * width);
        let mut sin = Vec::with_capacity(distinct.len() * width);
        for &position in &distinct {
            for frequency in &self.frequencies {
                // In f32, the angle of the first pair at position 100,000 would be a multiple of 1/128.
                let (s, c) = (position as f64 * frequency).sin_cos();
                cos.push((c * self.scale) as f32);
                sin.push((s * self.scale) as f32);
            }
            // Dimension i of a head is paired with i + head_dim / 2, and both turn by the same angle.
            for both in [&mut cos, &mut sin] {
                both.extend_from_within(both.len() - self.frequencies.len()..);
            }
        }
        let places = positions.iter().flatten();
        let places = places.map(|position| distinct.partition_point(|other| other < position));
        let places: Vec<usize> = places.collect();
        let index = (!is_all(&places, distinct.len())).then(|| index(places, device));
        let tensor = |values| {
            let angles = from_f32(values, [distinct.len(), width], device);
            let angles = match &index {
                Some(index) => angles.select(0, index.clone()),
                None => angles,
            };
            angles.reshape([rows, seq, 1, width])
        };
        Angles { cos: tensor(cos), sin: tensor(sin) }
    }
}

impl Angles {
    /// Casts the angles to the element type of the model.
    pub(super) fn cast_like(self, like: &Tensor<3>) -> Self {
        let dtype = like.dtype();
        Self { cos: self.cos.cast(dtype), sin: self.sin.cast(dtype) }
    }

    /// Rotates every head of `x`, `[rows, seq, heads, head_dim]`, by its position. A pair consists of a dimension and
    /// the one half a head later.
    pub(super) fn rotate(&self, x: Tensor<4>) -> Tensor<4> {
        rotate_halves(x, &self.cos, &self.sin)
    }
}

fn scaled(frequency: f64, pair: usize, config: &LlamaConfig) -> f64 {
    match &config.rope_scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / f64::from(*factor),
        RopeScaling::Factors(factors) => frequency / f64::from(factors[pair]),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let [factor, low, high, context] =
                [factor, low_freq_factor, high_freq_factor, original_context]
                    .map(|&v| f64::from(v));
            let turns = context * frequency / std::f64::consts::TAU; // rotations over the original context
            // Pairs that turn at least `high` times over the original context keep their frequency: they have been at
            // every angle. Those that turn at most `low` times are divided by the factor. Between the two, the weight
            // is linear.
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            frequency * kept + frequency / factor * (1.0 - kept)
        }
        RopeScaling::Yarn {
            factor,
            attention_factor: _,
            beta_fast,
            beta_slow,
            original_context,
            truncate,
        } => {
            let width = config.head_dim as f64;
            let theta = f64::from(config.rope_theta);
            // The pair, as a fraction, that turns `turns` times over the original context.
            let pair_of = |turns: f32| {
                let wavelength = f64::from(*original_context) / f64::from(turns);
                width * (wavelength / std::f64::consts::TAU).ln() / (2.0 * theta.ln())
            };
            let (mut first, mut last) = (pair_of(*beta_fast), pair_of(*beta_slow));
            if *truncate {
                (first, last) = (first.floor(), last.ceil());
            }
            let (first, mut last) = (first.max(0.0), last.min(width - 1.0));
            if first == last {
                last += 0.001; // as in transformers: a step instead of a division by zero
            }
            let interpolated = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
            frequency / f64::from(*factor) * interpolated + frequency * (1.0 - interpolated)
        }
    }
}
