//! The overhead of ESamp: the same decode loop with and without it, interleaved.
//! crates/esamp-bench/src/overhead documents the measurement and its arguments.
use std::process::ExitCode;

use clap::Parser;
use esamp_bench::{
    exit_code,
    overhead::{args::Args, report::report},
};

fn main() -> ExitCode {
    exit_code(report(&Args::parse(), &mut std::io::stdout()))
}
