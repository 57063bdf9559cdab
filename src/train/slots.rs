//! The distillers of all slots, and the work of a step.

use std::fmt::Debug;

use burn::tensor::Tensor;

use super::{
    error::TrainError,
    optimizer::{OptimizerConfig, UpdateRule},
    rule::{Moments, bytes},
    update::{Learner, flat_parameters, with_parameters},
};
use crate::{distiller::Distiller, hidden::HiddenStates, tensor::select_rows};

/// The rows that one slot has in a step. Every row of a step belongs to one slot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SlotRows {
    /// The place of the slot.
    pub(crate) slot: usize,
    /// The number of updates that the slot has had.
    pub(crate) done: u64,
    /// The places of the rows in the step's tensors.
    pub(crate) rows: Vec<usize>,
}

/// Everything that a slot has learned, as plain tensors, for export and import.
#[derive(Clone, Debug, Default)]
pub(crate) struct SlotTensors {
    pub(crate) parameters: Vec<Tensor<1>>,
    pub(crate) first: Vec<Tensor<1>>,
    pub(crate) second: Vec<Tensor<1>>,
}

impl SlotTensors {
    /// The numbers of parameters, first moments and second moments.
    pub(crate) fn counts(&self) -> [usize; 3] {
        [&self.parameters, &self.first, &self.second].map(Vec::len)
    }
}

/// The parameters and optimizer states of all slots, by place. Slots start as copies of one template, so what a slot
/// learns does not depend on when it was created.
///
/// Three implementations compute the same: [`SeparateSlots`], one slot after the other with autodiff, works for any
/// distiller and is the test oracle; [`StackedSlots`](super::StackedSlots) computes all slots in one batched product;
/// and [`ApartSlots`](super::ApartSlots) keeps each slot in a stack of its own.
pub(crate) trait Slots: Clone + Debug + Send + 'static {
    /// Number of slots.
    fn len(&self) -> usize;

    /// Appends `count` fresh slots.
    fn add(&mut self, count: usize);

    /// Keeps the slots at these places, which are distinct, in this order.
    fn keep(&mut self, places: &[usize]);

    /// Whether `keep` moves slots without copying their parameters.
    fn moves_for_free(&self) -> bool;

    /// Returns the expected deep states, `[rows, d_model]`, in the order of the rows of `shallow`.
    fn predict(&mut self, work: &[SlotRows], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError>;

    /// Does one update of each slot that has work; the others are unchanged. Returns the number of slots that have
    /// changed.
    fn update(&mut self, work: &[SlotRows], hidden: &HiddenStates) -> Result<usize, TrainError>;

    /// The number of rows that a slot needs before it is fitted; 0 if the distiller cannot be fitted.
    fn rows_to_fit(&self) -> usize;

    /// Fits a slot to rows and resets its optimizer state. Returns whether the fit succeeded.
    fn fit(&mut self, place: usize, rows: &HiddenStates) -> bool;

    /// Returns what a slot has learned.
    fn export(&self, place: usize) -> SlotTensors;

    /// The size of all parameters and moments in bytes.
    fn state_bytes(&self) -> usize;

    /// The size of one slot at most, in bytes: parameters, moments, and the gradients of an update.
    fn bytes_per_slot(&self) -> usize;

    /// Replaces what a slot has learned. If a tensor does not fit, returns its name and the expected and actual
    /// numbers of values.
    fn import(&mut self, place: usize, tensors: SlotTensors) -> Result<(), Misfit>;

    /// Appends slots that have learned, at a cost that is linear in their number. The error is that of
    /// [`import`](Self::import).
    fn append(&mut self, slots: Vec<SlotTensors>) -> Result<(), Misfit> {
        for tensors in slots {
            let place = self.len();
            self.add(1);
            self.import(place, tensors)?;
        }
        Ok(())
    }
}

/// A tensor, or a list of tensors, that does not fit the distiller.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Misfit {
    pub(crate) what: String,
    pub(crate) expected: usize,
    pub(crate) got: usize,
}

/// Compares the lengths of `got` with the expected ones.
pub(super) fn check_fit(what: &str, expected: &[usize], got: &[Tensor<1>]) -> Result<(), Misfit> {
    let misfit = |what: String, expected, got| Err(Misfit { what, expected, got });
    if expected.len() != got.len() {
        return misfit(format!("number of tensors in {what}"), expected.len(), got.len());
    }
    for (at, (&expected, got)) in expected.iter().zip(got).enumerate() {
        let got = got.dims()[0];
        if expected != got {
            return misfit(format!("values in {what} {at}"), expected, got);
        }
    }
    Ok(())
}

/// One learner for each slot.
#[derive(Clone, Debug)]
pub(crate) struct SeparateSlots<D> {
    template: D,
    optimizer: OptimizerConfig,
    learners: Vec<Learner<D>>,
}

impl<D: Distiller> SeparateSlots<D> {
    pub(crate) fn new(template: D, optimizer: OptimizerConfig) -> Self {
        Self { template, optimizer, learners: Vec::new() }
    }
}

impl<D: Distiller> Slots for SeparateSlots<D> {
    fn len(&self) -> usize {
        self.learners.len()
    }

    fn add(&mut self, count: usize) {
        let fresh = Learner::start(self.template.clone(), self.optimizer);
        self.learners.extend(std::iter::repeat_n(fresh, count));
    }

    fn keep(&mut self, places: &[usize]) {
        keep(&mut self.learners, places);
    }

    fn moves_for_free(&self) -> bool {
        true
    }

    fn predict(&mut self, work: &[SlotRows], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError> {
        let expected = work.iter().map(|slot| {
            let shallow = select_rows(shallow, &slot.rows);
            let shape = shallow.dims();
            let prediction = self.learners[slot.slot].distiller.predict(shallow);
            check_prediction(shape, prediction.dims())?;
            Ok(prediction)
        });
        Ok(in_order_of_rows(work, expected.collect::<Result<_, _>>()?))
    }

    fn update(&mut self, work: &[SlotRows], hidden: &HiddenStates) -> Result<usize, TrainError> {
        let updated = work.iter().filter(|slot| {
            let learner = &mut self.learners[slot.slot];
            // The count is kept with the slot, where a fit resets it and a snapshot restores it. The learner's own
            // count is only used by a learner on its own.
            learner.updates = slot.done;
            learner.update(&hidden.at(&slot.rows)).learned
        });
        Ok(updated.count())
    }

    fn rows_to_fit(&self) -> usize {
        self.template.rows_to_fit()
    }

    fn fit(&mut self, place: usize, rows: &HiddenStates) -> bool {
        let fitted = self.template.fit(rows.shallow(), rows.deep());
        fitted.is_some_and(|distiller| {
            self.learners[place] = Learner::start(distiller.valid(), self.optimizer);
            true
        })
    }

    fn export(&self, place: usize) -> SlotTensors {
        let learner = &self.learners[place];
        let parameters = flat_parameters(&learner.distiller);
        let moments = match &learner.moments {
            Some(moments) => moments.clone(),
            // No update yet. All stores export the same tensors, and a stack has moments from the start.
            None => Moments::fresh(self.optimizer.rule, &parameters),
        };
        let flat = |tensors: Vec<Tensor<3>>| {
            tensors.into_iter().map(|t| t.flatten::<1>(0, 2)).collect::<Vec<_>>()
        };
        SlotTensors {
            parameters: flat(parameters),
            first: flat(moments.first),
            second: flat(moments.second),
        }
    }

    fn state_bytes(&self) -> usize {
        let of = |learner: &Learner<D>| {
            let moments = learner.moments.as_ref().map_or(0, Moments::bytes);
            bytes(&flat_parameters(&learner.distiller)) + moments
        };
        self.learners.iter().map(of).sum()
    }

    fn bytes_per_slot(&self) -> usize {
        bytes_per_slot(&flat_parameters(&self.template), self.optimizer.rule)
    }

    fn import(&mut self, place: usize, tensors: SlotTensors) -> Result<(), Misfit> {
        let template = flat_parameters(&self.template);
        let fresh = Moments::fresh(self.optimizer.rule, &template);
        let sizes = |tensors: &[Tensor<3>]| -> Vec<usize> {
            tensors.iter().map(|tensor| tensor.dims()[2]).collect()
        };
        check_fit("parameters", &sizes(&template), &tensors.parameters)?;
        check_fit("first moments", &sizes(&fresh.first), &tensors.first)?;
        check_fit("second moments", &sizes(&fresh.second), &tensors.second)?;
        let back = |tensors: Vec<Tensor<1>>| {
            tensors.into_iter().map(|tensor| tensor.unsqueeze::<3>()).collect::<Vec<_>>()
        };
        let learner = &mut self.learners[place];
        learner.distiller = with_parameters(self.template.clone(), back(tensors.parameters));
        learner.moments =
            Some(Moments { first: back(tensors.first), second: back(tensors.second) });
        Ok(())
    }
}

/// [`Slots::bytes_per_slot`] of a distiller with these parameters.
pub(super) fn bytes_per_slot(parameters: &[Tensor<3>], rule: UpdateRule) -> usize {
    bytes(parameters) * (2 + Moments::per_parameter(rule))
}

/// Keeps the items at these places, which are distinct, in this order.
pub(super) fn keep<T>(items: &mut Vec<T>, places: &[usize]) {
    let mut all: Vec<Option<T>> = std::mem::take(items).into_iter().map(Some).collect();
    *items = places.iter().filter_map(|&place| all[place].take()).collect();
}

/// Returns the predictions of all slots, one tensor each, in the order of the step's rows.
pub(super) fn in_order_of_rows(work: &[SlotRows], expected: Vec<Tensor<2>>) -> Tensor<2> {
    select_rows(&Tensor::cat(expected, 0), &places(work))
}

/// Returns the index of each row of the step in the concatenation of all slots' rows.
fn places(work: &[SlotRows]) -> Vec<usize> {
    let order: Vec<usize> = work.iter().flat_map(|slot| slot.rows.iter().copied()).collect();
    let mut places = vec![0; order.len()];
    for (at, &row) in order.iter().enumerate() {
        places[row] = at;
    }
    places
}

/// Checks a prediction's shape: a user's distiller may return any.
pub(super) fn check_prediction<const D: usize>(
    expected: [usize; D],
    got: [usize; D],
) -> Result<(), TrainError> {
    // Without the check, a width of 1 would not fail: it would be broadcast when the deep states are subtracted.
    if expected == got {
        return Ok(());
    }
    Err(TrainError::Prediction { expected: expected.to_vec(), got: got.to_vec() })
}
