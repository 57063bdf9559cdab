//! Attention of a few queries per row.

use burn::tensor::Tensor;

use super::{flex, share_rows, sum_of_products};
use crate::{
    host::{Seen, exp_of_negative},
    tensor::from_f32,
};

/// With more new tokens per row, products that pack blocks of keys and values should be faster. Not measured.
const MOST_NEW: usize = 8;

pub(crate) fn attend(queries: &Tensor<4>, seen: &Seen) -> Option<Tensor<4>> {
    let [rows, kv_heads, of_head, width] = queries.dims();
    let [key_rows, key_heads, capacity, key_width] = seen.keys.dims();
    let (columns, new, starts) = (seen.columns, seen.new, seen.starts);
    let fits = [key_rows, key_heads, key_width] == [rows, kv_heads, width]
        && seen.values.dims() == seen.keys.dims()
        && (1..=MOST_NEW).contains(&new)
        && new <= columns
        && columns <= capacity
        && starts.len() == rows
        && starts.iter().all(|&start| start + new <= columns);
    if !fits || rows * kv_heads * of_head * width == 0 {
        return None;
    }
    let (numbers, keys, values) =
        (flex(queries)?.to_contiguous(), flex(seen.keys)?, flex(seen.values)?);
    let (keys, values) = (keys.as_slice::<f32>()?, values.as_slice::<f32>()?);
    let scale = (width as f32).powf(-0.5);
    let mut mixed = vec![0.0; rows * kv_heads * of_head * width];
    let of_kv_head = of_head * width;
    share_rows(
        numbers.as_slice::<f32>()?,
        of_kv_head,
        &mut mixed,
        of_kv_head,
        of_kv_head * columns,
        #[inline(always)]
        |at, queries, mixed| {
            let start = starts[at / kv_heads];
            let seen = at * capacity * width..;
            let (keys, values) = (&keys[seen.clone()], &values[seen]);
            let mut weights = vec![0.0; columns];
            let both = queries.chunks_exact(width).zip(mixed.chunks_exact_mut(width));
            for (i, (query, mixed)) in both.enumerate() {
                // A query attends to its own column and those before it.
                let end = columns - new + i % new + 1;
                let weights = &mut weights[start..end];
                let (keys, values) = (&keys[start * width..], &values[start * width..]);
                attend_one(query, keys, values, scale, weights, mixed);
            }
        },
    );
    Some(from_f32(mixed, [rows, kv_heads, of_head, width], &queries.device()))
}

/// Mixes as many values as there are weights.
#[inline(always)]
fn attend_one(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    scale: f32,
    weights: &mut [f32],
    mixed: &mut [f32],
) {
    let width = query.len();
    let mut max = f32::NEG_INFINITY;
    for (score, key) in weights.iter_mut().zip(keys.chunks_exact(width)) {
        *score = sum_of_products(query, key) * scale;
        max = max.max(*score);
    }
    let mut bad = false;
    for weight in weights.iter_mut() {
        let below = *weight - max;
        bad |= below.is_nan();
        *weight = exp_of_negative(below);
    }
    if bad {
        // A score that is not a number must not be hidden: the row is refused later.
        return mixed.fill(f32::NAN);
    }
    let sum: f32 = weights.iter().sum();
    for (weight, value) in weights.iter().zip(values.chunks_exact(width)) {
        let weight = weight / sum;
        for (mixed, value) in mixed.iter_mut().zip(value) {
            *mixed += weight * value;
        }
    }
}
