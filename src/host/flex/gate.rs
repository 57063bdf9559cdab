//! The gate of a SwiGLU layer.

use burn::tensor::Tensor;

use super::{flex, share_rows};
use crate::{host::exp_of_negative, tensor::from_f32};

pub(crate) fn silu_gated(both: &Tensor<2>) -> Option<Tensor<2>> {
    let [rows, width] = both.dims();
    let half = width / 2;
    if rows * half == 0 {
        return None;
    }
    let numbers = flex(both)?.to_contiguous();
    let mut gated = vec![0.0; rows * half];
    share_rows(
        numbers.as_slice::<f32>()?,
        width,
        &mut gated,
        half,
        width,
        #[inline(always)]
        |_, both, gated| {
            let (gate, up) = both.split_at(half);
            for ((gated, gate), up) in gated.iter_mut().zip(gate).zip(up) {
                // Computes σ(x) from e^−|x|, which does not overflow.
                let e = exp_of_negative(-gate.abs());
                // σ(x) is 1 / (1 + e^−x) for x ≥ 0, and the same eˣ / (1 + eˣ) below. For NaN, e is 0, but the gate is
                // itself a factor, so the result is NaN.
                let above = if *gate < 0.0 { e } else { 1.0 };
                *gated = gate * (above / (1.0 + e)) * up;
            }
        },
    );
    Some(from_f32(gated, [rows, half], &both.device()))
}
