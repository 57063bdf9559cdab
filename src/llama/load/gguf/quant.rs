//! Dequantisation of GGUF tensors to `f32`.
//!
//! A block is a run of numbers with shared scales. The layouts follow the reference implementation of the GGUF format
//! and are checked against its Python package: tests/golden/gguf.

use half::{bf16, f16};

/// A supported tensor type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Kind {
    /// Names of the supported types, for error messages.
    pub(super) const NAMES: &'static str =
        "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K";

    pub(super) fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// The format's name for a type id, if it has one.
    pub(super) fn name(id: u32) -> String {
        let name = match id {
            0 => "F32",
            1 => "F16",
            2 => "Q4_0",
            3 => "Q4_1",
            6 => "Q5_0",
            7 => "Q5_1",
            8 => "Q8_0",
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            12 => "Q4_K",
            13 => "Q5_K",
            14 => "Q6_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            28 => "F64",
            29 => "IQ1_M",
            30 => "BF16",
            other => return format!("type {other}"),
        };
        name.to_owned()
    }

    /// Numbers per block and bytes per block.
    pub(super) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q4_1 => (32, 20),
            Self::Q5_0 => (32, 22),
            Self::Q5_1 => (32, 24),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (256, 144),
            Self::Q5K => (256, 176),
            Self::Q6K => (256, 210),
        }
    }

    /// Bytes of `elements` numbers; `None` when they do not fill whole blocks, or are too many.
    pub(super) fn bytes(self, elements: usize) -> Option<usize> {
        let (numbers, bytes) = self.block();
        elements.is_multiple_of(numbers).then(|| (elements / numbers).checked_mul(bytes)).flatten()
    }

    /// Dequantises `raw`, which must hold the number of bytes that [`bytes`](Self::bytes) returns.
    ///
    /// Large tensors are split across two threads, because dequantisation takes half of a model's load time.
    pub(super) fn dequantise(self, raw: &[u8], elements: usize) -> Vec<f32> {
        const PARALLEL: usize = 1 << 20;
        let (numbers, bytes) = self.block();
        let mut out = vec![0.0; elements];
        if elements < PARALLEL {
            self.blocks(raw, &mut out);
            return out;
        }
        // Split between blocks, because the numbers of a block share their scales.
        let first = elements / numbers / 2;
        let (out_1, out_2) = out.split_at_mut(first * numbers);
        let (raw_1, raw_2) = raw.split_at(first * bytes);
        std::thread::scope(|scope| {
            scope.spawn(move || self.blocks(raw_1, out_1));
            self.blocks(raw_2, out_2);
        });
        out
    }

    /// Dequantises as many blocks as both have.
    pub(super) fn blocks(self, raw: &[u8], out: &mut [f32]) {
        let (numbers, bytes) = self.block();
        let decode: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => |b, out| out[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
            Self::F16 => |b, out| out[0] = half(b),
            Self::Bf16 => |b, out| out[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32(),
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4K => q4_k,
            Self::Q5K => q5_k,
            Self::Q6K => q6_k,
        };
        for (block, out) in raw.chunks_exact(bytes).zip(out.chunks_exact_mut(numbers)) {
            decode(block, out);
        }
    }
}

fn half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Unpacks 16 bytes: the low nibbles are the first 16 numbers, the high nibbles the other 16.
fn nibbles(bytes: &[u8], out: &mut [f32], number: impl Fn(usize, u8) -> f32) {
    for (i, &byte) in bytes.iter().enumerate() {
        out[i] = number(i, byte & 15);
        out[i + 16] = number(i + 16, byte >> 4);
    }
}

fn q4_0(b: &[u8], out: &mut [f32]) {
    let scale = half(b);
    nibbles(&b[2..18], out, |_, q| scale * (f32::from(q) - 8.0));
}

fn q4_1(b: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(b), half(&b[2..]));
    nibbles(&b[4..20], out, |_, q| scale * f32::from(q) + least);
}

/// The fifth bit of number `i`, as 0 or 16.
pub(super) fn fifth(bits: &[u8], i: usize) -> u8 {
    (bits[i / 8] >> (i % 8) & 1) << 4
}

fn q5_0(b: &[u8], out: &mut [f32]) {
    let scale = half(b);
    nibbles(&b[6..22], out, |i, q| scale * (f32::from(q | fifth(&b[2..6], i)) - 16.0));
}

fn q5_1(b: &[u8], out: &mut [f32]) {
    let (scale, least) = (half(b), half(&b[2..]));
    nibbles(&b[8..24], out, |i, q| scale * f32::from(q | fifth(&b[4..8], i)) + least);
}

fn q8_0(b: &[u8], out: &mut [f32]) {
    let scale = half(b);
    for (out, &q) in out.iter_mut().zip(&b[2..34]) {
        *out = scale * f32::from(q as i8);
    }
}

/// Scale and minimum of group `i` of 8, six bits each, packed into 12 bytes.
pub(super) fn six_bits(packed: &[u8], i: usize) -> (u8, u8) {
    // Groups 0 to 3 have their scale in the low six bits of bytes 0 to 3 and their minimum in those of bytes 4 to 7.
    // Groups 4 to 7 have the low four bits of both in bytes 8 to 11, the scale in the low nibble, and their upper two
    // bits in the top bits of the first eight bytes.
    match i {
        0..4 => (packed[i] & 63, packed[i + 4] & 63),
        _ => {
            (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4)
        }
    }
}

fn q4_k(b: &[u8], out: &mut [f32]) {
    k_blocks(b, &b[16..144], out, |_, _| 0);
}

fn q5_k(b: &[u8], out: &mut [f32]) {
    let bits = &b[16..48];
    k_blocks(b, &b[48..176], out, |group, i| (bits[i] >> group & 1) << 4);
}

/// Unpacks 8 groups of 32 numbers. Two groups share 32 bytes: one in the low nibbles, one in the high nibbles.
fn k_blocks(b: &[u8], quants: &[u8], out: &mut [f32], fifth: impl Fn(usize, usize) -> u8) {
    let (scale, least, packed) = (half(b), half(&b[2..]), &b[4..16]);
    for (group, out) in out.chunks_exact_mut(32).enumerate() {
        let (group_scale, group_least) = six_bits(packed, group);
        let (scale, least) = (scale * f32::from(group_scale), least * f32::from(group_least));
        let bytes = &quants[group / 2 * 32..][..32];
        for (i, (out, byte)) in out.iter_mut().zip(bytes).enumerate() {
            let q = byte >> (group % 2 * 4) & 15 | fifth(group, i);
            *out = scale * f32::from(q) - least;
        }
    }
}

fn q6_k(b: &[u8], out: &mut [f32]) {
    let scale = half(&b[208..]);
    // Two halves of 128 numbers, each with 64 bytes of low nibbles, 32 bytes of high bit pairs and 8 scales.
    for (half, out) in out.chunks_exact_mut(128).enumerate() {
        let (low, high) = (&b[half * 64..][..64], &b[128 + half * 32..][..32]);
        let scales = &b[192 + half * 8..][..8];
        for (i, out) in out.iter_mut().enumerate() {
            let (quarter, place) = (i / 32, i % 32);
            let nibble = low[quarter % 2 * 32 + place] >> (quarter / 2 * 4) & 15;
            let q = nibble | (high[place] >> (2 * quarter) & 3) << 4;
            *out = scale * f32::from(scales[i / 16] as i8) * (f32::from(q) - 32.0);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::golden::*;

    /// Some blocks of every quantised or 16-bit kind: name, id, bytes, and the numbers of the format's own reference.
    pub(in crate::llama::load::gguf) fn blocks() -> Vec<(&'static str, u32, Vec<u8>, Vec<f32>)> {
        let file = Golden::open("gguf/blocks.safetensors");
        let kinds = [
            ("F16", 1),
            ("BF16", 30),
            ("Q4_0", 2),
            ("Q4_1", 3),
            ("Q5_0", 6),
            ("Q5_1", 7),
            ("Q8_0", 8),
            ("Q4_K", 12),
            ("Q5_K", 13),
            ("Q6_K", 14),
        ];
        let blocks = kinds.map(|(name, id)| {
            let raw = file.ints(&format!("{name}.raw")).into_iter().map(|b| b as u8).collect();
            (name, id, raw, file.values(&format!("{name}.f32")))
        });
        blocks.to_vec()
    }

    #[test]
    fn every_kind_equals_the_formats_own_reference() {
        for (name, id, raw, expected) in blocks() {
            let kind = Kind::from_id(id).unwrap();
            assert_eq!(kind.bytes(expected.len()), Some(raw.len()), "{name}");
            assert_close(name, &kind.dequantise(&raw, expected.len()), &expected, 1e-6);
            assert_eq!(Kind::name(id), name);
        }
    }

    #[test]
    fn two_threads_do_what_one_does() {
        let raw: Vec<u8> = (0..(1 << 20) / 32 * 34 + 34).map(|i| (i * 7 % 61) as u8).collect();
        let elements = (1 << 20) + 32;
        let mut one = vec![0.0; elements];
        Kind::Q8_0.blocks(&raw, &mut one);
        assert_eq!(Kind::Q8_0.dequantise(&raw, elements), one);
    }

    #[test]
    fn only_whole_blocks() {
        assert_eq!(Kind::Q4K.bytes(255), None);
        assert_eq!(Kind::Q4K.bytes(512), Some(288));
        assert_eq!(Kind::F32.bytes(usize::MAX), None);
    }
}
