//! Models in f16 and bf16, from end to end, with distillers in f32.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ops::ControlFlow;

use burn::{
    module::{Module, Param},
    tensor::{DType, Device, Int, Tensor, quantization::QuantScheme},
};
use esamp::{
    CausalLm, Completion, CompletionId, Counters, Decoder, DrawKey, HiddenStateTap, HiddenStates,
    NoTap, Request, Sampler, SamplerConfig, Sampling, SequenceTap, StepInput, StepRow, TapSite,
    TiedHead, TokenId,
    distillers::{Distiller, LowRankConfig, SwiGluConfig},
    filters::{Candidates, RowContext},
    llama::Llama,
    optim::{Learner, OptimizerConfig, UpdateRule},
    reweighters::NoveltyReweighter,
};
use esamp_testkit::golden::{self, assert_close, values};

/// A type and half the distance between its values around 1: the largest rounding error.
const HALVES: [(DType, f32); 2] = [(DType::F16, 4.9e-4), (DType::BF16, 3.9e-3)];

fn device() -> Device {
    Device::flex()
}

/// Random weights in the shapes of four small models: tied and untied heads, biases, norms of queries and keys.
fn models() -> Vec<Llama> {
    let load = |name: &str| {
        let folder = golden::path("llama").join(name);
        let config = Llama::from_hf_folder(folder, &device()).unwrap().config().clone();
        Llama::random(config, 11, &device()).unwrap()
    };
    ["llama", "llama3", "qwen2", "qwen3"].map(load).to_vec()
}

fn prompt(len: u32) -> Vec<TokenId> {
    (0..len).map(|at| (at * at * 5 + at * 7 + 3) % 90).collect()
}

fn tokens(ids: &[TokenId]) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    Tensor::<1, Int>::from_data(ids.as_slice(), &device()).reshape([1, ids.len()])
}

fn logits(model: &Llama, ids: &[TokenId], tap: &mut dyn HiddenStateTap) -> Tensor<2> {
    model.forward(tokens(ids), &mut model.new_cache(), tap).unwrap()
}

fn argmax(logits: &[f32]) -> TokenId {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as TokenId
}

fn f32_values(logits: Tensor<2>) -> Vec<f32> {
    values(logits.cast(DType::F32))
}

#[test]
fn logits_are_those_of_the_full_model_within_the_precision() {
    for full in models() {
        for (dtype, rounding) in HALVES {
            let half = full.clone().cast(dtype).unwrap();
            for len in [1, 5, 20] {
                let expected = values(logits(&full, &prompt(len), &mut NoTap));
                let got = logits(&half, &prompt(len), &mut NoTap);
                assert_eq!(got.dtype(), dtype);
                // About ten rounded operations lie between a token and its logits.
                assert_close("logits", &f32_values(got), &expected, 10.0 * rounding);
            }
        }
    }
}

/// Records the element types of the states that a model shows.
#[derive(Default)]
struct Types(Vec<DType>);

impl HiddenStateTap for Types {
    fn wants(&self, _site: TapSite) -> bool {
        true
    }

    fn record(&mut self, _site: TapSite, hidden: &Tensor<3>) {
        self.0.push(hidden.dtype());
    }
}

#[test]
fn hidden_states_have_the_models_type_in_the_tap_and_f32_in_the_pair() {
    for full in models() {
        for (dtype, rounding) in HALVES {
            let half = full.clone().cast(dtype).unwrap();
            let mut types = Types::default();
            logits(&half, &prompt(6), &mut types);
            assert!(types.0.len() > 1 && types.0.iter().all(|&t| t == dtype), "{:?}", types.0);

            let states = |model: &Llama| -> HiddenStates {
                let mut tap = SequenceTap::default();
                logits(model, &prompt(6), &mut tap);
                tap.end_pass(6).unwrap();
                tap.take().unwrap()
            };
            let (expected, got) = (states(&full), states(&half));
            for part in [HiddenStates::shallow, HiddenStates::deep] {
                assert_eq!(part(&got).dtype(), DType::F32);
                let got = values(part(&got).clone());
                assert_close("states", &got, &values(part(&expected).clone()), 10.0 * rounding);
                let rounded = Tensor::<1>::from_data(got.as_slice(), &device()).cast(dtype);
                assert_eq!(got, values(rounded.cast(DType::F32)), "nothing but a cast");
            }
        }
    }
}

fn sampling(beta: f32) -> Sampling {
    Sampling::default().with_beta(beta).with_min_p(0.05)
}

fn run(model: &Llama, request: Request) -> (Vec<Completion>, Counters, usize) {
    let sampler = SamplerConfig::new().init(model.d_model(), &device()).unwrap();
    let mut decoder = Decoder::new(model, sampler).unwrap();
    decoder.submit(request.with_max_new_tokens(12).with_seed(5)).unwrap();
    let completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    let distillers = decoder.sampler().distillers();
    decoder.sampler_mut().finish().unwrap();
    (completions, *decoder.sampler().counters(), distillers)
}

#[test]
fn a_half_precision_model_is_steered_by_distillers_that_learn() {
    for full in models() {
        for (dtype, _) in HALVES {
            let half = full.clone().cast(dtype).unwrap();
            let request = Request::new(prompt(9)).with_sampling(sampling(0.5)).with_completions(3);
            let (completions, counters, _) = run(&half, request.with_prompt_warm_up(4));
            assert_eq!(completions.len(), 3);
            for completion in &completions {
                assert_eq!(completion.choices.len(), 12);
                assert!(completion.tokens().iter().all(|&t| (t as usize) < half.vocab_size()));
                let novelty = completion.choices[1..].iter().map(|c| c.novelty.unwrap().error);
                assert!(novelty.into_iter().all(f32::is_finite));
            }
            assert_eq!((counters.updates, counters.warm_up_updates), (11, 4));
            assert_eq!((counters.rows_learned, counters.rows_not_finite), (33, 0));
        }
    }
}

/// Does nothing: plain sampling.
#[derive(Debug)]
struct Never;

impl NoveltyReweighter for Never {
    fn reweight(&self, _row: &RowContext<'_>, _candidates: &mut Candidates) {}

    fn expects(&self) -> esamp::reweighters::Expects {
        esamp::reweighters::Expects::Nothing
    }
}

#[test]
fn beta_zero_is_plain_decoding_in_half_precision_too() {
    for full in models() {
        for (dtype, _) in HALVES {
            let half = full.clone().cast(dtype).unwrap();
            let drawn = |sampling| {
                run(&half, Request::new(prompt(9)).with_sampling(sampling).with_completions(2))
            };
            let unfiltered = Sampling::paper().with_beta(0.0);
            let (off, counters, distillers) = drawn(unfiltered);
            assert_eq!(off, drawn(Sampling::paper().with_custom_reweighter(Never)).0);
            assert_eq!((counters.updates, distillers), (0, 0));

            // Greedy: the largest logit of the whole sequence, recomputed without this crate's loop.
            let greedy = Sampling::paper().with_beta(0.0).with_temperature(0.0);
            let (greedy, ..) = run(&half, Request::new(prompt(9)).with_sampling(greedy));
            let mut sequence = prompt(9);
            for token in greedy[0].tokens() {
                let logits = f32_values(logits(&half, &sequence, &mut NoTap));
                // With and without a cache, and for one row and many, different kernels are used, so results are
                // equal up to rounding.
                let best = logits[argmax(&logits) as usize];
                let rounding = 20.0 * HALVES.iter().find(|h| h.0 == dtype).unwrap().1;
                assert!(logits[token as usize] >= best - rounding * best.abs());
                sequence.push(token);
            }
        }
    }
}

#[test]
fn a_cache_of_half_precision_takes_half_the_bytes() {
    for full in models() {
        let config = full.config().clone();
        let numbers = 2 * config.n_layers * config.n_kv_heads * config.head_dim;
        assert_eq!(full.kv_bytes_per_token(), 4 * numbers);
        for (dtype, _) in HALVES {
            let half = full.clone().cast(dtype).unwrap();
            assert_eq!(half.kv_bytes_per_token(), 2 * numbers);
            let back = half.cast(DType::F32).unwrap();
            assert_eq!(back.kv_bytes_per_token(), 4 * numbers);
        }
    }
}

#[test]
fn an_unsupported_type_is_refused() {
    let model = || models().remove(0);
    assert_eq!(
        model().cast(DType::I32).unwrap_err().to_string(),
        "dtype: expected f32, f16 or bf16, got I32"
    );
    assert_eq!(
        model().cast(DType::F64).unwrap_err().to_string(),
        "dtype: expected f32, f16 or bf16, got F64"
    );
}

#[test]
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
fn a_type_that_the_device_does_not_have_is_refused() {
    let config = models().remove(0).config().clone();
    let there = Llama::random(config, 11, &Device::ndarray()).unwrap();
    assert_eq!(
        there.cast(DType::F16).unwrap_err().to_string(),
        "dtype: expected a type that the device has, got F16"
    );
}

#[test]
fn a_model_that_is_cast_still_has_the_weights_of_its_blocks() {
    for full in models() {
        let half = full.clone().cast(DType::BF16).unwrap();
        let ffn = half.ffn_weights(0).unwrap();
        let (hidden, width) = (full.config().d_hidden, full.config().d_model);
        assert_eq!((ffn.gate.dims(), ffn.down.dims()), ([hidden, width], [width, hidden]));
        assert!(full.ffn_weights(full.config().n_layers).is_none());
        let config = LowRankConfig::new().with_rank(8);
        let started = |model: &Llama| {
            let ffn = model.ffn_weights(1).unwrap();
            let distiller = config.init_from_ffn(ffn.gate, ffn.up, ffn.down, 0, &device()).unwrap();
            assert_eq!(distiller.a.val().dtype(), DType::F32);
            // The factors are determined only up to sign, but their product is unique.
            values(distiller.a.val().matmul(distiller.b.val()))
        };
        assert_close("map", &started(&half), &started(&full), 0.05);
    }
}

/// `ffn_weights` returns the weights that the block itself applies.
#[test]
fn the_weights_of_a_block_are_those_of_the_file() {
    let folder = golden::path("llama/llama");
    let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let model = Llama::from_hf_folder(&folder, &device()).unwrap();
    for block in 0..model.config().n_layers {
        let ffn = model.ffn_weights(block).unwrap();
        for (name, got) in [("gate", ffn.gate), ("up", ffn.up), ("down", ffn.down)] {
            let view =
                file.tensor(&format!("model.layers.{block}.mlp.{name}_proj.weight")).unwrap();
            let numbers = view.data().chunks_exact(4);
            let numbers: Vec<f32> =
                numbers.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(got.dims().to_vec(), view.shape());
            assert_eq!(values(got), numbers, "{name}");
        }
    }
}

/// One number times the shallow state. It panics if it is asked to compute in anything but `f32`.
#[derive(Module, Debug)]
struct Scale {
    factor: Param<Tensor<1>>,
}

impl Distiller for Scale {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        let factor = self.factor.val();
        assert_eq!((shallow.dtype(), factor.dtype()), (DType::F32, DType::F32));
        shallow * factor.unsqueeze()
    }
}

fn scale(factor: f32) -> Scale {
    Scale { factor: Param::from_tensor(Tensor::from_data([factor], &device())) }
}

#[test]
fn distillers_of_half_precision_models_compute_in_f32() {
    let model = models().remove(0).cast(DType::F16).unwrap();
    let sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(scale(1.0))
        .build(model.d_model(), &device())
        .unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap();
    let request = Request::new(prompt(5)).with_sampling(sampling(0.5)).with_max_new_tokens(6);
    decoder.submit(request.with_prompt_warm_up(2)).unwrap();
    decoder.run(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(decoder.sampler().counters().updates, 5);

    for (dtype, _) in HALVES {
        let state = |value: f32| Tensor::<2>::full([2, 8], value, &device()).cast(dtype);
        let hidden = HiddenStates::new(state(0.5), state(2.0)).unwrap();
        let blocks = SwiGluConfig::new().with_d_hidden(4).init(8, 0, &device()).unwrap();
        let mut learner = Learner::new(blocks, OptimizerConfig::paper()).unwrap();
        learner.update(&hidden);
        let block = &learner.distiller().blocks[0];
        for param in [&block.gate, &block.up, &block.down] {
            assert_eq!(param.val().dtype(), DType::F32);
        }
    }
}

/// Trap 16: there is no bf16 value between 1 and 1.0078, and no f16 value between 1 and 1.00098.
#[test]
fn an_update_of_a_thousandth_survives_near_one() {
    let lost = Tensor::<1>::from_data([1.001f32], &device()).cast(DType::BF16).cast(DType::F32);
    assert_eq!(values(lost), [1.0], "what would happen to a parameter in bf16");
    for (dtype, _) in HALVES {
        // loss = (w − 2)², and its slope at w = 1 is −2: one step of 5e-4·2.
        let ones = Tensor::<2>::ones([1, 1], &device()).cast(dtype);
        let hidden = HiddenStates::new(ones.clone(), ones * 2.0).unwrap();
        let mut learner = Learner::new(scale(1.0), OptimizerConfig::sgd(5e-4)).unwrap();
        learner.update(&hidden);
        let factor = values(learner.distiller().factor.val())[0];
        assert!((factor - 1.001).abs() < 1e-6, "{dtype:?}: {factor}");
    }
}

/// The value of one weight after `steps` updates of Adam, in `f64`, with moments rounded by `keep`.
fn adam(steps: i32, keep: impl Fn(f64) -> f64) -> f64 {
    let (mut w, mut first, mut second) = (1.0f64, 0.0f64, 0.0f64);
    for step in 1..=steps {
        let (x, y) = states_of(step);
        let slope = 2.0 * (w * x - y) * x;
        first = keep(0.9 * first + 0.1 * slope);
        second = keep(0.999 * second + 0.001 * slope * slope);
        let corrected = (second / (1.0 - 0.999f64.powi(step))).sqrt() + 1e-8;
        w -= 1e-3 * first / (1.0 - 0.9f64.powi(step)) / corrected;
    }
    w
}

/// A shallow and a deep state that half precision represents exactly.
fn states_of(step: i32) -> (f64, f64) {
    (1.0 + f64::from(step % 4) * 0.25, 8.0 - f64::from(step % 3) * 0.5)
}

/// The second moment grows by a thousandth of the squared gradient per step, so in bf16 it would soon stop growing.
#[test]
fn the_optimizer_keeps_its_state_in_f32() {
    const STEPS: i32 = 2000;
    let expected = adam(STEPS, |moment| moment);
    let in_bf16 = adam(STEPS, |moment| half::bf16::from_f64(moment).to_f64());
    assert!((in_bf16 - expected).abs() > 0.1, "it would be seen: {in_bf16} {expected}");
    let rule = UpdateRule::Adam { beta_1: 0.9, beta_2: 0.999, epsilon: 1e-8 };
    let config = OptimizerConfig::sgd(1e-3).with_rule(rule);
    for (dtype, _) in HALVES {
        let mut learner = Learner::new(scale(1.0), config).unwrap();
        for step in 1..=STEPS {
            let (x, y) = states_of(step);
            let state = |value: f64| Tensor::<2>::full([1, 1], value, &device()).cast(dtype);
            learner.update(&HiddenStates::new(state(x), state(y)).unwrap());
        }
        let got = f64::from(values(learner.distiller().factor.val())[0]);
        assert!((got - expected).abs() < 2e-3, "{dtype:?}: {got} {expected}");
    }
}

#[test]
fn quantised_logits_are_refused() {
    let sampling = Sampling::new().with_beta(0.0).checked().unwrap();
    let id = CompletionId::new(0, 0);
    let rows = [StepRow::new(id, DrawKey::new(0, &[], 0), &[], &[], &sampling)];
    let logits = Tensor::<2>::ones([1, 32], &device()).quantize_dynamic(&QuantScheme::default());
    let head = TiedHead::new(Tensor::ones([32, 4], &device()));
    let mut sampler = SamplerConfig::new().init(4, &device()).unwrap();
    let error = sampler.step(StepInput::new(&rows, logits, &head)).unwrap_err().to_string();
    assert!(error.starts_with("logits: expected a floating-point type, got QFloat"), "{error}");
}
