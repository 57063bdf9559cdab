//! Division by the root mean square.

use burn::tensor::Tensor;

use super::{flex, share_rows, tensor};

/// Sums side by side, so that they can be done in parallel.
const LANES: usize = 16;

pub(super) fn rms_norm<const D: usize>(
    x: &Tensor<D>,
    weight: &Tensor<1>,
    eps: f32,
) -> Option<Tensor<D>> {
    let shape = x.dims();
    let width = *shape.last()?;
    if shape.iter().product::<usize>() == 0 || weight.dims() != [width] {
        return None;
    }
    let (numbers, weight) = (flex(x)?.to_contiguous(), flex(weight)?.to_contiguous());
    let (numbers, weight) = (numbers.as_slice::<f32>()?, weight.as_slice::<f32>()?);
    let mut normed = vec![0.0; numbers.len()];
    share_rows(numbers, width, &mut normed, width, |_, row, normed| {
        let chunks = row.chunks_exact(LANES);
        let rest: f32 = chunks.remainder().iter().map(|x| x * x).sum();
        let mut sums = [0.0; LANES];
        for chunk in chunks {
            sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x * x);
        }
        let mean_square = (sums.iter().sum::<f32>() + rest) / width as f32;
        let length = (mean_square + eps).sqrt();
        for ((normed, x), weight) in normed.iter_mut().zip(row).zip(weight) {
            *normed = x / length * weight;
        }
    });
    Some(tensor(normed, shape, &x.device()))
}
