//! A reproducible evaluation: tasks run under several sampling methods with several seeds.
//!
//! ```sh
//! cargo run --release --bin evaluate -- --list
//! cargo run --release --bin evaluate -- --quick --report quick.md
//! cargo run --release --bin evaluate -- --split held-out --arms headline --budget 60 --out held-out.jsonl
//! cargo run --release --bin evaluate -- --match-entropy esamp-0.5 --problems 8 --seeds 1
//! cargo run --release --bin evaluate -- --quick --shard 1/2 --out 1.jsonl
//! cargo run --release --bin evaluate -- --plan round-2 --dry-run
//! cargo run --release --bin evaluate -- --plan round-2 --budget 480 --out round-2
//! cargo run --release --bin evaluate -- --records circle-peaked-dev.jsonl,circle-peaked-held-out.jsonl --report circle.md
//! cargo run --release --bin evaluate -- merge 1.jsonl 2.jsonl --out quick.jsonl
//! ```
//!
//! The library documents the output, the splits and the arms.

use std::{
    env,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use burn::tensor::Device;
use clap::Parser;
use esamp::{CausalLm, llama::Llama};
use esamp_eval::{
    args::{Args, Command},
    arms,
    entropy::match_entropy,
    merge::Merged,
    progress::Progress,
    provenance::{self, SessionFile, Sessions},
    record::{self, ArmRecord, FORMAT_VERSION, Header, ModelRecord, ReadError, Run, read_lines},
    report::{self, Origin, embeddings::Embeddings, gather::Results, tallies},
    round2::{self, Part},
    run::Subject,
    store::{Store, disk},
    tasks::{Problem, Task},
    work::{Ended, problems_of, run_all},
};
use esamp_programs::{
    failure::{End, Failure, exit_code, note},
    loaded::{Texts, tokenizer},
    model_source::{Cache, ModelSource},
};

fn main() -> ExitCode {
    // Exits with code 2 if a flag is wrong.
    let args = Args::parse();
    exit_code(run(&args))
}

fn run(args: &Args) -> Result<(), End> {
    if let Some(command) = &args.command {
        command.check_files()?;
        let Command::Merge { shards, out } = command;
        return merge(shards, out);
    }
    let started = Instant::now();
    if args.plan.is_none() {
        return run_one(args, started);
    }
    let parts = round2::chosen(args)?;
    if args.dry_run {
        return dry_run(&parts, args);
    }
    std::fs::create_dir_all(&args.out).map_err(|error| disk(&args.out, error))?;
    for part in &parts {
        run_one(&part.args(args), started)?;
    }
    Ok(())
}

/// Prints the parts of a plan with their budgets, and what is left of them.
fn dry_run(parts: &[Part], args: &Args) -> Result<(), End> {
    let mut out = io::stdout();
    writeln!(
        out,
        "{:24} {:>8} {:>7} {:>5} {:>9} {:>7}  records",
        "part", "problems", "samples", "arms", "k tokens", "minutes"
    )?;
    let (mut tokens, mut minutes) = (0, 0.0);
    for part in parts {
        let own = part.args(args);
        let (most, arms) = (part.most_tokens(&own)?, own.arms()?.len());
        let planned = part.problems * arms * part.seeds as usize;
        // A file of another plan is refused when the part runs.
        let records = match read_lines(&own.out) {
            Ok(text) => text.lines().count().saturating_sub(1),
            Err(_) => 0,
        };
        let took = most as f64 / part.speed / 60.0;
        writeln!(
            out,
            "{:24} {:>8} {:>7} {arms:>5} {:>9} {took:>7.1}  {records} of {planned}",
            part.name,
            part.problems,
            part.samples,
            most / 1000
        )?;
        tokens += most;
        minutes += took;
    }
    writeln!(
        out,
        "{} parts: {:.1} million tokens at most, {:.1} hours on two cores",
        parts.len(),
        tokens as f64 / 1e6,
        minutes / 60.0
    )?;
    Ok(())
}

/// Does what a command line without a plan says.
fn run_one(args: &Args, started: Instant) -> Result<(), End> {
    let (tasks, arms, to_match) = (args.tasks()?, args.arms()?, args.arm_to_match()?);
    if args.list {
        return list(&tasks, args);
    }
    args.check_size(tasks.len(), arms.len())?;
    let shard = args.shard(|name| env::var_os(name))?;
    let source = args.source()?;
    args.check_files(&source)?;
    let device = args.place.open()?;
    if let (Some(to), false) = (&args.report, args.records.is_empty()) {
        return report(&args.records, to, &source, &device);
    }
    let path = source.fetch(&Cache::from_env()?)?;
    let (texts, model) = (Texts::open(&path)?, args.place.llama(&path, &device)?);
    let next_step = "mend or remove the chat template of the model";
    let subject = Subject {
        model: &model,
        encode: Box::new(|text| texts.encode_message(text, next_step)),
        detokenizer: Arc::new(texts.tokenizer.clone()),
        stop_tokens: texts.tokenizer.stop_tokens().to_vec(),
    };
    let header = args.fill(Header {
        format_version: FORMAT_VERSION,
        crate_version: env!("CARGO_PKG_VERSION").to_owned(),
        commit: provenance::commit(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))),
        model: ModelRecord {
            name: source.name(),
            sha256: provenance::model_hash(&path)?,
            d_model: model.d_model(),
            vocab: model.vocab_size(),
            device: args.place.device.name(),
        },
        split: args.split.into(),
        problems: 0,
        samples: 0,
        seeds: 0,
        tokens: 0,
        batch: 0,
        one_by_one: false,
        tasks: Vec::new(),
        arms,
        token_arm: None,
        wave: None,
        shard: shard.map(|(shard, _)| shard),
    });
    let tasks_of = tasks.iter().map(|task| task.record(header.tokens)).collect();
    let header = Header { tasks: tasks_of, ..header };
    let problems = problems_of(&tasks, header.split, header.problems)?;
    match to_match {
        Some(arm) => matching(&subject, &header, &problems, &arm)?,
        None => {
            // In a run that the environment shortens, its user should know.
            if let Some((shard, source)) = shard
                && args.shard.is_none()
            {
                note(&format!("shard {shard} of the plan, because {source} is set"));
            }
            evaluate(&subject, &header, &problems, args, started)?;
        }
    }
    match &args.report {
        Some(to) if args.match_entropy.is_none() => {
            report(std::slice::from_ref(&args.out), to, &source, &device)
        }
        _ => Ok(()),
    }
}

/// Writes a report on the records of a model.
fn report(records: &[PathBuf], to: &Path, model: &ModelSource, device: &Device) -> Result<(), End> {
    let mut runs = Vec::new();
    let mut sessions = Sessions::default();
    for path in records {
        runs.push(Run::read(path).map_err(|error| {
            let step = match error {
                ReadError::Io { .. } => "check the path, or run without --records first",
                ReadError::Header { .. } => "name a file that this program has written with --out",
                ReadError::Record { .. } => {
                    "the file is damaged: restore it, or run its command with another --out"
                }
            };
            Failure::runtime(error, step)
        })?);
        if let Some(shard) = runs.last().and_then(|run| run.header.shard) {
            let path = path.display();
            let error = format!("{path}: expected the records of a whole plan, got shard {shard}");
            return Err(Failure::usage(error, "merge all shards: evaluate merge --help").into());
        }
        let found = SessionFile::read(path)?;
        sessions.sessions.extend(found.sessions);
        sessions.damaged += found.damaged;
    }
    let command = provenance::command();
    if runs.iter().any(|run| run.header.wave.is_some()) {
        // Tallies need neither the model's tokenizer nor embeddings.
        let origin = Origin { sessions, command, embedder: String::new() };
        tallies::write(runs, &origin, to)?;
        writeln!(io::stdout(), "{}", to.display())?;
        return Ok(());
    }
    let results = Results::gather(runs)?;
    let origin = Origin { sessions, command, embedder: Embeddings::name() };
    let cache = Cache::from_env()?;
    let path = model.fetch(&cache)?;
    let (expected, got) = (&results.header.model.sha256, provenance::model_hash(&path)?);
    if *expected != got {
        let error = format!("--model: expected the model of the records, {expected}, got {got}");
        return Err(Failure::usage(error, "give the model that wrote the records").into());
    }
    let tokenizer = tokenizer(&path)?;
    let mut embeddings = Embeddings::open(&cache, device)?;
    let mut embed = |texts: &[String]| embeddings.of(texts);
    report::write(&results, &origin, &tokenizer, &mut embed, to)?;
    writeln!(io::stdout(), "{}", to.display())?;
    Ok(())
}

/// Runs the evaluation and writes its report.
fn evaluate(
    subject: &Subject<'_, Llama>,
    header: &Header,
    problems: &[Vec<Problem>],
    args: &Args,
    started: Instant,
) -> Result<(), End> {
    let mut store = Store::open(&args.out, header)?;
    let before = store.records();
    let mut sessions = SessionFile::open(&args.out, before, store.planned())?;
    if let Some(shard) = header.shard
        && args.shard.is_none()
    {
        sessions.add_to_command(["--shard".to_owned(), shard.to_string()]);
    }
    let progress = Progress::new(header, &store);
    let mut noted = Ok(());
    // The parts of a plan share one budget.
    let budget = args.budget.map(|budget| budget.saturating_sub(started.elapsed()));
    let ended = run_all(subject, header, problems, &mut store, budget, |unit, store| {
        progress.done(header, unit);
        // The records matter more than the session file, so an error here is reported at the end.
        noted = sessions.update(store.records());
    });
    progress.finish();
    let ended = ended?;
    noted?;
    let out = args.out.display();
    let (records, planned) = (store.records(), store.planned());
    writeln!(
        io::stdout(),
        "{}{records} of {planned} records in {out}, {} of them new, in {:.0} s",
        header.shard.map_or_else(String::new, |shard| format!("shard {shard}: ")),
        records - before,
        sessions.seconds()
    )?;
    if ended == Ended::OutOfTime {
        writeln!(io::stdout(), "time limit reached; run the same command again to resume")?;
    }
    Ok(())
}

/// Merges the records of shards.
fn merge(shards: &[PathBuf], out: &Path) -> Result<(), End> {
    let merged = Merged::of(shards).map_err(Failure::from)?;
    merged.write(out)?;
    let (records, shards) = (merged.records, merged.shards);
    let s = if shards == 1 { "" } else { "s" };
    writeln!(io::stdout(), "{records} records of {shards} shard{s} in {}", out.display())?;
    Ok(())
}

/// Finds the temperature of the entropy-matched control.
fn matching(
    subject: &Subject<'_, Llama>,
    header: &Header,
    problems: &[Vec<Problem>],
    arm: &ArmRecord,
) -> Result<(), End> {
    let matched = match_entropy(subject, header, problems, arm, |arm, entropy| {
        // Progress only: a closed standard error is no failure.
        let _ = writeln!(io::stderr(), "{}: {entropy:.4} nats a token", arm.name);
    })?;
    if let Some(found) = matched.tried.last() {
        writeln!(
            io::stdout(),
            "{}: {:.4} nats a token; its entropy-matched control is min-p-{} with {:.4}",
            arm.name,
            matched.target,
            found.temperature,
            found.entropy
        )?;
    }
    Ok(())
}

fn list(tasks: &[Box<dyn Task>], args: &Args) -> Result<(), End> {
    let mut out = io::stdout();
    writeln!(out, "tasks (development and held-out problems)")?;
    for task in tasks {
        let [dev, held_out] =
            [record::Split::Dev, record::Split::HeldOut].map(|split| task.split(split).len());
        writeln!(out, "  {:24} {} ({dev} and {held_out})", task.name(), task.what())?;
    }
    writeln!(out, "arms (selected: {})", args.arms)?;
    for arm in arms::all() {
        writeln!(out, "  {:24} {}", arm.name, arm.what)?;
    }
    Ok(())
}
