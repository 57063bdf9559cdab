//! All slots in one batched product.

use std::sync::Arc;

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{Device, Int, Tensor},
};

use super::{
    error::TrainError,
    optimizer::{LossReduction, OptimizerConfig},
    rule::{Moments, apply, apply_joined, bytes},
    slots::{Misfit, SlotRows, SlotTensors, Slots, bytes_per_slot, check_fit, check_prediction},
};
use crate::{
    distiller::{Distiller, ForwardPass, Gradient, StackedDistiller},
    hidden::HiddenStates,
    host::{has_same_bits, is_flex},
    tensor::{from_f32, index, is_all},
};

/// The parameters of all slots, each parameter as one tensor `[slots, a, b]`, and likewise their moments.
///
/// Usually all slots have work, and a step updates these tensors in place. If some slots are idle, the step updates a
/// copy of the active slots and writes it back; the idle ones are bit-identical afterwards.
#[derive(Clone, Debug)]
pub(crate) struct StackedSlots<D> {
    network: Arc<dyn StackedDistiller>,
    optimizer: OptimizerConfig,
    distiller: D,
    /// The parameters of the template distiller, `[1, a, b]` each.
    template: Vec<Tensor<3>>,
    parameters: Vec<Tensor<3>>,
    moments: Moments,
    /// Whether the moments of all parameters are one tensor. On flex one pass over each parameter is faster.
    is_joined: bool,
    count: usize,
    /// What the last prediction computed with the present parameters.
    kept: Option<Kept>,
}

/// A prediction whose activations an update of the same rows starts from.
#[derive(Clone, Debug)]
struct Kept {
    active: Vec<usize>,
    shallow: Tensor<3>,
    pass: ForwardPass,
}

impl<D: Distiller> StackedSlots<D> {
    /// Makes the slots for a distiller that has a stacked form. Returns `None` if it has none, has no parameters, or
    /// has a parameter that is frozen or is neither a vector nor a matrix.
    pub(crate) fn new(distiller: &D, optimizer: OptimizerConfig) -> Option<Self> {
        let network = distiller.stacked()?;
        // Without a parameter there is nothing to stack, and no tensor whose device `index` could use.
        let template = stackable_parameters(distiller).filter(|template| !template.is_empty())?;
        let is_joined = template.len() > 1
            && Moments::per_parameter(optimizer.rule) > 0
            && !is_flex(&template[0].device());
        Some(Self {
            network,
            optimizer,
            distiller: distiller.clone(),
            parameters: Vec::new(),
            moments: Moments::default(),
            is_joined,
            template,
            count: 0,
            kept: None,
        })
    }

    /// Zero moments for these parameters, in the form in which they are kept.
    fn fresh_moments(&self, parameters: &[Tensor<3>]) -> Moments {
        let fresh = Moments::fresh(self.optimizer.rule, parameters);
        if self.is_joined { fresh.joined() } else { fresh }
    }

    /// The moments of a slot in the form in which they are kept, from one tensor per parameter.
    fn kept(&self, moments: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
        let is_joined = self.is_joined && !moments.is_empty();
        if is_joined { vec![Tensor::cat(moments, 0)] } else { moments }
    }

    /// The moments of a slot, one tensor per parameter, from the form in which they are kept.
    fn per_parameter(&self, moments: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
        let [joined] = moments.as_slice() else {
            return moments;
        };
        let mut start = 0;
        let parts = self.template.iter().map(|parameter| {
            let count = parameter.dims().iter().product();
            start += count;
            joined.clone().narrow(0, start - count, count)
        });
        parts.collect()
    }

    /// Returns the parameters and moments of the slots at `places`, without a copy if these are all slots in order.
    fn of(&self, places: &[usize]) -> Vec<Tensor<3>> {
        let Some(index) = self.index(places) else {
            return self.parameters.clone();
        };
        self.parameters.iter().map(|parameter| parameter.clone().select(0, index.clone())).collect()
    }

    /// Checks that the tensors of a slot fit.
    fn check(&self, tensors: &SlotTensors) -> Result<(), Misfit> {
        let sizes = |tensors: &[Tensor<3>]| -> Vec<usize> {
            tensors.iter().map(|t| t.dims()[1] * t.dims()[2]).collect()
        };
        let fresh = Moments::fresh(self.optimizer.rule, &self.template);
        check_fit("parameters", &sizes(&self.template), &tensors.parameters)?;
        check_fit("first moments", &sizes(&fresh.first), &tensors.first)?;
        check_fit("second moments", &sizes(&fresh.second), &tensors.second)
    }

    /// Returns the places as an index tensor, or `None` if they are all slots in order.
    fn index(&self, places: &[usize]) -> Option<Tensor<1, Int>> {
        let device = self.template[0].device();
        (!is_all(places, self.count)).then(|| index(places.iter().copied(), &device))
    }
}

impl<D: Distiller> Slots for StackedSlots<D> {
    fn len(&self) -> usize {
        self.count
    }

    fn add(&mut self, count: usize) {
        self.kept = None;
        let fresh: Vec<Tensor<3>> =
            self.template.iter().map(|parameter| parameter.clone().repeat_dim(0, count)).collect();
        let moments = self.fresh_moments(&fresh);
        let join = |mine, new| Tensor::cat(vec![mine, new], 0);
        if self.count == 0 {
            (self.parameters, self.moments) = (fresh, moments);
        } else {
            // This copies all slots, so it is done once for all new slots of a step, and there is no spare capacity:
            // idle slots in the stack would take part in every product, or force every step to gather the others
            // (docs/design/bank.md).
            let mine = std::mem::take(&mut self.parameters);
            self.parameters =
                mine.into_iter().zip(fresh).map(|(mine, new)| join(mine, new)).collect();
            self.moments = std::mem::take(&mut self.moments).zip(moments, join);
        }
        self.count += count;
    }

    fn keep(&mut self, places: &[usize]) {
        self.kept = None;
        if places.is_empty() {
            (self.parameters, self.moments) = (Vec::new(), Moments::default());
        } else if let Some(index) = self.index(places) {
            let pick = |tensor: Tensor<3>| tensor.select(0, index.clone());
            self.parameters = std::mem::take(&mut self.parameters).into_iter().map(pick).collect();
            self.moments = std::mem::take(&mut self.moments).map(pick);
        }
        self.count = places.len();
    }

    fn moves_for_free(&self) -> bool {
        false
    }

    fn predict(&mut self, work: &[SlotRows], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError> {
        let grid = Grid::new(work, shallow.device());
        let shallow = grid.lay_out(shallow);
        let shape = shallow.dims();
        let active: Vec<usize> = work.iter().map(|slot| slot.slot).collect();
        let pass = self.network.forward(&self.of(&active), shallow.clone());
        check_prediction(shape, pass.expected.dims())?;
        let expected = grid.gather(pass.expected.clone());
        // Elsewhere than in host memory the update could not compare the rows without a transfer.
        let is_of_use = is_flex(&grid.device) && !pass.activations.is_empty();
        self.kept = is_of_use.then_some(Kept { active, shallow, pass });
        Ok(expected)
    }

    fn update(&mut self, work: &[SlotRows], hidden: &HiddenStates) -> Result<usize, TrainError> {
        if work.is_empty() {
            return Ok(0);
        }
        let active: Vec<usize> = work.iter().map(|slot| slot.slot).collect();
        let done: Vec<u64> = work.iter().map(|slot| slot.done).collect();
        let grid = Grid::new(work, hidden.device());
        let weight = grid.weights(hidden.d_model(), self.optimizer.loss);
        let (shallow, deep) = (grid.lay_out(hidden.shallow()), grid.lay_out(hidden.deep()));
        // The prediction computed the same if its rows were the same: the parameters still are.
        let kept = self
            .kept
            .take()
            .filter(|kept| kept.active == active && has_same_bits(&kept.shallow, &shallow));
        let network = &self.network;
        let gradients = |parameters: &[Tensor<3>]| {
            let gradients = match kept {
                Some(kept) => network.gradients_after(kept.pass, parameters, shallow, deep, weight),
                None => network.gradients(parameters, shallow, deep, weight),
            };
            check_gradients(parameters, &gradients)?;
            Ok::<_, TrainError>(gradients)
        };
        let (optimizer, is_joined) = (&self.optimizer, self.is_joined);
        let update =
            |parameters: &mut [Tensor<3>], moments: &mut Moments, gradients: Vec<Gradient>| {
                if is_joined {
                    apply_joined(optimizer, &done, parameters, moments, gradients);
                } else {
                    let gradients = gradients.into_iter().map(Some).collect();
                    apply(optimizer, &done, parameters, moments, gradients);
                }
            };
        // All slots are active, in order: update the tensors in place, without a copy.
        let Some(index) = self.index(&active) else {
            let gradients = gradients(&self.parameters)?;
            update(&mut self.parameters, &mut self.moments, gradients);
            return Ok(work.len());
        };
        // Some slots are idle: update a copy of the active ones and write it back slot by slot.
        let mut parameters = self.of(&active);
        let gradients = gradients(&parameters)?;
        let mut moments = self.moments.clone().map(|tensor| tensor.select(0, index.clone()));
        update(&mut parameters, &mut moments, gradients);
        // `select_assign` would be one operation instead of one per slot, but it adds to the old value, and adding a
        // difference does not give exactly the new value.
        let write = |mut all: Tensor<3>, some: Tensor<3>| {
            let [_, a, b] = all.dims();
            for (at, &place) in active.iter().enumerate() {
                let slot = some.clone().narrow(0, at, 1);
                all = all.slice_assign([place..place + 1, 0..a, 0..b], slot);
            }
            all
        };
        // Taken out of `self`, so that each tensor has one owner and is written in place.
        let all = std::mem::take(&mut self.parameters);
        self.parameters =
            all.into_iter().zip(parameters).map(|(all, some)| write(all, some)).collect();
        self.moments = std::mem::take(&mut self.moments).zip(moments, write);
        Ok(work.len())
    }

    fn rows_to_fit(&self) -> usize {
        self.distiller.rows_to_fit()
    }

    fn fit(&mut self, place: usize, rows: &HiddenStates) -> bool {
        let fitted = self.distiller.fit(rows.shallow(), rows.deep());
        let Some(parameters) = fitted.and_then(|distiller| stackable_parameters(&distiller)) else {
            return false;
        };
        let flat = |tensors: Vec<Tensor<3>>| {
            tensors.into_iter().map(|tensor| tensor.flatten::<1>(0, 2)).collect::<Vec<_>>()
        };
        let fresh = Moments::fresh(self.optimizer.rule, &parameters);
        // Moments describe gradients at the parameters that the fit replaces, so they start again too.
        let tensors = SlotTensors {
            parameters: flat(parameters),
            first: flat(fresh.first),
            second: flat(fresh.second),
        };
        self.import(place, tensors).is_ok()
    }

    fn export(&self, place: usize) -> SlotTensors {
        let flat = |tensors: &[Tensor<3>]| {
            tensors.iter().map(|t| t.clone().narrow(0, place, 1).flatten::<1>(0, 2)).collect()
        };
        SlotTensors {
            parameters: flat(&self.parameters),
            first: self.per_parameter(flat(&self.moments.first)),
            second: self.per_parameter(flat(&self.moments.second)),
        }
    }

    fn state_bytes(&self) -> usize {
        bytes(&self.parameters) + self.moments.bytes()
    }

    fn bytes_per_slot(&self) -> usize {
        bytes_per_slot(&self.template, self.optimizer.rule)
    }

    fn import(&mut self, place: usize, tensors: SlotTensors) -> Result<(), Misfit> {
        self.check(&tensors)?;
        self.kept = None;
        let write = |all: &mut Vec<Tensor<3>>, new: Vec<Tensor<1>>| {
            for (all, new) in all.iter_mut().zip(new) {
                let [_, a, b] = all.dims();
                let new = new.reshape([1, a, b]);
                all.inplace(|all| all.slice_assign([place..place + 1, 0..a, 0..b], new));
            }
        };
        write(&mut self.parameters, tensors.parameters);
        let (first, second) = (self.kept(tensors.first), self.kept(tensors.second));
        write(&mut self.moments.first, first);
        write(&mut self.moments.second, second);
        Ok(())
    }

    /// Joins the tensors of all slots at once. One slot after the other would copy the stack for each.
    fn append(&mut self, slots: Vec<SlotTensors>) -> Result<(), Misfit> {
        slots.iter().try_for_each(|tensors| self.check(tensors))?;
        self.kept = None;
        let count = slots.len();
        let kept = |tensors: SlotTensors| SlotTensors {
            first: self.kept(tensors.first),
            second: self.kept(tensors.second),
            ..tensors
        };
        let slots: Vec<SlotTensors> = slots.into_iter().map(kept).collect();
        let fresh = self.fresh_moments(&self.template);
        let join = |mine: &mut Vec<Tensor<3>>,
                    template: &[Tensor<3>],
                    of: fn(&SlotTensors) -> &[Tensor<1>]| {
            let stacks = std::mem::take(mine).into_iter().map(Some);
            let stacks = stacks.chain(std::iter::repeat(None));
            for (at, (template, stack)) in template.iter().zip(stacks).enumerate() {
                let [_, a, b] = template.dims();
                let new = slots.iter().map(|tensors| of(tensors)[at].clone().reshape([1, a, b]));
                mine.push(Tensor::cat(stack.into_iter().chain(new).collect(), 0));
            }
        };
        if count > 0 {
            join(&mut self.parameters, &self.template, |tensors| &tensors.parameters);
            join(&mut self.moments.first, &fresh.first, |tensors| &tensors.first);
            join(&mut self.moments.second, &fresh.second, |tensors| &tensors.second);
        }
        self.count += count;
        Ok(())
    }
}

/// Checks the shapes of the gradients: a user's distiller may return any.
fn check_gradients(parameters: &[Tensor<3>], gradients: &[Gradient]) -> Result<(), TrainError> {
    let expected: Vec<_> = parameters.iter().map(|parameter| parameter.dims()).collect();
    let got = gradients.iter().enumerate().map(|(parameter, gradient)| {
        let misfit = |[inputs, upstream]: [_; 2]| TrainError::GradientFactors {
            parameter,
            inputs,
            upstream,
        };
        gradient.dims().map_err(misfit)
    });
    let got = got.collect::<Result<Vec<_>, _>>()?;
    if expected == got {
        return Ok(());
    }
    Err(TrainError::Gradients { expected, got })
}

/// The rows of a step laid out by slot, `[slots, width]`, where `width` is the largest number of rows of a slot.
struct Grid<'a> {
    work: &'a [SlotRows],
    width: usize,
    /// Whether the rows are already in this order and every slot has `width` of them.
    in_order: bool,
    device: Device,
}

impl<'a> Grid<'a> {
    fn new(work: &'a [SlotRows], device: Device) -> Self {
        let width = work.iter().map(|slot| slot.rows.len()).max().unwrap_or(0);
        let even = work.iter().all(|slot| slot.rows.len() == width);
        let order = work.iter().flat_map(|slot| slot.rows.iter().copied());
        let in_order = even && order.enumerate().all(|(at, row)| at == row);
        Self { work, width, in_order, device }
    }

    /// Lays out `[rows, d]` as `[slots, width, d]`. A slot with fewer rows is padded with its first row.
    fn lay_out(&self, rows: &Tensor<2>) -> Tensor<3> {
        let [_, d] = rows.dims();
        let shape = [self.work.len(), self.width, d];
        if self.in_order {
            return rows.clone().reshape(shape);
        }
        // Padding has weight 0 in the loss, but its gradient must be finite, because 0 · NaN is NaN. A row of the slot
        // is: rows that are not finite are not learned from.
        let fill = |slot: &'a SlotRows| {
            (0..self.width).map(|at| *slot.rows.get(at).unwrap_or(&slot.rows[0]))
        };
        let index = index(self.work.iter().flat_map(fill), &self.device);
        rows.clone().select(0, index).reshape(shape)
    }

    /// Returns `[slots, width, d]` to `[rows, d]`, without the padding.
    fn gather(&self, grid: Tensor<3>) -> Tensor<2> {
        let [slots, width, d] = grid.dims();
        let flat = grid.reshape([slots * width, d]);
        if self.in_order {
            return flat;
        }
        let mut places = vec![0; self.work.iter().map(|slot| slot.rows.len()).sum()];
        for (slot, work) in self.work.iter().enumerate() {
            for (at, &row) in work.rows.iter().enumerate() {
                places[row] = slot * width + at;
            }
        }
        flat.select(0, index(places, &self.device))
    }

    /// Returns the weight of each row's squared error in the loss, `[slots, width, 1]`: one over the number of rows of
    /// its slot, also divided by `d_model` if the loss is a mean over the width; 0 for padding.
    fn weights(&self, d_model: usize, loss: LossReduction) -> Tensor<3> {
        let per_row = match loss {
            LossReduction::Mean => 1.0 / d_model as f32,
            LossReduction::Sum => 1.0,
        };
        // Each slot has its own mean. With a mean over the whole stack, the gradient of a slot would depend on the
        // number of slots.
        let weights = self.work.iter().flat_map(|slot| {
            let rows = slot.rows.len();
            let weight = per_row / rows as f32;
            (0..self.width).map(move |at| if at < rows { weight } else { 0.0 })
        });
        from_f32(weights.collect(), [self.work.len(), self.width, 1], &self.device)
    }
}

/// Returns the parameters of a module in the order in which burn visits them, `[1, a, b]` each, or `None` if one is
/// frozen or is neither a vector nor a matrix.
fn stackable_parameters<M: Module>(module: &M) -> Option<Vec<Tensor<3>>> {
    struct Stackable(Option<Vec<Tensor<3>>>);
    impl ModuleVisitor for Stackable {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            if D > 2 || !value.is_require_grad() {
                self.0 = None;
            }
            if let Some(found) = &mut self.0 {
                found.push(value.inner().unsqueeze());
            }
        }
    }
    let mut found = Stackable(Some(Vec::new()));
    // `train` turns autodiff on: a plain tensor does not show whether its parameter is frozen.
    module.clone().train().visit(&mut found);
    found.0
}
