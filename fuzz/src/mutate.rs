//! Random changes of inputs.

use rand::{RngExt, rngs::ChaCha8Rng};

/// The longest input. Longer ones are slower and reach nothing that short ones do not.
pub const LONGEST: usize = 1 << 16;

/// Integers at the borders of types and signs.
const BORDERS: [u64; 14] = [
    0,
    1,
    2,
    7,
    31,
    64,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x1_0000_0041,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Numbers in text that parsers and arithmetic stumble over.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "2147483648",
    "4294967361",
    "18446744073709551616",
    "1e999",
    "-0.0",
    "1e-320",
    "NaN",
    "null",
    "0.5",
];

/// A changed copy of one of the inputs. `inputs` is not empty.
pub fn mutated(inputs: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = inputs[below(rng, inputs.len())].clone();
    for _ in 0..1 << below(rng, 4) {
        change(&mut bytes, inputs, rng);
    }
    bytes.truncate(LONGEST);
    bytes
}

fn change(bytes: &mut Vec<u8>, inputs: &[Vec<u8>], rng: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        bytes.push(rng.random());
        return;
    }
    let at = below(rng, bytes.len());
    match below(rng, 10) {
        0 => bytes[at] ^= 1 << below(rng, 8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => {
            let end = (at + 1 + below(rng, 16)).min(bytes.len());
            bytes.drain(at..end);
        }
        4 => {
            // A part of the same input again, somewhere else.
            let end = (at + 1 + below(rng, 64)).min(bytes.len());
            let part = bytes[at..end].to_vec();
            let place = below(rng, bytes.len());
            bytes.splice(place..place, part);
        }
        5 => {
            // The end of another input.
            let other = &inputs[below(rng, inputs.len())];
            let from = below(rng, other.len() + 1);
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        6 | 7 => {
            let number = BORDERS[below(rng, BORDERS.len())].to_le_bytes();
            let width = [1, 2, 4, 8][below(rng, 4)].min(bytes.len() - at);
            bytes[at..at + width].copy_from_slice(&number[..width]);
        }
        8 => {
            let bits = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -0.0, 1e-40];
            let number = bits[below(rng, bits.len())].to_le_bytes();
            let place = at / 4 * 4;
            let width = 4.min(bytes.len() - place);
            bytes[place..place + width].copy_from_slice(&number[..width]);
        }
        _ => replace_number(bytes, at, NUMBERS[below(rng, NUMBERS.len())]),
    }
}

/// Replaces the first number of the text from `from` on.
fn replace_number(bytes: &mut Vec<u8>, from: usize, number: &str) {
    let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = from + start;
    let is_part = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'-');
    let length = bytes[start..].iter().take_while(|byte| is_part(byte)).count();
    bytes.splice(start..start + length, number.bytes());
}

fn below(rng: &mut ChaCha8Rng, end: usize) -> usize {
    rng.random_range(0..end)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn inputs_change_and_stay_short() {
        let inputs = [b"{\"a\": 12, \"b\": [1, 2]}".to_vec(), vec![0; LONGEST], Vec::new()];
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut changed = 0;
        for _ in 0..2000 {
            let input = mutated(&inputs, &mut rng);
            assert!(input.len() <= LONGEST);
            changed += usize::from(!inputs.contains(&input));
        }
        assert!(changed > 1800, "{changed}");
    }

    #[test]
    fn numbers_of_a_text_are_replaced() {
        let mut text = b"a: 12.5e-3, b".to_vec();
        replace_number(&mut text, 1, "-1");
        assert_eq!(text, b"a: -1, b");
        replace_number(&mut text, 6, "7");
        assert_eq!(text, b"a: -1, b");
    }
}
