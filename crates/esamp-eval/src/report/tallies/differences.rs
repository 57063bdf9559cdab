//! Differences between arms, paired over problems.

use esamp_programs::failure::Failure;

use super::{
    super::compare::{Gain, bootstrap},
    gather::{Half, Subject},
};
use crate::{arms, metrics::paired_interval, record::Split, tally::Score};

/// A figure of the first `n` completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Right ones.
    Valid,
    /// Different right answers: coverage.
    Distinct,
    /// Different right answers that the model was not trained on.
    New,
    /// Right ones with an answer that the model was trained on.
    Trained,
}

impl Count {
    fn of(self, score: Score) -> f64 {
        match self {
            Self::Valid => score.valid,
            Self::Distinct => score.distinct,
            Self::New => score.new,
            Self::Trained => score.trained,
        }
    }

    /// The figure for each problem.
    pub fn values(self, half: &Half, arm: usize, n: usize) -> Vec<f64> {
        half.of_arm(arm, |tally| self.of(tally.score(n)))
    }

    /// The mean over problems.
    pub fn mean(self, half: &Half, arm: usize, n: usize) -> f64 {
        mean(&self.values(half, arm, n))
    }

    /// The difference between two arms.
    ///
    /// # Errors
    ///
    /// Errors of the bootstrap.
    pub fn gain(
        self,
        half: &Half,
        [arm, other]: [usize; 2],
        n: usize,
    ) -> Result<Option<Gain>, Failure> {
        difference(&self.values(half, arm, n), &self.values(half, other, n))
    }
}

/// The mean of values; not a number without any.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The mean difference with its interval, `None` for fewer than two problems.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn difference(new: &[f64], old: &[f64]) -> Result<Option<Gain>, Failure> {
    let problems = new.len();
    if problems < 2 {
        return Ok(None);
    }
    let interval = paired_interval(new, old, &bootstrap(problems))
        .map_err(|error| Failure::runtime(error, "report this with the records"))?;
    Ok(Some(Gain { interval, problems }))
}

/// The arm of the frontier that another arm is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opponent {
    pub arm: usize,
    /// Whether it was chosen on the development half, and not on the problems that are reported.
    pub on_dev: bool,
    /// Whether it is at least as valid where it was chosen. If no arm of the frontier is, it is the most valid one.
    pub is_as_valid: bool,
}

impl Opponent {
    /// The arm of the frontier with most different right answers among those that are at least as valid as `arm`, on the
    /// development half if there are records of it. `None` without a frontier.
    pub fn of(subject: &Subject, half: &Half, arm: usize) -> Option<Self> {
        let name = &half.arms[arm].name;
        let chosen_on = subject.dev.as_ref().and_then(|dev| Some((dev, dev.arm(name)?)));
        let (on, itself) = chosen_on.unwrap_or((half, arm));
        let n = subject.samples;
        let valid = |arm: usize| Count::Valid.mean(on, arm, n);
        let least = valid(itself);
        let known = |&arm: &usize| arm != itself && half.arm(&on.arms[arm].name).is_some();
        let all: Vec<usize> = frontier(on).into_iter().filter(known).collect();
        let as_valid: Vec<usize> = all.iter().copied().filter(|&arm| valid(arm) >= least).collect();
        let best = |arms: &[usize], by: &dyn Fn(usize) -> f64| {
            arms.iter().copied().max_by(|&a, &b| by(a).total_cmp(&by(b)))
        };
        let chosen = if as_valid.is_empty() {
            best(&all, &valid)
        } else {
            best(&as_valid, &|arm| Count::Distinct.mean(on, arm, n))
        }?;
        Some(Self {
            arm: half.arm(&on.arms[chosen].name)?,
            on_dev: chosen_on.is_some(),
            is_as_valid: !as_valid.is_empty(),
        })
    }

    /// Its name with what has to be known about it.
    pub fn named(self, half: &Half) -> String {
        let name = &half.arms[self.arm].name;
        if self.is_as_valid { name.clone() } else { format!("{name} (none is as valid)") }
    }
}

/// The arms of plain sampling: temperatures and filters.
pub fn frontier(half: &Half) -> Vec<usize> {
    let arms = half.arms.iter().enumerate();
    arms.filter(|(_, arm)| arms::is_plain(&arm.name)).map(|(at, _)| at).collect()
}

/// The numbers of completions at which coverage is reported: 64, 256, 1,024, … and all.
pub fn sizes(samples: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = [64, 256, 1024].into_iter().filter(|&n| n < samples).collect();
    sizes.push(samples);
    sizes
}

/// The name of a half in a sentence.
pub fn half_name(split: Split) -> &'static str {
    match split {
        Split::Dev => "development",
        Split::HeldOut => "held-out",
    }
}
