//! Builds a sampler from its settings.

use std::fmt;

use burn::{
    module::{ModuleMapper, Param},
    tensor::{DType, Device, Tensor},
};

use super::{DistillerConfig, Sampler, SamplerConfig};
use crate::{
    bank::Sharing,
    distiller::Distiller,
    error::ConfigError,
    train::{
        AdaptiveTrainer, ApartSlots, BackgroundTrainer, InlineTrainer, OnlineTrainer,
        OptimizerConfig, SeparateSlots, SlotPath, Slots, StackedSlots, Staleness, TrainRows,
        TrainingWorker, spawn,
    },
};

/// A sampler and, with background learning, the worker that trains for it.
type Pair = (Sampler, Option<TrainingWorker>);

/// Makes a sampler around a distiller whose type only this closure knows.
type Make = Box<dyn FnOnce(&SamplerConfig, usize, &Device) -> Result<Pair, ConfigError>>;

/// Builder of a [`Sampler`], returned by [`Sampler::builder`]. It has options that [`SamplerConfig::init`] does not
/// offer.
///
/// ```
/// use esamp::{Sampler, SamplerConfig, distillers::SwiGluConfig, optim::{Staleness, TrainingConfig}};
///
/// # let device = burn::tensor::Device::flex();
/// let training = TrainingConfig::new().with_staleness(Staleness::Background);
/// let distiller = SwiGluConfig::new().init(64, 0, &device)?; // or a module of your own
/// let (sampler, worker) = Sampler::builder(SamplerConfig::new().with_training(training))
///     .with_distiller(distiller)
///     .build_with_worker(64, &device)?;
/// let thread = worker.map(|worker| std::thread::spawn(|| worker.run()));
/// # drop(sampler);
/// # thread.unwrap().join().unwrap();
/// # Ok::<(), esamp::errors::ConfigError>(())
/// ```
#[must_use = "nothing is made before `build`"]
pub struct SamplerBuilder {
    config: SamplerConfig,
    make: Option<Make>,
}

impl Sampler {
    /// Creates a builder with these settings.
    pub fn builder(config: SamplerConfig) -> SamplerBuilder {
        SamplerBuilder { config, make: None }
    }
}

impl SamplerBuilder {
    /// Sets a custom distiller; [`SamplerConfig::distiller`] then only determines the default optimizer. Every slot
    /// starts as a copy of `distiller`.
    pub fn with_distiller<D: Distiller>(mut self, distiller: D) -> Self {
        self.make =
            Some(Box::new(|config, d_model, device| config.pair(distiller, true, d_model, device)));
        self
    }

    /// Builds a sampler for a model of width `d_model` whose hidden states live on `device`.
    ///
    /// With [`Staleness::Background`] it starts a thread that trains until the sampler is dropped.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting; [`ConfigError::Mismatch`] when the distiller
    /// [reports](Distiller::d_model) another width; [`ConfigError::Thread`] when the thread cannot be started.
    pub fn build(self, d_model: usize, device: &Device) -> Result<Sampler, ConfigError> {
        let (sampler, worker) = self.build_with_worker(d_model, device)?;
        if let Some(worker) = worker {
            spawn(worker).map_err(|error| ConfigError::Thread {
                purpose: "background learning",
                reason: error.to_string(),
            })?;
        }
        Ok(sampler)
    }

    /// [`build`](Self::build) for a caller with its own threads. Returns the sampler and, with
    /// [`Staleness::Background`], the worker that trains for it, which the caller must [run](TrainingWorker::run) on
    /// another thread.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first invalid setting; [`ConfigError::Mismatch`] when the distiller
    /// [reports](Distiller::d_model) another width.
    pub fn build_with_worker(
        self,
        d_model: usize,
        device: &Device,
    ) -> Result<(Sampler, Option<TrainingWorker>), ConfigError> {
        let Self { config, make } = self;
        if let Some(make) = make {
            return make(&config, d_model, device);
        }
        let inner = device.clone().inner();
        let seed = config.distiller_seed;
        match &config.distiller {
            DistillerConfig::SwiGlu(named) => {
                config.pair(named.init(d_model, seed, &inner)?, false, d_model, device)
            }
            DistillerConfig::LowRank(named) => {
                config.pair(named.init(d_model, seed, &inner)?, false, d_model, device)
            }
        }
    }
}

impl fmt::Debug for SamplerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SamplerBuilder").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SamplerConfig {
    /// Checks every setting, alone and together, as [`init`](Self::init) does.
    ///
    /// # Errors
    ///
    /// [`ConfigError::OutOfRange`] for the first setting that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.distiller.validate()?;
        self.validate_training()
    }

    /// Checks the settings that also apply to a custom distiller.
    fn validate_training(&self) -> Result<(), ConfigError> {
        self.optimizer().validate()?;
        self.training.validate()?;
        self.logits_transfer.validate()?;
        if let Sharing::Adaptive(adaptive) = self.sharing {
            adaptive.validate()?;
        }
        let alone = self.sharing == Sharing::PerCompletion;
        ConfigError::check(
            !alone || self.training.train_rows == TrainRows::All,
            "train_rows",
            "all, because every completion has its own distiller",
            "first_per_prompt",
        )
    }

    fn optimizer(&self) -> OptimizerConfig {
        self.optimizer.unwrap_or_else(|| self.distiller.default_optimizer())
    }

    fn pair<D: Distiller>(
        &self,
        distiller: D,
        is_custom: bool,
        d_model: usize,
        device: &Device,
    ) -> Result<Pair, ConfigError> {
        self.validate_training()?;
        ConfigError::at_least_one("d_model", d_model)?;
        if let Some(width) = distiller.d_model() {
            ConfigError::check_equal("width of the distiller", d_model, width)?;
        }
        let optimizer = self.optimizer();
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
        let sampler = Sampler::new(trainer, self.clone(), is_custom, d_model, device);
        Ok((sampler, worker))
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

/// Casts parameters to `f32`. Distillers always train in `f32`: updates as small as theirs would be rounded away in
/// lower precision.
struct FullPrecision;

impl ModuleMapper for FullPrecision {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match param.val().dtype() {
            DType::F32 => param,
            _ => param.map(|tensor| tensor.cast(DType::F32)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::TrainingConfig;

    #[test]
    fn slots_take_the_path_of_the_settings_or_the_fastest() {
        for (slot_path, slots) in [
            (SlotPath::Automatic, "ApartSlots"), // on flex
            (SlotPath::Apart, "ApartSlots"),
            (SlotPath::Stacked, "StackedSlots"),
            (SlotPath::OneByOne, "SeparateSlots"),
        ] {
            let training = TrainingConfig::new().with_slot_path(slot_path);
            let config = SamplerConfig::new().with_training(training);
            let sampler = config.init(4, &Device::flex()).unwrap();
            let trainer = format!("{:?}", sampler.trainer);
            let expected = format!("InlineTrainer {{ slots: {slots} {{");
            assert!(trainer.starts_with(&expected), "{slot_path:?}: {}", &trainer[..60]);
        }
    }
}
