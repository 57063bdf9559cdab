//! Where the end of a text has occurred before.

use crate::id::TokenId;

/// A text, and how much of its end occurs at each earlier place.
pub(super) struct Repeats {
    /// The text, last token first.
    reversed: Vec<TokenId>,
    /// At `back`: the number of tokens at the end of the text that also stand directly before its last `back` tokens.
    lengths: Vec<usize>,
}

/// An earlier place of a text at which its last tokens have occurred.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Repeat {
    /// Distance from the end of the text, in tokens, at least 1.
    pub(super) back: usize,
    /// The number of tokens that agree, at least 0.
    pub(super) length: usize,
    /// The token that followed there.
    pub(super) next: TokenId,
}

impl Repeats {
    /// Compares the end of the last `range` tokens of a text, which is given in parts, with every earlier place in
    /// them. Cost: linear in `range`.
    pub(super) fn new(text: [&[TokenId]; 2], range: usize) -> Self {
        let tokens = text.into_iter().rev().flat_map(|part| part.iter().rev());
        let reversed: Vec<TokenId> = tokens.copied().take(range).collect();
        // The end of the text is the beginning of the reversed one.
        let lengths = prefix_lengths(reversed.len(), |a, b| reversed[a] == reversed[b]);
        Self { reversed, lengths }
    }

    /// The earlier places, latest first. The last of them is the start of the text, where nothing agrees.
    pub(super) fn places(&self) -> impl Iterator<Item = Repeat> {
        (1..=self.reversed.len()).map(|back| Repeat {
            back,
            length: self.lengths.get(back).copied().unwrap_or(0),
            next: self.reversed[back - 1],
        })
    }

    /// The tokens of the text, last one first.
    pub(super) fn latest(&self) -> &[TokenId] {
        &self.reversed
    }
}

/// For each place of a text of `len` tokens, the number of tokens from there that equal the first ones of the text, at
/// the first place 0. `equal` compares the tokens at two places. This is the Z-algorithm (Gusfield, *Algorithms on
/// Strings, Trees, and Sequences*, 1997).
///
/// Calls `equal` at most `2 · len` times: each call that returns true moves `end` forward, and each place has at most
/// one that returns false.
fn prefix_lengths(len: usize, mut equal: impl FnMut(usize, usize) -> bool) -> Vec<usize> {
    let mut lengths = vec![0; len];
    // Of the places so far, the one whose match ends last: `start..end` equals the first tokens of the text.
    let (mut start, mut end) = (0, 0);
    for at in 1..len {
        let mut length = if at < end { lengths[at - start].min(end - at) } else { 0 };
        // Before `end` the mirrored place is known to be complete, unless it reaches the end too.
        if at + length >= end {
            while at + length < len && equal(length, at + length) {
                length += 1;
            }
            (start, end) = (at, at + length);
        }
        lengths[at] = length;
    }
    lengths
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn by_hand() {
        // 1 2 3 | 1 2 4 1 2, in two parts.
        let repeats = Repeats::new([&[1, 2, 3], &[1, 2, 4, 1, 2]], usize::MAX);
        assert_eq!(repeats.latest(), [2, 1, 4, 2, 1, 3, 2, 1]);
        let found: Vec<_> = repeats.places().filter(|place| place.length > 0).collect();
        let place = |back, length, next| Repeat { back, length, next };
        assert_eq!(found, [place(3, 2, 4), place(6, 2, 3)]);
        assert_eq!(repeats.places().last(), Some(place(8, 0, 1)));
        let near = Repeats::new([&[1, 2, 3], &[1, 2, 4, 1, 2]], 4);
        assert_eq!(near.latest(), [2, 1, 4, 2]);
        let found: Vec<_> = near.places().filter(|place| place.length > 0).collect();
        assert_eq!(found, [place(3, 1, 4)], "the text begins there");
        assert_eq!(Repeats::new([&[], &[]], 4).places().count(), 0);
    }

    proptest! {
        /// Small alphabets and repeated blocks, so that matches are long and overlap.
        #[test]
        fn lengths_are_those_of_a_comparison_and_cost_two_comparisons_per_token(
            block in prop::collection::vec(0u32..3, 1..12),
            times in 1usize..30,
            rest in prop::collection::vec(0u32..3, 0..12),
        ) {
            let text: Vec<TokenId> = block.repeat(times).into_iter().chain(rest).collect();
            let mut compared = 0;
            let got = prefix_lengths(text.len(), |a, b| {
                compared += 1;
                text[a] == text[b]
            });
            for at in 1..text.len() {
                let same = text.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
                prop_assert_eq!(got[at], same, "at {}", at);
            }
            prop_assert!(compared <= 2 * text.len(), "{} of {}", compared, text.len());
        }
    }
}
