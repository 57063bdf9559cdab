//! The settings of a sampler: which distiller, how it learns, who shares it.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Sampler;
use crate::{
    bank::Sharing,
    distiller::{LowRankConfig, SwiGluConfig},
    error::ConfigError,
    train::{OptimizerConfig, TrainRows, TrainingConfig},
};

/// A distiller by name, for settings that are written down.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DistillerConfig {
    /// [`SwiGluDistiller`](crate::distillers::SwiGluDistiller), the paper's.
    SwiGlu(SwiGluConfig),
    /// [`LowRankDistiller`](crate::distillers::LowRankDistiller), the reference implementation's.
    LowRank(LowRankConfig),
}

impl DistillerConfig {
    /// The optimizer that belongs to the architecture where none is set.
    pub fn default_optimizer(&self) -> OptimizerConfig {
        match self {
            Self::SwiGlu(_) => OptimizerConfig::paper(),
            Self::LowRank(_) => OptimizerConfig::adam_w(1e-3),
        }
    }
}

/// Configuration of a [`Sampler`]; the defaults are the paper's settings.
///
/// What belongs to a request (temperature, filters, β) is in [`Sampling`](crate::Sampling).
///
/// ```
/// use esamp::{SamplerConfig, distillers::{DistillerConfig, LowRankConfig}, optim::OptimizerConfig};
///
/// # let device = burn::tensor::Device::flex();
/// let paper = SamplerConfig::new().init(576, &device)?;
/// let reference = SamplerConfig::new()
///     .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
///     .with_optimizer(OptimizerConfig::adam_w(1e-2))
///     .init(576, &device)?;
/// # Ok::<(), esamp::errors::ConfigError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct SamplerConfig {
    /// The distiller's architecture.
    pub distiller: DistillerConfig,
    /// How it learns; `None` takes [`DistillerConfig::default_optimizer`].
    pub optimizer: Option<OptimizerConfig>,
    /// Which requests share a distiller.
    pub sharing: Sharing,
    /// When distillers learn, from which rows, and on which path.
    pub training: TrainingConfig,
    /// Updates that a distiller must have had before its rows are steered. Until then they are predicted and learned, and
    /// draw the tokens of the plain model; [`Counters::rows_warming`](crate::Counters::rows_warming) counts them. Updates of
    /// [`Sampler::warm_up`] count too. 0, as in the paper, steers from the first decode step on.
    pub steps_before_steering: usize,
    /// Seed of the distiller's starting parameters. The tokens' seeds come with the requests.
    pub distiller_seed: u64,
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            distiller: DistillerConfig::SwiGlu(SwiGluConfig::new()),
            optimizer: None,
            sharing: Sharing::default(),
            training: TrainingConfig::new(),
            steps_before_steering: 0,
            distiller_seed: 0,
        }
    }
}

impl SamplerConfig {
    /// The paper's settings, which are the defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The paper's settings, which are the defaults.
    ///
    /// ```
    /// use esamp::{SamplerConfig, optim::OptimizerConfig};
    ///
    /// assert_eq!(SamplerConfig::paper(), SamplerConfig::default());
    /// assert_eq!(SamplerConfig::paper().distiller.default_optimizer(), OptimizerConfig::paper());
    /// ```
    pub fn paper() -> Self {
        Self::new()
    }

    /// For completions of a hundred tokens or so: the paper's settings with a learning rate of 3e-3 instead of 4e-4, so that
    /// the distiller has learned something before they end.
    ///
    /// On SmolLM2-135M-Instruct, story continuations of 96 tokens had more different ideas with it at equal perplexity
    /// than with the paper's rate (`docs/results/smollm2.md`, `esamp-0.5` against `esamp-paper-0.25`; β differs as well). For
    /// thousands of tokens it was not measured; there the paper's rate is the one that somebody has.
    ///
    /// ```
    /// use esamp::{SamplerConfig, optim::OptimizerConfig};
    ///
    /// let rate = OptimizerConfig::paper().with_learning_rate(3e-3);
    /// assert_eq!(
    ///     SamplerConfig::for_short_completions(),
    ///     SamplerConfig::paper().with_optimizer(rate),
    /// );
    /// ```
    pub fn for_short_completions() -> Self {
        Self::paper().with_optimizer(OptimizerConfig::paper().with_learning_rate(3e-3))
    }

    /// The cheap settings of the paper's reference implementation, those of its fastest path: the low-rank distiller,
    /// plain descent at 1e-3, and of each prompt only the first row that runs is learned.
    ///
    /// For comparing costs. In an independent study on SmolLM2-135M a distiller had learned nothing with them after 80
    /// tokens. The default optimizer of the low-rank distiller, which is the reference's too, [learns](OptimizerConfig::adam_w). What the reference
    /// does besides, one prediction a prompt for all of its rows, is not done here: every row is predicted from its own
    /// shallow state.
    ///
    /// ```
    /// use esamp::{
    ///     SamplerConfig, distillers::{DistillerConfig, LowRankConfig},
    ///     optim::{OptimizerConfig, TrainRows, TrainingConfig},
    /// };
    ///
    /// let spelled_out = SamplerConfig::new()
    ///     .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
    ///     .with_optimizer(OptimizerConfig::sgd(1e-3))
    ///     .with_training(TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt));
    /// assert_eq!(SamplerConfig::reference(), spelled_out);
    /// ```
    pub fn reference() -> Self {
        let training = TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt);
        Self::new()
            .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
            .with_optimizer(OptimizerConfig::sgd(1e-3))
            .with_training(training)
    }

    /// Sets the distiller's architecture.
    pub fn with_distiller(mut self, distiller: DistillerConfig) -> Self {
        self.distiller = distiller;
        self
    }

    /// Sets how the distiller learns.
    pub fn with_optimizer(mut self, optimizer: OptimizerConfig) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// Sets which requests share a distiller.
    pub fn with_sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Sets when distillers learn, from which rows, and on which path.
    pub fn with_training(mut self, training: TrainingConfig) -> Self {
        self.training = training;
        self
    }

    /// Sets the updates that a distiller must have had before its rows are steered.
    pub fn with_steps_before_steering(mut self, steps_before_steering: usize) -> Self {
        self.steps_before_steering = steps_before_steering;
        self
    }

    /// Sets the seed of the distiller's starting parameters.
    pub fn with_distiller_seed(mut self, distiller_seed: u64) -> Self {
        self.distiller_seed = distiller_seed;
        self
    }

    /// A sampler for a model of width `d_model` whose hidden states live on `device`. [`Sampler::builder`] has more ways.
    ///
    /// With [`Staleness::Background`](crate::optim::Staleness::Background) a thread is started that learns until the sampler is
    /// dropped.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work; [`ConfigError::Thread`] when the thread cannot
    /// be started.
    pub fn init(&self, d_model: usize, device: &Device) -> Result<Sampler, ConfigError> {
        Sampler::builder(self.clone()).build(d_model, device)
    }
}
