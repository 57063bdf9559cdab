//! Completions of one prompt by a GGUF file on llama.cpp: plain sampling first, then ESamp.
//!
//! ```sh
//! cargo run --release -p esamp-llama-cpp --example generate -- --samples 4 --max-new-tokens 48 --seed 7
//! cargo run --release -p esamp-llama-cpp --example generate -- --model model.gguf --gpu-layers 99 --json
//! ```

use std::{
    io::{self, Write},
    ops::ControlFlow,
    process::ExitCode,
};

use clap::Parser;
use esamp::{
    CausalLm, Completion, Counters, DecodeStats, Decoder, Request, SamplerConfig, Sampling,
    TokenId,
    filters::{FilterConfig, MinP},
    llama::{ChatMessage, ChatTemplate, Tokenizer},
};
use esamp_llama_cpp::{LlamaCpp, Options};
use esamp_programs::{
    failure::{End, Failure, exit_code},
    model_source::{Cache, ModelSource},
};
use serde::Serialize;

/// Completions of one prompt by a GGUF file on llama.cpp: plain sampling first, then ESamp.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
struct Args {
    /// The prompt; sent as a chat message if the model has a chat template.
    #[arg(
        long,
        default_value = "Continue this short story in an original way. Write only the continuation.\n\n\
                         The lighthouse had been dark for twenty years when"
    )]
    prompt: String,
    /// Number of completions per arm.
    #[arg(long, default_value_t = 4)]
    samples: usize,
    /// Maximum number of tokens per completion.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Steering strength.
    #[arg(long, default_value_t = 0.25, allow_negative_numbers = true)]
    beta: f32,
    /// The model: a GGUF file [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    model: Option<String>,
    /// CPU threads [default: all]
    #[arg(long)]
    threads: Option<usize>,
    /// Number of layers to compute on the GPU.
    #[arg(long, default_value_t = 0)]
    gpu_layers: usize,
    /// Print one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    prompt: &'a str,
    prompt_tokens: usize,
    seed: u64,
    beta: f32,
    arms: Vec<Arm>,
}

#[derive(Serialize)]
struct Arm {
    name: &'static str,
    samples: Vec<Sample>,
    tokens_per_second: Option<f64>,
    mean_novelty: Option<f64>,
    mean_loss: Option<f64>,
    counters: Counters,
    stats: DecodeStats,
}

#[derive(Serialize)]
struct Sample {
    text: String,
    tokens: Vec<TokenId>,
    finish: &'static str,
}

fn main() -> ExitCode {
    exit_code(run(&Args::parse()))
}

const LOAD_STEP: &str = "give a GGUF file that llama.cpp can load";

fn run(args: &Args) -> Result<(), End> {
    let source = match &args.model {
        None => ModelSource::SmolLm2,
        Some(model) => model.parse::<ModelSource>().map_err(Failure::from)?,
    };
    let path = source.fetch(&Cache::from_env()?)?;
    let load = |error| Failure::runtime(error, LOAD_STEP);
    let tokenizer = Tokenizer::from_gguf(&path).map_err(load)?;
    let prompt = match ChatTemplate::from_gguf(&path).map_err(load)? {
        Some(template) => template
            .render(&[ChatMessage::user(&args.prompt)])
            .and_then(|text| tokenizer.encode_rendered(&text)),
        None => tokenizer.encode(&args.prompt),
    };
    let prompt = prompt.map_err(load)?;
    let mut options = Options::new()
        .with_gpu_layers(args.gpu_layers)
        .with_max_rows(args.samples)
        // One arm at a time. A row's last token is never read.
        .with_cells(prompt.len().saturating_add(args.samples.saturating_mul(args.max_new_tokens)));
    if let Some(threads) = args.threads {
        options = options.with_threads(threads);
    }
    let model = LlamaCpp::load(&path, &options)
        .map_err(|error| Failure::runtime(error, "change the flag it names, or the model"))?;
    let arms = [("plain", 0.0), ("esamp", args.beta)]
        .into_iter()
        .map(|(name, beta)| arm(name, beta, &model, &tokenizer, &prompt, args))
        .collect::<Result<Vec<_>, _>>()?;
    let name = source.name();
    let mut out = io::stdout().lock();
    if args.json {
        let (seed, beta) = (args.seed, args.beta);
        let prompt_tokens = prompt.len();
        let report = Report { model: &name, prompt: &args.prompt, prompt_tokens, seed, beta, arms };
        serde_json::to_writer(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "{name}  {} completions, seed {}, β {}", args.samples, args.seed, args.beta)?;
    for arm in arms {
        writeln!(out, "\n{}", arm.name)?;
        for (index, sample) in arm.samples.iter().enumerate() {
            writeln!(out, "{}. {}", index + 1, sample.text.trim())?;
        }
        if let Some(speed) = arm.tokens_per_second {
            writeln!(out, "{speed:.1} tokens/s, {} updates", arm.counters.updates)?;
        }
    }
    Ok(())
}

fn arm(
    name: &'static str,
    beta: f32,
    model: &LlamaCpp,
    tokenizer: &Tokenizer,
    prompt: &[TokenId],
    args: &Args,
) -> Result<Arm, Failure> {
    let sampling = Sampling {
        beta,
        filters: vec![FilterConfig::MinP(MinP { p: 0.05 })],
        ..Sampling::default()
    };
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
    let mut decoder = Decoder::new(model, sampler).with_detokenizer(tokenizer.clone());
    let request = Request::new(prompt.to_vec())
        .with_completions(args.samples)
        .with_max_new_tokens(args.max_new_tokens)
        .with_seed(args.seed)
        .with_stop_tokens(tokenizer.stop_tokens())
        .with_sampling(sampling);
    let refused = |error| Failure::runtime(error, "change the prompt or the flag it names");
    decoder.submit(request).map_err(refused)?;
    let completions = decoder
        .run(|_| ControlFlow::Continue(()))
        .map_err(|error| Failure::runtime(error, "lower --samples or --max-new-tokens"))?;
    let sample = |completion: &Completion| Sample {
        text: completion.text.clone().unwrap_or_default(),
        tokens: completion.tokens(),
        finish: completion.finish.name(),
    };
    let (counters, stats) = (decoder.sampler().counters().clone(), decoder.stats().clone());
    Ok(Arm {
        name,
        samples: completions.iter().map(sample).collect(),
        tokens_per_second: stats.tokens_per_second(),
        mean_novelty: counters.mean_novelty(),
        mean_loss: counters.mean_loss(),
        counters,
        stats,
    })
}
