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

use std::{path::Path, process::ExitCode};

use burn::tensor::Device;
use clap::Parser;
use esamp::llama::Llama;
use esamp_programs::{
    device::DeviceName,
    failure::{End, Failure, exit_code, note},
    generate,
};

/// Compare completions of one prompt side by side: plain sampling against ESamp, or against the method that
/// --reweighter names.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
struct Args {
    /// The device to compute on.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    device: DeviceName,
    #[command(flatten)]
    run: generate::Args,
}

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}

fn run(args: &Args) -> Result<(), End> {
    let device = args.device.open()?;
    generate::run(&args.run, |path, _| open(path, &device))
}

/// Opens a GGUF file or a Hugging Face folder.
fn open(path: &Path, device: &Device) -> Result<Llama, Failure> {
    let model = if path.is_dir() {
        Llama::from_hf_folder(path, device)
    } else {
        Llama::from_gguf(path, device)
    };
    let model = model.map_err(Failure::loading)?;
    for warning in model.warnings() {
        note(warning);
    }
    Ok(model)
}
