//! Matrices that stay packed as in a GGUF file, and are unpacked row by row.
//!
//! Unpacking gives the same numbers as dequantising to `f32` at load: a code times a scale of a few bits is exact, so
//! the sum with the group's least number is the only rounding in both.

use std::ops::Range;

use half::{bf16, f16};

/// A matrix of packed rows, `[rows, width]`. Its rows may come from several tensors of different kinds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedMatrix {
    width: usize,
    parts: Vec<PackedRows>,
}

/// Packed rows of one kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PackedRows {
    pub(crate) rows: usize,
    pub(crate) codes: Codes,
}

/// How the numbers of packed rows are coded. A number is `scale · code + least` with the two numbers of its group.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Codes {
    /// Four bits: words of eight codes.
    Four(Vec<u32>, Scales),
    /// Eight bits: words of four codes.
    Eight(Vec<u32>, Scales),
    /// The bits of `f16`, all finite.
    F16(Vec<u16>),
    /// The bits of `bf16`.
    Bf16(Vec<u16>),
}

/// Scale and least number of each group, in the order of the groups.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scales {
    /// The bits of `f16`, all finite; the least number is the given multiple of the scale. Groups of 32.
    Scaled { scales: Vec<u16>, least: f32 },
    /// The bits of `f16`, all finite, for both. Groups of 32.
    Both { scales: Vec<u16>, least: Vec<u16> },
    /// Integers of 8 groups of 32, to be multiplied with two numbers of their block: scale, and the least number's
    /// negative.
    Blocks { integers: Vec<[u8; 2]>, blocks: Vec<[f32; 2]> },
    /// Integers of 16 groups of 16, to be multiplied with a number of their block; the least number is −32 times the
    /// scale.
    SignedBlocks { integers: Vec<i8>, blocks: Vec<f32> },
}

impl Scales {
    /// Numbers per group.
    pub(crate) const fn group(&self) -> usize {
        if matches!(self, Self::SignedBlocks { .. }) { 16 } else { 32 }
    }

    /// Writes scale and least number of the groups from `first` on.
    #[inline(always)]
    pub(crate) fn unpack(&self, first: usize, scales: &mut [f32], least: &mut [f32]) {
        let count = scales.len();
        match self {
            Self::Scaled { scales: from, least: times } => {
                halves(&from[first..first + count], scales);
                for (least, scale) in least.iter_mut().zip(scales) {
                    *least = *times * *scale;
                }
            }
            Self::Both { scales: from, least: from_least } => {
                halves(&from[first..first + count], scales);
                halves(&from_least[first..first + count], least);
            }
            Self::Blocks { integers, blocks } => {
                for (block, run) in runs::<8>(first, count) {
                    let integers = &integers[first + run.start..first + run.end];
                    let (scales, least) = (&mut scales[run.clone()], &mut least[run]);
                    let [block_scale, block_least] = blocks[block];
                    of_block::<8, _>(integers, scales, least, |[scale, least]| {
                        [block_scale * f32::from(scale), -(block_least * f32::from(least))]
                    });
                }
            }
            Self::SignedBlocks { integers, blocks } => {
                for (block, run) in runs::<16>(first, count) {
                    let integers = &integers[first + run.start..first + run.end];
                    let (scales, least) = (&mut scales[run.clone()], &mut least[run]);
                    let block_scale = blocks[block];
                    of_block::<16, _>(integers, scales, least, |integer| {
                        let scale = block_scale * f32::from(integer);
                        [scale, -32.0 * scale]
                    });
                }
            }
        }
    }

    /// The groups of `rows` equal rows, for tests.
    #[cfg(test)]
    pub(crate) fn repeat(self, rows: usize) -> Self {
        match self {
            Self::Scaled { scales, least } => Self::Scaled { scales: scales.repeat(rows), least },
            Self::Both { scales, least } => {
                Self::Both { scales: scales.repeat(rows), least: least.repeat(rows) }
            }
            Self::Blocks { integers, blocks } => {
                let blocks = blocks.repeat(rows);
                Self::Blocks { integers: integers.repeat(rows), blocks }
            }
            Self::SignedBlocks { integers, blocks } => {
                let blocks = blocks.repeat(rows);
                Self::SignedBlocks { integers: integers.repeat(rows), blocks }
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Scaled { scales, .. } => 2 * scales.len(),
            Self::Both { scales, least } => 2 * (scales.len() + least.len()),
            Self::Blocks { integers, blocks } => 2 * integers.len() + 8 * blocks.len(),
            Self::SignedBlocks { integers, blocks } => integers.len() + 4 * blocks.len(),
        }
    }
}

/// Splits `count` groups from `first` on between blocks of `N` groups: each block, and the places of its groups.
#[inline(always)]
fn runs<const N: usize>(first: usize, count: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    (first / N..(first + count).div_ceil(N)).map(move |block| {
        let start = (block * N).saturating_sub(first);
        (block, start..((block + 1) * N - first).min(count))
    })
}

/// Scale and least number of each integer of a block.
#[inline(always)]
fn of_block<const N: usize, T: Copy>(
    integers: &[T],
    scales: &mut [f32],
    least: &mut [f32],
    numbers: impl Fn(T) -> [f32; 2],
) {
    let each = |integers: &[T], scales: &mut [f32], least: &mut [f32]| {
        for ((&integer, scale), least) in integers.iter().zip(scales).zip(least) {
            [*scale, *least] = numbers(integer);
        }
    };
    // The compiler knows the length of a whole block, so it uses vector instructions.
    if integers.len() == N {
        each(&integers[..N], &mut scales[..N], &mut least[..N]);
    } else {
        each(integers, scales, least);
    }
}

/// Converts the bits of finite `f16`.
#[inline(always)]
pub(crate) fn halves(bits: &[u16], numbers: &mut [f32]) {
    /// 2¹¹², the difference of the exponents' biases.
    const BIAS: f32 = f32::from_bits(239 << 23);
    // Without the branches and the call of `half`, so that it can be vectorised.
    for (number, &bits) in numbers.iter_mut().zip(bits) {
        let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * BIAS;
        *number = f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16);
    }
}

/// Words of a block: as many as the widest vector has lanes. Lane `i` of a block has the codes of numbers `i`, `i + 16`,
/// `i + 32` and so on, lowest bits first, so that unpacking is a shift, a mask and a conversion of whole vectors. A
/// narrower vector takes some of the lanes.
pub(crate) const LANES: usize = 16;

/// The words of a row of `width` codes, each of `BITS` bits.
pub(crate) const fn words_in<const BITS: usize>(width: usize) -> usize {
    width.div_ceil(LANES * 32 / BITS) * LANES
}

/// Packs the codes of a row, each of `BITS` bits, into the words of its blocks; the last block is filled with zeros.
#[inline(always)]
pub(crate) fn words<const BITS: usize>(codes: &[u8], words: &mut [u32]) {
    for (codes, words) in codes.chunks(LANES * 32 / BITS).zip(words.chunks_exact_mut(LANES)) {
        words.fill(0);
        for (at, codes) in codes.chunks(LANES).enumerate() {
            for (word, &code) in words.iter_mut().zip(codes) {
                *word |= u32::from(code) << (at * BITS);
            }
        }
    }
}

/// [`words`] in a vector of their own, for tests.
#[cfg(test)]
pub(crate) fn words_of<const BITS: usize>(codes: &[u8]) -> Vec<u32> {
    let mut packed = vec![0; words_in::<BITS>(codes.len())];
    words::<BITS>(codes, &mut packed);
    packed
}

impl PackedRows {
    /// Bytes of the packed rows.
    fn bytes(&self) -> usize {
        match &self.codes {
            Codes::Four(words, scales) | Codes::Eight(words, scales) => {
                4 * words.len() + scales.bytes()
            }
            Codes::F16(bits) | Codes::Bf16(bits) => 2 * bits.len(),
        }
    }

    /// Appends the numbers of a row, one by one.
    fn extend(&self, row: usize, width: usize, numbers: &mut Vec<f32>) {
        let (words, of, bits) = match &self.codes {
            Codes::Four(words, of) => (words, of, 4),
            Codes::Eight(words, of) => (words, of, 8),
            Codes::F16(bits) => {
                let bits = &bits[row * width..][..width];
                return numbers.extend(bits.iter().map(|&bits| f16::from_bits(bits).to_f32()));
            }
            Codes::Bf16(bits) => {
                let bits = &bits[row * width..][..width];
                return numbers.extend(bits.iter().map(|&bits| bf16::from_bits(bits).to_f32()));
            }
        };
        let (in_block, groups) = (LANES * 32 / bits, width / of.group());
        let (mut scales, mut least) = (vec![0.0; groups], vec![0.0; groups]);
        of.unpack(row * groups, &mut scales, &mut least);
        let words = &words[row * width.div_ceil(in_block) * LANES..];
        numbers.extend((0..width).map(|i| {
            let word = words[i / in_block * LANES + i % LANES];
            let code = word >> (i % in_block / LANES * bits) & ((1 << bits) - 1);
            scales[i / of.group()] * code as f32 + least[i / of.group()]
        }));
    }
}

impl PackedMatrix {
    /// A matrix of at least one row, from parts of this width.
    pub(crate) fn new(width: usize, parts: Vec<PackedRows>) -> Self {
        Self { width, parts }
    }

    /// `[rows, width]`
    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.parts.iter().map(|part| part.rows).sum(), self.width]
    }

    /// Bytes of the packed rows.
    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(PackedRows::bytes).sum()
    }

    /// The part of a row, and its place there.
    #[inline(always)]
    pub(crate) fn place(&self, row: usize) -> (&PackedRows, usize) {
        let mut at = row;
        for part in &self.parts {
            if at < part.rows {
                return (part, at);
            }
            at -= part.rows;
        }
        (&self.parts[0], row)
    }

    /// All numbers, row by row.
    pub(crate) fn to_numbers(&self) -> Vec<f32> {
        let [rows, width] = self.dims();
        let mut numbers = Vec::with_capacity(rows * width);
        for row in 0..rows {
            let (part, at) = self.place(row);
            part.extend(at, width, &mut numbers);
        }
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_those_of_the_crate_half() {
        let bits: Vec<u16> =
            (0..=u16::MAX).filter(|&bits| f16::from_bits(bits).is_finite()).collect();
        let mut numbers = vec![0.0; bits.len()];
        halves(&bits, &mut numbers);
        for (&bits, number) in bits.iter().zip(numbers) {
            assert_eq!(number.to_bits(), f16::from_bits(bits).to_f32().to_bits(), "{bits:04x}");
        }
    }

    #[test]
    fn rows_of_several_kinds() {
        let scales = |scale: f32| Scales::Scaled {
            scales: vec![f16::from_f32(scale).to_bits(); 2],
            least: -8.0,
        };
        // 64 codes of two rows; a block has room for 128.
        let codes: Vec<u8> = (0..32).map(|i| i % 16).collect();
        let codes = [&codes[..], &codes].into_iter().flat_map(words_of::<4>).collect();
        let four = PackedRows { rows: 2, codes: Codes::Four(codes, scales(0.5)) };
        let bits = (0..32).map(|i| bf16::from_f32(i as f32).to_bits()).collect();
        let bf16 = PackedRows { rows: 1, codes: Codes::Bf16(bits) };
        let matrix = PackedMatrix::new(32, vec![four, bf16]);
        assert_eq!((matrix.dims(), matrix.bytes()), ([3, 32], 2 * 64 + 4 + 64));
        let numbers = matrix.to_numbers();
        for (row, at, expected) in [(0, 3, -2.5), (0, 19, -2.5), (1, 31, 3.5), (2, 31, 31.0)] {
            assert_eq!(numbers[row * 32 + at], expected, "{row} {at}");
        }
    }

    #[test]
    fn groups_are_split_between_blocks() {
        let found = |first, count| runs::<8>(first, count).collect::<Vec<_>>();
        assert_eq!(found(0, 16), [(0, 0..8), (1, 8..16)]);
        assert_eq!(found(5, 4), [(0, 0..3), (1, 3..4)]);
        assert_eq!(found(9, 2), [(1, 0..2)]);
    }

    #[test]
    fn codes_are_a_vector_apart() {
        let codes: Vec<u8> = (0..70).collect();
        let packed = words_of::<8>(&codes);
        assert_eq!(packed.len(), 32);
        assert_eq!(packed[3], 3 | 19 << 8 | 35 << 16 | 51 << 24);
        assert_eq!((packed[16], packed[21], packed[22]), (64, 69, 0));
    }
}
