//! Pausing completions: their rows leave the batch, with their part of the cache, and come back later.

use super::{Decoder, FinishReason, RequestError, interrupted::Work, row::Row};
use crate::{
    causal_lm::{CausalLm, KvCache, ModelError},
    id::CompletionId,
    novelty::Expects,
    sampler::StepError,
};

/// Completions that have been paused at the same time, and are not decoded for the time being.
// They share a cache, because moving each row to a cache of its own would copy the remaining ones every time.
pub(super) struct Paused<C> {
    /// The rows of the cache, in its order.
    rows: Vec<PausedRow>,
    cache: C,
}

struct PausedRow {
    row: Row,
    /// Whether it comes back at the next step.
    is_resumed: bool,
}

impl<C> Paused<C> {
    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> + Clone {
        self.rows.iter().map(|paused| &paused.row)
    }

    /// Whether one of them comes back at the next step.
    pub(super) fn is_resumed(&self) -> bool {
        self.rows.iter().any(|paused| paused.is_resumed)
    }
}

impl<M: CausalLm> Decoder<M> {
    /// Takes a running completion out of the batch until [`resume`](Self::resume), for example because its reader is
    /// slow. The others go on. It keeps its cache and its distiller, and continues with the tokens that it would have
    /// had; but completions that share a distiller with it learn without it meanwhile, so their tokens depend on the
    /// pause.
    ///
    /// Cost: the running rows are copied once, and once more when it is resumed. Completions that are resumed between
    /// the same two steps join each other first, so they copy the running rows once together.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when the completion is not running, [`RequestError::CannotPause`] when the
    /// cache cannot [split rows](KvCache::split_rows) or the completion contrasts with another model.
    pub fn pause(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        self.pause_all(&[completion]).into_iter().collect()
    }

    /// [`pause`](Self::pause) for several completions, which copies the running rows only once. Returns a result for
    /// each of them.
    pub(crate) fn pause_all(
        &mut self,
        completions: &[CompletionId],
    ) -> Vec<Result<(), RequestError>> {
        self.recover();
        let places: Vec<Result<usize, RequestError>> =
            completions.iter().map(|&completion| self.place_to_pause(completion)).collect();
        let mut leaving: Vec<usize> = places.iter().flatten().copied().collect();
        leaving.sort_unstable();
        leaving.dedup();
        let are_paused = leaving.is_empty() || self.take_out(&leaving);
        let results = places.into_iter().zip(completions).map(|(place, &completion)| {
            let reason = "the key-value cache cannot split rows";
            let refused = RequestError::CannotPause { completion, reason };
            place.and(if are_paused { Ok(()) } else { Err(refused) })
        });
        results.collect()
    }

    /// The place in the batch of a completion that is to pause.
    fn place_to_pause(&self, completion: CompletionId) -> Result<usize, RequestError> {
        let mut rows = self.batch.iter().flat_map(|batch| batch.rows.iter().enumerate());
        let found = rows.find_map(|(at, row)| {
            row.as_ref().filter(|row| row.id == completion).map(|row| (at, row.expects()))
        });
        let (at, expects) = found.ok_or(RequestError::UnknownCompletion { completion })?;
        if expects == Expects::OtherModel {
            let reason = "it contrasts with another model";
            return Err(RequestError::CannotPause { completion, reason });
        }
        Ok(at)
    }

    /// Moves the rows at these places of the batch, in ascending order, to a cache of their own. Returns whether the
    /// cache can do that.
    fn take_out(&mut self, places: &[usize]) -> bool {
        let Some(batch) = &mut self.batch else {
            return false;
        };
        self.work = Some(Work::Batch); // a panic may leave the cache half changed
        let split = batch.cache.split_rows(places);
        self.work = None;
        let Ok(cache) = split else {
            return false;
        };
        let (mut at, mut rows) = (0, Vec::with_capacity(places.len()));
        batch.rows.retain_mut(|row| {
            let is_leaving = places.contains(&at);
            at += 1;
            if is_leaving {
                rows.extend(row.take().map(|row| PausedRow { row, is_resumed: false }));
            }
            !is_leaving
        });
        if batch.rows.iter().all(Option::is_none) {
            self.batch = None;
        }
        self.paused.push(Paused { rows, cache });
        true
    }

    /// Lets a paused completion continue at the next step.
    ///
    /// # Errors
    ///
    /// [`RequestError::UnknownCompletion`] when the completion is not paused.
    pub fn resume(&mut self, completion: CompletionId) -> Result<(), RequestError> {
        let mut paused = self.paused.iter_mut().flat_map(|paused| &mut paused.rows);
        let paused = paused.find(|paused| paused.row.id == completion);
        let paused = paused.ok_or(RequestError::UnknownCompletion { completion })?;
        paused.is_resumed = true;
        Ok(())
    }

    /// The completions that are paused and have not been resumed.
    pub fn paused(&self) -> Vec<CompletionId> {
        let paused = self.paused.iter().flat_map(|paused| &paused.rows);
        paused.filter(|paused| !paused.is_resumed).map(|paused| paused.row.id).collect()
    }

    /// Puts resumed completions back into the batch.
    pub(super) fn rejoin(&mut self) -> Result<(), StepError> {
        // With each other first, so that the running rows are copied once.
        let mut resumed: Option<M::Cache> = None;
        while let Some(at) = self.paused.iter().position(Paused::is_resumed) {
            self.work = Some(Work::Join);
            let joined = self.take_resumed(at).and_then(|cache| match &mut resumed {
                Some(others) => Ok(others.append_rows(cache)?),
                None => {
                    resumed = Some(cache);
                    Ok(())
                }
            });
            if let Err(error) = joined {
                self.abort_joining();
                return Err(error);
            }
        }
        resumed.map_or(Ok(()), |cache| self.join(cache))
    }

    /// Moves the resumed rows of one part of the paused completions to the joining ones. Returns their cache.
    fn take_resumed(&mut self, at: usize) -> Result<M::Cache, StepError> {
        let Paused { rows, cache } = self.paused.remove(at);
        let places: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_resumed).collect();
        let (resumed, stay): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_resumed);
        self.joining.extend(resumed.into_iter().map(|paused| Some(paused.row)));
        if stay.is_empty() {
            return Ok(cache);
        }
        Ok(self.keep_paused(at, stay, cache, |cache| cache.split_rows(&places))?)
    }

    /// Ends the paused rows for which `is_ended` returns true, frees their part of the cache, and returns their number.
    pub(super) fn end_paused(
        &mut self,
        is_ended: impl Fn(CompletionId) -> bool,
        reason: &FinishReason,
    ) -> usize {
        let mut count = 0;
        let mut at = 0;
        while let Some(paused) = self.paused.get(at) {
            if !paused.rows().any(|row| is_ended(row.id)) {
                at += 1;
                continue;
            }
            let Paused { rows, cache } = self.paused.remove(at);
            let kept: Vec<usize> =
                (0..rows.len()).filter(|&at| !is_ended(rows[at].row.id)).collect();
            count += rows.len() - kept.len();
            let (ended, stay): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|paused| is_ended(paused.row.id));
            for paused in ended {
                self.hand_over(paused.row, reason.clone());
            }
            if !stay.is_empty()
                && self.keep_paused(at, stay, cache, |cache| cache.keep_rows(&kept)).is_err()
            {
                self.abort_joining();
            }
            self.work = None;
        }
        count
    }

    /// Puts rows back to the paused ones, at this place, after a change of their cache.
    fn keep_paused<T>(
        &mut self,
        at: usize,
        rows: Vec<PausedRow>,
        mut cache: M::Cache,
        change: impl FnOnce(&mut M::Cache) -> Result<T, ModelError>,
    ) -> Result<T, ModelError> {
        // They count as joining until their cache is known to be whole, so that they end after an error or a panic.
        self.work = Some(Work::Join);
        let are_resumed: Vec<bool> = rows.iter().map(|paused| paused.is_resumed).collect();
        let joining = self.joining.len();
        self.joining.extend(rows.into_iter().map(|paused| Some(paused.row)));
        let changed = change(&mut cache)?;
        let rows = self.joining.split_off(joining).into_iter().flatten().zip(are_resumed);
        let rows = rows.map(|(row, is_resumed)| PausedRow { row, is_resumed }).collect();
        self.paused.insert(at, Paused { rows, cache });
        Ok(changed)
    }
}
