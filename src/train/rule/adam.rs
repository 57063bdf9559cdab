//! The coefficients of Adam and AdamW, for both implementations of the update.

use crate::train::optimizer::UpdateRule;

/// Adam and AdamW. Adam is AdamW without weight decay.
///
/// `p ← p·(1 − rate·decay) − rate·m̂ / (√v̂ + ε)`, with `m̂ = m / (1 − β₁ᵗ)` and `v̂ = v / (1 − β₂ᵗ)`.
pub(super) struct Adam {
    pub(super) beta_1: f32,
    pub(super) beta_2: f32,
    pub(super) epsilon: f32,
    pub(super) weight_decay: f32,
}

/// The coefficients of [`Adam`] that depend on a slot's number of updates. Each bias correction is one number per
/// slot, so both are folded into the learning rate and ε instead of being applied to every element of `m` and `v`:
/// `√v̂ + ε = (√v + ε·c) / c` with `c = √(1 − β₂ᵗ)`.
pub(super) struct Coefficients {
    /// The factor on `m / (√v + epsilon)`: the learning rate with both bias corrections.
    pub(super) rate: f64,
    pub(super) epsilon: f64,
    /// The factor on the parameter before the change.
    pub(super) keep: f64,
}

impl Adam {
    /// Returns the coefficients of `rule` if it is Adam or AdamW.
    pub(super) fn of(rule: UpdateRule) -> Option<Self> {
        match rule {
            UpdateRule::Adam { beta_1, beta_2, epsilon } => {
                Some(Self { beta_1, beta_2, epsilon, weight_decay: 0.0 })
            }
            UpdateRule::AdamW { beta_1, beta_2, epsilon, weight_decay } => {
                Some(Self { beta_1, beta_2, epsilon, weight_decay })
            }
            UpdateRule::Sgd | UpdateRule::Momentum { .. } => None,
        }
    }

    /// Returns the coefficients of the update that follows `done` others, at learning rate `rate`.
    pub(super) fn coefficients(&self, rate: f64, done: u64) -> Coefficients {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(done as f64 + 1.0);
        let c = correction(self.beta_2).sqrt();
        Coefficients {
            rate: rate * c / correction(self.beta_1),
            epsilon: f64::from(self.epsilon) * c,
            keep: 1.0 - rate * f64::from(self.weight_decay),
        }
    }
}
