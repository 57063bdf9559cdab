//! Runs campaigns, or one input. The library documents how.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::{Parser, builder::PossibleValuesParser};
use esamp_fuzz::{
    campaign::{Folder, Limits, run, run_one},
    targets::{self, Target},
};

/// Fuzz what reads files of others.
#[derive(Debug, Parser)]
#[command(name = "esamp-fuzz", version)]
struct Args {
    /// The target; all of them if it is not given.
    #[arg(long, value_parser = PossibleValuesParser::new(targets::ALL.map(|target| target.name)))]
    target: Option<String>,
    /// Seconds per target [default: 60, or no limit with --executions]
    #[arg(long)]
    seconds: Option<u64>,
    /// Executions per target.
    #[arg(long)]
    executions: Option<u64>,
    /// Seed of the mutations.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run one target on this file only.
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let folder = Folder::of_the_checkout();
    let of_name = args.target.as_deref().and_then(targets::named);
    if let (Some(target), Some(input)) = (of_name, &args.input) {
        let outcome = match fs::read(input) {
            Ok(bytes) => run_one(&target, &bytes, &folder).map_err(|fault| fault.what),
            Err(error) => Err(error.to_string()),
        };
        return said(outcome);
    }
    let seconds = args.seconds.unwrap_or(if args.executions.is_some() { u64::MAX } else { 60 });
    let limits = Limits {
        executions: args.executions.unwrap_or(u64::MAX),
        time: Duration::from_secs(seconds),
    };
    let chosen: Vec<Target> = of_name.map_or_else(|| targets::ALL.to_vec(), |target| vec![target]);
    let mut code = ExitCode::SUCCESS;
    for target in chosen {
        let began = Instant::now();
        let outcome = run(&target, args.seed, limits, &folder)
            .map(|done| {
                let seconds = began.elapsed().as_secs_f64();
                let (executions, outcomes) = (done.executions, done.outcomes);
                format!(
                    "{}: {executions} executions in {seconds:.1} s, {outcomes} outcomes",
                    target.name
                )
            })
            .map_err(|fault| format!("{}: {}: {}", target.name, fault.input.display(), fault.what));
        let is_fault = outcome.is_err();
        let ended = said(outcome);
        if is_fault {
            code = ended;
        }
    }
    code
}

/// Prints an outcome or a fault. A closed standard output is no failure.
fn said(outcome: Result<String, String>) -> ExitCode {
    match outcome {
        Ok(text) => {
            let _ = writeln!(io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            let _ = writeln!(io::stderr(), "{text}");
            ExitCode::FAILURE
        }
    }
}
