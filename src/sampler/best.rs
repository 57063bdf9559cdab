//! One transfer for all that a step needs: the best logits of each row are found on the device, together with their
//! expected logits (docs/design/one-transfer.md).

use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{
    error::StepError, expect::Predicted, input::StepRow, logits::Logits, transfer::Reader,
};
use crate::{
    candidates::{Masses, PartialRow},
    id::TokenId,
    lm_head::LmHead,
    tensor::{from_f32, select_rows},
};

/// Tokens per group. The maxima of all groups take one fast pass over the vocabulary, and the `k` best tokens of a row
/// are all in the `k` groups with the largest maxima.
const GROUP: usize = 64;

/// Copies the `k` best logits of each row of `logits`, `[rows, vocab]` with `k < vocab`, to the host, with the expected
/// logits of these tokens if there is a prediction, in one transfer. Rows that need all of their logits are copied
/// whole.
pub(super) fn read_best(
    rows: &[&StepRow<'_>],
    logits: Tensor<2>,
    k: usize,
    predicted: Option<&mut Predicted>,
    lm_head: &dyn LmHead,
    reader: &mut Reader,
) -> Result<Logits, StepError> {
    let (whole, some): (Vec<usize>, Vec<usize>) =
        (0..rows.len()).partition(|&at| rows[at].needs_whole_row(k));
    if some.is_empty() {
        return Logits::read(logits, reader);
    }
    let vocab = logits.dims()[1];
    let logits = logits.inner().cast(DType::F32);
    let partial: Vec<&StepRow<'_>> = some.iter().map(|&at| rows[at]).collect();
    let best = Best::of(select_rows(&logits, &some), k);
    let divisors: Vec<f32> = partial.iter().map(|row| row.divisor_before_filters()).collect();
    let wants_log_probs = partial.iter().any(|row| row.wants_reference_log_prob);
    let others = Others::of(&partial, vocab);
    let early = match &predicted {
        Some(predicted) => predicted.ask_early(lm_head, &some, &best.tokens, vocab)?,
        None => None,
    };
    let [expected, error, deep] = match &early {
        Some(early) => early.tensors().map(Some),
        None => [None, None, None],
    };
    let (tokens, [values, masses, masses_at_1, known, wholes, expected, error, deep]) = reader
        .read_with(
            Some(best.tokens.clone()),
            [
                Some(best.values.clone()),
                Some(best.mass(&divisors)),
                wants_log_probs.then(|| best.mass(&vec![1.0; some.len()])),
                others.logits(&best.logits),
                (!whole.is_empty()).then(|| select_rows(&logits, &whole)),
                expected,
                error,
                deep,
            ],
        )?;
    if let (Some(predicted), Some(early)) = (predicted, early) {
        predicted.early = early.answered(&tokens, [&expected, &error, &deep]);
    }
    let mut read = Logits::unknown(logits, rows.len());
    read.set_whole(&whole, wholes);
    for (place, &at) in some.iter().enumerate() {
        let values = values[place * k..][..k].iter().copied();
        let best = tokens[place * k..][..k].iter().copied().zip(values);
        let masses = Masses { divided: masses[place], at_1: masses_at_1.get(place).copied() };
        if let Some(row) = PartialRow::new(vocab, best, others.of_row(place, &known), masses) {
            read.set_best(at, row);
        }
    }
    Ok(read)
}

/// The best logits of each row, on the device.
struct Best {
    /// `[rows, vocab]`
    logits: Tensor<2>,
    /// The `k` best logits of each row in any order, `[rows, k]`. Garbage in a row with fewer finite logits, or with
    /// one that is NaN.
    values: Tensor<2>,
    /// Their tokens, `[rows, k]`, each below `vocab`.
    tokens: Tensor<2, Int>,
    /// All logits in groups, `[rows, groups, GROUP]`; the last group is padded with the smallest number.
    groups: Tensor<3>,
}

impl Best {
    fn of(logits: Tensor<2>, k: usize) -> Self {
        let ([rows, vocab], device) = (logits.dims(), logits.device());
        let count = vocab.div_ceil(GROUP);
        let missing = count * GROUP - vocab;
        let padded = if missing == 0 {
            logits.clone()
        } else {
            let padding = Tensor::full([rows, missing], f32::MIN, (&device, DType::F32));
            Tensor::cat(vec![logits.clone(), padding], 1)
        };
        let groups = padded.clone().reshape([rows, count, GROUP]);
        let (values, tokens) = if count <= 2 * k {
            logits.clone().topk_with_indices(k, 1)
        } else {
            let (_, chosen) =
                groups.clone().max_dim(2).reshape([rows, count]).topk_with_indices(k, 1);
            let chosen = in_range(chosen, count).reshape([rows, k, 1]) * GROUP as i32;
            let within = Tensor::<1, Int>::arange(0..GROUP as i64, &device);
            let members = (chosen + within.reshape([1, 1, GROUP])).reshape([rows, k * GROUP]);
            let (values, places) = padded.gather(1, members.clone()).topk_with_indices(k, 1);
            (values, members.gather(1, in_range(places, k * GROUP)))
        };
        Self { logits, values, tokens: in_range(tokens, vocab), groups }
    }

    /// `Σ exp((logit − max) / divisor)` of each row, `[rows, 1]`.
    fn mass(&self, divisors: &[f32]) -> Tensor<2> {
        let [rows, count, _] = self.groups.dims();
        let below = self.groups.clone() - self.values.clone().max_dim(1).reshape([rows, 1, 1]);
        let scaled = if divisors.iter().all(|&divisor| divisor == 1.0) {
            below
        } else {
            below / from_f32(divisors.to_vec(), [rows, 1, 1], &self.values.device())
        };
        // In two stages: shorter sums are more exact, and fast on a GPU.
        scaled.exp().sum_dim(2).reshape([rows, count]).sum_dim(1)
    }
}

/// Indices within `0..len`: a search that found nothing returns an index that is out of range.
fn in_range(indices: Tensor<2, Int>, len: usize) -> Tensor<2, Int> {
    indices.clamp(0, len as i64 - 1)
}

/// The tokens of each row whose logits penalties and bias may change.
struct Others {
    tokens: Vec<Vec<TokenId>>,
    /// The most tokens of a row.
    width: usize,
}

impl Others {
    fn of(rows: &[&StepRow<'_>], vocab: usize) -> Self {
        let tokens = rows.iter().map(|row| {
            // A row with an unknown token fails when its pool is filled.
            let mut tokens = row.sampling.adjustable(&row.context(), vocab).unwrap_or_default();
            tokens.sort_unstable();
            tokens.dedup();
            tokens
        });
        let tokens: Vec<_> = tokens.collect();
        let width = tokens.iter().map(Vec::len).max().unwrap_or_default();
        Self { tokens, width }
    }

    /// Their logits, `[rows, width]`, if there are any.
    fn logits(&self, logits: &Tensor<2>) -> Option<Tensor<2>> {
        if self.width == 0 {
            return None;
        }
        let padded = self.tokens.iter().flat_map(|tokens| {
            let tokens = tokens.iter().map(|&token| token as i32);
            tokens.chain(std::iter::repeat(0)).take(self.width)
        });
        let padded = TensorData::new(padded.collect::<Vec<_>>(), [self.tokens.len(), self.width]);
        Some(logits.clone().gather(1, Tensor::from_data(padded, &logits.device())))
    }

    /// The tokens of a row with their logits, from those that were read.
    fn of_row(&self, row: usize, read: &[f32]) -> impl Iterator<Item = (TokenId, f32)> {
        let read = read.get(row * self.width..).unwrap_or_default();
        self.tokens[row].iter().copied().zip(read.iter().copied())
    }
}
