//! What the rows of a batch go through one by one: masks, choices and their end.

use std::collections::VecDeque;

use super::{Choices, Decoder, Event, FinishReason, interrupted::Work, other, row::Row};
use crate::{
    causal_lm::{CausalLm, KvCache},
    id::CompletionId,
    sampler::StepError,
    text::Detokenize,
};

impl<M: CausalLm> Decoder<M> {
    /// Ends the given rows of the batch. Their places stay until [`compact`](Self::compact); an empty batch is
    /// dropped.
    pub(super) fn end(&mut self, ended: Ended) {
        let Some(batch) = &mut self.batch else {
            return;
        };
        let rows = take_ended(&mut batch.rows, ended);
        // Without a running row, the whole batch goes, also if its cache could not drop single rows. Only then may the
        // next prompt of such a cache start.
        if batch.rows.iter().all(Option::is_none) {
            self.batch = None;
        }
        for (row, reason) in rows {
            self.hand_over(row, reason);
        }
    }

    /// Drops finished rows from the cache. A cache that cannot drop rows keeps them, and they are fed a dummy token.
    pub(super) fn compact(&mut self) -> Result<(), StepError> {
        if let Some(other) = &mut self.other {
            // The second model is told which completions are left, not which have ended. So its rows cannot diverge
            // from the batch's, in any order in which completions join and leave.
            let rows = self.batch.iter().flat_map(|batch| batch.rows.iter().flatten());
            let kept: Vec<CompletionId> = other::contrasted(rows).map(|row| row.id).collect();
            other.keep(&kept)?;
        }
        let Some(batch) = &mut self.batch else {
            return Ok(());
        };
        if batch.cache.can_drop_rows() && batch.rows.iter().any(Option::is_none) {
            batch.cache.keep_rows(&batch.live())?;
            batch.rows.retain(Option::is_some);
        }
        Ok(())
    }

    /// Ends a row: releases it from the sampler and queues its completion and the final event. Calls no code of the
    /// user.
    pub(super) fn hand_over(&mut self, row: Row, reason: FinishReason) {
        // Every completion that ends goes through here, so no distiller is kept for it.
        self.sampler.release(row.id);
        self.untold.extend(row.masker().map(|masker| (masker.clone(), row.id)));
        let (completion, text) = row.finish(reason, self.detokenizer.is_some());
        self.completions.push(completion.clone());
        self.events.push_back(Event::Finished { completion, text });
    }

    /// Tells the maskers which of their completions have ended. Call it last: a masker may panic.
    pub(super) fn tell_maskers(&mut self) {
        while let Some((masker, id)) = self.untold.pop_front() {
            masker.ended(id);
        }
    }

    /// Aborts all running rows.
    pub(super) fn abort(&mut self) {
        let rows = self.batch.take().into_iter().flat_map(|batch| batch.rows).flatten();
        for row in rows {
            self.hand_over(row, FinishReason::Aborted);
        }
    }
}

/// Places of rows that have ended, and why.
type Ended = Vec<(usize, FinishReason)>;

/// The rows that have not ended, with their places.
fn live_mut(rows: &mut [Option<Row>]) -> impl Iterator<Item = (usize, &mut Row)> {
    rows.iter_mut().enumerate().filter_map(|(at, row)| Some((at, row.as_mut()?)))
}

/// Makes the mask of every row for the next token. Returns the rows whose masker fails.
///
/// This comes before the forward pass, so that a masker that panics leaves every row as it was.
pub(super) fn make_masks(rows: &mut [Option<Row>], vocab: usize, work: &mut Option<Work>) -> Ended {
    let mut failed = Vec::new();
    for (at, row) in live_mut(rows) {
        *work = Some(Work::Mask(row.id));
        if let Err(error) = row.prepare(vocab) {
            failed.push((at, FinishReason::Failed(error)));
        }
    }
    *work = None;
    failed
}

/// Records the choice of each row that has not ended. Returns the rows that end with it.
pub(super) fn accept(
    rows: &mut [Option<Row>],
    choices: Choices,
    detokenizer: Option<&dyn Detokenize>,
    events: &mut VecDeque<Event>,
) -> Ended {
    let accepted = live_mut(rows).zip(choices);
    accepted
        .filter_map(|((at, row), choice)| Some((at, row.accept(choice, detokenizer, events)?)))
        .collect()
}

/// Takes rows from their places.
pub(super) fn take_ended(rows: &mut [Option<Row>], ended: Ended) -> Vec<(Row, FinishReason)> {
    ended.into_iter().filter_map(|(at, reason)| Some((rows[at].take()?, reason))).collect()
}
