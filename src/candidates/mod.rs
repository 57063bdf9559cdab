//! The tokens that are still in the race for one row, and the filters that narrow them down.

mod mask;
mod min_p;
mod pool;
mod top_k;
mod top_p;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

pub use mask::TokenMask;
pub use min_p::MinP;
pub(crate) use pool::{log_sum_exp, pool};
pub use top_k::TopK;
pub use top_p::TopP;

use crate::{
    draw::Draw,
    error::ConfigError,
    id::{RowId, TokenId},
};

/// A token that is still in the race.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Its score, in nats: the reference logit, divided by the temperature where temperature comes first, until a
    /// reweighter replaces it.
    pub logit: f32,
    /// The logit that the distiller's prediction would have given, on the same scale. Filters run before it is known
    /// and see 0.
    pub expected: f32,
}

/// The candidates of one row: best first, never empty, every score finite.
///
/// Equal scores are ordered by token id, so that the order is the same on every run. The operations offered keep all
/// of this true: nothing can empty the race or put it out of order.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    items: Vec<Candidate>,
    /// Mass of tokens that are in the race but were left out of `items` because the first filter cannot keep them, as
    /// a multiple of `exp(best logit)`. Zero once a filter has decided.
    unseen: f64,
    refused: Option<Candidate>,
}

/// What a filter or a reweighter may know about the row it works on.
#[derive(Clone, Copy, Debug)]
pub struct RowContext<'a> {
    /// Whose row it is.
    pub row: RowId,
    /// Position of the token to be chosen: 0 is the completion's first.
    pub position: u64,
    /// The completion so far, without the prompt.
    pub generated: &'a [TokenId],
    /// The row's random numbers at this position.
    pub draw: Draw,
}

/// How much of the vocabulary a filter has to see when it is the first of a row's filters.
///
/// The pool leaves out what the first filter would drop anyway: that is what makes a step cheap on a vocabulary of
/// 50,000 tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reach {
    /// Every token that is not masked.
    Everything,
    /// The best so many.
    Best(usize),
    /// Tokens whose logit is at most so many nats below the best.
    Nats(f32),
    /// The best tokens that together hold at least this share of the probability mass.
    Mass(f32),
}

/// Narrows the race down, looking at the reference distribution only.
///
/// Filters are stateless and run in the order of their list, each on what the ones before it have left.
///
/// ```
/// use esamp::{CandidateFilter, Candidates, RowContext};
///
/// /// Drops every second candidate, best first.
/// #[derive(Debug)]
/// struct Alternate;
///
/// impl CandidateFilter for Alternate {
///     fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
///         let mut keep = false;
///         candidates.retain(|_| {
///             keep = !keep;
///             keep
///         });
///     }
/// }
/// ```
pub trait CandidateFilter: Debug + Send + Sync {
    /// Drops candidates.
    fn filter(&self, row: &RowContext<'_>, candidates: &mut Candidates);

    /// How much of the vocabulary this filter must see to drop the right ones.
    fn reach(&self) -> Reach {
        Reach::Everything
    }

    /// Checks the filter's settings, once, before any row is filtered.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a setting is out of its range.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// A filter by name, for settings that are written down.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FilterConfig {
    /// [`TopK`]
    TopK(TopK),
    /// [`TopP`]
    TopP(TopP),
    /// [`MinP`]
    MinP(MinP),
}

impl Candidates {
    /// The candidates, best first.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// Keeps the candidates for which `keep` says so, asking best first. Where it refuses all, the best one stays.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        todo!()
    }

    /// Keeps the best `len`, at least one.
    pub fn truncate(&mut self, len: usize) {
        todo!()
    }

    /// Gives every candidate a new score and puts them in order again.
    pub fn rescore(&mut self, score: impl FnMut(&Candidate) -> f32) {
        todo!()
    }
}
impl Candidates {
    pub fn len(&self) -> usize {
        self.items.len()
    }
    pub fn best(&self) -> &Candidate {
        &self.items[0]
    }
    pub(crate) fn divide(&mut self, _t: f32) {
        todo!()
    }
    pub(crate) fn refused(&self) -> Option<crate::error::RowError> {
        todo!()
    }
    pub(crate) fn set_expected(&mut self, _f: impl FnMut(usize, TokenId) -> f32) -> bool {
        todo!()
    }
}
