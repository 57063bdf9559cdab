//! The optimizer: update rules, learning rate schedules and clipping.

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// The update rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum UpdateRule {
    /// Plain gradient descent.
    Sgd,
    /// Gradient descent with momentum, `v ← momentum·v + gradient` (Polyak, 1964). Without dampening: the first step
    /// is that of plain gradient descent.
    Momentum {
        /// The fraction of the velocity that an update keeps, in `[0, 1)`.
        momentum: f32,
    },
    /// Adam (Kingma and Ba, 2015).
    Adam {
        /// Decay of the first moment, in `[0, 1)`.
        beta_1: f32,
        /// Decay of the second moment, in `[0, 1)`.
        beta_2: f32,
        /// Added to the square root of the second moment; above 0.
        epsilon: f32,
    },
    /// Adam with decoupled weight decay (Loshchilov and Hutter, 2019), on all parameters.
    AdamW {
        /// Decay of the first moment, in `[0, 1)`.
        beta_1: f32,
        /// Decay of the second moment, in `[0, 1)`.
        beta_2: f32,
        /// Added to the square root of the second moment; above 0.
        epsilon: f32,
        /// The weight decay: an update shrinks each parameter by this fraction times the learning rate. At least 0.
        weight_decay: f32,
    },
}

/// How the squared error is reduced over the width. Over rows it is always averaged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LossReduction {
    /// The mean over rows and width: the paper's algorithm.
    #[default]
    Mean,
    /// The sum over the width, and the mean over rows: the paper's eq. 10. The gradient is `d_model` times that of the
    /// mean. This hardly affects Adam, but does affect gradient descent and clipping.
    Sum,
}

/// How the learning rate changes with the number of updates of a distiller, as a factor on
/// [`OptimizerConfig::learning_rate`]. Each slot of a bank counts its own updates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Schedule {
    /// Constant.
    #[default]
    Constant,
    /// Rises linearly from `1 / updates` to 1 over the first `updates` updates, then stays at 1.
    RampUp {
        /// The length of the rise in updates, at least 1.
        updates: u64,
    },
    /// Decays exponentially, by one half every `updates` updates.
    HalfLife {
        /// The half-life in updates, at least 1.
        updates: u64,
    },
    /// Falls from 1 to `floor` along half a cosine over `updates` updates, then stays at `floor` (Loshchilov and
    /// Hutter, *SGDR*, arXiv 1608.03983, one cycle).
    Cosine {
        /// The length of the fall in updates, at least 1.
        updates: u64,
        /// The final factor, in `[0, 1]`.
        floor: f64,
    },
}

impl Schedule {
    /// Returns the factor for the update that follows `done` others.
    pub fn factor(&self, done: u64) -> f64 {
        let share = |updates: u64| done as f64 / updates as f64;
        match *self {
            Self::Constant => 1.0,
            Self::RampUp { updates } => ((done as f64 + 1.0) / updates as f64).min(1.0),
            Self::HalfLife { updates } => (-share(updates)).exp2(),
            Self::Cosine { updates, floor } => {
                let half_cosine = (std::f64::consts::PI * share(updates).min(1.0)).cos();
                floor + (1.0 - floor) * 0.5 * (1.0 + half_cosine)
            }
        }
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let (Self::RampUp { updates } | Self::HalfLife { updates } | Self::Cosine { updates, .. }) =
            *self
        else {
            return Ok(());
        };
        ConfigError::check(updates >= 1, "schedule.updates", "at least 1", updates)?;
        match *self {
            Self::Cosine { floor, .. } => ConfigError::check(
                (0.0..=1.0).contains(&floor),
                "schedule.floor",
                "a number in [0, 1]",
                floor,
            ),
            _ => Ok(()),
        }
    }
}

/// Update rule, learning rate and clipping. With serde, missing fields take the values of [`paper`](Self::paper),
/// including clipping.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct OptimizerConfig {
    /// The update rule.
    pub rule: UpdateRule,
    /// The learning rate, above 0.
    pub learning_rate: f64,
    /// How the learning rate changes with the number of updates.
    pub schedule: Schedule,
    /// How the loss is reduced.
    pub loss: LossReduction,
    /// The maximum norm of one distiller's gradient, over all of its parameters together. A larger gradient is scaled
    /// by `max / (norm + 1e-6)`. `None` disables clipping.
    pub max_grad_norm: Option<f32>,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::paper()
    }
}

impl OptimizerConfig {
    /// The paper's optimizer, for [`SwiGluDistiller`](crate::distillers::SwiGluDistiller): Adam at learning rate 4e-4
    /// with ε 1e-4, and gradients clipped to norm 0.5. It suits completions of thousands of tokens; with short ones, a
    /// learning rate of 3e-3 learns more.
    pub fn paper() -> Self {
        Self {
            rule: UpdateRule::Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-4 },
            learning_rate: 4e-4,
            schedule: Schedule::Constant,
            loss: LossReduction::Mean,
            max_grad_norm: Some(0.5),
        }
    }

    /// AdamW with ε 1e-8 and weight decay 0.01, without clipping. At learning rate 1e-3 it is the optimizer of the
    /// paper's reference implementation, for [`LowRankDistiller`](crate::distillers::LowRankDistiller).
    pub fn adam_w(learning_rate: f64) -> Self {
        let rule =
            UpdateRule::AdamW { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8, weight_decay: 0.01 };
        Self { rule, ..Self::sgd(learning_rate) }
    }

    /// Plain gradient descent without clipping.
    pub fn sgd(learning_rate: f64) -> Self {
        Self {
            rule: UpdateRule::Sgd,
            learning_rate,
            schedule: Schedule::Constant,
            loss: LossReduction::Mean,
            max_grad_norm: None,
        }
    }

    /// Gradient descent with momentum, without clipping.
    pub fn momentum(learning_rate: f64, momentum: f32) -> Self {
        Self { rule: UpdateRule::Momentum { momentum }, ..Self::sgd(learning_rate) }
    }

    /// Sets the update rule.
    pub fn with_rule(mut self, rule: UpdateRule) -> Self {
        self.rule = rule;
        self
    }

    /// Sets the learning rate.
    pub fn with_learning_rate(mut self, learning_rate: f64) -> Self {
        self.learning_rate = learning_rate;
        self
    }

    /// Sets the schedule.
    pub fn with_schedule(mut self, schedule: Schedule) -> Self {
        self.schedule = schedule;
        self
    }

    /// Sets how the loss is reduced.
    pub fn with_loss(mut self, loss: LossReduction) -> Self {
        self.loss = loss;
        self
    }

    /// Sets the maximum norm of a gradient.
    pub fn with_max_grad_norm(mut self, max_grad_norm: f32) -> Self {
        self.max_grad_norm = Some(max_grad_norm);
        self
    }

    /// Disables clipping.
    pub fn without_clipping(mut self) -> Self {
        self.max_grad_norm = None;
        self
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rate = self.learning_rate;
        ConfigError::check(
            rate.is_finite() && rate > 0.0,
            "learning_rate",
            "a number above 0",
            rate,
        )?;
        self.schedule.validate()?;
        if let Some(norm) = self.max_grad_norm {
            ConfigError::check(
                norm.is_finite() && norm > 0.0,
                "max_grad_norm",
                "a number above 0",
                norm,
            )?;
        }
        if let UpdateRule::Momentum { momentum } = self.rule {
            let holds = (0.0..1.0).contains(&momentum);
            ConfigError::check(holds, "momentum", "a number in [0, 1)", momentum)?;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_by_hand() {
        let table = [
            (Schedule::Constant, 7, 1.0),
            (Schedule::RampUp { updates: 4 }, 0, 0.25),
            (Schedule::RampUp { updates: 4 }, 3, 1.0),
            (Schedule::RampUp { updates: 4 }, 9, 1.0),
            (Schedule::HalfLife { updates: 10 }, 0, 1.0),
            (Schedule::HalfLife { updates: 10 }, 20, 0.25),
            (Schedule::Cosine { updates: 10, floor: 0.2 }, 0, 1.0),
            (Schedule::Cosine { updates: 10, floor: 0.2 }, 5, 0.6),
            (Schedule::Cosine { updates: 10, floor: 0.2 }, 10, 0.2),
            (Schedule::Cosine { updates: 10, floor: 0.2 }, 99, 0.2),
        ];
        for (schedule, done, factor) in table {
            let got = schedule.factor(done);
            assert!((got - factor).abs() < 1e-12, "{schedule:?} at {done}: {got}");
        }
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        let wording = |config: OptimizerConfig| config.validate().unwrap_err().to_string();
        let base = || OptimizerConfig::sgd(0.1);
        assert_eq!(
            wording(OptimizerConfig::momentum(0.1, 1.0)),
            "momentum: expected a number in [0, 1), got 1"
        );
        assert_eq!(
            wording(base().with_schedule(Schedule::RampUp { updates: 0 })),
            "schedule.updates: expected at least 1, got 0"
        );
        assert_eq!(
            wording(base().with_schedule(Schedule::Cosine { updates: 1, floor: 1.5 })),
            "schedule.floor: expected a number in [0, 1], got 1.5"
        );
        for number in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            let expected = format!("max_grad_norm: expected a number above 0, got {number}");
            assert_eq!(wording(base().with_max_grad_norm(number)), expected);
            let expected = format!("learning_rate: expected a number above 0, got {number}");
            assert_eq!(wording(base().with_learning_rate(number.into())), expected);
            let adam = UpdateRule::Adam { beta_1: 0.9, beta_2: 0.999, epsilon: number };
            let expected = format!("epsilon: expected a number above 0, got {number}");
            assert_eq!(wording(base().with_rule(adam)), expected);
        }
        for number in [-1.0, f32::INFINITY, f32::NAN] {
            let rule = |weight_decay| UpdateRule::AdamW {
                beta_1: 0.9,
                beta_2: 0.999,
                epsilon: 1e-8,
                weight_decay,
            };
            let expected = format!("weight_decay: expected a number of at least 0, got {number}");
            assert_eq!(wording(base().with_rule(rule(number))), expected);
            assert_eq!(base().with_rule(rule(0.0)).validate(), Ok(()));
        }
    }

    #[test]
    fn settings_are_those_that_were_set() {
        let paper = OptimizerConfig::paper();
        let set = paper.without_clipping().with_loss(LossReduction::Sum);
        let expected = OptimizerConfig { loss: LossReduction::Sum, max_grad_norm: None, ..paper };
        assert_eq!(set, expected);
        assert_ne!(set, paper);
    }
}
