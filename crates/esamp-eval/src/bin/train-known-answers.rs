//! Trains the small models of the tasks with known answers.
//!
//! ```sh
//! cargo run --release -p esamp-eval --bin train-known-answers -- --out crates/esamp-eval/known
//! ```
//!
//! Writes one Hugging Face folder per task and peakedness, for example `circle-peaked`. Takes minutes for each on two
//! cores.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
    time::Instant,
};

use burn::{module::Module, tensor::Device};
use clap::Parser;
use esamp_eval::known::{
    Network, NetworkShape, Peakedness, TrainSettings, Vocabulary, World, drawn, load, save, train,
    worlds,
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
    /// Answers of the trained network that are checked.
    const CHECKED: usize = 1024;
    let vocabulary = Vocabulary::of(world);
    let Sizes { shape, settings, after } =
        sizes(world.name(), peakedness, vocabulary.size(), args.seed);
    let settings =
        TrainSettings { steps: ((settings.steps as f64 * args.share) as usize).max(1), ..settings };
    let path = "check the path of --out and the disk";
    let start = match &after {
        None => Network::new(shape, args.seed, &Device::flex()),
        Some(before) => load(&args.out.join(before), shape, &Device::flex()).map_err(|error| {
            Failure::runtime(error, &format!("train {before} first, to the same --out"))
        })?,
    };
    let (network, loss) = trained(world, peakedness, start, settings, name);
    let drawn = drawn(&network, world, CHECKED, args.seed);
    let trained = json!({
        "world": world.name(), "peakedness": peakedness.name(), "after": after, "settings": settings,
        "loss": loss, "drawn": drawn,
    });
    let folder = args.out.join(name);
    save(&network, &vocabulary, &trained, &folder)
        .map_err(|error| Failure::runtime(error, path))?;
    writeln!(
        io::stdout(),
        "{}: {} of {CHECKED} right, {} different",
        folder.display(),
        drawn.right,
        drawn.different
    )?;
    Ok(())
}

/// Trains a network, and says how it goes. Returns its last mean loss too.
fn trained(
    world: &dyn World,
    peakedness: Peakedness,
    network: Network,
    settings: TrainSettings,
    name: &str,
) -> (Network, f32) {
    /// Steps between two lines of progress.
    const SHOWN: usize = 500;
    let started = Instant::now();
    let (mut sum, mut last) = (0.0, 0.0);
    let network = train(world, peakedness, network, settings, |step, loss, network| {
        sum += loss;
        if (step + 1) % SHOWN == 0 || step + 1 == settings.steps {
            last = sum / (step % SHOWN + 1) as f32;
            sum = 0.0;
            let seconds = started.elapsed().as_secs();
            let drawn = drawn(&network.valid(), world, 128, settings.seed);
            // Progress only: a closed standard error is no failure.
            let _ = writeln!(
                io::stderr(),
                "{name}, {}: step {}, loss {last:.4}, {} of {} right, {seconds} s",
                peakedness.name(),
                step + 1,
                drawn.right,
                drawn.answers
            );
        }
    });
    (network, last)
}

/// The sizes of a network, and how it is trained.
struct Sizes {
    shape: NetworkShape,
    settings: TrainSettings,
    /// The model that it goes on from; without one, it starts at random.
    after: Option<String>,
}

/// The sizes and the training of a network: small enough for the repository, and trained for minutes. Circles and lines are
/// the hard ones: in this time a network learns to use each node once, and hardly to look ahead to a cycle that closes early.
///
/// A peaked network of a world that takes long to learn goes on from the even one, on few items again and again: it
/// becomes a model that knows more right answers than it gives.
fn sizes(world: &str, peakedness: Peakedness, vocab: usize, seed: u64) -> Sizes {
    let (d_model, d_hidden, n_layers, rows, steps, again) = match world {
        "sibling" => (64, 128, 2, 128, 1500, None),
        "triangle" => (96, 192, 2, 256, 2000, Some(500)),
        _ => (64, 192, 4, 64, 8000, Some(1500)),
    };
    let shape = NetworkShape { d_model, d_hidden, n_layers, n_heads: 4, vocab };
    let settings = TrainSettings { steps, rows, rate: 3e-3, seed };
    match (peakedness, again) {
        (Peakedness::Peaked, Some(steps)) => Sizes {
            shape,
            settings: TrainSettings { steps, rate: 1e-3, ..settings },
            after: Some(format!("{world}-{}", Peakedness::Even.name())),
        },
        _ => Sizes { shape, settings, after: None },
    }
}
