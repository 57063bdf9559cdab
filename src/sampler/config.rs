//! The settings of a sampler: the distiller's architecture, its training, and which completions share it.

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use super::Sampler;
use crate::{
    bank::Sharing,
    distiller::{LowRankConfig, SwiGluConfig},
    error::ConfigError,
    train::{OptimizerConfig, TrainRows, TrainingConfig},
};

/// A distiller architecture that can be serialised by name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum DistillerConfig {
    /// [`SwiGluDistiller`](crate::distillers::SwiGluDistiller), the paper's distiller.
    SwiGlu(SwiGluConfig),
    /// [`LowRankDistiller`](crate::distillers::LowRankDistiller), the reference implementation's distiller.
    LowRank(LowRankConfig),
}

impl DistillerConfig {
    /// The default optimizer of the architecture.
    pub fn default_optimizer(&self) -> OptimizerConfig {
        match self {
            Self::SwiGlu(_) => OptimizerConfig::paper(),
            Self::LowRank(_) => OptimizerConfig::adam_w(1e-3),
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::SwiGlu(config) => config.validate(),
            Self::LowRank(config) => config.validate(),
        }
    }

    /// The number of parameter tensors of a distiller for a model of width `d_model`, and of parameters in them.
    /// `usize::MAX` stands for any number that is larger.
    pub(crate) fn size(&self, d_model: usize) -> [usize; 2] {
        let times = usize::saturating_mul;
        match self {
            // Gate, up and down of each block.
            Self::SwiGlu(config) => {
                let tensors = times(3, config.blocks);
                [tensors, times(tensors, times(d_model, config.d_hidden))]
            }
            // Three matrices, the gate's bias, and the layer norm's weight and bias.
            Self::LowRank(config) => {
                let matrices = times(3, times(d_model, config.rank));
                let vectors = config.rank.saturating_add(times(2, d_model));
                [6, matrices.saturating_add(vectors)]
            }
        }
    }
}

/// Configuration of a [`Sampler`]; the defaults are the paper's settings.
///
/// The settings of a request (temperature, filters, β) are in [`Sampling`](crate::Sampling).
///
/// ```
/// use esamp::{SamplerConfig, distillers::{DistillerConfig, LowRankConfig}, optim::OptimizerConfig};
///
/// # let device = burn::tensor::Device::flex();
/// let paper = SamplerConfig::new().init(576, &device)?;
/// let low_rank = SamplerConfig::new()
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
    /// The optimizer; `None` uses [`DistillerConfig::default_optimizer`].
    pub optimizer: Option<OptimizerConfig>,
    /// Which completions share a distiller.
    pub sharing: Sharing,
    /// When distillers learn, from which rows, and on which path.
    pub training: TrainingConfig,
    /// Number of updates a distiller must have had before its rows are steered. Until then its rows are predicted and
    /// learned from, but their tokens are sampled from the plain model;
    /// [`Counters::rows_untrained`](crate::Counters::rows_untrained) counts them. Updates of [`Sampler::warm_up`] count
    /// too. 0, as in the paper, steers from the first decode step.
    pub updates_before_steering: usize,
    /// Seed of the distiller's initial parameters. The seeds of token selection are part of the requests.
    pub distiller_seed: u64,
    /// How much of the logits a step copies from the device to the host.
    pub logits_transfer: LogitsTransfer,
}

/// How much of the logits a step copies from the device to the host. The tokens are the same: where the best logits do
/// not suffice for a row's filters, the row is copied whole ([`Counters::rows_read_whole`](crate::Counters)). Expected
/// logits may differ by rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LogitsTransfer {
    /// [`Whole`](Self::Whole) on devices that compute in host memory, `Best(64)` on every other device.
    #[default]
    Automatic,
    /// All logits of each row: `4 · vocab` bytes per row. Expected logits take a second transfer.
    Whole,
    /// The given number `k` of best logits of each row, at least 1: about `12 · k` bytes per row, with their tokens and
    /// expected logits, in one transfer. A step takes a second transfer if a row
    ///
    /// - has candidates beyond the `k` best, or filters for which the best do not suffice: none, top-nσ, typical, eta
    ///   or XTC as the first filter, top-p with a mask, a logits processor, `k` or more log-probabilities;
    /// - is steered and has a candidate that only a bias or penalty has brought among the best,
    /// - contrasts with another model, or
    /// - is observed and has a mask, or a temperature after its filters.
    Best(usize),
}

impl LogitsTransfer {
    /// `k` on a device with its own memory. Min-p .05 leaves about 10 candidates; a search for more takes longer.
    pub(super) const BEST: usize = 64;

    pub(super) fn validate(self) -> Result<(), ConfigError> {
        match self {
            Self::Best(k) => ConfigError::at_least_one("logits_transfer best", k),
            Self::Automatic | Self::Whole => Ok(()),
        }
    }
}

impl Default for SamplerConfig {
    fn default() -> Self {
        Self {
            distiller: DistillerConfig::SwiGlu(SwiGluConfig::new()),
            optimizer: None,
            sharing: Sharing::default(),
            training: TrainingConfig::new(),
            updates_before_steering: 0,
            distiller_seed: 0,
            logits_transfer: LogitsTransfer::Automatic,
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

    /// Settings for completions of about 100 tokens: the paper's settings with a learning rate of 3e-3 instead of
    /// 4e-4, so that the distiller learns something before they end.
    ///
    /// On SmolLM2-135M-Instruct, story continuations of 96 tokens had more different ideas with this rate at equal
    /// perplexity than with the paper's rate (`docs/results/smollm2.md`, `esamp-0.5` against `esamp-paper-0.25`; β
    /// differs as well). It was not measured for thousands of tokens; for those, use the paper's rate, which is a
    /// published one.
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

    /// The cheap settings of the paper's reference implementation, from its fastest path: the low-rank distiller,
    /// plain SGD at 1e-3, and learning only from the first running row of each prompt.
    ///
    /// Use them to compare costs. In an independent study on SmolLM2-135M, a distiller had learned nothing with these
    /// settings after 80 tokens. The default optimizer of the low-rank distiller, which is also the reference's,
    /// [learns](OptimizerConfig::adam_w). The reference also makes one prediction per prompt for all of its rows;
    /// this crate does not: every row is predicted from its own shallow state.
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

    /// Sets the optimizer.
    pub fn with_optimizer(mut self, optimizer: OptimizerConfig) -> Self {
        self.optimizer = Some(optimizer);
        self
    }

    /// Sets which completions share a distiller.
    pub fn with_sharing(mut self, sharing: Sharing) -> Self {
        self.sharing = sharing;
        self
    }

    /// Sets when distillers learn, from which rows, and on which path.
    pub fn with_training(mut self, training: TrainingConfig) -> Self {
        self.training = training;
        self
    }

    /// Sets the number of updates a distiller must have had before its rows are steered.
    pub fn with_updates_before_steering(mut self, updates_before_steering: usize) -> Self {
        self.updates_before_steering = updates_before_steering;
        self
    }

    /// Sets the seed of the distiller's initial parameters.
    pub fn with_distiller_seed(mut self, distiller_seed: u64) -> Self {
        self.distiller_seed = distiller_seed;
        self
    }

    /// Sets how much of the logits a step copies from the device to the host.
    pub fn with_logits_transfer(mut self, logits_transfer: LogitsTransfer) -> Self {
        self.logits_transfer = logits_transfer;
        self
    }

    /// Builds a sampler for a model of width `d_model` whose hidden states live on `device`. [`Sampler::builder`] has
    /// more options.
    ///
    /// With [`Staleness::Background`](crate::optim::Staleness::Background) it starts a thread that trains until the
    /// sampler is dropped.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting; [`ConfigError::Thread`] when the thread cannot be
    /// started.
    pub fn init(&self, d_model: usize, device: &Device) -> Result<Sampler, ConfigError> {
        Sampler::builder(self.clone()).build(d_model, device)
    }

    /// Builds a sampler for an engine that hands over [slices](crate::guide::your_engine): [`init`](Self::init) on the
    /// device `flex`, the CPU.
    ///
    /// # Errors
    ///
    /// Those of [`init`](Self::init).
    #[cfg(feature = "flex")]
    pub fn init_on_cpu(&self, d_model: usize) -> Result<Sampler, ConfigError> {
        self.init(d_model, &Device::flex())
    }
}
