//! Gradients in host memory, as whole matrices or in factors.

use super::memory::numbers;
use crate::{distiller::Gradient, host::share_pieces};

/// With more rows, one matrix product is as fast as multiplying the factors on the fly.
const MOST_ROWS_IN_FACTORS: usize = 64;

/// The parameter values of one thread; a second thread is used from twice as many on.
pub(super) const NUMBERS_OF_A_THREAD: usize = 100_000;

/// Whether to keep a gradient `[a, b]` in factors. Then its norm needs the products of all pairs of rows, which must
/// be less work than computing the `a · b` values of the whole gradient.
fn stays_in_factors([_, rows, a]: [usize; 3], b: usize) -> bool {
    // The norm takes about rows²/2 pairs of a + b multiply-adds each, the whole gradient rows · a · b. The last
    // condition says that the norm is not more work.
    a * b > 0 && rows <= MOST_ROWS_IN_FACTORS && rows * (a + b) <= 2 * a * b
}

/// The gradient of one parameter, for all slots.
pub(super) enum HostGradient {
    /// `[slots, values]`
    Whole(Vec<f32>),
    /// `inputs` are `[slots, rows, a]` and `upstream` `[slots, rows, b]`.
    Product { inputs: Vec<f32>, upstream: Vec<f32>, a: usize, b: usize },
}

impl HostGradient {
    pub(super) fn new(gradient: Gradient) -> Self {
        match gradient {
            Gradient::Product { inputs, upstream }
                if stays_in_factors(inputs.dims(), upstream.dims()[2]) =>
            {
                let (a, b) = (inputs.dims()[2], upstream.dims()[2]);
                Self::Product { inputs: numbers(inputs), upstream: numbers(upstream), a, b }
            }
            gradient => Self::Whole(numbers(gradient.into_whole())),
        }
    }

    /// Returns the gradient of one of `slots` slots.
    pub(super) fn of(&self, slot: usize, slots: usize) -> SlotGradient<'_> {
        let part = |all| part(all, slot, slots);
        match self {
            Self::Whole(all) => SlotGradient::Whole(part(all)),
            &Self::Product { ref inputs, ref upstream, a, b } => {
                SlotGradient::Product { inputs: part(inputs), upstream: part(upstream), a, b }
            }
        }
    }
}

/// Returns the part of `all` that belongs to one of `slots` slots.
fn part(all: &[f32], slot: usize, slots: usize) -> &[f32] {
    let width = all.len() / slots;
    &all[slot * width..][..width]
}

/// The gradient of one parameter of one slot.
#[derive(Clone, Copy)]
pub(super) enum SlotGradient<'a> {
    Whole(&'a [f32]),
    /// `inputs` are `[rows, a]` and `upstream` `[rows, b]`.
    Product {
        inputs: &'a [f32],
        upstream: &'a [f32],
        a: usize,
        b: usize,
    },
}

impl SlotGradient<'_> {
    /// The number of values.
    pub(super) fn len(self) -> usize {
        match self {
            Self::Whole(numbers) => numbers.len(),
            Self::Product { a, b, .. } => a * b,
        }
    }

    /// The number of values that are computed together: one row of the matrix.
    fn unit(self) -> usize {
        match self {
            Self::Whole(_) => 1,
            Self::Product { b, .. } => b,
        }
    }

    /// The multiply-adds of [`square_norm`](Self::square_norm).
    pub(super) fn work_of_norm(self) -> usize {
        match self {
            Self::Whole(numbers) => numbers.len(),
            Self::Product { inputs, upstream, a, .. } => {
                (inputs.len() / a + 1) * (inputs.len() + upstream.len()) / 2
            }
        }
    }

    /// Returns the sum of squares of all values.
    #[inline(always)]
    pub(super) fn square_norm(self) -> f64 {
        match self {
            Self::Whole(numbers) => square_norm(numbers),
            // ‖Σᵢ xᵢuᵢᵀ‖² = Σᵢⱼ (xᵢ·xⱼ)(uᵢ·uⱼ). Rows may cancel, so the sums are in f64.
            Self::Product { inputs, upstream, a, b } => {
                let rows = inputs.len() / a;
                let mut sum = 0.0;
                for i in 0..rows {
                    for j in 0..=i {
                        let x = dot(&inputs[i * a..][..a], &inputs[j * a..][..a]);
                        let u = dot(&upstream[i * b..][..b], &upstream[j * b..][..b]);
                        sum += if i == j { x * u } else { 2.0 * x * u };
                    }
                }
                // If rows cancel, rounding may leave a sum below 0.
                // Not `max`, which would turn NaN into 0.
                if sum < 0.0 { 0.0 } else { sum }
            }
        }
    }

    /// Calls `rule` on all values of the gradient, piece by piece and on several threads, with the same pieces of
    /// `others`, which have the same length as the gradient.
    pub(super) fn zip<const K: usize>(
        self,
        numbers_of_a_thread: usize,
        others: [&mut [f32]; K],
        rule: impl Fn([&mut [f32]; K], &[f32]) + Sync,
    ) {
        let (len, unit) = (self.len(), self.unit());
        let pieces = |size: usize| {
            // A factored gradient is multiplied out row by row, so pieces must hold whole rows.
            let size = size.next_multiple_of(unit);
            let mut others = others.map(|numbers| numbers.chunks_mut(size));
            let cut = move |from| (from, others.each_mut().map(|o| o.next().unwrap_or_default()));
            (0..len).step_by(size).map(cut)
        };
        share_pieces(
            len,
            numbers_of_a_thread,
            pieces,
            #[inline(always)]
            |(from, mut others)| match self {
                Self::Whole(numbers) => {
                    let to = others.first().map_or(from, |other| from + other.len());
                    rule(others, &numbers[from..to]);
                }
                Self::Product { inputs, upstream, a, b } => {
                    let rows = others.first().map_or(0, |other| other.len() / b);
                    let mut numbers = vec![0.0; b];
                    // One row of the gradient at a time: it is used while it is in the cache, and the whole gradient
                    // never goes to memory.
                    for row in 0..rows {
                        row_of_product(inputs, upstream, a, from / b + row, &mut numbers);
                        let others = others.each_mut().map(|other| &mut other[row * b..][..b]);
                        rule(others, &numbers);
                    }
                }
            },
        );
    }
}

/// Computes one row of `inputsᵀ · upstream`.
#[inline(always)]
fn row_of_product(inputs: &[f32], upstream: &[f32], a: usize, row: usize, product: &mut [f32]) {
    let b = product.len();
    let weight = |at: usize| inputs[at * a + row];
    product.fill(0.0);
    // Four rows at a time, so that the sums are read and written a quarter as often.
    let fours = upstream.chunks_exact(4 * b);
    let (rest, first_of_rest) = (fours.remainder(), 4 * fours.len());
    for (four, u) in fours.enumerate() {
        let [w0, w1, w2, w3] = std::array::from_fn(|i| weight(4 * four + i));
        let (u0, u) = u.split_at(b);
        let (u1, u) = u.split_at(b);
        let (u2, u3) = u.split_at(b);
        for ((((sum, u0), u1), u2), u3) in product.iter_mut().zip(u0).zip(u1).zip(u2).zip(u3) {
            *sum += w0 * u0 + w1 * u1 + (w2 * u2 + w3 * u3);
        }
    }
    for (at, u) in rest.chunks_exact(b).enumerate() {
        let w = weight(first_of_rest + at);
        for (sum, u) in product.iter_mut().zip(u) {
            *sum += w * u;
        }
    }
}

/// Returns `Σ a·b` of two slices of the same length.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    // The compiler may not reorder the additions of a single sum. Independent sums are vectorised.
    const LANES: usize = 16;
    let mut sums = [0.0f64; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_chunks.remainder().iter().zip(b_chunks.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] += f64::from(a[lane]) * f64::from(b[lane]);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[inline(always)]
fn square_norm(numbers: &[f32]) -> f64 {
    const LANES: usize = 16;
    // Short sums in f32, which the compiler can vectorise; their total in f64.
    let mut total = 0.0;
    for chunk in numbers.chunks(4096) {
        let mut sums = [0.0f32; LANES];
        for lanes in chunk.chunks(LANES) {
            for (g, sum) in lanes.iter().zip(&mut sums) {
                *sum += g * g;
            }
        }
        total += f64::from(sums.iter().sum::<f32>());
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|i| (i as f32 * scale).sin()).collect()
    }

    /// Returns the values of `inputsᵀ · upstream` in f64.
    fn product(inputs: &[f32], upstream: &[f32], a: usize, b: usize) -> Vec<f64> {
        let rows = inputs.len() / a;
        let term = |r: usize, i, j| f64::from(inputs[r * a + i]) * f64::from(upstream[r * b + j]);
        let number = |at: usize| (0..rows).map(|r| term(r, at / b, at % b)).sum();
        (0..a * b).map(number).collect()
    }

    /// Every value is paired with its counterpart, in one piece and in many, including a shorter last piece.
    #[test]
    fn pieces_are_those_of_the_whole() {
        for (rows, a, b) in [(1, 1, 1), (3, 7, 5), (4, 13, 3), (6, 29, 17), (9, 2, 40)] {
            let (inputs, upstream) = (wave(rows * a, 0.7), wave(rows * b, 1.9));
            let exact = product(&inputs, &upstream, a, b);
            let whole: Vec<f32> = exact.iter().map(|&number| number as f32).collect();
            let factors = SlotGradient::Product { inputs: &inputs, upstream: &upstream, a, b };
            for gradient in [factors, SlotGradient::Whole(&whole)] {
                for numbers_of_a_thread in [1, 20, usize::MAX] {
                    let (mut places, mut seen) = (wave(a * b, 0.1), vec![0.0; a * b]);
                    let before = places.clone();
                    gradient.zip(numbers_of_a_thread, [&mut places, &mut seen], |[p, s], g| {
                        for ((p, s), g) in p.iter_mut().zip(s).zip(g) {
                            (*p, *s) = (-*p, *s + g);
                        }
                    });
                    assert!(before.iter().zip(&places).all(|(before, now)| *now == -before));
                    let errors = seen.iter().zip(&exact).map(|(s, e)| (f64::from(*s) - e).abs());
                    assert!(errors.fold(0.0, f64::max) < 1e-5, "{rows} {a} {b}: {seen:?}");
                }
            }
        }
    }

    /// The norm of rows that almost cancel, which sums in f32 would get wrong.
    #[test]
    fn a_norm_survives_rows_that_cancel() {
        let (a, b) = (31, 57);
        for left in [1.0f32, 1e-2, 1e-4] {
            let (one, u) = (wave(a, 0.7), wave(b, 1.9));
            let inputs = [one.clone(), one].concat();
            let upstream = [u.clone(), u.iter().map(|u| u * (left - 1.0)).collect()].concat();
            let exact: f64 = product(&inputs, &upstream, a, b).iter().map(|g| g * g).sum();
            let factors = SlotGradient::Product { inputs: &inputs, upstream: &upstream, a, b };
            let got = factors.square_norm();
            assert!((got - exact).abs() < 1e-5 * exact, "{left}: {got:e} {exact:e}");
        }
    }

    /// The sums of these rows, of 1, 2 and −3 times the same input, are rounded to less than 0.
    #[test]
    fn the_norm_of_rows_that_cancel_entirely_is_zero() {
        let (inputs, upstream) = ([0.4, 0.9].repeat(3), [1.0, 2.0, -3.0]);
        let factors = SlotGradient::Product { inputs: &inputs, upstream: &upstream, a: 2, b: 1 };
        assert_eq!(factors.square_norm(), 0.0);
    }

    #[test]
    fn factors_are_kept_where_they_are_less_work() {
        assert!(stays_in_factors([1, 16, 576], 384));
        assert!(stays_in_factors([1, 64, 576], 64));
        assert!(!stays_in_factors([1, 65, 576], 384), "many rows");
        assert!(!stays_in_factors([1, 64, 4], 37), "a small matrix");
        // rows · 120 and 2 · 2000.
        assert!(stays_in_factors([1, 33, 100], 20) && !stays_in_factors([1, 34, 100], 20));
        assert!(!stays_in_factors([1, 1, 0], 5) && !stays_in_factors([1, 1, 5], 0), "nothing");
    }
}
