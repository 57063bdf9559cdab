//! Self-BLEU: how much of each text occurs in the others.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::MetricError;
use esamp::TokenId;

/// What BLEU uses as the precision of an n-gram order without matches, named as by Chen and Cherry (*A
/// Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU*, WMT 2014).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Smoothing {
    /// 0: a text that shares no n-gram of the highest order with the others scores 0, regardless of what else it
    /// shares.
    None,
    /// Technique 1: 0.1 matches instead of none. The usual choice for self-BLEU.
    #[default]
    Epsilon,
    /// Technique 2: adds one match and one n-gram at every order except the first (Lin and Och, 2004).
    AddOne,
}

/// Self-BLEU: the mean BLEU of each text with the others as references (Zhu et al., *Texygen*, arXiv
/// 1802.01886). Lower if texts differ in their words.
///
/// BLEU (Papineni et al., 2002) of a text of `l` tokens: the geometric mean over the orders 1 to
/// `max_order` of the share of its n-grams that occur in a reference (each counted at most as often as in
/// the reference that has it most often), times `exp(1 − r/l)` if `r > l`, where `r` is the length of the
/// reference closest in length (the shorter of two). 0 if no token matches; a text shorter than an order
/// has one n-gram of it, unmatched.
///
/// In `[0, 1]`. `max_order` is 4 or 5 in most papers. Cost: one pass over the n-grams per order, and `n²`
/// lengths.
///
/// # Errors
///
/// [`MetricError::OutOfRange`] if `max_order` is 0, and [`MetricError::TooFew`] for fewer than two texts or
/// for a text without tokens, whose overlap is undefined. Leave empty texts out and count them separately.
///
/// ```
/// use esamp_eval::metrics::{Smoothing, self_bleu};
///
/// let same = self_bleu(&[[1, 2, 3], [1, 2, 3]], 2, Smoothing::None)?;
/// assert!((same - 1.0).abs() < 1e-12);
/// // In each, two of three tokens match and one of two pairs: √(2/3 · 1/2).
/// let near = self_bleu(&[[1, 2, 3], [1, 2, 4]], 2, Smoothing::None)?;
/// assert!((near - (1.0f64 / 3.0).sqrt()).abs() < 1e-12);
/// # Ok::<(), esamp_eval::metrics::MetricError>(())
/// ```
pub fn self_bleu<T: AsRef<[TokenId]>>(
    texts: &[T],
    max_order: usize,
    smoothing: Smoothing,
) -> Result<f64, MetricError> {
    MetricError::check(max_order >= 1, "max_order", "at least 1", max_order)?;
    MetricError::at_least("texts", 2, texts.len())?;
    let texts: Vec<&[TokenId]> = texts.iter().map(AsRef::as_ref).collect();
    for (at, text) in texts.iter().enumerate() {
        MetricError::at_least(format_args!("text {at}, tokens"), 1, text.len())?;
    }
    let mut logs = vec![0.0; texts.len()];
    for order in 1..=max_order {
        for ((log, text), found) in logs.iter_mut().zip(&texts).zip(matches(&texts, order)) {
            let total = text.len().saturating_sub(order - 1).max(1);
            *log += precision(order, found, total, smoothing).ln() / max_order as f64;
        }
    }
    let score = |(at, log): (usize, &f64)| brevity(&texts, at) * log.exp();
    Ok(logs.iter().enumerate().map(score).sum::<f64>() / texts.len() as f64)
}

fn precision(order: usize, found: usize, total: usize, smoothing: Smoothing) -> f64 {
    /// Chen and Cherry's ε, as in the reference implementations.
    const EPSILON: f64 = 0.1;
    let (found, total) = match smoothing {
        _ if order == 1 => (found as f64, total as f64),
        Smoothing::None => (found as f64, total as f64),
        Smoothing::Epsilon => (if found == 0 { EPSILON } else { found as f64 }, total as f64),
        Smoothing::AddOne => (found as f64 + 1.0, total as f64 + 1.0),
    };
    found / total
}

/// The number of n-grams of each text that occur in the others.
fn matches(texts: &[&[TokenId]], order: usize) -> Vec<usize> {
    let counts: Vec<HashMap<&[TokenId], usize>> = texts
        .iter()
        .map(|text| {
            let mut counts = HashMap::new();
            for gram in text.windows(order) {
                *counts.entry(gram).or_default() += 1;
            }
            counts
        })
        .collect();
    // Per n-gram: the text that has it most often, how often, and the most in any other text.
    let mut most: HashMap<&[TokenId], (usize, usize, usize)> = HashMap::new();
    for (at, counts) in counts.iter().enumerate() {
        for (gram, &count) in counts {
            let best = most.entry(gram).or_insert((at, 0, 0));
            *best = match *best {
                (_, first, _) if count > first => (at, count, first),
                (text, first, second) => (text, first, second.max(count)),
            };
        }
    }
    let found = |(at, counts): (usize, &HashMap<&[TokenId], usize>)| {
        let of = |(gram, count): (&&[TokenId], &usize)| {
            let (text, first, second) = most.get(gram).copied().unwrap_or((at, 0, 0));
            (*count).min(if text == at { second } else { first })
        };
        counts.iter().map(of).sum()
    };
    counts.iter().enumerate().map(found).collect()
}

/// The brevity penalty: the factor for a text shorter than its closest reference.
fn brevity(texts: &[&[TokenId]], at: usize) -> f64 {
    let length = texts[at].len();
    let others = texts.iter().enumerate().filter(|(other, _)| *other != at);
    let nearest = others.map(|(_, text)| text.len()).min_by_key(|&l| (l.abs_diff(length), l));
    (1.0 - nearest.unwrap_or(length) as f64 / length as f64).min(0.0).exp()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// BLEU from its definition, counting every n-gram in every reference.
    fn bleu(
        text: &[TokenId],
        references: &[&[TokenId]],
        orders: usize,
        smoothing: Smoothing,
    ) -> f64 {
        let often = |gram: &[TokenId], text: &[TokenId]| {
            text.windows(gram.len()).filter(|other| *other == gram).count()
        };
        let mut product = 1.0;
        for order in 1..=orders {
            let (mut found, mut seen) = (0, Vec::new());
            for gram in text.windows(order).filter(|gram| gram.len() == order) {
                if !seen.contains(&gram) {
                    let most = references.iter().map(|other| often(gram, other)).max().unwrap();
                    found += often(gram, text).min(most);
                    seen.push(gram);
                }
            }
            let total = text.windows(order).count().max(1);
            product *= match (smoothing, found) {
                (_, 0) if order == 1 => return 0.0,
                (Smoothing::Epsilon, 0) => 0.1 / total as f64,
                (Smoothing::AddOne, _) if order > 1 => (found + 1) as f64 / (total + 1) as f64,
                _ => found as f64 / total as f64,
            };
        }
        let mut lengths: Vec<usize> = references.iter().map(|other| other.len()).collect();
        lengths.sort_unstable();
        let nearest = lengths.into_iter().min_by_key(|l| l.abs_diff(text.len())).unwrap();
        let penalty = if nearest > text.len() {
            (1.0 - nearest as f64 / text.len() as f64).exp()
        } else {
            1.0
        };
        penalty * product.powf(1.0 / orders as f64)
    }

    #[test]
    fn by_hand() {
        let score =
            |texts: &[&[TokenId]], order, smoothing| self_bleu(texts, order, smoothing).unwrap();
        // Clipping: two of 7 7 7 match; the other text matches completely but is shorter: e^(1 − 3/2).
        let got = score(&[&[7, 7, 7], &[7, 7]], 1, Smoothing::None);
        assert!((got - (2.0 / 3.0 + (-0.5f64).exp()) / 2.0).abs() < 1e-12);
        // No match is 0 with every smoothing.
        for smoothing in [Smoothing::None, Smoothing::Epsilon, Smoothing::AddOne] {
            assert_eq!(score(&[&[1, 2], &[3, 4]], 2, smoothing), 0.0);
        }
        // One common token of two and no common pair: 0, √(½ · 0.1/1), √(½ · 1/2).
        let texts: [&[TokenId]; 2] = [&[1, 2], &[1, 3]];
        assert_eq!(score(&texts, 2, Smoothing::None), 0.0);
        assert!((score(&texts, 2, Smoothing::Epsilon) - 0.05f64.sqrt()).abs() < 1e-12);
        assert!((score(&texts, 2, Smoothing::AddOne) - 0.5).abs() < 1e-12);
        // Shorter than the order: one n-gram, unmatched.
        assert!((score(&[&[1], &[1]], 2, Smoothing::Epsilon) - 0.1f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn an_undefined_overlap_is_an_error() {
        let text = |texts: &[&[TokenId]], order| {
            self_bleu(texts, order, Smoothing::default()).unwrap_err().to_string()
        };
        assert_eq!(text(&[&[1], &[2]], 0), "max_order: expected at least 1, got 0");
        assert_eq!(text(&[&[1]], 4), "texts: expected at least 2, got 1");
        assert_eq!(text(&[&[1], &[]], 4), "text 1, tokens: expected at least 1, got 0");
    }

    proptest! {
        #[test]
        fn the_mean_bleu_of_each_with_the_others(
            texts in prop::collection::vec(prop::collection::vec(0u32..4, 1..9), 2..6),
            orders in 1usize..5,
        ) {
            for smoothing in [Smoothing::None, Smoothing::Epsilon, Smoothing::AddOne] {
                let mut sum = 0.0;
                for (at, text) in texts.iter().enumerate() {
                    let others = texts.iter().enumerate().filter(|(other, _)| *other != at);
                    let others: Vec<&[TokenId]> = others.map(|(_, text)| &text[..]).collect();
                    sum += bleu(text, &others, orders, smoothing);
                }
                let got = self_bleu(&texts, orders, smoothing).unwrap();
                let expected = sum / texts.len() as f64;
                prop_assert!((got - expected).abs() < 1e-12, "{smoothing:?}: {got}, {expected}");
                prop_assert!((0.0..1.0 + 1e-12).contains(&got));
            }
        }
    }
}
