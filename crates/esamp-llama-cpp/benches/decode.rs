//! llama.cpp's own greedy decoding of SmolLM2-135M, for `benches/compare.sh`.
//!
//! Answers each line `ROWS PROMPT_IDS NEW_TOKENS` on standard input (ids separated by commas) with `SECONDS TOKENS`: the
//! time of the decode steps after the second token, and the new tokens of the first row.

use std::{
    error::Error,
    io::{self, BufRead, Write},
    path::Path,
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use esamp::TokenId;
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
    match serve(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &Args) -> Result<(), Box<dyn Error>> {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    let mut out = io::stdout();
    writeln!(out, "ready")?;
    out.flush()?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let [rows, prompt, new_tokens] = line.split_whitespace().collect::<Vec<_>>()[..] else {
            return Err(format!("expected ROWS PROMPT_IDS NEW_TOKENS, got {line:?}").into());
        };
        let prompt = prompt.split(',').map(str::parse).collect::<Result<Vec<TokenId>, _>>()?;
        let (seconds, tokens) = generate(&path, args, rows.parse()?, &prompt, new_tokens.parse()?)?;
        let tokens: Vec<String> = tokens.iter().map(TokenId::to_string).collect();
        writeln!(out, "{seconds} {}", tokens.join(","))?;
        out.flush()?;
    }
    Ok(())
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
