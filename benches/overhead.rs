//! The overhead of ESamp: the same decode loop with and without it, interleaved.
//! crates/esamp-bench/src/overhead documents the measurement and its arguments.

#![allow(clippy::print_stderr, reason = "a program speaks to its user")]

use std::process::ExitCode;

use clap::Parser;
use esamp_bench::overhead::{args::Args, report::report};

fn main() -> ExitCode {
    match report(&Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
