//! How much memory the distillers take: the sizes from the formulas, on every path.

use burn::tensor::Tensor;
use esamp::{
    CompletionId, DrawKey, HiddenStates, Phase, Sampler, SamplerConfig, Sampling, Sharing,
    StepInput, StepRow, TiedHead,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    optim::{OptimizerConfig, Staleness, TrainingConfig},
    unstable::SlotPath,
};

const D_MODEL: usize = 6;
const RANK: usize = 2;
/// Parameters of a low-rank distiller: `3·d·r + r + 2·d`.
const LOW_RANK: usize = 3 * D_MODEL * RANK + RANK + 2 * D_MODEL;
/// The hidden width of the SwiGLU blocks; two blocks have `2·3·d·h` parameters.
const D_HIDDEN: usize = 5;
const SWIGLU: usize = 2 * 3 * D_MODEL * D_HIDDEN;

/// A sampler after one step with one row of each of `prompts` prompts.
fn after_a_step(config: &SamplerConfig, prompts: u64) -> Sampler {
    let device = crate::device();
    let mut sampler = config.init(D_MODEL, &device).unwrap();
    assert_eq!(sampler.state_bytes(), 0, "nothing has learned");
    let sampling = Sampling::paper().checked().unwrap();
    let rows: Vec<StepRow<'_>> = (0..prompts)
        .map(|prompt| {
            StepRow::new(
                CompletionId::new(prompt, prompt),
                DrawKey::new(0, &[], prompt),
                &[],
                &[],
                &sampling,
            )
            .with_phase(Phase::Decode)
        })
        .collect();
    let count = prompts as usize;
    let states = |value: f32| Tensor::<2>::full([count, D_MODEL], value, &device);
    let head = TiedHead::new(Tensor::ones([8, D_MODEL], &device));
    let input = StepInput::new(&rows, Tensor::zeros([count, 8], &device), &head)
        .with_hidden(HiddenStates::new(states(0.5), states(1.0)).unwrap());
    sampler.step(input).unwrap();
    sampler.finish().unwrap();
    sampler
}

fn low_rank() -> SamplerConfig {
    let distiller = DistillerConfig::LowRank(LowRankConfig::new().with_rank(RANK));
    SamplerConfig::new().with_distiller(distiller)
}

#[test]
fn a_slot_is_its_parameters_and_its_optimizer_state() {
    for path in [SlotPath::Automatic, SlotPath::Stacked, SlotPath::Apart, SlotPath::OneByOne] {
        for (optimizer, copies) in [
            (OptimizerConfig::sgd(1e-3), 1),
            (OptimizerConfig::adam_w(1e-3), 3),
            (OptimizerConfig::paper(), 3),
        ] {
            let training = TrainingConfig::new().with_slot_path(path);
            let config = low_rank().with_training(training).with_optimizer(optimizer);
            let sampler = after_a_step(&config, 3);
            assert_eq!(sampler.state_bytes(), 3 * copies * LOW_RANK * 4, "{path:?} {optimizer:?}");
        }
    }
    let swiglu = SwiGluConfig::new().with_d_hidden(D_HIDDEN);
    let config = SamplerConfig::new().with_distiller(DistillerConfig::SwiGlu(swiglu));
    assert_eq!(after_a_step(&config, 2).state_bytes(), 2 * 3 * SWIGLU * 4);
}

#[test]
fn sharing_and_the_background_change_the_number_of_copies() {
    let state = 3 * LOW_RANK * 4;
    let shared = low_rank().with_sharing(Sharing::Global);
    assert_eq!(after_a_step(&shared, 3).state_bytes(), state);
    let adaptive = low_rank().with_sharing(Sharing::Adaptive(Default::default()));
    assert_eq!(after_a_step(&adaptive, 3).state_bytes(), 4 * state, "three of their own and one");
    let training = TrainingConfig::new().with_staleness(Staleness::Background);
    let background = low_rank().with_training(training);
    assert_eq!(after_a_step(&background, 3).state_bytes(), 2 * 3 * state);
}

/// The worker's copy is freed when the caller waits for it, or with its next update.
#[test]
fn a_release_frees_the_distiller() {
    let state = 3 * LOW_RANK * 4;
    for (sharing, kept) in [
        (Sharing::PerPrompt, 0),
        (Sharing::PerCompletion, 0),
        (Sharing::Global, 1),
        (Sharing::Adaptive(Default::default()), 1),
    ] {
        for staleness in [Staleness::Inline, Staleness::Background] {
            let training = TrainingConfig::new().with_staleness(staleness);
            let config = low_rank().with_training(training).with_sharing(sharing);
            let mut sampler = after_a_step(&config, 3);
            let (copies, before) = match staleness {
                Staleness::Background => (2, sampler.state_bytes() / 2),
                _ => (1, 0),
            };
            for prompt in 0..3 {
                sampler.release(CompletionId::new(prompt, prompt));
            }
            assert_eq!(sampler.distillers(), kept, "{sharing:?}");
            assert_eq!(sampler.state_bytes(), kept * state + before, "{sharing:?} {staleness:?}");
            sampler.finish().unwrap();
            assert_eq!(sampler.state_bytes(), copies * kept * state, "{sharing:?} {staleness:?}");
        }
    }
}

#[test]
fn a_reset_frees_all_of_it() {
    let mut sampler = after_a_step(&low_rank(), 3);
    sampler.reset();
    assert_eq!(sampler.state_bytes(), 0);
}
