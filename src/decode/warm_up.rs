//! Warm-up on the prompt: the distiller learns from the prompt's hidden states during prefill, for requests that ask
//! for it.

use super::row::Row;
use crate::{
    hidden::{HiddenError, TapSite},
    id::CompletionId,
    sampler::{Sampler, StepError},
    tap::{HiddenStateTap, NoTap, SequenceTap},
};

/// Records the hidden states of one prefill if its request asks for a warm-up; otherwise records nothing.
pub(super) struct PromptWarmUp {
    tap: Option<SequenceTap>,
    plain: NoTap,
    updates: usize,
}

impl PromptWarmUp {
    /// Creates the warm-up for a prompt with this row. All of its rows come from one request, so any of them knows.
    pub(super) fn new(row: Option<&Row>, [shallow, deep]: [TapSite; 2]) -> Self {
        let updates = row.map_or(0, Row::prompt_warm_up);
        let tap = (updates > 0).then(|| SequenceTap::new(shallow, deep));
        Self { tap, plain: NoTap, updates }
    }

    /// A warm-up that records nothing.
    pub(super) fn off() -> Self {
        Self { tap: None, plain: NoTap, updates: 0 }
    }

    /// The tap for the next forward pass.
    pub(super) fn tap(&mut self) -> &mut dyn HiddenStateTap {
        match &mut self.tap {
            Some(tap) => tap,
            None => &mut self.plain,
        }
    }

    /// Ends a forward pass over `positions` tokens of the prompt.
    pub(super) fn end_pass(&mut self, positions: usize) -> Result<(), HiddenError> {
        self.tap.as_mut().map_or(Ok(()), |tap| tap.end_pass(positions))
    }

    /// Warms up the distillers of the rows, each distiller once.
    pub(super) fn learn(self, sampler: &mut Sampler, rows: &[&Row]) -> Result<(), StepError> {
        let Some(mut tap) = self.tap else {
            return Ok(());
        };
        let prompt = tap.take()?;
        let rows: Vec<CompletionId> = rows.iter().map(|row| row.id).collect();
        sampler.warm_up(&rows, &prompt, self.updates)?;
        Ok(())
    }
}
