//! Traps 11 to 20 of the method, each with the mistake that it prevents.

use std::collections::HashSet;

use super::decode_loop::Masked;
use super::sampler_step::{D_MODEL, VOCAB, World, choices, esamp, log_softmax, row, wave};
use super::traps::{
    both_logits, close, config, error, error_of, learner, optimizer, run, sampler, step,
};
use crate::device;
use burn::{
    module::{Module, Param},
    tensor::{DType, Tensor},
};
use esamp::{
    CompletionId, Decoder, DrawKey, FinishReason, HiddenStates, LmHead, Request, Sampler,
    SamplerConfig, Sampling, StepInput, TokenId, TokenMask,
    distillers::Distiller,
    errors::TrainError,
    optim::{OptimizerConfig, TrainingConfig, UpdateRule},
    testing::{ScriptedLm, TinyLm},
    unstable::SlotPath,
};

#[test]
fn trap_11_nothing_is_filtered_after_the_fusion() {
    let world = World::new();
    let (beta, min_p) = (2.0, 0.1f32);
    let sampling = Sampling::default().with_beta(beta).with_min_p(min_p).checked().unwrap();
    let kept_of = |scores: &[f32]| -> HashSet<usize> {
        let best = scores.iter().copied().fold(f32::MIN, f32::max);
        (0..scores.len()).filter(|&z| scores[z] >= best + min_p.ln()).collect()
    };
    let mut would_differ = 0;
    for context in 0..20 {
        let [reference, expected] = both_logits(&world, context);
        let kept = kept_of(&reference);
        let fused = |z: usize| (1.0 + beta) * reference[z] - beta * expected[z];
        let scores: Vec<f32> = (0..VOCAB)
            .map(|z| if kept.contains(&z) { fused(z) } else { f32::NEG_INFINITY })
            .collect();
        let got = &step(&world, &mut sampler(&config()), &[row(0, 1, &sampling)], &[context])[0];
        assert_eq!(got.candidates, kept.len(), "context {context}: those of the reference");
        close(got.log_prob, log_softmax(&scores, got.token));
        would_differ += usize::from(kept_of(&scores) != kept);
    }
    assert!(would_differ > 5, "filtering again would show: {would_differ}");
}

#[test]
fn trap_12_a_batch_is_its_rows_one_by_one() {
    let model = TinyLm::new(8, &device());
    let request = |at: u32| {
        let prompt = (0..=at).map(|token| token * 9 % 64).collect();
        let request = Request::new(prompt).with_max_new_tokens(12).with_seed(u64::from(at));
        request.with_sampling(Sampling::paper().with_beta(0.5)).with_reference_log_probs()
    };
    let decode = |requests: Vec<Request>| {
        let mut decoder =
            Decoder::new(&model, config().init(TinyLm::D_MODEL, &device()).unwrap()).unwrap();
        for request in requests {
            drop(decoder.submit(request).unwrap());
        }
        run(&mut decoder)
    };
    let together = decode((0..5).map(request).collect());
    for (at, batched) in together.iter().enumerate() {
        let alone = &decode(vec![request(at as u32)])[0];
        assert_eq!(batched.tokens(), alone.tokens(), "prompt {at}");
        for (a, b) in batched.choices.iter().zip(&alone.choices) {
            close(a.reference_log_prob.unwrap(), b.reference_log_prob.unwrap());
            close(a.log_prob, b.log_prob);
        }
    }
}

#[test]
fn trap_13_random_numbers_know_no_neighbours() {
    let world = World::new();
    let off = Sampling::paper().with_beta(0.0).with_temperature(3.0).checked().unwrap();
    let draw = DrawKey::new(7, &[1, 2, 3], 4);
    let token =
        |id: CompletionId, draw: DrawKey, generated: &[TokenId], others: u64, last: bool| {
            let mine = {
                let mut row = row(0, 0, &off);
                row.id = id;
                row.draw = draw;
                row.generated = generated;
                row
            };
            let mut rows: Vec<_> = (0..others).map(|r| row(50, 100 + r, &off)).collect();
            let place = if last { rows.len() } else { 0 };
            rows.insert(place, mine);
            let contexts = vec![2; rows.len()];
            step(&world, &mut sampler(&config()), &rows, &contexts)[place].token
        };
    let mut seen = HashSet::new();
    for position in 0..20 {
        let generated = vec![5; position];
        let expected = token(CompletionId::new(0, 0), draw, &generated, 0, false);
        for (id, others, last) in [((0, 0), 3, false), ((0, 0), 7, true), ((9, 31), 2, true)] {
            let id = CompletionId::new(id.0, id.1);
            assert_eq!(token(id, draw, &generated, others, last), expected, "{position}");
        }
        // What must matter: the seed, the prompt and the index of the completion.
        for other in [
            DrawKey::new(8, &[1, 2, 3], 4),
            DrawKey::new(7, &[1, 2, 4], 4),
            DrawKey::new(7, &[1, 2, 3], 5),
        ] {
            assert_ne!(other.at(position as u64).uniform(), draw.at(position as u64).uniform());
        }
        seen.insert(expected);
    }
    assert!(seen.len() > 4, "the position matters: {seen:?}");
}

#[test]
fn trap_14_enabled_but_nothing_learned() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut sampler = sampler(&config());
    let nan = Tensor::<2>::full([2, D_MODEL], f32::NAN, &world.device);
    let rows = [row(0, 0, &sampling), row(0, 1, &sampling)];
    let logits = world.head.logits(world.hidden(&[0, 1]).deep().clone());
    let hidden = HiddenStates::new(nan.clone(), nan).unwrap();
    sampler.step(StepInput::new(&rows, logits, &world.head).with_hidden(hidden)).unwrap();
    let nothing = TrainError::NothingLearned { eligible: 2, skipped: 2 };
    assert_eq!(sampler.finish(), Err(nothing));
    let counters = *sampler.counters();
    assert_eq!((counters.updates, counters.rows_learned, counters.rows_not_finite), (0, 0, 2));
    assert_eq!((counters.eligible, counters.candidates), (2, 2 * VOCAB as u64));
    step(&world, &mut sampler, &rows, &[0, 1]);
    assert_eq!(sampler.finish(), Ok(()), "learning has begun");

    // A distiller that no update can change learns nothing either.
    #[derive(Module, Debug)]
    struct Rigid {}
    impl Distiller for Rigid {
        fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
            shallow
        }
    }
    let mut rigid =
        Sampler::builder(config()).with_distiller(Rigid {}).build(D_MODEL, &world.device).unwrap();
    step(&world, &mut rigid, &rows, &[0, 1]);
    let nothing = TrainError::NothingLearned { eligible: 2, skipped: 0 };
    assert_eq!(rigid.finish(), Err(nothing));
}

#[test]
fn trap_15_greedy_rows() {
    let world = World::new();
    let beta = 2.0;
    let greedy = Sampling::paper().with_beta(beta).with_temperature(0.0).checked().unwrap();
    let random = esamp(beta);
    let argmax = |scores: &[f32]| {
        (0..VOCAB).max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap() as TokenId
    };
    let mut moved = 0;
    for context in 0..20 {
        let [reference, expected] = both_logits(&world, context);
        let fused: Vec<f32> =
            (0..VOCAB).map(|z| (1.0 + beta) * reference[z] - beta * expected[z]).collect();
        let rows = [row(1, 107, &random), row(0, context as u64, &greedy), row(2, 108, &random)];
        let got = step(&world, &mut sampler(&config()), &rows, &[context; 3]);
        assert_eq!(got[1].token, argmax(&fused), "context {context}");
        close(got[0].log_prob, log_softmax(&fused, got[0].token));
        moved += usize::from(argmax(&fused) != argmax(&reference));
    }
    assert!(moved > 2, "the plain argmax would show: {moved}");
}

/// `ĥ = w · shallow`, one parameter.
#[derive(Module, Debug)]
pub(crate) struct Scale {
    pub(crate) weight: Param<Tensor<1>>,
}

impl Scale {
    pub(crate) fn one() -> Self {
        Self { weight: Param::from_tensor(Tensor::ones([1], &device())) }
    }
}

impl Distiller for Scale {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow * self.weight.val().unsqueeze()
    }
}

#[test]
fn trap_16_half_precision_models_have_full_precision_distillers() {
    // ĥ = w·1, deep 1.5, loss (w − 1.5)²: w starts at 1, and each step at rate 1e-3 reduces the error by 0.2 %. In
    // bf16 the first step would round back to 1, and so would all others.
    let world = World::new();
    let sampling = esamp(0.5);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        if !world.device.supports_dtype(dtype) {
            continue; // ndarray has no half precision
        }
        let sgd = OptimizerConfig::sgd(1e-3);
        let config = SamplerConfig::new().with_optimizer(sgd);
        let mut sampler = Sampler::builder(config)
            .with_distiller(Scale::one())
            .build(D_MODEL, &world.device)
            .unwrap();
        let states = |value: f32| Tensor::<2>::full([1, D_MODEL], value, &world.device).cast(dtype);
        for at in 0..100 {
            let hidden = HiddenStates::new(states(1.0), states(1.5)).unwrap();
            let logits = world.head.logits(hidden.deep().clone()).cast(dtype);
            let rows = [row(0, 0, &sampling)];
            let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
            let got = &choices(sampler.step(input).unwrap())[0];
            let expected = 0.5 * 0.998f64.powi(at) * (D_MODEL as f64).sqrt();
            close(error(got), expected as f32);
        }
    }
}

/// tests/long_run.rs measures the memory of 10⁴ steps. It stays flat because of what is tested here.
#[test]
fn trap_17_hidden_states_are_detached() {
    let world = World::new();
    let sampling = esamp(0.5);
    let mut attached = sampler(&config());
    let mut detached = sampler(&config());
    // A model on an autodiff device: its hidden states depend on a graph over all of its weights.
    let weight = wave::<2>([D_MODEL, D_MODEL], 0.3, &world.device).autodiff().require_grad();
    for at in 0..4 {
        let clean = world.hidden(&[at]);
        let grown = |states: &Tensor<2>| states.clone().autodiff().matmul(weight.clone());
        let (shallow, deep) = (grown(clean.shallow()), grown(clean.deep()));
        assert!(shallow.is_tracked());
        let logits = world.head.logits(deep.clone().inner());
        let tracked = HiddenStates::new(shallow.clone(), deep.clone()).unwrap();
        for states in [tracked.shallow(), tracked.deep()] {
            assert!(!states.is_tracked() && !states.is_autodiff(), "cut off from the graph");
        }
        let cut = HiddenStates::new(shallow.inner(), deep.inner()).unwrap();
        let rows = [row(0, 0, &sampling)];
        let input = |hidden| StepInput::new(&rows, logits.clone(), &world.head).with_hidden(hidden);
        let a = choices(attached.step(input(Some(tracked))).unwrap());
        let b = choices(detached.step(input(Some(cut))).unwrap());
        assert_eq!(a, b);
    }
    assert_eq!(attached.counters().updates, 4);
}

#[test]
fn trap_18_a_row_that_is_not_finite_affects_nothing_else() {
    let world = World::new();
    let (sampling, off) = (esamp(0.5), esamp(0.0));
    let rows: Vec<_> = (0..3).map(|r| row(0, r, &sampling)).collect();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut sampler = sampler(&config());
        let clean = world.hidden(&[2, 6, 11]);
        let bad = Tensor::<2>::full([1, 1], bad, &world.device);
        let shallow = clean.shallow().clone().slice_assign([1..2, 3..4], bad);
        let hidden = HiddenStates::new(shallow, clean.deep().clone()).unwrap();
        let logits = world.head.logits(clean.deep().clone());
        let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
        let got = choices(sampler.step(input).unwrap());
        let plain = step(&world, &mut self::sampler(&config()), &[row(0, 1, &off)], &[6]);
        assert_eq!((got[1].token, got[1].novelty), (plain[0].token, None), "sampled plainly");
        assert_eq!((sampler.counters().rows_not_finite, sampler.counters().rows_learned), (1, 2));
        // The slot has learned from the two clean rows only.
        let mut oracle = learner();
        oracle.update(&world.hidden(&[2, 11]));
        let after = step(&world, &mut sampler, &rows[1..2], &[5]);
        close(error(&after[0]), error_of(&world, oracle.distiller(), 5));
    }
}

#[test]
fn trap_19_a_slot_at_rest_does_not_move() {
    let world = World::new();
    let sampling = esamp(0.5);
    let decay = optimizer().with_rule(UpdateRule::AdamW {
        beta_1: 0.9,
        beta_2: 0.999,
        epsilon: 1e-8,
        weight_decay: 0.5,
    });
    for rule in [decay, OptimizerConfig::momentum(1e-2, 0.9), optimizer()] {
        for slot_path in [SlotPath::Stacked, SlotPath::Apart, SlotPath::OneByOne] {
            let training = TrainingConfig::new().with_slot_path(slot_path);
            let config = config().with_optimizer(rule).with_training(training);
            let (mut resting, mut straight) = (sampler(&config), sampler(&config));
            let (sleeper, busy) = ([row(0, 0, &sampling)], [row(1, 1, &sampling)]);
            for at in 0..6 {
                if at == 3 {
                    for c in 0..30 {
                        drop(step(&world, &mut resting, &busy, &[c]));
                    }
                }
                let a = step(&world, &mut resting, &sleeper, &[at]);
                let b = step(&world, &mut straight, &sleeper, &[at]);
                close(error(&a[0]), error(&b[0]));
            }
        }
    }
}

#[test]
fn trap_20_ended_rows() {
    // A sequence that contains a 9 has ended, and its logits and hidden states are NaN, so sampling it or learning
    // from it would show. The fixed cache cannot drop rows, so ended ones stay in the batch.
    let script = |sequence: &[TokenId]| match sequence.contains(&9) {
        true => vec![f32::NAN; 10],
        false => (0..10).map(|token| (token * 3 + sequence.len()) as f32 % 5.0).collect(),
    };
    for model in [
        ScriptedLm::new(10, &device(), script),
        ScriptedLm::new(10, &device(), script).with_fixed_cache(),
    ] {
        let mut decoder = Decoder::new(&model, config().init(10, &device()).unwrap()).unwrap();
        let masker = |row: CompletionId, generated: &[TokenId]| -> Masked {
            let ends = generated.len() as u64 == 2 * row.index + 1;
            Ok(Some(TokenMask::allowing(10, if ends { 9..10 } else { 0..9 })))
        };
        let request = Request::new(vec![1]).with_completions(4).with_stop_tokens([9]);
        decoder
            .submit(request.with_sampling(Sampling::paper().with_beta(0.5)).with_masker(masker))
            .unwrap();
        let completions = run(&mut decoder);
        let lengths: Vec<usize> = completions.iter().map(|c| c.choices.len()).collect();
        assert_eq!(lengths, [2, 4, 6, 8]);
        assert!(completions.iter().all(|c| c.finish == FinishReason::StopToken(9)));
        let counters = decoder.sampler().counters();
        assert_eq!((counters.tokens, counters.failed), (20, 0), "nobody who has ended is sampled");
        assert_eq!((counters.eligible, counters.rows_not_finite), (16, 0), "nor learned");
        assert_eq!((counters.rows_learned, decoder.sampler().distillers()), (16, 0));
    }
}
