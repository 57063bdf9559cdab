//! RMS normalization: division by the root mean square, times a weight.

use burn::tensor::Tensor;

use super::{flex, share_rows, sum_of_products};
use crate::tensor::from_f32;

pub(crate) fn rms_norm<const D: usize>(
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
    share_rows(
        numbers,
        width,
        &mut normed,
        width,
        width,
        #[inline(always)]
        |_, row, normed| {
            let mean_square = sum_of_products(row, row) / width as f32;
            let length = (mean_square + eps).sqrt();
            for ((normed, x), weight) in normed.iter_mut().zip(row).zip(weight) {
                // A division and a product, in the order of burn's operations in `rms_norm`, so that the results
                // differ only by the order of the sum.
                *normed = x / length * weight;
            }
        },
    );
    Some(from_f32(normed, shape, &x.device()))
}
