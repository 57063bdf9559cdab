//! Products with packed matrices.

use burn::tensor::{Int, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::{
    flex,
    pick::{indices, times_picked},
    product::{MOST_ROWS, Matrix, multiply},
};
use crate::{
    host::packed::{Codes, LANES, PackedMatrix, PackedRows, Scales, halves},
    tensor::from_f32,
};

/// `x·Wᵀ`, with `x` `[rows, in]` and `W` `[out, in]`. `None` if `x` is not `f32` on flex.
pub(crate) fn packed_times(x: &Tensor<2>, matrix: &PackedMatrix) -> Option<Tensor<2>> {
    let ([rows, width], [columns, same_width]) = (x.dims(), matrix.dims());
    if width != same_width || rows * width * columns == 0 {
        return None;
    }
    let numbers = flex(x)?.to_contiguous();
    let mut product = vec![0.0; rows * columns];
    // The rows of `x` in a tile stay in the cache; those of the matrix are unpacked once for each.
    let x_parts = numbers.as_slice::<f32>()?.chunks(MOST_ROWS * width);
    for (x, product) in x_parts.zip(product.chunks_mut(MOST_ROWS * columns)) {
        multiply(x, matrix, product);
    }
    Some(from_f32(product, [rows, columns], &x.device()))
}

/// `x[row] · W[picked[row, i]]`, with `x` `[rows, in]`, `W` `[out, in]` and `picked` `[rows, n]`. `None` if `x` is not
/// `f32` on flex, or if a row does not exist.
pub(crate) fn packed_times_rows_at(
    x: &Tensor<2>,
    matrix: &PackedMatrix,
    picked: &Tensor<2, Int>,
) -> Option<Tensor<2>> {
    times_picked(x, matrix, picked)
}

/// The rows `picked`, `[n]`, of a matrix, `[n, width]`. `None` if one does not exist or `picked` is on another device.
pub(crate) fn packed_rows(matrix: &PackedMatrix, picked: &Tensor<1, Int>) -> Option<Tensor<2>> {
    let [count, width] = matrix.dims();
    let (device, picked) = (picked.device(), indices(picked)?);
    if picked.iter().any(|&row| row >= count) {
        return None;
    }
    let mut numbers = Vec::with_capacity(picked.len() * width);
    let mut buffer = Unpacked::default();
    for &row in &picked {
        numbers.extend_from_slice(matrix.row(row, &mut buffer));
    }
    Some(from_f32(numbers, [picked.len(), width], &device))
}

/// Buffers for unpacked rows, reused from one row to the next.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    numbers: Vec<f32>,
    scales: Vec<f32>,
    least: Vec<f32>,
}

impl Matrix for PackedMatrix {
    type Buffer = Unpacked;

    fn dims(&self) -> [usize; 2] {
        self.dims()
    }

    #[inline(always)]
    fn rows<'a, S: Simd>(
        &'a self,
        simd: S,
        first: usize,
        count: usize,
        buffer: &'a mut Unpacked,
    ) -> &'a [f32] {
        let [_, width] = self.dims();
        let Unpacked { numbers, scales, least } = buffer;
        numbers.resize(count * width, 0.0);
        scales.resize(width.div_ceil(LANES), 0.0);
        least.resize(width.div_ceil(LANES), 0.0);
        for (row, numbers) in (first..).zip(numbers.chunks_exact_mut(width)) {
            let (part, row) = self.place(row);
            unpack(simd, part, row, scales, least, numbers);
        }
        numbers
    }

    fn row<'a>(&'a self, row: usize, buffer: &'a mut Unpacked) -> &'a [f32] {
        struct Row<'a>(&'a PackedMatrix, usize, &'a mut Unpacked);
        impl WithSimd for Row<'_> {
            type Output = ();

            #[inline(always)]
            fn with_simd<S: Simd>(self, simd: S) {
                self.0.rows(simd, self.1, 1, self.2);
            }
        }
        Arch::new().dispatch(Row(self, row, buffer));
        &buffer.numbers
    }
}

/// Unpacks a row.
#[inline(always)]
fn unpack<S: Simd>(
    simd: S,
    part: &PackedRows,
    row: usize,
    scales: &mut [f32],
    least: &mut [f32],
    numbers: &mut [f32],
) {
    let width = numbers.len();
    match &part.codes {
        Codes::Four(words, of) => {
            unpack_words::<S, 4>(simd, words, of, row, [scales, least], numbers);
        }
        Codes::Eight(words, of) => {
            unpack_words::<S, 8>(simd, words, of, row, [scales, least], numbers);
        }
        Codes::F16(bits) => halves(&bits[row * width..][..width], numbers),
        Codes::Bf16(bits) => {
            for (number, &bits) in numbers.iter_mut().zip(&bits[row * width..][..width]) {
                *number = f32::from_bits(u32::from(bits) << 16);
            }
        }
    }
}

/// Unpacks a row of codes of `BITS` bits.
#[inline(always)]
fn unpack_words<S: Simd, const BITS: usize>(
    simd: S,
    words: &[u32],
    of: &Scales,
    row: usize,
    [scales, least]: [&mut [f32]; 2],
    numbers: &mut [f32],
) {
    /// A float of this exponent has the value of its mantissa's integer plus 2²³.
    const EXPONENT: u32 = (127 + 23) << 23;
    let width = numbers.len();
    let (in_block, groups) = (LANES * 32 / BITS, width / of.group());
    let (scales, least) = (&mut scales[..groups], &mut least[..groups]);
    of.unpack(row * groups, scales, least);
    let vectors_of_a_group = of.group() / LANES;

    let row_words = width.div_ceil(in_block) * LANES;
    let words = words[row * row_words..][..row_words].chunks_exact(LANES);
    let mask = simd.splat_u32s((1 << BITS) - 1);
    let (exponent, bias) = (simd.splat_u32s(EXPONENT), simd.splat_f32s(f32::from_bits(EXPONENT)));
    for (block, (words, numbers)) in words.zip(numbers.chunks_mut(in_block)).enumerate() {
        let (words, _) = S::as_simd_u32s(words);
        for (at, numbers) in numbers.chunks_exact_mut(LANES).enumerate() {
            let group = (block * in_block / LANES + at) / vectors_of_a_group;
            let (scale, least) = (simd.splat_f32s(scales[group]), simd.splat_f32s(least[group]));
            let shift = simd.splat_u32s((at * BITS) as u32);
            let (numbers, _) = S::as_mut_simd_f32s(numbers);
            for (number, &word) in numbers.iter_mut().zip(words) {
                let code = simd.and_u32s(simd.wrapping_dyn_shr_u32s(word, shift), mask);
                let code = simd.transmute_f32s_u32s(simd.or_u32s(code, exponent));
                // The product is exact, so fusing it with the sum changes nothing.
                *number = simd.mul_add_e_f32s(scale, simd.sub_f32s(code, bias), least);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::packed::words;

    /// Every kind of code and scale, in rows that end within a block. The blocks' numbers have few bits, as in a file.
    #[test]
    fn rows_are_those_that_are_unpacked_one_by_one() {
        const WIDTH: usize = 5 * 256 / 4;
        let bits = |count: usize, step: usize| -> Vec<u16> {
            (0..count).map(|i| 0x2c00 + (i * step % 4096) as u16).collect()
        };
        let codes = |most: usize| -> Vec<u8> { (0..WIDTH).map(|i| (i * 7 % most) as u8).collect() };
        let groups = WIDTH / 32;
        let integers = (0..groups).map(|i| [i as u8 % 64, 63 - i as u8 % 64]).collect();
        let all = [
            Codes::Four(
                words::<4>(&codes(16)).collect(),
                Scales::Scaled { scales: bits(groups, 77), least: -8.0 },
            ),
            Codes::Four(
                words::<4>(&codes(16)).collect(),
                Scales::Blocks { integers, blocks: vec![[0.25, 0.75]; groups.div_ceil(8)] },
            ),
            Codes::Eight(
                words::<8>(&codes(256)).collect(),
                Scales::Both { scales: bits(groups, 77), least: bits(groups, 31) },
            ),
            Codes::Eight(
                words::<8>(&codes(64)).collect(),
                Scales::SignedBlocks {
                    integers: (0..WIDTH / 16).map(|i| i as i8 - 9).collect(),
                    blocks: vec![0.125; (WIDTH / 16).div_ceil(16)],
                },
            ),
            Codes::F16(bits(WIDTH, 5)),
            Codes::Bf16(bits(WIDTH, 3)),
        ];
        let parts = all.map(|codes| PackedRows { rows: 1, codes });
        let matrix = PackedMatrix::new(WIDTH, parts.to_vec());
        let expected = matrix.to_numbers();
        let mut buffer = Unpacked::default();
        for (row, expected) in expected.chunks(WIDTH).enumerate() {
            assert_eq!(matrix.row(row, &mut buffer), expected, "{row}");
        }
    }
}
