//! Adam and AdamW as numbers, for both ways to apply them.

use crate::train::optimizer::UpdateRule;

/// Adam and AdamW, of which the first is the second without decay.
///
/// `p ← p·(1 − rate·decay) − rate·m̂ / (√v̂ + ε)`, with `m̂ = m / (1 − β₁ᵗ)` and `v̂ = v / (1 − β₂ᵗ)`.
pub(super) struct Adam {
    pub(super) beta_1: f32,
    pub(super) beta_2: f32,
    pub(super) epsilon: f32,
    pub(super) weight_decay: f32,
}

/// The numbers of [`Adam`] that depend on how many updates a slot has had. Both bias corrections are one number for a
/// slot, so they are folded into the rate and into ε instead of being applied to every element of `m` and `v`:
/// `√v̂ + ε = (√v + ε·c) / c` with `c = √(1 − β₂ᵗ)`.
pub(super) struct AdamStep {
    /// Factor on `m / (√v + epsilon)`.
    pub(super) step: f64,
    pub(super) epsilon: f64,
    /// Factor on the parameter before the change.
    pub(super) keep: f64,
}

impl Adam {
    /// The rule's numbers, if it is one of the two.
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

    /// Of the update that follows `done` others, at a learning rate.
    pub(super) fn step(&self, rate: f64, done: u64) -> AdamStep {
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(done as f64 + 1.0);
        let c = correction(self.beta_2).sqrt();
        AdamStep {
            step: rate * c / correction(self.beta_1),
            epsilon: f64::from(self.epsilon) * c,
            keep: 1.0 - rate * f64::from(self.weight_decay),
        }
    }
}
