//! How the cost of a step grows: one size at a time changes, the others stay.
//!
//! ```sh
//! cargo bench --bench scale                              # all sizes, both distillers: five minutes on two cores
//! cargo bench --bench scale -- --only prompts            # one size
//! cargo bench --bench scale -- --only rows --most 64     # up to 64 rows
//! ```
//!
//! Models have random packed weights and few layers. Each line gives the milliseconds of a step without ESamp, those
//! that ESamp adds to its stages, and after each the least that this machine could need: the counted multiplications at the speed of
//! a large matrix product, or the counted bytes at the speed of a large sum, whichever takes longer. Both speeds are
//! measured first. The last lines fit the exponent `a` of `milliseconds ∝ sizeᵃ` by least squares of the logarithms.

mod peak;

use std::{env, error::Error, io::Write, process::Command};

use clap::{Parser, ValueEnum};
use esamp::{
    Sharing,
    llama::{LlamaConfig, RopeScaling},
};

use crate::overhead::{
    device::DeviceName,
    floor::Cost,
    run::{Case, DistillerName, Figures, FilterName},
    subject::Subject,
};
use peak::Peak;

/// Measure how the cost of a step grows with the size of the model and of the batch.
#[derive(Debug, Parser)]
pub struct Args {
    /// Change only this size.
    #[arg(long, value_enum)]
    only: Option<Size>,
    /// The greatest value of it.
    #[arg(long, requires = "only")]
    most: Option<usize>,
    /// Rounds per point; the median is printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// New tokens per completion and round, at least 3.
    #[arg(long, default_value_t = 10)]
    tokens: usize,
    /// Measure the point that all sizes have in common, and nothing else.
    #[arg(long, hide = true)]
    common: bool,
    /// Passed by cargo bench.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Size {
    /// Width of the model; all else is in proportion.
    DModel,
    /// Completions of one prompt.
    Rows,
    /// Prompts of 64 rows together, each with a distiller of its own.
    Prompts,
    Vocabulary,
    /// Threads of the process.
    Threads,
}

impl Size {
    const ALL: [Self; 5] =
        [Self::DModel, Self::Rows, Self::Prompts, Self::Vocabulary, Self::Threads];

    fn name(self) -> &'static str {
        match self {
            Self::DModel => "d_model",
            Self::Rows => "rows",
            Self::Prompts => "prompts",
            Self::Vocabulary => "vocabulary",
            Self::Threads => "threads",
        }
    }

    fn values(self) -> &'static [usize] {
        match self {
            Self::DModel => &[576, 1024, 2048, 4096],
            Self::Rows => &[1, 4, 16, 64, 256],
            Self::Prompts => &[1, 4, 16, 64],
            Self::Vocabulary => &[32_768, 65_536, 131_072, 262_144],
            Self::Threads => &[1, 2, 4, 8, 16],
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
struct Point {
    d_model: usize,
    prompts: usize,
    completions: usize,
    vocabulary: usize,
}

impl Point {
    /// The point that all sizes but `prompts` have in common.
    const COMMON: Self = Self { d_model: 1024, prompts: 1, completions: 16, vocabulary: 32_768 };

    fn with(size: Size, value: usize) -> Self {
        let common = Self::COMMON;
        match size {
            Size::DModel => Self { d_model: value, ..common },
            Size::Rows => Self { completions: value, ..common },
            Size::Prompts => Self { prompts: value, completions: 64 / value, ..common },
            Size::Vocabulary => Self { vocabulary: value, ..common },
            Size::Threads => common,
        }
    }

    /// Four layers in the proportions of SmolLM2.
    fn shape(self) -> LlamaConfig {
        const LAYERS: usize = 4;
        const HEAD: usize = 64;
        let heads = self.d_model / HEAD;
        let of_kv_head = if heads.is_multiple_of(3) { 3 } else { 4 };
        LlamaConfig::new(
            self.d_model,
            8 * self.d_model / 3 / 32 * 32,
            LAYERS,
            heads,
            self.vocabulary,
        )
        .with_heads(heads / of_kv_head, HEAD)
        .with_context_length(2048)
        .with_rope(1e5, RopeScaling::None)
        .with_tied_embeddings()
    }

    fn figures(
        self,
        subject: &Subject,
        distiller: DistillerName,
        args: &Args,
    ) -> Result<Figures, Box<dyn Error>> {
        let case = Case {
            prompts: self.prompts,
            completions: self.completions,
            filter: FilterName::MinP,
            distiller,
            beta: 0.25,
            sharing: Sharing::PerPrompt,
            background: false,
            whole_logits: false,
            in_turns: true,
        };
        case.run(subject, DeviceName::Flex, args.rounds.max(1), args.tokens.max(3))
    }
}

const DISTILLERS: [DistillerName; 2] = [DistillerName::LowRank, DistillerName::SwiGlu];

/// Runs the bench and writes each result as soon as it is measured.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let peak = Peak::measure()?;
    if args.common {
        let (point, threads) = (Point::COMMON, rayon::current_num_threads());
        let subject = Subject::packed("random", point.shape())?;
        for distiller in DISTILLERS {
            let figures = point.figures(&subject, distiller, args)?;
            writeln!(out, "{}", line(Size::Threads, threads, distiller, &figures, &peak))?;
        }
        return Ok(());
    }
    writeln!(out, "{peak}; {} threads, packed weights", rayon::current_num_threads())?;
    for size in Size::ALL {
        if args.only.is_some_and(|only| only != size) {
            continue;
        }
        let values = size.values().iter().copied();
        let values: Vec<_> = values.filter(|&value| value <= args.most.unwrap_or(value)).collect();
        if size == Size::Threads {
            for_each_number_of_threads(&values, args, out)?;
            continue;
        }
        let mut grows = [const { Vec::new() }; 2];
        let mut plain = Vec::new();
        for value in values {
            let point = Point::with(size, value);
            let subject = Subject::packed("random", point.shape())?;
            for (distiller, grows) in DISTILLERS.into_iter().zip(&mut grows) {
                let figures = point.figures(&subject, distiller, args)?;
                writeln!(out, "{}", line(size, value, distiller, &figures, &peak))?;
                out.flush()?; // an interrupted bench keeps its results
                grows.push((value as f64, figures.extra_ms()));
                if distiller == DistillerName::LowRank {
                    plain.push((value as f64, figures.plain_ms()));
                }
            }
        }
        writeln!(out, "{}: plain ∝ {}", size.name(), exponent(&plain))?;
        for (distiller, grows) in DISTILLERS.into_iter().zip(&grows) {
            writeln!(out, "{}: {} ∝ {}", size.name(), distiller.name(), exponent(grows))?;
        }
    }
    Ok(())
}

/// The number of threads is decided when a process starts, so each has a process of its own.
fn for_each_number_of_threads(
    values: &[usize],
    args: &Args,
    out: &mut dyn Write,
) -> Result<(), Box<dyn Error>> {
    let cores = std::thread::available_parallelism()?.get();
    for threads in values.iter().filter(|&&threads| threads <= cores) {
        let (rounds, tokens) = (args.rounds.to_string(), args.tokens.to_string());
        let output = Command::new(env::current_exe()?)
            .args(["--common", "--rounds", &rounds, "--tokens", &tokens])
            .env("RAYON_NUM_THREADS", threads.to_string())
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{threads} threads: {error}").into());
        }
        out.write_all(&output.stdout)?;
        out.flush()?;
    }
    Ok(())
}

fn line(
    size: Size,
    value: usize,
    distiller: DistillerName,
    figures: &Figures,
    peak: &Peak,
) -> String {
    let work = figures.work();
    let least = |cost: Cost| peak.least_ms(cost);
    format!(
        "{:<10} {value:>7}  plain {:>8.2} ms (least {:>8.2})  {:<14} adds {:>8.2} ms (least {:>7.2})  ratio {:.3}",
        size.name(),
        figures.plain_ms(),
        least(work.model),
        distiller.name(),
        figures.extra_ms(),
        least(work.extra),
        figures.plain_ms() / (figures.plain_ms() + figures.extra_ms()),
    )
}

/// The exponent of a power law through the points, by least squares of the logarithms; `?` if it is not defined.
fn exponent(points: &[(f64, f64)]) -> String {
    let logs: Vec<_> =
        points.iter().filter(|(_, ms)| *ms > 0.0).map(|(size, ms)| (size.ln(), ms.ln())).collect();
    let count = logs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| logs.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let above: f64 = logs.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let below: f64 = logs.iter().map(|point| (point.0 - x).powi(2)).sum();
    if logs.len() < 2 { "?".to_owned() } else { format!("size^{:.2}", above / below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exponent_is_that_of_the_power_law() {
        let points = [1.0, 2.0, 5.0, 9.0].map(|size: f64| (size, 3.0 * size.powf(1.5)));
        assert_eq!(exponent(&points), "size^1.50");
        assert_eq!(exponent(&points[..1]), "?");
        assert_eq!(exponent(&[(1.0, -1.0), (2.0, 1.0)]), "?");
    }

    #[test]
    fn every_shape_can_be_packed_and_has_the_size_it_is_for() {
        for size in Size::ALL {
            for &value in size.values() {
                let point = Point::with(size, value);
                let shape = point.shape();
                assert!(
                    shape.d_hidden.is_multiple_of(32)
                        && shape.n_heads.is_multiple_of(shape.n_kv_heads)
                );
                let rows = point.prompts * point.completions;
                let got = match size {
                    Size::DModel => shape.d_model,
                    Size::Rows => rows,
                    Size::Prompts => point.prompts * usize::from(rows == 64),
                    Size::Vocabulary => shape.vocab_size,
                    Size::Threads => value,
                };
                assert_eq!(got, value);
            }
        }
    }
}
