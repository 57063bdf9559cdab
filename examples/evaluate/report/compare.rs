//! Differences between arms, with intervals: at the same settings, at equal perplexity and at equal entropy.

use esamp::metrics::{BootstrapConfig, Interval, MetricError, bootstrap_interval};

use super::measures::{Measure, TaskScores};
use crate::failure::Failure;

/// What two ways to sample have in common where they are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// The candidates and the temperature of the base arm.
    Same,
    /// The mean surprisal of a token under the model, and thereby the perplexity.
    EqualPerplexity,
    /// The mean entropy of what tokens are drawn from.
    EqualEntropy,
}

impl At {
    /// The measure that is made equal.
    fn equal(self) -> Option<Measure> {
        match self {
            Self::Same => None,
            Self::EqualPerplexity => Some(Measure::Surprisal),
            Self::EqualEntropy => Some(Measure::Entropy),
        }
    }
}

/// Who is compared with whom.
#[derive(Clone, Debug)]
pub struct Opponents {
    /// The arm of [`At::Same`].
    pub base: usize,
    /// Arms that differ in their temperature only: what plain sampling gives at any perplexity or entropy lies on the
    /// broken line through their means.
    pub frontier: Vec<usize>,
}

/// What an arm has more of a measure than its opponent, with its 95 % interval over problems. `None` where the frontier
/// does not reach: its line is not drawn beyond its ends.
///
/// Resamples draw problems, which all arms have in common; on each the frontier's line is drawn anew, so the interval
/// includes how well that line is known. In a resample the arm may lie a little beyond an end; there the last stretch of
/// the line is followed.
///
/// # Errors
///
/// What the bootstrap says.
pub fn gain(
    scores: &TaskScores,
    arm: usize,
    measure: Measure,
    at: At,
    opponents: &Opponents,
    config: &BootstrapConfig,
) -> Result<Option<Interval>, Failure> {
    let Some(values) = scores.measures.get(&measure) else {
        return Ok(None);
    };
    let Some(equal) = at.equal() else {
        let (new, old) = (&values.of_arm[arm], &values.of_arm[opponents.base]);
        let difference = |picks: &[usize]| mean(new, picks) - mean(old, picks);
        return interval(values.problems.len(), difference, config).map(Some);
    };
    let Some(by) = scores.measures.get(&equal) else {
        return Ok(None);
    };
    // The measure may lack some problems, in which completions are too short for it.
    let places: Vec<usize> = by
        .problems
        .iter()
        .enumerate()
        .filter_map(|(place, problem)| values.problems.contains(problem).then_some(place))
        .collect();
    let by: Vec<Vec<f64>> =
        by.of_arm.iter().map(|all| places.iter().map(|&place| all[place]).collect()).collect();
    let line = |picks: &[usize]| {
        let point = |&arm: &usize| (mean(&by[arm], picks), mean(&values.of_arm[arm], picks));
        let mut line: Vec<(f64, f64)> = opponents.frontier.iter().map(point).collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        line
    };
    let all: Vec<usize> = (0..values.problems.len()).collect();
    let (whole, x) = (line(&all), mean(&by[arm], &all));
    let reached = whole.len() >= 2
        && whole.first().is_some_and(|first| first.0 <= x)
        && whole.last().is_some_and(|last| x <= last.0);
    if !reached {
        return Ok(None);
    }
    let difference = |picks: &[usize]| {
        mean(&values.of_arm[arm], picks) - on_line(&line(picks), mean(&by[arm], picks))
    };
    interval(values.problems.len(), difference, config).map(Some)
}

/// The height of a broken line at `x`; its first or last stretch goes on beyond its ends. At least two points, by
/// ascending x.
fn on_line(points: &[(f64, f64)], x: f64) -> f64 {
    let beyond = points.iter().position(|point| point.0 >= x).unwrap_or(points.len() - 1);
    let (left, right) = (points[beyond.max(1) - 1], points[beyond.max(1)]);
    let width = right.0 - left.0;
    // Two temperatures with the very same abscissa: what lies between is their mean.
    let share = if width > 0.0 { (x - left.0) / width } else { 0.5 };
    left.1 + share * (right.1 - left.1)
}

fn mean(values: &[f64], picks: &[usize]) -> f64 {
    picks.iter().map(|&pick| values[pick]).sum::<f64>() / picks.len() as f64
}

fn interval(
    problems: usize,
    statistic: impl FnMut(&[usize]) -> f64,
    config: &BootstrapConfig,
) -> Result<Interval, Failure> {
    let found: Result<Interval, MetricError> = bootstrap_interval(problems, statistic, config);
    found.map_err(|error| Failure::runtime(error, "report this with the records"))
}

/// What an interval says of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    More,
    Less,
    NoDifference,
}

/// Whether 0 is ruled out, and on which side.
pub fn verdict(interval: &Interval) -> Verdict {
    match interval.excludes(0.0) {
        true if interval.estimate > 0.0 => Verdict::More,
        true => Verdict::Less,
        false => Verdict::NoDifference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_line_is_followed_between_its_points_and_beyond() {
        let line = [(1.0, 10.0), (2.0, 20.0), (4.0, 0.0)];
        for (x, y) in [
            (1.0, 10.0),
            (1.5, 15.0),
            (2.0, 20.0),
            (3.0, 10.0),
            (4.0, 0.0),
            (0.5, 5.0),
            (5.0, -10.0),
        ] {
            assert_eq!(on_line(&line, x), y, "at {x}");
        }
        assert_eq!(on_line(&[(1.0, 2.0), (1.0, 4.0)], 1.0), 3.0);
    }
}
