//! Repacking of quantised rows for the products on the host.

use half::f16;

use super::quant::{Kind, fifth, six_bits};
use crate::host::{
    packed::{Codes, PackedRows, Scales, words, words_in},
    share_pieces,
};

/// Repacks rows of `width` numbers, `raw` in the layout of the file. Row `i` of the result is row `source(i)`. `None`
/// for `f32`, for rows that are not whole blocks, and for scales that are not finite, which a damaged file may have.
pub(super) fn pack(
    kind: Kind,
    raw: &[u8],
    [rows, width]: [usize; 2],
    source: impl Fn(usize) -> usize + Sync,
) -> Option<PackedRows> {
    let row_bytes = kind.bytes(width)?;
    let (_, block_bytes) = kind.block();
    let row_of = |row| &raw[source(row) * row_bytes..][..row_bytes];
    let blocks = (0..rows).flat_map(|row| row_of(row).chunks_exact(block_bytes));
    let scaled =
        |least: f32| halves(blocks.clone(), 0).map(|scales| Scales::Scaled { scales, least });
    let both = || {
        let (scales, least) = (halves(blocks.clone(), 0)?, halves(blocks.clone(), 2)?);
        Some(Scales::Both { scales, least })
    };
    let four = |codes_of: CodesOf| packed_words::<4>(kind, codes_of, [rows, width], row_of);
    let eight = |codes_of: CodesOf| packed_words::<8>(kind, codes_of, [rows, width], row_of);
    let codes = match kind {
        Kind::F32 => return None,
        Kind::F16 => Codes::F16(blocks.map(word).map(finite).collect::<Option<_>>()?),
        Kind::Bf16 => Codes::Bf16(blocks.map(word).collect()),
        Kind::Q4_0 => Codes::Four(four(|b, codes| nibbles(&b[2..], codes)), scaled(-8.0)?),
        Kind::Q4_1 => Codes::Four(four(|b, codes| nibbles(&b[4..], codes)), both()?),
        Kind::Q5_0 => {
            let codes_of: CodesOf = |b, codes| five_bits(&b[2..6], &b[6..], codes);
            Codes::Eight(eight(codes_of), scaled(-16.0)?)
        }
        Kind::Q5_1 => {
            let codes_of: CodesOf = |b, codes| five_bits(&b[4..8], &b[8..], codes);
            Codes::Eight(eight(codes_of), both()?)
        }
        Kind::Q8_0 => {
            let codes_of: CodesOf = |b, codes| {
                // A signed byte with its sign flipped is the number plus 128.
                codes.iter_mut().zip(&b[2..]).for_each(|(code, number)| *code = number ^ 0x80);
            };
            Codes::Eight(eight(codes_of), scaled(-128.0)?)
        }
        Kind::Q4K => Codes::Four(four(|b, codes| k_nibbles(&b[16..144], codes)), k_scales(blocks)?),
        Kind::Q5K => {
            let codes_of: CodesOf = |b, codes| {
                k_nibbles(&b[48..176], codes);
                for (at, code) in codes.iter_mut().enumerate() {
                    *code |= (b[16 + at % 32] >> (at / 32) & 1) << 4;
                }
            };
            Codes::Eight(eight(codes_of), k_scales(blocks)?)
        }
        Kind::Q6K => {
            let codes_of: CodesOf = |b, codes| {
                for (at, code) in codes.iter_mut().enumerate() {
                    let (half, quarter, place) = (at / 128, at % 128 / 32, at % 32);
                    let low = b[half * 64 + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
                    *code = low | (b[128 + half * 32 + place] >> (2 * quarter) & 3) << 4;
                }
            };
            let integers = blocks.clone().flat_map(|b| b[192..208].iter().map(|&s| s as i8));
            let scales = Scales::SignedBlocks {
                integers: integers.collect(),
                blocks: blocks.clone().map(|b| number(&b[208..])).collect::<Option<_>>()?,
            };
            Codes::Eight(eight(codes_of), scales)
        }
    };
    Some(PackedRows { rows, codes })
}

/// Writes the codes of a block's numbers, one per byte.
type CodesOf = fn(&[u8], &mut [u8]);

/// The words of rows of codes, packed on several threads: it is most of the time of loading a model.
fn packed_words<'a, const BITS: usize>(
    kind: Kind,
    codes_of: CodesOf,
    [rows, width]: [usize; 2],
    row_of: impl Fn(usize) -> &'a [u8] + Sync,
) -> Vec<u32> {
    /// About a millisecond.
    const CODES_OF_A_THREAD: usize = 1 << 20;
    let (block_numbers, block_bytes) = kind.block();
    let words_of_a_row = words_in::<BITS>(width);
    let mut packed = vec![0; rows * words_of_a_row];
    let work = |(packed, first): (&mut [u32], usize)| {
        let mut codes = vec![0; width];
        for (row, packed) in (first..).zip(packed.chunks_exact_mut(words_of_a_row)) {
            let blocks = row_of(row).chunks_exact(block_bytes);
            for (block, codes) in blocks.zip(codes.chunks_exact_mut(block_numbers)) {
                codes_of(block, codes);
            }
            words::<BITS>(&codes, packed);
        }
    };
    share_pieces(
        rows * width,
        CODES_OF_A_THREAD,
        |codes| {
            let rows_of_a_piece = codes.div_ceil(width);
            let pieces = packed.chunks_mut(rows_of_a_piece * words_of_a_row);
            pieces.zip((0..rows).step_by(rows_of_a_piece))
        },
        work,
    );
    packed
}

fn word(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn finite(bits: u16) -> Option<u16> {
    f16::from_bits(bits).is_finite().then_some(bits)
}

fn number(bytes: &[u8]) -> Option<f32> {
    finite(word(bytes)).map(|bits| f16::from_bits(bits).to_f32())
}

/// The bits of an `f16` in each block.
fn halves<'a>(blocks: impl Iterator<Item = &'a [u8]>, at: usize) -> Option<Vec<u16>> {
    blocks.map(|block| finite(word(&block[at..]))).collect()
}

/// 32 numbers of four bits: the low halves of 16 bytes, then the high ones.
fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(16);
    for (byte, (low, high)) in bytes.iter().zip(low.iter_mut().zip(high)) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// 32 numbers of five bits, from their fifth bits and the four lower ones.
fn five_bits(bits: &[u8], low: &[u8], codes: &mut [u8]) {
    nibbles(low, codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= fifth(bits, i);
    }
}

/// The four lower bits of the 256 numbers of a block of Q4_K or Q5_K: of every 32 bytes the low halves, then the high ones.
fn k_nibbles(bytes: &[u8], codes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
        let (low, high) = codes.split_at_mut(32);
        for (byte, (low, high)) in bytes.iter().zip(low.iter_mut().zip(high)) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// Scales and least numbers of the blocks of Q4_K and Q5_K.
fn k_scales<'a>(blocks: impl Iterator<Item = &'a [u8]> + Clone) -> Option<Scales> {
    let integers = blocks.clone().flat_map(|b| {
        (0..8).map(|group| {
            let (scale, least) = six_bits(&b[4..16], group);
            [scale, least]
        })
    });
    let numbers = blocks.clone().map(|b| Some([number(b)?, number(&b[2..])?]));
    Some(Scales::Blocks { integers: integers.collect(), blocks: numbers.collect::<Option<_>>()? })
}

#[cfg(test)]
mod tests {
    use super::super::quant::tests::blocks;
    use super::*;
    use crate::host::packed::PackedMatrix;

    /// The numbers of every kind, in two rows and in another order, are those of dequantising.
    #[test]
    fn unpacking_is_dequantising() {
        for (name, id, raw, expected) in blocks() {
            let kind = Kind::from_id(id).unwrap();
            let elements = expected.len();
            let numbers = kind.dequantise(&raw, elements);
            let width = kind.block().0.max(32);
            let rows = elements / width;
            let packed = pack(kind, &raw, [rows, width], |row| rows - 1 - row).unwrap();
            let matrix = PackedMatrix::new(width, vec![packed]);
            // Equal as numbers: a code in the middle of a group with a negative scale is −0 in one and 0 in the other.
            let unpacked = matrix.to_numbers();
            for (unpacked, numbers) in unpacked.chunks(width).zip(numbers.chunks(width).rev()) {
                assert_eq!(unpacked, numbers, "{name}");
            }
        }
    }

    /// Enough rows for two threads, in another order.
    #[test]
    fn many_rows_are_packed_like_single_ones() {
        let (rows, width) = (4_200, 512);
        let raw: Vec<u8> = (0..rows * 16)
            .flat_map(|block: usize| {
                let scale = f16::from_f32(1.0 + (block % 7) as f32).to_bits().to_le_bytes();
                scale.into_iter().chain((0..32).map(move |i| (block * 31 + i * 7) as u8))
            })
            .collect();
        let from = |row: usize| rows - 1 - row;
        let packed = pack(Kind::Q8_0, &raw, [rows, width], from).unwrap();
        let numbers = PackedMatrix::new(width, vec![packed]).to_numbers();
        let expected = Kind::Q8_0.dequantise(&raw, rows * width);
        for (row, numbers) in numbers.chunks(width).enumerate() {
            assert_eq!(numbers, &expected[from(row) * width..][..width], "{row}");
        }
    }

    #[test]
    fn what_cannot_be_packed() {
        assert!(pack(Kind::F32, &[0; 8], [1, 2], |row| row).is_none());
        assert!(pack(Kind::Q4_0, &[0; 36], [4, 16], |row| row).is_none(), "half a block");
        let mut infinite = [0; 18];
        infinite[1] = 0x7c;
        assert!(pack(Kind::Q4_0, &infinite, [1, 32], |row| row).is_none());
        assert!(pack(Kind::F16, &[0, 0x7e], [1, 1], |row| row).is_none());
    }
}
