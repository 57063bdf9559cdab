//! How one row's token is chosen: temperature, filters, reweighter.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    candidates::{CandidateFilter, FilterConfig, MinP, TopK, TopP},
    error::ConfigError,
    novelty::{Extrapolate, NoveltyReweighter},
};

/// What the temperature is applied to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemperatureOrder {
    /// Logits are divided first: filters see `ref / T`. This is the order of Hugging Face and vLLM.
    #[default]
    BeforeFilters,
    /// Filters see the reference logits as the model gave them; what is left is divided.
    AfterFilters,
}

/// The sampling settings of a request, as plain values that can be written down.
///
/// ```
/// use esamp::SamplingConfig;
///
/// let plain = SamplingConfig::default().with_beta(0.0);
/// let explore = SamplingConfig::default().with_min_p(0.05).with_temperature(0.8);
/// assert!(explore.init().is_ok());
/// assert!(explore.with_beta(-1.0).init().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingConfig {
    /// The temperature: 0 or at least [`Sampling::LOWEST_TEMPERATURE`]; 0 takes the best token after reweighting. One temperature for the reference and
    /// the expected logits.
    pub temperature: f32,
    /// Whether filters see logits before or after the temperature.
    pub temperature_order: TemperatureOrder,
    /// Filters, in the order in which they run.
    pub filters: Vec<FilterConfig>,
    /// The exploration strength β; 0 is plain sampling.
    pub beta: f32,
}

impl SamplingConfig {
    /// The paper's exploration strength.
    pub const DEFAULT_BETA: f32 = 0.25;
    /// The paper's temperature.
    pub const DEFAULT_TEMPERATURE: f32 = 1.0;
}

impl Default for SamplingConfig {
    /// The paper's settings: temperature 1, β 0.25, no filter.
    fn default() -> Self {
        Self {
            temperature: Self::DEFAULT_TEMPERATURE,
            temperature_order: TemperatureOrder::default(),
            filters: Vec::new(),
            beta: Self::DEFAULT_BETA,
        }
    }
}

impl SamplingConfig {
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

    /// Adds a filter behind those that are there.
    pub fn with_filter(mut self, filter: FilterConfig) -> Self {
        self.filters.push(filter);
        self
    }

    /// Adds a [`TopK`] filter behind those that are there.
    pub fn with_top_k(self, k: usize) -> Self {
        self.with_filter(FilterConfig::TopK(TopK { k }))
    }

    /// Adds a [`TopP`] filter behind those that are there.
    pub fn with_top_p(self, p: f32) -> Self {
        self.with_filter(FilterConfig::TopP(TopP { p }))
    }

    /// Adds a [`MinP`] filter behind those that are there.
    pub fn with_min_p(self, p: f32) -> Self {
        self.with_filter(FilterConfig::MinP(MinP { p }))
    }

    /// Checks the settings and makes them ready for use.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work.
    pub fn init(&self) -> Result<Sampling, ConfigError> {
        let mut sampling = Sampling::new(Extrapolate { beta: self.beta })?
            .with_temperature(self.temperature)?
            .with_temperature_order(self.temperature_order);
        for filter in &self.filters {
            sampling = match *filter {
                FilterConfig::TopK(filter) => sampling.with_filter(filter),
                FilterConfig::TopP(filter) => sampling.with_filter(filter),
                FilterConfig::MinP(filter) => sampling.with_filter(filter),
            }?;
        }
        Ok(sampling)
    }
}

/// Sampling settings, checked and ready. Cheap to clone: filters and reweighter are shared.
///
/// Where [`SamplingConfig`] knows the filters and reweighters of this crate by name, this takes any of them.
#[derive(Clone, Debug)]
pub struct Sampling {
    temperature: f32,
    temperature_order: TemperatureOrder,
    filters: Vec<Arc<dyn CandidateFilter>>,
    reweighter: Arc<dyn NoveltyReweighter>,
}

impl Default for Sampling {
    /// The paper's settings, as [`SamplingConfig::default`] has them.
    fn default() -> Self {
        Self {
            temperature: SamplingConfig::DEFAULT_TEMPERATURE,
            temperature_order: TemperatureOrder::default(),
            filters: Vec::new(),
            reweighter: Arc::new(Extrapolate { beta: SamplingConfig::DEFAULT_BETA }),
        }
    }
}

impl Sampling {
    /// The lowest temperature above 0, which is greedy. Logits divided by less could leave the range of `f32`, and long
    /// before that the best token is the only one left.
    pub const LOWEST_TEMPERATURE: f32 = 1e-4;

    /// Temperature 1, no filter, and this reweighter.
    ///
    /// # Errors
    ///
    /// What the reweighter's own check finds.
    pub fn new(reweighter: impl NoveltyReweighter + 'static) -> Result<Self, ConfigError> {
        reweighter.validate()?;
        Ok(Self { reweighter: Arc::new(reweighter), ..Self::default() })
    }

    /// Sets the temperature; 0 is greedy.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for a temperature that is neither 0 nor between
    /// [`LOWEST_TEMPERATURE`](Self::LOWEST_TEMPERATURE) and infinity.
    pub fn with_temperature(mut self, temperature: f32) -> Result<Self, ConfigError> {
        let holds = temperature == 0.0 || temperature >= Self::LOWEST_TEMPERATURE;
        ConfigError::check(
            temperature.is_finite() && holds,
            "temperature",
            "0 or a number of at least 0.0001",
            temperature,
        )?;
        self.temperature = temperature;
        Ok(self)
    }

    /// Sets the place of the temperature.
    pub fn with_temperature_order(mut self, order: TemperatureOrder) -> Self {
        self.temperature_order = order;
        self
    }

    /// Adds a filter behind those that are there.
    ///
    /// # Errors
    ///
    /// What the filter's own check finds.
    pub fn with_filter(
        mut self,
        filter: impl CandidateFilter + 'static,
    ) -> Result<Self, ConfigError> {
        filter.validate()?;
        self.filters.push(Arc::new(filter));
        Ok(self)
    }

    /// The temperature; 0 is greedy.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// The place of the temperature.
    pub fn temperature_order(&self) -> TemperatureOrder {
        self.temperature_order
    }

    /// The filters, in the order in which they run.
    pub fn filters(&self) -> &[Arc<dyn CandidateFilter>] {
        &self.filters
    }

    /// The reweighter.
    pub fn reweighter(&self) -> &dyn NoveltyReweighter {
        &*self.reweighter
    }

    /// What logits are divided by before scores are compared: the temperature, or 1 for a greedy row.
    pub(crate) fn divisor(&self) -> f32 {
        if self.is_greedy() { 1.0 } else { self.temperature }
    }

    /// Whether the token is the best one instead of a random one.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}
