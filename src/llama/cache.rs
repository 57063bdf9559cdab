//! Keys and values of the sequences seen so far.

use burn::tensor::{Device, Tensor, TensorData};

use crate::{causal_lm::KvCache, error::StepError};

/// The cache of a [`Llama`](super::Llama): for each block, keys and values `[rows, kv_heads, capacity, head_dim]`.
///
/// All rows end at the same column, the newest token's. Shorter sequences begin later: columns before a row's start are
/// padding that no query sees. See docs/design/ragged-batches.md.
///
/// New columns are written in place. The capacity doubles when it is full, so that a sequence of `n` tokens is copied
/// `log n` times and not `n` times.
#[derive(Clone, Debug)]
pub struct LlamaCache {
    /// `None` before the first forward pass.
    blocks: Vec<Option<KeysValues>>,
    /// First column of each row's sequence.
    starts: Vec<usize>,
    /// Columns in use.
    len: usize,
    context_length: usize,
}

#[derive(Clone, Debug)]
struct KeysValues {
    keys: Tensor<4>,
    values: Tensor<4>,
}

/// Smallest number of columns to make room for.
const MIN_CAPACITY: usize = 64;

impl LlamaCache {
    pub(super) fn new(n_layers: usize, context_length: usize) -> Self {
        Self { blocks: vec![None; n_layers], starts: Vec::new(), len: 0, context_length }
    }

    /// Number of tokens in each row's sequence.
    pub fn lengths(&self) -> Vec<usize> {
        self.starts.iter().map(|start| self.len - start).collect()
    }

    /// Makes room for `seq` more tokens in each of `rows` rows and gives the position of each.
    pub(super) fn begin(&mut self, rows: usize, seq: usize) -> Result<Vec<Vec<usize>>, StepError> {
        if self.len == 0 {
            self.starts = vec![0; rows];
        }
        if rows != self.starts.len() {
            return Err(StepError::RowCount {
                what: "tokens for the key-value cache",
                expected: self.starts.len(),
                got: rows,
            });
        }
        let longest = self.len - self.starts.iter().min().copied().unwrap_or(self.len) + seq;
        if longest > self.context_length {
            return Err(StepError::ContextFull { limit: self.context_length, got: longest });
        }
        let from = self.len;
        let positions = |start: &usize| (from - start..from - start + seq).collect();
        Ok(self.starts.iter().map(positions).collect())
    }

    /// Appends the keys and values of new columns to a block and gives all of them, padding included:
    /// `[rows, kv_heads, len + seq, head_dim]` each.
    pub(super) fn extend(
        &mut self,
        block: usize,
        keys: Tensor<4>,
        values: Tensor<4>,
    ) -> (Tensor<4>, Tensor<4>) {
        let (from, to) = (self.len, self.len + keys.dims()[2]);
        let mut kept = match self.blocks[block].take() {
            Some(kept) if kept.keys.dims()[2] >= to => kept,
            Some(kept) => {
                let doubled = 2 * kept.keys.dims()[2];
                kept.with_capacity(doubled.max(to), from)
            }
            None => KeysValues::empty(&keys, to.max(MIN_CAPACITY)),
        };
        // Nothing else holds these two tensors here, so the assignment is in place.
        kept.keys = write(kept.keys, keys, 0, from);
        kept.values = write(kept.values, values, 0, from);
        let seen = (columns(&kept.keys, 0, to), columns(&kept.values, 0, to));
        self.blocks[block] = Some(kept);
        seen
    }

    /// Ends a forward pass over `seq` columns.
    pub(super) fn commit(&mut self, seq: usize) {
        self.len += seq;
    }

    /// What a query of each of `seq` new columns may not see, as numbers to add to its scores:
    /// `[rows, 1, seq, len + seq]`. `None` where every query sees everything.
    pub(super) fn mask(&self, seq: usize, device: &Device) -> Option<Tensor<4>> {
        if seq == 1 && self.starts.iter().all(|&start| start == 0) {
            return None;
        }
        let to = self.len + seq;
        let mut mask = Vec::with_capacity(self.starts.len() * seq * to);
        for &start in &self.starts {
            for query in self.len..to {
                mask.extend((0..to).map(|column| {
                    let seen = (start..=query).contains(&column);
                    if seen { 0.0 } else { f32::NEG_INFINITY }
                }));
            }
        }
        let shape = [self.starts.len(), 1, seq, to];
        Some(Tensor::from_data(TensorData::new(mask, shape), device))
    }
}

impl KvCache for LlamaCache {
    fn rows(&self) -> usize {
        self.starts.len()
    }

    /// Copies what is kept, once, without the columns that only dropped rows needed.
    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), StepError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.starts.len()) {
            return Err(StepError::RowOutOfRange { row, rows: self.starts.len() });
        }
        let starts: Vec<usize> = rows.iter().map(|&row| self.starts[row]).collect();
        let Some(&first) = starts.iter().min() else {
            *self = Self::new(self.blocks.len(), self.context_length);
            return Ok(());
        };
        let to = self.len;
        for kept in self.blocks.iter_mut().flatten() {
            let index: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
            let index = Tensor::from_data(index.as_slice(), &kept.keys.device());
            let pick = |states: &Tensor<4>| columns(states, first, to).select(0, index.clone());
            let picked = KeysValues { keys: pick(&kept.keys), values: pick(&kept.values) };
            *kept = picked.with_capacity(kept.keys.dims()[2], to - first);
        }
        self.starts = starts.into_iter().map(|start| start - first).collect();
        self.len -= first;
        Ok(())
    }

    /// Copies both caches, once; the shorter one gets padding on the left.
    fn append_rows(&mut self, other: Self) -> Result<(), StepError> {
        if self.starts.is_empty() {
            *self = other;
            return Ok(());
        }
        if self.blocks.len() != other.blocks.len() {
            return Err(StepError::Shape {
                what: "key-value cache to append, in blocks",
                expected: vec![self.blocks.len()],
                got: vec![other.blocks.len()],
            });
        }
        let len = self.len.max(other.len);
        let (shift, other_shift) = (len - self.len, len - other.len);
        let rows = self.starts.len() + other.starts.len();
        for (mine, theirs) in self.blocks.iter_mut().zip(other.blocks) {
            let (Some(kept), Some(joined)) = (mine.take(), theirs) else {
                continue;
            };
            let [my_rows, heads, capacity, width] = kept.keys.dims();
            if joined.keys.dims()[1] != heads || joined.keys.dims()[3] != width {
                return Err(StepError::Shape {
                    what: "key-value cache to append",
                    expected: vec![heads, width],
                    got: vec![joined.keys.dims()[1], joined.keys.dims()[3]],
                });
            }
            let shape = [rows, heads, capacity.max(len).max(MIN_CAPACITY), width];
            let join = |mine: &Tensor<4>, theirs: &Tensor<4>| {
                let both = Tensor::zeros(shape, (&mine.device(), mine.dtype()));
                let both = write(both, columns(mine, 0, self.len), 0, shift);
                write(both, columns(theirs, 0, other.len), my_rows, other_shift)
            };
            *mine = Some(KeysValues {
                keys: join(&kept.keys, &joined.keys),
                values: join(&kept.values, &joined.values),
            });
        }
        self.starts.iter_mut().for_each(|start| *start += shift);
        self.starts.extend(other.starts.into_iter().map(|start| start + other_shift));
        self.len = len;
        Ok(())
    }
}

impl KeysValues {
    /// Room for `capacity` columns of rows and heads like those of `like`.
    fn empty(like: &Tensor<4>, capacity: usize) -> Self {
        let [rows, heads, _, width] = like.dims();
        let zeros =
            || Tensor::zeros([rows, heads, capacity, width], (&like.device(), like.dtype()));
        Self { keys: zeros(), values: zeros() }
    }

    /// The first `len` columns in new tensors of `capacity` columns.
    fn with_capacity(self, capacity: usize, len: usize) -> Self {
        let room = Self::empty(&self.keys, capacity.max(len));
        Self {
            keys: write(room.keys, columns(&self.keys, 0, len), 0, 0),
            values: write(room.values, columns(&self.values, 0, len), 0, 0),
        }
    }
}

/// Writes `states` into `buffer` from row `row` and column `column` on.
fn write(buffer: Tensor<4>, states: Tensor<4>, row: usize, column: usize) -> Tensor<4> {
    let [rows, heads, columns, width] = states.dims();
    buffer.slice_assign([row..row + rows, 0..heads, column..column + columns, 0..width], states)
}

/// Columns `from..to` of all rows and heads, without a copy.
fn columns(states: &Tensor<4>, from: usize, to: usize) -> Tensor<4> {
    let [rows, heads, _, width] = states.dims();
    states.clone().slice([0..rows, 0..heads, from..to, 0..width])
}
