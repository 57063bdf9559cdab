//! Products with packed matrices.

use burn::tensor::{Int, Tensor};
use pulp::{Arch, Simd, WithSimd};

use super::{
    flex,
    look_up::looks_up,
    pick::{indices, times_picked},
    product::{Matrix, multiply},
};
use crate::{
    host::packed::{Codes, LANES, PackedMatrix, Scales, halves, words_in},
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
    multiply(numbers.as_slice()?, matrix, &mut product);
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

impl Unpacked {
    /// Makes room for scales and least numbers of `rows` rows.
    #[inline(always)]
    fn reserve(&mut self, rows: usize, width: usize) {
        self.scales.resize(rows * width.div_ceil(LANES), 0.0);
        self.least.resize(rows * width.div_ceil(LANES), 0.0);
    }
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
        buffer.reserve(1, width);
        let Unpacked { numbers, scales, least } = buffer;
        numbers.resize(count * width, 0.0);
        for (row, numbers) in (first..).zip(numbers.chunks_exact_mut(width)) {
            let (part, row) = self.place(row);
            match &part.codes {
                Codes::Four(words, of) => {
                    let [of] = of.unpack_rows(row, width, scales, least);
                    unpack::<S, 4, 2>(simd, row_of::<4>(words, row, width), of, numbers);
                }
                Codes::Eight(words, of) => {
                    let words = row_of::<8>(words, row, width);
                    let group = of.group();
                    let [of] = of.unpack_rows(row, width, scales, least);
                    if group == LANES {
                        unpack::<S, 8, 1>(simd, words, of, numbers);
                    } else {
                        unpack::<S, 8, 2>(simd, words, of, numbers);
                    }
                }
                Codes::F16(bits) => halves(&bits[row * width..][..width], numbers),
                Codes::Bf16(bits) => {
                    for (number, &bits) in numbers.iter_mut().zip(&bits[row * width..][..width]) {
                        *number = f32::from_bits(u32::from(bits) << 16);
                    }
                }
            }
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

    /// Unpacks in registers.
    #[inline(always)]
    fn sums_of_few<S: Simd, const H: usize, const R: usize>(
        &self,
        simd: S,
        first: usize,
        x: [&[f32]; R],
        buffer: &mut Unpacked,
    ) -> Option<[[f32; R]; H]> {
        let [_, width] = self.dims();
        let (part, row) = self.place(first);
        // Scales of the rows' words, the numbers of `x`, and the sums need a register each.
        if S::REGISTER_COUNT < 32 || row + H > part.rows {
            return None;
        }
        buffer.reserve(H, width);
        let Unpacked { scales, least, .. } = buffer;
        Some(match &part.codes {
            Codes::Four(words, of) => {
                let rows = of.unpack_rows(row, width, scales, least);
                times_packed::<S, 4, 2, H, R>(simd, rows_of::<4, H>(words, row, width), rows, x)
            }
            Codes::Eight(words, of) => {
                let group = of.group();
                let rows = of.unpack_rows(row, width, scales, least);
                let words = rows_of::<8, H>(words, row, width);
                if group == LANES {
                    times_packed::<S, 8, 1, H, R>(simd, words, rows, x)
                } else {
                    times_packed::<S, 8, 2, H, R>(simd, words, rows, x)
                }
            }
            Codes::F16(_) | Codes::Bf16(_) => return None,
        })
    }
}

/// Scale and least number of each group of a row.
type Groups<'a> = [&'a [f32]; 2];

impl Scales {
    /// Unpacks scales and least numbers of several rows.
    #[inline(always)]
    fn unpack_rows<'a, const H: usize>(
        &self,
        first: usize,
        width: usize,
        scales: &'a mut [f32],
        least: &'a mut [f32],
    ) -> [Groups<'a>; H] {
        let groups = width / self.group();
        let (scales, least) = (&mut scales[..H * groups], &mut least[..H * groups]);
        self.unpack(first * groups, scales, least);
        let (scales, least): (&'a [f32], &'a [f32]) = (scales, least);
        std::array::from_fn(|h| [&scales[h * groups..][..groups], &least[h * groups..][..groups]])
    }
}

/// The words of a row of codes of `BITS` bits.
#[inline(always)]
fn row_of<const BITS: usize>(words: &[u32], row: usize, width: usize) -> &[u32] {
    &words[row * words_in::<BITS>(width)..][..words_in::<BITS>(width)]
}

/// The words of several rows.
#[inline(always)]
fn rows_of<const BITS: usize, const H: usize>(
    words: &[u32],
    first: usize,
    width: usize,
) -> [&[u32]; H] {
    std::array::from_fn(|h| row_of::<BITS>(words, first + h, width))
}

/// What [`numbers`] needs of a group: all numbers that it can have, in order, if [`looks_up`], otherwise its scale and
/// its least number in every lane.
#[inline(always)]
fn group_numbers<S: Simd, const BITS: usize>(simd: S, scale: f32, least: f32) -> [S::f32s; 2] {
    let [scale, least] = [scale, least].map(|number| simd.splat_f32s(number));
    if looks_up::<S, BITS>(simd).is_some() {
        let codes: [f32; LANES] = std::array::from_fn(|code| code as f32);
        // The product is exact, so fusing it with the sum changes nothing.
        [simd.mul_add_e_f32s(scale, S::as_simd_f32s(&codes).0[0], least), least]
    } else {
        [scale, least]
    }
}

/// Unpacks the numbers with the codes that begin at bit `at · BITS` of some words.
#[inline(always)]
fn numbers<S: Simd, const BITS: usize>(
    simd: S,
    words: S::u32s,
    at: usize,
    of_group: [S::f32s; 2],
) -> S::f32s {
    /// A float of this exponent has the value of its mantissa's integer plus 2²³.
    const EXPONENT: u32 = (127 + 23) << 23;
    let codes = simd.wrapping_dyn_shr_u32s(words, simd.splat_u32s((at * BITS) as u32));
    if let Some(look_up) = looks_up::<S, BITS>(simd) {
        return look_up.numbers::<S>(codes, of_group[0]);
    }
    let codes = simd.and_u32s(codes, simd.splat_u32s((1 << BITS) - 1));
    let codes = simd.transmute_f32s_u32s(simd.or_u32s(codes, simd.splat_u32s(EXPONENT)));
    let codes = simd.sub_f32s(codes, simd.splat_f32s(f32::from_bits(EXPONENT)));
    simd.mul_add_e_f32s(of_group[0], codes, of_group[1])
}

/// Unpacks a row of codes of `BITS` bits in groups of `GROUP · LANES` numbers.
#[inline(always)]
fn unpack<S: Simd, const BITS: usize, const GROUP: usize>(
    simd: S,
    words: &[u32],
    [scales, least]: Groups,
    unpacked: &mut [f32],
) {
    let steps = 32 / BITS;
    let groups = scales.chunks(steps / GROUP).zip(least.chunks(steps / GROUP));
    let blocks = words.chunks_exact(LANES).zip(unpacked.chunks_mut(LANES * steps));
    for ((words, unpacked), (scales, least)) in blocks.zip(groups) {
        // Unrolled for whole blocks, so that the shifts are constants.
        if unpacked.len() == LANES * steps {
            unpack_block::<S, BITS, GROUP>(simd, words, [scales, least], unpacked, steps);
        } else {
            let steps = unpacked.len() / LANES;
            unpack_block::<S, BITS, GROUP>(simd, words, [scales, least], unpacked, steps);
        }
    }
}

/// Unpacks the first `steps · LANES` numbers of a block.
#[inline(always)]
fn unpack_block<S: Simd, const BITS: usize, const GROUP: usize>(
    simd: S,
    words: &[u32],
    [scales, least]: Groups,
    unpacked: &mut [f32],
    steps: usize,
) {
    let vectors = LANES / S::F32_LANES;
    let (words, _) = S::as_simd_u32s(words);
    let (unpacked, _) = S::as_mut_simd_f32s(unpacked);
    for of_group in 0..steps / GROUP {
        let numbers_of = group_numbers::<S, BITS>(simd, scales[of_group], least[of_group]);
        for at in of_group * GROUP..(of_group + 1) * GROUP {
            for vector in 0..vectors {
                unpacked[at * vectors + vector] =
                    numbers::<S, BITS>(simd, words[vector], at, numbers_of);
            }
        }
    }
}

/// The products of `H` rows of codes with `R` rows of `x`, summed in the order of the tile of unpacked rows.
#[inline(always)]
fn times_packed<S: Simd, const BITS: usize, const GROUP: usize, const H: usize, const R: usize>(
    simd: S,
    words: [&[u32]; H],
    groups: [Groups; H],
    x: [&[f32]; R],
) -> [[f32; R]; H] {
    let (of_block, vectors, width) = (32 / BITS, LANES / S::F32_LANES, x[0].len());
    let words: [_; H] = std::array::from_fn(|h| S::as_simd_u32s(words[h]).0);
    let x: [_; R] = std::array::from_fn(|r| S::as_simd_f32s(&x[r][..width]).0);
    let mut sums = [[simd.splat_f32s(0.0); R]; H];
    let blocks = width / (LANES * of_block);
    for block in 0..blocks {
        // The compiler knows the lengths of these slices, so it drops the bounds checks in the loop, and the number of
        // steps, so that the shifts are constants.
        let words: [&[S::u32s]; H] =
            std::array::from_fn(|h| &words[h][block * vectors..][..vectors]);
        let (group, count) = (block * (of_block / GROUP), of_block / GROUP);
        let scales: [&[f32]; H] = std::array::from_fn(|h| &groups[h][0][group..][..count]);
        let least: [&[f32]; H] = std::array::from_fn(|h| &groups[h][1][group..][..count]);
        let first = block * of_block * vectors;
        let x: [&[S::f32s]; R] = std::array::from_fn(|r| &x[r][first..][..of_block * vectors]);
        for of_group in 0..count {
            let groups: [_; H] = std::array::from_fn(|h| {
                group_numbers::<S, BITS>(simd, scales[h][of_group], least[h][of_group])
            });
            for at in of_group * GROUP..(of_group + 1) * GROUP {
                for vector in 0..vectors {
                    for h in 0..H {
                        let weight = numbers::<S, BITS>(simd, words[h][vector], at, groups[h]);
                        for r in 0..R {
                            let x = x[r][at * vectors + vector];
                            sums[h][r] = simd.mul_add_e_f32s(weight, x, sums[h][r]);
                        }
                    }
                }
            }
        }
    }
    for at in 0..width / LANES % of_block {
        let of_group = (blocks * of_block + at) / GROUP;
        for vector in 0..vectors {
            for h in 0..H {
                let [scales, least] = groups[h];
                let numbers_of = group_numbers::<S, BITS>(simd, scales[of_group], least[of_group]);
                let words = words[h][blocks * vectors + vector];
                let weight = numbers::<S, BITS>(simd, words, at, numbers_of);
                for r in 0..R {
                    let x = x[r][(blocks * of_block + at) * vectors + vector];
                    sums[h][r] = simd.mul_add_e_f32s(weight, x, sums[h][r]);
                }
            }
        }
    }
    let mut products = [[0.0; R]; H];
    for h in 0..H {
        for r in 0..R {
            products[h][r] = simd.reduce_sum_f32s(sums[h][r]);
        }
    }
    products
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::{
        super::{
            product::{Dense, times_transposed},
            tests::{numbers, wave},
        },
        *,
    };
    use crate::host::packed::{PackedRows, words_of};

    const WIDTH: usize = 5 * 256 / 4;

    /// Rows of every kind of code and scale, which end within a block. The blocks' numbers have few bits, as in a file.
    fn every_kind() -> [Codes; 6] {
        let bits = |count: usize, step: usize| -> Vec<u16> {
            (0..count).map(|i| 0x2c00 + (i * step % 4096) as u16).collect()
        };
        let codes = |most: usize| -> Vec<u8> { (0..WIDTH).map(|i| (i * 7 % most) as u8).collect() };
        let groups = WIDTH / 32;
        let integers = (0..groups).map(|i| [i as u8 % 64, 63 - i as u8 % 64]).collect();
        [
            Codes::Four(
                words_of::<4>(&codes(16)),
                Scales::Scaled { scales: bits(groups, 77), least: -8.0 },
            ),
            Codes::Four(
                words_of::<4>(&codes(16)),
                Scales::Blocks { integers, blocks: vec![[0.25, 0.75]; groups.div_ceil(8)] },
            ),
            Codes::Eight(
                words_of::<8>(&codes(256)),
                Scales::Both { scales: bits(groups, 77), least: bits(groups, 31) },
            ),
            Codes::Eight(
                words_of::<8>(&codes(64)),
                Scales::SignedBlocks {
                    integers: (0..WIDTH / 16).map(|i| i as i8 - 9).collect(),
                    blocks: vec![0.125; (WIDTH / 16).div_ceil(16)],
                },
            ),
            Codes::F16(bits(WIDTH, 5)),
            Codes::Bf16(bits(WIDTH, 3)),
        ]
    }

    #[test]
    fn rows_are_those_that_are_unpacked_one_by_one() {
        let parts = every_kind().map(|codes| PackedRows { rows: 1, codes });
        let matrix = PackedMatrix::new(WIDTH, parts.to_vec());
        let expected = matrix.to_numbers();
        let mut buffer = Unpacked::default();
        for (row, expected) in expected.chunks(WIDTH).enumerate() {
            assert_eq!(matrix.row(row, &mut buffer), expected, "{row}");
        }
    }

    /// Few rows are multiplied in registers, more with unpacked rows.
    #[test]
    fn products_are_those_of_the_unpacked_matrix() {
        // Tiles within a part and across parts.
        let mut parts = Vec::new();
        for codes in every_kind() {
            for rows in [1, 5, 4, 7] {
                let codes = codes.clone();
                let codes = match codes {
                    Codes::Four(words, of) => Codes::Four(words.repeat(rows), of.repeat(rows)),
                    Codes::Eight(words, of) => Codes::Eight(words.repeat(rows), of.repeat(rows)),
                    Codes::F16(bits) => Codes::F16(bits.repeat(rows)),
                    Codes::Bf16(bits) => Codes::Bf16(bits.repeat(rows)),
                };
                parts.push(PackedRows { rows, codes });
            }
        }
        let matrix = PackedMatrix::new(WIDTH, parts);
        let unpacked = matrix.to_numbers();
        let [columns, _] = matrix.dims();
        let dense = Dense { numbers: &unpacked, width: WIDTH };
        for rows in [1, 2, 3, 4, 5, 7, 13] {
            let x: Vec<f32> = (0..rows * WIDTH).map(|i| (i as f32 * 0.37).sin()).collect();
            let (mut here, mut expected) = (vec![0.0; rows * columns], vec![0.0; rows * columns]);
            multiply(&x, &matrix, &mut here);
            multiply(&x, &dense, &mut expected);
            assert_eq!(here, expected, "{rows} rows");
        }
        // However long a prompt is.
        let weight = from_f32(unpacked, [columns, WIDTH], &Device::flex());
        for rows in [128, 129, 300] {
            let x = wave([rows, WIDTH], 0.37, 1.0);
            let here = numbers(packed_times(&x, &matrix).unwrap());
            let expected = numbers(times_transposed(&x, &weight).unwrap());
            assert!(here == expected, "{rows} rows");
        }
    }
}
