//! The operations that take most of a decode step's time, for a device that computes in host memory: one pass each,
//! with vector instructions and threads. On any other device, and for shapes and types that are not supported, burn's
//! own operations compute the same.

mod exp;
// The feature `flex` is used only here: both files define the same functions.
#[cfg_attr(feature = "flex", path = "flex/mod.rs")]
#[cfg_attr(not(feature = "flex"), path = "plain.rs")]
mod kernels;
#[cfg(feature = "llama")]
pub(crate) mod packed;

use burn::tensor::{DType, Device, Int, Tensor};

#[cfg(feature = "llama")]
use self::packed::PackedMatrix;
#[cfg(feature = "llama")]
use crate::tensor::{from_f32, index};

pub(crate) use exp::exp_of_negative;
pub(crate) use kernels::{Awake, has_same_bits, is_flex, share_each, share_pieces, vectorised};

/// The multiply-adds of one thread; a second thread is used from twice as many on.
// Below 600,000, waking a second thread, which takes about 50 µs, costs too much of what it saves.
pub(crate) const WORK_OF_A_THREAD: usize = 300_000;

/// Whether a device computes in host memory, so that a transfer to the host is a copy at most.
pub(crate) fn is_host_memory(device: &Device) -> bool {
    #[cfg(feature = "ndarray")]
    #[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
    if *device == Device::ndarray() {
        return true;
    }
    is_flex(device)
}

/// `x·Wᵀ`, with `x` `[rows, in]` and `W` `[out, in]`, the layout of checkpoints.
pub(crate) fn times_transposed(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    if let Some(product) = kernels::times_transposed(&x, weight) {
        return product;
    }
    x.matmul(weight.clone().transpose())
}

/// `σ(x) = 1 / (1 + exp(−x))`.
pub(crate) fn sigmoid<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if is_flex(&x.device()) || x.dtype() != DType::F32 {
        return burn::tensor::activation::sigmoid(x);
    }
    // On a GPU burn computes `exp(−log(1 + exp(−x)))`, in six launches.
    x.neg().exp().add_scalar(1.0).recip()
}

/// `x · σ(x)`.
#[cfg(feature = "llama")]
fn silu<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if is_flex(&x.device()) || x.dtype() != DType::F32 {
        return burn::tensor::activation::silu(x);
    }
    sigmoid(x.clone()) * x
}

/// `x·W` for each slot, with `x` `[slots, rows, in]` and `W` `[slots, in, out]`.
pub(crate) fn times_each(x: Tensor<3>, weight: &Tensor<3>) -> Tensor<3> {
    if let Some(product) = kernels::times_each(&x, weight) {
        return product;
    }
    x.matmul(weight.clone())
}

/// `x·Wᵀ` for each slot, with `x` `[slots, rows, in]` and `W` `[slots, out, in]`.
pub(crate) fn times_each_transposed(x: Tensor<3>, weight: &Tensor<3>) -> Tensor<3> {
    if let Some(product) = kernels::times_each_transposed(&x, weight) {
        return product;
    }
    x.matmul(weight.clone().swap_dims(1, 2))
}

/// `x[row] · W[picked[row, i]]`, with `x` `[rows, in]`, `W` `[out, in]` and `picked` `[rows, n]`, each below `out`.
/// The result is `[rows, n]`.
pub(crate) fn times_rows_at(
    x: Tensor<2>,
    weight: &Tensor<2>,
    picked: &Tensor<2, Int>,
) -> Tensor<2> {
    if let Some(product) = kernels::times_rows_at(&x, weight, picked) {
        return product;
    }
    let ([rows, n], width) = (picked.dims(), x.dims()[1]);
    let picked = weight.clone().select(0, picked.clone().reshape([rows * n]));
    picked.reshape([rows, n, width]).matmul(x.reshape([rows, width, 1])).reshape([rows, n])
}

/// `x·Wᵀ` with a packed matrix, with `x` `[rows, in]` and `W` `[out, in]`.
#[cfg(feature = "llama")]
pub(crate) fn packed_times(x: Tensor<2>, matrix: &PackedMatrix) -> Tensor<2> {
    if let Some(product) = kernels::packed_times(&x, matrix) {
        return product;
    }
    let weight = packed_to_tensor(matrix, &x.device());
    times_transposed(x, &weight)
}

/// [`times_rows_at`] with a packed matrix.
#[cfg(feature = "llama")]
pub(crate) fn packed_times_rows_at(
    x: Tensor<2>,
    matrix: &PackedMatrix,
    picked: &Tensor<2, Int>,
) -> Tensor<2> {
    if let Some(product) = kernels::packed_times_rows_at(&x, matrix, picked) {
        return product;
    }
    let weight = packed_to_tensor(matrix, &x.device());
    times_rows_at(x, &weight, picked)
}

/// The rows `picked`, `[n]`, of a packed matrix, `[n, in]`.
#[cfg(feature = "llama")]
pub(crate) fn packed_rows(matrix: &PackedMatrix, picked: Tensor<1, Int>) -> Tensor<2> {
    match kernels::packed_rows(matrix, &picked) {
        Some(rows) => rows,
        None => packed_to_tensor(matrix, &picked.device()).select(0, picked),
    }
}

/// All numbers of a packed matrix as a tensor.
#[cfg(feature = "llama")]
pub(crate) fn packed_to_tensor(matrix: &PackedMatrix, device: &Device) -> Tensor<2> {
    from_f32(matrix.to_numbers(), matrix.dims(), device)
}

/// `silu(left half) ⊙ right half` of each row of `[rows, 2·n]`. The result is `[rows, n]`.
#[cfg(feature = "llama")]
pub(crate) fn silu_gated(both: Tensor<2>) -> Tensor<2> {
    if let Some(gated) = kernels::silu_gated(&both) {
        return gated;
    }
    let half = both.dims()[1] / 2;
    silu(both.clone().narrow(1, 0, half)) * both.narrow(1, half, half)
}

/// `x / √(mean(x²) + ε) · weight` over the last dimension. The mean is computed in `f32` for every element type,
/// because squares overflow `f16`.
#[cfg(feature = "llama")]
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f32) -> Tensor<D> {
    if let Some(normed) = kernels::rms_norm(&x, weight, eps) {
        return normed;
    }
    let dtype = x.dtype();
    let x = if dtype == DType::F32 { x } else { x.cast(DType::F32) };
    let mean_square = x.clone().square().mean_dim(D - 1);
    let normed = x / mean_square.add_scalar(eps).sqrt();
    let normed = if dtype == DType::F32 { normed } else { normed.cast(dtype) };
    normed * weight.clone().unsqueeze()
}

/// Rotary position embedding of `x`, `[rows, seq, heads, width]`: rotates each pair of dimensions `i` and `i + width /
/// 2` of a head by an angle. Cosines and sines are `[rows, seq, 1, width]`, each given twice.
#[cfg(feature = "llama")]
pub(crate) fn rotate_halves(x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
    if let Some(turned) = kernels::rotate_halves(&x, cos, sin) {
        return turned;
    }
    let half = x.dims()[3] / 2;
    let first = x.clone().narrow(3, 0, half);
    let second = x.clone().narrow(3, half, half);
    let turned = Tensor::cat(vec![second.neg(), first], 3);
    x * cos.clone() + turned * sin.clone()
}

/// The keys and values that the queries of a pass attend to.
#[cfg(feature = "llama")]
pub(crate) struct Seen<'a> {
    /// `[rows, kv_heads, capacity, width]`
    pub(crate) keys: &'a Tensor<4>,
    /// `[rows, kv_heads, capacity, width]`
    pub(crate) values: &'a Tensor<4>,
    /// The columns in use, which end with those of the queries.
    pub(crate) columns: usize,
    /// The columns of the queries: new tokens per row.
    pub(crate) new: usize,
    /// The first column of each row's sequence.
    pub(crate) starts: &'a [usize],
}

/// The mask of a pass, `[rows, 1, new, columns]`, which burn's operations add to the scores: −∞ for hidden columns and 0
/// for the others. It is computed when it is first needed, and `None` if every query attends to all columns.
#[cfg(feature = "llama")]
pub(crate) type Mask = std::cell::OnceCell<Option<Tensor<4>>>;

#[cfg(feature = "llama")]
impl Seen<'_> {
    fn mask(&self) -> Option<Tensor<4>> {
        // A single query is at the last column, so nothing lies after it, and without padding nothing before it is
        // hidden.
        if self.new == 1 && self.starts.iter().all(|&start| start == 0) {
            return None;
        }
        let (columns, device) = (self.columns, self.keys.device());
        // Computed on the device: only the starts are uploaded.
        let range =
            |from: usize, to: usize| Tensor::<1, Int>::arange(from as i64..to as i64, &device);
        let starts = index(self.starts.iter().copied(), &device);
        let starts = starts.reshape([self.starts.len(), 1, 1, 1]);
        let own = range(columns - self.new, columns).reshape([1, 1, self.new, 1]);
        let columns = range(0, columns).reshape([1, 1, 1, columns]);
        // A query always sees its own column: a line of only −inf would make its softmax NaN.
        let hidden = columns.clone().lower(starts).bool_or(columns.greater(own));
        let mask = Tensor::<4>::zeros(hidden.dims(), (&device, DType::F32));
        Some(mask.mask_fill(hidden, f32::NEG_INFINITY).cast(self.keys.dtype()))
    }
}

/// Attention, `softmax(queries·keysᵀ / √width)·values`, of `queries` `[rows, kv_heads, group · new, width]`: the new
/// columns of each query head that shares the key head. The result has the same shape.
#[cfg(feature = "llama")]
pub(crate) fn attend(queries: Tensor<4>, seen: &Seen, mask: &Mask) -> Tensor<4> {
    if let Some(mixed) = kernels::attend(&queries, seen) {
        return mixed;
    }
    let ([rows, kv_heads, of_head, width], columns) = (queries.dims(), seen.columns);
    let all = [0..rows, 0..kv_heads, 0..columns, 0..width];
    let (keys, values) = (seen.keys.clone().slice(all.clone()), seen.values.clone().slice(all));
    // The queries are scaled and not the scores, of which there are more as soon as there are more than `width`
    // columns.
    let scores = queries.mul_scalar((width as f32).powf(-0.5)).matmul(keys.swap_dims(2, 3));
    let scores = match mask.get_or_init(|| seen.mask()) {
        None => scores,
        // The mask differs between queries but not between heads, so the stacked dimension is split for the addition.
        Some(mask) => {
            let heads = kv_heads * of_head / seen.new;
            (scores.reshape([rows, heads, seen.new, columns]) + mask.clone())
                .reshape([rows, kv_heads, of_head, columns])
        }
    };
    burn::tensor::activation::softmax(scores, 3).matmul(values)
}
