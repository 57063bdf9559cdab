//! Repetition, frequency and presence penalties, and logit bias.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    error::{ConfigError, RowError},
    id::TokenId,
};

/// Penalties for tokens that have already occurred. The default has no effect.
///
/// All three are computed from the model's own logit and are summed, together with the
/// [bias](crate::Sampling::logit_bias), into one adjustment δ per token, so their order does not matter. δ is added
/// to the reference logit before the filters and to the expected logit of the same token, so that ESamp preserves it:
/// `(1 + β)(l + δ) − β(e + δ) = (1 + β)l − βe + δ`. Where the logits are divided by the temperature, δ is divided
/// too. A masked token stays masked.
///
/// Cost per row and step: a sort of the tokens that have occurred. The row of logits is not copied.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
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
}

impl Default for Penalties {
    fn default() -> Self {
        Self { repetition: 1.0, frequency: 0.0, presence: 0.0 }
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
        Ok(())
    }

    /// The change of the logit of a token that occurs `occurrences` times in the completion, or only in the prompt if
    /// that is 0.
    fn adjustment(&self, logit: f32, occurrences: u32) -> f32 {
        let repeated = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        let present = if occurrences > 0 { self.presence } else { 0.0 };
        (repeated - logit) - self.frequency * occurrences as f32 - present
    }
}

/// Checks one entry of a logit bias.
pub(crate) fn check_bias(bias: f32) -> Result<(), ConfigError> {
    ConfigError::check(bias.is_finite(), "logit bias", "a finite number", bias)
}

/// The adjustment δ of each token that has one, in ascending order of token ids. Tokens whose logit is not finite
/// have none: a masked token stays masked, and NaN is reported unchanged.
pub(crate) fn adjustments(
    penalties: &Penalties,
    bias: &BTreeMap<TokenId, f32>,
    prompt: &[TokenId],
    generated: &[TokenId],
    logits: &[f32],
) -> Result<Vec<(TokenId, f32)>, RowError> {
    // Skip tokens that no enabled penalty uses: only the repetition penalty counts those of the prompt.
    let prompt = if penalties.repetition == 1.0 { &[] } else { prompt };
    let generated = if *penalties == Penalties::default() { &[] } else { generated };
    let biased: Vec<TokenId> = bias.keys().copied().collect();
    for (place, tokens) in
        [("logit bias", &biased[..]), ("prompt", prompt), ("completion", generated)]
    {
        if let Some(&token) = tokens.iter().find(|&&token| token as usize >= logits.len()) {
            return Err(RowError::UnknownToken { place, token, vocab: logits.len() });
        }
    }
    // Each token with its number of occurrences in the completion. A bias alone is not an occurrence.
    let mut said: Vec<(TokenId, u32)> = prompt.iter().map(|&token| (token, 0)).collect();
    said.extend(generated.iter().map(|&token| (token, 1)));
    said.sort_unstable();
    let mut deltas: BTreeMap<TokenId, f32> = bias.clone();
    for run in said.chunk_by(|a, b| a.0 == b.0) {
        let token = run[0].0;
        let occurrences = run.iter().map(|&(_, once)| once).sum();
        *deltas.entry(token).or_default() +=
            penalties.adjustment(logits[token as usize], occurrences);
    }
    Ok(deltas.into_iter().filter(|&(token, _)| logits[token as usize].is_finite()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [2.0, -2.0, 0.0, 1.0, f32::NEG_INFINITY, f32::NAN];

    fn of(penalties: Penalties, bias: &[(TokenId, f32)]) -> Vec<(TokenId, f32)> {
        let bias = bias.iter().copied().collect();
        adjustments(&penalties, &bias, &[0, 1, 0, 4], &[1, 3, 3, 5], &LOGITS).unwrap()
    }

    #[test]
    fn by_hand() {
        let off = Penalties::default();
        assert_eq!(of(off, &[]), []);
        let repetition = Penalties { repetition: 2.0, ..off };
        // 2 → 1, −2 → −4, 1 → ½; once per token, from prompt and completion; masked and NaN logits are unchanged.
        assert_eq!(of(repetition, &[]), [(0, -1.0), (1, -2.0), (3, -0.5)]);
        let frequency = Penalties { frequency: 0.5, ..off };
        assert_eq!(of(frequency, &[]), [(1, -0.5), (3, -1.0)], "the completion only");
        let presence = Penalties { presence: 0.5, ..off };
        assert_eq!(of(presence, &[]), [(1, -0.5), (3, -0.5)]);
        assert_eq!(of(off, &[(2, 3.0), (4, 9.0)]), [(2, 3.0)]);
        let all = Penalties { repetition: 2.0, frequency: 0.5, presence: 0.25 };
        let expected = [(0, -1.0), (1, -2.75), (2, -3.0), (3, -0.5 - 1.0 - 0.25 + 8.0)];
        assert_eq!(of(all, &[(3, 8.0), (2, -3.0)]), expected, "a sum, so there is no order");
    }

    #[test]
    fn tokens_that_the_model_does_not_know() {
        let wording =
            |penalties, bias: &[(TokenId, f32)], prompt: &[TokenId], generated: &[TokenId]| {
                let bias = bias.iter().copied().collect();
                adjustments(&penalties, &bias, prompt, generated, &LOGITS).unwrap_err().to_string()
            };
        let off = Penalties::default();
        let repetition = Penalties { repetition: 1.1, ..off };
        let presence = Penalties { presence: 0.1, ..off };
        assert_eq!(
            wording(off, &[(6, 1.0)], &[], &[]),
            "logit bias token 6: expected an id below 6"
        );
        assert_eq!(wording(repetition, &[], &[7], &[]), "prompt token 7: expected an id below 6");
        assert_eq!(
            wording(presence, &[], &[7], &[8]),
            "completion token 8: expected an id below 6"
        );
        assert!(
            adjustments(&off, &BTreeMap::new(), &[7], &[8], &LOGITS).is_ok(),
            "no penalty uses these tokens"
        );
    }

    #[test]
    fn settings_out_of_range() {
        let wording = |penalties: Penalties| penalties.validate().unwrap_err().to_string();
        let off = Penalties::default();
        for repetition in [0.0, -1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(
                wording(Penalties { repetition, ..off }),
                format!("repetition penalty: expected a number above 0, got {repetition}")
            );
        }
        assert_eq!(
            wording(Penalties { frequency: f32::NAN, ..off }),
            "frequency penalty: expected a finite number, got NaN"
        );
        assert_eq!(
            wording(Penalties { presence: f32::INFINITY, ..off }),
            "presence penalty: expected a finite number, got inf"
        );
        assert!(Penalties { repetition: 0.5, frequency: -2.0, presence: -2.0 }.validate().is_ok());
    }
}
