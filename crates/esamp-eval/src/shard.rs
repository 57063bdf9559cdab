//! Shards of a plan, which run on their own, and where a run learns which of them it is.
//!
//! A shard has whole problems ([`plan::piece`](crate::plan::piece)). The records of all shards together are those of a
//! run without shards ([`merge`](crate::merge)).

use std::{ffi::OsString, fmt, str::FromStr};

use esamp_programs::failure::Failure;
use serde::{Deserialize, Serialize};

/// The most shards of a plan: as many as a plan may have records.
pub const MOST_SHARDS: u32 = 1_000_000;

/// The task of a Slurm array.
const SLURM: &str = "SLURM_ARRAY_TASK_ID";
/// The pod of a Kubernetes Indexed Job, from 0.
const KUBERNETES: &str = "JOB_COMPLETION_INDEX";

/// Shard `number` (from 1) of the `count` shards of a plan; written `3/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Shard {
    number: u32,
    count: u32,
}

/// A run cannot know which shard it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    #[error("expected I/N with I from 1 to N, and N at most {MOST_SHARDS}, got {got}")]
    Shard { got: String },
    #[error("{name}: expected {expected}, got {got}")]
    Variable { name: &'static str, expected: String, got: String },
    #[error("{name}: expected the number of shards in {count}, got none")]
    NoCount { name: &'static str, count: &'static str },
    #[error("--shard-count: expected {SLURM} or {KUBERNETES} in the environment, got neither")]
    NoIndex,
    #[error("{name}: expected {expected} as in {other}, got {got}")]
    Contradiction { name: &'static str, expected: String, other: &'static str, got: String },
}

impl Shard {
    /// Shard `number` of `count`.
    ///
    /// # Errors
    ///
    /// A number that is not from 1 to `count`, or a `count` above [`MOST_SHARDS`].
    pub fn new(number: u64, count: u64) -> Result<Self, ShardError> {
        let wrong = || ShardError::Shard { got: format!("{number}/{count}") };
        if number == 0 || number > count || count > u64::from(MOST_SHARDS) {
            return Err(wrong());
        }
        let [number, count] = [number, count].map(|n| u32::try_from(n).map_err(|_| wrong()));
        Ok(Self { number: number?, count: count? })
    }

    /// Which of the shards it is, from 1.
    pub fn number(self) -> u32 {
        self.number
    }

    /// The number of shards.
    pub fn count(self) -> u32 {
        self.count
    }

    /// Whether a [piece](crate::plan::piece) of the plan belongs to it.
    pub fn has(self, piece: usize) -> bool {
        Self::place_of(piece, self.count as usize) + 1 == self.number as usize
    }

    /// The place, from 0, of the shard that has a piece among all `count` shards: pieces are dealt in turn.
    pub fn place_of(piece: usize, count: usize) -> usize {
        piece % count
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.count)
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        let number = |digits: &str| digits.parse().ok();
        let numbers = text.split_once('/');
        let numbers = numbers.and_then(|(one, all)| Some((number(one)?, number(all)?)));
        let (number, count) = numbers.ok_or_else(|| ShardError::Shard { got: text.to_owned() })?;
        Self::new(number, count)
    }
}

impl TryFrom<String> for Shard {
    type Error = ShardError;

    fn try_from(text: String) -> Result<Self, ShardError> {
        text.parse()
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl From<ShardError> for Failure {
    fn from(error: ShardError) -> Self {
        let next_step = match error {
            ShardError::Shard { .. } => "count shards from 1",
            ShardError::NoIndex => "give --shard I/N instead",
            ShardError::NoCount { .. } => {
                "give --shard-count, or unset the variable if it does not number shards of this plan"
            }
            ShardError::Variable { .. } | ShardError::Contradiction { .. } => {
                "change one of them, or unset the variable if it does not number shards of this plan"
            }
        };
        Self::usage(error.to_string(), next_step)
    }
}

/// Which shard a run is, and what says so; `None` for a whole plan. `flag` is `--shard`, `count` is `--shard-count`,
/// and `variable` reads the environment:
///
/// - `SLURM_ARRAY_TASK_ID` with `SLURM_ARRAY_TASK_COUNT` (or `count`), `SLURM_ARRAY_TASK_MIN` (0 if not set) and
///   `SLURM_ARRAY_TASK_STEP` (1 if not set). An array with gaps, as `SLURM_ARRAY_TASK_MAX` shows it, is refused;
/// - `JOB_COMPLETION_INDEX` with `count`.
///
/// What is given must agree: a flag that the environment contradicts would leave out some shards and run others twice.
///
/// # Errors
///
/// A contradiction, an index without a count or a count without an index, and variables with other values.
pub fn choose(
    flag: Option<Shard>,
    count: Option<u32>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(Shard, &'static str)>, ShardError> {
    let total = count.or(flag.map(Shard::count)).map(u64::from);
    let sources = [
        flag.map(|shard| ("--shard", shard)),
        of_slurm(&variable, total)?.map(|shard| (SLURM, shard)),
        of_kubernetes(&variable, total)?.map(|shard| (KUBERNETES, shard)),
    ];
    let mut sources = sources.into_iter().flatten();
    let Some((name, shard)) = sources.next() else {
        return if count.is_some() { Err(ShardError::NoIndex) } else { Ok(None) };
    };
    if let Some((other, expected)) = sources.find(|&(_, other)| other != shard) {
        let (expected, got) = (expected.to_string(), shard.to_string());
        return Err(ShardError::Contradiction { name, expected, other, got });
    }
    match count {
        Some(count) if count != shard.count => Err(ShardError::Contradiction {
            name: "--shard-count",
            expected: shard.count.to_string(),
            other: name,
            got: count.to_string(),
        }),
        _ => Ok(Some((shard, name))),
    }
}

fn of_slurm(
    variable: &impl Fn(&str) -> Option<OsString>,
    total: Option<u64>,
) -> Result<Option<Shard>, ShardError> {
    const COUNT: &str = "SLURM_ARRAY_TASK_COUNT";
    const MAX: &str = "SLURM_ARRAY_TASK_MAX";
    let Some(id) = number(variable, SLURM)? else {
        return Ok(None);
    };
    let least = number(variable, "SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
    let step = number(variable, "SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
    let count = number(variable, COUNT)?.or(total);
    let count = count.ok_or(ShardError::NoCount { name: SLURM, count: COUNT })?;
    let expected = format!("one of {count} numbers from {least} in steps of {step}");
    let wrong = |name, got: u64| {
        let expected = expected.clone();
        ShardError::Variable { name, expected, got: got.to_string() }
    };
    // The place of the last task shows a gap in every task, and not only in those after it.
    if let Some(most) = number(variable, MAX)?
        && most.checked_sub(least).map(|span| span / step + 1) != Some(count)
    {
        return Err(wrong(MAX, most));
    }
    match id.checked_sub(least) {
        Some(span) if span.is_multiple_of(step) && span / step < count => {
            Shard::new(span / step + 1, count).map(Some)
        }
        _ => Err(wrong(SLURM, id)),
    }
}

fn of_kubernetes(
    variable: &impl Fn(&str) -> Option<OsString>,
    total: Option<u64>,
) -> Result<Option<Shard>, ShardError> {
    let Some(index) = number(variable, KUBERNETES)? else {
        return Ok(None);
    };
    let count = total.ok_or(ShardError::NoCount { name: KUBERNETES, count: "--shard-count" })?;
    if index >= count {
        return Err(ShardError::Variable {
            name: KUBERNETES,
            expected: format!("a number below {count}"),
            got: index.to_string(),
        });
    }
    Shard::new(index + 1, count).map(Some)
}

fn number(
    variable: &impl Fn(&str) -> Option<OsString>,
    name: &'static str,
) -> Result<Option<u64>, ShardError> {
    let Some(text) = variable(name) else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| ShardError::Variable {
        name,
        expected: "a whole number".to_owned(),
        got: format!("{text:?}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is chosen, as `SHARD by NAME`, or the error.
    fn chosen(flag: &str, count: Option<u32>, variables: &[(&str, &str)]) -> String {
        let flag = (!flag.is_empty()).then(|| flag.parse().unwrap());
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        match choose(flag, count, variable) {
            Ok(None) => "none".to_owned(),
            Ok(Some((shard, name))) => format!("{shard} by {name}"),
            Err(error) => error.to_string(),
        }
    }

    /// The variables of a task of a Slurm array, as `ID COUNT MIN MAX STEP`.
    fn slurm(numbers: &str) -> Vec<(&'static str, &str)> {
        let names = [
            SLURM,
            "SLURM_ARRAY_TASK_COUNT",
            "SLURM_ARRAY_TASK_MIN",
            "SLURM_ARRAY_TASK_MAX",
            "SLURM_ARRAY_TASK_STEP",
        ];
        names.into_iter().zip(numbers.split(' ')).filter(|(_, number)| *number != "-").collect()
    }

    #[test]
    fn a_shard_is_written_as_it_is_read() {
        for text in ["1/1", "3/8", "1000000/1000000"] {
            let shard: Shard = text.parse().unwrap();
            assert_eq!(shard.to_string(), text);
            assert_eq!(serde_json::to_string(&shard).unwrap(), format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<Shard>(&format!("\"{text}\"")).unwrap(), shard);
        }
        for text in ["0/4", "5/4", "1/0", "1/1000001", "3", "3/", "a/b", "-1/4", "1/4/4", ""] {
            let error = text.parse::<Shard>().unwrap_err().to_string();
            let wording = "expected I/N with I from 1 to N, and N at most 1000000, got ";
            assert_eq!(error, format!("{wording}{text}"));
            assert!(serde_json::from_str::<Shard>(&format!("\"{text}\"")).is_err());
        }
    }

    #[test]
    fn pieces_are_dealt_in_turn_and_each_once() {
        let shards: Vec<Shard> = (1..=3).map(|number| Shard::new(number, 3).unwrap()).collect();
        for piece in 0..9 {
            let owners: Vec<u32> = shards
                .iter()
                .filter(|shard| shard.has(piece))
                .map(|shard| shard.number())
                .collect();
            assert_eq!(owners, [piece as u32 % 3 + 1]);
        }
    }

    #[test]
    fn the_environment_says_which_shard_it_is() {
        for (variables, expected) in [
            (slurm("0 4 0 3 1"), "1/4"),
            (slurm("3 4 0 3 1"), "4/4"),
            (slurm("4 4 1 4 1"), "4/4"),
            (slurm("10 4 10 13 -"), "1/4"),
            // --array=0-15:4, whether its last task or the end of its range is said to be the maximum.
            (slurm("12 4 0 12 4"), "4/4"),
            (slurm("8 4 0 15 4"), "3/4"),
            // Without what only an array that does not begin with 0 needs.
            (slurm("2 4"), "3/4"),
        ] {
            let expected = format!("{expected} by SLURM_ARRAY_TASK_ID");
            assert_eq!(chosen("", None, &variables), expected);
        }
        assert_eq!(chosen("", Some(4), &slurm("2")), "3/4 by SLURM_ARRAY_TASK_ID");
        for (index, expected) in [("0", "1/4"), ("3", "4/4")] {
            let expected = format!("{expected} by JOB_COMPLETION_INDEX");
            assert_eq!(chosen("", Some(4), &[(KUBERNETES, index)]), expected);
        }
        assert_eq!(chosen("", None, &[]), "none");
        assert_eq!(chosen("3/4", None, &[]), "3/4 by --shard");
    }

    #[test]
    fn what_is_given_must_agree() {
        assert_eq!(chosen("3/4", Some(4), &[(KUBERNETES, "2")]), "3/4 by --shard");
        assert_eq!(chosen("3/4", None, &slurm("3 4 1 4 1")), "3/4 by --shard");
        for (flag, count, variables, expected) in [
            (
                "3/4",
                None,
                slurm("3 4 0 3 1"),
                "--shard: expected 4/4 as in SLURM_ARRAY_TASK_ID, got 3/4",
            ),
            (
                "3/8",
                None,
                slurm("3 4 1 4 1"),
                "--shard: expected 3/4 as in SLURM_ARRAY_TASK_ID, got 3/8",
            ),
            (
                "3/4",
                None,
                vec![(KUBERNETES, "3")],
                "--shard: expected 4/4 as in JOB_COMPLETION_INDEX, got 3/4",
            ),
            ("3/4", Some(8), vec![], "--shard-count: expected 4 as in --shard, got 8"),
            (
                "",
                Some(8),
                slurm("3 4 1 4 1"),
                "--shard-count: expected 4 as in SLURM_ARRAY_TASK_ID, got 8",
            ),
            (
                "",
                Some(4),
                [slurm("3 4 1 4 1"), vec![(KUBERNETES, "3")]].concat(),
                "SLURM_ARRAY_TASK_ID: expected 4/4 as in JOB_COMPLETION_INDEX, got 3/4",
            ),
        ] {
            assert_eq!(chosen(flag, count, &variables), expected);
        }
    }

    #[test]
    fn an_environment_that_numbers_no_shards_is_refused() {
        for (count, variables, expected) in [
            (
                None,
                slurm("3"),
                "SLURM_ARRAY_TASK_ID: expected the number of shards in SLURM_ARRAY_TASK_COUNT, got none",
            ),
            (
                None,
                vec![(KUBERNETES, "3")],
                "JOB_COMPLETION_INDEX: expected the number of shards in --shard-count, got none",
            ),
            (
                Some(3),
                vec![],
                "--shard-count: expected SLURM_ARRAY_TASK_ID or JOB_COMPLETION_INDEX in the environment, got neither",
            ),
            (
                Some(3),
                vec![(KUBERNETES, "3")],
                "JOB_COMPLETION_INDEX: expected a number below 3, got 3",
            ),
            (
                Some(3),
                vec![(KUBERNETES, "")],
                "JOB_COMPLETION_INDEX: expected a whole number, got \"\"",
            ),
            (None, slurm("-1 4 0 3 1"), "SLURM_ARRAY_TASK_ID: expected a whole number, got \"-1\""),
            (
                None,
                slurm("1 4 2 5 1"),
                "SLURM_ARRAY_TASK_ID: expected one of 4 numbers from 2 in steps of 1, got 1",
            ),
            (
                None,
                slurm("5 4 1"),
                "SLURM_ARRAY_TASK_ID: expected one of 4 numbers from 1 in steps of 1, got 5",
            ),
            (
                None,
                slurm("5 4 0 12 4"),
                "SLURM_ARRAY_TASK_ID: expected one of 4 numbers from 0 in steps of 4, got 5",
            ),
            // --array=1,3,7
            (
                None,
                slurm("1 3 1 7 1"),
                "SLURM_ARRAY_TASK_MAX: expected one of 3 numbers from 1 in steps of 1, got 7",
            ),
        ] {
            assert_eq!(chosen("", count, &variables), expected);
        }
    }
}
