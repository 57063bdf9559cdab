//! Penalties for what has already been said, and logit bias.

mod dry;
mod repeats;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use dry::Dry;
use repeats::Repeats;

use crate::{
    error::{ConfigError, RowError},
    id::TokenId,
};

/// Penalties for tokens and sequences of tokens that have already occurred. The default has no effect.
///
/// All of them are computed from the model's own logit and are summed, together with the
/// [bias](crate::Sampling::logit_bias), into one adjustment δ per token, so their order does not matter. δ is added
/// to the reference logit before the filters and to the expected logit of the same token, so that ESamp preserves it:
/// `(1 + β)(l + δ) − β(e + δ) = (1 + β)l − βe + δ`. Where the logits are divided by the temperature, δ is divided
/// too. A masked token stays masked, and a token that would repeat an n-gram is masked: its δ is −∞.
///
/// Cost per row and step: a sort of the tokens that have occurred; with [`no_repeat_ngram`](Self::no_repeat_ngram) or
/// [`dry`](Self::dry) also a pass over prompt and completion. The row of logits is not copied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Penalties {
    /// Divides a positive logit and multiplies a negative one, once for every token that occurs in the prompt or the
    /// completion (Keskar et al., *CTRL*, arXiv 1909.05858; the prompt is included, as in Hugging Face's
    /// implementation). Above 0; 1 disables it, values below 1 favour repetition.
    pub repetition: f32,
    /// Subtracted from the logit once for each occurrence of the token in the completion (as in OpenAI's API, whose
    /// values are −2 to 2). 0 disables it, values below 0 favour repetition.
    pub frequency: f32,
    /// Subtracted once from the logit of every token that occurs in the completion (as in OpenAI's API, whose values
    /// are −2 to 2). 0 disables it, values below 0 favour repetition.
    pub presence: f32,
    /// The length `n` of sequences of tokens that may occur only once in prompt and completion together: a token that
    /// would complete an `n`-gram for the second time is masked (`no_repeat_ngram_size` of Hugging Face and fairseq).
    /// 0 disables it; with 1, no token may be repeated. Where nothing is left, the row fails with
    /// [`RowError::AllMasked`].
    #[serde(skip_serializing_if = "is_off")]
    pub no_repeat_ngram: usize,
    /// A penalty for continuing a repetition, which grows with its length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dry: Option<Dry>,
}

// Penalties that were added later are written only where they are set, so that the written form of older settings, by
// which records are compared, stays the same.
fn is_off(no_repeat_ngram: &usize) -> bool {
    *no_repeat_ngram == 0
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, frequency: 0.0, presence: 0.0, no_repeat_ngram: 0, dry: None }
    }
}

impl Penalties {
    /// No penalties.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the [repetition](Self::repetition) penalty.
    pub fn with_repetition(mut self, repetition: f32) -> Self {
        self.repetition = repetition;
        self
    }

    /// Sets the [frequency](Self::frequency) penalty.
    pub fn with_frequency(mut self, frequency: f32) -> Self {
        self.frequency = frequency;
        self
    }

    /// Sets the [presence](Self::presence) penalty.
    pub fn with_presence(mut self, presence: f32) -> Self {
        self.presence = presence;
        self
    }

    /// Sets the [length of sequences](Self::no_repeat_ngram) that may occur only once.
    pub fn with_no_repeat_ngram(mut self, tokens: usize) -> Self {
        self.no_repeat_ngram = tokens;
        self
    }

    /// Sets the [`Dry`] penalty.
    pub fn with_dry(mut self, dry: Dry) -> Self {
        self.dry = Some(dry);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.repetition.is_finite() && self.repetition > 0.0;
        ConfigError::check(holds, "repetition penalty", "a number above 0", self.repetition)?;
        for (setting, value) in
            [("frequency penalty", self.frequency), ("presence penalty", self.presence)]
        {
            ConfigError::check(value.is_finite(), setting, "a finite number", value)?;
        }
        self.dry.as_ref().map_or(Ok(()), Dry::validate)
    }

    /// The sequence breakers of [`dry`](Self::dry).
    pub(crate) fn breakers(&self) -> Vec<TokenId> {
        self.dry.iter().flat_map(|dry| &dry.breakers).copied().collect()
    }

    /// Whether a penalty depends on which tokens have occurred.
    fn counts(&self) -> bool {
        self.repetition != 1.0 || self.frequency != 0.0 || self.presence != 0.0
    }

    /// The number of last tokens whose order a penalty depends on.
    fn range(&self) -> usize {
        let dry = self.dry.as_ref().map_or(0, |dry| dry.range.unwrap_or(usize::MAX));
        if self.no_repeat_ngram > 0 { usize::MAX } else { dry }
    }

    /// The change of the logit of a token that occurs `occurrences` times in the completion, or only in the prompt if
    /// that is 0.
    fn adjustment(&self, logit: f32, occurrences: u32) -> f32 {
        let repeated = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let present = if occurrences > 0 { self.presence } else { 0.0 };
        (repeated - logit) - self.frequency * occurrences as f32 - present
    }

    /// Adds what the order of the tokens changes.
    fn add_repeats(&self, text: [&[TokenId]; 2], deltas: &mut BTreeMap<TokenId, f32>) {
        let repeats = Repeats::new(text, self.range());
        let amounts = self.dry.as_ref().map(|dry| dry.amounts(&repeats));
        for (token, amount) in amounts.into_iter().flatten() {
            *deltas.entry(token).or_default() -= amount;
        }
        let n = self.no_repeat_ngram;
        let completed = repeats.places().filter(|place| n > 0 && place.length + 1 >= n);
        deltas.extend(completed.map(|place| (place.next, f32::NEG_INFINITY)));
    }
}

/// Checks one entry of a logit bias.
pub(crate) fn check_bias(bias: f32) -> Result<(), ConfigError> {
    ConfigError::check(bias.is_finite(), "logit bias", "a finite number", bias)
}

/// The parts of prompt and completion that an enabled penalty reads. An error if a token of them, or of the bias, is not
/// below `vocab`.
fn read_text<'a>(
    penalties: &Penalties,
    bias: &BTreeMap<TokenId, f32>,
    [prompt, generated]: [&'a [TokenId]; 2],
    vocab: usize,
) -> Result<[&'a [TokenId]; 2], RowError> {
    let biased: Vec<TokenId> = bias.keys().copied().collect();
    // Skip tokens that no enabled penalty uses: of those that only count tokens, just the repetition penalty counts
    // those of the prompt.
    let reads_text = penalties.range() > 0;
    let used = |tokens, is_used: bool| if is_used { tokens } else { &[][..] };
    let prompt = used(prompt, penalties.repetition != 1.0 || reads_text);
    let generated = used(generated, penalties.counts() || reads_text);
    for (place, tokens) in [
        ("logit bias", &biased[..]),
        ("sequence breaker", &penalties.breakers()),
        ("prompt", prompt),
        ("completion", generated),
    ] {
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(RowError::UnknownToken { place, token, vocab });
        }
    }
    Ok([prompt, generated])
}

/// The tokens that [`adjustments`] may change, in any order: all tokens of the bias, and those of the text that an
/// enabled penalty reads. An error if one of them is not below `vocab`.
pub(crate) fn adjustable(
    penalties: &Penalties,
    bias: &BTreeMap<TokenId, f32>,
    text: [&[TokenId]; 2],
    vocab: usize,
) -> Result<Vec<TokenId>, RowError> {
    let text = read_text(penalties, bias, text, vocab)?;
    Ok(bias.keys().chain(text.into_iter().flatten()).copied().collect())
}

/// The adjustment δ of each token that has one, in ascending order of token ids. Tokens whose logit is not finite
/// have none: a masked token stays masked, and NaN is reported unchanged. `logit` returns the model's logit of a token;
/// it is asked only for [adjustable] tokens.
pub(crate) fn adjustments(
    penalties: &Penalties,
    bias: &BTreeMap<TokenId, f32>,
    text: [&[TokenId]; 2],
    vocab: usize,
    logit: impl Fn(TokenId) -> f32,
) -> Result<Vec<(TokenId, f32)>, RowError> {
    read_text(penalties, bias, text, vocab)?;
    let [prompt, generated] = text;
    let used = |tokens, is_used: bool| if is_used { tokens } else { &[][..] };
    // Each token with its number of occurrences in the completion. A bias alone is not an occurrence.
    let in_prompt = used(prompt, penalties.repetition != 1.0).iter().map(|&token| (token, 0));
    let in_completion = used(generated, penalties.counts()).iter().map(|&token| (token, 1));
    let mut said: Vec<(TokenId, u32)> = in_prompt.chain(in_completion).collect();
    said.sort_unstable();
    let mut deltas: BTreeMap<TokenId, f32> = bias.clone();
    for run in said.chunk_by(|a, b| a.0 == b.0) {
        let token = run[0].0;
        let occurrences = run.iter().map(|&(_, once)| once).sum();
        *deltas.entry(token).or_default() += penalties.adjustment(logit(token), occurrences);
    }
    if penalties.range() > 0 {
        penalties.add_repeats(text, &mut deltas);
    }
    Ok(deltas.into_iter().filter(|&(token, _)| logit(token).is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [2.0, -2.0, 0.0, 1.0, f32::NEG_INFINITY, f32::NAN];

    /// The adjustments of a row with [`LOGITS`].
    fn adjust(
        penalties: &Penalties,
        bias: &[(TokenId, f32)],
        text: [&[TokenId]; 2],
    ) -> Result<Vec<(TokenId, f32)>, RowError> {
        let bias = bias.iter().copied().collect();
        adjustments(penalties, &bias, text, LOGITS.len(), |token| LOGITS[token as usize])
    }

    fn of(penalties: Penalties, bias: &[(TokenId, f32)]) -> Vec<(TokenId, f32)> {
        adjust(&penalties, bias, [&[0, 1, 0, 4], &[1, 3, 3, 5]]).unwrap()
    }

    #[test]
    fn by_hand() {
        let off = Penalties::default;
        assert_eq!(of(off(), &[]), []);
        let repetition = Penalties::new().with_repetition(2.0);
        // 2 → 1, −2 → −4, 1 → ½; once per token, from prompt and completion; masked and NaN logits are unchanged.
        assert_eq!(of(repetition, &[]), [(0, -1.0), (1, -2.0), (3, -0.5)]);
        let frequency = Penalties { frequency: 0.5, ..off() };
        assert_eq!(of(frequency, &[]), [(1, -0.5), (3, -1.0)], "the completion only");
        let presence = Penalties { presence: 0.5, ..off() };
        assert_eq!(of(presence, &[]), [(1, -0.5), (3, -0.5)]);
        assert_eq!(of(off(), &[(2, 3.0), (4, 9.0)]), [(2, 3.0)]);
        let all = Penalties { repetition: 2.0, frequency: 0.5, presence: 0.25, ..off() };
        let expected = [(0, -1.0), (1, -2.75), (2, -3.0), (3, -0.5 - 1.0 - 0.25 + 8.0)];
        assert_eq!(of(all, &[(3, 8.0), (2, -3.0)]), expected, "a sum, so there is no order");
    }

    #[test]
    fn sequences_by_hand() {
        let of = |penalties: &Penalties, bias: &[(TokenId, f32)], prompt: &[_], generated: &[_]| {
            adjust(penalties, bias, [prompt, generated]).unwrap()
        };
        const MASKED: f32 = f32::NEG_INFINITY;
        let ngram = |n| Penalties::new().with_no_repeat_ngram(n);
        // 0 1 2 | 0 1: the pair 1 2 and the triple 0 1 2 may not occur again, in prompt and completion together.
        for n in [2, 3] {
            assert_eq!(of(&ngram(n), &[], &[0, 1, 2], &[0, 1]), [(2, MASKED)], "{n}");
        }
        assert_eq!(of(&ngram(4), &[], &[0, 1, 2], &[0, 1]), []);
        assert_eq!(of(&ngram(4), &[], &[3, 0, 1, 2, 3], &[0, 1]), [(2, MASKED)]);
        let all = [(0, MASKED), (1, MASKED), (2, MASKED)];
        assert_eq!(of(&ngram(1), &[], &[0, 1, 2], &[0, 1]), all);
        assert_eq!(of(&ngram(1), &[], &[], &[]), []);
        assert_eq!(of(&ngram(9), &[], &[0, 0], &[0]), []);
        // A bias does not unmask, and tokens that the model has masked, or that are no numbers, are left alone.
        assert_eq!(of(&ngram(2), &[(2, 9.0), (3, 1.0)], &[1, 2], &[1]), [(2, MASKED), (3, 1.0)]);
        assert_eq!(of(&ngram(1), &[], &[4], &[5]), []);
        // DRY adds to the others.
        let dry = Dry::new(0.5).with_base(2.0);
        let both = Penalties::new().with_presence(0.25).with_dry(dry.clone());
        let expected = [(0, -0.25), (1, -0.25), (2, -0.5 + 3.0)];
        assert_eq!(of(&both, &[(2, 3.0)], &[0, 1, 2], &[0, 1]), expected);
        let masked = both.with_no_repeat_ngram(2);
        let expected = [(0, -0.25), (1, -0.25), (2, MASKED)];
        assert_eq!(of(&masked, &[(2, 3.0)], &[0, 1, 2], &[0, 1]), expected);
        // The range is DRY's alone.
        let near = Penalties::new().with_dry(dry.with_range(3)).with_no_repeat_ngram(4);
        assert_eq!(of(&near, &[], &[0, 1, 2], &[0, 1]), []);
        assert_eq!(of(&near, &[], &[3, 0, 1, 2, 3], &[0, 1]), [(2, MASKED)]);
    }

    #[test]
    fn tokens_that_the_model_does_not_know() {
        let wording =
            |penalties, bias: &[(TokenId, f32)], prompt: &[TokenId], generated: &[TokenId]| {
                adjust(&penalties, bias, [prompt, generated]).unwrap_err().to_string()
            };
        let off = Penalties::default;
        let repetition = Penalties { repetition: 1.1, ..off() };
        let presence = Penalties { presence: 0.1, ..off() };
        assert_eq!(
            wording(off(), &[(6, 1.0)], &[], &[]),
            "logit bias token 6: expected an id below 6"
        );
        assert_eq!(wording(repetition, &[], &[7], &[]), "prompt token 7: expected an id below 6");
        assert_eq!(
            wording(presence, &[], &[7], &[8]),
            "completion token 8: expected an id below 6"
        );
        assert!(adjust(&off(), &[], [&[7], &[8]]).is_ok(), "no penalty uses these tokens");
        for ordered in [off().with_no_repeat_ngram(2), off().with_dry(Dry::default())] {
            let expected = "prompt token 7: expected an id below 6";
            assert_eq!(wording(ordered.clone(), &[], &[7], &[8]), expected);
            let expected = "completion token 8: expected an id below 6";
            assert_eq!(wording(ordered, &[], &[5], &[8]), expected);
        }
        assert_eq!(
            wording(off().with_dry(Dry::default().with_breakers([9])), &[], &[], &[]),
            "sequence breaker token 9: expected an id below 6"
        );
    }

    #[test]
    fn settings_out_of_range() {
        let wording = |penalties: Penalties| penalties.validate().unwrap_err().to_string();
        let off = Penalties::default;
        for repetition in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(
                wording(Penalties { repetition, ..off() }),
                format!("repetition penalty: expected a number above 0, got {repetition}")
            );
        }
        assert_eq!(
            wording(Penalties { frequency: f32::NAN, ..off() }),
            "frequency penalty: expected a finite number, got NaN"
        );
        assert_eq!(
            wording(Penalties { presence: f32::INFINITY, ..off() }),
            "presence penalty: expected a finite number, got inf"
        );
        assert_eq!(
            wording(off().with_dry(Dry::new(0.0))),
            "dry multiplier: expected a number above 0, got 0"
        );
        let favours = Penalties { repetition: 0.5, frequency: -2.0, presence: -2.0, ..off() };
        assert!(favours.validate().is_ok());
    }
}
