//! Creation of tensors from host data, and row selection.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

/// Creates an `f32` tensor of the given shape.
pub(crate) fn from_f32<const D: usize>(
    numbers: Vec<f32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(numbers, shape), (device, DType::F32))
}

/// Creates an index tensor.
pub(crate) fn index(places: impl IntoIterator<Item = usize>, device: &Device) -> Tensor<1, Int> {
    let places: Vec<i32> = places.into_iter().map(|place| place as i32).collect();
    Tensor::from_data(places.as_slice(), device)
}

/// Whether `places` are `0..count` in order, in which case selection is the identity.
pub(crate) fn is_all(places: &[usize], count: usize) -> bool {
    places.len() == count && places.iter().enumerate().all(|(at, &place)| at == place)
}

/// The given rows of a tensor, in the given order. Returns the tensor itself, without a gather, if these are all rows
/// in order.
pub(crate) fn select_rows(tensor: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    if is_all(rows, tensor.dims()[0]) {
        return tensor.clone();
    }
    tensor.clone().select(0, index(rows.iter().copied(), &tensor.device()))
}
