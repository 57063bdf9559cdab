//! The format of a run's results: JSON Lines. The first line is a [`Header`], every other line a
//! [`ProblemRecord`].
//!
//! A line depends only on the header and on the record's key, never on the time or on interruptions: the same command
//! writes the same bytes. Every line ends with a checksum of itself ([`line`](mod@line)). What does vary, the duration
//! and the machine, goes to a second file (`FILE.sessions`) with one [`Session`] per line.
//!
//! Logarithms are natural, and `log_prob` always refers to the chosen token. *The model's distribution* is
//! over all tokens at temperature 1. *The reference distribution* is over the candidates that the filters
//! keep, at the arm's temperature. *The new distribution* is over the same candidates after reweighting;
//! tokens are drawn from it.

mod frequency_ranks;
pub mod line;

use std::{
    collections::HashSet,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use esamp::{Counters, SamplerConfig, TokenId};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};

use crate::{controls::ArmSampling, shard::Shard};

pub use self::frequency_ranks::FrequencyRanks;
pub use crate::tally::Tally;

/// Version of the format. Files of other versions are refused.
pub const FORMAT_VERSION: u32 = 1;

/// The first bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    /// The first line.
    Header(Box<Header>),
    /// Every other line.
    Problem(Box<ProblemRecord>),
}

/// All settings that determine the other lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the crate `esamp`.
    pub crate_version: String,
    /// Commit of the checkout that the program was built in, read when it ran: 40 hexadecimal digits,
    /// followed by `-modified` if tracked files of `src`, `crates`, `Cargo.toml` or `Cargo.lock` differ
    /// from it; `unknown` without git.
    pub commit: String,
    /// The model.
    pub model: ModelRecord,
    /// The split: `dev` or `held_out`.
    pub split: Split,
    /// Problems per task.
    pub problems: usize,
    /// Completions per problem.
    pub samples: usize,
    /// Number of seeds (0, 1, …), and so the number of runs of every problem under every arm.
    pub seeds: u64,
    /// Maximum number of tokens per completion; a task may have a lower limit ([`TaskRecord::tokens`]).
    pub tokens: usize,
    /// Problems per batch. A sampler lives for one batch, so *shared* and *adaptive* arms share distillers
    /// within a batch only.
    pub batch: usize,
    /// Whether a batch is a single problem in arms that share no distiller between problems, so that an interruption
    /// loses no more than one. In records without this setting all arms ran whole batches.
    #[serde(default)]
    pub one_by_one: bool,
    /// The tasks, in the order in which they run.
    pub tasks: Vec<TaskRecord>,
    /// The arms, in the order in which they run.
    pub arms: Vec<ArmRecord>,
    /// The arm whose single tokens are kept ([`ProblemRecord::token_sample`]), if any.
    pub token_arm: Option<String>,
    /// The completions of a wave, if the completions of a problem run in waves, one after the other, with distillers
    /// that go through all of them. Records then have a [`Tally`] and no completions. Not written without waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wave: Option<usize>,
    /// The shard of the plan that this file has; everything else in the header is that of the whole plan. Not written
    /// for a whole plan. The last setting, where [`without_shard`](line::without_shard) expects it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shard: Option<Shard>,
}

/// The model, identified by its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// A display name.
    pub name: String,
    /// SHA-256 of the file, in hexadecimal; for a folder, of the names and hashes of its files.
    pub sha256: String,
    /// Width of the hidden states.
    pub d_model: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// The device it ran on.
    pub device: String,
}

/// A task of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its name.
    pub name: String,
    /// A one-line description.
    pub what: String,
    /// Whether completions are right or wrong; otherwise only their texts are measured.
    pub verifiable: bool,
    /// Whether a problem has many right completions that count as different ([`CompletionRecord::mode`]).
    pub many_modes: bool,
    /// Maximum number of tokens per completion of this task: the smaller of its own limit and
    /// [`Header::tokens`].
    pub tokens: usize,
}

/// An arm of the run with all its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ArmOfAnyVersion")]
pub struct ArmRecord {
    /// Its name.
    pub name: String,
    /// A one-line description.
    pub what: String,
    /// Its role in the comparison.
    pub role: Role,
    /// The sampling settings.
    pub sampling: ArmSampling,
    /// The distiller settings; defaults for arms without a distiller.
    pub sampler: SamplerConfig,
    /// Updates on the prompt before the first token.
    pub prompt_warm_up: usize,
    /// The replacement for the distiller's error, in a control.
    pub error: ErrorName,
    /// The method of other authors that it is, if it needs more of the model than logits and hidden states. Not written
    /// without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<Rival>,
}

/// An [`ArmRecord`] as this or an earlier version has written it. Earlier versions had two more settings of the
/// sampler: `overlap`, of which only `none` remains, and `expected_control`, which is now [`ArmRecord::error`]. They
/// called `updates_before_steering` `steps_before_steering`.
#[derive(Deserialize)]
struct ArmOfAnyVersion {
    name: String,
    what: String,
    role: Role,
    sampling: ArmSampling,
    sampler: Map<String, Value>,
    prompt_warm_up: usize,
    error: Option<ErrorName>,
    rival: Option<Rival>,
}

impl TryFrom<ArmOfAnyVersion> for ArmRecord {
    type Error = String;

    fn try_from(written: ArmOfAnyVersion) -> Result<Self, String> {
        let ArmOfAnyVersion {
            name,
            what,
            role,
            sampling,
            mut sampler,
            prompt_warm_up,
            error,
            rival,
        } = written;
        if let Some(overlap) = sampler.remove("overlap").filter(|overlap| overlap != "none") {
            return Err(format!("overlap: expected none, got {overlap}"));
        }
        let error = match (error, sampler.remove("expected_control")) {
            (error, None) => error.unwrap_or_default(),
            (None, Some(control)) => match control.as_str() {
                Some("none") => ErrorName::Own,
                Some("gaussian_error") => ErrorName::Gaussian,
                Some("shuffled_errors") => ErrorName::Shuffled,
                _ => {
                    let known = "none, gaussian_error or shuffled_errors";
                    return Err(format!("expected_control: expected {known}, got {control}"));
                }
            },
            (Some(_), Some(control)) => {
                return Err(format!(
                    "expected_control: expected none together with error, got {control}"
                ));
            }
        };
        if let Some(updates) = sampler.remove("steps_before_steering") {
            sampler.insert("updates_before_steering".to_owned(), updates);
        }
        let sampler = serde_json::from_value(sampler.into()).map_err(|error| error.to_string())?;
        Ok(Self { name, what, role, sampling, sampler, prompt_warm_up, error, rival })
    }
}

/// The replacement for the distiller's error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorName {
    /// No replacement.
    #[default]
    Own,
    /// [`GaussianError`](crate::controls::GaussianError)
    Gaussian,
    /// [`ShuffledErrors`](crate::controls::ShuffledErrors)
    Shuffled,
    /// [`Elliptical`](crate::controls::Elliptical) novelty, one for each prompt
    Elliptical,
}

/// A method of other authors that is set up with a model's LM head or vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rival {
    /// [`Crowding`](crate::controls::Crowding), the arm's reweighter
    Crowding,
    /// [`Recoding`](crate::controls::Recoding)
    Recoding,
}

/// The role of an arm in the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Common sampling at one of several temperatures. The other arms are compared with the curve that
    /// these form.
    Frontier,
    /// Another sampling method without a distiller.
    Baseline,
    /// ESamp or orthogonal novelty.
    Method,
    /// Rules out an explanation of a method's effect.
    Control,
}

/// One half of a task's problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For choosing settings.
    Dev,
    /// For reporting; nothing is chosen after looking at it.
    HeldOut,
}

/// All completions of one problem under one arm and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemRecord {
    /// [`TaskRecord::name`].
    pub task: String,
    /// Index within the split, from 0. The same index under another arm or seed is the same problem.
    pub problem: usize,
    /// [`ArmRecord::name`].
    pub arm: String,
    /// The seed. The same seed draws the same random numbers under every arm.
    pub seed: u64,
    /// The message, without the model's chat template.
    pub prompt: String,
    /// Tokens of the prompt, including the template.
    pub prompt_tokens: usize,
    /// The right answer if there is exactly one, in the form of [`CompletionRecord::answer`].
    pub expected: Option<String>,
    /// Number of solutions ([`CompletionRecord::mode`]) if they can be counted.
    pub solutions: Option<usize>,
    /// The completions, by index; empty in a run with [waves](Header::wave).
    pub completions: Vec<CompletionRecord>,
    /// What the completions amount to, in a run with waves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tally: Option<Tally>,
    /// Totals over the tokens of this problem.
    pub totals: Totals,
    /// The sampler's counters over the whole batch of the problem ([`Header::batch`],
    /// [`Header::one_by_one`]); the same in all records of the batch.
    #[serde(deserialize_with = "counters_of_any_version")]
    pub batch_counters: Counters,
    /// Single tokens if the arm is [`Header::token_arm`]; otherwise empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_sample: Vec<TokenRecord>,
}

/// Reads counters as this or an earlier version has written them. Earlier versions called `rows_untrained`
/// `rows_warming`.
fn counters_of_any_version<'de, D: Deserializer<'de>>(from: D) -> Result<Counters, D::Error> {
    let mut counters = Map::deserialize(from)?;
    if let Some(rows) = counters.remove("rows_warming") {
        counters.insert("rows_untrained".to_owned(), rows);
    }
    serde_json::from_value(counters.into()).map_err(D::Error::custom)
}

/// One completion.
///
/// Means are over the tokens of the completion. Means of steering values (novelty, slope, sharpening) are
/// over the tokens that have such a value, and `None` if none has: in plain arms and in completions of one
/// token. Sharpening also exists without a distiller, in controls that change scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRecord {
    /// The text, without the stop token.
    pub text: String,
    /// The tokens, including the stop token if one was chosen.
    pub tokens: Vec<TokenId>,
    /// Why it ended: [`FinishReason::name`](esamp::FinishReason::name).
    pub finish: String,
    /// Whether it is right; `None` if the task cannot tell.
    pub correct: Option<bool>,
    /// The answer in a form that can be compared (for maj@k); `None` if the text gives none.
    pub answer: Option<String>,
    /// Which of a problem's many solutions it is: right completions with the same mode count as one
    /// solution. `None` if it is wrong or the task has no modes.
    pub mode: Option<String>,
    /// Sum of the tokens' log-probabilities in the model's distribution, from which perplexity under the
    /// model is computed.
    pub log_prob_sum: f64,
    /// Sum of the tokens' log-probabilities in the new distribution.
    pub sampling_log_prob_sum: f64,
    /// Mean entropy of the new distribution.
    pub mean_entropy: f64,
    /// Mean entropy of the reference distribution.
    pub mean_reference_entropy: f64,
    /// Mean KL(new ‖ reference).
    pub mean_kl: f64,
    /// Mean number of candidates.
    pub mean_candidates: f64,
    /// Mean of `‖deep − expected deep‖`.
    pub mean_novelty: Option<f64>,
    /// Mean of the same relative to `‖deep‖`.
    pub mean_relative_novelty: Option<f64>,
    /// Mean slope of the error on the reference logits ([`RowTrace::slope`](esamp::telemetry::RowTrace::slope)).
    pub mean_slope: Option<f64>,
    /// Mean slope of the reweighter's change ([`RowTrace::sharpening`](esamp::telemetry::RowTrace::sharpening)).
    pub mean_sharpening: Option<f64>,
}

impl CompletionRecord {
    /// The tokens of the text, without the one that ended it.
    pub fn said(&self) -> &[TokenId] {
        match self.tokens.split_last() {
            Some((_, rest)) if self.finish == "stop_token" => rest,
            _ => &self.tokens,
        }
    }
}

/// Totals over the tokens of a problem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Tokens chosen.
    pub tokens: u64,
    /// Tokens chosen from scores that a distiller changed.
    pub steered: u64,
    /// Steered tokens that differ from the token the same random number would have chosen without steering.
    pub interventions: u64,
    /// Tokens whose row could not be steered because a number was not finite.
    pub not_finite: u64,
    /// Number of candidates, summed over tokens.
    pub candidates: u64,
}

/// One steered token.
///
/// A problem with more than [`TOKEN_SAMPLE`] steered tokens keeps that many: those with the smallest hash
/// of completion and position, so that the sample does not depend on their values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Index of the completion.
    pub completion: usize,
    /// Position in the completion; position 0 is never steered.
    pub position: u64,
    /// The token. In a byte-pair vocabulary ids follow the order in which tokens were learned, from
    /// frequent to rare pieces, so the id is a rough measure of rarity. [`FrequencyRanks`] counts generated
    /// tokens instead.
    pub token: TokenId,
    /// `‖deep − expected deep‖`.
    pub novelty: f64,
    /// The same relative to `‖deep‖`.
    pub relative_novelty: f64,
    /// −log-probability of the token in the model's distribution.
    pub surprisal: f64,
    /// Entropy of the reference distribution: how undecided the choice was.
    pub reference_entropy: f64,
}

/// The most tokens kept per record.
pub const TOKEN_SAMPLE: usize = 512;

/// One run of the program on a file: a line of `FILE.sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The command, as separate words, with the shard if the environment has chosen it. Bytes that are not UTF-8 are
    /// written as U+FFFD.
    pub command: Vec<String>,
    /// Start time in seconds since 1970.
    pub started: u64,
    /// Duration in seconds.
    pub seconds: f64,
    /// Records in the file before and after the run.
    pub records: [usize; 2],
    /// Records in the complete file.
    pub planned: usize,
    /// Processor, number of threads, operating system.
    pub machine: String,
}

/// The contents of a record file.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub header: Header,
    pub records: Vec<ProblemRecord>,
}

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: expected a header of format version {FORMAT_VERSION}, got {got}", .path.display())]
    Header { path: PathBuf, got: String },
    #[error("{}, line {line}: expected a record, got {got}", .path.display())]
    Record { path: PathBuf, line: usize, got: String },
}

impl Run {
    /// Reads a file, plain or compressed with gzip. An unfinished last line, as a killed run leaves it, is
    /// ignored.
    ///
    /// # Errors
    ///
    /// I/O errors, and a line with a wrong checksum or with content that a run with this header cannot have written.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let text = read_lines(path)?;
        let mut lines = text.lines();
        let (header, is_sealed) = parse_header(path, lines.next().unwrap_or_default())?;
        let mut records: Vec<ProblemRecord> = Vec::new();
        let mut keys = HashSet::new();
        for (place, line) in lines.enumerate() {
            let wrong =
                |got: String| ReadError::Record { path: path.to_owned(), line: place + 2, got };
            let record = line::parse_record(line, &header, is_sealed).map_err(wrong)?;
            let ProblemRecord { task, problem, arm, seed, .. } = &record;
            if !keys.insert((task.clone(), *problem, arm.clone(), *seed)) {
                let got = format!("{task} {problem} under {arm}, seed {seed} for the second time");
                return Err(wrong(got));
            }
            records.push(record);
        }
        Ok(Self { header, records })
    }
}

/// Reads the finished lines of a file, plain or compressed with gzip. There is at least one.
///
/// # Errors
///
/// I/O errors, text that is not UTF-8, and a file without a line.
pub fn read_lines(path: &Path) -> Result<String, ReadError> {
    let at = |source| ReadError::Io { path: path.to_owned(), source };
    let mut text = fs::read(path).map_err(at)?;
    if text.starts_with(&GZIP) {
        let packed = std::mem::take(&mut text);
        flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut text).map_err(at)?;
    }
    text.truncate(text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1));
    if text.is_empty() {
        return Err(ReadError::Header { path: path.to_owned(), got: "an empty file".to_owned() });
    }
    String::from_utf8(text).map_err(|error| at(io::Error::new(io::ErrorKind::InvalidData, error)))
}

/// Parses the header in the first line of a file, and says whether the line has a checksum. If it has, all lines have.
pub fn parse_header(path: &Path, line: &str) -> Result<(Header, bool), ReadError> {
    let wrong = |got: String| ReadError::Header { path: path.to_owned(), got };
    let line::Unsealed { object, is_sealed } = line::unseal(line).map_err(wrong)?;
    // Check the version first: other versions may have other fields.
    let value: Value = serde_json::from_str(&object).map_err(|error| wrong(error.to_string()))?;
    let version = &value["format_version"];
    if version.as_u64() != Some(u64::from(FORMAT_VERSION)) {
        return Err(wrong(format!("format version {version}")));
    }
    match serde_json::from_value(value) {
        Ok(Line::Header(header)) => Ok((*header, is_sealed)),
        Ok(Line::Problem(_)) => Err(wrong("a record".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}
