//! The product of a few rows with a small matrix, slot by slot, forwards and backwards: the work of a distiller.

use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};

use super::{
    flex,
    product::{Dense, MOST_ROWS, column_parts, multiply},
    share, threads_for_product,
};
use crate::tensor::from_f32;

/// Returns `x·Wᵀ` for each slot, if the device and the shapes are supported.
pub(crate) fn times_each_transposed(x: &Tensor<3>, weight: &Tensor<3>) -> Option<Tensor<3>> {
    let [_, columns, width] = weight.dims();
    each(x, weight, [width, columns], |x, numbers, product| {
        multiply(x, &Dense { numbers, width }, product);
    })
}

/// Returns `x·W` for each slot, if the device and the shapes are supported. A single row is left to burn, whose
/// product is faster there. Its last bits may differ from those that it has in a batch of several rows.
pub(crate) fn times_each(x: &Tensor<3>, weight: &Tensor<3>) -> Option<Tensor<3>> {
    let [_, width, columns] = weight.dims();
    if x.dims()[1] == 1 {
        return None;
    }
    each(x, weight, [width, columns], |x, weight, product| accumulate(x, weight, width, product))
}

/// Multiplies each slot of `x`, `[slots, rows, width]`, with the same slot of `weight`: `[slots, rows, columns]`.
fn each(
    x: &Tensor<3>,
    weight: &Tensor<3>,
    [width, columns]: [usize; 2],
    multiply: impl Fn(&[f32], &[f32], &mut [f32]),
) -> Option<Tensor<3>> {
    let [slots, rows, same_width] = x.dims();
    let fits = (width, slots) == (same_width, weight.dims()[0])
        && slots * width * columns > 0
        && (1..=MOST_ROWS).contains(&rows);
    if !fits {
        return None;
    }
    let (numbers, weights) = (flex(x)?.to_contiguous(), flex(weight)?);
    // As in `times_transposed`, a matrix that is not contiguous is left to burn.
    let mut product = vec![0.0; slots * rows * columns];
    let xs = numbers.as_slice()?.chunks_exact(rows * width);
    let weights = weights.as_slice()?.chunks_exact(width * columns);
    let products = product.chunks_exact_mut(rows * columns);
    for ((x, weight), product) in xs.zip(weights).zip(products) {
        multiply(x, weight, product);
    }
    Some(from_f32(product, [slots, rows, columns], &x.device()))
}

/// Computes `product += x·weight`, with `product` `[rows, columns]` and `weight` `[width, columns]`. Each sum is
/// accumulated in the order of `width`, regardless of the number of rows and threads.
// The rows of the matrix are contiguous along the columns of the product, not along the inner dimension as in
// `product.rs`. So a vector holds neighbouring columns here, one value of `x` multiplies all of them, and nothing is
// summed across lanes.
fn accumulate(x: &[f32], weight: &[f32], width: usize, product: &mut [f32]) {
    let (rows, columns) = (x.len() / width, weight.len() / width);
    let threads = threads_for_product(rows * weight.len());
    // Exactly one part per thread, so that a part reads long pieces of each row of the matrix. The columns are split
    // first, and the rows only if there are too few columns.
    let columns_of_a_part = columns.div_ceil(threads).next_multiple_of(COLUMNS);
    let rows_of_a_part = rows.div_ceil(threads.div_ceil(columns.div_ceil(columns_of_a_part)));
    let xs = x.chunks(rows_of_a_part * width);
    let parts = xs.zip(product.chunks_mut(rows_of_a_part * columns)).flat_map(|(x, product)| {
        let parts = column_parts(product, columns, columns_of_a_part).into_iter();
        parts.enumerate().map(move |(at, product)| (x, at * columns_of_a_part, product))
    });
    let arch = Arch::new();
    share(threads, parts, |(x, first, mut product)| {
        arch.dispatch(Part { x, weight, width, columns, first, product: &mut product });
    });
}

/// Some columns of the product, from `first` on.
struct Part<'a, 'p> {
    x: &'a [f32],
    weight: &'a [f32],
    width: usize,
    columns: usize,
    first: usize,
    product: &'a mut [&'p mut [f32]],
}

/// A number of columns that is a multiple of the tile width for every vector size.
// Parts begin at such multiples, so the columns that fill no vector are always the last ones of the matrix. Their
// products and sums are rounded separately, those in vectors may be fused. If the number of threads, which depends on
// the number of rows, decided which columns these are, a row's last bits would depend on its batch.
const COLUMNS: usize = 64;

/// The number of matrix rows that are accumulated before the sums leave their registers. With 8, a prediction of 16
/// rows took a third longer. With all rows, a strip of columns is read at a large stride, which the CPU does not
/// prefetch.
const DEPTH: usize = 48;

impl WithSimd for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, weight, width, columns, first, product } = self;
        // As many sums as fit in the registers, split so that no tile has far fewer rows than the others.
        let most = if S::REGISTER_COUNT >= 32 { 6 } else { 3 };
        // Strips of the matrix are the outer loop, rows of `x` the inner one: a strip comes from memory for the first
        // tile and from the cache for the others.
        for (at, weight) in weight.chunks(DEPTH * columns).enumerate() {
            let from = at * DEPTH;
            let (mut x, mut product) = (x, &mut product[..]);
            for tiles in (1..=product.len().div_ceil(most)).rev() {
                let rows = product.len().div_ceil(tiles);
                let (these, others) = product.split_at_mut(rows);
                let strip = Strip { x: &x[from..], width, weight: &weight[first..], columns };
                match rows {
                    1 => strip.add::<S, 1>(simd, these),
                    2 => strip.add::<S, 2>(simd, these),
                    3 => strip.add::<S, 3>(simd, these),
                    4 => strip.add::<S, 4>(simd, these),
                    5 => strip.add::<S, 5>(simd, these),
                    _ => strip.add::<S, 6>(simd, these),
                }
                (x, product) = (&x[rows * width..], others);
            }
        }
    }
}

/// A few rows of the matrix, and the part of `x` that multiplies them.
struct Strip<'a> {
    /// Rows of `width` values, from the value that multiplies the first of these matrix rows.
    x: &'a [f32],
    width: usize,
    /// Rows of `columns` values, from the first column of the product.
    weight: &'a [f32],
    columns: usize,
}

impl Strip<'_> {
    /// Adds the strip to `R` rows of the product.
    #[inline(always)]
    fn add<S: Simd, const R: usize>(&self, simd: S, product: &mut [&mut [f32]]) {
        let depth = self.weight.len().div_ceil(self.columns);
        let mut product: [&mut [f32]; R] = {
            let mut rows = product.iter_mut();
            std::array::from_fn(|_| rows.next().map(|row| &mut **row).unwrap_or_default())
        };
        let count = product[0].len();
        let mut at = 0;
        // Four vectors times six rows are 24 sums, as in `product.rs` (twelve with 16 registers).
        while at + 4 * S::F32_LANES <= count {
            self.tile::<S, R, 4>(simd, depth, at, &mut product);
            at += 4 * S::F32_LANES;
        }
        while at + S::F32_LANES <= count {
            self.tile::<S, R, 1>(simd, depth, at, &mut product);
            at += S::F32_LANES;
        }
        for (r, row) in product.iter_mut().enumerate() {
            for (c, sum) in row.iter_mut().enumerate().skip(at) {
                for i in 0..depth {
                    *sum += self.x[r * self.width + i] * self.weight[i * self.columns + c];
                }
            }
        }
    }

    /// Updates `R` rows and `V` vectors of the product, from column `at` on.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        depth: usize,
        at: usize,
        product: &mut [&mut [f32]; R],
    ) {
        // Load the sums once, add all matrix rows of the strip in registers, and store them once.
        let here = at..at + V * S::F32_LANES;
        let mut sums: [[S::f32s; V]; R] = std::array::from_fn(|r| {
            let (row, _) = S::as_simd_f32s(&product[r][here.clone()]);
            std::array::from_fn(|v| row[v])
        });
        for i in 0..depth {
            let row = &self.weight[i * self.columns..][here.clone()];
            let (weight, _) = S::as_simd_f32s(row);
            let weight: [S::f32s; V] = std::array::from_fn(|v| weight[v]);
            for (r, sums) in sums.iter_mut().enumerate() {
                let x = simd.splat_f32s(self.x[r * self.width + i]);
                for (sum, weight) in sums.iter_mut().zip(weight) {
                    *sum = simd.mul_add_e_f32s(x, weight, *sum);
                }
            }
        }
        for (row, sums) in product.iter_mut().zip(&sums) {
            S::as_mut_simd_f32s(&mut row[here.clone()]).0.copy_from_slice(sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::{
        super::tests::{numbers, wave},
        *,
    };

    /// `[slots, rows, width]` with `[slots, width, columns]`, with sums in f64.
    fn naive(x: &Tensor<3>, weight: &Tensor<3>) -> Vec<f64> {
        let ([slots, rows, width], [_, _, columns]) = (x.dims(), weight.dims());
        let (x, weight) = (numbers(x.clone()), numbers(weight.clone()));
        let mut product = Vec::new();
        for slot in 0..slots {
            for row in 0..rows {
                for column in 0..columns {
                    let x = &x[(slot * rows + row) * width..][..width];
                    let weight = &weight[slot * width * columns..];
                    let term = |i: usize| f64::from(x[i]) * f64::from(weight[i * columns + column]);
                    product.push((0..width).map(term).sum());
                }
            }
        }
        product
    }

    fn assert_close(got: Tensor<3>, exact: Vec<f64>, width: usize, what: &str) {
        for (at, (got, exact)) in numbers(got).into_iter().zip(exact).enumerate() {
            let error = (f64::from(got) - exact).abs();
            assert!(error < 1e-6 * (width + 4) as f64, "{what}, {at}: {error:e}");
        }
    }

    /// Every remainder of rows, columns, depth and lanes, with one thread and with two.
    #[test]
    fn both_are_the_product() {
        for (width, columns) in
            [(1, 1), (5, 3), (48, 16), (49, 33), (131, 64), (200, 577), (3000, 64)]
        {
            let weight = wave([2, width, columns], 0.37, 1.0);
            let turned = weight.clone().swap_dims(1, 2);
            let turned = Tensor::from_data(turned.into_data(), &weight.device());
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 64, MOST_ROWS] {
                let x = wave([2, rows, width], 0.91, 1.0);
                let exact = naive(&x, &weight);
                let product = times_each(&x, &weight);
                assert_eq!(product.is_some(), rows > 1, "a single row is left to burn");
                if let Some(product) = product {
                    assert_eq!(product.dims(), [2, rows, columns]);
                    assert_close(
                        product,
                        exact.clone(),
                        width,
                        &format!("{rows} {width} {columns}"),
                    );
                }
                let product = times_each_transposed(&x, &turned).unwrap();
                assert_eq!(product.dims(), [2, rows, columns]);
                assert_close(product, exact, width, &format!("turned {rows} {width} {columns}"));
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch_from_two_rows_on() {
        let (x, weight) = (wave([1, 64, 576], 0.91, 1.0), wave([1, 576, 390], 0.37, 1.0));
        let all = numbers(times_each(&x, &weight).unwrap());
        for rows in [2, 3, 5, 16] {
            for first in [0, 7, 64 - rows] {
                let some = times_each(&x.clone().narrow(1, first, rows), &weight).unwrap();
                assert_eq!(
                    numbers(some),
                    all[first * 390..(first + rows) * 390],
                    "{rows}, {first}"
                );
            }
        }
    }

    #[test]
    fn views_are_read_correctly() {
        let (x, weight) = (wave([2, 8, 6], 0.91, 1.0).swap_dims(1, 2), wave([3, 8, 5], 0.37, 1.0));
        let weight = weight.narrow(0, 1, 2);
        let dense = |t: &Tensor<3>| Tensor::from_data(t.clone().into_data(), &t.device());
        let exact = naive(&dense(&x), &dense(&weight));
        if let Some(product) = times_each(&x, &weight) {
            assert_close(product, exact.clone(), 8, "a view of slots");
        }
        assert_close(times_each(&x, &dense(&weight)).unwrap(), exact, 8, "turned rows");
    }

    #[test]
    fn other_work_is_left_to_burn() {
        let (x, weight) = (wave([2, 3, 8], 0.91, 1.0), wave([2, 8, 5], 0.37, 1.0));
        assert!(times_each(&x, &weight).is_some());
        assert!(times_each(&x.clone().autodiff(), &weight).is_none(), "with gradients");
        assert!(times_each(&x, &weight.clone().autodiff()).is_none(), "with gradients");
        assert!(times_each(&x.clone().cast(DType::F16), &weight).is_none());
        assert!(times_each(&wave([2, MOST_ROWS + 1, 8], 0.9, 1.0), &weight).is_none());
        assert!(times_each(&wave([1, 3, 8], 0.9, 1.0), &weight).is_none(), "other slots");
        assert!(
            times_each(&x, &wave([2, 5, 8], 0.4, 1.0).swap_dims(1, 2)).is_none(),
            "transposed weights"
        );
        let turned = wave([2, 5, 8], 0.37, 1.0);
        assert!(times_each_transposed(&x, &turned).is_some());
        assert!(times_each_transposed(&x.clone().autodiff(), &turned).is_none());
        assert!(times_each_transposed(&x, &wave([2, 5, 7], 0.37, 1.0)).is_none(), "another width");
    }
}
