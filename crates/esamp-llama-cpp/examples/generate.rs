//! Completions of one prompt by a GGUF file on llama.cpp, side by side: plain sampling on the left, ESamp on the right.
//!
//! ```sh
//! cargo run --release -p esamp-llama-cpp --example generate -- --samples 4 --max-new-tokens 48 --seed 7
//! cargo run --release -p esamp-llama-cpp --example generate -- --model model.gguf --gpu-layers 99 --json
//! ```

use std::{path::Path, process::ExitCode};

use clap::{Parser, builder::RangedU64ValueParser};
use esamp_llama_cpp::{LlamaCpp, LlamaCppError, Options};
use esamp_programs::{
    failure::{End, Failure, exit_code},
    generate::{self, Needs, Opened},
};

/// Compare completions of one prompt by a GGUF file on llama.cpp side by side: plain sampling against ESamp, or against
/// the method that --reweighter names.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
struct Args {
    /// CPU threads of llama.cpp [default: all]
    #[arg(long, allow_negative_numbers = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    threads: Option<usize>,
    /// Number of layers to compute on the GPU, if llama.cpp is built for one.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    gpu_layers: usize,
    /// Give each row a KV buffer of its own: faster from about 32 rows on, with more memory.
    #[arg(long)]
    separate_buffers: bool,
    #[command(flatten)]
    run: generate::Args,
}

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}

fn run(args: &Args) -> Result<(), End> {
    for model in args.run.model.iter().chain(&args.run.steering.contrast_with) {
        let name = model.to_string_lossy();
        if name.starts_with("hf:") || Path::new(model).is_dir() {
            let error = format!("--model {name}: expected a GGUF file, got a Hugging Face model");
            let next_step = "give a .gguf file; the example of the package esamp reads these";
            return Err(Failure::usage(error, next_step).into());
        }
    }
    generate::run(&args.run, |path, needs| {
        Ok(Opened { model: open(path, needs, args)?, weight_bytes: None })
    })
}

fn open(path: &Path, needs: Needs, args: &Args) -> Result<LlamaCpp, Failure> {
    let cells =
        if args.separate_buffers { needs.rows.saturating_mul(needs.longest) } else { needs.tokens };
    let mut options = Options::new()
        .with_max_rows(needs.rows)
        .with_cells(cells)
        .with_unified_cache(!args.separate_buffers)
        .with_gpu_layers(args.gpu_layers);
    if let Some(threads) = args.threads {
        options = options.with_threads(threads);
    }
    LlamaCpp::load(path, &options).map_err(|error| match error {
        LlamaCppError::Load(error) => Failure::loading(error),
        LlamaCppError::Option { option: "max_rows", .. } => {
            Failure::runtime(error, "lower --samples, or use --plain: both columns share the rows")
        }
        error => Failure::runtime(error, "choose another model, or lower what the message names"),
    })
}
