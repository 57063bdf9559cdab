//! What ESamp costs: the same decode loop with and without it, side by side.
//!
//! ```sh
//! cargo bench --bench overhead              # all CPU rows
//! cargo bench --bench overhead -- --quick   # fewer rounds, the rows most asked for
//! cargo bench --bench overhead -- --json    # one object per configuration
//! cargo bench --bench overhead -- --model 0.5b --groups 2x8 --distiller low-rank   # another shape, random weights
//! benches/gpu.sh                            # on a GPU: --gpu is the reference's workload
//! ```
//!
//! Two decoders on one model take turns with the same prompts, filters, seeds and lengths; only β differs. On a CPU they
//! take turns step by step. Where work goes on after a step has returned, on a GPU or on a thread in the background, it
//! would be paid for by the other's step: there they take turns generation by generation, each timed until its last update
//! is done. A round is one generation; its ratio is the plain time over the steered one. Medians and quartiles are over
//! rounds. A run whose counters say that it did not learn what it should is refused.

#![allow(unreachable_pub, reason = "a program: there is nobody outside to reach it")]
#![allow(clippy::print_stderr, reason = "a program speaks to its user")]

mod args;
mod device;
mod floor;
#[path = "../../examples/model_source/mod.rs"]
mod model_source;
mod report;
mod run;
mod state;
mod subject;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match report::report(&args::Args::parse(), &mut std::io::stdout()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
