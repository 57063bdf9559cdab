//! Controls that put another error in the place of the distiller's.

use std::{
    fmt::Debug,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use burn::tensor::{DType, Tensor, TensorData};
use rand_distr::{Distribution, StandardNormal};

use super::expect::{length, read};
use crate::{candidates::RowContext, draw::Draw, sampler::error::StepError, tensor::select_rows};

/// Replaces the expected states of a step, after the distillers have predicted them and before scores are reweighted
/// with them.
///
/// For experiments that ask whether the distiller's own error matters: a control puts another error `e'` in the place of
/// `e = deep − ĥ`, and the expected state becomes `deep − e'`. It acts on what scores are reweighted with and not on what
/// is learned: distillers predict, are measured ([`Choice::novelty`](crate::Choice::novelty), the counters) and learn as
/// they would without it. A reweighter cannot do this, because it sees two numbers per candidate and no states.
///
/// Set with [`Sampler::set_expected_control`](crate::Sampler::set_expected_control).
pub trait ExpectedControl: Debug + Send {
    /// The expected states to use, `[rows, d_model]`, from the deep and the predicted ones of the same shape; both are
    /// `f32`. `rows` are the rows that have a distiller, in the order of the tensors' first dimension.
    ///
    /// # Errors
    ///
    /// [`StepError::Execution`] when the device fails. The step fails with it, and nothing is learned.
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError>;
}

/// `e' = ‖e‖·g / ‖g‖` with `g` normal: the same length, a random direction (the paper's noise control, arXiv
/// 2604.24927).
///
/// The numbers come from the row's [`Draw`], stream `"gaussian error"`, so a row has its own noise whoever else is in the
/// batch. Through a head it is not noise of the same size: in SmolLM2-135M it moves logits 1.8 times as far as the
/// distiller's error. [`MatchedRandom`](crate::reweighters::MatchedRandom) is the control that matches what reaches the logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct GaussianError;

impl ExpectedControl for GaussianError {
    fn expected(
        &mut self,
        rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        let draws: Vec<Draw> = rows.iter().map(|row| row.draw).collect();
        Ok(gaussian(&draws, deep, predicted))
    }
}

/// `e'` is the error of the next row of the step that has a distiller, and the last row's is that of the first: learned
/// directions, of the wrong context.
///
/// Rows whose states are not finite are left out. A row that is alone keeps its own error, which
/// [`not_shuffled`](Self::not_shuffled) counts. With this control, and only with it, a row's tokens depend on the other rows of
/// the batch.
#[derive(Clone, Debug, Default)]
pub struct ShuffledErrors {
    not_shuffled: Arc<AtomicU64>,
}

impl ShuffledErrors {
    /// Rows so far that kept their own error. A clone that stays with the caller shares the count.
    pub fn not_shuffled(&self) -> u64 {
        self.not_shuffled.load(Ordering::Relaxed)
    }
}

impl ExpectedControl for ShuffledErrors {
    fn expected(
        &mut self,
        _rows: &[RowContext<'_>],
        deep: &Tensor<2>,
        predicted: Tensor<2>,
    ) -> Result<Tensor<2>, StepError> {
        let (expected, alone) = shuffled(deep, predicted)?;
        self.not_shuffled.fetch_add(u64::from(alone), Ordering::Relaxed);
        Ok(expected)
    }
}

fn gaussian(draws: &[Draw], deep: &Tensor<2>, predicted: Tensor<2>) -> Tensor<2> {
    let [rows, d_model] = deep.dims();
    let mut directions = Vec::with_capacity(rows * d_model);
    for draw in draws {
        let mut rng = draw.apart("gaussian error").rng();
        let numbers: Vec<f64> = (0..d_model).map(|_| StandardNormal.sample(&mut rng)).collect();
        let norm = numbers.iter().map(|number| number * number).sum::<f64>().sqrt();
        directions.extend(numbers.iter().map(|number| (number / norm) as f32));
    }
    let directions = TensorData::new(directions, [rows, d_model]);
    let directions = Tensor::<2>::from_data(directions, (&deep.device(), DType::F32));
    deep.clone() - directions * length(deep.clone() - predicted)
}

/// The expected states with the errors passed on, and whether the only row that has one kept it.
fn shuffled(deep: &Tensor<2>, predicted: Tensor<2>) -> Result<(Tensor<2>, bool), StepError> {
    let error = deep.clone() - predicted;
    let [lengths] = read([length(error.clone())])?;
    let finite: Vec<usize> = (0..lengths.len()).filter(|&row| lengths[row].is_finite()).collect();
    let mut source: Vec<usize> = (0..lengths.len()).collect();
    for (place, &row) in finite.iter().enumerate() {
        source[row] = finite[(place + 1) % finite.len()];
    }
    Ok((deep.clone() - select_rows(&error, &source), finite.len() == 1))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::{draw::DrawKey, numeric::dot};

    fn states(rows: usize, d_model: usize, scale: f32) -> Tensor<2> {
        let numbers = (0..rows * d_model).map(|i| (i as f32 * scale).sin() * 2.0).collect();
        Tensor::from_data(TensorData::new::<f32, _>(numbers, [rows, d_model]), &Device::flex())
    }

    fn values(tensor: Tensor<2>) -> Vec<Vec<f64>> {
        let width = tensor.dims()[1];
        let values: Vec<f32> = tensor.into_data().try_into_vec().unwrap();
        values.chunks(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    #[test]
    fn a_gaussian_error_has_the_same_length_and_a_direction_of_its_own() {
        let (rows, d_model) = (500, 64);
        let (deep, predicted) = (states(rows, d_model, 0.7), states(rows, d_model, 1.9));
        let draws: Vec<Draw> = (0..rows as u64).map(|p| DrawKey::new(1, &[2], 0).at(p)).collect();
        let error = values(deep.clone() - predicted.clone());
        let got = values(deep.clone() - gaussian(&draws, &deep, predicted.clone()));
        let mut mean = 0.0;
        for (error, got) in error.iter().zip(&got) {
            let lengths = (dot(error, error).sqrt(), dot(got, got).sqrt());
            assert!((lengths.0 - lengths.1).abs() < 1e-4 * lengths.0, "{lengths:?}");
            mean += dot(error, got) / (lengths.0 * lengths.1) / rows as f64;
        }
        // A cosine in 64 dimensions has standard deviation 1/8, its mean over 500 rows 0.0056.
        assert!(mean.abs() < 0.025, "{mean}");

        // A row alone has the noise that it has in company.
        let alone =
            gaussian(&draws[7..8], &select_rows(&deep, &[7]), select_rows(&predicted, &[7]));
        let alone = values(select_rows(&deep, &[7]) - alone);
        for (a, b) in alone[0].iter().zip(&got[7]) {
            assert!((a - b).abs() < 1e-5);
        }
    }

    #[test]
    fn errors_go_round_among_the_rows_that_have_one() {
        let (deep, predicted) = (states(4, 3, 0.7), states(4, 3, 1.9));
        let error = values(deep.clone() - predicted.clone());
        let nan = Tensor::<2>::full([1, 1], f32::NAN, &Device::flex());
        for (bad, sources) in [(None, [1, 2, 3, 0]), (Some(2), [1, 3, 2, 0])] {
            let predicted = match bad {
                Some(row) => predicted.clone().slice_assign([row..row + 1, 0..1], nan.clone()),
                None => predicted.clone(),
            };
            let (expected, alone) = shuffled(&deep, predicted).unwrap();
            let got = values(deep.clone() - expected);
            for (row, source) in
                sources.into_iter().enumerate().filter(|&(row, _)| bad != Some(row))
            {
                for (got, error) in got[row].iter().zip(&error[source]) {
                    assert!((got - error).abs() < 1e-6, "row {row}");
                }
            }
            assert!(!alone);
        }
        let one = |tensor: &Tensor<2>| select_rows(tensor, &[1]);
        let (expected, alone) = shuffled(&one(&deep), one(&predicted)).unwrap();
        assert!((values(expected)[0][0] - values(predicted)[1][0]).abs() < 1e-6, "its own error");
        assert!(alone);
    }
}
