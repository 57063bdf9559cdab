//! The overhead of ESamp: the same decode loop with and without it, interleaved.
//! crates/esamp-bench/src/overhead documents the measurement and its arguments.
use std::{io::Write, process::ExitCode};

use clap::Parser;
use esamp_bench::overhead::{args::Args, report::report};

fn main() -> ExitCode {
    match report(&Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
