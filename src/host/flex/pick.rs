//! The product of each row with selected rows of a matrix.

use burn::tensor::{DType, Int, Tensor};

use super::{
    flex,
    product::{Dense, Matrix},
    share_rows, sum_of_products,
};
use crate::tensor::from_f32;

pub(crate) fn times_rows_at(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    let width = weight.dims()[1];
    if width == 0 {
        return None;
    }
    let weight = flex(weight)?;
    times_picked(x, &Dense { numbers: weight.as_slice()?, width }, picked)
}

/// The product of each row of `x` with the rows of `matrix` that are picked for it.
pub(super) fn times_picked(
    x: &Tensor<2>,
    matrix: &impl Matrix,
    picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    let ([rows, width], [count, same_width]) = (x.dims(), matrix.dims());
    let [same_rows, columns] = picked.dims();
    if width != same_width || rows != same_rows || rows * columns * width == 0 {
        return None;
    }
    let x_numbers = flex(x)?.to_contiguous();
    let x_numbers = x_numbers.as_slice::<f32>()?;
    let picked = indices(picked)?;
    if picked.iter().any(|&row| row >= count) {
        return None; // burn reports the error
    }
    let mut product = vec![0.0; rows * columns];
    let work_of_a_row = columns * width;
    share_rows(
        &picked,
        columns,
        &mut product,
        columns,
        work_of_a_row,
        #[inline(always)]
        |row, picked, product| {
            let x = &x_numbers[row * width..][..width];
            let mut buffer = Default::default();
            // The rows of the matrix are read where they are. burn's operations would first gather them into a new
            // tensor.
            for (product, &at) in product.iter_mut().zip(picked) {
                *product = sum_of_products(x, matrix.row(at, &mut buffer));
            }
        },
    );
    Some(from_f32(product, [rows, columns], &x.device()))
}

/// Returns indices in host memory, or `None` if they are on another device or one is negative.
pub(super) fn indices<const D: usize>(tensor: &Tensor<D, Int>) -> Option<Vec<usize>> {
    let dtype = tensor.dtype();
    let primitive =
        tensor.clone().try_into_primitive::<burn::backend::Flex>().ok()?.to_contiguous();
    match dtype {
        DType::I32 => {
            primitive.as_slice::<i32>()?.iter().map(|&i| usize::try_from(i).ok()).collect()
        }
        DType::I64 => {
            primitive.as_slice::<i64>()?.iter().map(|&i| usize::try_from(i).ok()).collect()
        }
        _ => None,
    }
}
