//! Learning before steering: on the prompt, and on the first decode steps.

use std::ops::ControlFlow;

use super::{narrow, narrow_distiller};
use crate::{device, golden::values};
use burn::tensor::{Device, Int, Tensor, TensorData};
use esamp::{
    CausalLm, CheckedSampling, Choice, Completion, CompletionId, Counters, Decoder, DrawKey,
    FinishReason, HiddenStateTap, HiddenStates, KvCache, LmHead, PairTap, Phase, Request, Sampler,
    SamplerConfig, Sampling, SequenceTap, Sharing, StepInput, StepRow, TokenId,
    errors::{HiddenError, ModelError, StepError},
    optim::{AdaptiveConfig, Learner, OptimizerConfig},
    testing::{ScriptedLm, TinyLm},
    unstable::AdaptiveStart,
};

fn sampling(beta: f32) -> Sampling {
    Sampling::paper().with_beta(beta)
}

fn optimizer() -> OptimizerConfig {
    OptimizerConfig::paper().with_learning_rate(3e-3)
}

fn config() -> SamplerConfig {
    narrow().with_optimizer(optimizer())
}

fn prompt(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|at| (at * at * 7 + at * 11 + seed * 29) % TinyLm::VOCAB as u32).collect()
}

fn request(seed: u32) -> Request {
    Request::new(prompt(seed, 24)).with_seed(u64::from(seed)).with_max_new_tokens(16)
}

fn run(
    model_seed: u64,
    config: &SamplerConfig,
    requests: impl IntoIterator<Item = Request>,
) -> (Vec<Completion>, Counters, usize) {
    let model = TinyLm::new(model_seed, &device());
    let sampler = config.init(TinyLm::D_MODEL, &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    for request in requests {
        decoder.submit(request).unwrap();
    }
    let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    let sampler = decoder.into_sampler();
    (completions, *sampler.counters(), sampler.distillers())
}

/// Mean relative error over some decode steps.
fn relative_error(completion: &Completion, steps: std::ops::Range<usize>) -> f32 {
    let steps = &completion.choices[1..][steps];
    let errors = steps.iter().map(|choice| choice.novelty.unwrap().relative());
    errors.sum::<f32>() / steps.len() as f32
}

#[test]
fn a_warm_up_on_the_prompt_reduces_the_first_errors() {
    let mut better = 0;
    let (mut cold_sum, mut warm_sum) = (0.0, 0.0);
    for seed in 0..8 {
        let request = || request(seed).with_sampling(sampling(0.25));
        let (cold, _, _) = run(u64::from(seed), &config(), [request()]);
        let (warm, counters, _) =
            run(u64::from(seed), &config(), [request().with_prompt_warm_up(20)]);
        assert_eq!(counters.warm_up_updates, 20);
        assert_eq!(counters.updates, 15, "those of the prompt are counted apart");
        let (cold, warm) = (relative_error(&cold[0], 0..5), relative_error(&warm[0], 0..5));
        better += usize::from(warm < cold);
        cold_sum += cold;
        warm_sum += warm;
    }
    assert!(better >= 7, "{better} of 8");
    assert!(warm_sum < 0.95 * cold_sum, "{warm_sum} {cold_sum}");
}

#[test]
fn without_a_warm_up_a_prefill_learns_nothing() {
    let steered = || request(1).with_sampling(sampling(0.5)).with_completions(2);
    let (plain, ..) = run(1, &config(), [steered()]);
    let (off, counters, _) = run(1, &config(), [steered().with_prompt_warm_up(0)]);
    assert_eq!(plain, off);
    assert_eq!(counters.warm_up_updates, 0);
    // Nor without steering: the tokens are the plain model's, and no distiller is created.
    let plain = || request(1).with_sampling(sampling(0.0));
    let (without, ..) = run(1, &config(), [plain()]);
    let (with, counters, distillers) = run(1, &config(), [plain().with_prompt_warm_up(20)]);
    assert_eq!(without, with);
    assert_eq!((counters.warm_up_updates, distillers), (0, 0));
}

#[test]
fn each_distiller_is_warmed_up_once_for_each_prompt() {
    for (sharing, updates) in
        [(Sharing::PerPrompt, 10), (Sharing::PerCompletion, 20), (Sharing::Global, 10)]
    {
        let requests = [1, 2].map(|seed| {
            let request = request(seed).with_sampling(sampling(0.25)).with_completions(2);
            request.with_prompt_warm_up(5)
        });
        let (_, counters, _) = run(3, &config().with_sharing(sharing), requests);
        assert_eq!(counters.warm_up_updates, updates, "{sharing:?}");
    }
    // Completions of one prompt start from the same distiller, whether it belongs to the prompt or to the completion.
    let warm = |sharing| {
        let request = request(4).with_sampling(sampling(0.25)).with_prompt_warm_up(5);
        run(3, &config().with_sharing(sharing), [request.with_max_new_tokens(2)]).0
    };
    assert_eq!(warm(Sharing::PerPrompt), warm(Sharing::PerCompletion));
}

/// The model shows only the last position, although the tap wants all of them.
#[test]
fn a_model_that_shows_only_its_last_position_gets_an_error() {
    let model = ScriptedLm::new(6, &device(), |sequence| {
        (0..6).map(|token| ((token + sequence.len()) as f32).sin()).collect()
    });
    let sampler = config().init(6, &device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let warm = Request::new(vec![1, 2, 3, 4]).with_sampling(sampling(0.25)).with_prompt_warm_up(2);
    decoder.submit(warm).unwrap();
    let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err();
    let StepError::Hidden(HiddenError::Positions { expected: 4, got: 1, .. }) = &error else {
        panic!("{error}")
    };
    assert!(error.to_string().contains("expected the states of 4 positions, got 1"), "{error}");
    assert_eq!(decoder.take_completions()[0].finish, FinishReason::Aborted);
    // The same request without a warm-up runs, and so does one whose prompt is a single token.
    for (prompt, updates) in [(vec![1, 2, 3, 4], 0), (vec![1], 2)] {
        let request = Request::new(prompt).with_sampling(sampling(0.25)).with_max_new_tokens(3);
        decoder.submit(request.with_prompt_warm_up(updates)).unwrap();
        let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        assert_eq!(completions[0].finish, FinishReason::MaxNewTokens);
    }
}

fn tokens(ids: &[TokenId]) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    Tensor::<1, Int>::from_data(ids.as_slice(), &device()).reshape([1, ids.len()])
}

fn states(model: &TinyLm, chunks: &[&[TokenId]]) -> HiddenStates {
    let (mut cache, mut tap) = (model.new_cache(), SequenceTap::default());
    for chunk in chunks {
        model.forward(tokens(chunk), &mut cache, &mut tap).unwrap();
        tap.end_pass(chunk.len()).unwrap();
    }
    tap.take().unwrap()
}

/// The states of a whole prompt are, position by position, those that a decode step would have shown.
#[test]
fn all_positions_equal_the_last_positions_of_all_prefixes() {
    let model = TinyLm::new(5, &device());
    let prompt = prompt(2, 9);
    let whole = states(&model, &[&prompt]);
    let chunked = states(&model, &[&prompt[..4], &prompt[4..5], &prompt[5..]]);
    for part in [HiddenStates::shallow, HiddenStates::deep] {
        let one_by_one = (1..=prompt.len()).flat_map(|len| {
            let mut tap = PairTap::default();
            model.forward(tokens(&prompt[..len]), &mut model.new_cache(), &mut tap).unwrap();
            values(part(&tap.take().unwrap()).clone())
        });
        let one_by_one: Vec<f32> = one_by_one.collect();
        for states in [&whole, &chunked] {
            crate::golden::assert_close("states", &values(part(states).clone()), &one_by_one, 1e-5);
        }
    }
}

/// A prompt that is read in chunks is learned from as a whole.
#[test]
fn the_chunks_of_a_prefill_do_not_matter() {
    let model = TinyLm::new(5, &device());
    let completions = |chunk: usize| {
        let sampler = config().init(TinyLm::D_MODEL, &device()).unwrap();
        let decoder = Decoder::new(&model, sampler).unwrap();
        let mut decoder = decoder.with_prefill_chunk(chunk).unwrap();
        let warm = request(3).with_sampling(sampling(0.5)).with_prompt_warm_up(6);
        decoder.submit(warm).unwrap();
        let mut completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        assert_eq!(decoder.sampler().counters().warm_up_updates, 6);
        completions.remove(0)
    };
    let whole = completions(512);
    for chunk in [1, 7, 23, 24] {
        let chunked = completions(chunk);
        assert_eq!(chunked.tokens(), whole.tokens(), "{chunk}");
        let errors = |completion: &Completion| -> Vec<f32> {
            completion.choices[1..].iter().map(|choice| choice.novelty.unwrap().error).collect()
        };
        crate::golden::assert_close("novelty", &errors(&chunked), &errors(&whole), 1e-3);
    }
}

const D_MODEL: usize = 8;

/// `[rows, D_MODEL]` of a prompt.
fn wave(rows: usize, phase: f32) -> Tensor<2> {
    let numbers = (0..rows * D_MODEL).map(|i| (i as f32 * 0.9 + phase).sin() * 2.0);
    let numbers: Vec<f32> = numbers.collect();
    Tensor::from_data(TensorData::new(numbers, [rows, D_MODEL]), &device())
}

/// One decode step of one row; its head is the identity.
fn decode(sampler: &mut Sampler, id: CompletionId, sampling: &CheckedSampling) -> Choice {
    let hidden = HiddenStates::new(wave(1, 0.3), wave(1, 1.7)).unwrap();
    let row = StepRow::new(id, DrawKey::new(7, &[1, 2, 3], 0), &[], &[5], sampling)
        .with_phase(Phase::Decode);
    let head = |hidden: Tensor<2>| hidden;
    let logits = head.logits(hidden.deep().clone());
    let rows = [row];
    let input = StepInput::new(&rows, logits, &head).with_hidden(hidden);
    sampler.step(input).unwrap().choices.remove(0).unwrap()
}

#[test]
fn a_warm_up_does_the_requested_updates_on_all_finite_positions() {
    let steered = sampling(0.25).checked().unwrap();
    let id = CompletionId::new(0, 0);
    let (shallow, deep) = (wave(6, 0.1), wave(6, 2.0));
    let clean = HiddenStates::new(shallow.clone(), deep.clone()).unwrap();
    // Positions 2 and 4 cannot be learned from.
    let holes = HiddenStates::new(
        shallow.slice_fill([2..3, 0..1], f32::NAN),
        deep.slice_fill([4..5, 7..8], f32::INFINITY),
    );
    let holes = holes.unwrap();
    for (prompt, rows, skipped) in
        [(&clean, vec![0, 1, 2, 3, 4, 5], 0), (&holes, vec![0, 1, 3, 5], 2)]
    {
        let distiller = narrow_distiller().init(D_MODEL, 0, &device()).unwrap();
        let mut learner = Learner::new(distiller, optimizer()).unwrap();
        for _ in 0..7 {
            learner.update(&clean.select(&rows).unwrap());
        }
        assert_eq!(learner.updates(), 7);
        let expected = esamp::distillers::Distiller::predict(learner.distiller(), wave(1, 0.3));
        let expected = values((expected - wave(1, 1.7)).square().sum().sqrt())[0];

        let mut sampler = config().init(D_MODEL, &device()).unwrap();
        assert_eq!(sampler.warm_up(&[id], prompt, 7).unwrap(), 7);
        assert_eq!(sampler.counters().warm_up_rows_not_finite, skipped);
        let got = decode(&mut sampler, id, &steered).novelty.unwrap().error;
        assert!((got - expected).abs() < 1e-5, "{got} {expected}");
        // The distiller of another prompt is not affected.
        let other = decode(&mut sampler, CompletionId::new(1, 1), &steered).novelty.unwrap().error;
        let cold = decode(&mut config().init(D_MODEL, &device()).unwrap(), id, &steered);
        assert_eq!(other, cold.novelty.unwrap().error);
        assert_ne!(other, got);
    }
}

#[test]
fn a_warm_up_with_nothing_to_learn_does_nothing() {
    let id = CompletionId::new(0, 0);
    let mut sampler = config().init(D_MODEL, &device()).unwrap();
    let nothing = HiddenStates::new(wave(3, 0.0) * f32::NAN, wave(3, 1.0)).unwrap();
    assert_eq!(sampler.warm_up(&[id], &nothing, 4).unwrap(), 0);
    let fine = HiddenStates::new(wave(3, 0.0), wave(3, 1.0)).unwrap();
    assert_eq!(sampler.warm_up(&[id], &fine, 0).unwrap(), 0);
    let counters = sampler.counters();
    assert_eq!((counters.warm_up_updates, counters.warm_up_rows_not_finite), (0, 3));
    let wide = Tensor::ones([3, D_MODEL + 1], &device());
    let wide = HiddenStates::new(wide.clone(), wide).unwrap();
    assert_eq!(
        sampler.warm_up(&[id], &wide, 1).unwrap_err().to_string(),
        "prompt's hidden states: expected shape [3, 8], got [3, 9]"
    );
}

#[cfg(any(feature = "ndarray", feature = "cuda", feature = "vulkan", feature = "wgpu"))]
pub(super) fn a_prompt_elsewhere_is_an_error(elsewhere: &Device) {
    let mut sampler = config().init(D_MODEL, &device()).unwrap();
    let states = Tensor::ones([3, D_MODEL], elsewhere);
    let states = HiddenStates::new(states.clone(), states).unwrap();
    let message = sampler.warm_up(&[CompletionId::new(0, 0)], &states, 1).unwrap_err().to_string();
    assert!(message.starts_with("prompt's hidden states: expected device"), "{message}");
}

#[test]
fn rows_of_a_distiller_that_is_not_ready_get_plain_tokens_and_are_learned() {
    let held = config().with_updates_before_steering(4);
    let request = |beta| request(6).with_sampling(sampling(beta));
    let (plain, ..) = run(6, &config(), [request(0.0)]);
    let (held, counters, _) = run(6, &held, [request(3.0)]);
    let (at_once, at_once_counters, _) = run(6, &config(), [request(3.0)]);

    let outcome = |choice: &Choice| (choice.token, choice.log_prob, choice.candidates);
    let outcomes =
        |completion: &Completion| completion.choices.iter().map(outcome).collect::<Vec<_>>();
    let (plain, held_back) = (outcomes(&plain[0]), outcomes(&held[0]));
    // The first token comes from the prefill, the next four from steps in which the distiller has had 0 to 3 updates.
    assert_eq!(held_back[..5], plain[..5]);
    assert_ne!(held_back[5], plain[5]);
    assert_ne!(outcomes(&at_once[0])[1], plain[1]);

    // All of these rows are learned from, and their novelty is reported.
    assert_eq!((counters.updates, counters.rows_learned, counters.eligible), (15, 15, 15));
    assert_eq!((counters.rows_untrained, counters.steered), (4, 11));
    assert!(held[0].choices[1..].iter().all(|choice| choice.novelty.is_some()));
    let errors: f64 =
        held[0].choices[5..].iter().map(|c| f64::from(c.novelty.unwrap().error)).sum();
    assert!((counters.novelty_sum - errors).abs() < 1e-6, "the mean is that of steered rows");
    assert_eq!((at_once_counters.rows_untrained, at_once_counters.steered), (0, 15));
}

#[test]
fn updates_on_the_prompt_make_a_distiller_ready() {
    let config = config().with_updates_before_steering(4);
    let request = request(6).with_sampling(sampling(3.0));
    let (_, counters, _) = run(6, &config, [request.clone().with_prompt_warm_up(3)]);
    assert_eq!(counters.rows_untrained, 1);
    let (_, counters, _) = run(6, &config, [request.with_prompt_warm_up(4)]);
    assert_eq!(counters.rows_untrained, 0);
}

/// A model whose cache can neither drop, repeat nor append rows.
struct Fixed<M>(M);

struct FixedCache<C>(C);

impl<C: KvCache> KvCache for FixedCache<C> {
    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn can_drop_rows(&self) -> bool {
        false
    }

    fn keep_rows(&mut self, _rows: &[usize]) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { operation: "drop rows" })
    }

    fn append_rows(&mut self, _other: Self) -> Result<(), ModelError> {
        Err(ModelError::Unsupported { operation: "append rows" })
    }
}

impl<M: CausalLm> CausalLm for Fixed<M> {
    type Cache = FixedCache<M::Cache>;

    fn new_cache(&self) -> Self::Cache {
        FixedCache(self.0.new_cache())
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut Self::Cache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        self.0.forward(tokens, &mut cache.0, tap)
    }

    fn lm_head(&self) -> &dyn LmHead {
        self.0.lm_head()
    }

    fn device(&self) -> Device {
        self.0.device()
    }

    fn d_model(&self) -> usize {
        self.0.d_model()
    }

    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }
}

/// Runs three prompts one after the other; their completions end at different steps.
fn one_after_the_other<M: CausalLm>(
    model: M,
    config: &SamplerConfig,
) -> (Vec<Completion>, Counters, usize) {
    let sampler = config.init(TinyLm::D_MODEL, &device()).unwrap();
    let mut decoder = Decoder::new(model, sampler).unwrap().with_prefill_chunk(10).unwrap();
    let mut completions = Vec::new();
    for (seed, updates) in [(1, 6), (2, 3), (3, 0)] {
        let request = request(seed).with_sampling(sampling(1.0)).with_completions(3);
        let request = request.with_stop_tokens((0..TinyLm::VOCAB as u32 / 16).collect::<Vec<_>>());
        decoder.submit(request.with_prompt_warm_up(updates)).unwrap();
        completions.extend(decoder.run(|_| ControlFlow::Continue(())).unwrap());
    }
    let counters = *decoder.sampler().counters();
    (completions, counters, decoder.sampler().distillers())
}

/// If rows cannot be repeated, a prompt is read once for each of its completions, and rows that have ended stay in the
/// batch. Neither the copies of a prompt nor ended rows may be learned from again, by the prompt's own distiller or by
/// the shared one.
#[test]
fn a_warm_up_with_a_cache_that_cannot_drop_rows_is_the_same() {
    for start in [AdaptiveStart::Shared, AdaptiveStart::Fresh] {
        let adaptive = Sharing::Adaptive(AdaptiveConfig::new().with_start(start));
        let config = config().with_sharing(adaptive);
        let model = || TinyLm::new(7, &device());
        let (free, free_counters, free_distillers) = one_after_the_other(model(), &config);
        let (fixed, counters, distillers) = one_after_the_other(Fixed(model()), &config);
        let lengths: Vec<usize> = free.iter().map(|c| c.choices.len()).collect();
        let ends = lengths[..3].iter().any(|&length| length != lengths[0]);
        assert!(ends, "rows of one prompt end at different steps: {lengths:?}");
        for (free, fixed) in free.iter().zip(&fixed) {
            assert_eq!(fixed.tokens(), free.tokens(), "{start:?}");
            for (free, fixed) in free.choices[1..].iter().zip(&fixed.choices[1..]) {
                let (free, fixed) = (free.novelty.unwrap().error, fixed.novelty.unwrap().error);
                assert!((free - fixed).abs() < 1e-4 * free, "{free} {fixed}");
            }
        }
        assert_eq!((distillers, free_distillers), (1, 1), "the shared one stays");
        // The own distiller is warmed up once per prompt, the shared one never.
        assert_eq!(counters.warm_up_updates, 6 + 3);
        let decoded: u64 = lengths.iter().map(|&length| length as u64 - 1).sum();
        assert_eq!((counters.rows_learned, counters.eligible), (decoded, decoded));
        let steps = lengths.chunks(3).map(|prompt| prompt.iter().max().unwrap() - 1);
        assert_eq!(counters.updates, 2 * steps.sum::<usize>() as u64, "both, at every step");
        assert_eq!(counters.updates, free_counters.updates);
        assert_eq!(counters.rows_learned, free_counters.rows_learned);
    }
}
