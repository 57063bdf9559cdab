//! Products with packed matrices.

use burn::tensor::{Int, Tensor};

use super::{
    flex,
    pick::{indices, times_picked},
    product::{MOST_ROWS, multiply},
};
use crate::{
    host::packed::{PackedMatrix, Unpacked},
    tensor::from_f32,
};

/// `x·Wᵀ`, with `x` `[rows, in]` and `W` `[out, in]`. `None` if `x` is not `f32` on flex.
pub(crate) fn packed_times(x: &Tensor<2>, matrix: &PackedMatrix) -> Option<Tensor<2>> {
    let ([rows, width], [columns, same_width]) = (x.dims(), matrix.dims());
    if width != same_width || rows * width * columns == 0 {
        return None;
    }
    let numbers = flex(x)?.to_contiguous();
    let mut product = vec![0.0; rows * columns];
    // The rows of `x` in a tile stay in the cache; those of the matrix are unpacked once for each.
    let x_parts = numbers.as_slice::<f32>()?.chunks(MOST_ROWS * width);
    for (x, product) in x_parts.zip(product.chunks_mut(MOST_ROWS * columns)) {
        multiply(x, matrix, product);
    }
    Some(from_f32(product, [rows, columns], &x.device()))
}

/// `x[row] · W[picked[row, i]]`, with `x` `[rows, in]`, `W` `[out, in]` and `picked` `[rows, n]`. `None` if `x` is not
/// `f32` on flex, or if a row does not exist.
pub(crate) fn packed_times_rows_at(
    x: &Tensor<2>,
    matrix: &PackedMatrix,
    picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    times_picked(x, matrix, picked)
}

/// The rows `picked`, `[n]`, of a matrix, `[n, width]`. `None` if one does not exist or `picked` is on another device.
pub(crate) fn packed_rows(matrix: &PackedMatrix, picked: &Tensor<1, Int>) -> Option<Tensor<2>> {
    let [count, width] = matrix.dims();
    let (device, picked) = (picked.device(), indices(picked)?);
    if picked.iter().any(|&row| row >= count) {
        return None;
    }
    let mut numbers = Vec::with_capacity(picked.len() * width);
    let mut buffer = Unpacked::default();
    for &row in &picked {
        numbers.extend_from_slice(matrix.unpack(row, 1, &mut buffer));
    }
    Some(from_f32(numbers, [picked.len(), width], &device))
}
