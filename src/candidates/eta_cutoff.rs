//! Eta filter.

use serde::{Deserialize, Serialize};

use super::{
    CandidateFilter, Candidates, RowContext,
    epsilon_cutoff::{check, keep_above},
};
use crate::{error::ConfigError, numeric::entropy};

/// Keeps the tokens whose probability exceeds `η = min(ε, √ε · exp(−H))`, where `H` is the entropy of the row in
/// nats: eta sampling (Hewitt, Manning and Liang, *Truncation Sampling as Language Model Desmoothing*, arXiv
/// 2210.15191). If no token does, the best one stays.
///
/// Below an entropy of `−½ ln ε` this equals [`EpsilonCutoff`](super::EpsilonCutoff); above it, a flat row keeps more
/// tokens. When other filters ran first, probabilities and entropy are those of the tokens they kept. As the first
/// filter it reads every token, which costs a sort of the vocabulary, the same as no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtaCutoff {
    /// The largest cutoff ε, in `(0, 1)`. The paper uses 3e-4 to 4e-3.
    pub epsilon: f32,
}

impl CandidateFilter for EtaCutoff {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        let epsilon = f64::from(self.epsilon);
        let flat = epsilon.sqrt() * (-entropy(&candidates.log_probabilities())).exp();
        keep_above(candidates, epsilon.min(flat));
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check("eta_cutoff", self.epsilon)
    }
}
