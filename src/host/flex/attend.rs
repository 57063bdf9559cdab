//! Attention.

use std::array::from_fn;

use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};

use super::{
    LANES, flex,
    product::{most_rows, products_of_rows},
    share, threads_for,
};
use crate::{
    host::{Seen, exp_of_negative},
    tensor::from_f32,
};

/// The most queries of a part: they share a key head, so its keys and values are read once for a tile of them.
const QUERIES_OF_A_PART: usize = 12;

/// The multiply-adds of one thread.
const WORK_OF_A_THREAD: usize = 60_000;

pub(crate) fn attend(queries: &Tensor<4>, seen: &Seen) -> Option<Tensor<4>> {
    let [rows, kv_heads, of_head, width] = queries.dims();
    let [key_rows, key_heads, capacity, key_width] = seen.keys.dims();
    let (columns, new, starts) = (seen.columns, seen.new, seen.starts);
    let fits = [key_rows, key_heads, key_width] == [rows, kv_heads, width]
        && seen.values.dims() == seen.keys.dims()
        && (1..=columns).contains(&new)
        && columns <= capacity
        && starts.len() == rows
        && starts.iter().all(|&start| start + new <= columns);
    if !fits || rows * kv_heads * of_head * width == 0 {
        return None;
    }
    let (numbers, keys, values) =
        (flex(queries)?.to_contiguous(), flex(seen.keys)?, flex(seen.values)?);
    let (keys, values) = (keys.as_slice::<f32>()?, values.as_slice::<f32>()?);
    let mut mixed = vec![0.0; rows * kv_heads * of_head * width];
    let (of_kv_head, of_part) = (of_head * width, QUERIES_OF_A_PART * width);
    let heads = numbers.as_slice::<f32>()?.chunks(of_kv_head).zip(mixed.chunks_mut(of_kv_head));
    let parts = heads.enumerate().flat_map(|(head, (queries, mixed))| {
        let start = starts[head / kv_heads];
        let of_head = (head * capacity + start) * width..(head * capacity + columns) * width;
        let (keys, values) = (&keys[of_head.clone()], &values[of_head]);
        let parts = queries.chunks(of_part).zip(mixed.chunks_mut(of_part)).enumerate();
        parts.map(move |(part, (queries, mixed))| Part {
            queries,
            keys,
            values,
            first: part * QUERIES_OF_A_PART,
            new,
            width,
            mixed,
        })
    });
    let arch = Arch::new();
    let threads = threads_for(2 * rows * kv_heads * of_head * columns * width, WORK_OF_A_THREAD);
    share(threads, parts, |part| arch.dispatch(part));
    Some(from_f32(mixed, [rows, kv_heads, of_head, width], &queries.device()))
}

/// Some queries of a key head.
struct Part<'a> {
    /// `[queries, width]`
    queries: &'a [f32],
    /// `[columns, width]`, from the first column of the row's sequence on.
    keys: &'a [f32],
    /// `[columns, width]`
    values: &'a [f32],
    /// The place of the first of these queries among those of the key head, of which each `new` are of a query head.
    first: usize,
    new: usize,
    width: usize,
    /// `[queries, width]`
    mixed: &'a mut [f32],
}

impl WithSimd for Part<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Part { queries, keys, values, first, new, width, mixed } = self;
        let columns = keys.len() / width;
        let scale = (width as f32).powf(-0.5);
        let of_tile = most_rows::<S>();
        let mut weights = vec![0.0; of_tile.min(queries.len() / width) * columns];
        let tiles = queries.chunks(of_tile * width).zip(mixed.chunks_mut(of_tile * width));
        for (tile, (queries, mixed)) in tiles.enumerate() {
            let mut weights: Vec<_> =
                weights.chunks_mut(columns).take(queries.len() / width).collect();
            products_of_rows(simd, queries, keys, width, &mut weights);
            let mut sums = [0.0; 6];
            for (i, (weights, sum)) in weights.iter_mut().zip(&mut sums).enumerate() {
                // A query attends to its own column and those before it.
                let after = new - 1 - (first + tile * of_tile + i) % new;
                let (seen, hidden) = weights.split_at_mut(columns - after);
                *sum = softmax_without_division(seen, scale);
                hidden.fill(0.0);
            }
            match weights[..] {
                [ref a] => mix(simd, [a], values, width, mixed),
                [ref a, ref b] => mix(simd, [a, b], values, width, mixed),
                [ref a, ref b, ref c] => mix(simd, [a, b, c], values, width, mixed),
                [ref a, ref b, ref c, ref d] => mix(simd, [a, b, c, d], values, width, mixed),
                [ref a, ref b, ref c, ref d, ref e] => {
                    mix(simd, [a, b, c, d, e], values, width, mixed);
                }
                [ref a, ref b, ref c, ref d, ref e, ref f, ..] => {
                    mix(simd, [a, b, c, d, e, f], values, width, mixed);
                }
                [] => {}
            }
            for (mixed, sum) in mixed.chunks_mut(width).zip(sums) {
                mixed.iter_mut().for_each(|mixed| *mixed /= sum);
            }
        }
    }
}

/// Turns scores into `exp(score · scale − max)` and returns their sum: NaN if a score is not a number, which must not be
/// hidden, so that the row is refused later.
#[inline(always)]
fn softmax_without_division(scores: &mut [f32], scale: f32) -> f32 {
    // As many maxima and sums as there are lanes, because a single one would not be vectorised.
    let mut most = [f32::NEG_INFINITY; LANES];
    for scores in scores.chunks_mut(LANES) {
        for (score, most) in scores.iter_mut().zip(&mut most) {
            *score *= scale;
            *most = if *score > *most { *score } else { *most };
        }
    }
    let max = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let (mut sums, mut bad) = ([0.0; LANES], [false; LANES]);
    for scores in scores.chunks_mut(LANES) {
        for ((score, sum), bad) in scores.iter_mut().zip(&mut sums).zip(&mut bad) {
            let below = *score - max;
            *bad |= below.is_nan();
            *score = exp_of_negative(below);
            *sum += *score;
        }
    }
    if bad.contains(&true) { f32::NAN } else { sums.iter().sum() }
}

/// The vectors of a value that are summed at a time. With six queries they need 24 registers.
const VECTORS: usize = 4;

/// Adds up the values, each weighted, for `R` queries. Each sum is in the order of the columns, whatever `R` is.
#[inline(always)]
fn mix<S: Simd, const R: usize>(
    simd: S,
    weights: [&&mut [f32]; R],
    values: &[f32],
    width: usize,
    mixed: &mut [f32],
) {
    let weights: [&[f32]; R] = weights.map(|weights| &**weights);
    let wide = VECTORS * S::F32_LANES;
    let mut at = 0;
    while at + wide <= width {
        mix_vectors::<S, R, VECTORS>(simd, weights, values, width, at, mixed);
        at += wide;
    }
    while at + S::F32_LANES <= width {
        mix_vectors::<S, R, 1>(simd, weights, values, width, at, mixed);
        at += S::F32_LANES;
    }
    for (mixed, weights) in mixed.chunks_mut(width).zip(weights) {
        for (value, weight) in values.chunks_exact(width).zip(weights) {
            for (mixed, value) in mixed[at..].iter_mut().zip(&value[at..]) {
                *mixed += weight * value;
            }
        }
    }
}

#[inline(always)]
fn mix_vectors<S: Simd, const R: usize, const V: usize>(
    simd: S,
    weights: [&[f32]; R],
    values: &[f32],
    width: usize,
    at: usize,
    mixed: &mut [f32],
) {
    let lanes = V * S::F32_LANES;
    let columns = values.len() / width;
    // The compiler knows these lengths, so it drops the bounds checks in the loop.
    let weights: [&[f32]; R] = from_fn(|r| &weights[r][..columns]);
    let mut sums = [[simd.splat_f32s(0.0); V]; R];
    for (column, value) in values.chunks_exact(width).enumerate() {
        let value: &[S::f32s] = &S::as_simd_f32s(&value[at..at + lanes]).0[..V];
        for r in 0..R {
            let weight = simd.splat_f32s(weights[r][column]);
            for v in 0..V {
                sums[r][v] = simd.mul_add_e_f32s(weight, value[v], sums[r][v]);
            }
        }
    }
    for (mixed, sums) in mixed.chunks_mut(width).zip(sums) {
        S::as_mut_simd_f32s(&mut mixed[at..at + lanes]).0.copy_from_slice(&sums);
    }
}
