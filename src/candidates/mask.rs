//! Token mask.

use crate::{error::RowError, host::vectorised, id::TokenId};

/// A set of allowed tokens, one bit per token of the vocabulary. Constrained decoding (for example with a grammar)
/// uses it to restrict the sampler.
///
/// ```
/// use esamp::TokenMask;
///
/// // Grammar libraries keep such a set as words of bits.
/// let mask = TokenMask::from_words(70, vec![1 << 5, 0b10])?;
/// assert_eq!(mask, TokenMask::allowing(70, [5, 65]));
/// # Ok::<(), esamp::errors::RowError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u64>,
    vocab: usize,
}

impl TokenMask {
    /// Allows `tokens` from a vocabulary of size `vocab`. Ids outside the vocabulary are ignored.
    pub fn allowing(vocab: usize, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        let mut mask = Self { words: vec![0; vocab.div_ceil(64)], vocab };
        for token in tokens {
            mask.set(token, true);
        }
        mask
    }

    /// Allows every token of a vocabulary of size `vocab`.
    pub fn all(vocab: usize) -> Self {
        let mut words = vec![u64::MAX; vocab.div_ceil(64)];
        clear_beyond(vocab, &mut words);
        Self { words, vocab }
    }

    /// Takes a set as words of 64 tokens: bit `token % 64`, counted from the lowest, of word `token / 64`. Bits beyond
    /// `vocab` are ignored. Copies nothing.
    ///
    /// # Errors
    ///
    /// [`RowError::MaskWords`] when there are not `vocab / 64` words, rounded up.
    pub fn from_words(vocab: usize, mut words: Vec<u64>) -> Result<Self, RowError> {
        let (expected, got) = (vocab.div_ceil(64), words.len());
        if expected != got {
            return Err(RowError::MaskWords { vocab, expected, got });
        }
        clear_beyond(vocab, &mut words);
        Ok(Self { words, vocab })
    }

    /// Allows or forbids one token. Ids outside the vocabulary are ignored.
    pub fn set(&mut self, token: TokenId, allowed: bool) {
        if (token as usize) < self.vocab {
            let bit = 1 << (token % 64);
            let word = &mut self.words[token as usize / 64];
            *word = if allowed { *word | bit } else { *word & !bit };
        }
    }

    /// Whether a token is allowed.
    pub fn allows(&self, token: TokenId) -> bool {
        (token as usize) < self.vocab && self.words[token as usize / 64] >> (token % 64) & 1 == 1
    }

    /// Size of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// A copy of a row of logits in which every token that is not allowed has −inf.
    ///
    /// Cost: words that allow none or all of their tokens are filled or copied, the others take a vectorised selection.
    pub(super) fn apply(&self, logits: &[f32]) -> Result<Vec<f32>, RowError> {
        if self.vocab != logits.len() {
            return Err(RowError::MaskSize { expected: logits.len(), got: self.vocab });
        }
        Ok(vectorised(
            (logits, &*self.words),
            #[inline(always)]
            |(logits, words): (&[f32], &[u64])| {
                let mut masked = vec![f32::NEG_INFINITY; logits.len()];
                let rows = masked.chunks_mut(64).zip(logits.chunks(64)).zip(words);
                for ((masked, logits), &word) in rows {
                    match word {
                        0 => {}
                        u64::MAX => masked.copy_from_slice(logits),
                        _ => {
                            // Words of 32 bits, the width of a logit, so that a vector instruction takes 8 tokens.
                            let halves = [word as u32, (word >> 32) as u32];
                            let parts = masked.chunks_mut(32).zip(logits.chunks(32)).zip(halves);
                            for ((masked, logits), half) in parts {
                                select(masked, logits, half);
                            }
                        }
                    }
                }
                masked
            },
        ))
    }
}

/// Copies the logits of up to 32 tokens whose bit is set, and sets the others to −inf.
#[inline(always)]
fn select(masked: &mut [f32], logits: &[f32], bits: u32) {
    for (bit, (masked, &logit)) in masked.iter_mut().zip(logits).enumerate() {
        *masked = if bits >> bit & 1 == 1 { logit } else { f32::NEG_INFINITY };
    }
}

/// Clears the bits of the last word that stand for no token, so that masks that allow the same tokens compare equal.
fn clear_beyond(vocab: usize, words: &mut [u64]) {
    if let Some(last) = words.last_mut().filter(|_| !vocab.is_multiple_of(64)) {
        *last &= u64::MAX >> (64 - vocab % 64);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mask_applied_by_words_is_the_mask_applied_by_tokens(
            words in prop::collection::vec(
                prop_oneof![Just(0), Just(u64::MAX), any::<u64>()], 1..6
            ),
            short in 0usize..64,
        ) {
            let vocab = words.len() * 64 - short;
            let mask = TokenMask::from_words(vocab, words).unwrap();
            let logits: Vec<f32> = (0..vocab).map(|token| token as f32).collect();
            let expected: Vec<f32> = (0..vocab)
                .map(|token| if mask.allows(token as TokenId) { logits[token] } else { f32::NEG_INFINITY })
                .collect();
            prop_assert_eq!(mask.apply(&logits).unwrap(), expected);
            let tokens = (0..vocab as TokenId).filter(|&token| mask.allows(token));
            prop_assert_eq!(&mask, &TokenMask::allowing(vocab, tokens), "bits beyond the vocabulary are cleared");
        }
    }

    #[test]
    fn a_wrong_number_of_words_is_an_error() {
        assert_eq!(TokenMask::from_words(0, vec![]).unwrap().vocab_size(), 0);
        let error = TokenMask::from_words(65, vec![0]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "token mask: expected 2 words of 64 tokens for 65 tokens, got 1"
        );
    }

    #[test]
    fn setting_a_token_again_changes_nothing() {
        let mut mask = TokenMask::allowing(70, [5, 65]);
        for token in [5, 65] {
            mask.set(token, true);
        }
        assert_eq!(mask, TokenMask::allowing(70, [5, 65]));
        for _ in 0..2 {
            mask.set(65, false);
        }
        assert_eq!(mask, TokenMask::allowing(70, [5]));
    }

    #[test]
    fn masks_that_allow_the_same_tokens_are_equal() {
        for vocab in [0, 1, 3, 63, 64, 65, 128, 130] {
            assert_eq!(TokenMask::all(vocab).vocab_size(), vocab);
            let beyond = TokenMask::allowing(vocab, [vocab as TokenId]);
            assert_eq!(beyond, TokenMask::allowing(vocab, []), "an id outside the vocabulary");
            let all = TokenMask::all(vocab);
            assert_eq!(all, TokenMask::allowing(vocab, 0..vocab as TokenId), "{vocab}");
            assert!(!all.allows(vocab as TokenId));
        }
    }
}
