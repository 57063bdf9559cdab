//! The KV cache of some rows: sequence ids of the model's context.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use esamp::{KvCache, errors::ModelError};

use crate::{error::LlamaCppError, ffi::Context, options::Options};

/// The context of a model, which all of its caches share.
pub(crate) struct Engine {
    state: Mutex<State>,
}

/// What the lock protects.
pub(crate) struct State {
    pub(crate) context: Context,
    max_rows: usize,
    has_separate_buffers: bool,
    /// Sequence ids that no cache uses. Ordered, so that the lowest is used first: separate buffers are computed
    /// together if their ids follow each other.
    free: BTreeSet<i32>,
}

impl Engine {
    pub(crate) fn new(context: Context, options: &Options) -> Self {
        let (max_rows, has_separate_buffers) = (options.max_rows, !options.unified_cache);
        let free = (0..max_rows as i32).collect();
        Self { state: Mutex::new(State { context, max_rows, has_separate_buffers, free }) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in the state is half-changed by a panic: each change of llama.cpp's part of it is a single call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes `count` unused sequence ids, the lowest first.
    pub(crate) fn take(&mut self, count: usize) -> Result<Vec<i32>, LlamaCppError> {
        if count > self.free.len() {
            let used = self.max_rows - self.free.len();
            return Err(LlamaCppError::TooManyRows { limit: self.max_rows, got: used + count });
        }
        Ok((0..count).filter_map(|_| self.free.pop_first()).collect())
    }

    fn release(&mut self, sequence: i32) {
        self.truncate(sequence, 0);
        self.free.insert(sequence);
    }

    /// Moves rows with separate buffers to the lowest ids, because llama.cpp computes those together whose ids follow
    /// each other: each gap costs another pass over the weights. Moving a row copies its buffer.
    fn close_gaps(&mut self, rows: &mut [Row]) {
        if !self.has_separate_buffers {
            return;
        }
        while let Some(last) = rows.iter_mut().max_by_key(|row| row.sequence)
            && let Some(sequence) = self.free.first().copied().filter(|&id| id < last.sequence)
        {
            self.free.remove(&sequence);
            self.context.copy(last.sequence, sequence);
            self.release(std::mem::replace(&mut last.sequence, sequence));
        }
    }

    /// Releases rows.
    pub(crate) fn release_all(&mut self, rows: &mut Vec<Row>) {
        for row in rows.drain(..) {
            self.release(row.sequence);
        }
    }

    /// What rows have lost that have been cut to their length. Cells that no later token could see are overwritten
    /// when cells run short, and the tokens that were cut could see fewer of them than the next ones.
    pub(crate) fn lost(&self, rows: &[Row]) -> Option<Lost> {
        let window = self.context.window?;
        rows.iter().filter(|row| row.len > 0).find_map(|row| {
            let first = self.context.first_position(row.sequence).unwrap_or(row.len);
            let kept = row.len.saturating_sub(first);
            (kept < row.len.min(window)).then_some(Lost { window: row.len.min(window), kept })
        })
    }

    /// Drops the tokens of a sequence from position `len` on.
    pub(crate) fn truncate(&mut self, sequence: i32, len: usize) {
        if !self.context.remove(sequence, len) {
            // Only recurrent states refuse, and loading refuses such models.
            log::error!("llama.cpp: sequence {sequence} was not cut at position {len}");
        }
    }
}

/// The rows that one decode loop reads with a [`LlamaCpp`](crate::LlamaCpp): a sequence id per row.
///
/// Keys and values are in the context of the model, which all of its caches share; a cache owns only its sequence ids.
/// So repeating a row marks the cells of its sequence as belonging to the copy too (a unified cache; separate buffers
/// are copied), joining two caches moves ids, and dropping a cache frees its cells at once. A cache keeps the context
/// alive, so model and caches may be dropped in any order. It is not `Clone`: a copy would own the same sequences.
pub struct LlamaCppCache {
    engine: Arc<Engine>,
    pub(crate) rows: Vec<Row>,
    /// What the rows have lost in a pass that failed, if anything.
    pub(crate) lost: Option<Lost>,
}

/// A pass that failed has overwritten cells of a sliding window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lost {
    pub(crate) window: usize,
    pub(crate) kept: usize,
}

/// One row of a cache.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) sequence: i32,
    /// Number of tokens.
    pub(crate) len: usize,
}

impl LlamaCppCache {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine, rows: Vec::new(), lost: None }
    }

    pub(crate) fn is_of(&self, engine: &Arc<Engine>) -> bool {
        Arc::ptr_eq(&self.engine, engine)
    }

    /// Number of tokens in each row's sequence.
    pub fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|row| row.len).collect()
    }
}

impl std::fmt::Debug for LlamaCppCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaCppCache").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl KvCache for LlamaCppCache {
    fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Copies nothing with a unified cache. Nothing changes on an error.
    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows.len()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.rows.len() });
        }
        let mut state = self.engine.lock();
        let kept: BTreeSet<usize> = rows.iter().copied().collect();
        let copies = rows.len() - kept.len();
        let dropped: Vec<Row> = (0..self.rows.len())
            .filter(|row| !kept.contains(row))
            .map(|row| self.rows[row])
            .collect();
        // The ids of dropped rows count as free. They are released only when nothing can fail any more.
        let mut fresh = state.take(copies.saturating_sub(dropped.len()))?;
        for row in dropped {
            state.release(row.sequence);
        }
        fresh.extend(state.take(copies - fresh.len())?);
        let mut fresh = fresh.into_iter();
        let mut originals = kept;
        let mut new = Vec::with_capacity(rows.len());
        for &row in rows {
            let original = self.rows[row];
            // The first time, a row keeps its id.
            if originals.remove(&row) {
                new.push(original);
            } else if let Some(sequence) = fresh.next() {
                state.context.copy(original.sequence, sequence);
                new.push(Row { sequence, ..original });
            }
        }
        state.close_gaps(&mut new);
        drop(state);
        self.rows = new;
        Ok(())
    }

    /// Moves sequence ids; copies nothing.
    fn split_rows(&mut self, rows: &[usize]) -> Result<Self, ModelError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows.len()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.rows.len() });
        }
        // A row that occurs twice would have its sequence in two places.
        if !rows.is_sorted_by(|a, b| a < b) {
            return Err(ModelError::mismatch(
                "rows to split",
                "ascending ones",
                format!("{rows:?}"),
            ));
        }
        let mut moved = Self::new(self.engine.clone());
        moved.rows = rows.iter().map(|&row| self.rows[row]).collect();
        let all = std::mem::take(&mut self.rows).into_iter().enumerate();
        self.rows = all.filter(|(at, _)| !rows.contains(at)).map(|(_, row)| row).collect();
        Ok(moved)
    }

    /// Moves the sequence ids of `other`; copies nothing.
    fn append_rows(&mut self, mut other: Self) -> Result<(), ModelError> {
        if !other.is_of(&self.engine) {
            return Err(ModelError::mismatch(
                "key-value cache to append",
                "one of the same loaded model",
                "one of another",
            ));
        }
        self.rows.append(&mut other.rows);
        Ok(())
    }
}

impl Drop for LlamaCppCache {
    fn drop(&mut self) {
        if self.rows.is_empty() {
            return;
        }
        self.engine.lock().release_all(&mut self.rows);
    }
}
