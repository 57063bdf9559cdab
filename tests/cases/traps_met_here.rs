//! Further traps, met while this crate was written. docs/design/traps.md describes what goes wrong.

use std::ops::ControlFlow;

use super::{
    decode_loop::Masked,
    sampler_step::{D_MODEL, VOCAB, World, choices, esamp, row},
    traps_11_to_20::Scale,
};
use crate::device;
use burn::{
    module::Module,
    tensor::{Tensor, TensorData},
};
use esamp::{
    CausalLm, Completion, CompletionId, Decoder, FinishReason, HiddenStates, LmHead, Request,
    Sampler, SamplerConfig, Sampling, Selection, StepInput, TokenId, TokenMask,
    distillers::Distiller,
    errors::{RowError, TextError},
    filters::{Candidates, RowContext},
    optim::{OptimizerConfig, Schedule, Staleness, TrainingConfig},
    reweighters::NoveltyReweighter,
    testing::{ScriptedLm, TinyLm},
};

fn run<M: CausalLm>(decoder: &mut Decoder<M>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

fn plain() -> Sampling {
    Sampling::paper().with_beta(0.0)
}

/// A token below 256 is a byte, and one invalid byte spoils its whole run, as in SentencePiece's byte fallback.
fn byte_fallback(tokens: &[TokenId]) -> Result<String, TextError> {
    let run = |run: &[TokenId]| match run[0] {
        256.. => ["<", "stop", ">"][run[0] as usize - 256].to_owned(),
        _ => {
            let bytes: Vec<u8> = run.iter().map(|&token| token as u8).collect();
            String::from_utf8(bytes).unwrap_or_else(|_| "\u{fffd}".repeat(run.len()))
        }
    };
    Ok(tokens.chunk_by(|a, b| *a < 256 && *b < 256).map(run).collect())
}

#[test]
fn trap_21_text_goes_on_after_a_wrong_byte() {
    let said: Vec<TokenId> = vec![0xf0, 0x9f, 0x98, 0x80, 0xf0, 256, 257, 258, 1, 1];
    let script = said.clone();
    let model = ScriptedLm::new(259, &device(), move |sequence| {
        let next = script[sequence.len() - 1];
        (0..259).map(|token| if token == next { 9.0 } else { 0.0 }).collect()
    });
    let sampler = SamplerConfig::new().init(259, &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap().with_detokenizer(byte_fallback);
    let greedy = plain().with_temperature(0.0);
    let request = Request::new(vec![0]).with_max_new_tokens(said.len()).with_sampling(greedy);
    decoder.submit(request.with_stop_strings(["<stop>"])).unwrap();
    let completion = &run(&mut decoder)[0];
    assert_eq!(completion.finish, FinishReason::StopString("<stop>".to_owned()));
    assert_eq!(completion.text.as_deref(), Some("😀\u{fffd}"), "shown text stays as it was");
    assert_eq!(completion.tokens(), said[..8]);
}

#[test]
fn trap_22_one_bad_row_does_not_spoil_the_step() {
    /// Gives one token an invalid score.
    #[derive(Debug)]
    struct Broken;
    impl NoveltyReweighter for Broken {
        fn reweight(&self, _row: &RowContext<'_>, candidates: &mut Candidates) {
            candidates.rescore(|c| if c.token == 3 { f32::NAN } else { c.logit });
        }
    }
    let world = World::new();
    let fine = esamp(0.5);
    let broken = Sampling::paper().with_custom_reweighter(Broken).checked().unwrap();
    let codeless = Sampling::paper().with_selection(Selection::Arithmetic).checked().unwrap();
    let unknown = Sampling::paper().with_logit_bias(99, 1.0).checked().unwrap();
    let (nobody, short) = (TokenMask::allowing(VOCAB, []), TokenMask::all(VOCAB - 1));
    let good = row(0, 0, &fine);
    let bad = [
        row(1, 1, &broken),
        row(2, 2, &codeless),
        row(3, 3, &unknown),
        row(4, 4, &fine).with_allowed(&nobody),
        row(5, 5, &fine).with_allowed(&short),
    ];
    let sampler = || SamplerConfig::new().init(D_MODEL, &device()).unwrap();
    let expected = &choices(world.step(&mut sampler(), &[good], &[4]).unwrap())[0];
    for place in 0..=bad.len() {
        let mut rows = bad.to_vec();
        rows.insert(place, good);
        let mut sampler = sampler();
        let mut got = world.step(&mut sampler, &rows, &[4; 6]).unwrap().choices;
        let choice = got.remove(place).unwrap();
        assert_eq!(choice.token, expected.token, "at place {place}");
        assert!((choice.log_prob - expected.log_prob).abs() < 1e-5);
        assert!(matches!(got[0], Err(RowError::Score { token: 3, .. })));
        assert_eq!(got[1], Err(RowError::CodeMissing));
        assert!(matches!(got[2], Err(RowError::UnknownToken { token: 99, .. })));
        assert_eq!(got[3], Err(RowError::AllMasked { vocab: VOCAB }));
        assert_eq!(got[4], Err(RowError::MaskSize { expected: VOCAB, got: VOCAB - 1 }));
        let counters = sampler.counters();
        assert_eq!((counters.tokens, counters.failed, counters.rows_learned), (1, 5, 1));
    }
}

#[test]
fn trap_23_no_cache_for_rows_that_left() {
    // Completions of 2, 4, 6 and 8 tokens. The prompt is read once; afterwards each row is fed until it ends.
    let flat = |_: &[TokenId]| vec![0.0; 10];
    let (model, other) =
        (ScriptedLm::new(10, &device(), flat), ScriptedLm::new(10, &device(), flat));
    let sampler = SamplerConfig::new().init(10, &device()).unwrap();
    let mut decoder =
        Decoder::new(&model, sampler).unwrap().with_other_model(other.clone()).unwrap();
    let masker = |row: CompletionId, generated: &[TokenId]| -> Masked {
        let ends = generated.len() as u64 == 2 * row.index + 1;
        Ok(Some(TokenMask::allowing(10, if ends { 9..10 } else { 0..9 })))
    };
    let contrastive = Sampling::contrastive();
    let request = Request::new(vec![1, 2]).with_completions(4).with_stop_tokens([9]);
    decoder.submit(request.with_sampling(contrastive).with_masker(masker)).unwrap();
    run(&mut decoder);
    for (name, model) in [("the model", &model), ("the other model", &other)] {
        let rows: Vec<usize> = model.calls().iter().map(Vec::len).collect();
        assert_eq!(rows, [1, 4, 3, 3, 2, 2, 1, 1], "{name}");
    }
}

/// Asks for two rows to fit, and then starts again with its initial parameters.
#[derive(Module, Debug)]
struct Fitted {
    scale: Scale,
}

impl Distiller for Fitted {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        self.scale.predict(shallow)
    }

    fn rows_to_fit(&self) -> usize {
        2
    }

    fn fit(&self, _shallow: &Tensor<2>, _deep: &Tensor<2>) -> Option<Self> {
        Some(Self { scale: Scale::one() })
    }
}

/// Hidden states of one row: the shallow state is all ones, and the deep state is `deep` in every dimension.
fn states(deep: f32) -> HiddenStates {
    let state = |value: f32| {
        Tensor::from_data(TensorData::new(vec![value; D_MODEL], [1, D_MODEL]), &device())
    };
    HiddenStates::new(state(1.0), state(deep)).unwrap()
}

#[test]
fn trap_24_a_fit_starts_the_optimizers_age_again() {
    // ĥ = w, deep 1.5, loss (w − 1.5)²: an update at rate 0.1·f leaves 1 − 0.2·f of the error. f is 1/4 for the first
    // update and 2/4 for the second. After two rows the distiller is fitted, and both its error and f start again.
    // Without a reset of the slot's age, f would be 3/4.
    let world = World::new();
    let optimizer = OptimizerConfig::sgd(0.1).with_schedule(Schedule::RampUp { updates: 4 });
    let config = SamplerConfig::new().with_optimizer(optimizer);
    let mut sampler = Sampler::builder(config)
        .with_distiller(Fitted { scale: Scale::one() })
        .build(D_MODEL, &device())
        .unwrap();
    let sampling = esamp(0.5);
    let rows = [row(0, 0, &sampling)];
    for (at, expected) in [0.5, 0.475, 0.5, 0.475, 0.4275].into_iter().enumerate() {
        let hidden = states(1.5);
        let logits = world.head.logits(hidden.deep().clone());
        let input = StepInput::new(&rows, logits, &world.head).with_hidden(hidden);
        let got = choices(sampler.step(input).unwrap())[0].novelty.unwrap().error;
        let expected = expected * (D_MODEL as f32).sqrt();
        assert!((got - expected).abs() < 1e-5, "step {at}: {got}, expected {expected}");
    }
    assert_eq!(sampler.counters().updates, 5);
}

#[test]
fn trap_25_a_job_under_way_is_no_part_of_a_warm_up() {
    let world = World::new();
    let training = TrainingConfig::new().with_staleness(Staleness::Background);
    let config = SamplerConfig::new().with_training(training);
    let mut sampler = config.init(D_MODEL, &device()).unwrap();
    let sampling = esamp(0.5);
    let step = world.step(&mut sampler, &[row(0, 0, &sampling)], &[1]).unwrap();
    assert_eq!(step.updates, 0, "its update is under way");
    let done = sampler.warm_up(&[CompletionId::new(1, 1)], &states(1.5), 3).unwrap();
    assert_eq!(done, 3, "the other prompt's update is not among them");
    assert_eq!((sampler.counters().warm_up_updates, sampler.counters().updates), (3, 0));
    sampler.finish().unwrap();
    let counters = sampler.counters();
    assert_eq!((counters.warm_up_updates, counters.updates, counters.rows_learned), (3, 1, 1));
}

/// The first completion of a prompt ends with its first token, before the second has done a decode step. What the
/// prompt's distiller has learned in the warm-up is still there for the second.
#[test]
fn trap_27_a_slot_outlives_its_first_completion() {
    const END: TokenId = 9;
    let model = TinyLm::new(7, &device());
    let run = |ends_at_once: bool| {
        let sampler = SamplerConfig::new().init(TinyLm::D_MODEL, &device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap();
        let masker = move |row: CompletionId, generated: &[TokenId]| {
            let ends = ends_at_once && row.index == 0 && generated.is_empty();
            let vocab = TinyLm::VOCAB as TokenId;
            let tokens = (0..vocab).filter(|&token| (token == END) == ends);
            Ok(Some(TokenMask::allowing(TinyLm::VOCAB, tokens)))
        };
        let request = Request::new((1..20).collect::<Vec<_>>()).with_completions(2);
        let request = request.with_max_new_tokens(4).with_stop_tokens([END]).with_masker(masker);
        decoder.submit(request.with_prompt_warm_up(20)).unwrap();
        let mut completions = super::traps::run(&mut decoder);
        assert_eq!(decoder.sampler().distillers(), 0);
        let second = completions.remove(1).choices;
        (completions[0].finish.clone(), second[0].token, second[1].novelty.unwrap().error)
    };
    let ((finish, token, error), (_, expected_token, expected)) = (run(true), run(false));
    assert_eq!(finish, FinishReason::StopToken(END));
    assert_eq!(token, expected_token);
    assert!((error - expected).abs() < 1e-4 * expected, "{error} {expected}");
}
