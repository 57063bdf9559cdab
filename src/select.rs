//! One token from the race.

use crate::{candidates::Candidates, draw::Draw, id::TokenId};

/// Chooses a token and gives its log-probability among the candidates, in nats.
///
/// Greedy takes the best one. Otherwise the cumulated probabilities of the candidates, best first and in `f64`, are
/// compared with the draw's one uniform number.
pub(crate) fn select(candidates: &Candidates, draw: Draw, greedy: bool) -> (TokenId, f32) {
    let probabilities = candidates.probabilities();
    let chosen = if greedy { 0 } else { invert(&probabilities, draw.uniform()) };
    (candidates.as_slice()[chosen].token, probabilities[chosen].ln() as f32)
}

/// The first place at which the cumulated probabilities exceed `uniform`; the last one that can be drawn where rounding
/// keeps them below it.
fn invert(probabilities: &[f64], uniform: f64) -> usize {
    let mut cumulated = 0.0;
    let above = probabilities.iter().position(|probability| {
        cumulated += probability;
        cumulated > uniform
    });
    above.unwrap_or_else(|| probabilities.iter().rposition(|&p| p > 0.0).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draw::DrawKey;

    #[test]
    fn invert_at_the_borders() {
        let p = [0.5, 0.25, 0.25];
        let table = [(0.0, 0), (0.4999, 0), (0.5, 1), (0.7499, 1), (0.75, 2), (0.9999, 2)];
        for (uniform, place) in table {
            assert_eq!(invert(&p, uniform), place, "{uniform}");
        }
        let short = [0.5, 0.4999999, 0.0];
        assert_eq!(invert(&short, 0.99999999), 1, "rounding never draws what has no mass");
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = [0.1f32, 0.6, 0.3].map(f32::ln);
        let candidates = Candidates::from_logits(&logits).unwrap();
        let mut counts = [0.0; 3];
        let draws = 20_000;
        for position in 0..draws {
            let draw = DrawKey::new(1, &[4, 5], 0).at(position);
            counts[select(&candidates, draw, false).0 as usize] += 1.0 / draws as f64;
        }
        // Standard deviation of a share is below 0.0035.
        for (count, p) in counts.iter().zip([0.1, 0.6, 0.3]) {
            assert!((count - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[test]
    fn greedy_takes_the_best() {
        let candidates = Candidates::from_logits(&[0.0, 1.0, 0.5]).unwrap();
        let (token, log_prob) = select(&candidates, DrawKey::new(0, &[], 0).at(0), true);
        assert_eq!(token, 1);
        let total = 1.0f32.exp() + 0.5f32.exp() + 1.0;
        assert!((log_prob - (1.0 - total.ln())).abs() < 1e-6);
    }
}
