//! Scores of candidates as vectors: centred, projected, drawn at random. In `f64`, one number per candidate.

use esamp::filters::{Candidates, RowContext};
use rand_distr::{Distribution, StandardNormal};

use crate::metrics::dot;

/// The Euclidean length.
pub(super) fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

/// The values minus their mean.
pub(super) fn centred(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    for value in &mut values {
        *value -= mean;
    }
    values
}

/// The reference logits minus their mean.
pub(super) fn reference(candidates: &Candidates) -> Vec<f64> {
    centred(candidates.as_slice().iter().map(|c| f64::from(c.logit)))
}

/// `logit − expected` minus its mean: ESamp adds β times this.
pub(super) fn perturbation(candidates: &Candidates) -> Vec<f64> {
    let slice = candidates.as_slice().iter();
    centred(slice.map(|c| f64::from(c.logit) - f64::from(c.expected)))
}

/// One standard normal number for each candidate, minus their mean.
///
/// The number of a token has a fixed place in the stream `purpose` of the row's draw
/// ([`Draw::rng_at`](esamp::filters::Draw::rng_at)), so it does not depend on the other candidates or their order.
/// Cost: one to four blocks of ChaCha8 per candidate, about 100 ns; 5 ms for a row of 50,000 tokens without a filter.
pub(super) fn random(row: &RowContext<'_>, purpose: &str, candidates: &Candidates) -> Vec<f64> {
    let draw = row.draw.apart(purpose);
    centred(
        candidates
            .as_slice()
            .iter()
            .map(|candidate| StandardNormal.sample(&mut draw.rng_at(u64::from(candidate.token)))),
    )
}

/// Removes the component along `reference` from `vector` and returns its slope, `⟨vector, reference⟩ / ⟨reference,
/// reference⟩`. Returns `None` and leaves the vector unchanged if the reference has no variance.
pub(super) fn take_out(vector: &mut [f64], reference: &[f64]) -> Option<f64> {
    let variance = dot(reference, reference);
    if variance == 0.0 {
        return None;
    }
    let slope = dot(vector, reference) / variance;
    for (v, r) in vector.iter_mut().zip(reference) {
        *v -= slope * r;
    }
    Some(slope)
}

/// Adds `scale · direction` to the scores.
pub(super) fn add(candidates: &mut Candidates, scale: f64, direction: &[f64]) {
    // Visits the candidates in their order, which is that of `direction`, and sorts them at the end.
    let mut at = 0;
    candidates.rescore(|candidate| {
        let score = f64::from(candidate.logit) + scale * direction[at];
        at += 1;
        score as f32
    });
}

/// Adds `reward`, scaled to the length of β times the perturbation, that is, with the same variance over the
/// candidates. Adds nothing if the reward has no direction.
pub(super) fn add_matched(candidates: &mut Candidates, beta: f32, reward: &[f64]) {
    let length = norm(reward);
    if length > 0.0 {
        let matched = f64::from(beta) * norm(&perturbation(candidates));
        add(candidates, matched / length, reward);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;
    use crate::controls::tests::context;

    #[test]
    fn a_tokens_number_does_not_depend_on_the_other_candidates() {
        // The mean is taken over the candidates present; differences between two tokens' numbers do not depend on it.
        let difference = |logits: &[f32]| {
            let candidates = Candidates::from_logits(logits).unwrap();
            let numbers = random(&context(5), "test", &candidates);
            let of = |token| {
                let place = candidates.as_slice().iter().position(|c| c.token == token).unwrap();
                numbers[place]
            };
            of(4) - of(1)
        };
        const OUT: f32 = f32::NEG_INFINITY;
        let alone = difference(&[OUT, 1.0, OUT, OUT, 0.0]);
        for other in [[0.5, 1.0, 9.0, 0.0, 2.0], [OUT, 0.0, 3.0, OUT, 1.0]] {
            assert!((difference(&other) - alone).abs() < 1e-12);
        }
    }

    #[test]
    fn the_numbers_are_normal() {
        let candidates = Candidates::from_logits(&[0.0; 4000]).unwrap();
        let numbers = random(&context(0), "test", &candidates);
        let moment = |power| numbers.iter().map(|n| n.powi(power)).sum::<f64>() / 4000.0;
        // Standard deviations of the second and fourth moment: √(2/n) = 0.022 and √(96/n) = 0.155.
        assert!((moment(2) - 1.0).abs() < 0.09, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.6, "{}", moment(4));
    }
}
