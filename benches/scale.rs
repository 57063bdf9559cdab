//! How the cost of a step grows with the size of the model and of the batch.
//! crates/esamp-bench/src/scale documents the measurement and its arguments.
use std::process::ExitCode;

use clap::Parser;
use esamp_bench::{
    exit_code,
    scale::{Args, run},
};

fn main() -> ExitCode {
    exit_code(run(&Args::parse(), &mut std::io::stdout()))
}
