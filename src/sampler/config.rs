//! The settings of a sampler: which distiller, how it learns, who shares it.

use burn::{
    config::Config,
    module::{ModuleMapper, Param},
    tensor::{DType, Device, Tensor},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Sampler;
use crate::{
    bank::Sharing,
    distiller::{Distiller, LowRankConfig, SwiGluConfig},
    error::ConfigError,
    train::{
        AdaptiveTrainer, ApartSlots, BackgroundTrainer, InlineTrainer, OnlineTrainer,
        OptimizerConfig, SeparateSlots, SlotPath, Slots, StackedSlots, Staleness, TrainRows,
        TrainingConfig, TrainingWorker, spawn,
    },
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
    /// When distillers learn, from which rows, and on which path.
    #[config(default = "TrainingConfig::default()")]
    pub training: TrainingConfig,
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
    /// The paper's settings, which are the defaults.
    ///
    /// ```
    /// use esamp::{OptimizerConfig, SamplerConfig};
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
    /// than with the paper's rate (`docs/results/smollm2.md`, `esamp-0.5` beside `esamp-paper-0.25`; β differs as well). For
    /// thousands of tokens it was not measured; there the paper's rate is the one that somebody has.
    ///
    /// ```
    /// use esamp::{OptimizerConfig, SamplerConfig};
    ///
    /// let rate = OptimizerConfig::paper().with_learning_rate(3e-3);
    /// assert_eq!(
    ///     SamplerConfig::for_short_completions(),
    ///     SamplerConfig::paper().with_optimizer(Some(rate)),
    /// );
    /// ```
    pub fn for_short_completions() -> Self {
        Self::paper().with_optimizer(Some(OptimizerConfig::paper().with_learning_rate(3e-3)))
    }

    /// The cheap settings of the paper's reference implementation, those of its fastest path: the low-rank distiller,
    /// plain descent at 1e-3, and of each prompt only the first row that runs is learned.
    ///
    /// For comparing costs. In an independent study on SmolLM2-135M a distiller had learned nothing with them after 80
    /// tokens. [`OptimizerConfig::reference`], the default optimizer of the low-rank distiller, learns. What the reference
    /// does besides, one prediction a prompt for all of its rows, is not done here: every row is predicted from its own
    /// shallow state.
    ///
    /// ```
    /// use esamp::{
    ///     DistillerConfig, LowRankConfig, OptimizerConfig, SamplerConfig, TrainRows, TrainingConfig,
    /// };
    ///
    /// let spelled_out = SamplerConfig::new()
    ///     .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
    ///     .with_optimizer(Some(OptimizerConfig::sgd(1e-3)))
    ///     .with_training(TrainingConfig {
    ///         train_rows: TrainRows::FirstPerPrompt,
    ///         ..TrainingConfig::default()
    ///     });
    /// assert_eq!(SamplerConfig::reference(), spelled_out);
    /// ```
    pub fn reference() -> Self {
        let training =
            TrainingConfig { train_rows: TrainRows::FirstPerPrompt, ..TrainingConfig::default() };
        Self::new()
            .with_distiller(DistillerConfig::LowRank(LowRankConfig::new()))
            .with_optimizer(Some(OptimizerConfig::sgd(1e-3)))
            .with_training(training)
    }

    /// A sampler for a model of width `d_model` whose hidden states live on `device`.
    ///
    /// With [`Staleness::Background`] a thread is started that learns until the sampler is dropped.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work; [`ConfigError::Thread`] when the thread cannot
    /// be started.
    pub fn init(&self, d_model: usize, device: &Device) -> Result<Sampler, ConfigError> {
        start(self.init_pair(d_model, device)?)
    }

    /// A sampler with a distiller of your own; [`distiller`](Self::distiller) only decides the default optimizer then.
    /// Every slot starts as a copy of `distiller`.
    ///
    /// # Errors
    ///
    /// As [`init`](Self::init).
    pub fn init_with<D: Distiller>(
        &self,
        distiller: D,
        d_model: usize,
        device: &Device,
    ) -> Result<Sampler, ConfigError> {
        start(self.init_pair_with(distiller, d_model, device)?)
    }

    /// [`init`](Self::init) for a caller with threads of its own: a sampler and, with [`Staleness::Background`], the
    /// worker that learns for it, which must be [run](TrainingWorker::run) on another thread.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that cannot work.
    pub fn init_pair(
        &self,
        d_model: usize,
        device: &Device,
    ) -> Result<(Sampler, Option<TrainingWorker>), ConfigError> {
        let inner = device.clone().inner();
        let (mut sampler, worker) = match &self.distiller {
            DistillerConfig::SwiGlu(config) => {
                let distiller = config.init(d_model, self.distiller_seed, &inner)?;
                self.init_pair_with(distiller, d_model, device)
            }
            DistillerConfig::LowRank(config) => {
                let distiller = config.init(d_model, self.distiller_seed, &inner)?;
                self.init_pair_with(distiller, d_model, device)
            }
        }?;
        sampler.custom_distiller = false;
        Ok((sampler, worker))
    }

    /// [`init_with`](Self::init_with) for a caller with threads of its own.
    ///
    /// # Errors
    ///
    /// As [`init_pair`](Self::init_pair).
    pub fn init_pair_with<D: Distiller>(
        &self,
        distiller: D,
        d_model: usize,
        device: &Device,
    ) -> Result<(Sampler, Option<TrainingWorker>), ConfigError> {
        let optimizer = self.optimizer.unwrap_or_else(|| self.distiller.default_optimizer());
        optimizer.validate()?;
        self.training.validate()?;
        if let Sharing::Adaptive(adaptive) = self.sharing {
            adaptive.validate()?;
        }
        let alone = self.sharing == Sharing::PerRequest;
        ConfigError::check(
            !alone || self.training.train_rows == TrainRows::All,
            "train_rows",
            "all, where every request has a distiller of its own",
            "first_per_prompt",
        )?;
        ConfigError::at_least_one("d_model", d_model)?;
        let device = device.clone().inner();
        let template = distiller.to_device(&device).valid().map(&mut FullPrecision);
        let path = match self.training.slot_path {
            SlotPath::Automatic if ApartSlots::<D>::is_faster_on(&device) => SlotPath::Apart,
            SlotPath::Automatic => SlotPath::Stacked,
            path => path,
        };
        let stacked = StackedSlots::new(&template, optimizer);
        let (trainer, worker) = match (path, stacked) {
            (SlotPath::Apart, Some(slots)) => self.trainer(ApartSlots::new(slots)),
            (SlotPath::Stacked, Some(slots)) => self.trainer(slots),
            _ => self.trainer(SeparateSlots::new(template, optimizer)),
        };
        let sampler = Sampler::new(trainer, self.clone(), true, d_model, device);
        Ok((sampler, worker))
    }

    /// Reads settings that an earlier version may have written: those that it did not know have their defaults.
    pub(crate) fn from_partial_json(written: &Value) -> Result<Self, String> {
        let mut all = serde_json::to_value(Self::new()).map_err(|error| error.to_string())?;
        let distiller = written.get("distiller").cloned().unwrap_or(Value::Null);
        let defaults = match distiller.as_object().and_then(|names| names.keys().next()) {
            Some(name) if name == "low_rank" => DistillerConfig::LowRank(LowRankConfig::new()),
            _ => DistillerConfig::SwiGlu(SwiGluConfig::new()),
        };
        all["distiller"] = serde_json::to_value(defaults).map_err(|error| error.to_string())?;
        overlay(&mut all, written);
        serde_json::from_value(all).map_err(|error| error.to_string())
    }

    fn trainer(&self, slots: impl Slots) -> (Box<dyn OnlineTrainer>, Option<TrainingWorker>) {
        match self.sharing {
            Sharing::Adaptive(adaptive) => {
                self.paced(AdaptiveTrainer::new(slots, adaptive, self.training))
            }
            sharing => self.paced(InlineTrainer::new(slots, sharing, self.training)),
        }
    }

    fn paced<T: OnlineTrainer + Clone + 'static>(
        &self,
        trainer: T,
    ) -> (Box<dyn OnlineTrainer>, Option<TrainingWorker>) {
        match self.training.staleness {
            Staleness::Inline => (Box::new(trainer), None),
            Staleness::Background => {
                let (trainer, worker) = BackgroundTrainer::pair(trainer);
                (Box::new(trainer), Some(worker))
            }
        }
    }
}

/// Distillers learn in `f32`, whatever they came in: steps as small as theirs are lost in less.
struct FullPrecision;

impl ModuleMapper for FullPrecision {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.val().dtype() {
            DType::F32 => param,
            _ => param.map(|tensor| tensor.cast(DType::F32)),
        }
    }
}

/// Runs the worker, if there is one, on a thread of its own.
fn start((sampler, worker): (Sampler, Option<TrainingWorker>)) -> Result<Sampler, ConfigError> {
    if let Some(worker) = worker {
        spawn(worker).map_err(|error| ConfigError::Thread { reason: error.to_string() })?;
    }
    Ok(sampler)
}

/// Puts the values of `written` over those of `all`, key by key.
fn overlay(all: &mut Value, written: &Value) {
    match (all, written) {
        (Value::Object(all), Value::Object(written)) => {
            for (key, value) in written {
                overlay(all.entry(key).or_insert(Value::Null), value);
            }
        }
        (all, written) => *all = written.clone(),
    }
}
