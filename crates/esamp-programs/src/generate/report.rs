//! The run as one JSON object.

use std::io::{self, Write};

use crate::failure::{End, Failure};
use esamp::{Counters, DecodeStats, SamplerConfig, Sampling, TokenId};
use serde::Serialize;

use super::{
    Model,
    args::Args,
    arms::{Arm, failure_of},
};

#[derive(Serialize)]
struct Report<'a> {
    model: &'a str,
    /// Bytes of the model's matrices in memory; null on llama.cpp.
    weight_bytes: Option<usize>,
    prompt: &'a str,
    prompt_tokens: usize,
    seed: u64,
    /// Beta of the last arm.
    beta: f32,
    arms: Vec<ArmReport<'a>>,
}

#[derive(Serialize)]
struct ArmReport<'a> {
    name: &'a str,
    /// The settings, in the form that `--config` reads.
    sampling: &'a Sampling,
    sampler: &'a SamplerConfig,
    samples: Vec<Sample<'a>>,
    tokens_per_second: Option<f64>,
    mean_novelty: Option<f64>,
    mean_loss: Option<f64>,
    counters: &'a Counters,
    stats: &'a DecodeStats,
}

#[derive(Serialize)]
struct Sample<'a> {
    text: &'a str,
    tokens: Vec<TokenId>,
    finish: &'static str,
    /// Why the completion failed, if it did.
    error: Option<String>,
}

/// Prints the report on standard output.
pub fn print<M: Model>(
    (model, weight_bytes): (&str, Option<usize>),
    args: &Args,
    prompt_tokens: usize,
    arms: &[Arm<'_, M>],
) -> Result<(), End> {
    let reports = arms.iter().map(|arm| ArmReport {
        name: &arm.settings.name,
        sampling: &arm.settings.sampling,
        sampler: arm.sampler(),
        samples: arm
            .completions
            .iter()
            .map(|completion| Sample {
                text: completion.text.as_deref().unwrap_or_default(),
                tokens: completion.tokens(),
                finish: completion.finish.name(),
                error: failure_of(completion),
            })
            .collect(),
        tokens_per_second: arm.stats().tokens_per_second(),
        mean_novelty: arm.counters().mean_novelty(),
        mean_loss: arm.counters().mean_loss(),
        counters: arm.counters(),
        stats: arm.stats(),
    });
    let report = Report {
        model,
        weight_bytes,
        prompt: &args.prompt,
        prompt_tokens,
        seed: args.seed,
        beta: arms.last().map_or(0.0, |arm| arm.settings.sampling.beta),
        arms: reports.collect(),
    };
    let text = serde_json::to_string(&report)
        .map_err(|error| Failure::runtime(error, "report this with the command line"))?;
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}
