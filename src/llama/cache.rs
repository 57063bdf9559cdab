//! KV cache.

use burn::tensor::{DType, Device, Tensor};

use super::config::LlamaConfig;
use crate::{
    causal_lm::{KvCache, ModelError},
    host::Seen,
    tensor::index,
};

/// The KV cache of a [`Llama`](super::Llama): for each block, keys and values of shape `[rows, kv_heads, capacity,
/// head_dim]`.
///
/// All rows end at the same column, that of the newest token. Shorter sequences start at a later column; the columns
/// before a row's start are padding that no query attends to. See docs/design/ragged-batches.md.
///
/// New columns are written in place. A block that is nearly full moves to a buffer half as large again, so a sequence of
/// `n` tokens is copied `log n` times instead of `n` times. The blocks do so one after the other, over many passes. The
/// capacity is never more than twice the columns in use, or 64, or four thirds of what is reserved for a prompt, so the
/// memory of long rows is released when they leave the batch.
#[derive(Clone, Debug)]
pub struct LlamaCache {
    /// `None` before the first forward pass.
    blocks: Vec<Option<KeysValues>>,
    /// First column of each row's sequence.
    starts: Vec<usize>,
    /// Number of columns in use.
    len: usize,
    /// The columns for which blocks are created.
    reserved: usize,
    context_length: usize,
}

#[derive(Clone, Debug)]
struct KeysValues {
    keys: Tensor<4>,
    values: Tensor<4>,
}

/// Some rows of a cache.
struct Part {
    /// Their places in the cache.
    rows: Vec<usize>,
    /// Their first column that is in use.
    first: usize,
    /// Their starts and number of columns, counted from `first`.
    starts: Vec<usize>,
    len: usize,
}

impl Part {
    /// Copies the part's keys and values of a block.
    fn of(&self, block: &KeysValues) -> KeysValues {
        let index = index(self.rows.iter().copied(), &block.keys.device());
        let to = self.first + self.len;
        let pick = |states: &Tensor<4>| columns(states, self.first, to).select(0, index.clone());
        let picked = KeysValues { keys: pick(&block.keys), values: pick(&block.values) };
        // This releases the memory of longer rows that have left.
        let capacity = block.keys.dims()[2].min(most_capacity(self.len));
        picked.with_capacity(capacity, self.len)
    }
}

/// Minimum capacity, in columns.
pub(super) const MIN_CAPACITY: usize = 64;

impl LlamaCache {
    pub(super) fn new(n_layers: usize, context_length: usize) -> Self {
        let (blocks, starts) = (vec![None; n_layers], Vec::new());
        Self { blocks, starts, len: 0, reserved: 0, context_length }
    }

    /// Number of tokens in each row's sequence.
    pub fn lengths(&self) -> Vec<usize> {
        self.starts.iter().map(|start| self.len - start).collect()
    }

    /// Capacity, in columns.
    #[cfg(test)]
    fn capacity(&self) -> usize {
        self.blocks.iter().flatten().map(|kept| kept.keys.dims()[2]).max().unwrap_or(0)
    }

    /// Returns an error if the cache belongs to a model of another shape, element type or device.
    pub(super) fn check(
        &self,
        config: &LlamaConfig,
        dtype: DType,
        device: &Device,
    ) -> Result<(), ModelError> {
        same_blocks("key-value cache, in blocks", config.n_layers, self.blocks.len())?;
        let Some(kept) = self.blocks.iter().flatten().next() else {
            return Ok(());
        };
        let shape = [config.n_kv_heads, config.head_dim];
        kept.check("key-value cache", shape, dtype, device)
    }

    /// The given rows, without the columns that only the others need.
    fn part(&self, rows: &[usize]) -> Result<Part, ModelError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.starts.len()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.starts.len() });
        }
        let first = rows.iter().map(|&row| self.starts[row]).min().unwrap_or(self.len);
        // Keys are stored after the rotation by their position, which is column − start. Moving the columns of a row
        // together with its start leaves the positions as they are, so nothing has to be rotated again.
        let starts = rows.iter().map(|&row| self.starts[row] - first).collect();
        Ok(Part { rows: rows.to_vec(), first, starts, len: self.len - first })
    }

    /// Reserves `seq` more tokens in each of `rows` rows and returns their positions.
    pub(super) fn begin(&mut self, rows: usize, seq: usize) -> Result<Vec<Vec<usize>>, ModelError> {
        // The first pass decides how many rows the cache has.
        if self.len == 0 {
            self.starts = vec![0; rows];
        }
        if rows != self.starts.len() {
            let expected = format!("{} rows", self.starts.len());
            return Err(ModelError::mismatch("tokens for the key-value cache", expected, rows));
        }
        // The limit is on the positions of a row, which do not include its padding.
        let longest = self.len - self.starts.iter().min().copied().unwrap_or(self.len) + seq;
        if longest > self.context_length {
            return Err(ModelError::ContextFull { limit: self.context_length, got: longest });
        }
        let from = self.len;
        // Counted from the row's own start, so that padding does not move its positions.
        let positions = |start: &usize| (from - start..from - start + seq).collect();
        Ok(self.starts.iter().map(positions).collect())
    }

    /// Appends the keys and values of new columns, `[rows, kv_heads, new, head_dim]`, to a block. Returns all of its
    /// keys and values.
    pub(super) fn extend(&mut self, block: usize, keys: Tensor<4>, values: Tensor<4>) -> Seen<'_> {
        // `len` stays the same until `commit`, because every block writes the columns of this pass. If the pass fails
        // before that, the next one overwrites them.
        let new = keys.dims()[2];
        let (from, to) = (self.len, self.len + new);
        let blocks = self.blocks.len();
        let mut kept = match self.blocks[block].take() {
            Some(kept) => {
                let capacity = kept.keys.dims()[2];
                // If all blocks grew in the same pass, it would take as long as several.
                let early = capacity * (blocks - block) / (4 * blocks);
                if capacity >= to + early {
                    kept
                } else {
                    kept.with_capacity(with_room(to).max(capacity + capacity / 2), from)
                }
            }
            None => KeysValues::empty(&keys, with_room(to.max(self.reserved))),
        };
        // These two tensors have no other owner here, so the assignment is in place.
        kept.keys = write(kept.keys, keys, 0, from);
        kept.values = write(kept.values, values, 0, from);
        let KeysValues { keys, values } = self.blocks[block].insert(kept);
        Seen { keys, values, columns: to, new, starts: &self.starts }
    }

    /// Ends a forward pass over `seq` columns.
    pub(super) fn commit(&mut self, seq: usize) {
        self.len += seq;
    }
}

impl KvCache for LlamaCache {
    fn rows(&self) -> usize {
        self.starts.len()
    }

    fn reserve(&mut self, tokens: usize) {
        self.reserved = tokens.min(self.context_length);
    }

    /// Copies the kept rows once, without the columns that only the dropped rows needed.
    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        let part = self.part(rows)?;
        if rows.is_empty() {
            *self = Self::new(self.blocks.len(), self.context_length);
            return Ok(());
        }
        for kept in self.blocks.iter_mut().flatten() {
            *kept = part.of(kept);
        }
        (self.starts, self.len) = (part.starts, part.len);
        Ok(())
    }

    /// Copies both caches once, block by block. The shorter one gets padding on the left.
    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        same_blocks("key-value cache to append, in blocks", self.blocks.len(), other.blocks.len())?;
        if other.starts.is_empty() {
            return Ok(());
        }
        if self.starts.is_empty() {
            *self = other;
            return Ok(());
        }
        // Check all blocks before changing the first one, so that the cache is unchanged after an error.
        for (kept, joined) in self.blocks.iter().flatten().zip(other.blocks.iter().flatten()) {
            let [_, heads, _, width] = kept.keys.dims();
            let (dtype, device) = (kept.keys.dtype(), kept.keys.device());
            joined.check("key-value cache to append", [heads, width], dtype, &device)?;
        }
        let len = self.len.max(other.len);
        let (shift, other_shift) = (len - self.len, len - other.len);
        let rows = self.starts.len() + other.starts.len();
        // The memory of each block of `other` is released as soon as it has been copied.
        let pairs = self.blocks.iter_mut().flatten().zip(other.blocks.into_iter().flatten());
        for (kept, joined) in pairs {
            let [my_rows, heads, capacity, width] = kept.keys.dims();
            let shape = [rows, heads, capacity.max(with_room(len)), width];
            let join = |mine: &Tensor<4>, theirs: &Tensor<4>| {
                // Padding must be finite: its attention weight is 0, and 0 · NaN would be NaN.
                let both = Tensor::zeros(shape, (&mine.device(), mine.dtype()));
                let both = write(both, columns(mine, 0, self.len), 0, shift);
                write(both, columns(theirs, 0, other.len), my_rows, other_shift)
            };
            *kept = KeysValues {
                keys: join(&kept.keys, &joined.keys),
                values: join(&kept.values, &joined.values),
            };
        }
        for start in &mut self.starts {
            *start += shift;
        }
        self.starts.extend(other.starts.into_iter().map(|start| start + other_shift));
        self.len = len;
        Ok(())
    }

    /// Copies the rows once, block by block, so that no more than one block exists twice. Nothing is copied if all rows
    /// move.
    fn split_rows(&mut self, rows: &[usize]) -> Result<Self, ModelError> {
        if !rows.is_sorted_by(|a, b| a < b) {
            let got = format!("{rows:?}");
            return Err(ModelError::mismatch("rows to split", "ascending ones", got));
        }
        let moved = self.part(rows)?;
        let rest: Vec<usize> = (0..self.rows()).filter(|row| !rows.contains(row)).collect();
        let mut other = Self::new(self.blocks.len(), self.context_length);
        if rest.is_empty() {
            std::mem::swap(self, &mut other);
        } else if !rows.is_empty() {
            let rest = self.part(&rest)?;
            for (kept, split) in self.blocks.iter_mut().zip(&mut other.blocks) {
                if let Some(kept) = kept {
                    *split = Some(moved.of(kept));
                    *kept = rest.of(kept);
                }
            }
            (other.starts, other.len) = (moved.starts, moved.len);
            (self.starts, self.len) = (rest.starts, rest.len);
        }
        Ok(other)
    }
}

impl KeysValues {
    /// Returns an error unless keys and values have shape `[_, heads, _, width]`, this element type and this device.
    fn check(
        &self,
        what: &'static str,
        shape: [usize; 2],
        dtype: DType,
        device: &Device,
    ) -> Result<(), ModelError> {
        let [_, heads, _, width] = self.keys.dims();
        ModelError::check_shape(what, &shape, &[heads, width])?;
        if self.keys.dtype() != dtype {
            let got = format!("{:?}", self.keys.dtype());
            return Err(ModelError::mismatch(what, "the model's element type", got));
        }
        if self.keys.device() != *device {
            let (expected, got) =
                (format!("device {device:?}"), format!("{:?}", self.keys.device()));
            return Err(ModelError::mismatch(what, expected, got));
        }
        Ok(())
    }

    /// Zeroed keys and values of `capacity` columns, with the rows and heads of `like`.
    fn empty(like: &Tensor<4>, capacity: usize) -> Self {
        let [rows, heads, _, width] = like.dims();
        let zeros =
            || Tensor::zeros([rows, heads, capacity, width], (&like.device(), like.dtype()));
        Self { keys: zeros(), values: zeros() }
    }

    /// Copies the first `len` columns into new tensors of `capacity` columns.
    fn with_capacity(self, capacity: usize, len: usize) -> Self {
        let room = Self::empty(&self.keys, capacity.max(len));
        Self {
            keys: write(room.keys, columns(&self.keys, 0, len), 0, 0),
            values: write(room.values, columns(&self.values, 0, len), 0, 0),
        }
    }
}

/// Capacity for `columns` columns, in which no block has to grow yet.
fn with_room(columns: usize) -> usize {
    (columns + columns.div_ceil(3)).max(MIN_CAPACITY)
}

/// Maximum capacity, in columns, when `len` columns are in use.
fn most_capacity(len: usize) -> usize {
    (2 * len).max(MIN_CAPACITY)
}

fn same_blocks(what: &'static str, expected: usize, got: usize) -> Result<(), ModelError> {
    ModelError::check_shape(what, &[expected], &[got])
}

/// Writes `states` into `buffer`, starting at row `row` and column `column`.
fn write(buffer: Tensor<4>, states: Tensor<4>, row: usize, column: usize) -> Tensor<4> {
    let [rows, heads, columns, width] = states.dims();
    buffer.slice_assign([row..row + rows, 0..heads, column..column + columns, 0..width], states)
}

/// Columns `from..to` of all rows and heads, without a copy.
fn columns(states: &Tensor<4>, from: usize, to: usize) -> Tensor<4> {
    let [rows, heads, _, width] = states.dims();
    states.clone().slice([0..rows, 0..heads, from..to, 0..width])
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: usize = 4096;

    /// A cache of `rows` rows after `len` tokens, with `blocks` blocks of `[heads, width]`.
    fn cache(rows: usize, len: usize, blocks: &[[usize; 2]]) -> LlamaCache {
        let mut cache = LlamaCache::new(blocks.len(), CONTEXT);
        feed(&mut cache, rows, len, blocks);
        cache
    }

    fn feed(cache: &mut LlamaCache, rows: usize, seq: usize, blocks: &[[usize; 2]]) {
        cache.begin(rows, seq).unwrap();
        for (block, &[heads, width]) in blocks.iter().enumerate() {
            let states = Tensor::ones([rows, heads, seq, width], &Device::flex());
            cache.extend(block, states.clone(), states);
        }
        cache.commit(seq);
    }

    fn assert_bounded(cache: &LlamaCache) {
        let columns = cache.lengths().into_iter().max().unwrap();
        let most = (2 * columns).max(64);
        assert!((columns..=most).contains(&cache.capacity()), "{columns}: {}", cache.capacity());
    }

    #[test]
    fn room_is_at_most_twice_the_columns_in_use() {
        let one = [[1, 2]];
        for (long, short) in [(2000, 100), (2000, 10), (65, 64), (64, 1), (300, 299)] {
            let mut batch = cache(1, long, &one);
            assert_bounded(&batch);
            batch.append_rows(cache(2, short, &one)).unwrap();
            assert_bounded(&batch);
            feed(&mut batch, 3, 1, &one);
            assert_bounded(&batch);
            batch.keep_rows(&[1, 2]).unwrap(); // the long row leaves
            assert_bounded(&batch);
            batch.append_rows(cache(1, short, &one)).unwrap();
            assert_bounded(&batch);
            feed(&mut batch, 3, 1, &one);
            assert_bounded(&batch);
        }
    }

    #[test]
    fn what_is_reserved_is_not_copied() {
        let mut cache = LlamaCache::new(1, CONTEXT);
        cache.reserve(600);
        for _ in 0..6 {
            feed(&mut cache, 1, 100, &[[1, 2]]);
            assert_eq!(cache.capacity(), 800);
        }
        let mut longer_than_the_context = LlamaCache::new(1, CONTEXT);
        longer_than_the_context.reserve(usize::MAX);
        feed(&mut longer_than_the_context, 1, 1, &[[1, 2]]);
        assert!(longer_than_the_context.capacity() <= 2 * CONTEXT);
    }

    #[test]
    fn blocks_grow_one_after_the_other() {
        let shape = [[1, 2]; 8];
        let mut cache = cache(1, 1, &shape);
        let capacities = |cache: &LlamaCache| -> Vec<usize> {
            cache.blocks.iter().flatten().map(|kept| kept.keys.dims()[2]).collect()
        };
        let mut grown = 0;
        for len in 2..1000 {
            let before = capacities(&cache);
            feed(&mut cache, 1, 1, &shape);
            let now = capacities(&cache);
            let changed = before.iter().zip(&now).filter(|(before, now)| before != now).count();
            assert!(changed <= 1, "{len}: {before:?} {now:?}");
            grown += changed;
            assert_bounded(&cache);
        }
        assert!(grown >= 8 * 6, "{grown}");
    }

    #[test]
    fn a_cache_that_does_not_fit_leaves_the_batch_unchanged() {
        // The first block matches, the second does not.
        let mut batch = cache(2, 5, &[[2, 4], [2, 4]]);
        let error = batch.append_rows(cache(1, 3, &[[2, 4], [2, 6]])).unwrap_err();
        let message = "key-value cache to append: expected shape [2, 4], got [2, 6]";
        assert_eq!(error.to_string(), message);
        let error = batch.append_rows(cache(1, 3, &[[2, 4]])).unwrap_err();
        let message = "key-value cache to append, in blocks: expected shape [2], got [1]";
        assert_eq!(error.to_string(), message);
        let mut half = cache(1, 3, &[[2, 4], [2, 4]]);
        for kept in half.blocks.iter_mut().flatten() {
            kept.keys = kept.keys.clone().cast(DType::F16);
        }
        let error = batch.append_rows(half).unwrap_err();
        let message = "key-value cache to append: expected the model's element type, got F16";
        assert_eq!(error.to_string(), message);
        batch.append_rows(LlamaCache::new(2, CONTEXT)).unwrap(); // nothing to append

        assert_eq!(batch.lengths(), [5, 5]);
        assert!(batch.blocks.iter().flatten().all(|kept| kept.keys.dims()[0] == 2));
        feed(&mut batch, 2, 1, &[[2, 4], [2, 4]]);
        let mut empty = LlamaCache::new(2, CONTEXT);
        assert!(empty.append_rows(cache(1, 3, &[[2, 4]])).is_err());
    }
}
