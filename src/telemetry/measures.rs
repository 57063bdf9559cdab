//! Measures of a token's row, computed from its candidates.

use crate::{
    candidates::{Candidate, Candidates},
    id::TokenId,
    numeric::{centred, dot, entropy, kl_divergence, log_softmax, slope},
};

/// The fields of a [`RowTrace`](super::RowTrace) that are computed from the candidates. They are documented there.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measures {
    pub(crate) surprisal: f64,
    pub(crate) reference_entropy: f64,
    pub(crate) entropy: f64,
    pub(crate) kl: f64,
    pub(crate) reference_rank: usize,
    pub(crate) rank: usize,
    /// Slope of `reference − expected` on the reference, computed even if nothing was expected.
    pub(crate) slope: Option<f64>,
    pub(crate) sharpening: Option<f64>,
    pub(crate) sharpening_share: Option<f64>,
}

impl Measures {
    /// `None` if `token` is not one of the candidates.
    ///
    /// Cost: two exponentials per candidate and a few passes, in `f64`.
    pub(crate) fn of(candidates: &Candidates, token: TokenId) -> Option<Self> {
        let items = candidates.as_slice();
        let rank = items.iter().position(|c| c.token == token)?;
        let chosen = items[rank];
        let ahead = |c: &&Candidate| {
            c.reference > chosen.reference || c.reference == chosen.reference && c.token < token
        };
        // The mass outside is 0, because both distributions are those over the candidates that the filters left.
        let reference = log_softmax(items.iter().map(|c| f64::from(c.reference)), 0.0);
        let new = log_softmax(items.iter().map(|c| f64::from(c.logit)), 0.0);
        let perturbed = line(items, |c| f64::from(c.reference) - f64::from(c.expected));
        let moved = line(items, |c| f64::from(c.logit) - f64::from(c.reference));
        Some(Self {
            surprisal: -reference[rank],
            reference_entropy: entropy(&reference),
            entropy: entropy(&new),
            kl: kl_divergence(&new, &reference),
            // Counted, because the candidates are sorted by their new scores.
            reference_rank: items.iter().filter(ahead).count(),
            rank,
            slope: perturbed.map(|line| line.slope),
            sharpening: moved.map(|line| line.slope),
            sharpening_share: moved.and_then(|line| line.share),
        })
    }
}

/// A line fitted to a change of the candidates' scores, as a function of their reference logits.
#[derive(Clone, Copy)]
struct Line {
    slope: f64,
    /// Share of the change's variance that the line explains. `None` if there is no variance, or if there are fewer
    /// than three candidates, for which a line always fits exactly.
    share: Option<f64>,
}

/// Least-squares fit with equal weights. `None` if all references are equal.
fn line(items: &[Candidate], change: impl Fn(&Candidate) -> f64) -> Option<Line> {
    let x = centred(items.iter().map(|c| f64::from(c.reference)));
    let y = centred(items.iter().map(change));
    // Because the mean is rounded, equal references can have a variance above 0.
    let spread = items.iter().any(|c| c.reference != items[0].reference);
    let slope = slope(&y, &x).filter(|_| spread)?;
    let (xy, yy) = (dot(&x, &y), dot(&y, &y));
    let share = (items.len() >= 3 && yy > 0.0).then(|| (slope * xy / yy).clamp(0.0, 1.0));
    Some(Line { slope, share })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Four tokens with probabilities in tenths, expected logits, and reweighted scores.
    fn candidates(
        tenths: [f32; 4],
        expected: [f32; 4],
        fuse: impl Fn(&Candidate) -> f32,
    ) -> Candidates {
        let logits = tenths.map(|p| (p / 10.0).ln());
        let mut candidates = Candidates::from_logits(&logits).unwrap();
        candidates.set_expected(|_, token| expected[token as usize]);
        candidates.rescore(fuse);
        candidates
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
    }

    #[test]
    fn a_plain_row_by_hand() {
        let candidates = candidates([4.0, 1.0, 2.0, 3.0], [0.0; 4], |c| c.logit);
        let got = Measures::of(&candidates, 2).unwrap();
        close(got.surprisal, -(0.2f64.ln()));
        let entropy: f64 = [0.4f64, 0.1, 0.2, 0.3].iter().map(|p| -p * p.ln()).sum();
        close(got.reference_entropy, entropy);
        assert_eq!(got.entropy, got.reference_entropy);
        assert_eq!((got.kl, got.reference_rank, got.rank), (0.0, 2, 2));
        assert_eq!((got.sharpening, got.sharpening_share), (Some(0.0), None));
        assert_eq!(Measures::of(&candidates, 4), None, "no such candidate");
    }

    #[test]
    fn a_row_turned_over_by_hand() {
        // The probabilities .4 .1 .2 .3 become .1 .4 .3 .2, up to a constant on all scores.
        let new = [0.1f32, 0.4, 0.3, 0.2];
        let candidates =
            candidates([4.0, 1.0, 2.0, 3.0], [0.0; 4], |c| new[c.token as usize].ln() + 5.0);
        let got = Measures::of(&candidates, 1).unwrap();
        close(got.surprisal, 10.0f64.ln());
        assert_eq!((got.reference_rank, got.rank), (3, 0));
        close(got.entropy, got.reference_entropy);
        // .1 ln(.1/.4) + .4 ln(.4/.1) + .3 ln(.3/.2) + .2 ln(.2/.3) = .3 ln 4 + .1 ln 1.5
        close(got.kl, 0.3 * 4f64.ln() + 0.1 * 1.5f64.ln());
    }

    #[test]
    fn a_distiller_with_constant_logits_only_sharpens() {
        // new = (1 + β)·ref − β·c: the change has slope β, ref − expected has slope 1, and nothing else remains.
        for beta in [0.25f32, 2.0] {
            let candidates = candidates([4.0, 1.0, 2.0, 3.0], [7.0; 4], |c| {
                (1.0 + beta) * c.logit - beta * c.expected
            });
            let got = Measures::of(&candidates, 0).unwrap();
            close(got.slope.unwrap(), 1.0);
            close(got.sharpening.unwrap(), f64::from(beta));
            close(got.sharpening_share.unwrap(), 1.0);
            // The entropy equals that of the reference at temperature 1/(1 + β).
            let powers = [0.4f64, 0.1, 0.2, 0.3].map(|p| p.powf(1.0 + f64::from(beta)));
            let total: f64 = powers.iter().sum();
            close(got.entropy, powers.iter().map(|p| -p / total * (p / total).ln()).sum());
        }
    }

    #[test]
    fn a_change_orthogonal_to_the_reference_is_no_sharpening() {
        // Reference logits 3, 1, −1, −3 and change 1, −1, −1, 1: both sum to 0, and so does their product.
        let mut candidates = Candidates::from_logits(&[3.0, 1.0, -1.0, -3.0]).unwrap();
        candidates.set_expected(|_, token| [2.0, 2.0, 0.0, -4.0][token as usize]);
        candidates.rescore(|c| c.logit + (c.reference - c.expected));
        let got = Measures::of(&candidates, 0).unwrap();
        assert_eq!(got.slope, Some(0.0));
        assert_eq!((got.sharpening, got.sharpening_share), (Some(0.0), Some(0.0)));
        // Add a change along the reference: slope ¼, share (20/16) / (20/16 + 4).
        candidates.rescore(|c| c.logit + 0.25 * c.reference);
        let got = Measures::of(&candidates, 0).unwrap();
        assert_eq!(got.sharpening, Some(0.25));
        close(got.sharpening_share.unwrap(), 1.25 / 5.25);
    }

    #[test]
    fn undefined_slopes_are_none() {
        let lonely = Candidates::from_logits(&[1.0]).unwrap();
        let got = Measures::of(&lonely, 0).unwrap();
        assert_eq!((got.slope, got.sharpening, got.sharpening_share), (None, None, None));
        assert_eq!((got.surprisal, got.entropy, got.kl), (0.0, 0.0, 0.0));
        assert!(got.entropy.is_sign_positive() && got.reference_entropy.is_sign_positive());
        let mut equal = Candidates::from_logits(&[0.1; 7]).unwrap();
        equal.rescore(|c| c.token as f32);
        let got = Measures::of(&equal, 0).unwrap();
        assert_eq!((got.slope, got.sharpening, got.sharpening_share), (None, None, None));
        assert_eq!((got.reference_rank, got.rank), (0, 6), "equal references: by token");
        let mut two = Candidates::from_logits(&[1.0, 0.0]).unwrap();
        two.rescore(|c| 3.0 * c.logit);
        let got = Measures::of(&two, 0).unwrap();
        assert_eq!((got.sharpening, got.sharpening_share), (Some(2.0), None), "any two are a line");
    }

    #[test]
    fn a_token_without_mass_has_a_finite_surprisal() {
        let mut candidates = Candidates::from_logits(&[2000.0, -2000.0]).unwrap();
        candidates.rescore(|c| -c.logit);
        let got = Measures::of(&candidates, 1).unwrap();
        assert_eq!((got.surprisal, got.kl), (4000.0, 4000.0));
        assert_eq!((got.entropy, got.reference_entropy), (0.0, 0.0));
    }

    proptest! {
        #[test]
        fn measures_stay_in_their_ranges(
            row in prop::collection::vec((-20.0f32..20.0, -20.0f32..20.0), 1..40),
            beta in 0.0f32..3.0,
            chosen in any::<prop::sample::Index>(),
        ) {
            let logits: Vec<f32> = row.iter().map(|(logit, _)| *logit).collect();
            let mut candidates = Candidates::from_logits(&logits).unwrap();
            candidates.set_expected(|_, token| row[token as usize].1);
            candidates.rescore(|c| (1.0 + beta) * c.logit - beta * c.expected);
            let token = chosen.index(row.len()) as TokenId;
            let got = Measures::of(&candidates, token).unwrap();
            let most = (row.len() as f64).ln() + 1e-9;
            prop_assert!(got.kl >= 0.0 && got.surprisal >= -1e-12);
            prop_assert!((-1e-12..most).contains(&got.entropy), "{}", got.entropy);
            prop_assert!((-1e-12..most).contains(&got.reference_entropy));
            prop_assert!(got.rank < row.len() && got.reference_rank < row.len());
            if let (Some(slope), Some(sharpening)) = (got.slope, got.sharpening) {
                // ESamp's change is β·(ref − expected), up to the rounding of f32 scores on near-equal references.
                let reference = |c: &Candidate| f64::from(c.reference);
                let spread: f64 = line(candidates.as_slice(), reference).map_or(0.0, |_| {
                    let x: Vec<f64> = logits.iter().map(|&l| f64::from(l)).collect();
                    let mean = x.iter().sum::<f64>() / x.len() as f64;
                    x.iter().map(|x| (x - mean).powi(2)).sum::<f64>().sqrt()
                });
                let tolerance = 1e-4 * (1.0 + (row.len() as f64).sqrt() / spread);
                prop_assert!((sharpening - f64::from(beta) * slope).abs() < tolerance);
            }
        }
    }
}
