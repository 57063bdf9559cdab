//! One distiller with its optimizer.

use burn::{
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::Tensor,
};

use super::{
    optimizer::{LossReduction, OptimizerConfig},
    rule::{Moments, apply},
};
use crate::{
    distiller::{Distiller, Gradient},
    error::ConfigError,
    hidden::HiddenStates,
};

/// A distiller that learns online: its parameters and the state of its optimizer.
///
/// The sampler keeps one for each slot of its bank, or all of them stacked ([`Distiller::stacked`]). Use it on its own
/// to measure how fast a distiller learns on recorded hidden states:
///
/// ```
/// use burn::tensor::{Device, Distribution, Tensor};
/// use esamp::{HiddenStates, distillers::SwiGluConfig, optim::{Learner, OptimizerConfig}};
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
#[derive(Clone)]
pub struct Learner<D> {
    pub(super) distiller: D,
    /// `None` before the first update.
    pub(super) moments: Option<Moments>,
    pub(super) updates: u64,
    config: OptimizerConfig,
}

impl<D: Distiller> Learner<D> {
    /// Makes a learner that starts from `distiller`, with an empty optimizer state.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting of the optimizer is out of range.
    pub fn new(distiller: D, config: OptimizerConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self::start(distiller.valid(), config))
    }

    /// [`new`](Self::new) for settings that were already checked and a distiller without autodiff.
    pub(crate) fn start(distiller: D, config: OptimizerConfig) -> Self {
        Self { distiller, moments: None, updates: 0, config }
    }

    /// The current distiller, without autodiff.
    pub fn distiller(&self) -> &D {
        &self.distiller
    }

    /// The number of updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Does one optimizer step on `hidden`. The returned loss and gradient norm are those before the step.
    ///
    /// A parameter that the loss does not reach, or that is frozen, is unchanged. Nothing is read back from the
    /// device.
    pub fn update(&mut self, hidden: &HiddenStates) -> Update {
        // Autodiff is on for this one pass only: it adds cost to every operation, and predictions need no gradients.
        let training = self.distiller.clone().train();
        let loss =
            training.loss(hidden.shallow().clone().autodiff(), hidden.deep().clone().autodiff());
        // The default loss is a mean over rows and width. Times the width, it is a sum over the width and still a mean
        // over the rows.
        let objective = match self.config.loss {
            LossReduction::Mean => loss.clone(),
            LossReduction::Sum => loss.clone().mul_scalar(hidden.d_model() as f32),
        };
        let mut gradients = Gradients { of: GradientsParams::new(), found: Vec::new() };
        // Without trainable parameters the loss has no graph, and `backward` would panic. The visit below then finds
        // no gradient, and `learned` is false.
        if objective.is_tracked() {
            gradients.of = GradientsParams::from_grads(objective.backward(), &training);
        }
        training.visit(&mut gradients);
        let gradients = gradients.found;
        let changes = gradients.iter().any(Option::is_some);
        let mut grad_norm = None;
        if changes {
            let mut parameters = flat_parameters(&self.distiller);
            // Made at the first update, so that a distiller that only predicts takes no memory for them.
            let moments =
                self.moments.get_or_insert_with(|| Moments::fresh(self.config.rule, &parameters));
            grad_norm = apply(&self.config, &[self.updates], &mut parameters, moments, gradients);
            self.updates += 1;
            self.distiller = with_parameters(self.distiller.clone(), parameters);
        }
        let grad_norm = grad_norm.map(|norm| norm.reshape([1]));
        Update { loss: loss.inner(), grad_norm, learned: changes }
    }
}

/// The loss and the gradient norm of an update.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Update {
    /// The loss before the update, `[1]`: that of [`Distiller::loss`], regardless of [`OptimizerConfig::loss`].
    pub loss: Tensor<1>,
    /// The norm of the gradient over all parameters together, before clipping, `[1]`. `None` without clipping.
    pub grad_norm: Option<Tensor<1>>,
    /// Whether a parameter was changed. False if there are none or all are frozen.
    pub learned: bool,
}

impl<D: std::fmt::Debug> std::fmt::Debug for Learner<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Learner").field("distiller", &self.distiller).finish_non_exhaustive()
    }
}

/// Returns the parameters of a module in the order in which burn visits them, `[1, 1, n]` each.
pub(super) fn flat_parameters<D: Module>(module: &D) -> Vec<Tensor<3>> {
    let mut parameters = Values(Vec::new());
    module.visit(&mut parameters);
    parameters.0
}

/// Returns the module with these parameters, `[1, 1, n]` each, in the order in which burn visits them.
pub(super) fn with_parameters<D: Module>(module: D, parameters: Vec<Tensor<3>>) -> D {
    module.map(&mut Write(parameters.into_iter()))
}

struct Values(Vec<Tensor<3>>);

impl ModuleVisitor for Values {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.0.push(flat(param.val()));
    }
}

struct Gradients {
    of: GradientsParams,
    found: Vec<Option<Gradient>>,
}

impl ModuleVisitor for Gradients {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.found.push(self.of.remove::<D>(param.id).map(|gradient| flat(gradient).into()));
    }
}

struct Write(std::vec::IntoIter<Tensor<3>>);

impl ModuleMapper for Write {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        match self.0.next() {
            Some(value) => param.map(|old| value.reshape(old.dims())),
            None => param,
        }
    }
}

// The update rules take `[slots, a, b]`. They work element by element, and the norm for clipping is over all elements,
// so one row is as good as the parameter's own shape.
fn flat<const D: usize>(tensor: Tensor<D>) -> Tensor<3> {
    let count = tensor.dims().iter().product::<usize>();
    tensor.reshape([1, 1, count])
}
