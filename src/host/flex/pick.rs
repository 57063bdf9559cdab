//! The product of each row with selected rows of a matrix.

use burn::tensor::{DType, Int, Tensor};

use super::{flex, share_rows, sum_of_products};
use crate::tensor::from_f32;

pub(crate) fn times_rows_at(
    x: &Tensor<2>,
    weight: &Tensor<2>,
    picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    let ([rows, width], [count, same_width]) = (x.dims(), weight.dims());
    let [same_rows, columns] = picked.dims();
    if width != same_width || rows != same_rows || rows * columns * width == 0 {
        return None;
    }
    let (x_numbers, weight) = (flex(x)?.to_contiguous(), flex(weight)?);
    let (x_numbers, weight) = (x_numbers.as_slice::<f32>()?, weight.as_slice::<f32>()?);
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
            // The rows of the matrix are read where they are. burn's operations would first gather them into a new
            // tensor.
            for (product, &at) in product.iter_mut().zip(picked) {
                *product = sum_of_products(x, &weight[at * width..][..width]);
            }
        },
    );
    Some(from_f32(product, [rows, columns], &x.device()))
}

/// Returns indices in host memory, or `None` if they are on another device or one is negative.
fn indices(tensor: &Tensor<2, Int>) -> Option<Vec<usize>> {
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
