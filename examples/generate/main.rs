//! Completions of one prompt side by side: plain sampling on the left, ESamp on the right.
//!
//! ```sh
//! cargo run --release --example generate
//! cargo run --release --example generate -- --samples 8 --beta 0.5 --prompt "Name an unusual use for a brick."
//! cargo run --release --example generate -- --reweighter orthogonal --warm-up-updates 20 --trace trace.jsonl
//! cargo run --release --example generate -- --html completions.html
//! cargo run --release --example generate -- --help
//! ```

#![allow(unreachable_pub, reason = "the modules of a binary have no public API")]
mod args;
mod arms;
mod page;
mod render;
mod report;
mod settings;
mod trace;

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use esamp_programs::{
    failure::{End, exit_code},
    loaded::Loaded,
    model_source::Cache,
};

use args::Args;
use arms::Arm;
use page::HtmlFile;
use render::Screen;
use trace::Trace;

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}

fn run(args: &Args) -> Result<(), End> {
    let arms = args.arms()?; // refuses invalid settings before anything is fetched
    let device = args.device.open()?;
    let source = args.source()?;
    let other = args.other_source()?;
    args.check_files(&source, other.as_ref())?;
    let trace = args.files.trace.as_deref().map(Trace::create).transpose()?;
    let page = args.files.html.as_deref().map(HtmlFile::create).transpose()?;
    let cache = Cache::from_env()?;
    let loaded = Loaded::open(&source.fetch(&cache)?, &device)?;
    let mut other = match other {
        Some(source) => Some(Loaded::open(&source.fetch(&cache)?, &device)?.model),
        None => None,
    };
    let prompt = loaded.prompt(&args.prompt, args.raw)?;
    let mut arms: Vec<Arm<'_>> = arms
        .into_iter()
        .map(|settings| {
            let other = if settings.steered { other.take() } else { None };
            Arm::start(settings, &loaded, other, &prompt, args)
        })
        .collect::<Result<_, _>>()?;
    if let (Some(arm), Some(trace)) = (arms.last_mut(), trace) {
        arm.trace_to(trace);
    }
    if page.is_some() {
        for arm in &mut arms {
            arm.record();
        }
    }

    let mut screen = Screen::new(args.json);
    screen.headline(&source.name(), args, &arms, prompt.len())?;
    // The arms take turns step by step: both columns grow together, and both arms see the same machine
    // load.
    while arms.iter().any(|arm| !arm.is_done()) {
        for arm in &mut arms {
            arm.step()?;
        }
        screen.live(&arms);
    }
    for arm in &mut arms {
        arm.finish();
    }
    // Save before printing: a closed standard output must not lose the snapshot. A failed run saves
    // nothing.
    let mut outcome = arms.iter_mut().try_for_each(Arm::check);
    if let (Ok(()), Some(path), Some(arm)) = (&outcome, &args.files.save, arms.last_mut()) {
        outcome = arm.save(path);
    }
    if let Some(page) = page {
        let written = page.write(&source.name(), args, &arms, &loaded.tokenizer);
        outcome = outcome.and(written);
    }
    if args.json {
        report::print(&source.name(), args, prompt.len(), &arms)?;
    } else {
        screen.result(&arms)?;
    }
    outcome?;
    if let Some(arm) = arms.last() {
        // The run has succeeded even if standard error is closed.
        let _ = writeln!(io::stderr(), "{}", render::summary(arm));
    }
    Ok(())
}
