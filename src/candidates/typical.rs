//! Tokens about as surprising as the row lets expect.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};
use crate::{error::ConfigError, numeric::entropy};

/// Keeps the tokens whose surprisal is nearest to the entropy of the row, as few as hold the mass (Meister et al.,
/// *Locally Typical Sampling*, arXiv 2202.00666).
///
/// Tokens are taken by rising `|−ln p − H|` until their probabilities sum to at least `mass`; the token that crosses is
/// kept, and of two that are equally far the more likely comes first. The best token may go. After other filters,
/// probabilities and entropy are those among the tokens that these have left.
///
/// As the first filter it looks at every token: it costs a sort of the vocabulary, like having no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Typical {
    /// The mass τ to keep, in `(0, 1]`; 1 keeps everything.
    pub mass: f32,
}

impl CandidateFilter for Typical {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.mass >= 1.0 {
            return;
        }
        let logs = candidates.log_probabilities();
        let entropy = entropy(&logs);
        // The farther from `middle`, the farther from the entropy: two runs to merge, and nothing to sort.
        let places: Vec<(usize, f64)> =
            logs.iter().map(|log| (-log - entropy).abs()).enumerate().collect();
        let middle = logs.partition_point(|log| -log < entropy);
        let (likelier, rarer) = places.split_at(middle);
        // Of equals the first: a run of them is read forwards although the runs are read backwards.
        let mut likelier = likelier.chunk_by(|a, b| a.1 == b.1).rev().flatten().peekable();
        let mut rarer = rarer.iter().peekable();

        let target = f64::from(self.mass);
        let mut mass = 0.0;
        let mut kept = vec![false; logs.len()];
        while mass < target {
            let first = match (likelier.peek(), rarer.peek()) {
                (Some(a), Some(b)) if a.1 <= b.1 => likelier.next(),
                (Some(_), None) => likelier.next(),
                _ => rarer.next(),
            };
            let Some(&(place, _)) = first else {
                return; // rounding keeps the sum below the target: all of them are needed
            };
            kept[place] = true;
            mass += logs[place].exp();
        }
        let mut kept = kept.into_iter();
        candidates.retain(|_| kept.next().unwrap_or(false));
    }

    fn validate(&self) -> Result<(), ConfigError> {
        let holds = self.mass > 0.0 && self.mass <= 1.0;
        ConfigError::check(holds, "typical", "a number in (0, 1]", self.mass)
    }
}
