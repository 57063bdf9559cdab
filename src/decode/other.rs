//! A second model for requests that contrast with it.

use burn::tensor::Tensor;

use super::{
    Batch,
    forward::{expect_logits, int_tensor, prefill},
    row::Row,
};
use crate::{
    causal_lm::{BatchSize, CacheLimits, CausalLm, KvCache},
    id::{CompletionId, TokenId},
    novelty::Expects,
    sampler::StepError,
    tap::NoTap,
    tensor::select_rows,
};

/// A second model with its own KV cache, type-erased.
///
/// It holds only the completions that use it and addresses them by id, independently of the first model's batch: each
/// call passes the current completions, and rows of other completions are dropped.
pub(super) trait OtherModel: Send {
    /// Prefills a prompt for these completions, `chunk` tokens per forward pass. Returns the logits of the last
    /// position, `[completions, vocab]`.
    fn prefill(
        &mut self,
        prompt: &[TokenId],
        completions: &[CompletionId],
        chunk: usize,
    ) -> Result<Tensor<2>, StepError>;

    /// Drops every completion that is not in this list.
    fn keep(&mut self, completions: &[CompletionId]) -> Result<(), StepError>;

    /// Appends one token to each completion. `last` must contain all completions that were kept. Returns
    /// `[completions, vocab]`, in the order of `last`.
    fn step(&mut self, last: &[(CompletionId, TokenId)]) -> Result<Tensor<2>, StepError>;

    /// Whether the completions of another prompt can join those that run, and those that join before it if
    /// `others_join`.
    fn has_room(&self, others_join: bool) -> bool;

    fn context_length(&self) -> Option<usize>;

    fn cache_limits(&self) -> CacheLimits;

    fn kv_bytes_per_token(&self) -> usize;

    fn working_bytes(&self, batch: BatchSize) -> usize;
}

/// The second model and its rows in the order of its cache. `None` marks a dropped row that is still in the cache.
pub(super) struct Beside<M: CausalLm> {
    model: M,
    running: Option<(M::Cache, Vec<Option<CompletionId>>)>,
}

impl<M: CausalLm> Beside<M> {
    pub(super) fn new(model: M) -> Self {
        Self { model, running: None }
    }
}

impl<M: CausalLm + Send> OtherModel for Beside<M>
where
    M::Cache: Send,
{
    fn prefill(
        &mut self,
        prompt: &[TokenId],
        completions: &[CompletionId],
        chunk: usize,
    ) -> Result<Tensor<2>, StepError> {
        let (cache, logits) = prefill(&self.model, prompt, completions.len(), chunk)?;
        let newcomers = completions.iter().copied().map(Some);
        match &mut self.running {
            Some((running, rows)) => {
                running.append_rows(cache)?;
                rows.extend(newcomers);
            }
            None => self.running = Some((cache, newcomers.collect())),
        }
        Ok(logits)
    }

    fn keep(&mut self, completions: &[CompletionId]) -> Result<(), StepError> {
        let Some((cache, rows)) = &mut self.running else {
            return Ok(());
        };
        for row in rows.iter_mut() {
            *row = row.filter(|completion| completions.contains(completion));
        }
        if rows.iter().all(Option::is_none) {
            // This also frees a cache that cannot drop rows, and makes room for the next prompt.
            self.running = None;
        } else if cache.can_drop_rows() && rows.contains(&None) {
            let kept: Vec<usize> = (0..rows.len()).filter(|&at| rows[at].is_some()).collect();
            cache.keep_rows(&kept)?;
            rows.retain(Option::is_some);
        }
        Ok(())
    }

    fn step(&mut self, last: &[(CompletionId, TokenId)]) -> Result<Tensor<2>, StepError> {
        let (cache, rows) = match &mut self.running {
            Some((cache, rows)) => (Some(cache), rows.as_slice()),
            None => (None, &[][..]),
        };
        // Dropped rows that are still in the cache get token 0 as a dummy.
        let mut tokens = vec![0; rows.len()];
        let mut places = Vec::with_capacity(last.len());
        for &(completion, token) in last {
            if let Some(at) = rows.iter().position(|&row| row == Some(completion)) {
                tokens[at] = token;
                places.push(at);
            }
        }
        match cache {
            Some(cache) if places.len() == last.len() => {
                let tokens = int_tensor(&tokens, [tokens.len(), 1], &self.model.device());
                let logits = self.model.forward(tokens, cache, &mut NoTap)?;
                expect_logits(&logits, [rows.len(), self.model.vocab_size()])?;
                Ok(select_rows(&logits, &places))
            }
            // A completion that this cache does not hold would otherwise be contrasted with the logits of another one.
            _ => Err(StepError::RowCount {
                what: "rows of the other model",
                expected: last.len(),
                got: places.len(),
            }),
        }
    }

    fn has_room(&self, others_join: bool) -> bool {
        let joins = |cache: &M::Cache| cache.can_drop_rows() && cache.can_append_rows();
        match &self.running {
            Some((cache, _)) => joins(cache),
            None => !others_join || joins(&self.model.new_cache()),
        }
    }

    fn context_length(&self) -> Option<usize> {
        self.model.context_length()
    }

    fn cache_limits(&self) -> CacheLimits {
        self.model.cache_limits()
    }

    fn kv_bytes_per_token(&self) -> usize {
        self.model.kv_bytes_per_token()
    }

    fn working_bytes(&self, batch: BatchSize) -> usize {
        self.model.working_bytes(batch)
    }
}

/// The rows that contrast with the second model.
pub(super) fn contrasted<'a>(
    rows: impl IntoIterator<Item = &'a Row>,
) -> impl Iterator<Item = &'a Row> {
    rows.into_iter().filter(|row| row.expects() == Expects::OtherModel)
}

/// Appends one token to each row that contrasts with the second model and returns that model's logits for all live
/// rows, `[rows, vocab]`. Rows that do not contrast get arbitrary values. Returns `None` without a forward pass if no
/// row contrasts.
pub(super) fn other_logits<C>(
    other: &mut dyn OtherModel,
    batch: &Batch<C>,
) -> Result<Option<Tensor<2>>, StepError> {
    let live: Vec<&Row> = batch.rows.iter().flatten().collect();
    let last: Vec<(CompletionId, TokenId)> =
        contrasted(live.iter().copied()).map(|row| (row.id, row.last_token())).collect();
    if last.is_empty() {
        return Ok(None);
    }
    let logits = other.step(&last)?;
    // `select_rows` needs a source for every live row: rows that do not contrast take the logits of a neighbour, which
    // nothing reads.
    let mut next = 0;
    let place = |row: &&Row| {
        let at = next.min(last.len() - 1);
        next += usize::from(row.expects() == Expects::OtherModel);
        at
    };
    let places: Vec<usize> = live.iter().map(place).collect();
    Ok(Some(select_rows(&logits, &places)))
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::ScriptedLm;

    #[test]
    fn a_completion_that_the_cache_does_not_hold_is_an_error() {
        let mut other = Beside::new(ScriptedLm::new(4, &Device::flex(), |_| vec![0.0; 4]));
        let [known, unknown] = [0, 1].map(|index| CompletionId::new(0, index));
        other.prefill(&[1], &[known], 8).unwrap();
        let error = other.step(&[(known, 2), (unknown, 2)]).unwrap_err();
        assert_eq!(error.to_string(), "rows of the other model: expected 2 rows, got 1");
        assert_eq!(other.step(&[(known, 2)]).unwrap().dims(), [1, 4]);
    }
}
