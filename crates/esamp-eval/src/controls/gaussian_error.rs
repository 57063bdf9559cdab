//! The control for the direction of the distiller's error.

use burn::tensor::{DType, Tensor, TensorData};
use esamp::{
    errors::StepError,
    filters::{Draw, RowContext},
    unstable::ExpectedControl,
};
use rand_distr::{Distribution, StandardNormal};

/// `e' = ‖e‖·g / ‖g‖` with `g` normal: the same length, a random direction (the paper's noise control, arXiv
/// 2604.24927).
///
/// The numbers come from the row's [`Draw`], stream `"gaussian error"`, so a row's noise does not depend on the other
/// rows of the batch. After the head it is not noise of the same size: in SmolLM2-135M it moves logits 1.8 times as
/// far as the distiller's error. [`MatchedRandom`](super::MatchedRandom) matches what reaches the logits.
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
    deep.clone() - directions * super::length(deep.clone() - predicted)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use esamp::DrawKey;

    use super::*;
    use crate::{
        controls::{
            select_rows,
            tests::{correlation, states, values},
        },
        metrics::dot,
    };

    #[test]
    fn value_stability() {
        let (deep, predicted) = (states(2, 3, 0.7), states(2, 3, 1.9));
        let draws = [0, 1].map(|position| DrawKey::new(1, &[2], 0).at(position));
        let got: Vec<f32> = gaussian(&draws, &deep, predicted).into_data().try_into_vec().unwrap();
        let bits: [u32; 6] =
            [1051345185, 1065909078, 1084641672, 1033900256, 1077695355, 1060657286];
        for (got, bits) in got.iter().zip(bits) {
            assert!((got - f32::from_bits(bits)).abs() < 1e-6, "{got}");
        }
    }

    #[test]
    fn the_noise_does_not_depend_on_the_number_that_selects_the_token() {
        let (rows, d_model) = (800, 4);
        let (deep, predicted) = (states(rows, d_model, 0.7), states(rows, d_model, 1.9));
        let draws: Vec<Draw> = (0..rows as u64).map(|p| DrawKey::new(1, &[2], 0).at(p)).collect();
        let uniform: Vec<f64> = draws.iter().map(Draw::uniform).collect();
        let errors = values(deep.clone() - gaussian(&draws, &deep, predicted));
        for place in 0..d_model {
            let share = |error: &Vec<f64>| error[place] / dot(error, error).sqrt();
            // The standard deviation of a correlation is 1/√800 = 0.035.
            let got = correlation(&uniform, &errors.iter().map(share).collect::<Vec<_>>());
            assert!(got.abs() < 0.14, "{place}: {got}");
        }
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
        // A cosine in 64 dimensions has standard deviation 1/8; its mean over 500 rows has 0.0056.
        assert!(mean.abs() < 0.025, "{mean}");

        // A row has the same noise alone as among other rows.
        let alone =
            gaussian(&draws[7..8], &select_rows(&deep, &[7]), select_rows(&predicted, &[7]));
        let alone = values(select_rows(&deep, &[7]) - alone);
        for (a, b) in alone[0].iter().zip(&got[7]) {
            assert!((a - b).abs() < 1e-5);
        }
    }
}
