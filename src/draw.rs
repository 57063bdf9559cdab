//! Random numbers that depend on the completion, not on the other rows of the batch.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use sha2::{Digest, Sha256};

use crate::id::TokenId;

/// The random stream of one completion: a key derived from the seed, the prompt's tokens and the completion's index.
///
/// The key is the SHA-256 digest of these values, so that the streams of different completions are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey([u8; 32]);

impl DrawKey {
    /// Derives the key of completion number `completion` of `prompt` with `seed`.
    pub fn new(seed: u64, prompt: &[TokenId], completion: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"esamp draw 1");
        hash.update(seed.to_le_bytes());
        hash.update(completion.to_le_bytes());
        // The prompt comes last, because it has no fixed length. All parts before it have, so two different inputs
        // never give the hash the same bytes.
        for token in prompt {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The initial code for [`Selection::Arithmetic`](crate::Selection::Arithmetic) of completion number `completion`
    /// out of `completions`: `(completion / completions + shift) mod 1`, where the shift is one uniform number
    /// derived from the seed and the prompt.
    ///
    /// The code is in `[0, 1)` and a multiple of 2⁻⁵³. The codes of one prompt are evenly spread; over seeds, each
    /// code is uniform. The shift comes from a SHA-256 digest and is the same on every machine. NaN for 0
    /// completions, which the step rejects.
    pub fn arithmetic_code(
        seed: u64,
        prompt: &[TokenId],
        completion: u64,
        completions: u64,
    ) -> f64 {
        let mut hash = Sha256::new();
        // Without the index of the completion: the codes of a prompt are evenly spread because they share one shift.
        hash.update(b"esamp arithmetic shift 1");
        hash.update(seed.to_le_bytes());
        for token in prompt {
            hash.update(token.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let shift = unit(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
        on_grid((completion as f64 / completions as f64 + shift).fract())
    }

    /// The random numbers for the token at `position` (0 is the completion's first token).
    pub fn at(self, position: u64) -> Draw {
        Draw { key: self, position }
    }
}

/// The random numbers for one token. They are derived from a counter, not from a mutable state, so drawing twice
/// gives the same numbers.
///
/// The generator is ChaCha with 8 rounds; the stream number is the position. The numbers are the same on every
/// machine and in every version of this crate, unless the changelog says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    key: DrawKey,
    position: u64,
}

impl Draw {
    /// The position in the completion that these numbers are for.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The uniform number in `[0, 1)`, with 53 random bits, that selects the token.
    pub fn uniform(&self) -> f64 {
        unit(self.rng().next_u64())
    }

    /// Numbers of the same row and position that are independent of this draw's own. For random decisions that must
    /// not depend on the number that selects the token. `purpose` names the stream; the same name gives the same
    /// numbers.
    ///
    /// The new key is the SHA-256 digest of this draw's key and the name.
    pub fn apart(&self, purpose: &str) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"esamp draw apart 1");
        hash.update(self.key.0);
        hash.update(purpose.as_bytes());
        Self { key: DrawKey(hash.finalize().into()), position: self.position }
    }

    /// A generator, for callers that need several numbers. Its first output is the one that [`Draw::uniform`] is
    /// computed from.
    pub fn rng(&self) -> impl Rng + use<> {
        self.rng_at(0)
    }

    /// A generator that starts at block `place` of the stream. Use it, for example, for one number per candidate,
    /// with the token as the place: that number does not depend on the other candidates or their order.
    ///
    /// A block has 16 words of 32 bits. Reading more than one block continues with the numbers of the next place.
    pub fn rng_at(&self, place: u64) -> impl Rng + use<> {
        const WORDS_PER_BLOCK: u128 = 16;
        let mut rng = ChaCha8Rng::from_seed(self.key.0);
        // Stream and place are set directly, so a draw neither depends on earlier ones nor has to run through them.
        rng.set_stream(self.position);
        rng.set_word_pos(u128::from(place) * WORDS_PER_BLOCK);
        rng
    }
}

/// The resolution of the numbers that [`Draw::uniform`] returns, 2⁻⁵³.
pub(crate) const GRID: f64 = 1.0 / (1u64 << 53) as f64;

/// The upper 53 bits as a number in `[0, 1)`.
fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 * GRID
}

/// The largest multiple of [`GRID`] that is not above `number`.
pub(crate) fn on_grid(number: f64) -> f64 {
    // GRID is a power of two, so only `floor` rounds.
    (number / GRID).floor() * GRID
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_stability() {
        // A change here changes every sampled token and must be listed under "value-breaking" in the changelog.
        let key = DrawKey::new(42, &[1, 2, 3], 0);
        let got: Vec<f64> = [0, 1, 1_000_000].map(|position| key.at(position).uniform()).to_vec();
        assert_eq!(
            got,
            [0.713_278_517_874_930_8, 0.237_969_625_237_757_44, 0.106_363_339_067_814_14]
        );
        let codes: Vec<f64> =
            (0..2).map(|i| DrawKey::arithmetic_code(42, &[1, 2, 3], i, 2)).collect();
        assert_eq!(codes, [0.458_060_203_722_531_87, 0.958_060_203_722_531_9]);
        assert_eq!(key.at(0).apart("xtc").uniform(), 0.203_612_101_320_788_55);
        let noise =
            ["random reward", "gaussian error"].map(|p| key.at(1).apart(p).rng().next_u64());
        assert_eq!(noise, [12_536_949_362_901_053_973, 5_713_341_623_464_580_280]);
    }

    #[test]
    fn places_are_16_words_apart() {
        let draw = DrawKey::new(42, &[1, 2, 3], 0).at(5);
        let mut stream = draw.rng();
        for place in 0..40 {
            let mut here = draw.rng_at(place);
            for _ in 0..8 {
                assert_eq!(here.next_u64(), stream.next_u64());
            }
        }
    }

    #[test]
    fn streams_apart_differ_by_name_and_share_nothing_with_their_origin() {
        let draws = 4_000;
        let mut agreement = 0.0;
        for position in 0..draws {
            let draw = DrawKey::new(3, &[1], 0).at(position);
            assert_eq!(draw.apart("a"), draw.apart("a"));
            let numbers = [draw, draw.apart("a"), draw.apart("b")].map(|d| d.uniform() - 0.5);
            agreement += numbers[0] * numbers[1] + numbers[1] * numbers[2];
        }
        // Each product has mean 0 and standard deviation 1/12; there are two per draw.
        let deviation = (2.0 * f64::from(draws as u32)).sqrt() / 12.0;
        assert!(agreement.abs() < 4.0 * deviation, "{agreement}");
    }

    #[test]
    fn codes_are_evenly_spread_and_uniform_over_seeds() {
        let completions = 7;
        let mut mean = 0.0;
        let seeds = 3_000;
        for seed in 0..seeds {
            let code = |i| DrawKey::arithmetic_code(seed, &[4, 5], i, completions);
            let mut codes: Vec<f64> = (0..completions).map(code).collect();
            mean += codes[3] / seeds as f64;
            codes.sort_by(f64::total_cmp);
            assert!(codes[0] >= 0.0 && codes[6] < 1.0);
            for pair in codes.windows(2) {
                assert!((pair[1] - pair[0] - 1.0 / 7.0).abs() < 1e-15);
            }
            assert!(codes.iter().all(|&code| on_grid(code) == code));
        }
        // The standard deviation of the mean is 0.0053.
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
        let other = DrawKey::arithmetic_code(0, &[5, 4], 0, 1);
        assert_ne!(other, DrawKey::arithmetic_code(0, &[4, 5], 0, 1), "the prompt shifts");
        assert!(DrawKey::arithmetic_code(0, &[], 0, 0).is_nan());
    }

    #[test]
    fn every_part_of_the_key_matters_and_nothing_else() {
        let first = |key: DrawKey| key.at(0).uniform();
        let base = DrawKey::new(1, &[2, 3], 4);
        for other in [
            DrawKey::new(2, &[2, 3], 4),
            DrawKey::new(1, &[2], 4),
            DrawKey::new(1, &[3, 2], 4),
            DrawKey::new(1, &[2, 3], 5),
        ] {
            assert_ne!(first(base), first(other));
        }
        assert_eq!(first(base), first(DrawKey::new(1, &[2, 3], 4)));
        assert_ne!(base.at(0).uniform(), base.at(1).uniform());
    }

    #[test]
    fn a_stream_apart_has_numbers_of_its_own() {
        let first = |draw: Draw, purpose: &str| draw.apart(purpose).rng().next_u64();
        let key = DrawKey::new(1, &[2, 3], 4);
        let noise = first(key.at(0), "noise");
        assert_ne!(noise, key.at(0).rng().next_u64());
        for other in [
            first(key.at(0), "another"),
            first(key.at(1), "noise"),
            first(DrawKey::new(2, &[2, 3], 4).at(0), "noise"),
        ] {
            assert_ne!(noise, other);
        }
        assert_eq!(noise, first(key.at(0), "noise"), "a counter, not a state");
    }

    #[test]
    fn uniform_is_uniform() {
        let key = DrawKey::new(9, &[], 0);
        let draws = 10_000;
        let mean = (0..draws).map(|p| key.at(p).uniform()).sum::<f64>() / draws as f64;
        // The standard deviation of the mean is 0.0029.
        assert!((mean - 0.5).abs() < 0.012, "{mean}");
    }
}
