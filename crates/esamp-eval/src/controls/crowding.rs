//! Embedding crowding: candidates that are near-duplicates of better ones are held back.

use std::{fmt, sync::Arc};

use burn::tensor::{DType, Device, Tensor};
use esamp::{
    CausalLm,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter},
};
use esamp_programs::failure::Failure;

/// `logit + ln(1 − c)`: every candidate's probability is multiplied by `1 − c`, where `c` is its crowding, and the
/// probabilities are normalised again.
///
/// With `p` the probabilities of the candidates and `s` the cosine of two [directions](HeadDirections) of the LM head,
///
/// ```text
/// c_i = Σ p_j·s_ij   over the candidates j better than i with s_ij ≥ THRESHOLD and p_j ≥ LEAST
/// ```
///
/// `c` is between 0 and 1: the probability of the better near-duplicates, each weighted by how near it is. The best of
/// several near-duplicates keeps its probability, the others lose some, and candidates without neighbours gain what
/// these lose. Hidden states play no part, so this spreads tokens and nothing else.
///
/// The idea is that of *CraEG* (arXiv 2601.22536): probability that is concentrated on tokens with similar embeddings is
/// reduced in one pass, without training, by cosines and probabilities. The formula, the threshold and who is held back
/// are ours: only an outline of the paper's was available, in which a factor is applied to candidates that are both
/// probable and crowded, best ones included.
///
/// As with every reweighter, the first token of a completion is unchanged. Cost of a row: `d_model` products for each
/// pair of a candidate and a better one with at least [`LEAST`](Self::LEAST), of which there are at most 1,000.
#[derive(Clone, Debug)]
pub struct Crowding {
    head: Arc<HeadDirections>,
}

impl Crowding {
    /// The least cosine of near-duplicates. In SmolLM2's head, 99.9 % of random pairs of words are below 0.51, and a word
    /// and itself with a capital letter have 0.66 (median). `docs/design/round-2.md` has more quantiles.
    pub const THRESHOLD: f32 = 0.5;

    /// A better candidate with less probability crowds nothing. It bounds the cost of rows without a filter.
    pub const LEAST: f64 = 1e-3;

    /// The reweighter for a model.
    pub fn new(head: Arc<HeadDirections>) -> Self {
        Self { head }
    }

    /// The crowding of each candidate, best first.
    fn crowding(&self, candidates: &Candidates) -> Vec<f64> {
        let (slice, probabilities) = (candidates.as_slice(), candidates.probabilities());
        let crowds = probabilities.iter().take_while(|&&p| p >= Self::LEAST).count();
        let better = |at: usize| slice[..at.min(crowds)].iter().zip(&probabilities);
        let crowding = slice.iter().enumerate().map(|(at, candidate)| {
            let near = better(at).filter_map(|(other, p)| {
                let cosine = self.head.cosine(candidate.token, other.token);
                (cosine >= Self::THRESHOLD).then(|| p * f64::from(cosine.min(1.0)))
            });
            near.sum::<f64>()
        });
        crowding.collect()
    }
}

impl NoveltyReweighter for Crowding {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        // `rescore` visits the candidates in their current order and sorts them at the end.
        let mut crowding = self.crowding(candidates).into_iter();
        candidates.rescore(|candidate| {
            let left = 1.0 - crowding.next().unwrap_or(0.0);
            // Rounding may leave nothing of a candidate whose probability is below 1e-16.
            (f64::from(candidate.logit) + left.max(f64::EPSILON).ln()) as f32
        });
    }

    fn expects(&self) -> Expects {
        Expects::Nothing
    }
}

/// The rows of a model's LM head minus their mean, each divided by its length.
///
/// The mean row adds the same to all logits and so changes no probability, but it dominates the cosines: without removing
/// it, two random tokens of SmolLM2 have a cosine of 0.46.
#[derive(Clone)]
pub struct HeadDirections {
    d_model: usize,
    rows: Vec<f32>,
}

impl fmt::Debug for HeadDirections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadDirections").field("d_model", &self.d_model).finish_non_exhaustive()
    }
}

impl HeadDirections {
    /// Those of a model with a linear head. A row that is the mean stays zero. Cost: the product of the head with a square
    /// matrix, and its size in `f32` on the host.
    ///
    /// # Errors
    ///
    /// A head that is not linear, and errors of the device.
    pub fn of<M: CausalLm>(model: &M) -> Result<Self, Failure> {
        let device: Device = model.device();
        let (d_model, vocab) = (model.d_model(), model.vocab_size());
        let axes = Tensor::<2>::eye(d_model, &device).cast(DType::F32);
        let Some(columns) = model.lm_head().product(axes, None) else {
            return Err(Failure::usage(
                "crowding: expected a model with a linear LM head, got one with another head"
                    .to_owned(),
                "remove the arm",
            ));
        };
        let step = "report this with the command line that led to it";
        let data = columns.cast(DType::F32).try_into_data();
        let data = data.map_err(|error| Failure::new(format!("crowding: {error:?}"), step))?;
        let columns: Vec<f32> = data
            .try_into_vec()
            .map_err(|error| Failure::new(format!("crowding: {error:?}"), step))?;
        Ok(Self::from_columns(&columns, d_model, vocab))
    }

    /// From the transposed matrix, `[d_model, vocab]`.
    fn from_columns(columns: &[f32], d_model: usize, vocab: usize) -> Self {
        /// Tokens that are transposed together, so that a cache line is read once.
        const BLOCK: usize = 64;
        let mut rows = vec![0.0; vocab * d_model];
        for first in (0..vocab).step_by(BLOCK) {
            for (dimension, column) in columns.chunks_exact(vocab.max(1)).enumerate() {
                for token in first..vocab.min(first + BLOCK) {
                    rows[token * d_model + dimension] = column[token];
                }
            }
        }
        let mean: Vec<f32> = columns
            .chunks_exact(vocab.max(1))
            .map(|column| column.iter().map(|&x| f64::from(x)).sum::<f64>() / vocab as f64)
            .map(|mean| mean as f32)
            .collect();
        for row in rows.chunks_exact_mut(d_model.max(1)) {
            row.iter_mut().zip(&mean).for_each(|(number, mean)| *number -= mean);
            let length = dot(row, row).sqrt();
            if length > 0.0 {
                row.iter_mut().for_each(|number| *number /= length);
            }
        }
        Self { d_model, rows }
    }

    /// The cosine of the rows of two tokens below the vocabulary's size.
    pub fn cosine(&self, a: u32, b: u32) -> f32 {
        let row = |token: u32| &self.rows[token as usize * self.d_model..][..self.d_model];
        dot(row(a), row(b))
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums, so that the compiler can use vector instructions.
    let mut sums = [0.0f32; 8];
    let (a, b) = (a.chunks(8), b.chunks(8));
    for (a, b) in a.zip(b) {
        for (sum, (x, y)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += x * y;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;
    use crate::controls::tests::context;

    /// Four tokens in the plane: 0 and 1 at a cosine of 0.8, 2 at a right angle to 0 and 0.6 from 1, 3 opposite to 0; and
    /// one that makes the mean of all rows `mean`.
    fn directions(mean: [f32; 2]) -> HeadDirections {
        let [x, y] = mean;
        let first = [1.0, 1.6, 0.0, -2.0, -0.6].map(|number: f32| number + x);
        let second = [0.0, 1.2, 3.0, 0.0, -4.2].map(|number: f32| number + y);
        HeadDirections::from_columns(&[first, second].concat(), 2, 5)
    }

    fn crowding() -> Crowding {
        Crowding::new(Arc::new(directions([0.0; 2])))
    }

    /// The new probabilities of the first four tokens.
    fn shares(logits: &[f32; 4]) -> Vec<f64> {
        let logits = [&logits[..], &[f32::NEG_INFINITY]].concat();
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        crowding().reweight(&context(1), &mut candidates);
        let mut shares = vec![0.0; logits.len()];
        for (candidate, share) in candidates.as_slice().iter().zip(candidates.probabilities()) {
            shares[candidate.token as usize] = share;
        }
        shares
    }

    fn assert_shares(got: &[f64], expected: &[f64]) {
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
        }
    }

    #[test]
    fn rows_are_directions() {
        // What all rows have in common does not count.
        for head in [directions([0.0; 2]), directions([5.0, -3.0])] {
            for (a, b, cosine) in [(0, 0, 1.0), (0, 1, 0.8), (1, 2, 0.6), (0, 2, 0.0), (0, 3, -1.0)]
            {
                assert!((head.cosine(a, b) - cosine).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn by_hand() {
        // Probabilities 0.4, 0.3, 0.2 and 0.1. Token 1 is crowded by 0: 0.4·0.8. Token 2 by 1: 0.3·0.6.
        let logits = [0.4f32, 0.3, 0.2, 0.1].map(f32::ln);
        let left = [0.4, 0.3 * (1.0 - 0.32), 0.2 * (1.0 - 0.18), 0.1];
        let sum: f64 = left.iter().sum();
        assert_shares(&shares(&logits), &left.map(|share| share / sum));
    }

    #[test]
    fn the_best_of_near_duplicates_is_not_held_back() {
        // Token 1 is the best, and holds back both of its neighbours: 0.5·0.8 and 0.5·0.6.
        let logits = [0.3f32, 0.5, 0.15, 0.05].map(f32::ln);
        let left = [0.3 * 0.6, 0.5, 0.15 * 0.7, 0.05];
        let sum: f64 = left.iter().sum();
        let got = shares(&logits);
        assert_shares(&got, &left.map(|share| share / sum));
        assert!(
            got[3] > 0.05 && got[1] > 0.5,
            "what the others lose goes to those without neighbours"
        );
    }

    #[test]
    fn improbable_candidates_crowd_nothing() {
        // Token 3 has nearly all. Token 0 has 3e-4, and would hold back token 1 by as much.
        let got = shares(&[-8.0, -9.0, -30.0, 0.0]);
        assert!((got[1] / got[0] - (-1.0f64).exp()).abs() < 1e-6, "{got:?}");
        // A candidate of which rounding would leave nothing keeps a finite score.
        let twins = HeadDirections::from_columns(&[1.0, 1.0, -2.0], 1, 3);
        let mut candidates = Candidates::from_logits(&[0.0, -60.0, f32::NEG_INFINITY]).unwrap();
        Crowding::new(Arc::new(twins)).reweight(&context(1), &mut candidates);
        let scores = candidates.as_slice();
        assert!(scores[1].token == 1 && scores[1].logit < -90.0 && scores[1].logit.is_finite());
    }
}
