//! A hot start.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// FIRE: the first tokens of a completion at a temperature of their own, the rest at the request's (Chen et al.,
/// *Flaming-hot Initiation with Regular Execution Sampling*, arXiv 2410.21236).
///
/// At such temperatures the distribution is close to uniform over whatever the filters leave. The paper therefore limits
/// the hot token with a top-k filter; a filter that compares probabilities does so only with
/// [`TemperatureOrder::AfterFilters`](crate::TemperatureOrder::AfterFilters).
///
/// Hot tokens are drawn at random also where the request's own temperature is 0: a hot start, then greedy.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Fire {
    /// The temperature of the first tokens, above 0; 10, 30 or 50 in comparisons.
    pub temperature: f32,
    /// How many tokens of the completion are hot, at least 1; the paper's is 1.
    #[serde(default = "one")]
    pub tokens: u64,
}

fn one() -> u64 {
    Fire::DEFAULT_TOKENS
}

impl Fire {
    /// How many tokens are hot where none is set.
    pub const DEFAULT_TOKENS: u64 = 1;

    /// The first token at this temperature.
    pub fn new(temperature: f32) -> Self {
        Self { temperature, tokens: Self::DEFAULT_TOKENS }
    }

    /// Sets how many tokens are hot.
    pub fn with_tokens(mut self, tokens: u64) -> Self {
        self.tokens = tokens;
        self
    }

    /// Checks the settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for a temperature that is not above 0 and finite, or no token.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.temperature.is_finite() && self.temperature > 0.0;
        ConfigError::check(holds, "fire temperature", "a number above 0", self.temperature)?;
        ConfigError::check(self.tokens >= 1, "fire tokens", "at least 1", self.tokens)
    }
}
