//! LlamaCpp against llama.cpp's own loop, on SmolLM2 and on tiny models of several architectures (tests/models).

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod architectures;
mod errors;
mod rows;
mod smollm2;
mod tokenizers;

use std::{
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use burn::tensor::{Device, Int, Tensor, TensorData};
use esamp::{
    CausalLm, Completion, Decoder, HiddenStateTap, NoTap, Request, SamplerConfig, Sampling,
    TokenId, optim::OptimizerConfig,
};
use esamp_llama_cpp::{LlamaCpp, Options, own_loop::OwnLoop};
use esamp_programs::model_source::{Cache, ModelSource};

/// SmolLM2-135M-Instruct, Q4_1.
static SMOLLM2: LazyLock<PathBuf> =
    LazyLock::new(|| ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap());

/// A model of tests/models.
fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models").join(format!("{name}.gguf"))
}

/// One thread: llama.cpp's threads spin while they wait for each other, which takes minutes where tests share cores.
fn options() -> Options {
    Options::new().with_threads(1).with_cells(1024).with_max_rows(16)
}

fn load(path: &Path, options: &Options) -> LlamaCpp {
    LlamaCpp::load(path, options).unwrap()
}

fn tokens(tokens: &[TokenId], rows: usize) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let shape = [rows, ids.len() / rows];
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().unwrap()
}

/// The largest difference, relative to the largest number of `expected`.
fn difference(expected: &[f32], got: &[f32]) -> f32 {
    assert_eq!(expected.len(), got.len());
    let pairs = expected.iter().zip(got);
    let largest = expected.iter().map(|x| x.abs()).fold(f32::MIN_POSITIVE, f32::max);
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / largest
}

fn best(logits: &[f32]) -> TokenId {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as TokenId
}

/// Greedy decoding of one row by `forward`, with a new tap of `tap` in each pass.
fn greedy<T: HiddenStateTap>(
    model: &LlamaCpp,
    prompt: &[TokenId],
    count: usize,
    tap: impl Fn() -> T,
) -> Vec<TokenId> {
    let (mut cache, mut next, mut out) = (model.new_cache(), prompt.to_vec(), Vec::new());
    while out.len() < count {
        let logits = model.forward(tokens(&next, 1), &mut cache, &mut tap()).unwrap();
        next = vec![best(&numbers(&logits))];
        out.extend(&next);
    }
    out
}

/// Greedy decoding by llama.cpp alone.
fn own_greedy(path: &Path, options: &Options, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let mut own = OwnLoop::load(path, options, None).unwrap();
    own.start(prompt, 1).unwrap();
    (1..count).for_each(|_| own.step().unwrap());
    own.tokens(0)
}

fn decoder(model: &LlamaCpp) -> Decoder<&LlamaCpp> {
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    Decoder::new(model, sampler).unwrap()
}

fn run(decoder: &mut Decoder<&LlamaCpp>) -> Result<Vec<Completion>, String> {
    decoder.run(|_| ControlFlow::Continue(())).map_err(|error| error.to_string())
}

/// Plain greedy sampling.
fn plain() -> Sampling {
    Sampling::default().with_temperature(0.0).with_beta(0.0)
}

/// The mean loss of a distiller that does not learn, and of one that does, over the last steps of a run. Neither
/// steers, so both see the same texts: texts differ in how hard they are to predict.
fn losses(model: &LlamaCpp, prompt: &[TokenId]) -> [f64; 2] {
    [1e-12, 3e-3].map(|rate| {
        let sampler = SamplerConfig::new()
            .with_optimizer(OptimizerConfig::paper().with_learning_rate(rate))
            .with_updates_before_steering(usize::MAX)
            .init(model.d_model(), &model.device())
            .unwrap();
        let mut decoder = Decoder::new(model, sampler).unwrap();
        decoder
            .submit(Request::new(prompt.to_vec()).with_completions(8).with_max_new_tokens(40))
            .unwrap();
        // The counters are means over the run so far.
        let sum = |decoder: &Decoder<&LlamaCpp>| {
            let counters = decoder.sampler().counters();
            let rows = counters.rows_learned as f64;
            (counters.mean_loss().unwrap_or_default() * rows, rows)
        };
        (0..20).for_each(|_| drop(decoder.step().unwrap()));
        let (first, first_rows) = sum(&decoder);
        while !decoder.is_idle() {
            decoder.step().unwrap();
        }
        let (all, rows) = sum(&decoder);
        (all - first) / (rows - first_rows)
    })
}

/// No tap.
fn no_tap() -> NoTap {
    NoTap
}
