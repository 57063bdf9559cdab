//! The control for sharpening.

use esamp::{
    Sampling,
    errors::ConfigError,
    filters::{Candidates, RowContext},
    reweighters::{Expects, NoveltyReweighter, ReweighterConfig},
};

use super::check_beta;

/// A control: `(1 + β)·logit`, no distiller.
///
/// A distiller that expects nothing in particular (constant logits) turns ESamp into this: the plain model at
/// temperature `T / (1 + β)`, among the candidates that the filters keep of `ref / T`. Any effect of ESamp beyond
/// this control comes from the distiller. As in ESamp, adjustments by penalties and bias are not multiplied. Tokens
/// of a hot start ([`Fire`](esamp::Fire)) are sharpened too, at `T_fire / (1 + β)`, as in ESamp; the first token of a
/// completion is not.
///
/// [`sharpened_plain`] is the plain sampler at the lower temperature. There the filters also see the sharpened logits
/// and keep fewer candidates, the first token is sharpened as well, and the temperature of a hot start is not
/// divided.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sharpen {
    /// The strength β of the ESamp run that this is a control for, at least 0; 0 gives plain sampling.
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

/// The control for sharpening in its usual form: the plain sampler at `T / (1 + β)`, β 0.
///
/// If the temperature comes before the filters, they see the sharpened logits; [`Sharpen`] keeps the candidates of
/// `ref / T` instead. The temperature of a hot start ([`Sampling::fire`]) is not divided, so hot tokens are as hot as
/// in the run that this is a control for. ESamp and [`Sharpen`] do sharpen them, except for the first token of a
/// completion.
pub fn sharpened_plain(sampling: &Sampling) -> Sampling {
    let temperature = sampling.temperature / (1.0 + sampling.beta);
    let plain = sampling.clone().with_reweighter(ReweighterConfig::default()).with_beta(0.0);
    plain.with_temperature(temperature)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::sync::Arc;

    use esamp::reweighters::Extrapolate;

    use super::*;
    use crate::controls::tests::*;

    #[test]
    fn it_is_esamp_with_a_distiller_that_expects_nothing_in_particular() {
        let sharp = scores(Arc::new(Sharpen { beta: 0.5 }), 0, &REFERENCE, &[0.0; 6]);
        assert_eq!(sharp[..3], [3.0, 1.5, 0.75]);
        let esamp = scores(Arc::new(Extrapolate { beta: 0.5 }), 0, &REFERENCE, &[4.0; 6]);
        let shifted: Vec<f32> = sharp.iter().map(|score| score - 2.0).collect();
        assert_near(&esamp, &shifted, 1e-6);
    }
}
