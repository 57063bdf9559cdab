//! Measures how fast distillers learn from each starting point on a real model. Prints the relative error
//! by step: the figures of docs/guide/starting-points.md.
//!
//! ```sh
//! cargo run --release --example starting_points
//! ```
//!
//! The plain model completes each prompt. Its hidden states are recorded once and replayed to every
//! distiller, so that all of them see the same tokens.

use std::{
    io::{self, Write},
    ops::ControlFlow,
};

use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, Decoder, HiddenStates, Request, SamplerConfig, Sampling, SequenceTap, TokenId,
    distillers::{
        Distiller, LowRankConfig, LowRankDistiller, LowRankStart, SourceNorm, SwiGluConfig,
    },
    llama::{ChatMessage, ChatTemplate, Llama, Tokenizer},
    optim::{Learner, OptimizerConfig},
};
use esamp_programs::model_source::{Cache, ModelSource};

const PROMPTS: [&str; 4] = [
    "Continue this short story in an original way. Write only the continuation.\n\n\
     The lighthouse had been dark for twenty years when",
    "Explain to a child why the sky is blue, and why it is red in the evening.",
    "Write a letter to a friend about the strangest market that you have ever been to.",
    "A farmer has 17 sheep. All but 9 run away. How many are left? Think step by step.",
];
const SAMPLES: usize = 4;
const TOKENS: usize = 81; // 80 decode steps
const STEPS: [(usize, usize); 4] = [(0, 5), (5, 20), (20, 50), (50, 80)];

/// The recorded states of one prompt: its own positions, and each decode step with one row per completion.
struct Recording {
    prompt: HiddenStates,
    steps: Vec<HiddenStates>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::flex();
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    let model = Llama::from_gguf(&path, &device)?;
    let tokenizer = Tokenizer::from_gguf(&path)?;
    let template = ChatTemplate::from_gguf(&path)?.ok_or("no chat template")?;
    let mut recordings = Vec::new();
    for (seed, prompt) in PROMPTS.iter().enumerate() {
        let text = template.render(&[ChatMessage::user(*prompt)])?;
        recordings.push(record(&model, tokenizer.encode_rendered(&text)?, seed as u64)?);
    }

    writeln!(
        io::stdout(),
        "| start | learning rate | 0–5 | 5–20 | 20–50 | 50–80 |\n|---|---|---|---|---|---|"
    )?;
    let width = model.d_model();
    let blocks = SwiGluConfig::new().init(width, 0, &device)?;
    let low_rank = LowRankConfig::new().with_source_norm(SourceNorm::Rms);
    let normal = low_rank.init(width, 0, &device)?;
    let svd = |block| -> Result<LowRankDistiller, Box<dyn std::error::Error>> {
        let ffn = model.ffn_weights(block).ok_or("no such block")?;
        Ok(low_rank.init_from_ffn(ffn.gate, ffn.up, ffn.down, 0, &device)?)
    };
    let (svd_second, svd_last) = (svd(1)?, svd(model.config().n_layers - 1)?);
    let first_rows = LowRankStart::Ridge { rows: 16, lambda: 1e-2 };
    let ridge = low_rank.clone().with_start(first_rows).init(width, 0, &device)?;
    let raw = LowRankConfig::new().init(width, 0, &device)?;
    for rate in [4e-4, 3e-3] {
        let optimizer = OptimizerConfig::paper().with_learning_rate(rate);
        for updates in [0, 20] {
            let name = format!("SwiGLU, {updates} updates on the prompt");
            let start = |recording: &Recording| {
                let mut learner = Learner::new(blocks.clone(), optimizer)?;
                for _ in 0..updates {
                    learner.update(&recording.prompt);
                }
                Ok(learner)
            };
            report(&name, &recordings, optimizer, start)?;
        }
    }
    for rate in [1e-3, 1e-2] {
        let optimizer = OptimizerConfig::adam_w(rate);
        for (name, distiller) in [
            ("low-rank, normal, raw source", &raw),
            ("low-rank, normal", &normal),
            ("low-rank, SVD of block 1", &svd_second),
            ("low-rank, SVD of the last block", &svd_last),
            ("low-rank, ridge on the first 16 rows", &ridge),
        ] {
            report(name, &recordings, optimizer, |_| {
                Ok(Learner::new(distiller.clone(), optimizer)?)
            })?;
        }
        let start = |recording: &Recording| {
            let (shallow, deep) = (recording.prompt.shallow(), recording.prompt.deep());
            Ok(Learner::new(normal.fit_ridge(shallow, deep, 1e-2)?, optimizer)?)
        };
        report("low-rank, ridge on the prompt", &recordings, optimizer, start)?;
    }
    Ok(())
}

/// Completes a prompt with plain sampling and records the hidden states a tap would have seen.
fn record(
    model: &Llama,
    prompt: Vec<TokenId>,
    seed: u64,
) -> Result<Recording, Box<dyn std::error::Error>> {
    let sampling = Sampling::default().with_beta(0.0).with_min_p(0.05);
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
    let mut decoder = Decoder::new(model, sampler)?;
    let request = Request::new(prompt.clone()).with_sampling(sampling).with_seed(seed);
    decoder.submit(request.with_completions(SAMPLES).with_max_new_tokens(TOKENS))?;
    let completions = decoder.run(|_| ControlFlow::Continue(()))?;

    let mut all = Vec::new();
    for completion in completions {
        let sequence: Vec<i32> =
            prompt.iter().chain(&completion.tokens()).map(|&token| token as i32).collect();
        let tokens = Tensor::<1, Int>::from_data(sequence.as_slice(), &model.device());
        let mut tap = SequenceTap::default();
        model.forward(tokens.reshape([1, sequence.len()]), &mut model.new_cache(), &mut tap)?;
        tap.end_pass(sequence.len())?;
        all.push(tap.take()?);
    }
    let rows = |at: usize| -> Result<HiddenStates, esamp::errors::HiddenError> {
        let rows: Vec<HiddenStates> =
            all.iter().map(|states| states.select(&[at])).collect::<Result<_, _>>()?;
        let pick = |part: fn(&HiddenStates) -> &Tensor<2>| {
            Tensor::cat(rows.iter().map(|row| part(row).clone()).collect(), 0)
        };
        HiddenStates::new(pick(HiddenStates::shallow), pick(HiddenStates::deep))
    };
    let prompt_rows: Vec<usize> = (0..prompt.len()).collect();
    let steps = (0..TOKENS - 1).map(|step| rows(prompt.len() + step)).collect::<Result<_, _>>()?;
    Ok(Recording { prompt: all[0].select(&prompt_rows)?, steps })
}

/// Replays every recording and prints the mean relative error over ranges of steps. A distiller that asks
/// to be fitted is fitted as soon as enough rows have been seen.
fn report<D: Distiller>(
    name: &str,
    recordings: &[Recording],
    optimizer: OptimizerConfig,
    start: impl Fn(&Recording) -> Result<Learner<D>, Box<dyn std::error::Error>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut errors = vec![0.0; TOKENS - 1];
    for recording in recordings {
        let mut learner = start(recording)?;
        let mut seen: Vec<&HiddenStates> = Vec::new();
        for (step, hidden) in recording.steps.iter().enumerate() {
            let expected = learner.distiller().predict(hidden.shallow().clone());
            let length = |states: Tensor<2>| states.square().sum_dim(1).sqrt();
            let relative = length(expected - hidden.deep().clone()) / length(hidden.deep().clone());
            errors[step] += relative.mean().into_scalar::<f32>() / recordings.len() as f32;
            learner.update(hidden);
            seen.push(hidden);
            let wanted = learner.distiller().rows_to_fit();
            if wanted > 0 && seen.len() == wanted.div_ceil(SAMPLES) {
                let all = |part: fn(&HiddenStates) -> &Tensor<2>| {
                    Tensor::cat(seen.iter().map(|states| part(states).clone()).collect(), 0)
                };
                let fitted = learner
                    .distiller()
                    .fit(&all(HiddenStates::shallow), &all(HiddenStates::deep))
                    .ok_or("the first rows cannot be fitted")?;
                learner = Learner::new(fitted, optimizer)?;
            }
        }
    }
    let means = STEPS.map(|(from, to)| {
        let range = &errors[from..to];
        format!("{:.2}", range.iter().sum::<f32>() / range.len() as f32)
    });
    writeln!(io::stdout(), "| {name} | {:e} | {} |", optimizer.learning_rate, means.join(" | "))?;
    Ok(())
}
