//! Slots in separate memory: each slot is a stack of its own.

use burn::tensor::{Device, Tensor};

use super::{
    error::TrainError,
    slots::{Misfit, SlotRows, SlotTensors, Slots, in_order_of_rows, keep},
    stacked::StackedSlots,
};
use crate::{
    distiller::Distiller,
    hidden::HiddenStates,
    host::{WORK_OF_A_THREAD, is_flex, share_each},
    tensor::select_rows,
};

/// The analytic gradients of [`StackedSlots`], computed for one slot after the other.
///
/// On a CPU there are no kernel launches to save by batching, and the tensors of a batched product do not fit in the
/// caches. Here each active slot is updated in place, idle slots are not read, and no parameters are copied when slots
/// are added or removed. Threads take one slot each, unless a slot is worth more of them than there are slots.
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

    /// Calls `call` for every slot of `work`, with what `input` selects for it. The results are in the order of `work`.
    fn each<I: Send, R: Send>(
        &mut self,
        work: &[SlotRows],
        input: impl Fn(&SlotRows) -> I,
        call: impl Fn(&mut StackedSlots<D>, &[SlotRows], I) -> Result<R, TrainError> + Sync,
    ) -> Result<Vec<R>, TrainError> {
        let most_rows = work.iter().map(|slot| slot.rows.len()).max().unwrap_or(0);
        let mut stacks: Vec<_> = self.slots.iter_mut().map(Some).collect();
        let mut results: Vec<Option<Result<R, TrainError>>> = Vec::new();
        results.resize_with(work.len(), || None);
        let parts = work.iter().zip(&mut results);
        let parts = parts
            .map(|(slot, result)| (stacks[slot.slot].take(), alone(slot), input(slot), result));
        // About the multiply-adds of one pass: with Adam, a slot's bytes are four numbers per parameter.
        let work_of_a_slot = self.empty.bytes_per_slot() / (4 * size_of::<f32>()) * most_rows;
        share_each(
            work_of_a_slot,
            WORK_OF_A_THREAD,
            parts.collect::<Vec<_>>().into_iter(),
            |(stack, alone, input, result)| {
                *result = stack.map(|stack| call(stack, &alone, input));
            },
        );
        results.into_iter().flatten().collect()
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

    fn predict(&mut self, work: &[SlotRows], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError> {
        // Each call works on a whole stack of one slot, so nothing is padded and no parameters are gathered.
        let select = |slot: &SlotRows| select_rows(shallow, &slot.rows);
        let predict = |stack: &mut StackedSlots<D>, work: &[SlotRows], shallow: Tensor<2>| {
            stack.predict(work, &shallow)
        };
        Ok(in_order_of_rows(work, self.each(work, select, predict)?))
    }

    fn update(&mut self, work: &[SlotRows], hidden: &HiddenStates) -> Result<usize, TrainError> {
        let select = |slot: &SlotRows| hidden.at(&slot.rows);
        let update = |stack: &mut StackedSlots<D>, work: &[SlotRows], hidden: HiddenStates| {
            stack.update(work, &hidden)
        };
        Ok(self.each(work, select, update)?.into_iter().sum())
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
