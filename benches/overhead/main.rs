//! What ESamp costs: the same decode loop with and without it, side by side.
//!
//! ```sh
//! cargo bench --bench overhead              # all CPU rows
//! cargo bench --bench overhead -- --quick   # fewer rounds, the rows most asked for
//! cargo bench --bench overhead -- --json    # one object per configuration
//! ```
//!
//! Two decoders on one model take turns, step by step, with the same prompts, filters, seeds and lengths; only β differs.
//! A round is one generation; its ratio is the time of the plain steps over the time of the steered ones, so a disturbance
//! that outlasts a step hits both. Medians and quartiles are over rounds. A run whose counters say that it did not learn
//! what it should is refused.

#![allow(unreachable_pub, reason = "a program: there is nobody outside to reach it")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program speaks to its user")]

mod floor;
#[path = "../../examples/model_source/mod.rs"]
mod model_source;
mod run;

use std::error::Error;

use burn::tensor::Device;
use clap::Parser;
use esamp::llama::{Llama, Tokenizer};
use model_source::{Cache, ModelSource};
use run::{Case, DistillerName, Figures, FilterName};

/// The overhead of ESamp on SmolLM2-135M.
#[derive(Debug, Parser)]
struct Args {
    /// Fewer rounds, and only the configurations most asked for.
    #[arg(long)]
    quick: bool,
    /// One JSON object per configuration.
    #[arg(long)]
    json: bool,
    /// Rounds of each configuration [default: 5, quick: 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// New tokens of each completion.
    #[arg(long, default_value_t = 48)]
    tokens: usize,
    /// Only configurations whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn cases(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let groups = [(1, 1), (1, 16), (4, 4), (4, 16)];
    let filters = match quick {
        true => &[FilterName::MinP][..],
        false => &[FilterName::MinP, FilterName::TopP, FilterName::None],
    };
    for &filter in filters {
        for (prompts, completions) in groups {
            // 64 rows and the slower filters: once, with the distiller that is compared everywhere.
            let large = prompts * completions > 16;
            if large && (quick || filter != FilterName::MinP) {
                continue;
            }
            for distiller in [DistillerName::LowRank, DistillerName::SwiGlu] {
                cases.push(Case { prompts, completions, filter, distiller, beta: 0.25 });
            }
        }
    }
    // β = 0 is plain sampling: the ratio of a run to itself, which shows what the measurement can tell apart.
    let distiller = DistillerName::LowRank;
    cases.push(Case {
        prompts: 1,
        completions: 16,
        filter: FilterName::MinP,
        distiller,
        beta: 0.0,
    });
    cases
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env()?)?;
    let device = Device::flex();
    let model = Llama::from_gguf(&path, &device)?;
    let tokenizer = Tokenizer::from_gguf(&path)?;
    let rounds = args.rounds.unwrap_or(if args.quick { 3 } else { 5 }).max(1);
    if !args.json {
        println!(
            "SmolLM2-135M-Instruct, f32, flex, {} threads; {rounds} rounds of {} tokens",
            std::thread::available_parallelism()?,
            args.tokens
        );
        println!("{}", Figures::header());
    }
    for case in cases(args.quick).into_iter().filter(|case| case.name().contains(&args.only)) {
        let figures = case.run(&model, &tokenizer, rounds, args.tokens)?;
        match args.json {
            true => println!("{}", serde_json::to_string(&figures)?),
            false => println!("{figures}"),
        }
    }
    Ok(())
}
