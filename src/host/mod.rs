//! What a decode step does most, on a device whose memory is the host's: a few operations in one pass each, with vector
//! instructions and threads. Everywhere else, and for shapes and types that they are not made for, burn's own operations do
//! the same.

mod exp;
#[cfg(all(feature = "flex", feature = "llama"))]
mod gate;
#[cfg(all(feature = "flex", feature = "llama"))]
mod norm;
#[cfg(feature = "flex")]
mod pick;
#[cfg(feature = "flex")]
mod product;
#[cfg(all(feature = "flex", feature = "llama"))]
mod rotate;
#[cfg(feature = "flex")]
mod slots;

#[cfg(any(feature = "flex", feature = "llama"))]
use burn::tensor::DType;
use burn::tensor::{Int, Tensor};
pub(crate) use exp::exp_of_negative;

/// `x·Wᵀ`, with `x` `[rows, in]` and `W` `[out, in]`, the layout of checkpoints.
pub(crate) fn times_transposed(x: Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(product) = product::times_transposed(&x, weight) {
        return product;
    }
    x.matmul(weight.clone().transpose())
}

/// `x·W` slot by slot, with `x` `[slots, rows, in]` and `W` `[slots, in, out]`.
pub(crate) fn times_each(x: Tensor<3>, weight: &Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if let Some(product) = slots::times(&x, weight) {
        return product;
    }
    x.matmul(weight.clone())
}

/// `x·Wᵀ` slot by slot, with `x` `[slots, rows, in]` and `W` `[slots, out, in]`.
pub(crate) fn times_each_transposed(x: Tensor<3>, weight: &Tensor<3>) -> Tensor<3> {
    #[cfg(feature = "flex")]
    if let Some(product) = slots::times_transposed(&x, weight) {
        return product;
    }
    x.matmul(weight.clone().swap_dims(1, 2))
}

/// `x[row] · W[picked[row, i]]`, with `x` `[rows, in]`, `W` `[out, in]` and `picked` `[rows, n]` below `out`: `[rows, n]`.
pub(crate) fn times_rows_at(
    x: Tensor<2>,
    weight: &Tensor<2>,
    picked: &Tensor<2, Int>,
) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(product) = pick::times_rows_at(&x, weight, picked) {
        return product;
    }
    let ([rows, n], width) = (picked.dims(), x.dims()[1]);
    let picked = weight.clone().select(0, picked.clone().reshape([rows * n]));
    picked.reshape([rows, n, width]).matmul(x.reshape([rows, width, 1])).reshape([rows, n])
}

/// `silu(left half) ⊙ right half` of each row of `[rows, 2·n]`: `[rows, n]`.
#[cfg(feature = "llama")]
pub(crate) fn silu_gated(both: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if let Some(gated) = gate::silu_gated(&both) {
        return gated;
    }
    let half = both.dims()[1] / 2;
    burn::tensor::activation::silu(both.clone().narrow(1, 0, half)) * both.narrow(1, half, half)
}

/// `x / √(mean(x²) + ε) · weight` over the last dimension. The mean is taken in `f32` whatever the element type: squares overflow
/// `f16`.
#[cfg(feature = "llama")]
pub(crate) fn rms_norm<const D: usize>(x: Tensor<D>, weight: &Tensor<1>, eps: f32) -> Tensor<D> {
    #[cfg(feature = "flex")]
    if let Some(normed) = norm::rms_norm(&x, weight, eps) {
        return normed;
    }
    let dtype = x.dtype();
    let x = if dtype == DType::F32 { x } else { x.cast(DType::F32) };
    let mean_square = x.clone().square().mean_dim(D - 1);
    let normed = x / mean_square.add_scalar(eps).sqrt();
    let normed = if dtype == DType::F32 { normed } else { normed.cast(dtype) };
    normed * weight.clone().unsqueeze()
}

/// Turns each pair of `x`, `[rows, seq, heads, width]`, a dimension and the one half a head further on, by an angle whose cosine
/// and sine are given `[rows, seq, 1, width]`, twice each.
#[cfg(feature = "llama")]
pub(crate) fn rotate_halves(x: Tensor<4>, cos: &Tensor<4>, sin: &Tensor<4>) -> Tensor<4> {
    #[cfg(feature = "flex")]
    if let Some(turned) = rotate::rotate_halves(&x, cos, sin) {
        return turned;
    }
    let half = x.dims()[3] / 2;
    let first = x.clone().narrow(3, 0, half);
    let second = x.clone().narrow(3, half, half);
    let turned = Tensor::cat(vec![second.neg(), first], 3);
    x * cos.clone() + turned * sin.clone()
}

/// A tensor's numbers where they are. `None` for a tensor with autodiff, on another device, or of another type than `f32`.
#[cfg(feature = "flex")]
fn flex<const D: usize>(tensor: &Tensor<D>) -> Option<burn::backend::flex::FlexTensor> {
    let is_f32 = tensor.dtype() == DType::F32;
    let primitive = || tensor.clone().try_into_primitive::<burn::backend::Flex>().ok();
    is_f32.then(primitive).flatten()
}

/// Numbers as a tensor.
#[cfg(feature = "flex")]
fn tensor<const D: usize>(
    numbers: Vec<f32>,
    shape: [usize; D],
    device: &burn::tensor::Device,
) -> Tensor<D> {
    Tensor::from_data(burn::tensor::TensorData::new(numbers, shape), (device, DType::F32))
}

/// Does `work` with the widest vectors that this CPU has, whatever the program was compiled for; without the feature `flex`
/// with those that it was compiled for. The numbers are the same: products and sums are never contracted.
///
/// Only what is inlined into `work` profits: it must be `#[inline(always)]`, and so must what its hot loops call. A function or a
/// closure that is not inlined keeps the instructions that the program was compiled for, and so does the shim by which the
/// compiler calls an `Fn` that was asked for as `FnOnce`. Hence `Fn`, and what `work` changes or uses up comes as `input`.
#[inline(always)]
pub(crate) fn vectorised<I, R>(input: I, work: impl Fn(I) -> R) -> R {
    #[cfg(feature = "flex")]
    {
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
    #[cfg(not(feature = "flex"))]
    work(input)
}

/// Does `work` for every part, on up to so many threads. The caller's is one of them: nothing waits until another one has woken
/// up.
#[cfg(feature = "flex")]
fn share<P: Send>(threads: usize, parts: impl Iterator<Item = P> + Send, work: impl Fn(P) + Sync) {
    use std::sync::{Mutex, PoisonError};

    let queue = Mutex::new(parts);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_on = || {
        while let Some(part) = next() {
            work(part);
        }
    };
    rayon::in_place_scope(|scope| {
        (1..threads).for_each(|_| scope.spawn(|_| work_on()));
        work_on();
    });
}

/// Parts per thread, so that one which is held up does not hold up all.
#[cfg(feature = "flex")]
const PARTS_PER_THREAD: usize = 4;

/// Threads for so much work, of which `of_a_thread` is worth one.
#[cfg(feature = "flex")]
fn threads_for(work: usize, of_a_thread: usize) -> usize {
    (work / of_a_thread).clamp(1, rayon::current_num_threads())
}

/// Parts that so many threads share: one for one thread, some for each of several.
#[cfg(feature = "flex")]
fn parts_for(threads: usize) -> usize {
    if threads == 1 { 1 } else { threads * PARTS_PER_THREAD }
}

/// Numbers that are worth a second thread where each takes a few instructions.
#[cfg(feature = "flex")]
const NUMBERS_OF_A_THREAD: usize = 16_384;

/// Does `work` for all pieces of `count` numbers, of which so many are worth a thread. `pieces` cuts them into pieces of the
/// length that it is given. `work` must be `#[inline(always)]`: see [`vectorised`].
#[cfg(feature = "flex")]
pub(crate) fn share_pieces<P: Send, I: Iterator<Item = P> + Send>(
    count: usize,
    numbers_of_a_thread: usize,
    pieces: impl FnOnce(usize) -> I,
    work: impl Fn(P) + Sync,
) {
    let threads = threads_for(count, numbers_of_a_thread);
    share(threads, pieces(count.div_ceil(parts_for(threads)).max(1)), |piece| {
        #[allow(clippy::redundant_closure, reason = "behind a reference it would not be inlined")]
        vectorised(
            piece,
            #[inline(always)]
            |piece| work(piece),
        );
    });
}

/// Does `work` for all rows of `from`, each with its row of `to`, in parts of several rows. A row looks at about so many
/// numbers. `work` must be `#[inline(always)]`: see [`vectorised`].
#[cfg(feature = "flex")]
fn share_rows<T: Sync>(
    from: &[T],
    from_width: usize,
    to: &mut [f32],
    to_width: usize,
    numbers_of_a_row: usize,
    work: impl Fn(usize, &[T], &mut [f32]) + Sync,
) {
    let rows = from.len() / from_width;
    let threads = threads_for(rows * numbers_of_a_row, NUMBERS_OF_A_THREAD);
    let rows_of_a_part = rows.div_ceil(threads);
    let parts = from
        .chunks(rows_of_a_part * from_width)
        .zip(to.chunks_mut(rows_of_a_part * to_width))
        .enumerate();
    share(threads, parts, |(part, from_and_to)| {
        vectorised(
            from_and_to,
            #[inline(always)]
            |(from, to): (&[T], &mut [f32])| {
                let rows = from.chunks(from_width).zip(to.chunks_mut(to_width));
                for (at, (from, to)) in rows.enumerate() {
                    work(part * rows_of_a_part + at, from, to);
                }
            },
        );
    });
}

/// Sums side by side, so that they can be done in parallel.
#[cfg(feature = "flex")]
const LANES: usize = 16;

/// `Σ a·b` of two slices of one length.
#[cfg(feature = "flex")]
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

#[cfg(feature = "flex")]
#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    /// Numbers between −scale and scale.
    pub(super) fn wave<const D: usize>(shape: [usize; D], step: f32, scale: f32) -> Tensor<D> {
        let count: usize = shape.iter().product();
        let numbers: Vec<f32> = (0..count).map(|i| (i as f32 * step).sin() * scale).collect();
        Tensor::from_data(TensorData::new(numbers, shape), &Device::flex())
    }

    pub(super) fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
        tensor.into_data().try_into_vec().unwrap()
    }

    /// The same with burn's operations: tensors with autodiff go that way.
    fn assert_same<const D: usize>(here: Tensor<D>, burns: Tensor<D>) {
        assert_eq!(here.dims(), burns.dims());
        for (at, (here, burns)) in numbers(here).into_iter().zip(numbers(burns.inner())).enumerate()
        {
            assert!((here - burns).abs() <= 2e-6 * burns.abs().max(1.0), "{at}: {here} {burns}");
        }
    }

    #[cfg(feature = "llama")]
    #[test]
    fn each_is_what_burn_computes() {
        for rows in [1, 3, 64] {
            let both = wave([rows, 2 * 770], 0.37, 30.0);
            assert!(gate::silu_gated(&both).is_some());
            assert_same(silu_gated(both.clone()), silu_gated(both.autodiff()));

            let (x, weight) = (wave([rows, 1, 577], 0.91, 5.0), wave([577], 0.11, 2.0));
            assert!(norm::rms_norm(&x, &weight, 1e-5).is_some());
            assert_same(
                rms_norm(x.clone(), &weight, 1e-5),
                rms_norm(x.autodiff(), &weight.autodiff(), 1e-5),
            );

            let heads = wave([rows, 2, 5, 64], 0.73, 3.0);
            let (cos, sin) = (wave([rows, 2, 1, 64], 0.2, 1.0), wave([rows, 2, 1, 64], 0.3, 1.0));
            let view = heads.narrow(2, 1, 3);
            assert!(rotate::rotate_halves(&view, &cos, &sin).is_some());
            assert_same(
                rotate_halves(view.clone(), &cos, &sin),
                rotate_halves(view.autodiff(), &cos.autodiff(), &sin.autodiff()),
            );
        }
    }

    #[test]
    fn picked_rows_are_those_that_burn_picks() {
        let (x, weight) = (wave([5, 37], 0.91, 1.0), wave([101, 37], 0.37, 1.0));
        let tokens: Vec<i32> = (0..5 * 40).map(|i| i * 7919 % 101).collect();
        let tokens = TensorData::new(tokens, [5, 40]);
        let picked = Tensor::<2, Int>::from_data(tokens, &Device::flex());
        assert!(pick::times_rows_at(&x, &weight, &picked).is_some());
        assert!(pick::times_rows_at(&x.clone().autodiff(), &weight, &picked).is_none());
        let whole = x.clone().matmul(weight.clone().transpose());
        assert_same(times_rows_at(x, &weight, &picked), whole.gather(1, picked.clone()).autodiff());
        let short = weight.narrow(0, 0, 100);
        assert!(pick::times_rows_at(&wave([5, 37], 0.9, 1.0), &short, &picked).is_none());
    }

    /// The negative control of the test above: tensors with autodiff, of another type, and none at all are burn's.
    #[cfg(feature = "llama")]
    #[test]
    fn other_work_is_left_to_burn() {
        let both = wave([2, 8], 0.37, 1.0);
        assert!(gate::silu_gated(&both.clone().autodiff()).is_none());
        assert!(gate::silu_gated(&both.clone().cast(DType::F16)).is_none());
        assert!(norm::rms_norm(&both.clone().autodiff(), &wave([8], 0.1, 1.0), 0.0).is_none());
        let half = wave([8], 0.1, 1.0).cast(DType::F16);
        assert!(norm::rms_norm(&both, &half, 0.0).is_none());
    }

    #[cfg(feature = "llama")]
    #[test]
    fn extreme_gates_are_what_they_should_be() {
        let both = Tensor::<2>::from_data(
            [[-1e30f32, -100.0, 100.0, 1e30, 1.0, 2.0, 3.0, 4.0]],
            &Device::flex(),
        );
        assert_eq!(numbers(silu_gated(both)), [0.0, 0.0, 300.0, 4e30]);
    }
}
