//! Rotary position embedding.

use burn::tensor::Tensor;

use super::{flex, share_rows};
use crate::tensor::from_f32;

pub(crate) fn rotate_halves(x: &Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Option<Tensor<4>> {
    let [rows, seq, heads, width] = x.dims();
    let angles = [rows, seq, 1, width];
    let fits = cos.dims() == angles && sin.dims() == angles && width % 2 == 0;
    if !fits || rows * seq * heads * width == 0 {
        return None;
    }
    let (numbers, cos, sin) = (flex(x)?.to_contiguous(), flex(cos)?, flex(sin)?);
    let (cos, sin) = (cos.as_slice::<f32>()?, sin.as_slice::<f32>()?);
    let mut turned = vec![0.0; rows * seq * heads * width];
    let all_heads = heads * width;
    let half = width / 2;
    // A row here is a position with all its heads, because they share their angles.
    share_rows(
        numbers.as_slice::<f32>()?,
        all_heads,
        &mut turned,
        all_heads,
        all_heads,
        #[inline(always)]
        |position, x, turned| {
            // Rotary angles repeat, but the second half is read too, so that this is burn's formula for any input.
            let (cos, cos_second) = cos[position * width..][..width].split_at(half);
            let (sin, sin_second) = sin[position * width..][..width].split_at(half);
            for (x, turned) in x.chunks_exact(width).zip(turned.chunks_exact_mut(width)) {
                let (first, second) = x.split_at(half);
                let (turned_first, turned_second) = turned.split_at_mut(half);
                for i in 0..half {
                    turned_first[i] = first[i] * cos[i] - second[i] * sin[i];
                    turned_second[i] = second[i] * cos_second[i] + first[i] * sin_second[i];
                }
            }
        },
    );
    Some(from_f32(turned, [rows, seq, heads, width], &x.device()))
}
