//! Inconsistent inputs of a step, and rows that fail while the others continue.

use super::sampler_step::{D_MODEL, VOCAB, World, choices, esamp, row, sampler, wave};
use crate::device;
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use esamp::{
    HiddenStates, LmHead, Sampler, SamplerConfig, Sampling, Sharing, StepInput, StepRow, TiedHead,
    TokenMask,
    distillers::Distiller,
    errors::{RowError, StepError, TrainError},
    unstable::Gradient,
};

#[test]
fn inconsistent_input_is_reported_before_any_work() {
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let hidden = || world.hidden(&[0, 1]);
    let logits = || world.head.logits(hidden().deep().clone());
    let mut sampler = sampler();
    let mut wording = |rows: &[StepRow<'_>], logits: Tensor<2>, hidden: Option<HiddenStates>| {
        let input = StepInput::new(rows, logits, &world.head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    assert_eq!(wording(&rows[..1], logits(), Some(hidden())), "logits: expected 1 rows, got 2");
    assert_eq!(
        wording(&rows, logits(), Some(world.hidden(&[0]))),
        "hidden states: expected 2 rows, got 1"
    );
    assert_eq!(
        wording(&[rows[0], rows[0]], logits(), Some(hidden())),
        "completion 0 of prompt 0: expected one row of it in a step, got two"
    );
    assert_eq!(
        wording(&rows, logits(), None),
        "hidden states: expected them for completion 0 of prompt 0, whose reweighter uses expected logits, got none"
    );
    let wide = Tensor::<2>::ones([2, D_MODEL + 1], &world.device);
    assert_eq!(
        wording(&rows, logits(), Some(HiddenStates::new(wide.clone(), wide).unwrap())),
        "hidden states: expected shape [2, 8], got [2, 9]"
    );
    assert_eq!(sampler.counters().steps, 0);
    assert_eq!(sampler.distillers(), 0);
}

/// Hidden states, or a head, on another device than the sampler.
#[cfg(any(feature = "ndarray", feature = "cuda", feature = "vulkan", feature = "wgpu"))]
pub(super) fn hidden_states_or_a_head_elsewhere_are_an_error(elsewhere: &burn::tensor::Device) {
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling)];
    let mut sampler = sampler();
    let mut wording = |head: &dyn LmHead, hidden: HiddenStates| {
        let logits = world.head.logits(world.hidden(&[0]).deep().clone());
        let input = StepInput::new(&rows, logits, head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    let states = Tensor::<2>::ones([1, D_MODEL], elsewhere);
    let states = HiddenStates::new(states.clone(), states).unwrap();
    let message = wording(&world.head, states);
    assert!(message.starts_with("hidden states: expected device"), "{message}");
    let head = TiedHead::new(wave([VOCAB, D_MODEL], 0.7, elsewhere));
    let message = wording(&head, world.hidden(&[0]));
    assert!(message.starts_with("LM head: expected device"), "{message}");
    assert_eq!(sampler.counters().steps, 0);
    assert_eq!(sampler.distillers(), 0);
}

#[test]
fn a_head_or_a_distiller_that_returns_the_wrong_shape_is_an_error() {
    #[derive(Module, Debug)]
    struct Narrow {}
    impl Distiller for Narrow {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            let rows = shallow.dims()[0];
            shallow.slice([0..rows, 0..3])
        }
    }
    let world = World::new();
    let sampling = esamp(0.25);
    let rows = [row(0, 0, &sampling)];
    let mut narrow = Sampler::builder(SamplerConfig::new())
        .with_distiller(Narrow {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let error = world.step(&mut narrow, &rows, &[0]).unwrap_err();
    assert_eq!(error.to_string(), "distiller: expected a prediction of shape [1, 8], got [1, 3]");
    let hidden = world.hidden(&[0]);
    let logits = world.head.logits(hidden.deep().clone());
    let head = |hidden: Tensor<2>| hidden; // d_model logits instead of vocab
    // With a filter, the candidates would be gathered from logits that do not have them.
    let filtered = Sampling::default().with_top_k(2).checked().unwrap();
    for sampling in [&sampling, &filtered] {
        let rows = [row(0, 0, sampling)];
        let input = StepInput::new(&rows, logits.clone(), &head).with_hidden(hidden.clone());
        let error = sampler().step(input).unwrap_err();
        assert_eq!(
            error.to_string(),
            "expected logits of the LM head: expected shape [1, 12], got [1, 8]"
        );
    }
}

#[test]
fn a_head_of_another_model_is_refused_before_it_is_applied() {
    let world = World::new();
    // With a filter, the head's matrix would be indexed at rows that it does not have.
    let sampling = Sampling::default().with_top_k(2).checked().unwrap();
    let rows = [row(0, 0, &sampling)];
    let hidden = world.hidden(&[0]);
    let mut sampler = sampler();
    let mut wording = |head: &dyn LmHead| {
        let logits = world.head.logits(hidden.deep().clone());
        let hidden = Some(hidden.clone());
        let input = StepInput::new(&rows, logits, head).with_hidden(hidden);
        sampler.step(input).unwrap_err().to_string()
    };
    assert_eq!(
        wording(&TiedHead::new(wave([3, D_MODEL], 0.7, &world.device))),
        "LM head: expected shape [8, 12], got [8, 3]"
    );
    let linear = burn::nn::LinearConfig::new(D_MODEL + 1, VOCAB).init(&world.device);
    assert_eq!(wording(&linear), "LM head: expected shape [8, 12], got [9, 12]");
    assert_eq!(sampler.counters().steps, 0);
}

#[test]
fn an_undefined_log_probability_is_an_error() {
    let world = World::new();
    let sampling = Sampling::paper().with_beta(0.0).checked().unwrap();
    let only = TokenMask::allowing(VOCAB, [2, 3]);
    let nan = Tensor::<2>::full([1, 1], f32::NAN, &world.device);
    let logits = wave([1, VOCAB], 0.3, &world.device).slice_assign([0..1, 7..8], nan);
    let plain = row(0, 0, &sampling).with_allowed(&only);
    let asked = plain.with_reference_log_prob();
    let choice = |row| {
        let rows = [row];
        let input = StepInput::new(&rows, logits.clone(), &world.head);
        sampler().step(input).unwrap().choices[0].clone()
    };
    assert!(choice(plain).is_ok(), "the mask hides token 7 from the race");
    assert!(matches!(choice(asked), Err(RowError::NotANumber { token: 7, .. })));
}

#[test]
fn a_reweighter_that_returns_nan_fails_only_its_row() {
    #[derive(Debug)]
    struct Broken;
    impl esamp::reweighters::NoveltyReweighter for Broken {
        fn reweight(
            &self,
            _row: &esamp::filters::RowContext<'_>,
            candidates: &mut esamp::filters::Candidates,
        ) {
            candidates.rescore(|c| if c.token == 3 { f32::NAN } else { c.logit });
        }
    }
    let world = World::new();
    let (broken, fine) =
        (Sampling::paper().with_custom_reweighter(Broken).checked().unwrap(), esamp(0.25));
    let rows = [row(0, 0, &broken), row(0, 1, &fine)];
    let output = world.step(&mut sampler(), &rows, &[0, 1]).unwrap();
    assert!(matches!(output.choices[0], Err(RowError::Score { token: 3, .. })));
    assert!(output.choices[1].is_ok());
}

#[test]
fn settings_out_of_range_are_refused_at_construction() {
    let wording = |config: Sampling| config.checked().unwrap_err().to_string();
    let base = Sampling::paper;
    assert_eq!(wording(base().with_beta(-0.5)), "beta: expected a number of at least 0, got -0.5");
    assert_eq!(
        wording(base().with_beta(f32::NAN)),
        "beta: expected a number of at least 0, got NaN"
    );
    assert_eq!(
        wording(base().with_temperature(-1.0)),
        "temperature: expected 0 or a number of at least 0.0001, got -1"
    );
    assert!(
        base().with_temperature(1e-5).checked().is_err(),
        "logits would leave the range of f32"
    );
    assert!(base().with_temperature(Sampling::LOWEST_TEMPERATURE).checked().is_ok());
    let refused = |config: SamplerConfig| config.init(D_MODEL, &device()).unwrap_err().to_string();
    let rate = esamp::optim::OptimizerConfig::sgd(0.0);
    assert_eq!(
        refused(SamplerConfig::new().with_optimizer(rate)),
        "learning_rate: expected a number above 0, got 0"
    );
    let blocks = esamp::distillers::DistillerConfig::SwiGlu(
        esamp::distillers::SwiGluConfig::new().with_blocks(0),
    );
    assert_eq!(
        refused(SamplerConfig::new().with_distiller(blocks)),
        "blocks: expected at least 1, got 0"
    );
    assert!(SamplerConfig::new().init(0, &device()).is_err());
    let first = esamp::optim::TrainRows::FirstPerPrompt;
    let training = esamp::optim::TrainingConfig::new().with_train_rows(first);
    let never = esamp::optim::TrainingConfig::new().with_update_every(0);
    assert_eq!(
        refused(SamplerConfig::new().with_training(never)),
        "update_every: expected at least 1, got 0"
    );
    let alone = SamplerConfig::new().with_sharing(Sharing::PerCompletion).with_training(training);
    assert_eq!(
        refused(alone),
        "train_rows: expected all, because every completion has its own distiller, got first_per_prompt"
    );
}

/// A distiller with a stacked form but without parameters.
#[derive(Module, Debug)]
struct Nothing {}

impl Distiller for Nothing {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }

    fn stacked(&self) -> Option<std::sync::Arc<dyn esamp::unstable::StackedDistiller>> {
        Some(std::sync::Arc::new(StackedNothing))
    }
}

#[derive(Debug)]
struct StackedNothing;

impl esamp::unstable::StackedDistiller for StackedNothing {
    fn predict(&self, _parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        shallow
    }
}

#[test]
fn a_distiller_without_parameters_predicts_in_every_batch() {
    let world = World::new();
    let sampling = esamp(0.25);
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Nothing {})
        .build(D_MODEL, &world.device)
        .unwrap();
    let (a, b) = (row(0, 0, &sampling), row(1, 1, &sampling));
    for rows in [&[a, b][..], &[b, a], &[b]] {
        let contexts: Vec<usize> = (0..rows.len()).collect();
        assert!(choices(world.step(&mut sampler, rows, &contexts).unwrap())[0].novelty.is_some());
    }
    sampler.release(a.id);
    world.step(&mut sampler, &[b], &[1]).unwrap();
    assert_eq!(sampler.counters().updates, 0);
}

/// A distiller whose stacked form returns these gradients.
#[derive(Module, Debug)]
struct Given {
    weight: Param<Tensor<2>>,
    #[module(skip)]
    gradient: [[usize; 3]; 2],
}

impl Distiller for Given {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow.matmul(self.weight.val())
    }

    fn stacked(&self) -> Option<std::sync::Arc<dyn esamp::unstable::StackedDistiller>> {
        Some(std::sync::Arc::new(StackedGiven(self.gradient)))
    }
}

#[derive(Debug)]
struct StackedGiven([[usize; 3]; 2]);

impl esamp::unstable::StackedDistiller for StackedGiven {
    fn predict(&self, parameters: &[Tensor<3>], shallow: Tensor<3>) -> Tensor<3> {
        shallow.matmul(parameters[0].clone())
    }

    fn gradients(
        &self,
        _parameters: &[Tensor<3>],
        shallow: Tensor<3>,
        _deep: Tensor<3>,
        _weight: Tensor<3>,
    ) -> Vec<Gradient> {
        let device = shallow.device();
        let [inputs, upstream] = self.0.map(|shape| Tensor::ones(shape, &device));
        vec![Gradient::Product { inputs, upstream }]
    }
}

#[test]
fn gradients_that_do_not_fit_are_refused() {
    let world = World::new();
    let sampling = esamp(0.25);
    let step = |gradient| {
        let weight = Param::from_tensor(wave([D_MODEL, D_MODEL], 0.3, &world.device));
        let distiller = Given { weight, gradient };
        let config = SamplerConfig::new();
        let mut sampler = Sampler::builder(config)
            .with_distiller(distiller)
            .build(D_MODEL, &world.device)
            .unwrap();
        world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).map(|_| sampler.counters().updates)
    };
    let fits = [[1, 1, D_MODEL], [1, 1, D_MODEL]];
    assert_eq!(step(fits).unwrap(), 1);
    let Err(StepError::Train(error)) = step([[1, 1, D_MODEL], [1, 1, 5]]) else {
        panic!("expected the shape to be refused");
    };
    assert_eq!(
        error,
        TrainError::Gradients { expected: vec![[1, D_MODEL, D_MODEL]], got: vec![[1, D_MODEL, 5]] }
    );
    let Err(StepError::Train(error)) = step([[1, 2, D_MODEL], [1, 3, D_MODEL]]) else {
        panic!("expected the factors to be refused");
    };
    assert_eq!(
        error.to_string(),
        "stacked distiller: gradient 0: expected factors with the same slots and rows, got inputs [1, 2, 8] and \
         upstream [1, 3, 8]"
    );
    let Err(StepError::Train(error)) = step([[1, 2, D_MODEL], [2, 2, D_MODEL]]) else {
        panic!("expected the slots to be refused");
    };
    let (inputs, upstream) = ([1, 2, D_MODEL], [2, 2, D_MODEL]);
    assert_eq!(error, TrainError::GradientFactors { parameter: 0, inputs, upstream });
}

#[test]
fn a_distiller_that_has_diverged_is_counted_separately() {
    let world = World::new();
    let sampling = esamp(0.25);
    #[derive(Module, Debug)]
    struct Diverged {}
    impl Distiller for Diverged {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            shallow * f32::NAN
        }
    }
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Diverged {})
        .build(D_MODEL, &world.device)
        .unwrap();
    world.step(&mut sampler, &[row(0, 0, &sampling)], &[0]).unwrap();
    let counters = sampler.counters();
    assert_eq!((counters.rows_not_finite, counters.predictions_not_finite), (1, 1));
}
