//! Slots in separate memory: each slot is a stack of its own.

use burn::tensor::{Device, Tensor};

use super::{
    error::TrainError,
    slots::{Misfit, SlotRows, SlotTensors, Slots, keep, predict_one_by_one},
    stacked::StackedSlots,
};
use crate::{distiller::Distiller, hidden::HiddenStates, host::is_flex};

/// The analytic gradients of [`StackedSlots`], computed for one slot after the other.
///
/// On a CPU there are no kernel launches to save by batching, and the tensors of a batched product do not fit in the
/// caches. Here each active slot is updated in place, idle slots are not read, and no parameters are copied when slots
/// are added or removed.
#[derive(Clone, Debug)]
pub(crate) struct ApartSlots<D> {
    /// A stack without slots, which a new slot is made from.
    empty: StackedSlots<D>,
    slots: Vec<StackedSlots<D>>,
}

impl<D: Distiller> ApartSlots<D> {
    /// Makes the slots of a distiller that has a stacked form, from an empty stack.
    pub(crate) fn new(empty: StackedSlots<D>) -> Self {
        Self { empty, slots: Vec::new() }
    }

    /// Whether this path is faster than the stacked one on `device`. True on flex, where it was measured
    /// (docs/design/bank.md).
    pub(crate) fn is_faster_on(device: &Device) -> bool {
        is_flex(device)
    }
}

/// The same work for a stack that holds this slot only.
fn alone(slot: &SlotRows) -> [SlotRows; 1] {
    [SlotRows { slot: 0, done: slot.done, rows: (0..slot.rows.len()).collect() }]
}

impl<D: Distiller> Slots for ApartSlots<D> {
    fn len(&self) -> usize {
        self.slots.len()
    }

    fn add(&mut self, count: usize) {
        let mut fresh = self.empty.clone();
        fresh.add(1);
        // The clones share their tensors until the first update of each.
        self.slots.extend(std::iter::repeat_n(fresh, count));
    }

    fn keep(&mut self, places: &[usize]) {
        keep(&mut self.slots, places);
    }

    fn moves_for_free(&self) -> bool {
        true
    }

    fn predict(&self, work: &[SlotRows], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError> {
        // Each call works on a whole stack of one slot, so nothing is padded and no parameters are gathered.
        predict_one_by_one(work, shallow, |slot, shallow| {
            self.slots[slot.slot].predict(&alone(slot), &shallow)
        })
    }

    fn update(&mut self, work: &[SlotRows], hidden: &HiddenStates) -> Result<usize, TrainError> {
        let updates = work
            .iter()
            .map(|slot| self.slots[slot.slot].update(&alone(slot), &hidden.at(&slot.rows)));
        updates.sum()
    }

    fn rows_to_fit(&self) -> usize {
        self.empty.rows_to_fit()
    }

    fn fit(&mut self, place: usize, rows: &HiddenStates) -> bool {
        self.slots[place].fit(0, rows)
    }

    fn export(&self, place: usize) -> SlotTensors {
        self.slots[place].export(0)
    }

    fn state_bytes(&self) -> usize {
        self.slots.iter().map(StackedSlots::state_bytes).sum()
    }

    fn bytes_per_slot(&self) -> usize {
        self.empty.bytes_per_slot()
    }

    fn import(&mut self, place: usize, tensors: SlotTensors) -> Result<(), Misfit> {
        self.slots[place].import(0, tensors)
    }
}
