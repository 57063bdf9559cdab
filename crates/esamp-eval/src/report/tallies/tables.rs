//! Markdown tables of one model.

use std::fmt::Write as _;

use esamp_programs::failure::Failure;

use super::{
    super::{
        compare::Gain,
        tables::{gain, signed},
    },
    differences::{Count, Opponent, difference, mean, sizes},
    gather::{Half, Subject},
    predictions::{error_growth, growth, tokens_per_new},
};

const DIGITS: usize = 3;

fn number(value: Option<f64>, digits: usize) -> String {
    value
        .filter(|value| value.is_finite())
        .map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

fn cell(found: Option<&Gain>) -> String {
    found.map_or("–".to_owned(), |found| gain(found, DIGITS))
}

fn head(columns: &[String]) -> String {
    format!("| {} |\n|---|{}\n", columns.join(" | "), "--:|".repeat(columns.len() - 1))
}

/// Counts the intervals that tables print.
#[derive(Debug, Default)]
pub struct Intervals(pub usize);

impl Intervals {
    fn cell(&mut self, found: Option<Gain>) -> String {
        self.0 += usize::from(found.is_some());
        cell(found.as_ref())
    }
}

/// The means of every arm.
pub fn levels(subject: &Subject, half: &Half) -> String {
    let sizes = sizes(subject.samples);
    let mut columns = vec!["arm".to_owned(), "valid".to_owned()];
    columns.extend(sizes.iter().map(|n| format!("coverage at {n}")));
    columns.extend(["new", "memorised", "effective answers", "tokens per new"].map(str::to_owned));
    let mut table = head(&columns);
    for (arm, record) in half.arms.iter().enumerate() {
        let level = |count: Count, n: usize| number(Some(count.mean(half, arm, n)), DIGITS);
        let mut cells = vec![record.name.clone(), level(Count::Valid, subject.samples)];
        cells.extend(sizes.iter().map(|&n| level(Count::Distinct, n)));
        cells.push(level(Count::New, subject.samples));
        cells.push(level(Count::Trained, subject.samples));
        cells.push(number(Some(mean(&half.of_arm(arm, |tally| tally.effective_answers()))), 1));
        cells.push(number(tokens_per_new(subject, half, arm), 1));
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    if let Some(plain) = half.arm("plain-1") {
        let mut cells = vec!["*the coupon collector's line*".to_owned(), String::new()];
        cells.extend(sizes.iter().map(|&n| {
            let expected = half.if_all(plain, |tally| tally.in_random_order(n));
            number(expected.as_deref().map(mean), DIGITS)
        }));
        cells.extend([(); 4].map(|()| String::new()));
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    table
}

/// The differences of every arm that is not of the frontier to the frontier's best.
pub fn against_frontier(
    subject: &Subject,
    half: &Half,
    frontier: &[usize],
    intervals: &mut Intervals,
) -> Result<String, Failure> {
    let mut columns = vec!["arm".to_owned(), "compared with".to_owned(), "valid".to_owned()];
    columns.extend(sizes(subject.samples).iter().map(|n| format!("coverage at {n}")));
    columns.push("new".to_owned());
    let mut table = head(&columns);
    for (arm, record) in half.arms.iter().enumerate().filter(|(arm, _)| !frontier.contains(arm)) {
        let Some(found) = Opponent::of(subject, half, arm) else { continue };
        let pair = [arm, found.arm];
        let mut cells = vec![record.name.clone(), found.named(half)];
        cells.push(intervals.cell(Count::Valid.gain(half, pair, subject.samples)?));
        for n in sizes(subject.samples) {
            cells.push(intervals.cell(Count::Distinct.gain(half, pair, n)?));
        }
        cells.push(intervals.cell(Count::New.gain(half, pair, subject.samples)?));
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    Ok(table)
}

/// The differences of every arm to plain sampling at temperature 1.
pub fn against_plain(
    subject: &Subject,
    half: &Half,
    plain: usize,
    intervals: &mut Intervals,
) -> Result<String, Failure> {
    let mut columns = vec!["arm".to_owned(), "valid".to_owned()];
    columns.extend(sizes(subject.samples).iter().map(|n| format!("coverage at {n}")));
    columns.push("new".to_owned());
    let mut table = head(&columns);
    for (arm, record) in half.arms.iter().enumerate().filter(|&(arm, _)| arm != plain) {
        let pair = [arm, plain];
        let mut cells = vec![record.name.clone()];
        cells.push(intervals.cell(Count::Valid.gain(half, pair, subject.samples)?));
        for n in sizes(subject.samples) {
            cells.push(intervals.cell(Count::Distinct.gain(half, pair, n)?));
        }
        cells.push(intervals.cell(Count::New.gain(half, pair, subject.samples)?));
        let _ = writeln!(table, "| {} |", cells.join(" | "));
    }
    Ok(table)
}

/// The first wave against the last.
pub fn waves(
    subject: &Subject,
    half: &Half,
    plain: Option<usize>,
    intervals: &mut Intervals,
) -> Result<String, Failure> {
    let last = subject.samples.div_ceil(subject.wave);
    let mut table = head(&[
        "arm".to_owned(),
        "repetitions in wave 1".to_owned(),
        format!("in wave {last}"),
        "growth, to that of plain-1".to_owned(),
        "relative error in wave 1".to_owned(),
        format!("in wave {last}"),
        "growth".to_owned(),
    ]);
    let of_plain = plain.and_then(|plain| growth(subject, half, plain));
    for (arm, record) in half.arms.iter().enumerate() {
        let repeated = |wave: usize| {
            let share = half.if_all(arm, |tally| *tally.repetitions(subject.wave).get(wave)?);
            number(share.as_deref().map(mean), DIGITS)
        };
        let error = |wave: usize| {
            let error = half.if_all(arm, |tally| tally.waves.get(wave)?.mean_relative_novelty);
            number(error.as_deref().map(mean), DIGITS)
        };
        let grown = growth(subject, half, arm).zip(of_plain.as_ref());
        let grown = match grown.filter(|_| Some(arm) != plain) {
            Some((own, plain)) => difference(&own, plain)?,
            None => None,
        };
        let learned = match error_growth(half, arm) {
            Some(own) => difference(&own, &vec![0.0; own.len()])?,
            None => None,
        };
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} |",
            record.name,
            repeated(0),
            repeated(last - 1),
            intervals.cell(grown),
            error(0),
            error(last - 1),
            intervals.cell(learned),
        );
    }
    Ok(table)
}

/// How much more different right answers the order of completions gives than a random order: what is learned from
/// earlier completions spreads later ones.
pub fn order(subject: &Subject, half: &Half) -> String {
    let sizes: Vec<usize> =
        sizes(subject.samples).into_iter().filter(|&n| n < subject.samples).collect();
    if sizes.is_empty() {
        return String::new();
    }
    let mut columns = vec!["arm".to_owned()];
    columns.extend(sizes.iter().map(|n| format!("at {n}")));
    let mut table = head(&columns);
    for (arm, record) in half.arms.iter().enumerate() {
        let cells = sizes.iter().map(|&n| {
            let more = |tally: &crate::tally::Tally| {
                Some(tally.score(n).distinct - tally.in_random_order(n)?)
            };
            let more = half.if_all(arm, more);
            more.map_or("–".to_owned(), |more| signed(mean(&more), DIGITS))
        });
        let cells: Vec<String> = cells.collect();
        let _ = writeln!(table, "| {} | {} |", record.name, cells.join(" | "));
    }
    format!(
        "\nCoverage minus that of the same completions in random order: below zero where later completions are more different \
         than earlier ones.\n\n{table}"
    )
}
