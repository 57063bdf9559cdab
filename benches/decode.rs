//! Plain greedy decoding of SmolLM2-135M: the loop that other costs are compared with.
//!
//! ```sh
//! cargo bench --bench decode          # tokens per second at 1, 4, 16 and 64 rows, packed and in f32, in turns
//! benches/compare.sh                  # the same compared with PyTorch and candle
//! ```
//!
//! With `--serve` it answers `compare.sh` ([`esamp_bench::protocol`]); with `--learn` too, completions are sampled with
//! min-p .05 and steered by a low-rank distiller of rank 64 that learns from every row.

use std::{
    error::Error,
    io::{self, Write},
    process::ExitCode,
    time::Instant,
};

use burn::tensor::{DType, Device};
use clap::Parser;
use esamp::{
    CausalLm, Decoder, Event, Request, SamplerConfig, Sampling, TokenId,
    distillers::{DistillerConfig, LowRankConfig},
    llama::{Llama, Tokenizer},
};
use esamp_bench::{exit_code, protocol::answer};
use esamp_programs::model_source::{Cache, ModelSource};

/// Plain decoding of SmolLM2-135M.
#[derive(Debug, Parser)]
struct Args {
    /// Generations per batch size; the median is printed.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// New tokens per completion.
    #[arg(long, default_value_t = 48)]
    tokens: usize,
    /// Batch sizes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 4, 16, 64])]
    rows: Vec<usize>,
    /// Serve requests from standard input instead.
    #[arg(long)]
    serve: bool,
    /// With `--serve`: ESamp with a low-rank distiller instead of greedy decoding.
    #[arg(long, requires = "serve")]
    learn: bool,
    /// Print the path of the model file and exit.
    #[arg(long)]
    print_model: bool,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

const PROMPT: &str = "The lighthouse had been dark for twenty years when";

fn main() -> ExitCode {
    exit_code(run(Args::parse()))
}

fn run(args: Args) -> Result<(), Box<dyn Error>> {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    if args.print_model {
        writeln!(io::stdout(), "{}", path.display())?;
        return Ok(());
    }
    let model = Llama::from_gguf(&path, &Device::flex())?;
    if args.serve {
        return answer(|rows, prompt, new_tokens| {
            generate(&model, args.learn, rows, prompt, new_tokens)
        });
    }
    let wide = model.clone().cast(DType::F32)?;
    let megabytes = |model: &Llama| model.weight_bytes() as f64 / 1e6;
    writeln!(
        io::stdout(),
        "packed: {:.0} MB of weights, f32: {:.0} MB",
        megabytes(&model),
        megabytes(&wide)
    )?;
    let prompt = Tokenizer::from_gguf(&path)?.encode(PROMPT)?;
    for rows in args.rows {
        let mut speeds = [Vec::new(), Vec::new()];
        let mut ratios = Vec::new();
        for round in 0..=args.rounds {
            let speed = |model: &Llama| -> Result<f64, Box<dyn Error>> {
                let (seconds, _) = generate(model, false, rows, prompt.clone(), args.tokens)?;
                Ok((rows * (args.tokens - 2)) as f64 / seconds)
            };
            let both = [speed(&model)?, speed(&wide)?];
            // The first round warms up.
            if round > 0 {
                ratios.push(both[0] / both[1]);
                speeds.iter_mut().zip(both).for_each(|(speeds, speed)| speeds.push(speed));
            }
        }
        let [packed, wide] = speeds.map(|mut speeds| quantile(&mut speeds, 0.5));
        writeln!(
            io::stdout(),
            "{rows:>3} rows: packed {packed:>7.1} tokens/s, f32 {wide:>7.1}, ratio {:.3} [{:.3}, {:.3}]",
            quantile(&mut ratios, 0.5),
            quantile(&mut ratios, 0.25),
            quantile(&mut ratios, 0.75),
        )?;
    }
    Ok(())
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}

/// Returns the seconds of the decode steps after the second token, and the tokens of the first row. The
/// first `Decoder::step` includes the prefill and yields the first two tokens, so it is not timed.
fn generate(
    model: &Llama,
    learn: bool,
    rows: usize,
    prompt: Vec<TokenId>,
    new_tokens: usize,
) -> Result<(f64, Vec<TokenId>), Box<dyn Error>> {
    let config = SamplerConfig::new()
        .with_distiller(DistillerConfig::LowRank(LowRankConfig::new().with_rank(64)));
    let sampler = config.init(model.d_model(), &model.device())?;
    let mut decoder = Decoder::new(model, sampler)?;
    let sampling = if learn {
        Sampling::default().with_min_p(0.05)
    } else {
        Sampling::default().with_beta(0.0).with_top_k(1)
    };
    let request = Request::new(prompt)
        .with_completions(rows)
        .with_max_new_tokens(new_tokens)
        .with_sampling(sampling);
    decoder.submit(request)?;
    decoder.step()?;
    let started = Instant::now();
    let mut events = Vec::new();
    while !decoder.is_idle() {
        events = decoder.step()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    // All completions end in the last step, because none ends before its length.
    let first = events.into_iter().find_map(|event| match event {
        Event::Finished { completion, .. } => Some(completion),
        _ => None,
    });
    Ok((seconds, first.ok_or("expected completions, got none")?.tokens()))
}
