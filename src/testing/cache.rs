//! KV cache of the test models.

use burn::tensor::{Int, Tensor};

use crate::{
    causal_lm::{KvCache, ModelError},
    id::TokenId,
};

/// The cache of the test models: it stores the token sequences, and the models recompute them at every step.
#[derive(Clone, Debug, Default)]
pub struct TokenCache {
    pub(super) sequences: Vec<Vec<TokenId>>,
    pub(super) fixed: bool,
}

impl TokenCache {
    /// Appends the tokens of each row.
    pub(super) fn extend(&mut self, tokens: Tensor<2, Int>) -> Result<(), ModelError> {
        let [rows, seq] = tokens.dims();
        if self.sequences.is_empty() {
            self.sequences = vec![Vec::new(); rows];
        }
        if rows != self.sequences.len() {
            let expected = format!("{} rows", self.sequences.len());
            return Err(ModelError::mismatch("tokens for the cache", expected, rows));
        }
        let tokens = tokens.try_into_data()?.convert::<i64>().try_into_vec::<i64>();
        let tokens = tokens.map_err(|error| ModelError::Device(format!("{error:?}")))?;
        for (sequence, new) in self.sequences.iter_mut().zip(tokens.chunks(seq.max(1))) {
            sequence.extend(new.iter().map(|&token| token as TokenId));
        }
        Ok(())
    }
}

impl KvCache for TokenCache {
    fn rows(&self) -> usize {
        self.sequences.len()
    }

    fn can_drop_rows(&self) -> bool {
        !self.fixed
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        if self.fixed {
            return Err(ModelError::Unsupported { operation: "drop rows" });
        }
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(ModelError::RowOutOfRange { row, rows: self.rows() });
        }
        self.sequences = rows.iter().map(|&row| self.sequences[row].clone()).collect();
        Ok(())
    }

    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        if self.fixed {
            return Err(ModelError::Unsupported { operation: "append rows" });
        }
        self.sequences.extend(other.sequences);
        Ok(())
    }

    fn split_rows(&mut self, rows: &[usize]) -> Result<Self, ModelError> {
        let mut moved = self.clone();
        moved.keep_rows(rows)?;
        let rest: Vec<usize> = (0..self.rows()).filter(|row| !rows.contains(row)).collect();
        self.keep_rows(&rest)?;
        Ok(moved)
    }
}
