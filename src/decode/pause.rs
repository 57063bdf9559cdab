//! Pausing completions: their rows leave the batch, with their part of the cache, and come back later.

use super::{Batch, Decoder, FinishReason, RequestError, interrupted::Work, row::Row};
use crate::{
    causal_lm::{CausalLm, KvCache},
    id::CompletionId,
    novelty::Expects,
    sampler::StepError,
};

/// A completion that is not decoded for the time being.
pub(super) struct Paused<C> {
    pub(super) row: Row,
    /// The row's part of the cache.
    cache: C,
    /// Whether it comes back at the next step.
    pub(super) is_resumed: bool,
}

impl<M: CausalLm> Decoder<M> {
    /// Takes a running completion out of the batch until [`resume`](Self::resume), for example because its reader is
    /// slow. The others go on. It keeps its cache and its distiller, and continues with the tokens that it would have
    /// had; but completions that share a distiller with it learn without it meanwhile, so their tokens depend on the
    /// pause.
    ///
    /// Cost: the running rows are copied once, and once more when it is resumed.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when the completion is not running, [`RequestError::CannotPause`] when the
    /// cache cannot [split rows](KvCache::split_rows) or the completion contrasts with another model.
    pub fn pause(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        self.recover();
        let unknown = RequestError::UnknownCompletion { completion };
        let batch = self.batch.as_mut().ok_or_else(|| unknown.clone())?;
        let is_it = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.id == completion);
        let at = batch.rows.iter().position(is_it).ok_or(unknown)?;
        let refuse = |reason| RequestError::CannotPause { completion, reason };
        if batch.rows[at].as_ref().is_some_and(|row| row.expects() == Expects::OtherModel) {
            return Err(refuse("it contrasts with another model"));
        }
        let Ok(cache) = batch.cache.split_rows(&[at]) else {
            return Err(refuse("the key-value cache cannot split rows"));
        };
        if let Some(row) = batch.rows.remove(at) {
            self.paused.push(Paused { row, cache, is_resumed: false });
        }
        if batch.rows.iter().all(Option::is_none) {
            self.batch = None;
        }
        Ok(())
    }

    /// Lets a paused completion continue at the next step.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when the completion is not paused.
    pub fn resume(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        let paused = self.paused.iter_mut().find(|paused| paused.row.id == completion);
        let paused = paused.ok_or(RequestError::UnknownCompletion { completion })?;
        paused.is_resumed = true;
        Ok(())
    }

    /// The completions that are paused and have not been resumed.
    pub fn paused(&self) -> Vec<CompletionId> {
        let paused = self.paused.iter().filter(|paused| !paused.is_resumed);
        paused.map(|paused| paused.row.id).collect()
    }

    /// Puts resumed completions back into the batch.
    pub(super) fn rejoin(&mut self) -> Result<(), StepError> {
        while let Some(at) = self.paused.iter().position(|paused| paused.is_resumed) {
            self.work = Some(Work::Batch); // a panic may leave the cache of the running rows half changed
            let Paused { row, cache, .. } = self.paused.remove(at);
            let Some(batch) = &mut self.batch else {
                self.batch = Some(Batch { cache, rows: vec![Some(row)] });
                continue;
            };
            match batch.cache.append_rows(cache) {
                Ok(()) => batch.rows.push(Some(row)),
                Err(error) => {
                    self.hand_over(row, FinishReason::Aborted);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }
}
