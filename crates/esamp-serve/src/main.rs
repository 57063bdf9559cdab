//! The program. `esamp-serve --help` lists its flags.

use std::process::ExitCode;

use clap::Parser;
use esamp_programs::failure::exit_code;
use esamp_serve::{args::Args, start::run};

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}
