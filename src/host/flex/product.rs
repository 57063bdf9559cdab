//! The product of a few rows with a large matrix.
//!
//! General matrix multiplication first copies blocks of the matrix into a packed layout, which pays only for many
//! rows. Here the rows of the matrix are read in place. Each element is summed in the same order regardless of the
//! number of rows, so a row's results do not depend on the other rows of its batch.

use burn::tensor::Tensor;
use pulp::{Arch, Simd, WithSimd};

use super::{flex, parts_for, share, threads_for_product};
use crate::tensor::from_f32;

/// The rows of `x` that are multiplied with a panel of the matrix before the next panel: they should fit in the L2 cache.
pub(super) const MOST_ROWS: usize = 128;

/// Returns the product if the device and the shapes are supported.
pub(crate) fn times_transposed(x: &Tensor<2>, weight: &Tensor<2>) -> Option<Tensor<2>> {
    let ([rows, width], [columns, same_width]) = (x.dims(), weight.dims());
    if width != same_width || rows * width * columns == 0 {
        return None;
    }
    // Only `x`, which has few rows, is made contiguous. A matrix that is not contiguous would have to be copied at
    // every call: `as_slice` refuses it, and burn multiplies with the view.
    let (numbers, weight) = (flex(x)?.to_contiguous(), flex(weight)?);
    let mut product = vec![0.0; rows * columns];
    multiply(numbers.as_slice()?, &Dense { numbers: weight.as_slice()?, width }, &mut product);
    Some(from_f32(product, [rows, columns], &x.device()))
}

/// The rows of a matrix, from wherever they are.
pub(super) trait Matrix: Sync {
    /// What is needed for reading rows, reused from one call to the next.
    type Buffer: Default;

    /// `[rows, width]`
    fn dims(&self) -> [usize; 2];

    /// `count` rows from row `first` on.
    fn rows<'a, S: Simd>(
        &'a self,
        simd: S,
        first: usize,
        count: usize,
        buffer: &'a mut Self::Buffer,
    ) -> &'a [f32];

    /// A row.
    fn row<'a>(&'a self, row: usize, buffer: &'a mut Self::Buffer) -> &'a [f32];

    /// The products of `H` rows from row `first` on with a few rows of `x`, if they can be computed without the rows as
    /// a slice. The sums are those of [`tile`].
    #[inline(always)]
    fn sums_of_few<S: Simd, const H: usize, const R: usize>(
        &self,
        _simd: S,
        _first: usize,
        _x: [&[f32]; R],
        _buffer: &mut Self::Buffer,
    ) -> Option<[[f32; R]; H]> {
        None
    }
}

/// Rows of `width` numbers, one after the other.
pub(super) struct Dense<'a> {
    pub(super) numbers: &'a [f32],
    pub(super) width: usize,
}

impl Matrix for Dense<'_> {
    type Buffer = ();

    fn dims(&self) -> [usize; 2] {
        [self.numbers.len() / self.width, self.width]
    }

    #[inline(always)]
    fn rows<'a, S: Simd>(&'a self, _: S, first: usize, count: usize, _: &'a mut ()) -> &'a [f32] {
        &self.numbers[first * self.width..][..count * self.width]
    }

    #[inline(always)]
    fn row<'a>(&'a self, row: usize, _: &'a mut ()) -> &'a [f32] {
        &self.numbers[row * self.width..][..self.width]
    }
}

/// Multiplies every row of `x` with every row of `matrix`, which have the same width.
pub(super) fn multiply(x: &[f32], matrix: &impl Matrix, product: &mut [f32]) {
    let [columns, width] = matrix.dims();
    let products = product.chunks_mut(MOST_ROWS * columns);
    for (x, product) in x.chunks(MOST_ROWS * width).zip(products) {
        multiply_few(x, matrix, product);
    }
}

/// [`multiply`] for at most [`MOST_ROWS`] rows.
fn multiply_few(x: &[f32], matrix: &impl Matrix, product: &mut [f32]) {
    let [columns, width] = matrix.dims();
    let rows = x.len() / width;
    let threads = threads_for_product(rows * columns * width);
    // Parts of whole tiles: otherwise every part, not only the last one, would end with columns that are computed one
    // by one.
    let columns_of_a_part = columns.div_ceil(parts_for(threads)).next_multiple_of(HEIGHT);
    let parts = column_parts(product, columns, columns_of_a_part);
    let firsts = (0..columns).step_by(columns_of_a_part);
    let arch = Arch::new();
    share(threads, parts.into_iter().zip(firsts), |(mut product, first)| {
        arch.dispatch(Part { x, matrix, first, product: &mut product });
    });
}

/// Splits `product`, `[rows, columns]`, into parts of several columns. A part holds its piece of every row.
pub(super) fn column_parts(
    product: &mut [f32],
    columns: usize,
    columns_of_a_part: usize,
) -> Vec<Vec<&mut [f32]>> {
    let rows = product.len() / columns;
    let mut parts: Vec<Vec<&mut [f32]>> = Vec::new();
    parts.resize_with(columns.div_ceil(columns_of_a_part), || Vec::with_capacity(rows));
    for row in product.chunks_mut(columns) {
        let pieces = row.chunks_mut(columns_of_a_part);
        for (part, piece) in parts.iter_mut().zip(pieces) {
            part.push(piece);
        }
    }
    parts
}

/// Some columns of the product: those of the matrix's rows from `first` on.
struct Part<'a, 'p, M> {
    x: &'a [f32],
    matrix: &'a M,
    first: usize,
    product: &'a mut [&'p mut [f32]],
}

/// The number of matrix rows in a tile.
// With six rows of `x`, four rows need 24 sums, which leaves registers for the operands on CPUs with 32 of them. With
// 16 registers, three rows of `x` need 12. Six rows of the matrix with four of `x` were 3 to 8 % faster if the number
// of rows was a multiple of four, and slower otherwise (docs/design/decoding-on-the-host.md).
const HEIGHT: usize = 4;

/// The number of matrix rows that are multiplied with all rows of `x` before the next ones. They should fit in the L2
/// cache, unpacked.
const PANEL: usize = 8;

impl<M: Matrix> WithSimd for Part<'_, '_, M> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Part { x, matrix, first, product } = self;
        let [_, width] = matrix.dims();
        let columns_of_part = product.first().map_or(0, |row| row.len());
        let mut buffer = M::Buffer::default();
        let mut at = 0;
        while at < columns_of_part {
            let left = columns_of_part - at;
            if left >= HEIGHT && few(simd, x, matrix, first + at, product, at, &mut buffer) {
                at += HEIGHT;
                continue;
            }
            // A single row is limited by memory bandwidth, and one stream is read faster than several.
            let count = match product.len() {
                _ if left < HEIGHT => 1,
                1 => 1,
                _ => (left / HEIGHT * HEIGHT).min(PANEL),
            };
            let weight = matrix.rows(simd, first + at, count, &mut buffer);
            if count == 1 {
                columns::<S, 1>(simd, x, weight, width, product, at);
            } else {
                columns::<S, HEIGHT>(simd, x, weight, width, product, at);
            }
            at += count;
        }
    }
}

/// Computes `HEIGHT` columns of the product for up to four rows of `x`, if the matrix can do so without its rows.
#[inline(always)]
fn few<S: Simd, M: Matrix>(
    simd: S,
    x: &[f32],
    matrix: &M,
    first: usize,
    product: &mut [&mut [f32]],
    at: usize,
    buffer: &mut M::Buffer,
) -> bool {
    match product.len() {
        1 => few_rows::<S, M, 1>(simd, x, matrix, first, product, at, buffer),
        2 => few_rows::<S, M, 2>(simd, x, matrix, first, product, at, buffer),
        3 => few_rows::<S, M, 3>(simd, x, matrix, first, product, at, buffer),
        4 => few_rows::<S, M, 4>(simd, x, matrix, first, product, at, buffer),
        _ => false,
    }
}

#[inline(always)]
fn few_rows<S: Simd, M: Matrix, const R: usize>(
    simd: S,
    x: &[f32],
    matrix: &M,
    first: usize,
    product: &mut [&mut [f32]],
    at: usize,
    buffer: &mut M::Buffer,
) -> bool {
    let [_, width] = matrix.dims();
    let x = std::array::from_fn(|r| &x[r * width..][..width]);
    let sums = matrix.sums_of_few::<S, HEIGHT, R>(simd, first, x, buffer);
    let Some(sums) = sums else { return false };
    for (h, sums) in sums.iter().enumerate() {
        for (product, sum) in product.iter_mut().zip(sums) {
            product[at + h] = *sum;
        }
    }
    true
}

/// The most rows of `x` in a tile: as many sums as fit in the registers.
#[inline(always)]
pub(super) fn most_rows<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { 6 } else { 3 }
}

/// The products of all rows of `x` with all rows of `weight`, on this thread.
#[inline(always)]
pub(super) fn products_of_rows<S: Simd>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    width: usize,
    product: &mut [&mut [f32]],
) {
    let whole = weight.len() / width / HEIGHT * HEIGHT;
    let (tiles, rest) = weight.split_at(whole * width);
    columns::<S, HEIGHT>(simd, x, tiles, width, product, 0);
    columns::<S, 1>(simd, x, rest, width, product, whole);
}

/// Computes the columns of the product of the given rows of the matrix, `H` at a time, from column `at` on.
#[inline(always)]
fn columns<S: Simd, const H: usize>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    width: usize,
    product: &mut [&mut [f32]],
    at: usize,
) {
    // Split so that no tile has far fewer rows than the others.
    let most = most_rows::<S>();
    // The number of rows is a constant in each tile, so that the sums are kept in registers.
    let (mut x, mut product) = (x, product);
    for tiles in (1..=product.len().div_ceil(most)).rev() {
        let rows = product.len().div_ceil(tiles);
        let (these, others) = product.split_at_mut(rows);
        // The rows of `x` stay in the L1 cache meanwhile, those of the matrix come from the L2 cache.
        for (weight, at) in weight.chunks_exact(H * width).zip((at..).step_by(H)) {
            match rows {
                1 => tile::<S, H, 1>(simd, x, weight, width, these, at),
                2 => tile::<S, H, 2>(simd, x, weight, width, these, at),
                3 => tile::<S, H, 3>(simd, x, weight, width, these, at),
                4 => tile::<S, H, 4>(simd, x, weight, width, these, at),
                5 => tile::<S, H, 5>(simd, x, weight, width, these, at),
                _ => tile::<S, H, 6>(simd, x, weight, width, these, at),
            }
        }
        (x, product) = (&x[rows * width..], others);
    }
}

/// Multiplies `R` rows of `x` with `H` rows of the matrix.
#[inline(always)]
fn tile<S: Simd, const H: usize, const R: usize>(
    simd: S,
    x: &[f32],
    weight: &[f32],
    width: usize,
    product: &mut [&mut [f32]],
    at: usize,
) {
    let lanes = width / S::F32_LANES;
    let x: [_; R] = std::array::from_fn(|r| S::as_simd_f32s(&x[r * width..][..width]));
    let weight: [_; H] = std::array::from_fn(|h| S::as_simd_f32s(&weight[h * width..][..width]));
    // The compiler knows the length of these slices, so it drops the bounds checks in the loop.
    let x_lanes: [&[S::f32s]; R] = std::array::from_fn(|r| &x[r].0[..lanes]);
    let weight_lanes: [&[S::f32s]; H] = std::array::from_fn(|h| &weight[h].0[..lanes]);
    // Each lane keeps its own sum, and the lanes are added at the end. This order does not depend on `R` or `H`.
    let mut sums = [[simd.splat_f32s(0.0); R]; H];
    // The inner dimension is the outer loop, because it is contiguous in both operands, which are thus read in order
    // and without repacking. Each vector of the matrix is used for `R` rows while it is in a register.
    for lane in 0..lanes {
        for h in 0..H {
            let weight = weight_lanes[h][lane];
            for r in 0..R {
                // Fused where the CPU can do it, so the last bits may differ between CPUs, but not between batches.
                sums[h][r] = simd.mul_add_e_f32s(weight, x_lanes[r][lane], sums[h][r]);
            }
        }
    }
    for (h, (_, weight_rest)) in weight.iter().enumerate() {
        for (r, (_, x_rest)) in x.iter().enumerate() {
            let rest: f32 = weight_rest.iter().zip(*x_rest).map(|(w, x)| w * x).sum();
            product[r][at + h] = simd.reduce_sum_f32s(sums[h][r]) + rest;
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

    /// The product with sequential sums in f64.
    fn naive(x: &[f32], weight: &[f32], width: usize) -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| {
            x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum()
        };
        let rows = x.chunks(width);
        rows.flat_map(|x| weight.chunks(width).map(move |w| dot(x, w))).collect()
    }

    /// Every remainder of rows, columns and lanes, with one thread and with several.
    #[test]
    fn it_is_the_product() {
        for (columns, width) in [(1, 1), (3, 5), (4, 16), (9, 33), (131, 64), (577, 576)] {
            let weight = wave([columns, width], 0.37, 1.0);
            for rows in [1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 64, 128, 129, 300] {
                let x = wave([rows, width], 0.91, 1.0);
                let exact = naive(&numbers(x.clone()), &numbers(weight.clone()), width);
                let product = times_transposed(&x, &weight).unwrap();
                assert_eq!(product.dims(), [rows, columns]);
                for (at, (got, exact)) in numbers(product).into_iter().zip(exact).enumerate() {
                    let error = (f64::from(got) - exact).abs();
                    assert!(
                        error < 1e-6 * width as f64,
                        "{rows} {columns} {width} {at}: {error:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_batch() {
        let (x, weight) = (wave([300, 576], 0.91, 1.0), wave([960, 576], 0.37, 1.0));
        let all = numbers(times_transposed(&x, &weight).unwrap());
        for rows in [1, 2, 3, 5, 16, 64, 129] {
            for first in [0, 7, 300 - rows] {
                let some = x.clone().narrow(0, first, rows);
                let some = numbers(times_transposed(&some, &weight).unwrap());
                assert_eq!(some, all[first * 960..(first + rows) * 960], "{rows} from {first}");
            }
        }
    }

    #[test]
    fn a_view_of_rows_is_read_correctly() {
        let (x, weight) = (wave([8, 6], 0.91, 1.0).transpose(), wave([5, 8], 0.37, 1.0));
        let product = numbers(times_transposed(&x, &weight).unwrap());
        let burns = numbers(x.matmul(weight.transpose()));
        assert!(product.iter().zip(burns).all(|(a, b)| (a - b).abs() < 1e-5));
    }

    #[test]
    fn other_work_is_left_to_burn() {
        let (x, weight) = (wave([2, 8], 0.91, 1.0), wave([5, 8], 0.37, 1.0));
        assert!(times_transposed(&x, &weight).is_some());
        assert!(times_transposed(&x.clone().autodiff(), &weight).is_none(), "with gradients");
        assert!(times_transposed(&x.clone().cast(DType::F16), &weight).is_none());
        assert!(
            times_transposed(&x, &wave([8, 5], 0.37, 1.0).transpose()).is_none(),
            "transposed weights"
        );
    }
}
