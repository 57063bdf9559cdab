//! Completions of one prompt side by side: plain sampling on the left, ESamp on the right.
//!
//! ```sh
//! cargo run --release --example generate
//! cargo run --release --example generate -- --samples 8 --beta 0.5 --prompt "Name an unusual use for a brick."
//! cargo run --release --example generate -- --help
//! ```

#![allow(unreachable_pub, reason = "a program: there is nobody outside to reach it")]
mod args;
mod arms;
mod columns;
#[path = "../model_source/mod.rs"]
mod model_source;
mod render;
mod report;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;

use args::{Args, End};
use arms::{Arm, Loaded};
use model_source::Cache;
use render::Screen;

fn main() -> ExitCode {
    // A wrong flag ends the program here, with exit code 2.
    let args = Args::parse();
    match run(&args) {
        Ok(()) | Err(End::ReaderGone) => ExitCode::SUCCESS,
        Err(End::Failed(failure)) => {
            // Where nobody reads this either, the exit code says it.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code)
        }
    }
}

fn run(args: &Args) -> Result<(), End> {
    let arms = args.arms()?; // settings that cannot work are said before anything is fetched
    let device = args.device.open()?;
    let source = args.source()?;
    let path = source.fetch(&Cache::from_env()?)?;
    let loaded = Loaded::open(&path, &device)?;
    let prompt = loaded.prompt(&args.prompt, args.raw)?;
    let mut arms: Vec<Arm<'_>> = arms
        .into_iter()
        .map(|settings| Arm::start(settings, &loaded, &prompt, args))
        .collect::<Result<_, _>>()?;

    let mut screen = Screen::new(args.json);
    screen.headline(&source.name(), args, prompt.len())?;
    // Step by step in turns, so that both columns grow together and both arms meet the same noise of the machine.
    while arms.iter().any(|arm| !arm.is_done()) {
        for arm in &mut arms {
            arm.step()?;
        }
        screen.live(&arms);
    }
    arms.iter_mut().for_each(Arm::finish);
    match args.json {
        true => report::print(&source.name(), args, prompt.len(), &arms)?,
        false => screen.result(&arms)?,
    }
    for arm in &arms {
        arm.check()?;
    }
    Ok(())
}
