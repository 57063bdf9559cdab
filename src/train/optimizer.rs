//! How an update moves the parameters.

use burn::optim::{AdamConfig, AdamWConfig, ModuleOptimizer, SgdConfig};
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum UpdateRule {
    /// Plain gradient descent.
    Sgd,
    /// Adam (Kingma and Ba, 2015).
    Adam {
        /// Decay of the first moment, in `[0, 1)`.
        beta_1: f32,
        /// Decay of the second moment, in `[0, 1)`.
        beta_2: f32,
        /// Added to the square root of the second moment, above 0.
        epsilon: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019), on all parameters.
    AdamW {
        /// Decay of the first moment, in `[0, 1)`.
        beta_1: f32,
        /// Decay of the second moment, in `[0, 1)`.
        beta_2: f32,
        /// Added to the square root of the second moment, above 0.
        epsilon: f32,
        /// Share of each parameter, times the learning rate, that an update takes away; at least 0.
        weight_decay: f32,
    },
}

/// Update rule, learning rate and clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerConfig {
    /// The update rule.
    pub rule: UpdateRule,
    /// The learning rate, above 0.
    pub learning_rate: f64,
    /// The largest norm that the gradient of one distiller may have, over all of its parameters together; a larger
    /// one is scaled by `max / (norm + 1e-6)`. `None` never clips.
    pub max_grad_norm: Option<f32>,
}

impl OptimizerConfig {
    /// The paper's optimizer, for [`SwiGluDistiller`](crate::SwiGluDistiller): Adam at 4e-4 with ε 1e-4, the gradient
    /// clipped to norm 0.5. It suits completions of thousands of tokens; short ones learn more at 3e-3.
    pub fn paper() -> Self {
        Self {
            rule: UpdateRule::Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-4 },
            learning_rate: 4e-4,
            max_grad_norm: Some(0.5),
        }
    }

    /// The optimizer of the paper's reference implementation, for [`LowRankDistiller`](crate::LowRankDistiller): AdamW
    /// at 1e-3 with weight decay 0.01, without clipping.
    pub fn reference() -> Self {
        Self {
            rule: UpdateRule::AdamW {
                beta_1: 0.9,
                beta_2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.01,
            },
            learning_rate: 1e-3,
            max_grad_norm: None,
        }
    }

    /// Plain gradient descent without clipping.
    pub fn sgd(learning_rate: f64) -> Self {
        Self { rule: UpdateRule::Sgd, learning_rate, max_grad_norm: None }
    }

    /// Sets the learning rate.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rate = self.learning_rate;
        ConfigError::check(
            rate.is_finite() && rate > 0.0,
            "learning_rate",
            "a number above 0",
            rate,
        )?;
        if let Some(norm) = self.max_grad_norm {
            ConfigError::check(
                norm.is_finite() && norm > 0.0,
                "max_grad_norm",
                "a number above 0",
                norm,
            )?;
        }
        let (UpdateRule::Adam { beta_1, beta_2, epsilon }
        | UpdateRule::AdamW { beta_1, beta_2, epsilon, .. }) = self.rule
        else {
            return Ok(());
        };
        ConfigError::check((0.0..1.0).contains(&beta_1), "beta_1", "a number in [0, 1)", beta_1)?;
        ConfigError::check((0.0..1.0).contains(&beta_2), "beta_2", "a number in [0, 1)", beta_2)?;
        ConfigError::check(
            epsilon.is_finite() && epsilon > 0.0,
            "epsilon",
            "a number above 0",
            epsilon,
        )?;
        if let UpdateRule::AdamW { weight_decay, .. } = self.rule {
            let holds = weight_decay.is_finite() && weight_decay >= 0.0;
            ConfigError::check(holds, "weight_decay", "a number of at least 0", weight_decay)?;
        }
        Ok(())
    }

    /// burn's optimizer with these settings and an empty state.
    pub(super) fn init(&self) -> ModuleOptimizer {
        match self.rule {
            UpdateRule::Sgd => SgdConfig::new().init(),
            UpdateRule::Adam { beta_1, beta_2, epsilon } => AdamConfig::new()
                .with_beta_1(beta_1)
                .with_beta_2(beta_2)
                .with_epsilon(epsilon)
                .init(),
            UpdateRule::AdamW { beta_1, beta_2, epsilon, weight_decay } => AdamWConfig::new()
                .with_beta_1(beta_1)
                .with_beta_2(beta_2)
                .with_epsilon(epsilon)
                .with_weight_decay(weight_decay)
                .init(),
        }
    }
}
