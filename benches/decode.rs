//! Plain greedy decoding of SmolLM2-135M: the loop that other costs are compared with.
//!
//! ```sh
//! cargo bench --bench decode          # tokens per second at 1, 4, 16 and 64 rows, packed and in f32, in turns
//! benches/compare.sh                  # the same compared with PyTorch and candle
//! ```
//!
//! With `--serve` it answers each line `ROWS PROMPT_IDS NEW_TOKENS` (ids separated by commas) with `SECONDS
//! TOKENS`: the time of the decode steps alone, and the new tokens of the first row. `compare.sh` uses this
//! protocol with every program.

use std::{
    io::{self, BufRead, Write},
    time::Instant,
};

use anyhow::{Context, Result};
use burn::tensor::{DType, Device};
use clap::Parser;
use esamp::{
    CausalLm, Decoder, Event, Request, SamplerConfig, Sampling, TokenId,
    llama::{Llama, Tokenizer},
};
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
    /// Print the path of the model file and exit.
    #[arg(long)]
    print_model: bool,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

const PROMPT: &str = "The lighthouse had been dark for twenty years when";

fn main() -> Result<()> {
    let args = Args::parse();
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    if args.print_model {
        writeln!(io::stdout(), "{}", path.display())?;
        return Ok(());
    }
    let model = Llama::from_gguf(&path, &Device::flex())?;
    if args.serve {
        return serve(&model);
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
            let speed = |model: &Llama| -> Result<f64> {
                let (seconds, _) = generate(model, rows, prompt.clone(), args.tokens)?;
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

fn serve(model: &Llama) -> Result<()> {
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let mut word = || words.next().context("expected ROWS PROMPT_IDS NEW_TOKENS, got less");
        let rows = word()?.parse()?;
        let prompt = word()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
        let new_tokens = word()?.parse()?;
        let (seconds, tokens) = generate(model, rows, prompt, new_tokens)?;
        let tokens: Vec<String> = tokens.iter().map(TokenId::to_string).collect();
        writeln!(out, "{seconds} {}", tokens.join(","))?;
        out.flush()?;
    }
    Ok(())
}

/// Returns the seconds of the decode steps after the second token, and the tokens of the first row. The
/// first `Decoder::step` includes the prefill and yields the first two tokens, so it is not timed.
fn generate(
    model: &Llama,
    rows: usize,
    prompt: Vec<TokenId>,
    new_tokens: usize,
) -> Result<(f64, Vec<TokenId>)> {
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
    let mut decoder = Decoder::new(model, sampler)?;
    let greedy = Sampling::default().with_beta(0.0).with_top_k(1);
    let request = Request::new(prompt)
        .with_completions(rows)
        .with_max_new_tokens(new_tokens)
        .with_sampling(greedy);
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
    Ok((seconds, first.context("expected completions, got none")?.tokens()))
}
