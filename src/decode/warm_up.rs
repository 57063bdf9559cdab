//! Warm-up on the prompt: the distiller learns from the prompt's hidden states during prefill, for requests that ask
//! for it.

use super::row::Row;
use crate::{
    hidden::{HiddenError, TapSite},
    id::CompletionId,
    sampler::{Sampler, StepError, WarmUp},
    tap::{HiddenStateTap, NoTap, SequenceTap},
};

/// The warm-up of one prompt, if its request asks for one: it records the hidden states of the prefill, and then does
/// the updates on them.
pub(super) struct PromptWarmUp {
    state: State,
    plain: NoTap,
}

enum State {
    Off,
    /// The prompt is being read.
    Records(SequenceTap, usize),
    /// The prompt has been read.
    Learns(WarmUp),
}

impl PromptWarmUp {
    /// Creates the warm-up for a prompt with this row. All of its rows come from one request, so any of them knows.
    pub(super) fn new(row: Option<&Row>, [shallow, deep]: [TapSite; 2]) -> Self {
        let state = match row.map_or(0, Row::prompt_warm_up) {
            0 => State::Off,
            updates => State::Records(SequenceTap::new(shallow, deep), updates),
        };
        Self { state, plain: NoTap }
    }

    /// A warm-up that records nothing.
    pub(super) fn off() -> Self {
        Self { state: State::Off, plain: NoTap }
    }

    /// The tap for the next forward pass.
    pub(super) fn tap(&mut self) -> &mut dyn HiddenStateTap {
        match &mut self.state {
            State::Records(tap, _) => tap,
            _ => &mut self.plain,
        }
    }

    /// Ends a forward pass over `positions` tokens of the prompt.
    pub(super) fn end_pass(&mut self, positions: usize) -> Result<(), HiddenError> {
        match &mut self.state {
            State::Records(tap, _) => tap.end_pass(positions),
            _ => Ok(()),
        }
    }

    /// The number of updates that are left for the distillers of these rows. Each counts once.
    pub(super) fn left(&self, sampler: &Sampler, rows: &[Option<Row>]) -> usize {
        match &self.state {
            State::Off => 0,
            State::Records(_, updates) => {
                sampler.distillers_of(&ids(rows)).saturating_mul(*updates)
            }
            State::Learns(warm_up) => sampler.warm_up_left(warm_up, &ids(rows)),
        }
    }

    /// Does up to `most` updates of the distillers of these rows, whose prompt has been read. Returns their number.
    pub(super) fn learn(
        &mut self,
        sampler: &mut Sampler,
        rows: &[Option<Row>],
        most: usize,
    ) -> Result<usize, StepError> {
        if let State::Records(tap, updates) = &mut self.state {
            self.state = State::Learns(sampler.begin_warm_up(&tap.take()?, *updates)?);
        }
        match &mut self.state {
            State::Learns(warm_up) => sampler.continue_warm_up(warm_up, &ids(rows), most),
            _ => Ok(0),
        }
    }
}

fn ids(rows: &[Option<Row>]) -> Vec<CompletionId> {
    rows.iter().flatten().map(|row| row.id).collect()
}
