//! The penalties for sequences against naive implementations, written from their sources' definitions.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::{BTreeMap, BTreeSet};

use esamp::{
    CompletionId, DrawKey, Dry, Penalties, Sampling, TokenId, errors::RowError, filters::RowContext,
};
use proptest::prelude::*;

const VOCAB: usize = 5;

/// Every `n`-gram of the text, by its first `n − 1` tokens, as in Hugging Face's processor.
fn naive_ngrams(text: &[TokenId], n: usize) -> BTreeSet<TokenId> {
    let mut following: BTreeMap<&[TokenId], BTreeSet<TokenId>> = BTreeMap::new();
    for ngram in text.windows(n) {
        following.entry(&ngram[..n - 1]).or_default().insert(ngram[n - 1]);
    }
    if text.len() + 1 < n {
        return BTreeSet::new();
    }
    following.get(&text[text.len() + 1 - n..]).cloned().unwrap_or_default()
}

/// Compares the end of the text with the text before each of its tokens, one token at a time, as the source of DRY
/// does.
fn naive_dry(text: &[TokenId], dry: &Dry) -> BTreeMap<TokenId, f64> {
    let text = &text[text.len() - text.len().min(dry.range.unwrap_or(text.len()))..];
    let mut longest: BTreeMap<TokenId, usize> = BTreeMap::new();
    for at in 1..text.len() {
        if dry.breakers.contains(&text[at]) {
            continue;
        }
        let mut length = 0;
        while length < at
            && text[at - 1 - length] == text[text.len() - 1 - length]
            && !dry.breakers.contains(&text[at - 1 - length])
        {
            length += 1;
        }
        let known = longest.entry(text[at]).or_default();
        *known = length.max(*known);
    }
    longest.retain(|_, length| *length >= dry.allowed_length);
    let amount = |length: usize| {
        let excess = (length - dry.allowed_length) as f64;
        f64::from(dry.multiplier) * f64::from(dry.base).powf(excess)
    };
    longest.into_iter().map(|(token, length)| (token, amount(length).min(1e4))).collect()
}

/// Texts that repeat themselves, with a part that does not.
fn text() -> impl Strategy<Value = Vec<TokenId>> {
    let token = 0..VOCAB as TokenId;
    let block = prop::collection::vec(token.clone(), 1..8);
    let mixed = prop::collection::vec(token, 0..12);
    (mixed.clone(), block, 0usize..6, mixed)
        .prop_map(|(before, block, times, after)| [before, block.repeat(times), after].concat())
}

/// The logits that the penalties leave, by token.
fn penalised(
    penalties: Penalties,
    text: &[TokenId],
    prompt: usize,
) -> Result<BTreeMap<TokenId, f32>, RowError> {
    let (prompt, generated) = text.split_at(prompt.min(text.len()));
    let position = generated.len() as u64;
    let draw = DrawKey::new(0, prompt, 0).at(position);
    let row =
        RowContext::new(CompletionId::new(0, 0), position, draw).with_tokens(prompt, generated);
    let sampling = Sampling::paper().with_penalties(penalties).checked().unwrap();
    let candidates = sampling.candidates(&row, &[0.0; VOCAB])?;
    Ok(candidates.as_slice().iter().map(|c| (c.token, c.logit)).collect())
}

proptest! {
    #[test]
    fn no_repeat_ngram(text in text(), n in 1usize..7, prompt in 0usize..40) {
        let masked = naive_ngrams(&text, n);
        let got = penalised(Penalties::new().with_no_repeat_ngram(n), &text, prompt);
        if masked.len() == VOCAB {
            prop_assert_eq!(got, Err(RowError::AllMasked { vocab: VOCAB }));
        } else {
            let left = (0..VOCAB as TokenId).filter(|token| !masked.contains(token));
            prop_assert_eq!(got, Ok(left.map(|token| (token, 0.0)).collect()));
        }
    }

    #[test]
    fn dry(
        text in text(),
        prompt in 0usize..40,
        multiplier in 0.1f32..2.0,
        base in 1.0f32..3.0,
        allowed_length in 1usize..5,
        breakers in prop::collection::btree_set(0..VOCAB as TokenId, 0..3),
        range in prop::option::of(1usize..40),
    ) {
        let mut dry = Dry::new(multiplier).with_base(base).with_allowed_length(allowed_length);
        dry = dry.with_breakers(breakers);
        dry.range = range;
        let expected = naive_dry(&text, &dry);
        let got = penalised(Penalties::new().with_dry(dry), &text, prompt).unwrap();
        for token in 0..VOCAB as TokenId {
            let (got, amount) = (got[&token], expected.get(&token).copied().unwrap_or(0.0));
            let close = (f64::from(got) + amount).abs() <= 1e-4 * amount;
            prop_assert!(close, "token {token}: −{amount}, got {got}");
        }
    }
}
