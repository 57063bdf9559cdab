//! The settings of a sampler: which distiller, how it learns, who shares it.

use burn::{config::Config, tensor::Device};
use serde::{Deserialize, Serialize};

use super::Sampler;
use crate::{
    bank::Sharing,
    distiller::{Distiller, LowRankConfig, SwiGluConfig},
    error::ConfigError,
    train::{InlineTrainer, OptimizerConfig},
};

/// A distiller by name, for settings that are written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DistillerConfig {
    /// [`SwiGluDistiller`](crate::SwiGluDistiller), the paper's.
    SwiGlu(SwiGluConfig),
    /// [`LowRankDistiller`](crate::LowRankDistiller), the reference implementation's.
    LowRank(LowRankConfig),
}

impl DistillerConfig {
    /// The optimizer that belongs to the architecture where none is set.
    pub fn default_optimizer(&self) -> OptimizerConfig {
        match self {
            Self::SwiGlu(_) => OptimizerConfig::paper(),
            Self::LowRank(_) => OptimizerConfig::reference(),
        }
    }
}

/// Configuration of a [`Sampler`]; the defaults are the paper's settings.
///
/// What belongs to a request (temperature, filters, β) is in [`SamplingConfig`](crate::SamplingConfig).
///
/// ```
/// use esamp::{DistillerConfig, LowRankConfig, OptimizerConfig, SamplerConfig};
///
/// # let device = burn::tensor::Device::flex();
/// let paper = SamplerConfig::new().init(576, &device)?;
/// let reference = SamplerConfig::new()
///     .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
///     .with_optimizer(Some(OptimizerConfig::reference().with_learning_rate(1e-2)))
///     .init(576, &device)?;
/// # Ok::<(), esamp::ConfigError>(())
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct SamplerConfig {
    /// The distiller's architecture.
    #[config(default = "DistillerConfig::SwiGlu(SwiGluConfig::new())")]
    pub distiller: DistillerConfig,
    /// How it learns; `None` takes [`DistillerConfig::default_optimizer`].
    #[config(default = "None")]
    pub optimizer: Option<OptimizerConfig>,
    /// Which requests share a distiller.
    #[config(default = "Sharing::PerPrompt")]
    pub sharing: Sharing,
    /// Updates that a distiller must have had before its rows are steered. Until then they are predicted and learned, and
    /// draw the tokens of the plain model; [`Counters::rows_warming`](crate::Counters::rows_warming) counts them. Updates of
    /// [`Sampler::warm_up`] count too. 0, as in the paper, steers from the first decode step on.
    #[config(default = 0)]
    pub steps_before_steering: usize,
    /// Seed of the distiller's starting parameters. The tokens' seeds come with the requests.
    #[config(default = 0)]
    pub distiller_seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self::new()
    }
}

impl SamplerConfig {
    /// A sampler for a model of width `d_model` whose hidden states live on `device`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work.
    pub fn init(&self, d_model: usize, device: &Device) -> Result<Sampler, ConfigError> {
        let device = device.clone().inner();
        match &self.distiller {
            DistillerConfig::SwiGlu(config) => {
                let distiller = config.init(d_model, self.distiller_seed, &device)?;
                self.init_with(distiller, d_model, &device)
            }
            DistillerConfig::LowRank(config) => {
                let distiller = config.init(d_model, self.distiller_seed, &device)?;
                self.init_with(distiller, d_model, &device)
            }
        }
    }

    /// A sampler with a distiller of your own; [`distiller`](Self::distiller) only decides the default optimizer then.
    /// Every slot starts as a copy of `distiller`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work.
    pub fn init_with<D: Distiller>(
        &self,
        distiller: D,
        d_model: usize,
        device: &Device,
    ) -> Result<Sampler, ConfigError> {
        let optimizer = self.optimizer.unwrap_or_else(|| self.distiller.default_optimizer());
        optimizer.validate()?;
        ConfigError::at_least_one("d_model", d_model)?;
        let device = device.clone().inner();
        let template = distiller.to_device(&device).valid();
        let trainer = InlineTrainer::new(template, optimizer, self.sharing);
        Ok(Sampler::new(Box::new(trainer), self, d_model, device))
    }
}
