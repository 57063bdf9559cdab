//! Completions of one prompt side by side: plain sampling on the left, ESamp on the right.
//!
//! ```sh
//! cargo run --release --example generate
//! cargo run --release --example generate -- --samples 8 --beta 0.5 --prompt "Name an unusual use for a brick."
//! cargo run --release --example generate -- --reweighter orthogonal --warm-up-updates 20 --trace trace.jsonl
//! cargo run --release --example generate -- --html completions.html
//! cargo run --release --example generate -- --help
//! ```
//!
//! The program is in crates/esamp-programs/src/generate. This is what its models are: burn models of the Llama family.

use std::process::ExitCode;

use clap::Parser;
use esamp_programs::{
    failure::{End, exit_code},
    generate::{self, Opened},
    loaded::Place,
};

/// Compare completions of one prompt side by side: plain sampling against ESamp, or against the method that
/// --reweighter names.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    run: generate::Args,
}

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}

fn run(args: &Args) -> Result<(), End> {
    let device = args.place.open()?;
    generate::run(&args.run, |path, _| {
        let model = args.place.llama(path, &device)?;
        Ok(Opened { weight_bytes: Some(model.weight_bytes()), model })
    })
}
