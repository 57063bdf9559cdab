//! The tokens that are still in the race for one row, and the filters that narrow them down.

mod epsilon_cutoff;
mod eta_cutoff;
mod mask;
mod min_p;
mod order;
mod pool;
mod stats;
mod top_k;
mod top_n_sigma;
mod top_p;
mod typical;
mod xtc;

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};

pub use mask::TokenMask;
pub(crate) use pool::{log_sum_exp, mass_outside, pool};
pub use stats::RowStats;

/// The filters that this crate has. A new one is named here, in `filters!` below, and in the guide.
pub(crate) mod filters {
    pub use super::{
        epsilon_cutoff::EpsilonCutoff, eta_cutoff::EtaCutoff, min_p::MinP, top_k::TopK,
        top_n_sigma::TopNSigma, top_p::TopP, typical::Typical, xtc::Xtc,
    };
}

use filters::*;

use crate::{
    custom::Custom,
    draw::Draw,
    error::{ConfigError, RowError},
    id::{CompletionId, TokenId},
    numeric::log_softmax,
};

/// A token that is still in the race.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: TokenId,
    /// Its score, in nats: the reference logit, divided by the temperature where temperature comes first, until a
    /// reweighter replaces it.
    pub logit: f32,
    /// The reference logit, on the same scale. The pool sets it, and no rescoring touches it: after a reweighter it
    /// says where the score came from.
    pub reference: f32,
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
    /// Statistics of the row that the items come from, where a filter asked for them.
    stats: Option<RowStats>,
    /// What penalties and bias have added, on the scale of the scores, by rising token: the expected logits of these
    /// tokens get the same.
    adjustments: Vec<(TokenId, f32)>,
    /// Why the row cannot be given a token; the first reason stays.
    refused: Option<RowError>,
}

/// What a filter or a reweighter may know about the row it works on.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RowContext<'a> {
    /// The completion that the row belongs to.
    pub completion: CompletionId,
    /// Position of the token to be chosen: 0 is the completion's first.
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
    /// Tokens at least this likely.
    Probability(f32),
    /// Tokens whose logit is at most so many standard deviations of the row below its best ([`RowStats`]).
    Deviations(f32),
}

/// Narrows the race down, looking at the reference distribution only.
///
/// Filters are stateless and run in the order of their list, each on what the ones before it have left.
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

    /// How much of the vocabulary this filter must see to drop the right ones. What lies outside is dropped with the
    /// others, whatever the filter does.
    fn reach(&self) -> Reach {
        Reach::Everything
    }

    /// Whether the filter looks at [`Candidates::row_stats`], which costs a pass over the row and is left out where no
    /// filter of the row says so. One that wraps another filter passes its answer on.
    fn uses_row_stats(&self) -> bool {
        false
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

/// Makes the list of filters: a variant, a conversion and the dispatch for each. The variant's name in snake case is the
/// filter's name in settings.
macro_rules! filters {
    ($($name:ident),+ $(,)?) => {
        /// A filter of a request's settings, by name or of your own. Every named filter converts into it.
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
            /// A filter of your own: see [`custom`](Self::custom). Settings that hold one cannot be serialised.
            #[serde(skip_deserializing)]
            Custom(Custom<dyn CandidateFilter>),
        }

        impl FilterConfig {
            /// The filter.
            pub fn filter(&self) -> &dyn CandidateFilter {
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
    /// A filter of your own.
    pub fn custom(filter: impl CandidateFilter + 'static) -> Self {
        Self::Custom(Custom(Arc::new(filter)))
    }
}

impl Candidates {
    /// All tokens of a row of logits that are not masked (−inf): what filters and reweighters see when nothing has been
    /// filtered. For tests of your own ones; the sampler starts from fewer.
    ///
    /// # Errors
    ///
    /// [`RowError`] when a logit is NaN or +inf, or all of them are −inf.
    pub fn from_logits(logits: &[f32]) -> Result<Self, RowError> {
        pool(logits, 1.0, None, Reach::Everything, true)
    }

    /// Candidates from what a pool has gathered: not empty, every logit finite, any order.
    fn gathered(mut items: Vec<Candidate>, unseen: f64) -> Self {
        order::sort(&mut items);
        Self { items, unseen, stats: None, adjustments: Vec::new(), refused: None }
    }

    /// The candidates, best first.
    pub fn as_slice(&self) -> &[Candidate] {
        &self.items
    }

    /// How many there are: at least one.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// The best one.
    pub fn best(&self) -> &Candidate {
        &self.items[0]
    }

    /// Keeps the candidates for which `keep` says so, asking best first. Where it refuses all, the best one stays.
    pub fn retain(&mut self, keep: impl FnMut(&Candidate) -> bool) {
        let best = self.items[0];
        self.items.retain(keep);
        if self.items.is_empty() {
            self.items.push(best);
        }
        self.unseen = 0.0;
    }

    /// Keeps the best `len`, at least one.
    pub fn truncate(&mut self, len: usize) {
        self.items.truncate(len.max(1));
        self.unseen = 0.0;
    }

    /// Gives every candidate a new score and puts them in order again.
    ///
    /// A score that is not finite fails the row: the step reports it as [`RowError::Score`]. The candidate keeps its
    /// old score here.
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

    /// [`rescore`](Self::rescore), told what penalties and bias have added to each candidate's logit and, alike, to its
    /// expected one, on the scale of the scores. A reweighter whose weights of the two do not sum to 1 needs it: they must
    /// multiply what the model says, and not what was added to it.
    pub fn rescore_adjusted(&mut self, mut score: impl FnMut(&Candidate, f32) -> f32) {
        let adjustments = std::mem::take(&mut self.adjustments);
        self.rescore(|candidate| {
            let found = adjustments.binary_search_by_key(&candidate.token, |&(token, _)| token);
            score(candidate, found.map_or(0.0, |at| adjustments[at].1))
        });
        self.adjustments = adjustments;
    }

    /// The probability of each candidate among those in the race, best first. Sums to 1 over the whole race, part of
    /// which the pool may have left out: then to less over the candidates here.
    pub fn probabilities(&self) -> Vec<f64> {
        let best = f64::from(self.items[0].logit);
        let mut weights: Vec<f64> =
            self.items.iter().map(|c| (f64::from(c.logit) - best).exp()).collect();
        let total = weights.iter().sum::<f64>() + self.unseen;
        weights.iter_mut().for_each(|weight| *weight /= total);
        weights
    }

    /// The natural logarithm of each of the [`probabilities`](Self::probabilities), finite also where these round to 0.
    pub fn log_probabilities(&self) -> Vec<f64> {
        log_softmax(self.items.iter().map(|c| f64::from(c.logit)), self.unseen)
    }

    /// Statistics of the whole row that the candidates come from, without masked tokens. `None` where no filter of the
    /// row [uses](CandidateFilter::uses_row_stats) them.
    pub fn row_stats(&self) -> Option<RowStats> {
        self.stats
    }

    /// Fails the row: the step reports `error` in its place and the other rows go on. The first error stays.
    pub fn refuse(&mut self, error: RowError) {
        self.refused.get_or_insert(error);
    }

    /// Ends the filtering: what is not here is not in the race.
    pub(crate) fn end_filtering(&mut self) {
        self.unseen = 0.0;
        self.stats = None; // on a scale that reweighters do not know
    }

    /// Remembers what penalties and bias have added to some tokens, by rising token and on the scale of the scores, for
    /// [`set_expected`](Self::set_expected).
    pub(crate) fn set_adjustments(&mut self, adjustments: Vec<(TokenId, f32)>) {
        self.adjustments = adjustments;
    }

    /// What penalties and bias have added, by rising token, on the scale of the scores.
    pub(crate) fn adjustments(&self) -> &[(TokenId, f32)] {
        &self.adjustments
    }

    fn adjustment(&self, token: TokenId) -> f32 {
        let found = self.adjustments.binary_search_by_key(&token, |&(adjusted, _)| adjusted);
        found.map_or(0.0, |at| self.adjustments[at].1)
    }

    /// Divides every score and its reference: the temperature, where it comes after the filters.
    pub(crate) fn divide(&mut self, temperature: f32) {
        if temperature != 1.0 {
            self.rescore(|c| c.logit / temperature);
            self.items.iter_mut().for_each(|c| c.reference /= temperature);
        }
    }

    /// Sets every candidate's expected logit, from its place and token. What penalties and bias have added to the
    /// token's own logit is added here, so that a fusion of the two leaves it as it is. Says whether all expected
    /// logits are finite.
    pub(crate) fn set_expected(&mut self, mut expected: impl FnMut(usize, TokenId) -> f32) -> bool {
        let mut finite = true;
        for place in 0..self.items.len() {
            let token = self.items[place].token;
            let mut value = expected(place, token);
            if !self.adjustments.is_empty() {
                value += self.adjustment(token);
            }
            self.items[place].expected = value;
            finite &= value.is_finite();
        }
        finite
    }

    /// Why the row cannot be given a token.
    pub(crate) fn refused(&self) -> Option<RowError> {
        self.refused.clone()
    }
}

#[cfg(test)]
mod tests;
