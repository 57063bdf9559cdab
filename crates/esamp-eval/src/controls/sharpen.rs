//! The control for sharpening.

use super::{Expects, NoveltyReweighter, check_beta};
use crate::{
    candidates::{Candidates, RowContext},
    error::ConfigError,
};

/// A control: `(1 + β)·logit`, no distiller.
///
/// A distiller that expects nothing in particular (constant logits) turns ESamp into this: the plain model at temperature
/// `T / (1 + β)`, among the candidates that the filters keep of `ref / T`. Whatever ESamp does beyond it, the distiller
/// did. What penalties and bias have added is not multiplied, as in ESamp. Tokens of a hot start ([`Fire`](crate::Fire)) are
/// sharpened too, at `T_fire / (1 + β)`, as ESamp does; the first token of a completion never is.
///
/// [`Sampling::sharpened_plain`](crate::Sampling::sharpened_plain) is the plain sampler at the lower temperature:
/// there the filters see the sharpened logits too and keep fewer candidates, the first token is sharpened as well, and the
/// temperature of a hot start is left undivided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sharpen {
    /// The strength β of the ESamp run that this is the control of, at least 0; with 0 the sampler is the plain one.
    pub beta: f32,
}

impl NoveltyReweighter for Sharpen {
    fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
        if self.beta != 0.0 {
            candidates.rescore_adjusted(|c, added| (1.0 + self.beta) * c.logit - self.beta * added);
        }
    }

    fn expects(&self) -> Expects {
        Expects::Nothing
    }

    fn validate(&self) -> Result<(), ConfigError> {
        check_beta(self.beta)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Extrapolate, tests::*};
    use super::*;

    #[test]
    fn it_is_esamp_with_a_distiller_that_expects_nothing_in_particular() {
        let sharp = scores(&Sharpen { beta: 0.5 }, 0, &REFERENCE, &[0.0; 6]);
        assert_eq!(sharp[..3], [3.0, 1.5, 0.75]);
        let esamp = scores(&Extrapolate { beta: 0.5 }, 0, &REFERENCE, &[4.0; 6]);
        let shifted: Vec<f32> = sharp.iter().map(|score| score - 2.0).collect();
        assert_near(&esamp, &shifted, 1e-6);
    }
}
