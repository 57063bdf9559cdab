//! Novelty without gradients: directions that few earlier rows had.

use std::{collections::BTreeMap, fmt::Debug};

use burn::tensor::{DType, Tensor, TensorData};
use esamp::{PromptId, errors::StepError, filters::RowContext, unstable::ExpectedControl};
use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use serde::{Deserialize, Serialize};

use crate::metrics::dot;

/// What tells new deep states from old ones, without a network that is trained by gradients.
///
/// A copy of one source is the state of a prompt. It must be a function of what it has learned, in that order, and of
/// nothing else. Its state is its snapshot: sources are `Serialize` where that is needed.
pub trait NoveltySource: Clone + Debug + Send {
    /// The direction in which a deep state is new, of any length; zero or not finite if there is none. It does not
    /// include the state itself, which is learned later.
    fn direction(&self, deep: &[f64]) -> Vec<f64>;

    /// Learns from a deep state: it is less new from now on. Never called with numbers that are not finite.
    fn learn(&mut self, deep: &[f64]);
}

/// Replaces the distiller's error by the direction of a [`NoveltySource`], one for each prompt, scaled to the length of
/// the error: what differs from the distiller is the direction alone.
///
/// All rows of a step are answered before any of them is learned, and they are learned in the order of the rows, so a
/// row's tokens depend on the earlier steps of its prompt only. A row whose states are not finite, or for which the
/// source has no direction, keeps the distiller's error. Cost: one transfer of the step's states, and that of the
/// source.
#[derive(Clone, Debug)]
pub struct PerPrompt<S> {
    start: S,
    sources: BTreeMap<PromptId, S>,
}

impl<S: NoveltySource> PerPrompt<S> {
    /// Each prompt begins with a copy of `start`.
    pub fn new(start: S) -> Self {
        Self { start, sources: BTreeMap::new() }
    }
}

impl<S: NoveltySource> ExpectedControl for PerPrompt<S> {
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        let [count, d_model] = deep.dims();
        let read = |tensor: Tensor<2>| -> Result<Vec<f32>, StepError> {
            let data = tensor.try_into_data()?;
            data.try_into_vec().map_err(|error| StepError::Device(format!("{error:?}")))
        };
        let deep_rows = read(deep.clone())?;
        let mut expected = read(predicted)?;
        let mut states = Vec::with_capacity(count);
        for (at, row) in rows.iter().enumerate() {
            let place = at * d_model..(at + 1) * d_model;
            let state: Vec<f64> = deep_rows[place.clone()].iter().map(|&x| f64::from(x)).collect();
            let expected = &mut expected[place];
            let error: Vec<f64> =
                state.iter().zip(&*expected).map(|(deep, &x)| deep - f64::from(x)).collect();
            let source = self.sources.get(&row.completion.prompt).unwrap_or(&self.start);
            let direction = source.direction(&state);
            let scale = (dot(&error, &error) / dot(&direction, &direction)).sqrt();
            if scale.is_finite() {
                for ((x, deep), n) in expected.iter_mut().zip(&state).zip(&direction) {
                    *x = (deep - scale * n) as f32;
                }
            }
            states.push(state);
        }
        for (row, state) in rows.iter().zip(&states) {
            if state.iter().all(|x| x.is_finite()) {
                let source = self.sources.entry(row.completion.prompt);
                source.or_insert_with(|| self.start.clone()).learn(state);
            }
        }
        let expected = TensorData::new(expected, [count, d_model]);
        Ok(Tensor::from_data(expected, (&deep.device(), DType::F32)))
    }
}

/// Elliptical novelty: `n = Rᵀ·A·φ` with `φ = R·(h − μ)` and `A = (λI + Σ φφᵀ)⁻¹`, the direction in which the bonus
/// `φᵀAφ` of *RepExp* (arXiv 2510.11686) grows fastest.
///
/// `h` is the deep state divided by its root mean square, `R` a fixed sparse random projection to
/// [`WIDTH`](Self::WIDTH) dimensions (Achlioptas, 2003), `μ` the running mean of what was learned, and `λ` 1. A row is
/// learned by the formula of Sherman and Morrison, `A ← A − (Aφ)(Aφ)ᵀ / (1 + φᵀAφ)`. There is no gradient and no
/// optimizer. Cost of a row: `WIDTH²` and `d_model·WIDTH / 3` products.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Elliptical {
    /// The entries of `R` that are not zero: for each of its rows, columns and whether the entry is negative.
    projection: Vec<Vec<(usize, bool)>>,
    d_model: usize,
    /// `A`, row by row.
    inverse: Vec<f64>,
    /// `R·μ`
    mean: Vec<f64>,
    learned: u64,
}

impl Elliptical {
    /// The width after the projection.
    pub const WIDTH: usize = 64;

    /// A source that has learned nothing, with a projection drawn from `seed`.
    pub fn new(d_model: usize, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed ^ 0x656c_6c69);
        // A third of the entries, ±√(3 / WIDTH) with equal probabilities.
        let projection = (0..Self::WIDTH).map(|_| {
            let drawn = (0..d_model).map(|column| (column, rng.random_range(0..6u32)));
            drawn.filter(|&(_, side)| side < 2).map(|(column, side)| (column, side == 0)).collect()
        });
        let identity = (0..Self::WIDTH * Self::WIDTH).map(|at| at % (Self::WIDTH + 1) == 0);
        Self {
            projection: projection.collect(),
            d_model,
            inverse: identity.map(|is| f64::from(u8::from(is))).collect(),
            mean: vec![0.0; Self::WIDTH],
            learned: 0,
        }
    }

    fn entry() -> f64 {
        (3.0 / Self::WIDTH as f64).sqrt()
    }

    /// `R·h`
    fn projected(&self, deep: &[f64]) -> Vec<f64> {
        let scale = Self::entry() / (dot(deep, deep) / deep.len().max(1) as f64).sqrt();
        let signed = |&(column, negative): &(usize, bool)| {
            let value = deep.get(column).copied().unwrap_or(f64::NAN);
            if negative { -value } else { value }
        };
        self.projection.iter().map(|row| scale * row.iter().map(signed).sum::<f64>()).collect()
    }

    fn feature(&self, projected: &[f64]) -> Vec<f64> {
        projected.iter().zip(&self.mean).map(|(x, mean)| x - mean).collect()
    }

    /// `A·φ`
    fn weighted(&self, feature: &[f64]) -> Vec<f64> {
        self.inverse.chunks_exact(Self::WIDTH).map(|row| dot(row, feature)).collect()
    }

    /// `φᵀAφ`: how new a deep state is.
    pub fn bonus(&self, deep: &[f64]) -> f64 {
        let feature = self.feature(&self.projected(deep));
        dot(&feature, &self.weighted(&feature))
    }
}

impl NoveltySource for Elliptical {
    fn direction(&self, deep: &[f64]) -> Vec<f64> {
        let weighted = self.weighted(&self.feature(&self.projected(deep)));
        let mut direction = vec![0.0; self.d_model];
        for (row, weight) in self.projection.iter().zip(&weighted) {
            for &(column, negative) in row {
                direction[column] += if negative { -weight } else { *weight };
            }
        }
        direction
    }

    fn learn(&mut self, deep: &[f64]) {
        let projected = self.projected(deep);
        if !projected.iter().all(|x| x.is_finite()) {
            // A state of zeros has no direction.
            return;
        }
        let feature = self.feature(&projected);
        let weighted = self.weighted(&feature);
        let divisor = 1.0 + dot(&feature, &weighted);
        for (row, first) in self.inverse.chunks_exact_mut(Self::WIDTH).zip(&weighted) {
            for (entry, second) in row.iter_mut().zip(&weighted) {
                *entry -= first * second / divisor;
            }
        }
        self.learned += 1;
        for (mean, x) in self.mean.iter_mut().zip(&feature) {
            *mean += x / self.learned as f64;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use burn::tensor::Device;
    use esamp::{CompletionId, DrawKey};

    use super::*;
    use crate::controls::tests::{correlation, states, values};

    fn state(seed: f64, d_model: usize) -> Vec<f64> {
        (0..d_model).map(|i| (seed + i as f64 * (1.1 + seed)).sin()).collect()
    }

    /// The inverse by Sherman and Morrison is that of the sum: `A·(λI + Σ φφᵀ) = I`.
    #[test]
    fn the_inverse_is_that_of_the_sum() {
        let mut source = Elliptical::new(32, 3);
        let width = Elliptical::WIDTH;
        let mut sum: Vec<f64> = source.inverse.clone();
        for seed in 0..40 {
            let deep = state(f64::from(seed) * 0.37, 32);
            let feature = source.feature(&source.projected(&deep));
            for at in 0..width * width {
                sum[at] += feature[at / width] * feature[at % width];
            }
            source.learn(&deep);
        }
        for row in 0..width {
            for column in 0..width {
                let product: f64 = (0..width)
                    .map(|k| source.inverse[row * width + k] * sum[k * width + column])
                    .sum();
                let expected = f64::from(u8::from(row == column));
                assert!((product - expected).abs() < 1e-6, "{row} {column}: {product}");
            }
        }
    }

    #[test]
    fn the_direction_is_the_gradient_of_the_bonus() {
        let mut source = Elliptical::new(24, 5);
        for seed in 0..10 {
            source.learn(&state(f64::from(seed), 24));
        }
        let deep = state(0.5, 24);
        let direction = source.direction(&deep);
        // The state's length is held: only the part of the gradient across it can be seen in the bonus.
        let across = |vector: &[f64]| -> Vec<f64> {
            let along = dot(vector, &deep) / dot(&deep, &deep);
            vector.iter().zip(&deep).map(|(v, d)| v - along * d).collect()
        };
        let gradient: Vec<f64> = (0..24)
            .map(|i| {
                let moved = |by: f64| {
                    let mut moved = deep.clone();
                    moved[i] += by;
                    source.bonus(&moved)
                };
                (moved(1e-5) - moved(-1e-5)) / 2e-5
            })
            .collect();
        let cosine = correlation(&across(&gradient), &across(&direction));
        assert!(cosine > 0.999, "{cosine}");
    }

    #[test]
    fn what_was_learned_often_is_not_new() {
        let mut source = Elliptical::new(48, 1);
        let (common, rare) = (state(0.2, 48), state(1.7, 48));
        for _ in 0..30 {
            source.learn(&common);
            source.learn(&state(0.9, 48));
        }
        assert!(source.bonus(&rare) > 10.0 * source.bonus(&common));
    }

    #[test]
    fn a_snapshot_goes_on_as_the_source_would() {
        let mut source = Elliptical::new(16, 9);
        source.learn(&state(0.1, 16));
        let text = serde_json::to_string(&source).unwrap();
        let mut read: Elliptical = serde_json::from_str(&text).unwrap();
        for source in [&mut source, &mut read] {
            source.learn(&state(0.4, 16));
        }
        let [own, read] = [&source, &read].map(|source| source.direction(&state(0.7, 16)));
        // Reading a number as text may change its last digit.
        for (own, read) in own.iter().zip(&read) {
            assert!((own - read).abs() < 1e-9 * own.abs().max(1.0), "{own} and {read}");
        }
        assert_ne!(source, Elliptical::new(16, 9));
    }

    fn rows(prompts: &[u64]) -> Vec<RowContext<'static>> {
        let row = |(index, &prompt): (usize, &u64)| {
            let id = CompletionId::new(prompt, index as u64);
            RowContext::new(id, 1, DrawKey::new(0, &[], index as u64).at(1))
        };
        prompts.iter().enumerate().map(row).collect()
    }

    #[test]
    fn errors_keep_their_length_and_prompts_do_not_mix() {
        let (deep, predicted) = (states(3, 32, 0.7), states(3, 32, 1.9));
        let mut control = PerPrompt::new(Elliptical::new(32, 0));
        let answer = |control: &mut PerPrompt<Elliptical>, prompts: &[u64]| {
            let expected = control.expected(&rows(prompts), &deep, predicted.clone());
            values(deep.clone() - expected.unwrap())
        };
        let first = answer(&mut control, &[0, 0, 1]);
        for (got, error) in first.iter().zip(values(deep.clone() - predicted.clone())) {
            assert!((dot(got, got) / dot(&error, &error) - 1.0).abs() < 1e-5);
        }
        // All rows are answered before any is learned: each is as it would be alone.
        let mut alone = PerPrompt::new(Elliptical::new(32, 0));
        assert_eq!(answer(&mut alone, &[4, 5, 6]), first);
        let second = answer(&mut control, &[0, 0, 1]);
        assert_ne!(second[0], first[0], "it has learned");
        // A prompt that has not been seen begins anew, whatever others have learned.
        let third = answer(&mut control, &[2, 0, 1]);
        assert_eq!(third[0], first[0]);
    }

    #[test]
    fn a_row_that_is_not_finite_keeps_its_error_and_is_not_learned() {
        let (mut control, device) = (PerPrompt::new(Elliptical::new(8, 0)), Device::flex());
        let nan = Tensor::<2>::full([1, 8], f32::NAN, &device);
        let predicted = states(1, 8, 0.3);
        let got = control.expected(&rows(&[0]), &nan, predicted.clone()).unwrap();
        assert_eq!(values(got), values(predicted));
        assert!(control.sources.is_empty());
    }
}
