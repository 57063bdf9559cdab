//! What the candidates of a row say about the token that was chosen from them.

use crate::{
    candidates::{Candidate, Candidates},
    id::TokenId,
    numeric::{centred, dot, entropy, kl_divergence, log_softmax, slope},
};

/// The numbers of a [`RowTrace`](super::RowTrace) that follow from its candidates; see there for what they are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Measures {
    pub(crate) surprisal: f64,
    pub(crate) reference_entropy: f64,
    pub(crate) entropy: f64,
    pub(crate) kl: f64,
    pub(crate) reference_rank: usize,
    pub(crate) rank: usize,
    /// Of `reference − expected` on the reference, whether or not anything was expected.
    pub(crate) slope: Option<f64>,
    pub(crate) sharpening: Option<f64>,
    pub(crate) sharpening_share: Option<f64>,
}

impl Measures {
    /// `None` when `token` is not one of the candidates.
    ///
    /// Cost: two exponentials per candidate and a few passes, in `f64`.
    pub(crate) fn of(candidates: &Candidates, token: TokenId) -> Option<Self> {
        let items = candidates.as_slice();
        let rank = items.iter().position(|c| c.token == token)?;
        let chosen = items[rank];
        let ahead = |c: &&Candidate| {
            c.reference > chosen.reference || c.reference == chosen.reference && c.token < token
        };
        let reference = log_softmax(items.iter().map(|c| f64::from(c.reference)), 0.0);
        let new = log_softmax(items.iter().map(|c| f64::from(c.logit)), 0.0);
        let perturbed = line(items, |c| f64::from(c.reference) - f64::from(c.expected));
        let moved = line(items, |c| f64::from(c.logit) - f64::from(c.reference));
        Some(Self {
            surprisal: -reference[rank],
            reference_entropy: entropy(&reference),
            entropy: entropy(&new),
            kl: kl_divergence(&new, &reference),
            reference_rank: items.iter().filter(ahead).count(),
            rank,
            slope: perturbed.map(|line| line.slope),
            sharpening: moved.map(|line| line.slope),
            sharpening_share: moved.and_then(|line| line.share),
        })
    }
}

/// The line through some change of the candidates' scores, as a function of their reference logits.
#[derive(Clone, Copy)]
struct Line {
    slope: f64,
    /// How much of the change's variance lies on the line; `None` where there is no variance, and for fewer than three
    /// candidates, through which there is always a line.
    share: Option<f64>,
}

/// Least squares, every candidate with the same weight. `None` where all references are equal.
fn line(items: &[Candidate], change: impl Fn(&Candidate) -> f64) -> Option<Line> {
    let x = centred(items.iter().map(|c| f64::from(c.reference)));
    let y = centred(items.iter().map(change));
    // Rounding of the mean leaves equal references a variance.
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

    /// Four tokens with probabilities in tenths, expected logits, and a fusion.
    fn race(tenths: [f32; 4], expected: [f32; 4], fuse: impl Fn(&Candidate) -> f32) -> Candidates {
        let logits = tenths.map(|p| (p / 10.0).ln());
        let mut race = Candidates::from_logits(&logits).unwrap();
        race.set_expected(|_, token| expected[token as usize]);
        race.rescore(fuse);
        race
    }

    fn close(got: f64, expected: f64) {
        assert!((got - expected).abs() < 1e-6, "{got}, expected {expected}");
    }

    #[test]
    fn a_plain_row_by_hand() {
        let race = race([4.0, 1.0, 2.0, 3.0], [0.0; 4], |c| c.logit);
        let got = Measures::of(&race, 2).unwrap();
        close(got.surprisal, -(0.2f64.ln()));
        let entropy: f64 = [0.4f64, 0.1, 0.2, 0.3].iter().map(|p| -p * p.ln()).sum();
        close(got.reference_entropy, entropy);
        assert_eq!(got.entropy, got.reference_entropy);
        assert_eq!((got.kl, got.reference_rank, got.rank), (0.0, 2, 2));
        assert_eq!((got.sharpening, got.sharpening_share), (Some(0.0), None));
        assert_eq!(Measures::of(&race, 4), None, "no such candidate");
    }

    #[test]
    fn a_row_turned_over_by_hand() {
        // Probabilities .4 .1 .2 .3 become .1 .4 .3 .2, up to a constant on all scores.
        let new = [0.1f32, 0.4, 0.3, 0.2];
        let race = race([4.0, 1.0, 2.0, 3.0], [0.0; 4], |c| new[c.token as usize].ln() + 5.0);
        let got = Measures::of(&race, 1).unwrap();
        close(got.surprisal, 10.0f64.ln());
        assert_eq!((got.reference_rank, got.rank), (3, 0));
        close(got.entropy, got.reference_entropy);
        // .1 ln(.1/.4) + .4 ln(.4/.1) + .3 ln(.3/.2) + .2 ln(.2/.3) = .3 ln 4 + .1 ln 1.5
        close(got.kl, 0.3 * 4f64.ln() + 0.1 * 1.5f64.ln());
    }

    #[test]
    fn a_distiller_with_constant_logits_only_sharpens() {
        // new = (1 + β)·ref − β·c: slope β of the change, slope 1 of ref − expected, and nothing else.
        for beta in [0.25f32, 2.0] {
            let race = race([4.0, 1.0, 2.0, 3.0], [7.0; 4], |c| {
                (1.0 + beta) * c.logit - beta * c.expected
            });
            let got = Measures::of(&race, 0).unwrap();
            close(got.slope.unwrap(), 1.0);
            close(got.sharpening.unwrap(), f64::from(beta));
            close(got.sharpening_share.unwrap(), 1.0);
            // The entropy is that of the reference at temperature 1/(1 + β).
            let powers = [0.4f64, 0.1, 0.2, 0.3].map(|p| p.powf(1.0 + f64::from(beta)));
            let total: f64 = powers.iter().sum();
            close(got.entropy, powers.iter().map(|p| -p / total * (p / total).ln()).sum());
        }
    }

    #[test]
    fn a_change_at_right_angles_to_the_reference_is_no_sharpening() {
        // Reference logits 3, 1, −1, −3; change 1, −1, −1, 1: both sum to 0, and so does their product.
        let mut race = Candidates::from_logits(&[3.0, 1.0, -1.0, -3.0]).unwrap();
        race.set_expected(|_, token| [2.0, 2.0, 0.0, -4.0][token as usize]);
        race.rescore(|c| c.logit + (c.reference - c.expected));
        let got = Measures::of(&race, 0).unwrap();
        assert_eq!(got.slope, Some(0.0));
        assert_eq!((got.sharpening, got.sharpening_share), (Some(0.0), Some(0.0)));
        // Half of it along the reference: change 3·¼ + 1, …: slope ¼, share (20/16) / (20/16 + 4).
        race.rescore(|c| c.logit + 0.25 * c.reference);
        let got = Measures::of(&race, 0).unwrap();
        assert_eq!(got.sharpening, Some(0.25));
        close(got.sharpening_share.unwrap(), 1.25 / 5.25);
    }

    #[test]
    fn slopes_that_mean_nothing_are_not_given() {
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
        let mut race = Candidates::from_logits(&[2000.0, -2000.0]).unwrap();
        race.rescore(|c| -c.logit);
        let got = Measures::of(&race, 1).unwrap();
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
            let mut race = Candidates::from_logits(&logits).unwrap();
            race.set_expected(|_, token| row[token as usize].1);
            race.rescore(|c| (1.0 + beta) * c.logit - beta * c.expected);
            let token = chosen.index(row.len()) as TokenId;
            let got = Measures::of(&race, token).unwrap();
            let most = (row.len() as f64).ln() + 1e-9;
            prop_assert!(got.kl >= 0.0 && got.surprisal >= -1e-12);
            prop_assert!((-1e-12..most).contains(&got.entropy), "{}", got.entropy);
            prop_assert!((-1e-12..most).contains(&got.reference_entropy));
            prop_assert!(got.rank < row.len() && got.reference_rank < row.len());
            if let (Some(slope), Some(sharpening)) = (got.slope, got.sharpening) {
                // ESamp's change is β·(ref − expected), up to the rounding of f32 scores on near-equal references.
                let spread: f64 = line(race.as_slice(), |c| f64::from(c.reference)).map_or(0.0, |_| {
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
