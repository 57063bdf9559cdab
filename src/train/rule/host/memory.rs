//! Access to the host memory of a tensor.

use burn::tensor::{DType, Tensor};

use crate::tensor::from_f32;

/// Returns the values of a tensor, without a copy if nothing else shares its memory.
pub(super) fn numbers(tensor: Tensor<3>) -> Vec<f32> {
    let tensor = if tensor.dtype() == DType::F32 { tensor } else { tensor.cast(DType::F32) };
    let data = tensor.into_data();
    data.try_into_vec().unwrap_or_else(|error| unreachable!("f32 on the host: {error:?}"))
}

/// Changes the values of a tensor, in place if nothing else shares its memory.
pub(super) fn in_place(tensor: &mut Tensor<3>, change: impl FnOnce(&mut [f32])) {
    tensor.inplace(|tensor| {
        let (shape, device) = (tensor.dims(), tensor.device());
        let mut numbers = numbers(tensor);
        // The tensor has been moved into `numbers`, which is why its memory can be changed instead of copied.
        change(&mut numbers);
        from_f32(numbers, shape, &device)
    });
}
