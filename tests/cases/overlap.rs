//! Predicting beside the later blocks changes when the work is done, and nothing else.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use crate::device;
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use esamp::{
    CausalLm, Completion, Counters, Decoder, Distiller, DrawKey, HiddenStateTap, LmHead,
    OptimizerConfig, Overlap, Phase, Request, RowId, Sampler, SamplerConfig, SamplingConfig,
    Sharing, Staleness, StepError, StepInput, StepRow, TapSite, TiedHead, TrainingConfig,
    testing::{ScriptedLm, TinyLm},
};

fn config(overlap: Overlap) -> SamplerConfig {
    let optimizer = OptimizerConfig::paper().with_learning_rate(1e-2);
    SamplerConfig::new().with_overlap(overlap).with_optimizer(Some(optimizer))
}

/// Prompts of all lengths that end at different times and join late, steered ones beside plain ones.
fn run<M: CausalLm>(model: &M, config: &SamplerConfig) -> (Vec<Completion>, Counters) {
    let mut decoder = Decoder::new(model, config.init(model.d_model(), &device()).unwrap());
    let request = |prompt: &[u32], length, beta| {
        let sampling = SamplingConfig::default().with_beta(beta).with_min_p(0.01).init().unwrap();
        let request = Request::new(prompt.to_vec()).with_max_new_tokens(length);
        request.with_sampling(sampling).with_completions(2).with_seed(3)
    };
    decoder.submit(request(&[1, 2, 3], 12, 1.0)).unwrap();
    decoder.submit(request(&[4], 5, 0.0)).unwrap();
    decoder.submit(request(&[5, 6], 8, 0.5)).unwrap();
    (0..3).for_each(|_| drop(decoder.step().unwrap()));
    decoder.submit(request(&[7; 6], 6, 1.0)).unwrap();
    let mut completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    completions.sort_by_key(|completion| completion.row.request);
    decoder.sampler_mut().finish().unwrap();
    let counters = *decoder.sampler().counters();
    (completions, counters)
}

#[test]
fn tokens_novelty_and_counters_are_the_same() {
    let tiny = TinyLm::new(2, &device());
    let fixed = ScriptedLm::new(10, &device(), |sequence| {
        let last = *sequence.last().unwrap() as usize;
        (0..10).map(|token| ((token * 7 + last * 3) as f32 * 0.9).sin() * 2.0).collect()
    })
    .with_fixed_cache();
    for staleness in [Staleness::Inline, Staleness::Background] {
        let training = TrainingConfig { staleness, ..TrainingConfig::default() };
        for sharing in [
            Sharing::PerPrompt,
            Sharing::Global,
            Sharing::PerRequest,
            Sharing::Adaptive(Default::default()),
        ] {
            let with = |overlap| config(overlap).with_sharing(sharing).with_training(training);
            let plain = run(&tiny, &with(Overlap::None));
            let plain_fixed = run(&fixed, &with(Overlap::None));
            assert!(plain.1.interventions > 0 && plain_fixed.1.interventions > 0);
            for overlap in [Overlap::Tap, Overlap::Thread] {
                assert_eq!(run(&tiny, &with(overlap)), plain, "{overlap:?} {sharing:?}");
                assert_eq!(run(&fixed, &with(overlap)), plain_fixed, "{overlap:?} {sharing:?}");
            }
        }
    }
}

/// What happened, in order.
type Log = Arc<Mutex<Vec<&'static str>>>;

/// Says when it predicts.
#[derive(Module, Debug)]
struct Logged {
    #[module(skip)]
    log: Log,
}

impl Distiller for Logged {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        self.log.lock().unwrap().push("predict");
        shallow
    }
}

fn states(rows: usize) -> Tensor<3> {
    let numbers = (0..rows * 4).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
    Tensor::from_data(TensorData::new(numbers, [rows, 1, 4]), &device())
}

fn logged(overlap: Overlap) -> (Sampler, Log) {
    let log = Log::default();
    let distiller = Logged { log: log.clone() };
    (config(overlap).init_with(distiller, 4, &device()).unwrap(), log)
}

const SITES: [TapSite; 2] = [TapSite::AfterBlock(0), TapSite::HeadInput];

/// A step over two rows of which the second is steered, with whatever the tap has started.
fn step(sampler: &mut Sampler, named: RowId, log: &Log) -> Result<(), StepError> {
    let sampling = [0.0, 1.0].map(|beta| SamplingConfig::default().with_beta(beta).init().unwrap());
    let head = TiedHead::new(states(6).reshape([6, 4]));
    let mut tap = sampler.tap(SITES[0], SITES[1], &[(1, named)]);
    tap.record(TapSite::AfterBlock(0), &states(2));
    log.lock().unwrap().push("later blocks");
    tap.record(TapSite::AfterBlock(1), &states(2));
    tap.record(TapSite::HeadInput, &states(2));
    let (hidden, early) = tap.take()?;
    let rows = [0, 1].map(|request| StepRow {
        id: RowId::new(0, request),
        phase: Phase::Decode,
        draw: DrawKey::new(1, &[], request),
        code: None,
        prompt: &[],
        generated: &[1],
        sampling: &sampling[request as usize],
        allowed: None,
        wants_reference_log_prob: false,
    });
    let logits = head.logits(hidden.deep().clone());
    let input = StepInput::new(&rows, logits, &head).with_hidden(hidden).with_early(early);
    sampler.step(input).map(drop)
}

#[test]
fn the_prediction_is_made_before_the_later_blocks_and_only_once() {
    let order = |overlap| {
        let (mut sampler, log) = logged(overlap);
        step(&mut sampler, RowId::new(0, 1), &log).unwrap();
        let log = log.lock().unwrap().clone();
        // The update has nothing to learn, but goes through the distiller once.
        log.into_iter().take(2).collect::<Vec<_>>()
    };
    assert_eq!(order(Overlap::Tap), ["predict", "later blocks"]);
    assert_eq!(order(Overlap::None), ["later blocks", "predict"]);
    let (mut sampler, log) = logged(Overlap::Thread);
    step(&mut sampler, RowId::new(0, 1), &log).unwrap();
    let (mut none, plain) = logged(Overlap::None);
    step(&mut none, RowId::new(0, 1), &plain).unwrap();
    assert_eq!(log.lock().unwrap().len(), plain.lock().unwrap().len(), "not twice");
}

#[test]
fn a_prediction_for_other_rows_is_refused() {
    for overlap in [Overlap::Tap, Overlap::Thread] {
        let (mut sampler, log) = logged(overlap);
        let error = step(&mut sampler, RowId::new(0, 7), &log).unwrap_err();
        assert!(error.to_string().starts_with("early prediction: expected one for"), "{error}");
        step(&mut sampler, RowId::new(0, 1), &log).unwrap();
        let mut tap = sampler.tap(SITES[0], SITES[1], &[(5, RowId::new(0, 1))]);
        SITES.iter().for_each(|&site| tap.record(site, &states(2)));
        let error = tap.take().unwrap_err();
        assert_eq!(error.to_string(), "row 5: expected a row below 2");
    }
}

#[test]
fn a_model_that_fails_after_its_first_block_leaves_nothing_behind() {
    for overlap in [Overlap::Tap, Overlap::Thread] {
        let (mut sampler, log) = logged(overlap);
        let before = *sampler.counters();
        for _ in 0..3 {
            let mut tap = sampler.tap(SITES[0], SITES[1], &[(1, RowId::new(0, 1))]);
            tap.record(TapSite::AfterBlock(0), &states(2));
            drop(tap); // and no step
        }
        assert_eq!(*sampler.counters(), before);
        step(&mut sampler, RowId::new(0, 1), &log).unwrap();
        assert_eq!(sampler.counters().steered, 1);
    }
}

/// Panics when asked.
#[derive(Module, Debug)]
struct Fragile {}

impl Distiller for Fragile {
    fn predict(&self, _shallow: Tensor<2>) -> Tensor<2> {
        panic!("cannot predict this")
    }
}

#[test]
fn a_panic_of_an_early_prediction_is_an_error_of_its_step() {
    for overlap in [Overlap::Tap, Overlap::Thread] {
        let mut sampler = config(overlap).init_with(Fragile {}, 4, &device()).unwrap();
        for _ in 0..2 {
            let error = step(&mut sampler, RowId::new(0, 1), &Log::default()).unwrap_err();
            assert_eq!(
                error.to_string(),
                "background learning: expected a running worker, got a panic: cannot predict this",
                "{overlap:?}"
            );
            assert!(sampler.requests().is_empty(), "nothing has begun");
        }
    }
}

/// Rows of a step, and states of theirs.
type Planned = (Vec<RowId>, Tensor<3>, Tensor<3>);

fn planned(at: usize) -> Planned {
    let prompts: &[(u64, u64)] = match at {
        0..4 => &[(0, 1)],
        4..7 => &[(0, 2), (0, 1)],
        _ => &[(1, 5), (0, 2), (2, 7)],
    };
    let rows: Vec<RowId> = prompts.iter().map(|&(p, r)| RowId::new(p, r)).collect();
    let states = |phase: f32| -> Tensor<3> {
        let numbers = (0..rows.len() * 4).map(|i| (i as f32 * 0.7 + at as f32 + phase).sin());
        let data = TensorData::new(numbers.collect::<Vec<f32>>(), [rows.len(), 1, 4]);
        Tensor::from_data(data, &device())
    };
    let (shallow, deep) = (states(0.0), states(2.0));
    (rows, shallow, deep)
}

/// Starts a prediction for a step as its forward pass would, whole or to the first block only.
fn start(
    sampler: &mut Sampler,
    (rows, shallow, deep): &Planned,
    whole: bool,
) -> Option<esamp::Early> {
    let steered: Vec<(usize, RowId)> = rows.iter().copied().enumerate().collect();
    let mut tap = sampler.tap(SITES[0], SITES[1], &steered);
    tap.record(SITES[0], shallow);
    whole.then(|| {
        tap.record(SITES[1], deep);
        tap.take().unwrap().1.unwrap()
    })
}

/// Twelve steps; what came out, bit for bit, and what the sampler then knows. With `dropped`, predictions for rows to come
/// are started before each, and come to nothing.
fn with_predictions_dropped(config: &SamplerConfig, dropped: bool) -> Vec<String> {
    let mut sampler = config.init(4, &device()).unwrap();
    let sampling = SamplingConfig::default().with_beta(1.0).init().unwrap();
    let head = TiedHead::new(states(6).reshape([6, 4]));
    let mut seen = Vec::new();
    for at in 0..12 {
        if dropped {
            start(&mut sampler, &planned(11), false); // prompts that begin at step 7
            start(&mut sampler, &planned(5), true); // a request that begins at step 4
            start(&mut sampler, &planned(at), true); // the step's own, overtaken
        }
        let plan = planned(at);
        let early = match config.overlap {
            Overlap::None => None,
            _ => start(&mut sampler, &plan, true),
        };
        let (rows, shallow, deep) = plan;
        let rows: Vec<StepRow<'_>> = rows
            .into_iter()
            .map(|id| StepRow {
                id,
                phase: Phase::Decode,
                draw: DrawKey::new(3, &[], id.request.0),
                code: None,
                prompt: &[],
                generated: &[1],
                sampling: &sampling,
                allowed: None,
                wants_reference_log_prob: false,
            })
            .collect();
        let flat = |states: Tensor<3>| states.reshape([rows.len(), 4]);
        let hidden = esamp::HiddenStates::new(flat(shallow), flat(deep)).unwrap();
        let logits = head.logits(hidden.deep().clone());
        let input = StepInput::new(&rows, logits, &head).with_hidden(hidden).with_early(early);
        let output = sampler.step(input).unwrap();
        let (requests, distillers) = (sampler.requests(), sampler.distillers());
        seen.push(format!("{at}: {:?} {requests:?} {distillers}", output.choices));
        if at == 8 {
            sampler.release(RowId::new(0, 1));
        }
    }
    sampler.finish().unwrap();
    seen.push(format!("{:?}", sampler.counters()));
    seen
}

/// An early prediction makes room for requests and, where sharing is adaptive, decides what a prompt's distiller starts
/// from. None of it may stay when the step does not come.
#[test]
fn a_prediction_that_is_dropped_was_never_started() {
    for staleness in [Staleness::Inline, Staleness::Background] {
        let training = TrainingConfig { staleness, ..TrainingConfig::default() };
        for sharing in [
            Sharing::PerPrompt,
            Sharing::Global,
            Sharing::PerRequest,
            Sharing::Adaptive(Default::default()),
        ] {
            let with = |overlap| config(overlap).with_sharing(sharing).with_training(training);
            let plain = with_predictions_dropped(&with(Overlap::None), false);
            for overlap in [Overlap::Tap, Overlap::Thread] {
                for dropped in [false, true] {
                    let got = with_predictions_dropped(&with(overlap), dropped);
                    assert_eq!(got, plain, "{overlap:?} {sharing:?} {staleness:?} {dropped}");
                }
            }
        }
    }
}

#[test]
fn a_tap_that_is_never_shown_the_shallow_state_says_so() {
    let (mut sampler, _) = logged(Overlap::Tap);
    let mut tap = sampler.tap(SITES[0], SITES[1], &[(0, RowId::new(0, 0))]);
    tap.record(TapSite::HeadInput, &states(1));
    assert_eq!(
        tap.take().unwrap_err().to_string(),
        "tap site AfterBlock(0): expected one `record` in the forward pass, got none"
    );
}

#[test]
fn a_prediction_that_is_not_the_last_or_was_overtaken_is_refused() {
    let sampling = SamplingConfig::default().init().unwrap();
    let head = TiedHead::new(states(6).reshape([6, 4]));
    let id = RowId::new(0, 1);
    let rows = [StepRow {
        id,
        phase: Phase::Decode,
        draw: DrawKey::new(1, &[], 0),
        code: None,
        prompt: &[],
        generated: &[1],
        sampling: &sampling,
        allowed: None,
        wants_reference_log_prob: false,
    }];
    type Tapped = (esamp::HiddenStates, Option<esamp::Early>);
    let tapped = |sampler: &mut Sampler| -> Tapped {
        let mut tap = sampler.tap(SITES[0], SITES[1], &[(0, id)]);
        SITES.iter().for_each(|&site| tap.record(site, &states(1)));
        tap.take().unwrap()
    };
    let step = |sampler: &mut Sampler, (hidden, early): Tapped| {
        let logits = head.logits(hidden.deep().clone());
        let input = StepInput::new(&rows, logits, &head).with_hidden(hidden).with_early(early);
        sampler.step(input).map(drop)
    };
    for overlap in [Overlap::Tap, Overlap::Thread] {
        let (mut sampler, _) = logged(overlap);
        for change in 0..3 {
            let early = tapped(&mut sampler);
            match change {
                0 => sampler.reset(),
                1 => sampler.release(id),
                _ => {
                    let prompt = states(1).reshape([1, 4]);
                    let prompt = esamp::HiddenStates::new(prompt.clone(), prompt).unwrap();
                    sampler.warm_up(id, &prompt, 1).unwrap();
                }
            }
            let error = step(&mut sampler, early).unwrap_err();
            assert!(matches!(error, StepError::EarlyStale), "{error}");
        }
        let (first, _second) = (tapped(&mut sampler), tapped(&mut sampler));
        assert!(matches!(step(&mut sampler, first), Err(StepError::EarlyStale)));
        let foreign = tapped(&mut logged(overlap).0);
        assert!(matches!(step(&mut sampler, foreign), Err(StepError::EarlyStale)));
        let early = tapped(&mut sampler);
        step(&mut sampler, early).unwrap();
    }
}
