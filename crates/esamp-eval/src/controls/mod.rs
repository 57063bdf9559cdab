//! Controls: each rules out one explanation of a method's gain. Written against the public API of `esamp`.
//!
//! A control on scores is a [`NoveltyReweighter`](esamp::reweighters::NoveltyReweighter) that replaces ESamp's and is
//! chosen by a [`ControlConfig`]. A control on the distiller's error is an
//! [`ExpectedControl`](esamp::unstable::ExpectedControl), set on the sampler.
//! `docs/design/reweighters-and-controls.md` compares them. Two methods of other authors are alongside them, because they
//! are written on the same API: [`Crowding`] and [`Recoding`].

mod crowding;
mod direction;
mod elliptical;
mod gaussian_error;
mod matched_random;
mod random_reward;
mod recoding;
mod sampling;
mod sharpen;
mod shuffled_errors;
mod subtract;
mod surprisal;

use burn::tensor::{Int, Tensor};
use esamp::{
    Sampling,
    errors::ConfigError,
    reweighters::{Expects, Extrapolate, Orthogonal},
};
use serde::{Deserialize, Serialize};

pub use crowding::{Crowding, HeadDirections};
pub use elliptical::{Elliptical, NoveltySource, PerPrompt};
pub use gaussian_error::GaussianError;
pub use matched_random::{Matched, MatchedRandom};
pub use random_reward::RandomReward;
pub use recoding::{Recoding, RecodingMasker, WORDS};
pub use sampling::ArmSampling;
pub use sharpen::{Sharpen, sharpened_plain};
pub use shuffled_errors::ShuffledErrors;
pub use subtract::Subtract;
pub use surprisal::Surprisal;

/// A control on scores, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlConfig {
    /// [`Subtract`]: ESamp without the factor `1 + β` on the reference.
    Subtract,
    /// [`Sharpen`]: a lower temperature, no distiller.
    Sharpen,
    /// [`RandomReward`]: a random reward.
    RandomReward,
    /// [`Surprisal`]: the model's own surprisal as the reward.
    Surprisal,
    /// [`MatchedRandom`]: ESamp's slope and size in a random direction.
    MatchedRandom(Matched),
}

impl ControlConfig {
    /// The strength used in comparisons: the control's own in the literature, or that of the method it is a control
    /// for.
    ///
    /// | control | β | from |
    /// |---|---|---|
    /// | `Subtract` | 0.5 | the ablation in ESamp's paper, arXiv 2604.24927, which reports this strength only |
    /// | `MatchedRandom(Orthogonal)` | 1 | [`Orthogonal`] |
    /// | others | 0.25 | [`Extrapolate`] |
    pub fn usual_beta(self) -> f32 {
        match self {
            Self::Subtract => Subtract::USUAL_BETA,
            Self::MatchedRandom(Matched::Orthogonal) => Orthogonal::USUAL_BETA,
            Self::Sharpen
            | Self::RandomReward
            | Self::Surprisal
            | Self::MatchedRandom(Matched::Extrapolate) => Extrapolate::USUAL_BETA,
        }
    }

    /// The same settings with the control as the reweighter, at the strength [`beta`](Sampling::beta) of the
    /// settings.
    pub fn applied_to(self, sampling: Sampling) -> Sampling {
        let beta = sampling.beta;
        match self {
            Self::Subtract => sampling.with_custom_reweighter(Subtract { beta }),
            Self::Sharpen => sampling.with_custom_reweighter(Sharpen { beta }),
            Self::RandomReward => sampling.with_custom_reweighter(RandomReward { beta }),
            Self::Surprisal => sampling.with_custom_reweighter(Surprisal { beta }),
            Self::MatchedRandom(matched) => {
                sampling.with_custom_reweighter(MatchedRandom { beta, matched })
            }
        }
    }
}

fn check_beta(beta: f32) -> Result<(), ConfigError> {
    if beta.is_finite() && beta >= 0.0 {
        return Ok(());
    }
    let expected = "a number of at least 0";
    Err(ConfigError::OutOfRange { setting: "beta", expected, got: beta.to_string() })
}

/// The distiller, unless the strength is 0.
fn distiller_if(beta: f32) -> Expects {
    if beta == 0.0 { Expects::Nothing } else { Expects::Distiller }
}

/// The length of each row, `[rows, 1]`.
fn length(vectors: Tensor<2>) -> Tensor<2> {
    vectors.square().sum_dim(1).sqrt()
}

/// These rows of a tensor, in this order.
fn select_rows(tensor: &Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
    let rows = Tensor::<1, Int>::from_data(rows.as_slice(), &tensor.device());
    tensor.clone().select(0, rows)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::sync::{Arc, Mutex};

    use burn::tensor::{Device, TensorData};
    use esamp::{
        CompletionId, DrawKey, Phase, SamplerConfig, StepInput, StepRow, TiedHead,
        filters::{Candidate, Candidates, RowContext},
        reweighters::NoveltyReweighter,
    };

    use super::*;
    use crate::metrics::dot;

    fn key() -> DrawKey {
        DrawKey::new(3, &[1, 2], 0)
    }

    /// A row at `position`, with no prompt and no earlier tokens.
    pub(super) fn context(position: u64) -> RowContext<'static> {
        let draw = key().at(position);
        RowContext::new(CompletionId::new(0, 0), position, draw)
    }

    /// Passes the logits of another model to a reweighter as the expected ones, and records the scores it returns.
    #[derive(Debug)]
    struct Witness {
        reweighter: Arc<dyn NoveltyReweighter>,
        seen: Arc<Mutex<Vec<Candidate>>>,
    }

    impl NoveltyReweighter for Witness {
        fn reweight(&self, row: &RowContext<'_>, candidates: &mut Candidates) {
            self.reweighter.reweight(row, candidates);
            *self.seen.lock().unwrap() = candidates.as_slice().to_vec();
        }

        fn expects(&self) -> Expects {
            Expects::OtherModel
        }
    }

    /// The new scores, by token, in a step with these reference and expected logits. The logits of token `i` are at
    /// index `i`.
    pub(super) fn scores(
        reweighter: Arc<dyn NoveltyReweighter>,
        position: u64,
        reference: &[f32],
        expected: &[f32],
    ) -> Vec<f32> {
        let device = Device::flex();
        let row_of = |logits: &[f32]| {
            Tensor::<2>::from_data(TensorData::new(logits.to_vec(), [1, logits.len()]), &device)
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let witness = Witness { reweighter, seen: seen.clone() };
        let sampling = Sampling::paper().with_custom_reweighter(witness).checked().unwrap();
        let generated = vec![0; position as usize];
        let rows = [StepRow::new(CompletionId::new(0, 0), key(), &[], &generated, &sampling)
            .with_phase(Phase::Decode)];
        let head = TiedHead::new(Tensor::zeros([reference.len(), 1], &device));
        let input = StepInput::new(&rows, row_of(reference), &head);
        let mut sampler = SamplerConfig::new().init(1, &device).unwrap();
        let output = sampler.step(input.with_other_logits(row_of(expected))).unwrap();
        assert!(output.choices[0].is_ok(), "{:?}", output.choices[0]);
        let mut scores = vec![f32::NAN; reference.len()];
        for c in seen.lock().unwrap().iter() {
            scores[c.token as usize] = c.logit;
        }
        scores
    }

    pub(super) fn assert_near(got: &[f32], expected: &[f32], tolerance: f32) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((got - expected).abs() <= tolerance, "{got} instead of {expected}");
        }
    }

    /// Arbitrary hidden states.
    pub(super) fn states(rows: usize, d_model: usize, scale: f32) -> Tensor<2> {
        let numbers = (0..rows * d_model).map(|i| (i as f32 * scale).sin() * 2.0).collect();
        Tensor::from_data(TensorData::new::<f32, _>(numbers, [rows, d_model]), &Device::flex())
    }

    pub(super) fn values(tensor: Tensor<2>) -> Vec<Vec<f64>> {
        let width = tensor.dims()[1];
        let values: Vec<f32> = tensor.into_data().try_into_vec().unwrap();
        values.chunks(width).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    pub(super) const REFERENCE: [f32; 6] = [2.0, 1.0, 0.5, -0.25, -1.0, -3.0];
    pub(super) const EXPECTED: [f32; 6] = [1.0, 1.5, -0.5, 0.75, -2.0, 0.0];

    const ALL: [ControlConfig; 6] = [
        ControlConfig::Subtract,
        ControlConfig::Sharpen,
        ControlConfig::RandomReward,
        ControlConfig::Surprisal,
        ControlConfig::MatchedRandom(Matched::Extrapolate),
        ControlConfig::MatchedRandom(Matched::Orthogonal),
    ];

    /// The reweighter of settings to which a control was applied.
    fn reweighter(
        config: ControlConfig,
        beta: f32,
    ) -> Result<Arc<dyn NoveltyReweighter>, ConfigError> {
        config.applied_to(Sampling::paper().with_beta(beta)).reweighter.init(beta)
    }

    #[test]
    fn strength_zero_changes_nothing_and_expects_nothing() {
        for config in ALL {
            let zero = reweighter(config, 0.0).unwrap();
            assert_eq!(zero.expects(), Expects::Nothing, "{config:?}");
            assert_eq!(scores(zero, 0, &REFERENCE, &EXPECTED), REFERENCE, "{config:?}");
            for beta in [-0.1, f32::NAN, f32::INFINITY] {
                let error = reweighter(config, beta).unwrap_err().to_string();
                assert_eq!(error, format!("beta: expected a number of at least 0, got {beta}"));
            }
        }
    }

    /// A change here changes every record of these arms.
    #[test]
    fn value_stability() {
        let bits: [(ControlConfig, u64, [u32; 6]); 8] = [
            (
                ControlConfig::Subtract,
                0,
                [1067869798, 3175926976, 1062836634, 3209061990, 1053609164, 3225419776],
            ),
            (
                ControlConfig::Sharpen,
                0,
                [1079613850, 1071225242, 1062836634, 3201931674, 3218708890, 3231920948],
            ),
            (
                ControlConfig::RandomReward,
                0,
                [1052752888, 1057787795, 1066496236, 3205814038, 3211907523, 3215217479],
            ),
            (
                ControlConfig::RandomReward,
                3,
                [1080779230, 1057984362, 1055981131, 3220090761, 3215770210, 3222252685],
            ),
            (
                ControlConfig::Surprisal,
                0,
                [1059176294, 1049437442, 1036509303, 3190658674, 3202322064, 3214086281],
            ),
            (
                ControlConfig::MatchedRandom(Matched::Extrapolate),
                0,
                [1081321610, 1067809717, 1065533791, 3218168006, 3217780131, 3228132319],
            ),
            (
                ControlConfig::MatchedRandom(Matched::Extrapolate),
                3,
                [1073804402, 1068314122, 1070225512, 1043289994, 3207669387, 3232084417],
            ),
            (
                ControlConfig::MatchedRandom(Matched::Orthogonal),
                3,
                [1065616604, 1062539336, 1067798930, 1047172524, 3197301662, 3228973616],
            ),
        ];
        for (config, position, bits) in bits {
            let got = scores(reweighter(config, 0.7).unwrap(), position, &REFERENCE, &EXPECTED);
            assert_eq!(got, bits.map(f32::from_bits), "{config:?} at {position}");
        }
    }

    /// The correlation of two lists.
    pub(super) fn correlation(a: &[f64], b: &[f64]) -> f64 {
        let centred = [a, b].map(|list| direction::centred(list.iter().copied()));
        let [a, b] = &centred;
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    }

    /// The number that selects the token must not decide which tokens are favoured. The noise of the first token comes
    /// from the beginning of its stream, as that number does, so a shared stream would show there.
    #[test]
    fn noise_does_not_depend_on_the_number_that_selects_the_token() {
        const POSITIONS: u64 = 800;
        let uniform: Vec<f64> = (0..POSITIONS).map(|p| key().at(p).uniform()).collect();
        for config in [
            ControlConfig::RandomReward,
            ControlConfig::MatchedRandom(Matched::Extrapolate),
            ControlConfig::MatchedRandom(Matched::Orthogonal),
        ] {
            let noise: Vec<Vec<f32>> = (0..POSITIONS)
                .map(|p| scores(reweighter(config, 0.7).unwrap(), p, &REFERENCE, &EXPECTED))
                .collect();
            for token in 0..REFERENCE.len() {
                let noise: Vec<f64> = noise.iter().map(|scores| f64::from(scores[token])).collect();
                // The standard deviation of a correlation is 1/√800 = 0.035.
                let got = correlation(&uniform, &noise);
                assert!(got.abs() < 0.14, "{config:?}, token {token}: {got}");
            }
        }
    }

    #[test]
    fn usual_strengths_are_those_of_their_sources() {
        assert_eq!(ALL.map(ControlConfig::usual_beta), [0.5, 0.25, 0.25, 0.25, 0.25, 1.0]);
    }

    #[test]
    fn a_distiller_that_predicts_the_reference_changes_nothing() {
        // `Sharpen` needs no distiller, and `Subtract` is a temperature in this case.
        for config in &ALL[2..] {
            let got = scores(reweighter(*config, 0.7).unwrap(), 0, &REFERENCE, &REFERENCE);
            assert_near(&got, &REFERENCE, 1e-6);
        }
    }

    #[test]
    fn one_or_two_candidates_and_logits_without_variance_give_finite_scores() {
        for config in ALL {
            for (reference, expected) in [
                (&[1.5f32][..], &[-2.0f32][..]),
                (&[1.5, 0.5], &[-2.0, 3.0]),
                (&[1.5, 1.5], &[-2.0, 3.0]),
                (&[1.5, 1.5, 1.5], &[-2.0, 3.0, 0.0]),
                (&[1.5, 0.5, 0.0], &[1.0, 1.0, 1.0]),
            ] {
                let got = scores(reweighter(config, 0.7).unwrap(), 0, reference, expected);
                assert!(got.iter().all(|score| score.is_finite()), "{config:?} {got:?}");
            }
        }
    }

    #[test]
    fn names_are_written_down_as_they_are_read() {
        let names: Vec<String> =
            ALL.iter().map(|config| serde_json::to_string(config).unwrap()).collect();
        assert_eq!(
            names,
            [
                r#""subtract""#,
                r#""sharpen""#,
                r#""random_reward""#,
                r#""surprisal""#,
                r#"{"matched_random":"extrapolate"}"#,
                r#"{"matched_random":"orthogonal"}"#,
            ]
        );
        for (name, config) in names.iter().zip(ALL) {
            assert_eq!(serde_json::from_str::<ControlConfig>(name).unwrap(), config);
        }
    }
}
