//! The host operations on the flex backend.

#[cfg(feature = "llama")]
mod gate;
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

/// Calls `work` for every part, on up to `threads` threads. The caller's thread is one of them, so work starts before
/// another thread has woken up.
fn share<P: Send>(threads: usize, parts: impl Iterator<Item = P> + Send, work: impl Fn(P) + Sync) {
    use std::sync::{Mutex, PoisonError};

    // Threads take the next part from one queue, so a slow thread takes fewer. The lock is held only to take a part.
    let queue = Mutex::new(parts);
    // If `next` has panicked on another thread, the scope reports that panic, so the poisoned lock need not.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_on = || {
        while let Some(part) = next() {
            work(part);
        }
    };
    // `rayon::scope` would run this closure in rayon's pool and let the caller sleep until a thread has woken up,
    // which takes about 50 µs (docs/design/decoding-on-the-host.md). Here the caller takes the first part at once.
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work_on());
        }
        work_on();
    });
}

/// The number of parts per thread: if a thread is delayed, the others take over its parts.
const PARTS_PER_THREAD: usize = 4;

/// Returns the number of threads for an amount of work, where `of_a_thread` is worth one thread.
fn threads_for(work: usize, of_a_thread: usize) -> usize {
    (work / of_a_thread).clamp(1, rayon::current_num_threads())
}

/// Returns the number of parts to split the work into: one for a single thread, several per thread for more.
fn parts_for(threads: usize) -> usize {
    if threads == 1 { 1 } else { threads * PARTS_PER_THREAD }
}

/// The values of one thread, at a few instructions per value; a second thread is used from twice as many on.
const NUMBERS_OF_A_THREAD: usize = 16_384;

/// Calls `work` for all pieces of `count` values, where `numbers_of_a_thread` values are worth one thread. `pieces`
/// splits the values into pieces of the given length. `work` must be `#[inline(always)]`: see [`vectorised`].
pub(crate) fn share_pieces<P: Send, I: Iterator<Item = P> + Send>(
    count: usize,
    numbers_of_a_thread: usize,
    pieces: impl FnOnce(usize) -> I,
    work: impl Fn(P) + Sync,
) {
    let threads = threads_for(count, numbers_of_a_thread);
    share(threads, pieces(count.div_ceil(parts_for(threads)).max(1)), |piece| {
        #[allow(
            clippy::redundant_closure,
            reason = "a closure passed by reference is not inlined"
        )]
        vectorised(
            piece,
            #[inline(always)]
            |piece| work(piece),
        );
    });
}

/// Calls `work` for all rows of `from`, each with its row of `to`, in parts of several rows. `numbers_of_a_row` is
/// about how many values a row reads. `work` must be `#[inline(always)]`: see [`vectorised`].
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
