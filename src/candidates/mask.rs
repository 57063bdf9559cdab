//! Token mask.

use crate::id::TokenId;

/// A set of allowed tokens, one bit per token of the vocabulary. Constrained decoding (for example with a grammar)
/// uses it to restrict the sampler.
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
        if let Some(last) = words.last_mut().filter(|_| !vocab.is_multiple_of(64)) {
            *last >>= 64 - vocab % 64; // so that masks that allow the same tokens compare equal
        }
        Self { words, vocab }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_that_allow_the_same_tokens_are_equal() {
        for vocab in [0, 1, 3, 63, 64, 65, 128, 130] {
            let all = TokenMask::all(vocab);
            assert_eq!(all, TokenMask::allowing(vocab, 0..vocab as TokenId), "{vocab}");
            assert!(!all.allows(vocab as TokenId));
        }
    }
}
