//! Host arithmetic in `f64`: dot products, slopes, distributions.

/// The dot product, `Σ a·b`.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The Euclidean norm.
pub(crate) fn norm(vector: &[f64]) -> f64 {
    dot(vector, vector).sqrt()
}

/// The values minus their mean.
pub(crate) fn centred(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    for value in &mut values {
        *value -= mean;
    }
    values
}

/// The least-squares slope of `y` on `x`, both [`centred`]: `⟨y, x⟩ / ⟨x, x⟩`. `None` if `x` has no variance.
pub(crate) fn slope(y: &[f64], x: &[f64]) -> Option<f64> {
    let variance = dot(x, x);
    (variance != 0.0).then(|| dot(y, x) / variance)
}

/// The log-probabilities, in nats, of probabilities proportional to `exp(score)`. They are finite even if a
/// probability rounds to 0. `unseen` is the mass of scores that are not listed, relative to that of the largest
/// score.
pub(crate) fn log_softmax(scores: impl IntoIterator<Item = f64>, unseen: f64) -> Vec<f64> {
    let scores: Vec<f64> = scores.into_iter().collect();
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total = scores.iter().map(|score| (score - best).exp()).sum::<f64>() + unseen;
    scores.into_iter().map(|score| score - best - total.ln()).collect()
}

/// The entropy `−Σ p ln p`, in nats, from log-probabilities. A probability of 0 contributes nothing.
pub(crate) fn entropy(log_probs: &[f64]) -> f64 {
    // + 0.0: a distribution on one token has entropy 0 instead of −0.
    -log_probs.iter().map(|&log_prob| weighted(log_prob, log_prob)).sum::<f64>() + 0.0
}

/// `KL(new ‖ reference) = Σ new·(ln new − ln reference)`, in nats, from the log-probabilities of both. At least 0.
pub(crate) fn kl_divergence(new: &[f64], reference: &[f64]) -> f64 {
    let terms = new.iter().zip(reference).map(|(new, old)| weighted(*new, new - old));
    // Rounding could make it negative.
    terms.sum::<f64>().max(0.0)
}

/// `p·value`, where `p = exp(log_prob)`; 0 for `p = 0`, even if `value` is not finite.
fn weighted(log_prob: f64, value: f64) -> f64 {
    let probability = log_prob.exp();
    if probability == 0.0 { 0.0 } else { probability * value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_slope_and_a_constant_none() {
        let x = centred([1.0, 2.0, 4.0]);
        let y = centred([3.0, 5.0, 9.0]);
        assert!((slope(&y, &x).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(slope(&x, &centred([7.0; 3])), None);
    }

    #[test]
    fn distributions_by_hand() {
        let logs = log_softmax([0.0, 3f64.ln()], 0.0);
        assert!((logs[0] - 0.25f64.ln()).abs() < 1e-12 && (logs[1] - 0.75f64.ln()).abs() < 1e-12);
        // 1 / (1 + 1/3 + 2/3) for the largest score.
        let part = log_softmax([0.0, 3f64.ln()], 2.0 / 3.0);
        assert!((part[1] - 0.5f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[0.0, f64::NEG_INFINITY]), 0.0);
        assert!((entropy(&[0.5f64.ln(); 2]) - 2f64.ln()).abs() < 1e-12);
        assert_eq!(kl_divergence(&logs, &logs), 0.0);
    }
}
