//! The host operations without flex: every function leaves the work to burn.

use burn::tensor::{Device, Int, Tensor};

#[cfg(feature = "llama")]
use super::packed::PackedMatrix;

pub(crate) fn is_flex(_device: &Device) -> bool {
    false
}

pub(crate) fn times_transposed(_x: &Tensor<2>, _weight: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

pub(crate) fn times_each(_x: &Tensor<3>, _weight: &Tensor<3>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn times_each_transposed(_x: &Tensor<3>, _weight: &Tensor<3>) -> Option<Tensor<3>> {
    None
}

pub(crate) fn times_rows_at(
    _x: &Tensor<2>,
    _weight: &Tensor<2>,
    _picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn packed_times(_x: &Tensor<2>, _matrix: &PackedMatrix) -> Option<Tensor<2>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn packed_times_rows_at(
    _x: &Tensor<2>,
    _matrix: &PackedMatrix,
    _picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn packed_rows(_matrix: &PackedMatrix, _picked: &Tensor<1, Int>) -> Option<Tensor<2>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn silu_gated(_both: &Tensor<2>) -> Option<Tensor<2>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn rms_norm<const D: usize>(
    _x: &Tensor<D>,
    _weight: &Tensor<1>,
    _eps: f32,
) -> Option<Tensor<D>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn attend(_queries: &Tensor<4>, _seen: &super::Seen) -> Option<Tensor<4>> {
    None
}

#[cfg(feature = "llama")]
pub(crate) fn rotate_halves(
    _x: &Tensor<4>,
    _cos: &Tensor<4>,
    _sin: &Tensor<4>,
) -> Option<Tensor<4>> {
    None
}

/// Calls `work` with the instructions that the program was compiled for.
#[inline(always)]
pub(crate) fn vectorised<I, R>(input: I, work: impl Fn(I) -> R) -> R {
    work(input)
}

/// There are no workers.
#[derive(Debug)]
pub(crate) struct Awake(());

impl Awake {
    pub(crate) fn new() -> Self {
        Self(())
    }
}

/// Calls `work` for every part, on the caller's thread.
pub(crate) fn share_each<P: Send>(
    _work_of_a_part: usize,
    _work_of_a_thread: usize,
    parts: impl ExactSizeIterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    parts.for_each(work);
}

pub(crate) fn has_same_bits(_a: &Tensor<3>, _b: &Tensor<3>) -> bool {
    false
}

/// Calls `work` for `count` values as one piece, on the caller's thread.
pub(crate) fn share_pieces<P: Send, I: Iterator<Item = P> + Send>(
    count: usize,
    _numbers_of_a_thread: usize,
    pieces: impl FnOnce(usize) -> I,
    work: impl Fn(P) + Sync,
) {
    for piece in pieces(count.max(1)) {
        work(piece);
    }
}
