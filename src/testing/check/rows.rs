//! Rows that share a cache.

use super::{Check, failed, same};
use crate::{
    causal_lm::{CausalLm, KvCache},
    id::TokenId,
    testing::fault::ModelFault,
};

impl<M: CausalLm> Check<'_, M> {
    /// Checks rows that are in one batch from the start.
    pub(super) fn batch(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let mut cache = self.model.new_cache();
        let prompts = [prompt.to_vec(), prompt.to_vec()];
        let logits = self.forward("forward pass over two rows", &prompts, &mut cache)?;
        let whole = self.alone(prompt)?;
        let hint = "check that rows do not see each other";
        for row in &logits {
            self.compare("logits of a row in a batch", "the row alone", hint, &whole, row)?;
        }
        self.step("logits of rows that go on in a batch", hint, &mut prompts.to_vec(), &mut cache)
    }

    /// Checks rows that were copied, moved and dropped.
    pub(super) fn kept_rows(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let mut cache = self.model.new_cache();
        let keep = |cache: &mut M::Cache, rows: &[usize]| {
            cache.keep_rows(rows).map_err(failed("keep_rows"))?;
            same("rows of the cache after `keep_rows`", rows.len(), cache.rows())
        };
        let mut rows = if cache.can_repeat_rows() {
            self.forward("forward pass over a prompt", &[prompt.to_vec()], &mut cache)?;
            keep(&mut cache, &[0, 0, 0])?;
            vec![prompt.to_vec(); 3]
        } else {
            let rows = vec![prompt.to_vec(); 3];
            self.forward("forward pass over three rows", &rows, &mut cache)?;
            rows
        };
        let hint =
            "check that `keep_rows` copies every part of the cache, positions and lengths included";
        self.step("logits after `keep_rows(&[0, 0, 0])`", hint, &mut rows, &mut cache)?;
        if !cache.can_drop_rows() {
            return Ok(());
        }
        keep(&mut cache, &[2, 0])?;
        let mut rows = vec![rows[2].clone(), rows[0].clone()];
        self.step("logits after `keep_rows(&[2, 0])`", hint, &mut rows, &mut cache)
    }

    /// Checks rows that were appended to others of another length.
    pub(super) fn appended_rows(
        &self,
        first: &[TokenId],
        second: &[TokenId],
    ) -> Result<(), ModelFault> {
        let during = "forward pass over a prompt";
        let (mut cache, mut other) = (self.model.new_cache(), self.model.new_cache());
        if !cache.can_append_rows() {
            return Ok(());
        }
        self.forward(during, &[first.to_vec()], &mut cache)?;
        self.forward(during, &[second.to_vec()], &mut other)?;
        cache.append_rows(other).map_err(failed("append_rows"))?;
        same("rows of the cache after `append_rows`", 2, cache.rows())?;
        let mut rows = vec![first.to_vec(), second.to_vec()];
        let hint = "check the positions and the mask of the shorter sequence";
        self.step("logits after `append_rows`", hint, &mut rows, &mut cache)?;
        if !cache.can_drop_rows() {
            return Ok(());
        }
        cache.keep_rows(&[1]).map_err(failed("keep_rows"))?;
        let hint = "check that `keep_rows` keeps the positions and lengths of appended rows";
        let what = "logits after `append_rows` and `keep_rows(&[1])`";
        self.step(what, hint, &mut [rows[1].clone()], &mut cache)
    }

    /// Appends another token to each of `rows` and checks that each has the logits of its tokens alone.
    fn step(
        &self,
        what: &'static str,
        hint: &'static str,
        rows: &mut [Vec<TokenId>],
        cache: &mut M::Cache,
    ) -> Result<(), ModelFault> {
        let vocab = self.model.vocab_size();
        let next: Vec<Vec<TokenId>> = rows
            .iter()
            .enumerate()
            .map(|(row, tokens)| vec![((tokens[0] as usize + row) % vocab) as TokenId])
            .collect();
        let logits = self.forward("forward pass over one more token", &next, cache)?;
        for ((row, next), got) in rows.iter_mut().zip(next).zip(logits) {
            row.extend(next);
            self.compare(what, "the row alone", hint, &self.alone(row)?, &got)?;
        }
        Ok(())
    }
}
