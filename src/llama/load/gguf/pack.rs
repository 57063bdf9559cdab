//! Repacking of quantised rows for the products on the host.

use half::f16;

use super::quant::{Kind, fifth, six_bits};
use crate::host::packed::{Codes, PackedRows, Scales, words};

/// Repacks rows of `width` numbers, `raw` in the layout of the file. Row `i` of the result is row `source(i)`. `None`
/// for `f32`, for rows that are not whole blocks, and for scales that are not finite, which a damaged file may have.
pub(super) fn pack(
    kind: Kind,
    raw: &[u8],
    [rows, width]: [usize; 2],
    source: impl Fn(usize) -> usize,
) -> Option<PackedRows> {
    let row_bytes = kind.bytes(width)?;
    let (_, block_bytes) = kind.block();
    let (source, raw) = (&source, raw);
    let blocks = (0..rows)
        .flat_map(move |row| raw[source(row) * row_bytes..][..row_bytes].chunks_exact(block_bytes));
    let scales =
        |least: f32| halves(blocks.clone(), 0).map(|scales| Scales::Scaled { scales, least });
    let both = || {
        let (scales, least) = (halves(blocks.clone(), 0)?, halves(blocks.clone(), 2)?);
        Some(Scales::Both { scales, least })
    };
    // A code for each number.
    let (is_four, codes, scales): (_, Vec<u8>, _) = match kind {
        Kind::F32 => return None,
        Kind::F16 => {
            let codes = Codes::F16(blocks.map(word).map(finite).collect::<Option<_>>()?);
            return Some(PackedRows { rows, codes });
        }
        Kind::Bf16 => {
            return Some(PackedRows { rows, codes: Codes::Bf16(blocks.map(word).collect()) });
        }
        Kind::Q4_0 => {
            (true, blocks.clone().flat_map(|b| nibbles(&b[2..18])).collect(), scales(-8.0)?)
        }
        Kind::Q4_1 => (true, blocks.clone().flat_map(|b| nibbles(&b[4..20])).collect(), both()?),
        Kind::Q5_0 => {
            let codes = blocks.clone().flat_map(|b| five_bits(&b[2..6], &b[6..22]));
            (false, codes.collect(), scales(-16.0)?)
        }
        Kind::Q5_1 => {
            let codes = blocks.clone().flat_map(|b| five_bits(&b[4..8], &b[8..24]));
            (false, codes.collect(), both()?)
        }
        Kind::Q8_0 => {
            // A signed byte with its sign flipped is the number plus 128.
            let codes = blocks.clone().flat_map(|b| b[2..34].iter().map(|&q| q ^ 0x80));
            (false, codes.collect(), scales(-128.0)?)
        }
        Kind::Q4K => {
            let codes = blocks.clone().flat_map(|b| (0..256).map(|at| k_nibble(&b[16..144], at)));
            (true, codes.collect(), k_scales(blocks)?)
        }
        Kind::Q5K => {
            let codes = blocks.clone().flat_map(|b| {
                let fifth = |at: usize| (b[16 + at % 32] >> (at / 32) & 1) << 4;
                (0..256).map(move |at| k_nibble(&b[48..176], at) | fifth(at))
            });
            (false, codes.collect(), k_scales(blocks)?)
        }
        Kind::Q6K => {
            let codes = blocks.clone().flat_map(|b| {
                (0..256).map(|at| {
                    let (half, quarter, place) = (at / 128, at % 128 / 32, at % 32);
                    let low = b[half * 64 + quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
                    low | (b[128 + half * 32 + place] >> (2 * quarter) & 3) << 4
                })
            });
            let integers = blocks.clone().flat_map(|b| b[192..208].iter().map(|&s| s as i8));
            let scales = Scales::SignedBlocks {
                integers: integers.collect(),
                blocks: blocks.clone().map(|b| number(&b[208..])).collect::<Option<_>>()?,
            };
            (false, codes.collect(), scales)
        }
    };
    let by_row = codes.chunks(width);
    let codes = if is_four {
        Codes::Four(by_row.flat_map(words::<4>).collect(), scales)
    } else {
        Codes::Eight(by_row.flat_map(words::<8>).collect(), scales)
    };
    Some(PackedRows { rows, codes })
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
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + Clone + '_ {
    bytes.iter().map(|byte| byte & 15).chain(bytes.iter().map(|byte| byte >> 4))
}

/// 32 numbers of five bits, from their fifth bits and the four lower ones.
fn five_bits<'a>(bits: &'a [u8], low: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    nibbles(low).enumerate().map(|(i, low)| low | fifth(bits, i))
}

/// The four lower bits of number `at` of a block of Q4_K or Q5_K.
fn k_nibble(bytes: &[u8], at: usize) -> u8 {
    let (group, i) = (at / 32, at % 32);
    bytes[group / 2 * 32 + i] >> (group % 2 * 4) & 15
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
