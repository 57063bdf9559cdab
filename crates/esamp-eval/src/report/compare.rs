//! Differences between arms with intervals: at the same settings, at equal perplexity and at equal entropy.

use esamp_programs::failure::Failure;
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

use super::measures::{Measure, Scores, TaskScores};
use crate::metrics::{BootstrapConfig, Interval, MetricError, bootstrap_interval};

/// What an arm is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum At {
    /// Plain sampling at temperature 1, the base.
    Base,
    /// Plain sampling at the temperature that gives the same mean surprisal per token under the model, and
    /// therefore the same perplexity.
    EqualPerplexity,
    /// Plain sampling at the temperature that gives the same mean entropy of the sampling distribution.
    EqualEntropy,
    /// Plain sampling at the temperature that scores best on these very problems: harder to beat than a
    /// temperature chosen beforehand.
    BestTemperature,
    /// Plain sampling at the temperature that gives the same share of right answers, [`Measure::Pass`] of 1.
    EqualValidity,
}

impl At {
    /// The comparisons of every measure.
    const ALL: [Self; 4] =
        [Self::Base, Self::EqualPerplexity, Self::EqualEntropy, Self::BestTemperature];

    /// The comparisons of a measure. Different right answers are compared at equal validity too: a lower temperature
    /// gives more right answers and fewer different ones.
    pub fn of(measure: Measure) -> Vec<Self> {
        let mut all = Self::ALL.to_vec();
        if measure == Measure::Solutions {
            all.push(Self::EqualValidity);
        }
        all
    }

    /// The heading of a table's column, given the name of the base.
    pub fn heading(self, base: &str) -> String {
        match self {
            Self::Base => format!("vs {base}"),
            Self::EqualPerplexity => "at equal perplexity".to_owned(),
            Self::EqualEntropy => "at equal entropy".to_owned(),
            Self::BestTemperature => "vs the best temperature".to_owned(),
            Self::EqualValidity => "at equal validity".to_owned(),
        }
    }
}

/// The confidence level of intervals.
pub const LEVEL: f64 = 0.95;
/// With fewer problems no conclusion is drawn from an interval, however narrow.
pub const FEWEST: usize = 10;

/// Bootstrap settings for a number of problems.
///
/// A percentile interval over few problems is too narrow: it ignores that the standard error is itself an
/// estimate, and a factor `√((n − 1)/n)`. Its tails are therefore expanded to those of a t interval
/// (Hesterberg, *What Teachers Should Know about the Bootstrap*, arXiv 1411.5279, the expanded percentile
/// interval).
pub fn bootstrap(problems: usize) -> BootstrapConfig {
    /// The resamples of two or three problems have no wider tails.
    const WIDEST: f64 = 0.9999;
    let n = problems as f64;
    let student = StudentsT::new(0.0, 1.0, (n - 1.0).max(1.0));
    let tail = student.ok().zip(Normal::new(0.0, 1.0).ok()).map(|(student, normal)| {
        let t = student.inverse_cdf((1.0 + LEVEL) / 2.0);
        normal.cdf(-t * (n / (n - 1.0).max(1.0)).sqrt())
    });
    let level = tail.map_or(WIDEST, |tail| (1.0 - 2.0 * tail).min(WIDEST));
    BootstrapConfig::default().with_level(level)
}

/// A difference between two arms.
#[derive(Clone, Copy, Debug)]
pub struct Gain {
    pub interval: Interval,
    /// The problems it is computed on.
    pub problems: usize,
}

/// The conclusion from a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The arm has more; the interval excludes 0.
    More,
    /// The arm has less; the interval excludes 0.
    Less,
    /// The interval includes 0. This does not show that there is no difference.
    NoDifference,
    /// Too few problems for a conclusion: see [`FEWEST`].
    TooFew,
}

impl Gain {
    /// The conclusion from the interval.
    pub fn verdict(&self) -> Verdict {
        match (self.problems < FEWEST, self.interval.excludes(0.0)) {
            (true, _) => Verdict::TooFew,
            (false, true) if self.interval.estimate > 0.0 => Verdict::More,
            (false, true) => Verdict::Less,
            (false, false) => Verdict::NoDifference,
        }
    }
}

/// The arms to compare with.
#[derive(Clone, Debug)]
pub struct Opponents {
    /// The arm of [`At::Base`].
    pub base: usize,
    /// Arms that differ only in temperature. What plain sampling gives at any perplexity or entropy is read
    /// from the piecewise linear curve through their means.
    pub frontier: Vec<usize>,
}

/// The difference in a measure between an arm and its opponent. `None` if the frontier does not cover the arm: the
/// curve is not extrapolated.
///
/// Problems are resampled for all arms together, and the frontier is recomputed for each resample, so the interval
/// includes the uncertainty of the frontier. In a resample the arm may lie slightly beyond an end; there the last
/// segment is extended.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn gain(
    scores: &TaskScores,
    arm: usize,
    measure: Measure,
    at: At,
    opponents: &Opponents,
) -> Result<Option<Gain>, Failure> {
    let Some(values) = scores.measures.get(&measure) else {
        return Ok(None);
    };
    let (equal, other) = match at {
        At::Base => (None, Some(opponents.base)),
        At::BestTemperature => (None, best_temperature(scores, measure, opponents)),
        At::EqualPerplexity => (Some(Measure::Surprisal), None),
        At::EqualEntropy => (Some(Measure::Entropy), None),
        At::EqualValidity => (Some(Measure::Pass(1)), None),
    };
    if let Some(other) = other {
        let (new, old) = (&values.of_arm[arm], &values.of_arm[other]);
        let difference = |picks: &[usize]| mean(new, picks) - mean(old, picks);
        return known(values.problems.len(), difference).map(Some);
    }
    let line = equal.and_then(|equal| Frontier::of(scores, measure, equal, opponents));
    match line.filter(|line| line.reaches(arm)) {
        Some(line) => known(line.problems, |picks| line.excess(arm, picks)).map(Some),
        None => Ok(None),
    }
}

/// The arm of the frontier with the best mean of a measure.
pub fn best_temperature(
    scores: &TaskScores,
    measure: Measure,
    opponents: &Opponents,
) -> Option<usize> {
    let values = scores.measures.get(&measure)?;
    let all: Vec<usize> = (0..values.problems.len()).collect();
    let sign = if measure.less_is_better() { -1.0 } else { 1.0 };
    let of = |&arm: &usize| (arm, sign * mean(&values.of_arm[arm], &all));
    opponents.frontier.iter().map(of).max_by(|a, b| a.1.total_cmp(&b.1)).map(|best| best.0)
}

/// How many more tokens, as a share, an arm needs for a different right answer than another: the ratio of the two
/// quotients of mean tokens and mean solutions, minus 1. `None` without solutions of both.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn token_price(scores: &TaskScores, [arm, other]: [usize; 2]) -> Result<Option<Gain>, Failure> {
    let measures = [Measure::Tokens, Measure::Solutions].map(|one| scores.measures.get(&one));
    let [Some(tokens), Some(solutions)] = measures else {
        return Ok(None);
    };
    // Both are defined on every problem.
    let problems = solutions.problems.len();
    let all: Vec<usize> = (0..problems).collect();
    if [arm, other].iter().any(|&one| mean(&solutions.of_arm[one], &all) == 0.0) {
        return Ok(None);
    }
    let price = |arm: usize, picks: &[usize]| {
        // A resample without a solution counts as one with a hundredth of a solution for each problem.
        mean(&tokens.of_arm[arm], picks) / mean(&solutions.of_arm[arm], picks).max(0.01)
    };
    known(problems, |picks| price(arm, picks) / price(other, picks) - 1.0).map(Some)
}

/// How much farther an arm lies above the frontier, at its own perplexity, than another arm does at its own. `None`
/// if the frontier does not cover one of the two.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn rivalry(
    scores: &TaskScores,
    [arm, rival]: [usize; 2],
    measure: Measure,
    opponents: &Opponents,
) -> Result<Option<Gain>, Failure> {
    let line = Frontier::of(scores, measure, Measure::Surprisal, opponents);
    let Some(line) = line.filter(|line| line.reaches(arm) && line.reaches(rival)) else {
        return Ok(None);
    };
    let difference = |picks: &[usize]| line.excess(arm, picks) - line.excess(rival, picks);
    known(line.problems, difference).map(Some)
}

/// A measure of plain sampling as a function of another measure.
struct Frontier<'s> {
    /// `[arm][problem]` of the measure. `by` has the same of the measure that is held equal.
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
        // A measure may lack problems with completions that are too short for it.
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

    /// The points of the curve on some problems, from left to right.
    fn points(&self, picks: &[usize]) -> Vec<(f64, f64)> {
        let point = |&arm: &usize| (mean(&self.by[arm], picks), mean(&self.values[arm], picks));
        let mut points: Vec<(f64, f64)> = self.arms.iter().map(point).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        points
    }

    /// Whether an arm lies between the ends of the curve.
    fn reaches(&self, arm: usize) -> bool {
        let all: Vec<usize> = (0..self.problems).collect();
        let (points, x) = (self.points(&all), mean(&self.by[arm], &all));
        points.len() >= 2
            && points.first().is_some_and(|first| first.0 <= x)
            && points.last().is_some_and(|last| x <= last.0)
    }

    /// How far an arm lies above the curve at its own abscissa.
    fn excess(&self, arm: usize, picks: &[usize]) -> f64 {
        mean(&self.values[arm], picks) - on_line(&self.points(picks), mean(&self.by[arm], picks))
    }
}

/// The height of a piecewise linear curve at `x`. Its first and last segments are extended beyond its ends. Needs at
/// least two points, by ascending x.
fn on_line(points: &[(f64, f64)], x: f64) -> f64 {
    let beyond = points.iter().position(|point| point.0 >= x).unwrap_or(points.len() - 1);
    let (left, right) = (points[beyond.max(1) - 1], points[beyond.max(1)]);
    let width = right.0 - left.0;
    // For two temperatures with the same abscissa, take their mean.
    let share = if width > 0.0 { (x - left.0) / width } else { 0.5 };
    left.1 + share * (right.1 - left.1)
}

fn mean(values: &[f64], picks: &[usize]) -> f64 {
    picks.iter().map(|&pick| values[pick]).sum::<f64>() / picks.len() as f64
}

fn known(problems: usize, statistic: impl FnMut(&[usize]) -> f64) -> Result<Gain, Failure> {
    let found: Result<Interval, MetricError> =
        bootstrap_interval(problems, statistic, &bootstrap(problems));
    let interval =
        found.map_err(|error| Failure::runtime(error, "report this with the records"))?;
    Ok(Gain { interval, problems })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piecewise_linear_curve_is_interpolated_and_extended() {
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

    #[test]
    fn tails_are_those_of_a_t_interval() {
        // t(29) = 2.04523, t(7) = 2.36462, from tables; times √(30/29) and √(8/7) of the normal distribution.
        for (problems, level) in [(30, 0.96249), (8, 0.98852), (2, 0.9999), (1_000_000, 0.95)] {
            let found = bootstrap(problems).level;
            assert!((found - level).abs() < 2e-5, "{problems}: {found}");
        }
    }

    #[test]
    fn few_problems_decide_nothing() {
        let interval = Interval { estimate: 1.0, low: 0.5, high: 1.5 };
        let verdict = |problems| Gain { interval, problems }.verdict();
        assert_eq!([9, 10].map(verdict), [Verdict::TooFew, Verdict::More]);
        let less = Interval { estimate: -1.0, low: -1.5, high: -0.5 };
        assert_eq!(Gain { interval: less, problems: 30 }.verdict(), Verdict::Less);
        let touching = Interval { estimate: 1.0, low: 0.0, high: 1.5 };
        assert_eq!(Gain { interval: touching, problems: 30 }.verdict(), Verdict::NoDifference);
    }
}
