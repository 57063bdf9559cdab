//! llama.cpp's own greedy decoding of SmolLM2-135M, for `benches/compare.sh`.

use std::{error::Error, path::Path, process::ExitCode, time::Instant};

use clap::Parser;
use esamp::TokenId;
use esamp_bench::{exit_code, protocol::answer};
use esamp_llama_cpp::{Options, own_loop::OwnLoop};
use esamp_programs::model_source::{Cache, ModelSource};

/// llama.cpp's own greedy decoding of SmolLM2-135M.
#[derive(Debug, Parser)]
struct Args {
    /// Give each row a KV buffer of its own.
    #[arg(long)]
    separate_buffers: bool,
    /// What `cargo bench` passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    exit_code(serve(&Args::parse()))
}

fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    answer(|rows, prompt, new_tokens| generate(&path, args, rows, &prompt, new_tokens))
}

fn generate(
    path: &Path,
    args: &Args,
    rows: usize,
    prompt: &[TokenId],
    new_tokens: usize,
) -> Result<(f64, Vec<TokenId>), Box<dyn Error>> {
    let longest = prompt.len() + new_tokens;
    let cells =
        if args.separate_buffers { rows * longest } else { prompt.len() + rows * new_tokens };
    let options = Options::new()
        .with_max_rows(rows)
        .with_cells(cells)
        .with_unified_cache(!args.separate_buffers);
    // Loaded anew, because the room of a context is fixed. Only the steps are timed.
    let mut own = OwnLoop::load(path, &options, None)?;
    own.start(prompt, rows)?;
    own.step()?;
    let begin = Instant::now();
    for _ in 2..new_tokens {
        own.step()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    own.rest();
    Ok((seconds, own.tokens(0)))
}
