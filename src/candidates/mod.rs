//! The candidate tokens of a row, and the filters that reduce them.

mod epsilon_cutoff;
mod eta_cutoff;
mod mask;
mod min_p;
mod order;
mod partial;
mod pool;
mod processor;
mod stats;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};

pub use mask::TokenMask;
pub(crate) use partial::{Masses, PartialRow};
pub(crate) use pool::{best_tokens, check_numbers, log_sum_exp, mass_outside, pool};
pub use processor::LogitsProcessor;
pub(crate) use processor::process;
pub use stats::RowStats;

/// The built-in filters. To add one, name its module above, the filter here and in `filters!` below, and in the guide.
pub(crate) mod built_in {
    pub use super::{
        epsilon_cutoff::EpsilonCutoff, eta_cutoff::EtaCutoff, min_p::MinP, top_k::TopK,
        top_n_sigma::TopNSigma, top_p::TopP, typical::Typical, xtc::Xtc,
    };
}

use built_in::*;

use crate::{
    custom::Custom,
    draw::Draw,
    error::{ConfigError, RowError},
    id::{CompletionId, TokenId},
    numeric::log_softmax,
};

/// A token that the filters have kept.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Its score, in nats: the reference logit, divided by the temperature if temperature is applied first. A
    /// reweighter may replace it.
    pub logit: f32,
    /// The reference logit, on the same scale. The pool sets it and rescoring does not change it, so after a
    /// reweighter it still holds the original score.
    pub reference: f32,
    /// The logit that the distiller's prediction would give, on the same scale. Filters run before it is computed and
    /// see 0.
    pub expected: f32,
}

/// The candidates of one row, sorted best first. Never empty; every score is finite.
///
/// Ties are broken by token id, so the order is the same on every run. All public operations preserve these
/// invariants: none can remove every candidate or leave them unsorted.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidates {
    items: Vec<Candidate>,
    /// Probability mass of the tokens that the pool left out of `items` because the first filter cannot keep them, as
    /// a multiple of `exp(best logit)`. Zero once a filter has run.
    unseen: f64,
    /// Statistics of the row that the items come from, if a filter asked for them.
    stats: Option<RowStats>,
    /// What penalties, bias and a logits processor have added to the scores, on their scale, in ascending token order;
    /// −inf for a token that they mask. The same amounts are added to the expected logits of these tokens.
    adjustments: Vec<(TokenId, f32)>,
    /// Why no token can be chosen for the row. The first reason is kept.
    refused: Option<RowError>,
}

/// The context of the row that a filter or reweighter works on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RowContext<'a> {
    /// The completion that the row belongs to.
    pub completion: CompletionId,
    /// Position of the token to choose, counted from 0 at the first token of the completion.
    pub position: u64,
    /// The prompt.
    pub prompt: &'a [TokenId],
    /// The completion so far, without the prompt.
    pub generated: &'a [TokenId],
    /// The row's random numbers at this position.
    pub draw: Draw,
}

impl<'a> RowContext<'a> {
    /// The context of a row without tokens, for tests of filters and reweighters; a step makes its own.
    pub fn new(completion: CompletionId, position: u64, draw: Draw) -> Self {
        Self { completion, position, prompt: &[], generated: &[], draw }
    }

    /// Sets the prompt and the completion so far.
    pub fn with_tokens(mut self, prompt: &'a [TokenId], generated: &'a [TokenId]) -> Self {
        (self.prompt, self.generated) = (prompt, generated);
        self
    }
}

/// How much of the vocabulary a filter needs when it is the first filter of a row.
///
/// The pool skips tokens that the first filter would drop anyway. This keeps a step cheap on a vocabulary of 50,000
/// tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Reach {
    /// Every token that is not masked.
    Everything,
    /// The given number of best tokens.
    Best(usize),
    /// Tokens whose logit is at most the given number of nats below the best.
    Nats(f32),
    /// The smallest set of best tokens that holds at least this share of the probability mass.
    Mass(f32),
    /// Tokens with at least this probability.
    Probability(f32),
    /// Tokens whose logit is at most the given number of the row's standard deviations below its best ([`RowStats`]).
    Deviations(f32),
}

/// Reduces the candidates of a row, based on the reference distribution only.
///
/// Filters are stateless and run in list order, each on the candidates that the previous ones kept.
///
/// ```
/// use esamp::filters::{CandidateFilter, Candidates, RowContext};
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

    /// How much of the vocabulary this filter needs in order to decide correctly. When it runs first, tokens outside
    /// its reach are dropped regardless of what it does.
    fn reach(&self) -> Reach {
        Reach::Everything
    }

    /// Whether the filter reads [`Candidates::row_stats`]. The statistics cost a pass over the row and are computed
    /// only if a filter of the row returns true. A filter that wraps another one should return the inner filter's
    /// answer.
    fn uses_row_stats(&self) -> bool {
        false
    }

    /// Validates the filter's settings. Called once, before any row is filtered.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting is out of range.
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }
}

/// Generates the list of filters: for each, an enum variant, a conversion and the dispatch. In settings, a filter's
/// name is the variant's name in snake case.
macro_rules! filters {
    ($($name:ident),+ $(,)?) => {
        /// A filter in the sampling settings of a request: a built-in filter or a custom one. Every built-in filter
        /// converts into it.
        ///
        /// ```
        /// use esamp::filters::{FilterConfig, TopK};
        ///
        /// assert_eq!(FilterConfig::from(TopK { k: 5 }), FilterConfig::TopK(TopK { k: 5 }));
        /// ```
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        #[non_exhaustive]
        pub enum FilterConfig {
            $(
                #[doc = concat!("[`", stringify!($name), "`](crate::filters::", stringify!($name), ")")]
                $name($name),
            )+
            /// A custom filter: see [`custom`](Self::custom). Settings that contain one cannot be serialised.
            #[serde(skip_deserializing)]
            Custom(Custom<dyn CandidateFilter>),
        }

        impl FilterConfig {
            /// Returns the filter of these settings.
            pub fn as_filter(&self) -> &dyn CandidateFilter {
                match self {
                    $(Self::$name(filter) => filter,)+
                    Self::Custom(filter) => &**filter,
                }
            }
        }

        $(
            impl From<$name> for FilterConfig {
                fn from(filter: $name) -> Self {
                    Self::$name(filter)
                }
            }
        )+
    };
}

filters!(TopK, TopP, MinP, TopNSigma, Typical, EpsilonCutoff, EtaCutoff, Xtc);

impl FilterConfig {
    /// Wraps a custom filter.
    pub fn custom(filter: impl CandidateFilter + 'static) -> Self {
        Self::Custom(Custom(Arc::new(filter)))
    }
}

impl Candidates {
    /// Builds candidates from all tokens of a row of logits that are not masked (−inf). This is what filters and
    /// reweighters see if nothing has been filtered. Intended for tests of custom filters and reweighters; the
    /// sampler itself starts from fewer tokens.
    ///
    /// # Errors
    ///
    /// [`RowError`] if a logit is NaN or +inf, or if all of them are −inf.
    pub fn from_logits(logits: &[f32]) -> Result<Self, RowError> {
        pool(logits, 1.0, None, Reach::Everything, true)
    }

    /// Builds candidates from the items that a pool collected: not empty, every logit finite, in any order.
    fn gathered(mut items: Vec<Candidate>, unseen: f64) -> Self {
        order::sort(&mut items);
        Self { items, unseen, stats: None, adjustments: Vec::new(), refused: None }
    }

    /// The candidates, best first.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// Number of candidates, at least 1.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The best candidate.
    pub fn best(&self) -> &Candidate {
        &self.items[0]
    }

    /// Keeps the candidates for which `keep` returns true, called best first. If it rejects all of them, the best one
    /// stays.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        let best = self.items[0];
        self.items.retain(keep);
        if self.items.is_empty() {
            self.items.push(best);
        }
        self.unseen = 0.0;
    }

    /// Keeps the best `len` candidates, at least one.
    pub fn truncate(&mut self, len: usize) {
        self.items.truncate(len.max(1));
        self.unseen = 0.0;
    }

    /// Gives every candidate a new score and sorts the candidates again.
    ///
    /// A score that is not finite fails the row: the step reports it as [`RowError::Score`]. Until then the candidate
    /// keeps its old score.
    pub fn rescore(&mut self, mut score: impl FnMut(&Candidate) -> f32) {
        for candidate in &mut self.items {
            let new = score(candidate);
            if new.is_finite() {
                candidate.logit = new;
            } else {
                let refused = RowError::Score { token: candidate.token, got: new };
                self.refused.get_or_insert(refused);
            }
        }
        order::sort(&mut self.items);
    }

    /// Like [`rescore`](Self::rescore), but also passes what penalties, bias and a logits processor have added to each
    /// candidate's logit (and equally to its expected logit), on the scale of the scores. A reweighter whose weights
    /// for the two logits do not sum to 1 needs it, because the weights must apply to the model's output and not to the
    /// adjustments.
    pub fn rescore_adjusted(&mut self, mut score: impl FnMut(&Candidate, f32) -> f32) {
        let adjustments = std::mem::take(&mut self.adjustments);
        self.rescore(|candidate| score(candidate, adjustment(&adjustments, candidate.token)));
        self.adjustments = adjustments;
    }

    /// Probabilities of the candidates, best first. They sum to 1, except before the first filter has run: the total
    /// then includes tokens that the pool left out, so the sum may be less than 1.
    pub fn probabilities(&self) -> Vec<f64> {
        let best = f64::from(self.items[0].logit);
        let mut weights: Vec<f64> =
            self.items.iter().map(|c| (f64::from(c.logit) - best).exp()).collect();
        let total = weights.iter().sum::<f64>() + self.unseen;
        for weight in &mut weights {
            *weight /= total;
        }
        weights
    }

    /// Natural logarithms of the [`probabilities`](Self::probabilities). Finite even where a probability rounds to 0.
    pub fn log_probabilities(&self) -> Vec<f64> {
        log_softmax(self.items.iter().map(|c| f64::from(c.logit)), self.unseen)
    }

    /// Statistics of the whole row that the candidates come from, without masked tokens. `None` unless a filter of
    /// the row [uses](CandidateFilter::uses_row_stats) them.
    pub fn row_stats(&self) -> Option<RowStats> {
        self.stats
    }

    /// Fails the row: the step reports `error` for it, and the other rows continue. The first error is kept.
    pub fn refuse(&mut self, error: RowError) {
        self.refused.get_or_insert(error);
    }

    /// Ends filtering: from here on, only the candidates present have probability mass.
    pub(crate) fn end_filtering(&mut self) {
        self.unseen = 0.0;
        self.stats = None; // reweighters do not know its scale
    }

    /// Stores what penalties, bias and a logits processor have added to some tokens, in ascending token order and on
    /// the scale of the scores, for use by [`set_expected`](Self::set_expected).
    pub(crate) fn set_adjustments(&mut self, adjustments: Vec<(TokenId, f32)>) {
        self.adjustments = adjustments;
    }

    /// What penalties, bias and a logits processor have added, in ascending token order, on the scale of the scores.
    pub(crate) fn adjustments(&self) -> &[(TokenId, f32)] {
        &self.adjustments
    }

    /// Divides every score and its reference by the temperature. Used when temperature is applied after the filters.
    pub(crate) fn divide(&mut self, temperature: f32) {
        if temperature != 1.0 {
            self.rescore(|c| c.logit / temperature);
            for candidate in &mut self.items {
                candidate.reference /= temperature;
            }
        }
    }

    /// Sets every candidate's expected logit; `expected` receives its index and token. What penalties, bias and a
    /// logits processor have added to the token's own logit is added here too, so that reweighting preserves it.
    /// Returns whether all expected logits are finite.
    pub(crate) fn set_expected(&mut self, mut expected: impl FnMut(usize, TokenId) -> f32) -> bool {
        let mut finite = true;
        for place in 0..self.items.len() {
            let token = self.items[place].token;
            let mut value = expected(place, token);
            if !self.adjustments.is_empty() {
                value += adjustment(&self.adjustments, token);
            }
            self.items[place].expected = value;
            finite &= value.is_finite();
        }
        finite
    }

    /// Why no token can be chosen for the row.
    pub(crate) fn refused(&self) -> Option<RowError> {
        self.refused.clone()
    }
}

/// What has been added to a token, given what has been added to some, in ascending token order.
fn adjustment(adjustments: &[(TokenId, f32)], token: TokenId) -> f32 {
    let found = adjustments.binary_search_by_key(&token, |&(adjusted, _)| adjusted);
    found.map_or(0.0, |at| adjustments[at].1)
}

#[cfg(test)]
mod tests;
