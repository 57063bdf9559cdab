//! Tokens that are likely enough, or as likely as any where the row is undecided.

use serde::{Deserialize, Serialize};

use super::{
    CandidateFilter, Candidates, RowContext,
    epsilon_cutoff::{check, keep_above},
};
use crate::{error::ConfigError, numeric::entropy};

/// Keeps tokens that are more likely than `η = min(ε, √ε · exp(−H))`, where `H` is the entropy of the row in nats: eta
/// sampling (Hewitt, Manning and Liang, *Truncation Sampling as Language Model Desmoothing*, arXiv 2210.15191). Where
/// there is none, the best token stays.
///
/// Below an entropy of `−½ ln ε` this is [`EpsilonCutoff`](super::EpsilonCutoff); above it, a flat row keeps more.
/// After other filters, probabilities and entropy are those among the tokens that these have left. As the first filter
/// it looks at every token: it costs a sort of the vocabulary, like having no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EtaCutoff {
    /// The largest cutoff ε, in `(0, 1)`; the paper's are 3e-4 to 4e-3.
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
