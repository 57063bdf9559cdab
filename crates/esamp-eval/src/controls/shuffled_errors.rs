//! The control for the context of the distiller's error.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use burn::tensor::Tensor;
use esamp::{errors::StepError, filters::RowContext, unstable::ExpectedControl};

use super::{length, select_rows};

/// `e'_i = e_{i+1}`: each row gets the error of the next row of the step that has a distiller, and the last row that
/// of the first. The directions are learned, but in the wrong context. This control is original to this package.
///
/// Rows whose states are not finite are left out. A row without others keeps its own error, which
/// [`not_shuffled`](Self::not_shuffled) counts. This is the only control with which a row's tokens depend on the
/// other rows of the batch.
#[derive(Clone, Debug, Default)]
pub struct ShuffledErrors {
    not_shuffled: Arc<AtomicU64>,
}

impl ShuffledErrors {
    /// The number of rows so far that kept their own error. Clones share the count, so the caller can keep one to
    /// read it.
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

/// The expected states with the errors passed on, and whether there was only one row with an error, which kept it.
fn shuffled(deep: &Tensor<2>, predicted: Tensor<2>) -> Result<(Tensor<2>, bool), StepError> {
    let error = deep.clone() - predicted;
    let lengths: Vec<f32> = length(error.clone())
        .try_into_data()?
        .try_into_vec()
        .map_err(|error| StepError::Device(format!("{error:?}")))?;
    let finite: Vec<usize> = (0..lengths.len()).filter(|&row| lengths[row].is_finite()).collect();
    let mut source: Vec<usize> = (0..lengths.len()).collect();
    for (place, &row) in finite.iter().enumerate() {
        source[row] = finite[(place + 1) % finite.len()];
    }
    Ok((deep.clone() - select_rows(&error, &source), finite.len() == 1))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::controls::tests::{states, values};

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
