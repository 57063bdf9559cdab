//! Trains the small models of the tasks with known answers.
//!
//! ```sh
//! cargo run --release -p esamp-eval --bin train-known-answers -- --out crates/esamp-eval/known
//! ```
//!
//! Writes one Hugging Face folder per task and peakedness, for example `circle-peaked`. Takes some minutes for each on
//! two cores.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use burn::tensor::Device;
use clap::Parser;
use esamp_eval::known::{
    NetworkShape, Peakedness, TrainSettings, Vocabulary, World, save, train, worlds,
};
use esamp_programs::failure::{End, Failure, exit_code};
use serde_json::json;

/// Train the small models of the tasks with known answers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The folder to write to: one folder for each model.
    #[arg(long, default_value = "known")]
    out: PathBuf,
    /// Only these models: a comma-separated list such as circle-even,line-peaked.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The seed of parameters and batches.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Train for this share of the steps.
    #[arg(long, default_value_t = 1.0)]
    share: f64,
}

fn main() -> ExitCode {
    exit_code(run(&Args::parse()))
}

fn run(args: &Args) -> Result<(), End> {
    let worlds = worlds();
    let models: Vec<(&dyn World, Peakedness, String)> = worlds
        .iter()
        .flat_map(|world| Peakedness::ALL.map(|peakedness| (&**world, peakedness)))
        .map(|(world, peakedness)| {
            (world, peakedness, format!("{}-{}", world.name(), peakedness.name()))
        })
        .collect();
    if let Some(unknown) =
        args.only.iter().find(|name| !models.iter().any(|model| model.2 == **name))
    {
        let known: Vec<&str> = models.iter().map(|model| model.2.as_str()).collect();
        return Err(Failure::usage(
            format!("--only: expected the name of a model, got {unknown}"),
            &format!("use some of: {}", known.join(", ")),
        )
        .into());
    }
    let wanted = |name: &String| args.only.is_empty() || args.only.contains(name);
    for (world, peakedness, name) in models.iter().filter(|model| wanted(&model.2)) {
        one(args, *world, *peakedness, name)?;
    }
    Ok(())
}

fn one(args: &Args, world: &dyn World, peakedness: Peakedness, name: &str) -> Result<(), End> {
    /// Steps between two lines of progress.
    const SHOWN: usize = 100;
    let vocabulary = Vocabulary::of(world);
    let (shape, mut settings) = sizes(world.name(), vocabulary.size(), args.seed);
    settings.steps = ((settings.steps as f64 * args.share) as usize).max(1);
    let started = Instant::now();
    let (mut sum, mut last) = (0.0, 0.0);
    let network = train(world, peakedness, shape, settings, &Device::flex(), |step, loss| {
        sum += loss;
        if (step + 1) % SHOWN == 0 || step + 1 == settings.steps {
            last = sum / (step % SHOWN + 1) as f32;
            sum = 0.0;
            let seconds = started.elapsed().as_secs();
            // Progress only: a closed standard error is no failure.
            let _ =
                writeln!(io::stderr(), "{name}: step {}, loss {last:.4}, {seconds} s", step + 1);
        }
    });
    let trained = json!({
        "world": world.name(), "peakedness": peakedness.name(), "settings": settings, "loss": last,
    });
    let folder = args.out.join(name);
    save(&network, &vocabulary, &trained, &folder)
        .map_err(|error| Failure::runtime(error, "check the path of --out and the disk"))?;
    writeln!(io::stdout(), "{}", folder.display())?;
    Ok(())
}

/// The sizes and the training of a world's networks: as small as they may be to be right most of the time.
fn sizes(world: &str, vocab: usize, seed: u64) -> (NetworkShape, TrainSettings) {
    let (d_model, d_hidden, n_layers, steps, rows) = match world {
        "sibling" => (64, 128, 2, 1500, 128),
        "triangle" => (96, 192, 2, 3000, 256),
        _ => (64, 192, 4, 6000, 128),
    };
    let shape = NetworkShape { d_model, d_hidden, n_layers, n_heads: 4, vocab };
    (shape, TrainSettings { steps, rows, rate: 3e-3, seed })
}
