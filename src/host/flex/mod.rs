//! The host operations on the flex backend.

#[cfg(feature = "llama")]
mod attend;
#[cfg(feature = "llama")]
mod gate;
#[cfg(feature = "llama")]
mod look_up;
#[cfg(feature = "llama")]
mod norm;
#[cfg(feature = "llama")]
mod packed;
mod pick;
mod product;
#[cfg(feature = "llama")]
mod rotate;
mod slots;
#[cfg(test)]
mod tests;
mod threads;

#[cfg(feature = "llama")]
pub(crate) use attend::attend;
use burn::tensor::{DType, Device, Tensor};
#[cfg(feature = "llama")]
pub(crate) use gate::silu_gated;
#[cfg(feature = "llama")]
pub(crate) use norm::rms_norm;
#[cfg(feature = "llama")]
pub(crate) use packed::{packed_rows, packed_times, packed_times_rows_at};
pub(crate) use pick::times_rows_at;
pub(crate) use product::times_transposed;
#[cfg(feature = "llama")]
pub(crate) use rotate::rotate_halves;
pub(crate) use slots::{times_each, times_each_transposed};
pub(crate) use threads::{Awake, share_each, share_pieces};
use threads::{parts_for, share, share_rows, threads_for, threads_for_product};

/// Whether a device computes in host memory, so that these operations can use it.
pub(crate) fn is_flex(device: &Device) -> bool {
    *device == Device::flex()
}

/// Returns a tensor's host memory without a copy. Returns `None` for a tensor with autodiff, on another device, or of
/// another type than `f32`.
fn flex<const D: usize>(tensor: &Tensor<D>) -> Option<burn::backend::flex::FlexTensor> {
    let is_f32 = tensor.dtype() == DType::F32;
    let primitive = || tensor.clone().try_into_primitive::<burn::backend::Flex>().ok();
    is_f32.then(primitive).flatten()
}

/// Whether two tensors are known to have the same shape and the same bits. False if one is not `f32` on flex.
pub(crate) fn has_same_bits(a: &Tensor<3>, b: &Tensor<3>) -> bool {
    let (Some(flex_a), Some(flex_b)) = (flex(a), flex(b)) else {
        return false;
    };
    let (Some(numbers_a), Some(numbers_b)) = (flex_a.as_slice(), flex_b.as_slice()) else {
        return false;
    };
    let (numbers_a, numbers_b): (&[f32], &[f32]) = (numbers_a, numbers_b);
    let pairs = || numbers_a.iter().zip(numbers_b);
    a.dims() == b.dims() && pairs().all(|(a, b)| a.to_bits() == b.to_bits())
}

/// Calls `work` with the widest vector instructions of this CPU, regardless of the target that the program was
/// compiled for. The results are the same: multiplications and additions are never fused.
///
/// Only code that is inlined into `work` is vectorised this way: `work` must be `#[inline(always)]`, and so must the
/// functions that its hot loops call. A function or closure that is not inlined uses the instructions that the program
/// was compiled for, and so does the shim that the compiler generates for an `Fn` passed as `FnOnce`. So `work` is an
/// `Fn`, and values that it changes or consumes are passed as `input`.
#[inline(always)]
pub(crate) fn vectorised<I, R>(input: I, work: impl Fn(I) -> R) -> R {
    struct Work<I, F>(I, F);
    impl<I, R, F: Fn(I) -> R> pulp::WithSimd for Work<I, F> {
        type Output = R;

        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.1)(self.0)
        }
    }
    pulp::Arch::new().dispatch(Work(input, work))
}

/// The number of parallel sums, so that the compiler can vectorise them.
// Additions of floats may not be reordered, so the compiler cannot vectorise a single sum. Sixteen values fill one
// vector of AVX-512, or two of AVX.
const LANES: usize = 16;

/// Returns `Σ a·b` of two slices of the same length.
#[inline(always)]
fn sum_of_products(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b).sum();
    let mut sums = [0.0; LANES];
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}
