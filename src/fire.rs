//! FIRE: a high temperature for the first tokens.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// FIRE: samples the first tokens of a completion at their own temperature and the rest at the request's temperature
/// (Chen et al., *Flaming-hot Initiation with Regular Execution Sampling*, arXiv 2410.21236).
///
/// At high temperatures the distribution is close to uniform over the candidates that the filters leave. The paper
/// therefore limits the hot token with a top-k filter. A filter that compares probabilities limits it only with
/// [`TemperatureOrder::AfterFilters`](crate::TemperatureOrder::AfterFilters).
///
/// Hot tokens are sampled even if the request's own temperature is 0: a hot start followed by greedy decoding.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Fire {
    /// The temperature of the first tokens, above 0; 10, 30 or 50 in comparisons.
    pub temperature: f32,
    /// Number of hot tokens at the start of the completion, at least 1; the paper uses 1.
    #[serde(default = "one")]
    pub tokens: u64,
}

fn one() -> u64 {
    Fire::DEFAULT_TOKENS
}

impl Fire {
    /// Default number of hot tokens.
    pub const DEFAULT_TOKENS: u64 = 1;

    /// Samples the first token at this temperature.
    pub fn new(temperature: f32) -> Self {
        Self { temperature, tokens: Self::DEFAULT_TOKENS }
    }

    /// Sets the number of hot tokens.
    pub fn with_tokens(mut self, tokens: u64) -> Self {
        self.tokens = tokens;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for a temperature that is not finite and above 0, or for 0 tokens.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.temperature.is_finite() && self.temperature > 0.0;
        ConfigError::check(holds, "fire temperature", "a number above 0", self.temperature)?;
        ConfigError::check(self.tokens >= 1, "fire tokens", "at least 1", self.tokens)
    }
}
