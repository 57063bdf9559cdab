//! DRY: a penalty for continuing a repetition.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::repeats::Repeats;
use crate::{error::ConfigError, id::TokenId};

/// DRY ("don't repeat yourself"): lowers the logit of each token that would continue a repetition, by an amount that
/// grows exponentially with the length of what has been repeated already (P. E. Weidmann, pull request 5677 of
/// text-generation-webui; also in llama.cpp and koboldcpp).
///
/// If the last `n` tokens of the text have occurred before and `n ≥ allowed_length`, then `multiplier · base^(n −
/// allowed_length)` is subtracted from the logit of the token that followed them there, for the largest such `n`. The
/// text is the prompt and the completion so far. A match ends at a sequence breaker, and a sequence breaker is never
/// penalised.
///
/// The amount is at most 10⁴ nats, which no token survives. (text-generation-webui limits `n` to 50 instead, and
/// llama.cpp the amount to the range of `f32`.)
///
/// Cost per row and step: linear in the length of the text, or in [`range`](Self::range), by the Z-algorithm.
///
/// ```
/// use esamp::{Dry, Penalties, Sampling};
///
/// let newline = 198; // in the vocabulary of GPT-2
/// let dry = Dry::new(0.8).with_allowed_length(3).with_breakers([newline]);
/// let sampling = Sampling::new().with_penalties(Penalties::new().with_dry(dry));
/// assert!(sampling.validate().is_ok());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Dry {
    /// The amount in nats for a repetition of the allowed length, above 0. Default: 0.8, the recommendation of the
    /// source.
    pub multiplier: f32,
    /// The factor for each further token, at least 1. Default: 1.75.
    pub base: f32,
    /// The longest repetition that is not penalised, in tokens, at least 1. Default: 2.
    pub allowed_length: usize,
    /// Tokens that end a repetition, so that what stands at the beginning of every line or turn may be repeated.
    /// Default: none, because ids depend on the model; the sources take those of a newline, a colon, a quotation mark
    /// and an asterisk.
    pub breakers: BTreeSet<TokenId>,
    /// How many of the last tokens of the text are looked at; `None` looks at all. Default: `None`.
    pub range: Option<usize>,
}

impl Default for Dry {
    fn default() -> Self {
        Self {
            multiplier: 0.8,
            base: 1.75,
            allowed_length: 2,
            breakers: BTreeSet::new(),
            range: None,
        }
    }
}

/// The largest amount in nats. With more, sums with other amounts could leave the range of `f32`.
const LARGEST: f64 = 1e4;

impl Dry {
    /// This multiplier, and the defaults for everything else.
    pub fn new(multiplier: f32) -> Self {
        Self { multiplier, ..Self::default() }
    }

    /// Sets the [base](Self::base).
    pub fn with_base(mut self, base: f32) -> Self {
        self.base = base;
        self
    }

    /// Sets the [allowed length](Self::allowed_length).
    pub fn with_allowed_length(mut self, tokens: usize) -> Self {
        self.allowed_length = tokens;
        self
    }

    /// Sets the [sequence breakers](Self::breakers).
    pub fn with_breakers(mut self, tokens: impl IntoIterator<Item = TokenId>) -> Self {
        self.breakers = tokens.into_iter().collect();
        self
    }

    /// Sets the [range](Self::range).
    pub fn with_range(mut self, tokens: usize) -> Self {
        self.range = Some(tokens);
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let Self { multiplier, base, allowed_length, .. } = *self;
        let holds = multiplier.is_finite() && multiplier > 0.0;
        ConfigError::check(holds, "dry multiplier", "a number above 0", multiplier)?;
        let holds = base.is_finite() && base >= 1.0;
        ConfigError::check(holds, "dry base", "a number of at least 1", base)?;
        ConfigError::at_least_one("dry allowed_length", allowed_length)?;
        ConfigError::at_least_one("dry range", self.range.unwrap_or(1))
    }

    /// The amount to subtract from the logit of each token that would continue a repetition. `repeats` may look at
    /// more of the text than the range.
    pub(super) fn amounts(&self, repeats: &Repeats) -> BTreeMap<TokenId, f32> {
        let latest = repeats.latest();
        let range = self.range.unwrap_or(usize::MAX).min(latest.len());
        let unbroken = latest.iter().take_while(|token| !self.breakers.contains(token)).count();
        let mut longest: BTreeMap<TokenId, usize> = BTreeMap::new();
        for place in repeats.places().take_while(|place| place.back < range) {
            let length = place.length.min(unbroken).min(range - place.back);
            if length >= self.allowed_length && !self.breakers.contains(&place.next) {
                let known = longest.entry(place.next).or_default();
                *known = length.max(*known);
            }
        }
        longest.into_iter().map(|(token, length)| (token, self.amount(length))).collect()
    }

    /// The amount for a repetition of `length` tokens, at least the allowed length.
    fn amount(&self, length: usize) -> f32 {
        let excess = i32::try_from(length - self.allowed_length).unwrap_or(i32::MAX);
        let amount = f64::from(self.multiplier) * f64::from(self.base).powi(excess);
        amount.min(LARGEST) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(dry: &Dry, text: &[TokenId]) -> Vec<(TokenId, f32)> {
        dry.validate().unwrap();
        dry.amounts(&Repeats::new([text, &[]], usize::MAX)).into_iter().collect()
    }

    #[test]
    fn by_hand() {
        let dry = Dry::new(0.5).with_base(2.0);
        assert_eq!(of(&dry, &[1, 2, 3, 9, 2]), [], "one token may be repeated");
        assert_eq!(of(&dry, &[1, 2, 3, 9, 1, 2]), [(3, 0.5)]);
        assert_eq!(of(&dry, &[7, 1, 2, 3, 9, 7, 1, 2]), [(3, 1.0)]);
        // 1 2 was followed by 3 once and by 4 after a longer match.
        assert_eq!(of(&dry, &[1, 2, 3, 7, 1, 2, 4, 7, 1, 2]), [(3, 0.5), (4, 1.0)]);
        // Of several matches before the same token the longest counts. Matches may overlap.
        assert_eq!(of(&dry, &[5, 5, 5, 5]), [(5, 1.0)]);
        let longer = dry.clone().with_allowed_length(3);
        assert_eq!(of(&longer, &[7, 1, 2, 3, 9, 7, 1, 2]), [(3, 0.5)]);
        assert_eq!(of(&longer, &[1, 2, 3, 9, 1, 2]), []);
        assert_eq!(of(&dry, &[]), []);
    }

    #[test]
    fn breakers_end_a_match_and_are_not_penalised() {
        let dry = Dry::new(0.5).with_base(2.0);
        let text = [7, 1, 2, 3, 9, 7, 1, 2];
        assert_eq!(of(&dry.clone().with_breakers([7]), &text), [(3, 0.5)]);
        assert_eq!(of(&dry.clone().with_breakers([1]), &text), []);
        assert_eq!(of(&dry.clone().with_breakers([2]), &text), [], "the last token");
        assert_eq!(of(&dry.with_breakers([3]), &text), [], "the next token");
    }

    #[test]
    fn the_range_limits_the_text() {
        let dry = Dry::new(0.5).with_base(2.0);
        let text = [7, 1, 2, 3, 9, 7, 1, 2];
        for (range, expected) in [(9, 1.0), (8, 1.0), (7, 0.5)] {
            assert_eq!(of(&dry.clone().with_range(range), &text), [(3, expected)], "{range}");
        }
        assert_eq!(of(&dry.clone().with_range(6), &text), []);
        assert_eq!(of(&dry.with_range(1), &text), []);
    }

    #[test]
    fn amounts_stay_finite() {
        let long = [3; 500];
        assert_eq!(of(&Dry::new(f32::MAX).with_base(f32::MAX), &long), [(3, 1e4)]);
        assert_eq!(of(&Dry::new(0.25).with_base(1.0), &long), [(3, 0.25)]);
    }

    #[test]
    fn settings_out_of_range() {
        let wording = |dry: Dry| dry.validate().unwrap_err().to_string();
        for multiplier in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            let expected = format!("dry multiplier: expected a number above 0, got {multiplier}");
            assert_eq!(wording(Dry::new(multiplier)), expected);
        }
        for base in [0.9, f32::NAN, f32::INFINITY] {
            let expected = format!("dry base: expected a number of at least 1, got {base}");
            assert_eq!(wording(Dry::default().with_base(base)), expected);
        }
        assert_eq!(
            wording(Dry::default().with_allowed_length(0)),
            "dry allowed_length: expected at least 1, got 0"
        );
        assert_eq!(wording(Dry::default().with_range(0)), "dry range: expected at least 1, got 0");
    }
}
