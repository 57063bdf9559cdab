//! Selection of one token from the candidates.

use std::{fmt::Debug, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    candidates::{Candidates, RowContext},
    custom::Custom,
    draw::{Draw, GRID, on_grid},
    error::RowError,
    id::TokenId,
};

/// How a token is selected from the candidates, for rows that are not greedy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Selection {
    /// The row's own random stream: completions are independent.
    #[default]
    Random,
    /// A code that the row carries through its completion. The codes of a prompt's completions are evenly spread over
    /// `[0, 1)` (Vilnis et al., *Arithmetic Sampling: Parallel Diverse Decoding for Large Language Models*, arXiv
    /// 2210.15458).
    ///
    /// A step takes the token whose interval of the cumulative distribution contains the code, then rescales that
    /// interval, and the code with it, to `[0, 1)`. Each completion alone is a fair sample; together they repeat each
    /// other less: as long as K rows have the same distribution, they choose a token of probability p between `K·p −
    /// 1` and `K·p + 1` times. A completion's tokens therefore also depend on K.
    ///
    /// A code is a real number of which 53 binary digits are known at any time. The digits that a step uses up are
    /// replaced by random ones from `draw.apart("arithmetic")`, so a code lasts for a completion of any length.
    Arithmetic,
    /// A custom rule: see [`custom`](Self::custom). Settings that contain one cannot be serialised.
    #[serde(skip_deserializing)]
    Custom(Custom<dyn TokenSelector>),
}

impl Selection {
    /// Wraps a custom rule.
    pub fn custom(selector: impl TokenSelector + 'static) -> Self {
        Self::Custom(Custom(Arc::new(selector)))
    }
}

/// A custom rule that selects a token from the candidates.
///
/// ```
/// use esamp::{
///     Sampling, Selection, TokenId, TokenSelector,
///     filters::{Candidates, RowContext},
/// };
///
/// /// The least likely token that the filters have kept.
/// #[derive(Debug)]
/// struct Last;
///
/// impl TokenSelector for Last {
///     fn select(&self, _row: &RowContext<'_>, candidates: &Candidates) -> TokenId {
///         candidates.as_slice()[candidates.len() - 1].token
///     }
/// }
///
/// let sampling = Sampling::new().with_min_p(0.1).with_selection(Selection::custom(Last));
/// # let _ = sampling;
/// ```
pub trait TokenSelector: Debug + Send + Sync {
    /// Returns the token of one of the candidates. Any other token fails the row with [`RowError::NotACandidate`].
    ///
    /// The result must depend only on the arguments: a steered row is selected twice, before and after reweighting, to
    /// count interventions. Random numbers come from `row.draw`.
    fn select(&self, row: &RowContext<'_>, candidates: &Candidates) -> TokenId;
}

/// How the token of a row is chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Chooser<'a> {
    /// The candidate with the highest score.
    Greedy,
    /// With the uniform number of the draw.
    Random(Draw),
    /// With this code in `[0, 1)`, and new digits from the draw.
    Arithmetic(f64, Draw),
    /// By a custom rule.
    Custom(&'a dyn TokenSelector, RowContext<'a>),
}

/// The selected token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Selected {
    pub(crate) token: TokenId,
    /// Log-probability of the token among the candidates, in nats.
    pub(crate) log_prob: f32,
    /// The code for the next token; `None` unless the selection is arithmetic.
    pub(crate) code: Option<f64>,
}

/// Chooses a token by inverse transform sampling: a number in `[0, 1)` is compared with the cumulative probabilities
/// of the candidates, best first and in `f64`.
///
/// # Errors
///
/// [`RowError::NotACandidate`] if a custom rule returns a token that is not a candidate.
pub(crate) fn select(candidates: &Candidates, chooser: Chooser<'_>) -> Result<Selected, RowError> {
    let probabilities = candidates.probabilities();
    let chosen = match chooser {
        Chooser::Greedy => 0,
        Chooser::Random(draw) => invert(&probabilities, draw.uniform()),
        Chooser::Arithmetic(code, _) => invert(&probabilities, code),
        Chooser::Custom(selector, row) => {
            let token = selector.select(&row, candidates);
            let place = candidates.as_slice().iter().position(|c| c.token == token);
            place.ok_or(RowError::NotACandidate { token, candidates: candidates.len() })?
        }
    };
    let code = match chooser {
        Chooser::Arithmetic(code, draw) => {
            // Summed in the order of `invert`, so that this is exactly the bound that the code was compared with.
            let below = probabilities[..chosen].iter().sum();
            let digits = draw.apart("arithmetic").uniform();
            Some(stretch(code, below, probabilities[chosen], digits))
        }
        Chooser::Greedy | Chooser::Random(_) | Chooser::Custom(..) => None,
    };
    let log_prob = if probabilities[chosen] > 0.0 {
        probabilities[chosen].ln()
    } else {
        // A custom rule may select a candidate whose probability has rounded to 0.
        candidates.log_probabilities()[chosen]
    };
    let log_prob = log_prob as f32;
    Ok(Selected { token: candidates.as_slice()[chosen].token, log_prob, code })
}

/// Rescales the code from the interval `[below, below + width)` that contains it to `[0, 1)`, rounded down to the
/// grid. `digits`, in `[0, 1)`, supplies the digits of the code below the grid's resolution.
fn stretch(code: f64, below: f64, width: f64, digits: f64) -> f64 {
    // Rounded separately, so that rounding does not carry from the new digits into the known ones.
    let stretched = on_grid((code - below) / width) + on_grid(digits * GRID / width);
    // Rounding can leave the interval, and so can the last token if the sum of all probabilities is below 1.
    stretched.clamp(0.0, 1.0 - GRID)
}

/// The first index at which the cumulative probability exceeds `uniform`. If rounding keeps all of them below it, the
/// last index with a probability above 0.
fn invert(probabilities: &[f64], uniform: f64) -> usize {
    let mut cumulated = 0.0;
    let above = probabilities.iter().position(|probability| {
        cumulated += probability;
        // A token's interval is half open, so a number equal to its upper bound belongs to the next token.
        cumulated > uniform
    });
    above.unwrap_or_else(|| probabilities.iter().rposition(|&p| p > 0.0).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{draw::DrawKey, id::CompletionId};

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
            let token = select(&candidates, Chooser::Random(draw)).unwrap().token;
            counts[token as usize] += 1.0 / draws as f64;
        }
        // The standard deviation of a frequency is below 0.0035.
        for (count, p) in counts.iter().zip([0.1, 0.6, 0.3]) {
            assert!((count - p).abs() < 0.015, "{counts:?}");
        }
    }

    #[derive(Debug)]
    struct Always(TokenId);

    impl TokenSelector for Always {
        fn select(&self, _row: &RowContext<'_>, _candidates: &Candidates) -> TokenId {
            self.0
        }
    }

    #[test]
    fn a_custom_rule_selects_a_candidate_or_fails_the_row() {
        let candidates = Candidates::from_logits(&[0.0, 1.0, f32::NEG_INFINITY]).unwrap();
        let context = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(1, &[], 0).at(0));
        let chosen = select(&candidates, Chooser::Custom(&Always(0), context)).unwrap();
        let total = 1.0f32.exp() + 1.0;
        assert_eq!((chosen.token, chosen.code), (0, None));
        assert!((chosen.log_prob + total.ln()).abs() < 1e-6);
        let steep = Candidates::from_logits(&[0.0, 1000.0]).unwrap();
        let chosen = select(&steep, Chooser::Custom(&Always(0), context)).unwrap();
        assert_eq!(chosen.log_prob, -1000.0);
        let error = select(&candidates, Chooser::Custom(&Always(2), context)).unwrap_err();
        assert_eq!(error.to_string(), "selected token: expected one of 2 candidates, got 2");
    }

    #[test]
    fn greedy_takes_the_best() {
        let candidates = Candidates::from_logits(&[0.0, 1.0, 0.5]).unwrap();
        let Selected { token, log_prob, code } = select(&candidates, Chooser::Greedy).unwrap();
        assert_eq!((token, code), (1, None));
        let total = 1.0f32.exp() + 0.5f32.exp() + 1.0;
        assert!((log_prob - (1.0 - total.ln())).abs() < 1e-6);
    }

    #[test]
    fn a_code_is_stretched_with_its_interval() {
        // (code, below, width, digits, expected result), computed by hand.
        for (code, below, width, digits, left) in [
            (0.75, 0.5, 0.5, 0.0, 0.5),
            (0.5, 0.5, 0.25, 0.0, 0.0),
            (0.625, 0.5, 0.25, 0.0, 0.5),
            (0.0, 0.0, 1.0, 0.5, 0.0),  // half a grid step: rounded down
            (0.0, 0.0, 0.5, 0.5, GRID), // the digit moves up to the grid
            (0.5, 0.5, GRID, 0.375, 0.375), // all known digits are used up: the code is the new digits
            (1.0 - GRID, 0.25, 0.5, 0.0, 1.0 - GRID), // beyond the end of the interval: never 1
        ] {
            assert_eq!(stretch(code, below, width, digits), left, "{code} {below} {width}");
        }
    }

    /// Three equally likely tokens, so that no logarithm or exponential is rounded. Computed by an independent
    /// implementation in Python, which starts from the seed, the prompt and the index. A change here changes every
    /// token that is selected arithmetically and must be listed under "value-breaking" in the changelog.
    #[test]
    fn value_stability_of_arithmetic_selection() {
        let candidates = Candidates::from_logits(&[0.0; 3]).unwrap();
        let mut code = DrawKey::arithmetic_code(42, &[1, 2, 3], 1, 3);
        assert_eq!(code, 0.791_393_537_055_865_1);
        let expected = [
            (2, 0.374_180_611_167_595_7),
            (1, 0.122_541_833_502_787_13),
            (0, 0.367_625_500_508_361_4),
            (1, 0.102_876_501_525_084_21),
            (0, 0.308_629_504_575_252_84),
            (0, 0.925_888_513_725_758_8),
            (2, 0.777_665_541_177_276_4),
            (2, 0.332_996_623_531_829_46),
        ];
        for (position, (token, left)) in (0..).zip(expected) {
            let draw = DrawKey::new(42, &[1, 2, 3], 1).at(position);
            let selected = select(&candidates, Chooser::Arithmetic(code, draw)).unwrap();
            assert_eq!((selected.token, selected.code), (token, Some(left)), "{position}");
            code = left;
        }
    }

    /// Two tokens of probability ½ read the code's binary digits one by one.
    #[test]
    fn an_arithmetic_code_is_read_digit_by_digit_and_does_not_run_dry() {
        let candidates = Candidates::from_logits(&[0.0, 0.0]).unwrap();
        let (mut ones, steps) = (0u32, 4_000u32);
        let mut code = DrawKey::arithmetic_code(8, &[1], 0, 1);
        let digits = (code / GRID) as u64;
        for step in 0..steps {
            let draw = DrawKey::new(8, &[1], 0).at(u64::from(step));
            let selected = select(&candidates, Chooser::Arithmetic(code, draw)).unwrap();
            if step < 53 {
                assert_eq!(u64::from(selected.token), digits >> (52 - step) & 1, "digit {step}");
            } else {
                ones += selected.token;
            }
            code = selected.code.unwrap();
            assert!((0.0..1.0).contains(&code));
        }
        let (mean, deviation) = (f64::from(steps - 53) / 2.0, f64::from(steps - 53).sqrt() / 2.0);
        assert!((f64::from(ones) - mean).abs() < 4.0 * deviation, "{ones} of {mean}");
    }
}
