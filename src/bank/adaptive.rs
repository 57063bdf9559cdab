//! Adaptive sharing: a mixture of one distiller for all prompts and one for each prompt.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// Settings of [`Sharing::Adaptive`](super::Sharing::Adaptive). It mixes the predictions of each prompt's own
/// distiller and of the one that all prompts share, weighted by how well each has predicted this prompt recently.
///
/// Let `e` be the squared error of a prompt's rows in a step, relative to the squared length of the deep states and at
/// most 4, and `D` its discounted mean, `D ← γ·D + (1 − γ)·e` with `γ = 2^(−1/half_life)`, bias-corrected like Adam's
/// moments. The weight of the own distiller is `σ(sharpness · (D_shared − D_own))`: the exponentially weighted
/// forecaster for two experts (Vovk, 1990; Littlestone and Warmuth, 1994), with a fading memory. Before the first
/// error the weight is ½. Both distillers learn from their own errors at every step, regardless of the mixture.
///
/// See docs/design/adaptive-sharing.md for the limits of the method.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct AdaptiveConfig {
    /// The number of steps after which an error counts half, above 0.
    pub half_life: f32,
    /// How strongly the better distiller is preferred, at least 0. With 0 both always have weight ½. Relative errors
    /// of good and better distillers differ by some hundredths: at 20, a lead of 0.05 gives weights of 0.73 and 0.27.
    pub sharpness: f32,
    /// The initial state of a prompt's own distiller.
    pub start: AdaptiveStart,
}

/// The initial state of a prompt's own distiller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum AdaptiveStart {
    /// The current parameters of the shared distiller, with a fresh optimizer state.
    #[default]
    Shared,
    /// The same initial parameters as every distiller.
    Fresh,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self { half_life: 8.0, sharpness: 20.0, start: AdaptiveStart::Shared }
    }
}

impl AdaptiveConfig {
    /// Returns the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the number of steps after which an error counts half.
    pub fn with_half_life(mut self, half_life: f32) -> Self {
        self.half_life = half_life;
        self
    }

    /// Sets how strongly the better distiller is preferred.
    pub fn with_sharpness(mut self, sharpness: f32) -> Self {
        self.sharpness = sharpness;
        self
    }

    /// Sets the initial state of a prompt's own distiller.
    pub fn with_start(mut self, start: AdaptiveStart) -> Self {
        self.start = start;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let (half_life, sharpness) = (self.half_life, self.sharpness);
        let holds = half_life.is_finite() && half_life > 0.0;
        ConfigError::check(holds, "half_life", "a number above 0", half_life)?;
        let holds = sharpness.is_finite() && sharpness >= 0.0;
        ConfigError::check(holds, "sharpness", "a number of at least 0", sharpness)
    }

    /// Returns γ, the fraction of the old mean that a step keeps.
    pub(crate) fn discount(&self) -> f64 {
        (-1.0 / f64::from(self.half_life)).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_half_after_the_half_life() {
        for half_life in [0.5, 1.0, 8.0] {
            let discount = AdaptiveConfig::new().with_half_life(half_life).discount();
            let after = discount.powf(f64::from(half_life));
            assert!((after - 0.5).abs() < 1e-12, "{after} after {half_life}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let config = AdaptiveConfig::new;
        for half_life in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let error = config().with_half_life(half_life).validate().unwrap_err();
            let expected = format!("half_life: expected a number above 0, got {half_life}");
            assert_eq!(error.to_string(), expected);
        }
        for sharpness in [-1.0, f32::INFINITY, f32::NAN] {
            let error = config().with_sharpness(sharpness).validate().unwrap_err();
            let expected = format!("sharpness: expected a number of at least 0, got {sharpness}");
            assert_eq!(error.to_string(), expected);
        }
        let lowest = config().with_half_life(f32::MIN_POSITIVE).with_sharpness(0.0);
        assert_eq!(lowest.validate(), Ok(()));
        assert_eq!((lowest.half_life, lowest.sharpness), (f32::MIN_POSITIVE, 0.0));
    }
}
