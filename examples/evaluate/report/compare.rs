//! Differences between arms, with intervals: at the same settings, at equal perplexity and at equal entropy.

use esamp::metrics::{BootstrapConfig, Interval, MetricError, bootstrap_interval};

use super::measures::{Measure, Scores, TaskScores};
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
    let Some(line) = Frontier::of(scores, measure, equal, opponents) else {
        return Ok(None);
    };
    if !line.reaches(arm) {
        return Ok(None);
    }
    interval(line.problems, |picks| line.excess(arm, picks), config).map(Some)
}

/// How much farther an arm lies above the frontier, at its own perplexity, than another one does at its own. `None` where
/// the frontier does not reach one of the two.
///
/// # Errors
///
/// What the bootstrap says.
pub fn rivalry(
    scores: &TaskScores,
    [arm, rival]: [usize; 2],
    measure: Measure,
    opponents: &Opponents,
    config: &BootstrapConfig,
) -> Result<Option<Interval>, Failure> {
    let line = Frontier::of(scores, measure, Measure::Surprisal, opponents);
    let Some(line) = line.filter(|line| line.reaches(arm) && line.reaches(rival)) else {
        return Ok(None);
    };
    let difference = |picks: &[usize]| line.excess(arm, picks) - line.excess(rival, picks);
    interval(line.problems, difference, config).map(Some)
}

/// What plain sampling has of a measure, by what it has of another one.
struct Frontier<'s> {
    /// `[arm][problem]` of the measure, and of the one that is made equal.
    values: Vec<Vec<f64>>,
    by: Vec<Vec<f64>>,
    arms: &'s [usize],
    problems: usize,
}

impl<'s> Frontier<'s> {
    fn of(
        scores: &TaskScores,
        measure: Measure,
        equal: Measure,
        opponents: &'s Opponents,
    ) -> Option<Self> {
        let (values, by) = (scores.measures.get(&measure)?, scores.measures.get(&equal)?);
        // A measure may lack some problems, in which completions are too short for it.
        let shared: Vec<usize> = values
            .problems
            .iter()
            .copied()
            .filter(|problem| by.problems.contains(problem))
            .collect();
        let on_shared = |scores: &Scores| -> Vec<Vec<f64>> {
            let places: Vec<usize> = shared
                .iter()
                .filter_map(|problem| scores.problems.iter().position(|one| one == problem))
                .collect();
            let of_arm = |all: &Vec<f64>| places.iter().map(|&place| all[place]).collect();
            scores.of_arm.iter().map(of_arm).collect()
        };
        let (values, by) = (on_shared(values), on_shared(by));
        Some(Self { values, by, arms: &opponents.frontier, problems: shared.len() })
    }

    /// Its points on some problems, from left to right.
    fn points(&self, picks: &[usize]) -> Vec<(f64, f64)> {
        let point = |&arm: &usize| (mean(&self.by[arm], picks), mean(&self.values[arm], picks));
        let mut points: Vec<(f64, f64)> = self.arms.iter().map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// Whether an arm lies between its ends.
    fn reaches(&self, arm: usize) -> bool {
        let all: Vec<usize> = (0..self.problems).collect();
        let (points, x) = (self.points(&all), mean(&self.by[arm], &all));
        points.len() >= 2
            && points.first().is_some_and(|first| first.0 <= x)
            && points.last().is_some_and(|last| x <= last.0)
    }

    /// What an arm has more than the frontier where it lies.
    fn excess(&self, arm: usize, picks: &[usize]) -> f64 {
        mean(&self.values[arm], picks) - on_line(&self.points(picks), mean(&self.by[arm], picks))
    }
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
