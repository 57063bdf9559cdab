//! Perplexity, entropy and divergence of distributions over tokens.

use super::MetricError;

/// Tolerance for log-probabilities above 0 and for sums of probabilities other than 1: the rounding of
/// `f32` over a large vocabulary.
const TOLERANCE: f64 = 1e-3;

/// The perplexity of a text, `exp(−mean ln p)`, from the natural logarithms of the probabilities a model
/// gives its tokens (Jelinek et al., *Perplexity—a measure of the difficulty of speech recognition tasks*,
/// 1977): the number of equally likely tokens that would leave the model equally undecided.
///
/// At least 1, up to rounding; infinite if a token has probability 0. Under the unmodified model at T = 1
/// without filters it measures how plausible samples are, independently of how they were sampled. For
/// several texts, either pass all their tokens together (a mean over tokens) or average the result over
/// texts, and say which.
///
/// # Errors
///
/// [`MetricError::TooFew`] without tokens, and [`MetricError::OutOfRange`] for NaN and for logarithms above
/// 0 (by more than 1e-3).
///
/// ```
/// // A half and an eighth: the geometric mean is a quarter.
/// assert_eq!(esamp_eval::metrics::perplexity(&[0.5f64.ln(), 0.125f64.ln()])?, 4.0);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn perplexity(log_probs: &[f64]) -> Result<f64, MetricError> {
    MetricError::at_least("log-probabilities", 1, log_probs.len())?;
    check_log_probs("log-probability", log_probs)?;
    Ok((-log_probs.iter().sum::<f64>() / log_probs.len() as f64).exp())
}

/// The entropy of a distribution, `−Σ p·ln p`, in nats, from the natural logarithms of its probabilities
/// (Shannon, 1948).
///
/// From 0 (one token has all probability) to the logarithm of the number of tokens. A token removed by a
/// filter has logarithm `−∞` and adds nothing.
///
/// # Errors
///
/// [`MetricError::TooFew`] for an empty distribution, and [`MetricError::OutOfRange`] for NaN, for
/// logarithms above 0, and for probabilities whose sum is not 1 (by more than 1e-3).
///
/// ```
/// use esamp_eval::metrics::entropy;
///
/// let coin = [0.5f64.ln(), f64::NEG_INFINITY, 0.5f64.ln()];
/// assert_eq!(entropy(&coin)?, 2f64.ln());
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn entropy(log_probs: &[f64]) -> Result<f64, MetricError> {
    check_distribution("distribution", log_probs)?;
    Ok(entropy_of(log_probs))
}

/// `KL(new ‖ reference) = Σ new·(ln new − ln reference)`, in nats, from the natural logarithms of both (Kullback and
/// Leibler, 1951).
///
/// At least 0, and 0 only for equal distributions; infinite if `new` has probability where `reference` has
/// none. Index `i` is the same token in both. For the distributions of a step with and without ESamp, it
/// measures how far ESamp departs from the model.
///
/// # Errors
///
/// Those of [`entropy`] for either distribution, and [`MetricError::Length`] for different lengths.
///
/// ```
/// use esamp_eval::metrics::kl_divergence;
///
/// let (fair, loaded) = ([0.5f64.ln(); 2], [0.25f64.ln(), 0.75f64.ln()]);
/// let kl = kl_divergence(&fair, &loaded)?;
/// assert!((kl - 0.5 * (4.0f64 / 3.0).ln()).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn kl_divergence(new: &[f64], reference: &[f64]) -> Result<f64, MetricError> {
    MetricError::same_length("reference", new.len(), reference.len())?;
    check_distribution("new", new)?;
    check_distribution("reference", reference)?;
    Ok(kl_of(new, reference))
}

/// [`entropy`] of a checked distribution.
fn entropy_of(log_probs: &[f64]) -> f64 {
    // + 0.0: turns −0 into 0 for a distribution on one token.
    -log_probs.iter().map(|&log_prob| weighted(log_prob, log_prob)).sum::<f64>() + 0.0
}

/// [`kl_divergence`] of two checked distributions over the same tokens.
fn kl_of(new: &[f64], reference: &[f64]) -> f64 {
    let terms = new.iter().zip(reference).map(|(new, old)| weighted(*new, new - old));
    // Negative values can only come from rounding.
    terms.sum::<f64>().max(0.0)
}

/// `p·value`, which is 0 for `p = 0` regardless of the value.
fn weighted(log_prob: f64, value: f64) -> f64 {
    let probability = log_prob.exp();
    if probability == 0.0 { 0.0 } else { probability * value }
}

fn check_distribution(what: &str, log_probs: &[f64]) -> Result<(), MetricError> {
    MetricError::at_least(format_args!("{what}, tokens"), 1, log_probs.len())?;
    check_log_probs(what, log_probs)?;
    let sum: f64 = log_probs.iter().map(|log_prob| log_prob.exp()).sum();
    let name = format_args!("{what}, sum of probabilities");
    MetricError::check((sum - 1.0).abs() <= TOLERANCE, name, 1, sum)
}

fn check_log_probs(what: &str, log_probs: &[f64]) -> Result<(), MetricError> {
    for (at, &log_prob) in log_probs.iter().enumerate() {
        let name = format_args!("{what} {at}");
        MetricError::check(log_prob <= TOLERANCE, name, "a logarithm of at most 0", log_prob)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logs(probabilities: &[f64]) -> Vec<f64> {
        probabilities.iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn by_hand() {
        assert_eq!(perplexity(&[0.0, 0.0]).unwrap(), 1.0);
        assert_eq!(perplexity(&[-1.0, f64::NEG_INFINITY]).unwrap(), f64::INFINITY);
        for n in [1u32, 4, 1000] {
            let uniform = vec![-f64::from(n).ln(); n as usize];
            assert!((entropy(&uniform).unwrap() - f64::from(n).ln()).abs() < 1e-12);
            assert!((perplexity(&uniform).unwrap() - f64::from(n)).abs() < 1e-9);
        }
        let certain = logs(&[0.0, 1.0]);
        assert_eq!(entropy(&certain).unwrap(), 0.0);
        assert!(entropy(&certain).unwrap().is_sign_positive());
        let (a, b) = (logs(&[0.1, 0.4, 0.3, 0.2]), logs(&[0.4, 0.1, 0.2, 0.3]));
        let expected = 0.3 * 4f64.ln() + 0.1 * 1.5f64.ln();
        assert!((kl_divergence(&a, &b).unwrap() - expected).abs() < 1e-12);
        assert_eq!(kl_divergence(&a, &a).unwrap(), 0.0);
    }

    #[test]
    fn tokens_without_probability() {
        let (half, all) = (logs(&[0.5, 0.5, 0.0]), logs(&[0.25, 0.25, 0.5]));
        assert!((kl_divergence(&half, &all).unwrap() - 2f64.ln()).abs() < 1e-12);
        assert_eq!(kl_divergence(&all, &half).unwrap(), f64::INFINITY);
        assert_eq!(kl_divergence(&half, &half).unwrap(), 0.0, "0·(−∞ + ∞) is 0");
    }

    #[test]
    fn what_is_no_distribution_is_an_error() {
        let text = |log_probs: &[f64]| entropy(log_probs).unwrap_err().to_string();
        assert_eq!(text(&[]), "distribution, tokens: expected at least 1, got 0");
        assert_eq!(text(&[0.0, 0.0]), "distribution, sum of probabilities: expected 1, got 2");
        assert_eq!(text(&[2.0]), "distribution 0: expected a logarithm of at most 0, got 2");
        assert_eq!(text(&[f64::NAN]), "distribution 0: expected a logarithm of at most 0, got NaN");
        assert!(entropy(&[f64::NEG_INFINITY]).is_err());
        let text = kl_divergence(&[0.0], &logs(&[0.5, 0.5])).unwrap_err().to_string();
        assert_eq!(text, "reference: expected 1 values, got 2");
        let text = perplexity(&[]).unwrap_err().to_string();
        assert_eq!(text, "log-probabilities: expected at least 1, got 0");
        assert!(perplexity(&[-1.0, 0.5]).is_err() && perplexity(&[f64::NAN]).is_err());
    }
}
