//! Matrices that stay packed as in a GGUF file, and are unpacked row by row.
//!
//! Unpacking gives the same numbers as dequantising to `f32` at load: a code times a scale of a few bits is exact, so
//! the sum with the group's least number is the only rounding in both.

use half::f16;

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
    /// Four bits: 16 bytes for a group of 32, the first 16 numbers in the low halves.
    Four(Vec<u8>, Scales),
    /// A byte for each number, in groups of the given length.
    Eight(Vec<u8>, Scales),
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
    const fn group(&self) -> usize {
        if matches!(self, Self::SignedBlocks { .. }) { 16 } else { 32 }
    }

    /// Writes scale and least number of the groups from `first` on.
    #[inline(always)]
    fn unpack(&self, first: usize, scales: &mut [f32], least: &mut [f32]) {
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
                for (at, [scale, least_of]) in integers[first..first + count].iter().enumerate() {
                    let [block_scale, block_least] = blocks[(first + at) / 8];
                    scales[at] = block_scale * f32::from(*scale);
                    least[at] = -(block_least * f32::from(*least_of));
                }
            }
            Self::SignedBlocks { integers, blocks } => {
                for (at, integer) in integers[first..first + count].iter().enumerate() {
                    scales[at] = blocks[(first + at) / 16] * f32::from(*integer);
                    least[at] = -32.0 * scales[at];
                }
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

/// Converts the bits of finite `f16`.
#[inline(always)]
fn halves(bits: &[u16], numbers: &mut [f32]) {
    /// 2¹¹², the difference of the exponents' biases.
    const BIAS: f32 = f32::from_bits(239 << 23);
    // Without the branches and the call of `half`, so that it can be vectorised.
    for (number, &bits) in numbers.iter_mut().zip(bits) {
        let magnitude = f32::from_bits(u32::from(bits & 0x7fff) << 13) * BIAS;
        *number = f32::from_bits(magnitude.to_bits() | u32::from(bits & 0x8000) << 16);
    }
}

/// Buffers for unpacked rows, reused from one row to the next.
#[derive(Debug, Default)]
pub(crate) struct Unpacked {
    numbers: Vec<f32>,
    scales: Vec<f32>,
    least: Vec<f32>,
}

impl PackedRows {
    /// Unpacks a row.
    #[inline(always)]
    fn unpack(&self, row: usize, scales: &mut [f32], least: &mut [f32], numbers: &mut [f32]) {
        let width = numbers.len();
        let (codes, of) = match &self.codes {
            Codes::Four(codes, of) => (&codes[row * width / 2..][..width / 2], of),
            Codes::Eight(codes, of) => (&codes[row * width..][..width], of),
            Codes::F16(bits) => return halves(&bits[row * width..][..width], numbers),
            Codes::Bf16(bits) => {
                for (number, &bits) in numbers.iter_mut().zip(&bits[row * width..][..width]) {
                    *number = f32::from_bits(u32::from(bits) << 16);
                }
                return;
            }
        };
        let groups = width / of.group();
        let (scales, least) = (&mut scales[..groups], &mut least[..groups]);
        of.unpack(row * groups, scales, least);
        let of_groups = scales.iter().zip(&*least);
        match &self.codes {
            Codes::Four(..) => {
                let both = codes.as_chunks::<16>().0.iter().zip(numbers.as_chunks_mut::<32>().0);
                for ((codes, numbers), (&scale, &least)) in both.zip(of_groups) {
                    for (i, &code) in codes.iter().enumerate() {
                        numbers[i] = scale * f32::from(code & 15) + least;
                        numbers[i + 16] = scale * f32::from(code >> 4) + least;
                    }
                }
            }
            _ if of.group() == 16 => scaled::<16>(codes, of_groups, numbers),
            _ => scaled::<32>(codes, of_groups, numbers),
        }
    }

    /// Bytes of the packed rows.
    fn bytes(&self) -> usize {
        match &self.codes {
            Codes::Four(codes, scales) | Codes::Eight(codes, scales) => {
                codes.len() + scales.bytes()
            }
            Codes::F16(bits) | Codes::Bf16(bits) => 2 * bits.len(),
        }
    }
}

/// Unpacks groups of `N` bytes.
#[inline(always)]
fn scaled<'a, const N: usize>(
    codes: &[u8],
    of_groups: impl Iterator<Item = (&'a f32, &'a f32)>,
    numbers: &mut [f32],
) {
    let both = codes.as_chunks::<N>().0.iter().zip(numbers.as_chunks_mut::<N>().0);
    for ((codes, numbers), (&scale, &least)) in both.zip(of_groups) {
        for (number, &code) in numbers.iter_mut().zip(codes) {
            *number = scale * f32::from(code) + least;
        }
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

    /// Unpacks `count` rows from row `first` on.
    #[inline(always)]
    pub(crate) fn unpack<'a>(
        &self,
        first: usize,
        count: usize,
        buffer: &'a mut Unpacked,
    ) -> &'a [f32] {
        let Unpacked { numbers, scales, least } = buffer;
        numbers.resize(count * self.width, 0.0);
        scales.resize(self.width.div_ceil(16), 0.0);
        least.resize(self.width.div_ceil(16), 0.0);
        for (row, numbers) in (first..).zip(numbers.chunks_exact_mut(self.width)) {
            let mut at = row;
            for part in &self.parts {
                if at < part.rows {
                    part.unpack(at, scales, least, numbers);
                    break;
                }
                at -= part.rows;
            }
        }
        numbers
    }

    /// All numbers, row by row.
    pub(crate) fn to_numbers(&self) -> Vec<f32> {
        let mut buffer = Unpacked::default();
        let rows = 0..self.dims()[0];
        rows.flat_map(|row| self.unpack(row, 1, &mut buffer).to_vec()).collect()
    }
}

/// Whether the bits of `f16` are those of a number that is neither infinite nor NaN.
pub(crate) fn is_finite_half(bits: u16) -> bool {
    f16::from_bits(bits).is_finite()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn halves_are_those_of_the_crate_half() {
        let bits: Vec<u16> = (0..=u16::MAX).filter(|&bits| is_finite_half(bits)).collect();
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
        let four = PackedRows { rows: 2, codes: Codes::Four((0..32).collect(), scales(0.5)) };
        let bits = (0..32).map(|i| bf16::from_f32(i as f32).to_bits()).collect();
        let bf16 = PackedRows { rows: 1, codes: Codes::Bf16(bits) };
        let matrix = PackedMatrix::new(32, vec![four, bf16]);
        assert_eq!((matrix.dims(), matrix.bytes()), ([3, 32], 32 + 4 + 64));
        let mut buffer = Unpacked::default();
        let row = |row: usize, at: usize, buffer: &mut Unpacked| matrix.unpack(row, 1, buffer)[at];
        // Byte 3 of the first row is 3: 3 in the low half, 0 in the high one. Byte 3 of the second is 16 + 3.
        assert_eq!(row(0, 3, &mut buffer), 0.5 * 3.0 - 4.0);
        assert_eq!(row(0, 19, &mut buffer), -4.0);
        assert_eq!(row(1, 19, &mut buffer), 0.5 - 4.0);
        assert_eq!(row(2, 31, &mut buffer), 31.0);
        let all = matrix.to_numbers();
        assert_eq!(&all[32..], matrix.unpack(1, 2, &mut buffer));
    }
}
