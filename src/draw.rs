//! Random numbers that depend on what is being sampled, never on who else is in the batch.

use rand::{Rng, SeedableRng, rngs::ChaCha8Rng};
use sha2::{Digest, Sha256};

use crate::id::TokenId;

/// The random stream of one completion: a key made of the seed, the prompt's tokens and the completion's index.
///
/// The key is the SHA-256 digest of these values, so that streams of different completions share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey([u8; 32]);

impl DrawKey {
    /// Derives the key of completion number `completion` of `prompt` under `seed`.
    pub fn new(seed: u64, prompt: &[TokenId], completion: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"esamp draw 1");
        hash.update(seed.to_le_bytes());
        hash.update(completion.to_le_bytes());
        for token in prompt {
            hash.update(token.to_le_bytes());
        }
        Self(hash.finalize().into())
    }

    /// The random numbers of the token at `position` (0 is the completion's first token).
    pub fn at(self, position: u64) -> Draw {
        Draw { key: self, position }
    }
}

/// The random numbers of one token: a counter, not a state, so drawing twice gives the same numbers.
///
/// The generator is ChaCha with 8 rounds, stream number = position: the same numbers on every machine and in every
/// version of this crate that does not say otherwise in its changelog.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    key: DrawKey,
    position: u64,
}

impl Draw {
    /// The position in the completion that these numbers belong to.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// One number, uniform in `[0, 1)`, with 53 random bits: the one that selects the token.
    pub fn uniform(&self) -> f64 {
        let bits = self.rng().next_u64() >> 11;
        bits as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A generator for those who need more numbers than one. Its first number is the one behind [`Draw::uniform`].
    pub fn rng(&self) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::from_seed(self.key.0);
        rng.set_stream(self.position);
        rng
    }

    /// A generator for random numbers that must not depend on those that select the token: a control's noise. Its key
    /// is the SHA-256 digest of this completion's key and `purpose`, its stream number the position, so that the
    /// streams of two purposes share nothing either.
    pub fn apart(&self, purpose: &str) -> ChaCha8Rng {
        let mut hash = Sha256::new();
        hash.update(b"esamp draw apart 1");
        hash.update(self.key.0);
        hash.update(purpose);
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        rng.set_stream(self.position);
        rng
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_stability() {
        // A change here changes every sampled token: it belongs under "value-breaking" in the changelog.
        let key = DrawKey::new(42, &[1, 2, 3], 0);
        let got: Vec<f64> = [0, 1, 1_000_000].map(|position| key.at(position).uniform()).to_vec();
        assert_eq!(
            got,
            [0.713_278_517_874_930_8, 0.237_969_625_237_757_44, 0.106_363_339_067_814_14]
        );
        // A change here changes every control run.
        let apart = ["random reward", "gaussian error"].map(|p| key.at(1).apart(p).next_u64());
        assert_eq!(apart, [12_536_949_362_901_053_973, 5_713_341_623_464_580_280]);
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
        let first = |draw: Draw, purpose: &str| draw.apart(purpose).next_u64();
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
