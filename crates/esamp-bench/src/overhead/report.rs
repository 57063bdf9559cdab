//! Runs the bench and prints text or JSON.

use std::{error::Error, io::Write};

use esamp_programs::weights::megabytes;

use super::{args::Args, run::Figures, state};

/// Runs the cases selected by `args` and writes each result as soon as it is measured.
pub fn report(args: &Args, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let tokens = args.tokens();
    let plans = args.plans();
    args.weights.check_device(args.device().name())?;
    let device = args.device().open()?;
    if plans.is_empty() {
        return Err(format!("--only: expected a part of a name, got {}", args.only).into());
    }
    for plan in plans {
        let subject = plan.model.load(plan.dtype, args.weights, &device)?;
        if !args.json {
            let how = if subject.has_words() { "" } else { ", random weights" };
            writeln!(
                out,
                "{}{how}, {}, {} of matrices, {}, {} threads; rounds of {tokens} tokens",
                subject.name,
                subject.dtype.name(),
                megabytes(subject.model.weight_bytes()),
                args.device().name(),
                std::thread::available_parallelism()?
            )?;
            writeln!(out, "{}", Figures::header())?;
        }
        for case in plan.cases {
            let figures = case.run(&subject, args.device(), args.rounds(&case), tokens)?;
            if args.json {
                writeln!(out, "{}", serde_json::to_string(&figures)?)?;
            } else {
                writeln!(out, "{figures}")?;
            }
            out.flush()?; // an interrupted bench keeps its results
        }
    }
    if !args.json {
        for state in state::of_each_distiller()? {
            writeln!(out, "{state}")?;
        }
    }
    Ok(())
}
