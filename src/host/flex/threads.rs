//! Work of several threads.
//!
//! A decode step consists of hundreds of products, most of them shorter than a millisecond, with short work of one
//! thread in between. A thread that sleeps in between takes about 50 µs to wake up, so the workers stay awake for the
//! length of a pass: see [`Awake`].

use std::{
    cell::Cell,
    hint,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{
            AtomicUsize,
            Ordering::{AcqRel, Acquire, Release},
        },
    },
    thread,
};

use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

use super::vectorised;
use crate::host::WORK_OF_A_THREAD;

/// The workers that help the calling thread, or `None` if there is only one thread. One fewer than rayon's own pool has,
/// because the caller works too.
fn pool() -> Option<&'static ThreadPool> {
    static POOL: OnceLock<Option<ThreadPool>> = OnceLock::new();
    let pool = POOL.get_or_init(|| {
        let workers = rayon::current_num_threads() - 1;
        let name = |worker| format!("esamp-{worker}");
        let pool = || ThreadPoolBuilder::new().num_threads(workers).thread_name(name).build().ok();
        (workers > 0).then(pool).flatten()
    });
    pool.as_ref()
}

fn workers() -> usize {
    pool().map_or(0, ThreadPool::current_num_threads)
}

/// Keeps the workers awake until it is dropped.
#[derive(Debug)]
pub(crate) struct Awake(());

/// How many [`Awake`] there are.
static AWAKE: AtomicUsize = AtomicUsize::new(0);

impl Awake {
    pub(crate) fn new() -> Self {
        if AWAKE.fetch_add(1, AcqRel) == 0
            && let Some(pool) = pool()
        {
            pool.spawn_broadcast(|_| stay_awake());
        }
        Self(())
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        AWAKE.fetch_sub(1, AcqRel);
    }
}

/// Runs the work of the pool until no [`Awake`] is left.
fn stay_awake() {
    /// Looks for work before other threads of the system may have this core.
    const LOOKS: usize = 500;
    while AWAKE.load(Acquire) > 0 {
        for _ in 0..LOOKS {
            if rayon::yield_now() == Some(Yield::Executed) || AWAKE.load(Acquire) == 0 {
                break;
            }
            hint::spin_loop();
        }
        thread::yield_now();
    }
}

/// Calls `work` for every part, on up to `threads` threads. The caller's thread is one of them, so work starts before
/// another thread has woken up.
pub(super) fn share<P: Send>(
    threads: usize,
    parts: impl Iterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    // Threads take the next part from one queue, so a slow thread takes fewer. The lock is held only to take a part.
    let queue = Mutex::new(parts);
    // If `next` has panicked on another thread, the scope reports that panic, so the poisoned lock need not.
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_on = || {
        while let Some(part) = next() {
            work(part);
        }
    };
    let Some(pool) = pool().filter(|_| threads > 1) else {
        return work_on();
    };
    let at_work = AtomicUsize::new(threads - 1);
    // The pool's `scope` would run this closure on a worker and let the caller sleep. Here the caller takes the first
    // part at once.
    pool.in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| {
                work_on();
                at_work.fetch_sub(1, Release);
            });
        }
        work_on();
        // The scope lets the caller sleep until all workers are done. They are done soon.
        for _ in 0..SPINS {
            if at_work.load(Acquire) == 0 {
                break;
            }
            hint::spin_loop();
        }
    });
}

/// How long the caller waits awake for the workers' last parts: some 100 µs.
const SPINS: usize = 5_000;

/// The number of parts per thread: if a thread is delayed, the others take over its parts.
const PARTS_PER_THREAD: usize = 4;

/// Returns the number of threads for a product of `work` multiply-adds.
pub(super) fn threads_for_product(work: usize) -> usize {
    /// What is worth a worker that is awake.
    const AWAKE_WORK_OF_A_THREAD: usize = 50_000;
    let is_awake = AWAKE.load(Acquire) > 0;
    threads_for(work, if is_awake { AWAKE_WORK_OF_A_THREAD } else { WORK_OF_A_THREAD })
}

/// Returns the number of threads for an amount of work, where `of_a_thread` is worth one thread.
pub(super) fn threads_for(work: usize, of_a_thread: usize) -> usize {
    // The other threads have parts of their own.
    let most = if HAS_A_PART.get() { 1 } else { 1 + workers() };
    (work / of_a_thread).clamp(1, most)
}

thread_local! {
    /// Whether this thread works on a part of [`share_each`].
    static HAS_A_PART: Cell<bool> = const { Cell::new(false) };
}

/// Calls `work` for every part, on several threads if they are worth it: each part on one thread, or all of them on the
/// caller's thread, where a part may use several. `work_of_a_thread` is worth a thread.
pub(crate) fn share_each<P: Send>(
    work_of_a_part: usize,
    work_of_a_thread: usize,
    parts: impl ExactSizeIterator<Item = P> + Send,
    work: impl Fn(P) + Sync,
) {
    let count = parts.len();
    let threads = threads_for(work_of_a_part.saturating_mul(count), work_of_a_thread).min(count);
    // Fewer large parts than threads: more threads work if each part uses all of them.
    if threads < 2 || threads_for(work_of_a_part, work_of_a_thread) > count {
        return parts.for_each(work);
    }
    /// Ends the part, also after a panic.
    struct Part;
    impl Drop for Part {
        fn drop(&mut self) {
            HAS_A_PART.set(false);
        }
    }
    share(threads, parts, |part| {
        HAS_A_PART.set(true);
        let _part = Part;
        work(part);
    });
}

/// Returns the number of parts to split the work into: one for a single thread, several per thread for more.
pub(super) fn parts_for(threads: usize) -> usize {
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
pub(super) fn share_rows<T: Sync>(
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
