//! One distiller, its optimizer, and one update.

use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::{GradientsParams, ModuleOptimizer},
    tensor::Tensor,
};

use super::OptimizerConfig;
use crate::{distiller::Distiller, error::ConfigError, hidden::HiddenStates};

/// A distiller that learns online: its parameters and the state of its optimizer.
///
/// The sampler keeps one for each slot of its bank. On its own it is the online loop of the method, for those who have
/// recorded hidden states and want to see how fast a distiller learns:
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use esamp::{HiddenStates, Learner, OptimizerConfig, SwiGluConfig};
///
/// let device = Device::flex();
/// let distiller = SwiGluConfig::new().init(32, 0, &device)?;
/// let mut learner = Learner::new(distiller, OptimizerConfig::paper())?;
/// let shallow = Tensor::<2>::random([4, 32], Distribution::Default, &device);
/// let deep = shallow.clone() * 0.5;
///
/// let mut losses = Vec::new();
/// for _ in 0..50 {
///     let update = learner.update(&HiddenStates::new(shallow.clone(), deep.clone())?);
///     losses.push(update.loss.into_scalar::<f32>());
/// }
/// assert!(losses[49] < losses[0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
// Two copies of the same numbers: every operation on an autodiff tensor costs time, and predictions need no gradients.
#[derive(Clone)]
pub struct Learner<D> {
    plain: D,
    training: D,
    optimizer: ModuleOptimizer,
    config: OptimizerConfig,
    updates: u64,
}

impl<D: Distiller> Learner<D> {
    /// A learner that starts from `distiller`, with an empty optimizer state.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when a setting of the optimizer is out of range.
    pub fn new(distiller: D, config: OptimizerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self::start(distiller, config))
    }

    /// [`new`](Self::new) for settings that have been checked.
    pub(crate) fn start(distiller: D, config: OptimizerConfig) -> Self {
        let training = distiller.train();
        Self { plain: training.valid(), training, optimizer: config.init(), config, updates: 0 }
    }

    /// The distiller as it is now, without autodiff.
    pub fn distiller(&self) -> &D {
        &self.plain
    }

    /// How many updates there have been.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// One optimizer step on `hidden`. The loss and the gradient's norm are those before it.
    ///
    /// Nothing is read back from the device.
    pub fn update(&mut self, hidden: &HiddenStates) -> Update {
        let shallow = hidden.shallow().clone().autodiff();
        let deep = hidden.deep().clone().autodiff();
        let loss = self.training.loss(shallow, deep);
        // A distiller without parameters, or with frozen ones, has nothing to go back through.
        let gradients = match loss.is_tracked() {
            true => GradientsParams::from_grads(loss.backward(), &self.training),
            false => GradientsParams::new(),
        };
        let (gradients, grad_norm) = match self.config.max_grad_norm {
            Some(max_norm) => clip(gradients, &self.training, max_norm),
            None => (gradients, None),
        };
        let rate = self.config.learning_rate;
        self.training = self.optimizer.step(rate, self.training.clone(), gradients);
        self.plain = self.training.valid();
        self.updates += 1;
        Update { loss: loss.inner(), grad_norm }
    }
}

/// What an update saw.
#[derive(Clone, Debug)]
pub struct Update {
    /// The loss before the update, `[1]`.
    pub loss: Tensor<1>,
    /// Norm of the gradient over all parameters together, before clipping, `[1]`; `None` where nothing is clipped.
    pub grad_norm: Option<Tensor<1>>,
}

impl<D: std::fmt::Debug> std::fmt::Debug for Learner<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner").field("distiller", &self.plain).finish_non_exhaustive()
    }
}

/// Scales gradients so that their norm over all parameters is at most `max_norm`.
///
/// burn clips tensor by tensor, which changes the gradient's direction; this does not. Nothing is read back: the
/// factor stays on the device.
fn clip<D: Module>(
    gradients: GradientsParams,
    module: &D,
    max_norm: f32,
) -> (GradientsParams, Option<Tensor<1>>) {
    let mut norm = SquaredNorm { gradients: &gradients, sum: None };
    module.visit(&mut norm);
    let Some(norm) = norm.sum.map(Tensor::sqrt) else {
        return (gradients, None);
    };
    let factor = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_norm).clamp_max(1.0);
    let mut scaled = Scaled { gradients, factor };
    module.visit(&mut scaled);
    (scaled.gradients, Some(norm))
}

struct SquaredNorm<'a> {
    gradients: &'a GradientsParams,
    sum: Option<Tensor<1>>,
}

impl ModuleVisitor for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.get::<D>(param.id) {
            let square = gradient.square().sum();
            self.sum = Some(match self.sum.take() {
                Some(sum) => sum + square,
                None => square,
            });
        }
    }
}

struct Scaled {
    gradients: GradientsParams,
    factor: Tensor<1>,
}

impl ModuleVisitor for Scaled {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(gradient) = self.gradients.remove::<D>(param.id) {
            let factor = self.factor.clone().reshape([1; D]);
            self.gradients.register(param.id, gradient * factor);
        }
    }
}
