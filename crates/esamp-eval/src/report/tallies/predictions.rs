//! The predictions of `docs/results/predictions.md` that records of waves can decide.

use esamp_programs::failure::Failure;

use super::{
    super::{
        compare::{Gain, Verdict},
        tables,
    },
    differences::{Count, Opponent, difference, frontier, mean},
    gather::{Half, Subject},
};
use crate::tally::Tally;

/// A primary comparison: an arm's coverage against that of another.
#[derive(Clone, Copy, Debug)]
pub struct Primary {
    pub name: &'static str,
    pub arm: &'static str,
    /// `None`: the frontier's best arm of at least its validity.
    pub against: Option<&'static str>,
    /// Whether more is expected. Otherwise the expectation is refuted by more on all models.
    pub expects_more: bool,
}

/// P1 to P4.
pub const PRIMARY: [Primary; 4] = [
    Primary { name: "P1", arm: "esamp-0.5-open", against: None, expects_more: true },
    Primary { name: "P2", arm: "orthogonal-1-open", against: None, expects_more: true },
    Primary {
        name: "P3",
        arm: "esamp-0.5-open",
        against: Some("frozen-0.5-open"),
        expects_more: true,
    },
    Primary {
        name: "P4",
        arm: "orthogonal-1-open",
        against: Some("elliptical-orthogonal-1-open"),
        expects_more: false,
    },
];
/// The models of the primary comparisons.
pub const MODELS: [&str; 2] = ["circle-peaked", "sibling-peaked"];

/// A primary comparison on one model.
#[derive(Debug)]
pub struct Compared {
    pub against: String,
    pub coverage: Gain,
    pub valid: Gain,
}

impl Primary {
    /// The comparison on held-out problems; `None` if they or its arms were not run.
    ///
    /// # Errors
    ///
    /// Errors of the bootstrap.
    pub fn on(&self, subjects: &[Subject], model: &str) -> Result<Option<Compared>, Failure> {
        let subject = subjects.iter().find(|subject| subject.name == model);
        let found = subject.and_then(|subject| Some((subject, subject.held_out.as_ref()?)));
        let Some((subject, half)) = found else { return Ok(None) };
        let Some(arm) = half.arm(self.arm) else { return Ok(None) };
        let other = match self.against {
            Some(name) => half.arm(name).map(|other| (other, name.to_owned())),
            None => Opponent::of(subject, half, arm).map(|found| {
                let chosen = if found.on_dev { "" } else { ", chosen on the same problems" };
                (found.arm, format!("{}{chosen}", found.named(half)))
            }),
        };
        let Some((other, against)) = other else { return Ok(None) };
        let gain = |count: Count| count.gain(half, [arm, other], subject.samples);
        let both = gain(Count::Distinct)?.zip(gain(Count::Valid)?);
        Ok(both.map(|(coverage, valid)| Compared { against, coverage, valid }))
    }

    /// What the comparison on each of [`MODELS`] says about the expectation.
    pub fn outcome(&self, found: &[Option<Compared>]) -> String {
        let verdicts = found.iter().map(|one| one.as_ref().map(|one| one.coverage.verdict()));
        let of = |wanted: Option<Verdict>| {
            let models = MODELS.iter().zip(verdicts.clone());
            models.filter(|(_, one)| *one == wanted).map(|(name, _)| *name).collect::<Vec<_>>()
        };
        let (missing, few, more) = (of(None), of(Some(Verdict::TooFew)), of(Some(Verdict::More)));
        if !missing.is_empty() {
            return format!("not run yet: {}", missing.join(", "));
        }
        if !few.is_empty() {
            return format!("too few problems: {}", few.join(", "));
        }
        match (self.expects_more, more.len() == MODELS.len(), more.first()) {
            (true, true, _) => "as expected on both".to_owned(),
            (true, false, Some(model)) => format!("as expected on {model} only"),
            (true, false, None) => "**refuted**".to_owned(),
            (false, true, _) => "**refuted**".to_owned(),
            (false, false, Some(model)) => format!("not refuted: more on {model} only"),
            (false, false, None) => "not refuted".to_owned(),
        }
    }
}

/// Another prediction, on one model.
#[derive(Debug)]
pub struct Check {
    pub prediction: &'static str,
    pub found: String,
    pub as_expected: bool,
}

/// The predictions about a model that its records can decide.
///
/// # Errors
///
/// Errors of the bootstrap.
pub fn checks(subject: &Subject, half: &Half) -> Result<Vec<Check>, Failure> {
    let mut checks = Vec::new();
    if subject.name.ends_with("-even") {
        checks.extend(nothing_to_gain(subject, half));
    }
    if subject.name.ends_with("-peaked") {
        checks.extend(repetitions_grow_less(subject, half)?);
        checks.extend(arithmetic(subject, half)?);
        checks.extend(cost(subject, half));
    }
    for arm in ["esamp-paper-0.25", "esamp-0.5", "frozen-0.5"] {
        checks.extend(error(half, arm)?);
    }
    if ["circle", "line"].contains(&subject.task.name.as_str()) {
        checks.extend(hot_start(half));
    }
    Ok(checks)
}

fn nothing_to_gain(subject: &Subject, half: &Half) -> Option<Check> {
    let plain = half.arm("plain-1")?;
    let n = subject.samples;
    let level = |count: Count, arm: usize| count.mean(half, arm, n);
    let gains = (0..half.arms.len()).filter_map(|arm| {
        let gain = level(Count::Distinct, arm) - level(Count::Distinct, plain);
        let less_valid = level(Count::Valid, arm) <= level(Count::Valid, plain);
        (gain > 0.02 && less_valid)
            .then(|| format!("{} {}", half.arms[arm].name, tables::signed(gain, 3)))
    });
    let gains: Vec<String> = gains.collect();
    Some(Check {
        prediction: "no arm has more coverage than `plain-1` by over 0.02 without being more valid",
        as_expected: gains.is_empty(),
        found: if gains.is_empty() { "none has".to_owned() } else { gains.join(", ") },
    })
}

/// How much more of the right completions are repetitions in the last wave than in the first; `None` for one wave, or
/// waves without right completions.
pub fn growth(subject: &Subject, half: &Half, arm: usize) -> Option<Vec<f64>> {
    half.if_all(arm, |tally| {
        let waves = tally.repetitions(subject.wave);
        (waves.len() > 1).then_some(())?;
        Some((*waves.last()?)? - (*waves.first()?)?)
    })
}

fn repetitions_grow_less(subject: &Subject, half: &Half) -> Result<Option<Check>, Failure> {
    let arms = half.arm("esamp-0.5").zip(half.arm("plain-1"));
    let growths = arms
        .and_then(|(esamp, plain)| growth(subject, half, esamp).zip(growth(subject, half, plain)));
    let Some((esamp, plain)) = growths else { return Ok(None) };
    let Some(found) = difference(&esamp, &plain)? else { return Ok(None) };
    let own = mean(&esamp);
    Ok(Some(Check {
        prediction: "`esamp-0.5` repeats itself less in the last wave than in the first, and its repetitions grow by less than \
                     those of `plain-1`",
        found: format!(
            "{} from the first wave to the last, {} to `plain-1`",
            tables::signed(own, 3),
            tables::gain(&found, 3)
        ),
        as_expected: own < 0.0 && found.verdict() == Verdict::Less,
    }))
}

fn arithmetic(subject: &Subject, half: &Half) -> Result<Option<Check>, Failure> {
    let Some((arm, plain)) = half.arm("arithmetic").zip(half.arm("plain-1")) else {
        return Ok(None);
    };
    let n = subject.samples;
    let level = Count::Distinct.mean(half, plain, n);
    let found = Count::Distinct.gain(half, [arm, plain], n)?;
    Ok(found.map(|found| Check {
        prediction: "`arithmetic` covers more than `plain-1`, by less than a tenth",
        as_expected: found.verdict() == Verdict::More && found.interval.estimate < 0.1 * level,
        found: format!("{} on {level:.3}", tables::gain(&found, 3)),
    }))
}

/// Tokens per right answer that is different from the others and new to the model. `None` if there is none.
pub fn tokens_per_new(subject: &Subject, half: &Half, arm: usize) -> Option<f64> {
    let new = Count::New.mean(half, arm, subject.samples) * subject.samples as f64;
    (new > 0.0).then(|| mean(&half.tokens(arm)) / new)
}

fn cost(subject: &Subject, half: &Half) -> Option<Check> {
    let cheapest = frontier(half)
        .into_iter()
        .filter_map(|arm| Some((arm, tokens_per_new(subject, half, arm)?)));
    let (plain, least) = cheapest.min_by(|a, b| a.1.total_cmp(&b.1))?;
    let own = tokens_per_new(subject, half, half.arm("orthogonal-1")?)?;
    Some(Check {
        prediction: "a new right answer takes fewer tokens under `orthogonal-1` than under the frontier's cheapest arm, with \
                     17 % more time per token counted",
        found: format!("{own:.0} and, under `{}`, {least:.0}", half.arms[plain].name),
        as_expected: 1.17 * own < least,
    })
}

/// How much larger the mean relative error is in the last wave than in the first.
pub fn error_growth(half: &Half, arm: usize) -> Option<Vec<f64>> {
    half.if_all(arm, |tally| {
        (tally.waves.len() > 1).then_some(())?;
        let error = |tally: &Tally, at: usize| tally.waves[at].mean_relative_novelty;
        Some(error(tally, tally.waves.len() - 1)? - error(tally, 0)?)
    })
}

fn error(half: &Half, arm: &str) -> Result<Option<Check>, Failure> {
    let growth = half.arm(arm).and_then(|arm| error_growth(half, arm));
    let Some(growth) = growth else { return Ok(None) };
    let never = vec![0.0; growth.len()];
    let falls = arm != "frozen-0.5";
    Ok(difference(&growth, &never)?.map(|found| Check {
        prediction: match arm {
            "esamp-paper-0.25" => "the relative error of `esamp-paper-0.25` falls over the waves",
            "esamp-0.5" => "the relative error of `esamp-0.5` falls over the waves",
            _ => "the relative error of `frozen-0.5` does not fall over the waves",
        },
        found: tables::gain(&found, 3),
        as_expected: (found.verdict() == Verdict::Less) == falls,
    }))
}

/// The same tokens on how many problems?
fn hot_start(half: &Half) -> Option<Check> {
    let hashes = |arm: usize| -> Vec<&str> {
        half.tallies(arm).map(|tally| tally.tokens_sha256.as_str()).collect()
    };
    let [hot, own] = ["fire-esamp-0.5", "esamp-0.5"].map(|name| half.arm(name).map(hashes));
    let (hot, own) = hot.zip(own)?;
    let same = hot.iter().zip(&own).filter(|(hot, own)| hot == own).count();
    Some(Check {
        prediction: "a hot first token changes nothing, because the first token is certain",
        found: format!("the same tokens as `esamp-0.5` in {same} of {} runs", own.len()),
        as_expected: same == own.len(),
    })
}
