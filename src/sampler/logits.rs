//! The logits of a step on the host: whole rows, or the best of each row.

use std::borrow::Cow;

use burn::tensor::{DType, Tensor};

use super::{StepRow, error::StepError, transfer::Reader};
use crate::{
    candidates::{Candidates, PartialRow, best_tokens, check_numbers, log_sum_exp, mass_outside},
    error::RowError,
    id::TokenId,
    tensor::select_rows,
};

/// The logits of several rows, as far as they are on the host.
#[derive(Default)]
pub(super) struct Logits {
    pub(super) vocab: usize,
    rows: Vec<Row>,
    /// Whole rows, one after the other.
    values: Vec<f32>,
    /// All logits on their device, `[rows, vocab]` in `f32`, if not all of them are on the host.
    source: Option<Tensor<2>>,
}

enum Row {
    /// Place among the whole rows.
    Whole(usize),
    Best(PartialRow),
    /// Nothing is known.
    Unknown,
}

/// What is known of the logits of a row.
#[derive(Clone, Copy)]
pub(super) enum RowLogits<'a> {
    Whole(&'a [f32]),
    Best(&'a PartialRow),
}

/// The log-probability of a token, and the best tokens with theirs.
pub(super) type LogProbs = (f32, Vec<(TokenId, f32)>);

/// What is known of the logits of a row. Whole rows can be changed.
pub(super) enum RowLogitsMut<'a> {
    Whole(&'a mut [f32]),
    Best(&'a PartialRow),
    Unknown,
}

impl Logits {
    /// Logits that are on the host already, `[rows, vocab]`.
    pub(super) fn new(values: Vec<f32>, rows: usize) -> Result<Self, StepError> {
        let vocab = values.len() / rows.max(1);
        if values.len() != rows * vocab {
            return Err(StepError::Shape {
                what: "logits",
                expected: vec![rows, vocab],
                got: vec![values.len()],
            });
        }
        Ok(Self::whole(values, rows, vocab))
    }

    fn whole(values: Vec<f32>, rows: usize, vocab: usize) -> Self {
        Self { vocab, rows: (0..rows).map(Row::Whole).collect(), values, source: None }
    }

    /// Copies logits, `[rows, vocab]`, from the device to the host as `f32`.
    pub(super) fn read(logits: Tensor<2>, reader: &mut Reader) -> Result<Self, StepError> {
        let [rows, vocab] = logits.dims();
        let [values] = reader.read([logits.inner().cast(DType::F32)])?;
        Ok(Self::whole(values, rows, vocab))
    }

    /// Rows of which nothing is known yet; `source` are their logits, `[rows, vocab]`.
    pub(super) fn unknown(source: Tensor<2>, rows: usize) -> Self {
        let vocab = source.dims()[1];
        let rows = std::iter::repeat_with(|| Row::Unknown).take(rows).collect();
        Self { vocab, rows, values: Vec::new(), source: Some(source) }
    }

    /// Stores the best logits of a row.
    pub(super) fn set_best(&mut self, row: usize, best: PartialRow) {
        self.rows[row] = Row::Best(best);
    }

    /// Copies some rows whole, of which only the best logits were known.
    pub(super) fn read_whole(
        &mut self,
        rows: &[usize],
        reader: &mut Reader,
    ) -> Result<(), StepError> {
        if let Some(source) = &self.source {
            let [values] = reader.read([select_rows(source, rows)])?;
            self.set_whole(rows, values);
        }
        Ok(())
    }

    /// Stores the logits of whole rows, one after the other.
    pub(super) fn set_whole(&mut self, rows: &[usize], values: Vec<f32>) {
        let first = self.values.len() / self.vocab.max(1);
        for (place, &row) in rows.iter().enumerate() {
            self.rows[row] = Row::Whole(first + place);
        }
        self.values.extend(values);
    }

    /// The logits of a row after its pool has been filled.
    pub(super) fn row(&self, at: usize) -> RowLogits<'_> {
        match &self.rows[at] {
            Row::Whole(place) => {
                RowLogits::Whole(&self.values[place * self.vocab..(place + 1) * self.vocab])
            }
            Row::Best(row) => RowLogits::Best(row),
            Row::Unknown => RowLogits::Whole(&[]),
        }
    }

    /// The logits of all rows.
    pub(super) fn rows_mut(&mut self) -> impl ExactSizeIterator<Item = RowLogitsMut<'_>> + Send {
        let mut whole: Vec<Option<&mut [f32]>> =
            self.values.chunks_exact_mut(self.vocab.max(1)).map(Some).collect();
        self.rows.iter().map(move |row| match row {
            Row::Whole(place) => RowLogitsMut::Whole(whole[*place].take().unwrap_or_default()),
            Row::Best(row) => RowLogitsMut::Best(row),
            Row::Unknown => RowLogitsMut::Unknown,
        })
    }

    pub(super) fn row_mut(&mut self, at: usize) -> RowLogitsMut<'_> {
        match &self.rows[at] {
            Row::Whole(place) => {
                RowLogitsMut::Whole(&mut self.values[place * self.vocab..(place + 1) * self.vocab])
            }
            Row::Best(row) => RowLogitsMut::Best(row),
            Row::Unknown => RowLogitsMut::Unknown,
        }
    }
}

impl RowLogits<'_> {
    /// The logit of a token of the pool.
    pub(super) fn logit(&self, token: TokenId) -> f32 {
        match self {
            Self::Whole(logits) => logits[token as usize],
            Self::Best(row) => row.logit(token).unwrap_or(f32::NEG_INFINITY),
        }
    }

    /// Log-probabilities of a token of the pool and of the `top` best ones under all logits of the row, in nats. `None`
    /// if not enough of the row is known. Logits that are not numbers are an error here even if a mask excluded them
    /// from the candidates.
    pub(super) fn log_probs(
        &self,
        token: TokenId,
        top: usize,
    ) -> Result<Option<LogProbs>, RowError> {
        let known = match self {
            Self::Whole(logits) => {
                check_numbers(logits)?;
                Some((log_sum_exp(logits), best_tokens(logits, top)))
            }
            Self::Best(row) => row.log_sum_and_best(top),
        };
        Ok(known.map(|(total, top)| {
            let log_prob = |token| (f64::from(self.logit(token)) - total) as f32;
            (log_prob(token), top.into_iter().map(|token| (token, log_prob(token))).collect())
        }))
    }

    /// The share of the row's probability mass that filters have removed. `None` if not enough of the row is known.
    pub(super) fn mass_outside(&self, row: &StepRow<'_>, candidates: &Candidates) -> Option<f64> {
        let divisor = row.divisor();
        match self {
            Self::Whole(logits) => {
                // The pool has restored the logits that it adjusted.
                let mut logits = Cow::Borrowed(*logits);
                for &(token, delta) in candidates.adjustments() {
                    logits.to_mut()[token as usize] += delta * divisor;
                }
                mass_outside(&logits, divisor, row.allowed, candidates).ok()
            }
            Self::Best(best) => {
                let is_known = row.allowed.is_none() && row.divisor_before_filters() == divisor;
                is_known.then(|| best.mass_outside(divisor, candidates)).flatten()
            }
        }
    }
}
