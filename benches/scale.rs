//! How the cost of a step grows with the size of the model and of the batch.
//! crates/esamp-bench/src/scale documents the measurement and its arguments.
use std::{io::Write, process::ExitCode};

use clap::Parser;
use esamp_bench::scale::{Args, run};

fn main() -> ExitCode {
    match run(&Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If standard error is closed too, the exit code still reports the failure.
            let _ = writeln!(std::io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
