//! The entropy-matched control: the temperature at which plain min-p has the same mean entropy as an arm.

use esamp::CausalLm;
use esamp_programs::failure::Failure;

use crate::{
    arms::min_p_at,
    plan::units,
    record::{ArmRecord, Header, ProblemRecord},
    run::{Subject, run_unit},
    tasks::Problem,
};

/// A temperature and the mean entropy of min-p at it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub temperature: f32,
    pub entropy: f64,
}

/// The result of the search.
#[derive(Clone, Debug, PartialEq)]
pub struct Matched {
    /// Mean entropy per token of the arm.
    pub target: f64,
    /// All points tried, in order; the last one is the answer.
    pub tried: Vec<Point>,
}

/// The range of temperatures to search.
pub const RANGE: [f32; 2] = [0.2, 2.0];
/// Maximum number of halvings; the last interval is about a hundredth wide.
const HALVINGS: usize = 8;

/// Bisects the range of temperatures. Entropy grows with the temperature.
///
/// # Errors
///
/// An entropy that no temperature in the range gives, and the errors of `entropy_at`.
pub fn halve(
    target: f64,
    mut entropy_at: impl FnMut(f32) -> Result<f64, Failure>,
) -> Result<Vec<Point>, Failure> {
    let [mut low, mut high] = RANGE;
    let mut tried = Vec::new();
    for _ in 0..HALVINGS {
        // Rounded to hundredths, as in the names of arms.
        let temperature = ((low + high) * 50.0).round() / 100.0;
        let entropy = entropy_at(temperature)?;
        tried.push(Point { temperature, entropy });
        if entropy < target {
            low = temperature;
        } else {
            high = temperature;
        }
        if high - low < 0.015 {
            break;
        }
    }
    let best = tried
        .iter()
        .copied()
        .min_by(|a, b| (a.entropy - target).abs().total_cmp(&(b.entropy - target).abs()));
    let ends = RANGE.map(|end| (best.map_or(f32::NAN, |best| best.temperature) - end).abs());
    match best {
        Some(best) if ends.iter().all(|&distance| distance > 0.02) => {
            tried.push(best);
            Ok(tried)
        }
        _ => Err(Failure::new(
            format!(
                "--match-entropy: expected an entropy that min-p has between T {} and T {}, got {target}",
                RANGE[0], RANGE[1]
            ),
            "this arm has no entropy-matched control",
        )),
    }
}

/// Matches min-p to an arm on the problems of a header: all tasks together, seed by seed.
///
/// # Errors
///
/// The errors of [`halve`] and of a run.
pub fn match_entropy<M: CausalLm>(
    subject: &Subject<'_, M>,
    header: &Header,
    problems: &[Vec<Problem>],
    arm: &ArmRecord,
    mut after: impl FnMut(&ArmRecord, f64),
) -> Result<Matched, Failure> {
    let mut entropy_of = |arm: &ArmRecord| {
        let header = Header { arms: vec![arm.clone()], token_arm: None, ..header.clone() };
        let mut records = Vec::new();
        for unit in units(&header) {
            records.extend(run_unit(subject, &header, &unit, &problems[unit.task])?);
        }
        let entropy = mean_entropy(&records);
        after(arm, entropy);
        Ok(entropy)
    };
    let target = entropy_of(arm)?;
    let tried = halve(target, |temperature| entropy_of(&min_p_at(temperature)))?;
    Ok(Matched { target, tried })
}

/// Mean entropy of the sampling distribution, over all tokens with equal weight.
pub fn mean_entropy(records: &[ProblemRecord]) -> f64 {
    let completions = records.iter().flat_map(|record| &record.completions);
    let (sum, count) = completions.fold((0.0, 0.0), |(sum, count), completion| {
        let tokens = completion.tokens.len() as f64;
        (sum + completion.mean_entropy * tokens, count + tokens)
    });
    sum / count
}
