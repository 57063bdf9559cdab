//! How one row's token is chosen: penalties, temperature, filters, reweighter, selection.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    candidates::{
        CandidateFilter, Candidates, FilterConfig, Reach, RowContext, TokenMask, filters::*, pool,
    },
    error::{ConfigError, RowError},
    fire::Fire,
    id::TokenId,
    novelty::{Contrast, Expects, Extrapolate, NoveltyReweighter, ReweighterConfig},
    penalties::{Penalties, adjustments, check_bias},
    select::Selection,
};

/// What the temperature is applied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TemperatureOrder {
    /// Logits are divided first: filters see `ref / T`. This is the order of Hugging Face and vLLM.
    #[default]
    BeforeFilters,
    /// Filters see the reference logits as the model gave them; what is left is divided.
    AfterFilters,
}

/// The sampling settings of a request: plain values that can be written down.
///
/// ```
/// use esamp::Sampling;
///
/// let plain = Sampling::default().with_beta(0.0);
/// let explore = Sampling::default().with_min_p(0.05).with_temperature(0.8);
/// assert!(explore.validate().is_ok());
/// assert!(explore.with_beta(-1.0).validate().is_err());
/// ```
///
/// A [`Request`](crate::Request) takes them as they are, and [`Decoder::submit`](crate::Decoder::submit) checks them. Who
/// calls [`Sampler::step`](crate::Sampler::step) has them [`checked`](Self::checked) once, before the first step.
///
/// With serde, settings that are left out have their defaults, and names that are not known are errors:
///
/// ```
/// use esamp::Sampling;
///
/// let read: Sampling = serde_json::from_str(r#"{ "temperature": 0.8 }"#)?;
/// assert_eq!(read, Sampling::new().with_temperature(0.8));
/// assert!(serde_json::from_str::<Sampling>(r#"{ "temprature": 0.8 }"#).is_err());
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// Filters and reweighters of your own have a place among the named ones. Settings that hold one cannot be serialised:
///
/// ```
/// use esamp::{Sampling, filters::{CandidateFilter, Candidates, RowContext}};
///
/// #[derive(Debug)]
/// struct BestOnly;
///
/// impl CandidateFilter for BestOnly {
///     fn filter(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
///         candidates.truncate(1);
///     }
/// }
///
/// let sampling = Sampling::new().with_min_p(0.05).with_custom_filter(BestOnly);
/// let error = serde_json::to_string(&sampling).unwrap_err().to_string();
/// assert!(error.ends_with("got one of the program's own: BestOnly"));
/// ```
///
/// # Order
///
/// [Penalties and bias](Penalties) change the logits first, then filters run in the order of their list, then the
/// reweighter, then the selection. Two orders are yours, and they decide who is left. That of the filters:
///
/// ```
/// use esamp::Sampling;
/// # use esamp::{CompletionId, DrawKey, TokenId, filters::RowContext};
/// # fn left(sampling: Sampling) -> Result<Vec<TokenId>, Box<dyn std::error::Error>> {
/// #     let draw = DrawKey::new(0, &[], 0).at(0);
/// #     let row = RowContext::new(CompletionId::new(0, 0), 0, draw);
/// #     let candidates = sampling.checked()?.candidates(&row, &[0.4f32, 0.3, 0.2, 0.1].map(f32::ln))?;
/// #     Ok(candidates.as_slice().iter().map(|candidate| candidate.token).collect())
/// # }
///
/// // Four tokens of probability .4, .3, .2 and .1.
/// let sampling = Sampling::default();
/// // Half of the mass is reached by the second token.
/// assert_eq!(left(sampling.clone().with_top_p(0.5).with_top_k(2))?, [0, 1]);
/// // Of the best two the first has four sevenths: it is enough alone.
/// assert_eq!(left(sampling.with_top_k(2).with_top_p(0.5))?, [0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// And that of the temperature:
///
/// ```
/// use esamp::{Sampling, TemperatureOrder};
/// # use esamp::{CompletionId, DrawKey, TokenId, filters::RowContext};
/// # fn left(sampling: Sampling) -> Result<Vec<TokenId>, Box<dyn std::error::Error>> {
/// #     let draw = DrawKey::new(0, &[], 0).at(0);
/// #     let row = RowContext::new(CompletionId::new(0, 0), 0, draw);
/// #     let candidates = sampling.checked()?.candidates(&row, &[0.4f32, 0.3, 0.2, 0.1].map(f32::ln))?;
/// #     Ok(candidates.as_slice().iter().map(|candidate| candidate.token).collect())
/// # }
///
/// // At T = 2 the four are .33, .28, .23 and .16: three of them hold 0.65. Without temperature two do.
/// let sampling = Sampling::default().with_temperature(2.0).with_top_p(0.65);
/// assert_eq!(left(sampling.clone())?, [0, 1, 2]);
/// assert_eq!(left(sampling.with_temperature_order(TemperatureOrder::AfterFilters))?, [0, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sampling {
    /// The temperature: 0 or at least [`Sampling::LOWEST_TEMPERATURE`]; 0 takes the best token that filters have
    /// left, after reweighting. One temperature for the reference and the expected logits.
    pub temperature: f32,
    /// Whether filters see logits before or after the temperature.
    pub temperature_order: TemperatureOrder,
    /// Filters, in the order in which they run.
    pub filters: Vec<FilterConfig>,
    /// The exploration strength β; 0 is plain sampling. A reweighter of your own does not look at it.
    pub beta: f32,
    /// What β is the strength of: ESamp, or another reweighter.
    pub reweighter: ReweighterConfig,
    /// How tokens that have occurred are held back.
    pub penalties: Penalties,
    /// What is added to the logits of single tokens, in nats, finite; to the reference and the expected logit alike
    /// ([`Penalties`]). A token that the model does not know is an error of the request or the row.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// A hot start.
    pub fire: Option<Fire>,
    /// Where the number comes from that selects the token.
    pub selection: Selection,
}

impl Sampling {
    /// The paper's exploration strength.
    pub const DEFAULT_BETA: f32 = Extrapolate::USUAL_BETA;
    /// The paper's temperature.
    pub const DEFAULT_TEMPERATURE: f32 = 1.0;
    /// The lowest temperature above 0, which is greedy. Logits divided by less could leave the range of `f32`, and long
    /// before that the best token is the only one left.
    pub const LOWEST_TEMPERATURE: f32 = 1e-4;
}

impl Default for Sampling {
    /// The paper's settings: temperature 1, β 0.25, no filter.
    fn default() -> Self {
        Self {
            temperature: Self::DEFAULT_TEMPERATURE,
            temperature_order: TemperatureOrder::default(),
            filters: Vec::new(),
            beta: Self::DEFAULT_BETA,
            reweighter: ReweighterConfig::default(),
            penalties: Penalties::default(),
            logit_bias: BTreeMap::new(),
            fire: None,
            selection: Selection::default(),
        }
    }
}

impl Sampling {
    /// The paper's settings, which are the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the temperature; 0 is greedy.
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets the place of the temperature.
    pub fn with_temperature_order(mut self, order: TemperatureOrder) -> Self {
        self.temperature_order = order;
        self
    }

    /// Sets the exploration strength; 0 is plain sampling.
    pub fn with_beta(mut self, beta: f32) -> Self {
        self.beta = beta;
        self
    }

    /// Sets the reweighter and leaves β as it is; [`ReweighterConfig::usual_beta`] has the usual one.
    ///
    /// ```
    /// use esamp::{Sampling, reweighters::ReweighterConfig};
    ///
    /// let orthogonal = ReweighterConfig::Orthogonal;
    /// let sampling = Sampling::default()
    ///     .with_min_p(0.05)
    ///     .with_beta(orthogonal.usual_beta())
    ///     .with_reweighter(orthogonal);
    /// assert_eq!(sampling.beta, 1.0);
    /// ```
    pub fn with_reweighter(mut self, reweighter: ReweighterConfig) -> Self {
        self.reweighter = reweighter;
        self
    }

    /// Contrastive decoding with its usual settings: [`Contrast`] with β 0.5 after a [`MinP`] filter of 0.1. It needs
    /// the logits of a second model.
    pub fn contrastive() -> Self {
        Self::default()
            .with_reweighter(ReweighterConfig::Contrast)
            .with_beta(Contrast::USUAL_BETA)
            .with_min_p(Contrast::USUAL_ALPHA)
    }

    /// Sets a reweighter of your own, as [`ReweighterConfig::custom`]. Its strength is its own: β is not looked at.
    pub fn with_custom_reweighter(self, reweighter: impl NoveltyReweighter + 'static) -> Self {
        self.with_reweighter(ReweighterConfig::custom(reweighter))
    }

    /// Adds a filter, which runs after those that are there.
    pub fn with_filter(mut self, filter: impl Into<FilterConfig>) -> Self {
        self.filters.push(filter.into());
        self
    }

    /// Adds a filter of your own, as [`FilterConfig::custom`].
    pub fn with_custom_filter(self, filter: impl CandidateFilter + 'static) -> Self {
        self.with_filter(FilterConfig::custom(filter))
    }

    /// Adds a [`TopK`] filter.
    pub fn with_top_k(self, k: usize) -> Self {
        self.with_filter(TopK { k })
    }

    /// Adds a [`TopP`] filter.
    pub fn with_top_p(self, p: f32) -> Self {
        self.with_filter(TopP { p })
    }

    /// Adds a [`MinP`] filter.
    pub fn with_min_p(self, p: f32) -> Self {
        self.with_filter(MinP { p })
    }

    /// Adds a [`TopNSigma`] filter.
    pub fn with_top_n_sigma(self, n: f32) -> Self {
        self.with_filter(TopNSigma { n })
    }

    /// Adds a [`Typical`] filter.
    pub fn with_typical(self, mass: f32) -> Self {
        self.with_filter(Typical { mass })
    }

    /// Adds an [`EpsilonCutoff`] filter.
    pub fn with_epsilon_cutoff(self, epsilon: f32) -> Self {
        self.with_filter(EpsilonCutoff { epsilon })
    }

    /// Adds an [`EtaCutoff`] filter.
    pub fn with_eta_cutoff(self, epsilon: f32) -> Self {
        self.with_filter(EtaCutoff { epsilon })
    }

    /// Adds an [`Xtc`] filter.
    pub fn with_xtc(self, threshold: f32, probability: f32) -> Self {
        self.with_filter(Xtc { threshold, probability })
    }

    /// Sets all [`Penalties`].
    pub fn with_penalties(mut self, penalties: Penalties) -> Self {
        self.penalties = penalties;
        self
    }

    /// Sets the bias of one token, in nats.
    pub fn with_logit_bias(mut self, token: TokenId, bias: f32) -> Self {
        self.logit_bias.insert(token, bias);
        self
    }

    /// Sets a hot start.
    pub fn with_fire(mut self, fire: Fire) -> Self {
        self.fire = Some(fire);
        self
    }

    /// Sets where the number comes from that selects the token.
    pub fn with_selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Where the expected logits come from.
    pub fn expects(&self) -> Expects {
        self.reweighter.unchecked(self.beta).expects()
    }

    /// The temperature of the token at `position` (0 is the completion's first); 0 is greedy.
    pub fn temperature_at(&self, position: u64) -> f32 {
        match self.fire {
            Some(fire) if position < fire.tokens => fire.temperature,
            _ => self.temperature,
        }
    }

    /// Whether tokens after a [hot start](Fire), if there is one, are the best ones instead of random ones.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether the token at `position` is the best one instead of a random one.
    pub fn is_greedy_at(&self, position: u64) -> bool {
        self.temperature_at(position) == 0.0
    }

    /// What logits are divided by before scores are compared: the temperature, or 1 for a greedy token.
    pub(crate) fn divisor_at(&self, position: u64) -> f32 {
        if self.is_greedy_at(position) { 1.0 } else { self.temperature_at(position) }
    }

    /// What logits are divided by before and after the filters.
    fn divisors_at(&self, position: u64) -> (f32, f32) {
        let divisor = self.divisor_at(position);
        match self.temperature_order {
            TemperatureOrder::BeforeFilters => (divisor, 1.0),
            TemperatureOrder::AfterFilters => (1.0, divisor),
        }
    }

    /// Checks every setting, those of filters and reweighter too.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first that cannot work.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.reweighter.unchecked(self.beta).validate()?;
        let temperature = self.temperature;
        let holds = temperature == 0.0 || temperature >= Self::LOWEST_TEMPERATURE;
        ConfigError::check(
            temperature.is_finite() && holds,
            "temperature",
            "0 or a number of at least 0.0001",
            temperature,
        )?;
        self.penalties.validate()?;
        self.logit_bias.values().try_for_each(|&bias| check_bias(bias))?;
        self.fire.as_ref().map_or(Ok(()), Fire::validate)?;
        self.filters.iter().try_for_each(|filter| filter.filter().validate())
    }

    /// The settings, checked and ready for [`StepRow::sampling`](crate::StepRow::sampling). Copies them once.
    ///
    /// # Errors
    ///
    /// As [`validate`](Self::validate).
    pub fn checked(&self) -> Result<CheckedSampling, ConfigError> {
        self.validate()?;
        let reweighter = self.reweighter.unchecked(self.beta);
        Ok(CheckedSampling { settings: Arc::new(self.clone()), reweighter })
    }
}

/// [`Sampling`] that has been [checked](Sampling::checked) and does not change any more: what a
/// [`StepRow`](crate::StepRow) takes, so that a step neither checks nor prepares anything. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CheckedSampling {
    settings: Arc<Sampling>,
    reweighter: Arc<dyn NoveltyReweighter>,
}

impl Deref for CheckedSampling {
    type Target = Sampling;

    fn deref(&self) -> &Sampling {
        &self.settings
    }
}

impl CheckedSampling {
    /// The reweighter.
    pub(crate) fn reweighter(&self) -> &dyn NoveltyReweighter {
        &*self.reweighter
    }

    /// What penalties, temperature and filters leave of a row of logits: the race that the reweighter finds, with
    /// expected logits still 0. [`Sampler::step`](crate::Sampler::step) does this for every row; here it can be seen
    /// without one. Copies the row.
    ///
    /// # Errors
    ///
    /// [`RowError`], as the step would report it for the row.
    pub fn candidates(&self, row: &RowContext<'_>, logits: &[f32]) -> Result<Candidates, RowError> {
        let mut candidates = self.pool(row, &mut logits.to_vec(), None)?;
        self.filter(row, &mut candidates);
        candidates.refused().map_or(Ok(candidates), Err)
    }

    /// The tokens that the first filter could keep, under a mask, without a copy of the row: adjusted logits are put back.
    pub(crate) fn pool(
        &self,
        row: &RowContext<'_>,
        logits: &mut [f32],
        allowed: Option<&TokenMask>,
    ) -> Result<Candidates, RowError> {
        let (before, _) = self.divisors_at(row.position);
        let reach =
            self.filters.first().map_or(Reach::Everything, |filter| filter.filter().reach());
        let wants_stats = self.filters.iter().any(|filter| filter.filter().uses_row_stats());
        let mut deltas =
            adjustments(&self.penalties, &self.logit_bias, row.prompt, row.generated, logits)?;
        let before_them: Vec<f32> =
            deltas.iter().map(|&(token, _)| logits[token as usize]).collect();
        deltas.iter().for_each(|&(token, delta)| logits[token as usize] += delta);
        let pooled = pool(logits, before, allowed, reach, wants_stats);
        for (&(token, _), logit) in deltas.iter().zip(before_them) {
            logits[token as usize] = logit;
        }
        let mut candidates = pooled?;
        let divisor = self.divisor_at(row.position);
        deltas.iter_mut().for_each(|(_, delta)| *delta /= divisor);
        candidates.set_adjustments(deltas);
        Ok(candidates)
    }

    /// What the filters leave of a [`pool`](Self::pool).
    pub(crate) fn filter(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
        for filter in &self.filters {
            filter.filter().filter(row, candidates);
        }
        candidates.end_filtering();
        candidates.divide(self.divisors_at(row.position).1);
    }
}
