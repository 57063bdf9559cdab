//! What a run leaves behind: a file of JSON Lines. The first line is the [`Header`], every other one a [`ProblemRecord`].
//!
//! A line is a function of the header and of what the line is about, never of the time or of when a run was interrupted:
//! the same command writes the same bytes. What differs from run to run, which is the time that it took and on which
//! machine, is in a second file beside it (`FILE.sessions`), one [`Session`] a line.
//!
//! Logarithms are natural ones, and `log_prob` is always that of a token that was chosen. *The model's distribution* is the
//! one over all tokens at temperature 1; *the reference distribution* is over the candidates that the filters have left, at
//! the arm's temperature; *the new one* is over the same candidates after reweighting, and it is the one that a token was
//! drawn from.
#![allow(dead_code, reason = "the program writes it, tests and reports read it")]

use std::{
    fs,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
};

use esamp::{Counters, SamplerConfig, TokenId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::controls::ArmSampling;

/// Version of the format. A file of another version is refused.
pub const FORMAT_VERSION: u32 = 1;

/// The first bytes of a file packed with gzip.
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

/// Everything that decides what the other lines say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Version of the crate `esamp`.
    pub crate_version: String,
    /// Commit of the checkout that the program was built in, read when it ran: 40 hexadecimal digits, with `-modified`
    /// behind them where tracked files of `src`, `examples` or `Cargo.toml` differ from it; `unknown` where there is no git.
    pub commit: String,
    /// The model.
    pub model: ModelRecord,
    /// Which problems: `dev` or `held_out`.
    pub split: Split,
    /// Problems of each task.
    pub problems: usize,
    /// Completions of each problem.
    pub samples: usize,
    /// How many seeds, and thereby runs of every problem under every arm: 0, 1, …
    pub seeds: u64,
    /// The most tokens of a completion; a task may need fewer ([`TaskRecord::tokens`]).
    pub tokens: usize,
    /// Problems that run in one batch. A sampler lives as long as its batch: what *shared* and *adaptive* arms share is
    /// shared within it.
    pub batch: usize,
    /// The tasks, in the order in which they take turns.
    pub tasks: Vec<TaskRecord>,
    /// The arms, in the order in which they take turns.
    pub arms: Vec<ArmRecord>,
    /// The arm whose tokens are kept one by one ([`ProblemRecord::token_sample`]), if there is one.
    pub token_arm: Option<String>,
}

/// A model, by its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// A name for people.
    pub name: String,
    /// SHA-256 of its file, in hexadecimal; of a folder: of the names and hashes of its files.
    pub sha256: String,
    /// Width of its hidden states.
    pub d_model: usize,
    /// Size of its vocabulary.
    pub vocab: usize,
    /// The device that it ran on.
    pub device: String,
}

/// A task of the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its name.
    pub name: String,
    /// What it asks, in a sentence.
    pub what: String,
    /// Whether its completions are right or wrong. Else their text is all there is.
    pub verifiable: bool,
    /// Whether a problem has many right completions that are told apart ([`CompletionRecord::mode`]).
    pub many_modes: bool,
    /// The most tokens of a completion of this task: the smaller of its own limit and [`Header::tokens`].
    pub tokens: usize,
}

/// An arm of the run, with all of its settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "ArmOfAnyVersion")]
pub struct ArmRecord {
    /// Its name.
    pub name: String,
    /// What it is, in a sentence.
    pub what: String,
    /// What it is there for.
    pub role: Role,
    /// How tokens are chosen.
    pub sampling: ArmSampling,
    /// The distillers. Arms that use none have the default.
    pub sampler: SamplerConfig,
    /// Updates on the prompt before the first token.
    pub prompt_warm_up: usize,
    /// What replaces the distiller's error, in a control.
    pub error: ErrorName,
}

/// An [`ArmRecord`] as this or an earlier version has written it. Earlier ones had two more settings of the sampler:
/// `overlap`, of which only `none` is left, and `expected_control`, which is [`ArmRecord::error`] now.
#[derive(Deserialize)]
struct ArmOfAnyVersion {
    name: String,
    what: String,
    role: Role,
    sampling: ArmSampling,
    sampler: Map<String, Value>,
    prompt_warm_up: usize,
    error: Option<ErrorName>,
}

impl TryFrom<ArmOfAnyVersion> for ArmRecord {
    type Error = String;

    fn try_from(written: ArmOfAnyVersion) -> Result<Self, String> {
        let ArmOfAnyVersion { name, what, role, sampling, mut sampler, prompt_warm_up, error } =
            written;
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
                return Err(format!("expected_control: expected none beside error, got {control}"));
            }
        };
        let sampler = serde_json::from_value(sampler.into()).map_err(|error| error.to_string())?;
        Ok(Self { name, what, role, sampling, sampler, prompt_warm_up, error })
    }
}

/// What replaces the distiller's error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorName {
    /// Nothing.
    #[default]
    Own,
    /// [`GaussianError`](crate::controls::GaussianError)
    Gaussian,
    /// [`ShuffledErrors`](crate::controls::ShuffledErrors)
    Shuffled,
}

/// What an arm is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Usual sampling at one temperature of several: everything else is compared with the curve that these make.
    Frontier,
    /// Another way to sample, without a distiller.
    Baseline,
    /// ESamp or orthogonal novelty.
    Method,
    /// What rules out an explanation of a method's effect.
    Control,
}

/// Which half of a task's problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For choosing settings.
    Dev,
    /// For reporting: nothing is chosen after a look at it.
    HeldOut,
}

/// All completions of one problem under one arm and seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProblemRecord {
    /// [`TaskRecord::name`].
    pub task: String,
    /// Its number within the split, from 0. The same number under another arm or seed is the same problem.
    pub problem: usize,
    /// [`ArmRecord::name`].
    pub arm: String,
    /// The seed. The same seed under another arm draws the same random numbers.
    pub seed: u64,
    /// What was asked, before the model's chat template.
    pub prompt: String,
    /// Tokens of the prompt, with the template.
    pub prompt_tokens: usize,
    /// The right answer, where there is one and only one; as [`CompletionRecord::answer`] has it.
    pub expected: Option<String>,
    /// How many solutions there are ([`CompletionRecord::mode`]), where they can be counted.
    pub solutions: Option<usize>,
    /// The completions, in the order of their index.
    pub completions: Vec<CompletionRecord>,
    /// Totals over this problem's tokens.
    pub totals: Totals,
    /// What the sampler has counted over the whole batch that the problem was in ([`Header::batch`]): the same in all
    /// records of the batch.
    pub batch_counters: Counters,
    /// Single tokens, where the arm is [`Header::token_arm`]; else empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub token_sample: Vec<TokenRecord>,
}

/// One completion.
///
/// Means are over its tokens. Those of what steering knows (novelty, slope, sharpening) are over the tokens that have such a
/// number, and `None` where none has: plain arms, and completions of one token. Sharpening alone has one without a distiller,
/// where a control changes scores.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRecord {
    /// The text, without the stop token.
    pub text: String,
    /// The tokens, the stop token among them where one was chosen.
    pub tokens: Vec<TokenId>,
    /// Why it ended: [`FinishReason::name`](esamp::FinishReason::name).
    pub finish: String,
    /// Whether it is right; `None` where the task cannot tell.
    pub correct: Option<bool>,
    /// What it answers, in a form that can be compared (for maj@k); `None` where no answer was found in it.
    pub answer: Option<String>,
    /// Which of a problem's many solutions it is: right completions with the same mode are one solution. `None` where it
    /// is wrong, and where the task does not have many.
    pub mode: Option<String>,
    /// Sum over the tokens of their log-probability in the model's distribution: what perplexity under the model is made
    /// of.
    pub log_prob_sum: f64,
    /// Sum over the tokens of their log-probability in the new distribution.
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
    /// Mean of the same as a multiple of `‖deep‖`.
    pub mean_relative_novelty: Option<f64>,
    /// Mean slope of the error on the reference logits ([`RowTrace::slope`](esamp::telemetry::RowTrace::slope)).
    pub mean_slope: Option<f64>,
    /// Mean slope of what the reweighter added ([`RowTrace::sharpening`](esamp::telemetry::RowTrace::sharpening)).
    pub mean_sharpening: Option<f64>,
}

impl CompletionRecord {
    /// The tokens that its text is made of: without the one that ended it.
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
    /// Tokens chosen from scores that a distiller had a part in.
    pub steered: u64,
    /// Steered tokens that differ from the one that the same random number would have chosen without steering.
    pub interventions: u64,
    /// Tokens whose row could not be steered because a number was not finite.
    pub not_finite: u64,
    /// Candidates, summed over tokens.
    pub candidates: u64,
}

/// One steered token.
///
/// Where a problem has more than [`TOKEN_SAMPLE`] of them, so many are kept: those with the smallest hash of completion and
/// position, which has nothing to do with what they are.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Index of the completion.
    pub completion: usize,
    /// Place in the completion; 0 is the first, which is never steered.
    pub position: u64,
    /// The token. In a byte-pair vocabulary ids follow the order in which tokens were learned, from frequent to rare
    /// pieces: the id is a first measure of rarity. [`FrequencyRanks`] counts what was generated instead.
    pub token: TokenId,
    /// `‖deep − expected deep‖`.
    pub novelty: f64,
    /// The same as a multiple of `‖deep‖`.
    pub relative_novelty: f64,
    /// −log-probability of the token in the model's distribution.
    pub surprisal: f64,
    /// Entropy of the reference distribution: how hard the choice was.
    pub reference_entropy: f64,
}

/// The most tokens that a record keeps one by one.
pub const TOKEN_SAMPLE: usize = 512;

/// One run of the program on a file: a line of `FILE.sessions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// The command, word by word.
    pub command: Vec<String>,
    /// When it began, in seconds since 1970.
    pub started: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Records in the file before and after.
    pub records: [usize; 2],
    /// Records that the file has when it is complete.
    pub planned: usize,
    /// Processor, number of threads, operating system.
    pub machine: String,
}

/// How common tokens are in a set of records: 0 for the most frequent one. Equally frequent ones share the mean of their
/// ranks.
#[derive(Clone, Debug)]
pub struct FrequencyRanks(std::collections::HashMap<TokenId, f64>);

impl FrequencyRanks {
    /// Counts the tokens of all completions. Take the records of one arm, or the arm's own taste has a part in it.
    pub fn count<'a>(records: impl IntoIterator<Item = &'a ProblemRecord>) -> Self {
        let mut counts = std::collections::HashMap::<TokenId, u64>::new();
        for completion in records.into_iter().flat_map(|record| &record.completions) {
            completion.tokens.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        }
        let mut order: Vec<(TokenId, u64)> = counts.into_iter().collect();
        order.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let mut ranks = std::collections::HashMap::new();
        let mut before = 0;
        for equals in order.chunk_by(|a, b| a.1 == b.1) {
            let rank = before as f64 + (equals.len() - 1) as f64 / 2.0;
            ranks.extend(equals.iter().map(|&(token, _)| (token, rank)));
            before += equals.len();
        }
        Self(ranks)
    }

    /// The rank of a token; that behind all others for one that does not occur.
    pub fn of(&self, token: TokenId) -> f64 {
        self.0.get(&token).copied().unwrap_or(self.0.len() as f64)
    }
}

/// A file that was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub header: Header,
    pub records: Vec<ProblemRecord>,
}

/// A file that cannot be read.
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
    /// Reads a file, which may be packed with gzip. An unfinished last line, which a run that was killed leaves behind, is left out.
    pub fn read(path: &Path) -> Result<Self, ReadError> {
        let at = |source| ReadError::Io { path: path.to_owned(), source };
        let mut text = fs::read(path).map_err(at)?;
        if text.starts_with(&GZIP) {
            let packed = std::mem::take(&mut text);
            flate2::read::MultiGzDecoder::new(&packed[..]).read_to_end(&mut text).map_err(at)?;
        }
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        let header = match lines.next().transpose().map_err(at)? {
            Some(line) => parse_header(path, &line)?,
            None => {
                let got = "an empty file".to_owned();
                return Err(ReadError::Header { path: path.to_owned(), got });
            }
        };
        let mut records = Vec::new();
        for (place, line) in lines.enumerate() {
            let wrong =
                |got: String| ReadError::Record { path: path.to_owned(), line: place + 2, got };
            match serde_json::from_str(&line.map_err(at)?) {
                Ok(Line::Problem(record)) => records.push(*record),
                Ok(Line::Header(_)) => return Err(wrong("a second header".to_owned())),
                Err(error) => return Err(wrong(error.to_string())),
            }
        }
        Ok(Self { header, records })
    }
}

/// The header in the first line of a file.
pub fn parse_header(path: &Path, line: &str) -> Result<Header, ReadError> {
    let wrong = |got: String| ReadError::Header { path: path.to_owned(), got };
    // The version first: another one may have other fields.
    let value: Value = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
    let version = &value["format_version"];
    if version.as_u64() != Some(u64::from(FORMAT_VERSION)) {
        return Err(wrong(format!("format version {version}")));
    }
    match serde_json::from_value(value) {
        Ok(Line::Header(header)) => Ok(*header),
        Ok(Line::Problem(_)) => Err(wrong("a record".to_owned())),
        Err(error) => Err(wrong(error.to_string())),
    }
}
