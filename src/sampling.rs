//! Sampling settings of a row: penalties, temperature, filters, reweighter, selection.

use std::{collections::BTreeMap, ops::Deref, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    candidates::{
        CandidateFilter, Candidates, FilterConfig, LogitsProcessor, PartialRow, Reach, RowContext,
        TokenMask, built_in::*, pool, process,
    },
    custom::Custom,
    error::{ConfigError, RowError},
    fire::Fire,
    id::TokenId,
    novelty::{Contrast, Expects, Extrapolate, NoveltyReweighter, ReweighterConfig},
    penalties::{Penalties, adjustable, adjustments, check_bias},
    select::Selection,
};

/// Whether the temperature applies before or after the filters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TemperatureOrder {
    /// Divides the logits before the filters, which see `ref / T`. This is the order of Hugging Face and vLLM.
    #[default]
    BeforeFilters,
    /// Divides after the filters: they see the reference logits as the model returned them, and the remaining logits
    /// are divided.
    AfterFilters,
}

/// The sampling settings of a request: plain values that can be serialised.
///
/// ```
/// use esamp::Sampling;
///
/// let plain = Sampling::default().with_beta(0.0);
/// let explore = Sampling::default().with_min_p(0.1).with_temperature(0.8);
/// assert!(explore.validate().is_ok());
/// assert!(explore.with_beta(-1.0).validate().is_err());
/// ```
///
/// A [`Request`](crate::Request) takes them as they are, and [`Decoder::submit`](crate::Decoder::submit) validates
/// them. Callers of [`Sampler::step`](crate::Sampler::step) convert them with [`checked`](Self::checked) once, before
/// the first step.
///
/// With serde, omitted settings take their defaults, and unknown names are errors:
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
/// Custom filters and reweighters can be used in place of the built-in ones. Settings that contain one cannot be
/// serialised:
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
/// assert!(error.ends_with("got a custom one: BestOnly"));
/// ```
///
/// # Order
///
/// [Penalties and bias](Penalties) change the logits first, then the [logits processor](LogitsProcessor). Then the
/// filters run in the order of their list, then the reweighter, then the selection. Two orders are configurable and
/// affect which candidates remain. The first is the order of the filters:
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
/// // The first two tokens reach half of the mass.
/// assert_eq!(left(sampling.clone().with_top_p(0.5).with_top_k(2))?, [0, 1]);
/// // Of the top two, the first has four sevenths of the mass, which is enough alone.
/// assert_eq!(left(sampling.with_top_k(2).with_top_p(0.5))?, [0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// The second is the place of the temperature:
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
/// // At T = 2 the probabilities are .33, .28, .23 and .16: three tokens reach 0.65. At T = 1 two do.
/// let sampling = Sampling::default().with_temperature(2.0).with_top_p(0.65);
/// assert_eq!(left(sampling.clone())?, [0, 1, 2]);
/// assert_eq!(left(sampling.with_temperature_order(TemperatureOrder::AfterFilters))?, [0, 1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct Sampling {
    /// The temperature: 0 or at least [`Sampling::LOWEST_TEMPERATURE`]. 0 is greedy: it takes the best token after
    /// filters and reweighting. The same temperature applies to the reference and the expected logits.
    pub temperature: f32,
    /// Whether filters see the logits before or after the temperature.
    pub temperature_order: TemperatureOrder,
    /// The filters, in the order in which they run. `None` is the default, one [`MinP`] filter of
    /// [`DEFAULT_MIN_P`](Self::DEFAULT_MIN_P); an empty list is no filter. [`filters`](Self::filters) returns those
    /// that run.
    pub filters: Option<Vec<FilterConfig>>,
    /// The exploration strength β; 0 is plain sampling. A custom reweighter ignores it.
    pub beta: f32,
    /// The reweighter that β is the strength of: ESamp or another one.
    pub reweighter: ReweighterConfig,
    /// Penalties for tokens that have already occurred.
    pub penalties: Penalties,
    /// Finite values in nats that are added to the reference and the expected logit of individual tokens
    /// ([`Penalties`]). A token id outside the vocabulary is an error of the request or the row.
    pub logit_bias: BTreeMap<TokenId, f32>,
    /// A higher temperature for the first tokens.
    pub fire: Option<Fire>,
    /// Source of the number that selects the token.
    pub selection: Selection,
    /// Custom changes to the logits. Settings that contain one cannot be serialised.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub logits_processor: Option<Custom<dyn LogitsProcessor>>,
}

impl Sampling {
    /// The paper's exploration strength.
    pub const DEFAULT_BETA: f32 = Extrapolate::USUAL_BETA;
    /// The paper's temperature.
    pub const DEFAULT_TEMPERATURE: f32 = 1.0;
    /// The min-p of settings without filters of their own.
    pub const DEFAULT_MIN_P: f32 = 0.05;
    /// The lowest temperature above 0; 0 itself is greedy. Logits divided by less could leave the range of `f32`, and
    /// well before that only the best token has any probability left.
    pub const LOWEST_TEMPERATURE: f32 = 1e-4;
}

/// The filters of settings that do not set any.
static DEFAULT_FILTERS: [FilterConfig; 1] =
    [FilterConfig::MinP(MinP { p: Sampling::DEFAULT_MIN_P })];

impl Default for Sampling {
    /// Temperature 1 and β 0.25, as in the paper, after a min-p filter of 0.05.
    fn default() -> Self {
        Self {
            temperature: Self::DEFAULT_TEMPERATURE,
            temperature_order: TemperatureOrder::default(),
            filters: None,
            beta: Self::DEFAULT_BETA,
            reweighter: ReweighterConfig::default(),
            penalties: Penalties::default(),
            logit_bias: BTreeMap::new(),
            fire: None,
            selection: Selection::default(),
            logits_processor: None,
        }
    }
}

impl Sampling {
    /// The defaults: temperature 1, β 0.25, min-p 0.05.
    pub fn new() -> Self {
        Self::default()
    }

    /// The paper's settings: temperature 1, β 0.25, no filter. Expected logits are then computed for the whole
    /// vocabulary, which takes several times as long as with the default filter, and steering can pick a token that
    /// the model itself finds implausible.
    pub fn paper() -> Self {
        Self::default().without_filters()
    }

    /// The filters that run, in their order: [the list](Self#structfield.filters) or, without one, the default.
    pub fn filters(&self) -> &[FilterConfig] {
        self.filters.as_deref().unwrap_or(&DEFAULT_FILTERS)
    }

    /// Removes all filters, the default one included.
    pub fn without_filters(mut self) -> Self {
        self.filters = Some(Vec::new());
        self
    }

    /// Sets the temperature; 0 is greedy.
    pub fn with_temperature(mut self, temperature: f32) -> Self {
        self.temperature = temperature;
        self
    }

    /// Sets whether the temperature applies before or after the filters.
    pub fn with_temperature_order(mut self, order: TemperatureOrder) -> Self {
        self.temperature_order = order;
        self
    }

    /// Sets the exploration strength; 0 is plain sampling.
    pub fn with_beta(mut self, beta: f32) -> Self {
        self.beta = beta;
        self
    }

    /// Sets the reweighter and leaves β unchanged; [`ReweighterConfig::usual_beta`] returns the usual β.
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

    /// Sets a custom reweighter, as [`ReweighterConfig::custom`] does. It defines its own strength and ignores β.
    pub fn with_custom_reweighter(self, reweighter: impl NoveltyReweighter + 'static) -> Self {
        self.with_reweighter(ReweighterConfig::custom(reweighter))
    }

    /// Adds a filter that runs after the existing ones. The first one replaces the default filter.
    pub fn with_filter(mut self, filter: impl Into<FilterConfig>) -> Self {
        self.filters.get_or_insert_default().push(filter.into());
        self
    }

    /// Adds a custom filter, as [`FilterConfig::custom`] does.
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

    /// Sets a higher temperature for the first tokens.
    pub fn with_fire(mut self, fire: Fire) -> Self {
        self.fire = Some(fire);
        self
    }

    /// Sets the source of the number that selects the token.
    pub fn with_selection(mut self, selection: Selection) -> Self {
        self.selection = selection;
        self
    }

    /// Sets custom changes to the logits, after penalties and bias and before everything else.
    pub fn with_logits_processor(mut self, processor: impl LogitsProcessor + 'static) -> Self {
        self.logits_processor = Some(Custom(Arc::new(processor)));
        self
    }

    /// The source of the expected logits.
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

    /// Whether tokens after the [hot start](Fire), if there is one, are chosen greedily.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether the token at `position` is chosen greedily.
    pub fn is_greedy_at(&self, position: u64) -> bool {
        self.temperature_at(position) == 0.0
    }

    /// The divisor of the logits before scores are compared: the temperature, or 1 for a greedy token.
    pub(crate) fn divisor_at(&self, position: u64) -> f32 {
        if self.is_greedy_at(position) { 1.0 } else { self.temperature_at(position) }
    }

    /// The divisor of the logits before the filters.
    pub(crate) fn divisor_before_filters(&self, position: u64) -> f32 {
        self.divisors_at(position).0
    }

    /// The divisors of the logits before and after the filters.
    fn divisors_at(&self, position: u64) -> (f32, f32) {
        let divisor = self.divisor_at(position);
        match self.temperature_order {
            TemperatureOrder::BeforeFilters => (divisor, 1.0),
            TemperatureOrder::AfterFilters => (1.0, divisor),
        }
    }

    /// Checks every setting, including those of the filters and the reweighter.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting.
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
        self.filters().iter().try_for_each(|filter| filter.as_filter().validate())
    }

    /// Validates the settings and prepares them for [`StepRow::sampling`](crate::StepRow::sampling). Copies them
    /// once.
    ///
    /// # Errors
    ///
    /// Same as [`validate`](Self::validate).
    pub fn checked(&self) -> Result<CheckedSampling, ConfigError> {
        self.validate()?;
        let reweighter = self.reweighter.unchecked(self.beta);
        Ok(CheckedSampling { settings: Arc::new(self.clone()), reweighter })
    }
}

/// [`Sampling`] that has been [checked](Sampling::checked) and is immutable. A [`StepRow`](crate::StepRow) takes it,
/// so that a step neither validates nor prepares settings. Cheap to clone.
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

    /// Whether rows with these settings need a distiller.
    pub(crate) fn uses_distiller(&self) -> bool {
        self.reweighter.expects() == Expects::Distiller
    }

    /// The candidates that penalties, processor, temperature and filters leave of a row, as passed to the reweighter,
    /// with expected logits still 0. [`Sampler::step`](crate::Sampler::step) computes them for every row; this method
    /// does so without a sampler. Copies the row.
    ///
    /// # Errors
    ///
    /// [`RowError`], as the step would report it for the row.
    pub fn candidates(&self, row: &RowContext<'_>, logits: &[f32]) -> Result<Candidates, RowError> {
        let mut candidates = self.pool(row, &mut logits.to_vec(), None)?;
        self.filter(row, &mut candidates);
        candidates.refused().map_or(Ok(candidates), Err)
    }

    /// The tokens that the first filter could keep, under a mask. The row is unchanged afterwards, and copied only for
    /// a logits processor.
    pub(crate) fn pool(
        &self,
        row: &RowContext<'_>,
        logits: &mut [f32],
        allowed: Option<&TokenMask>,
    ) -> Result<Candidates, RowError> {
        let before = self.divisor_before_filters(row.position);
        let (reach, wants_stats) = (self.reach(), self.uses_row_stats());
        let mut deltas = self.adjustments(row, logits.len(), |token| logits[token as usize])?;
        let pool = |logits: &[f32]| pool(logits, before, allowed, reach, wants_stats);
        let candidates = if let Some(processor) = &self.logits_processor {
            let mut changed = logits.to_vec();
            add(&mut changed, &deltas);
            deltas = process(&**processor, row, logits, &mut changed)?;
            pool(&changed)?
        } else {
            let before_them: Vec<f32> =
                deltas.iter().map(|&(token, _)| logits[token as usize]).collect();
            add(logits, &deltas);
            let pooled = pool(logits);
            for (&(token, _), logit) in deltas.iter().zip(before_them) {
                logits[token as usize] = logit;
            }
            // Only now: the logits must be restored even if the pool failed.
            pooled?
        };
        Ok(self.with_adjustments(row, candidates, deltas))
    }

    /// [`pool`](Self::pool) of a row of which only the best logits are known. `None` if the whole row is needed.
    pub(crate) fn pool_partial(
        &self,
        row: &RowContext<'_>,
        logits: &PartialRow,
        allowed: Option<&TokenMask>,
    ) -> Result<Option<Candidates>, RowError> {
        // Unknown tokens are not adjusted, so their logits do not matter.
        let logit = |token| logits.logit(token).unwrap_or(f32::NEG_INFINITY);
        let deltas = self.adjustments(row, logits.vocab(), logit)?;
        let before = self.divisor_before_filters(row.position);
        let candidates = logits.pool(&deltas, before, allowed, self.reach());
        Ok(candidates.map(|candidates| self.with_adjustments(row, candidates, deltas)))
    }

    /// About how many times as long as looking for the best logits it takes to fill a row's pool.
    pub(crate) fn work_of_pool(&self) -> usize {
        match self.reach() {
            Reach::Best(_) | Reach::Nats(_) | Reach::Deviations(_) => 1,
            // An exponential of every logit.
            Reach::Mass(_) | Reach::Probability(_) => 6,
            // A sort.
            Reach::Everything => 30,
        }
    }

    /// Whether the pool of a row needs the logits of all tokens, however many of the best are known.
    pub(crate) fn needs_whole_row(&self, has_mask: bool) -> bool {
        let is_unlimited = match self.reach() {
            Reach::Everything | Reach::Deviations(_) => true,
            // The mass of the tokens that are masked is not known.
            Reach::Mass(p) => p >= 1.0 || has_mask,
            Reach::Probability(_) => has_mask,
            Reach::Best(_) | Reach::Nats(_) => false,
        };
        is_unlimited || self.uses_row_stats() || self.logits_processor.is_some()
    }

    /// The tokens whose logits penalties and bias may change.
    pub(crate) fn adjustable(
        &self,
        row: &RowContext<'_>,
        vocab: usize,
    ) -> Result<Vec<TokenId>, RowError> {
        adjustable(&self.penalties, &self.logit_bias, [row.prompt, row.generated], vocab)
    }

    /// What penalties and bias add, in ascending token order.
    fn adjustments(
        &self,
        row: &RowContext<'_>,
        vocab: usize,
        logit: impl Fn(TokenId) -> f32,
    ) -> Result<Vec<(TokenId, f32)>, RowError> {
        let text = [row.prompt, row.generated];
        adjustments(&self.penalties, &self.logit_bias, text, vocab, logit)
    }

    /// Stores what was added to the logits with the candidates, on the scale of their scores.
    fn with_adjustments(
        &self,
        row: &RowContext<'_>,
        mut candidates: Candidates,
        mut deltas: Vec<(TokenId, f32)>,
    ) -> Candidates {
        let divisor = self.divisor_at(row.position);
        for (_, delta) in &mut deltas {
            *delta /= divisor;
        }
        candidates.set_adjustments(deltas);
        candidates
    }

    /// How much of the vocabulary the first filter needs.
    fn reach(&self) -> Reach {
        self.filters().first().map_or(Reach::Everything, |filter| filter.as_filter().reach())
    }

    fn uses_row_stats(&self) -> bool {
        self.filters().iter().any(|filter| filter.as_filter().uses_row_stats())
    }

    /// Runs the filters on a [`pool`](Self::pool).
    pub(crate) fn filter(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
        for filter in self.filters() {
            filter.as_filter().filter(row, candidates);
        }
        candidates.end_filtering();
        candidates.divide(self.divisors_at(row.position).1);
    }
}

/// Adds amounts to the logits of some tokens.
fn add(logits: &mut [f32], deltas: &[(TokenId, f32)]) {
    for &(token, delta) in deltas {
        logits[token as usize] += delta;
    }
}
