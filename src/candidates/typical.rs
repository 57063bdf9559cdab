//! Typical filter.

use serde::{Deserialize, Serialize};

use super::{CandidateFilter, Candidates, RowContext};
use crate::{error::ConfigError, numeric::entropy};

/// Keeps the smallest set of tokens with surprisal nearest to the entropy of the row that holds at least `mass`
/// (Meister et al., *Locally Typical Sampling*, arXiv 2202.00666).
///
/// Tokens are taken in ascending order of `|−ln p − H|` until their probabilities sum to at least `mass`. The token
/// that crosses `mass` is kept, and of two at the same distance the more likely comes first. The best token may be
/// dropped. When other filters ran first, probabilities and entropy are those of the tokens they kept.
///
/// As the first filter it reads every token, which costs a sort of the vocabulary, the same as no filter.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Typical {
    /// The probability mass τ to keep, in `(0, 1]`. 1 keeps every token.
    pub mass: f32,
}

impl CandidateFilter for Typical {
    fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.mass >= 1.0 {
            return;
        }
        let logs = candidates.log_probabilities();
        let entropy = entropy(&logs);
        // The distance to the entropy grows away from `middle` on both sides, so merging two sorted runs replaces a
        // sort.
        let places: Vec<(usize, f64)> =
            logs.iter().map(|log| (-log - entropy).abs()).enumerate().collect();
        let middle = logs.partition_point(|log| -log < entropy);
        let (likelier, rarer) = places.split_at(middle);
        // The lower run is read backwards; groups of equal distance are reversed again so that the more likely comes
        // first.
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
                return; // rounding keeps the sum below the target: keep all
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
