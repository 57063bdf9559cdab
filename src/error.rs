//! What can go wrong, by stage. Every message says what was expected and what came instead.

use burn::tensor::ExecutionError;
use thiserror::Error;

use crate::{
    id::{RequestId, RowId, TokenId},
    tap::TapSite,
};

/// A setting that cannot work, found when it is made and not when it is used.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number is outside of its range.
    #[error("{setting}: expected {expected}, got {got}")]
    OutOfRange {
        /// Name of the setting.
        setting: &'static str,
        /// The range, in words.
        expected: &'static str,
        /// The value that was set.
        got: String,
    },
    /// The thread that learns in the background could not be started.
    #[error("background learning: expected a thread for it, got none: {reason}")]
    Thread {
        /// What the system says.
        reason: String,
    },
    /// Another model speaks another language: its logits cannot be compared with the model's.
    #[error("other model: expected a vocabulary of {expected} tokens, got {got}")]
    Vocabulary {
        /// Tokens of the model.
        expected: usize,
        /// Tokens of the other one.
        got: usize,
    },
    /// A tensor to start from has the wrong shape.
    #[error("{setting}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which tensor.
        setting: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
}

impl ConfigError {
    /// A [`Shape`](Self::Shape) error unless the two are the same.
    pub(crate) fn check_shape(
        setting: &'static str,
        expected: &[usize],
        got: &[usize],
    ) -> Result<(), Self> {
        if expected == got {
            return Ok(());
        }
        Err(Self::Shape { setting, expected: expected.to_vec(), got: got.to_vec() })
    }

    /// An [`OutOfRange`](Self::OutOfRange) error unless `got` is at least 1.
    pub(crate) fn at_least_one(setting: &'static str, got: usize) -> Result<(), Self> {
        Self::check(got >= 1, setting, "at least 1", got)
    }

    /// An [`OutOfRange`](Self::OutOfRange) error unless `holds`.
    pub(crate) fn check(
        holds: bool,
        setting: &'static str,
        expected: &'static str,
        got: impl std::fmt::Display,
    ) -> Result<(), Self> {
        if holds {
            return Ok(());
        }
        Err(Self::OutOfRange { setting, expected, got: got.to_string() })
    }
}

/// A step that could not be done at all. What is wrong with a single row is a [`RowError`] instead.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StepError {
    /// Two things that must have the same number of rows do not.
    #[error("{what}: expected {expected} rows, got {got}")]
    RowCount {
        /// What was counted.
        what: &'static str,
        /// Rows of the step.
        expected: usize,
        /// Rows that came.
        got: usize,
    },
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has an element type that cannot be used.
    #[error("{what}: expected {expected}, got {got}")]
    DType {
        /// Which tensor.
        what: &'static str,
        /// What would fit.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Tensors live on different devices.
    #[error("{what}: expected device {expected}, got {got}")]
    Device {
        /// Which tensor.
        what: &'static str,
        /// Where it should be.
        expected: String,
        /// Where it is.
        got: String,
    },
    /// A row number is too large.
    #[error("row {row}: expected a row below {rows}")]
    RowOutOfRange {
        /// The row asked for.
        row: usize,
        /// Number of rows there are.
        rows: usize,
    },
    /// A request stands in the batch more than once.
    #[error("request {}: expected one row of it in a step, got two", .request.0)]
    DuplicateRequest {
        /// The request.
        request: RequestId,
    },
    /// The model never showed the hidden state at a site.
    #[error("tap site {site}: expected one `record` in the forward pass, got none")]
    SiteNotRecorded {
        /// The site.
        site: TapSite,
    },
    /// The model showed the hidden state at a site more than once.
    #[error(
        "tap site {site}: expected one `record` in the forward pass, got more (is the tap emptied after each?)"
    )]
    SiteRecordedTwice {
        /// The site.
        site: TapSite,
    },
    /// The model showed fewer positions at a site than it read tokens.
    #[error(
        "tap site {site}: expected the states of {expected} positions, got {got} (a model that norms its last position only \
         must do so for all of them when `HiddenStateTap::wants_all_positions` says so)"
    )]
    Positions {
        /// The site.
        site: TapSite,
        /// Tokens of the forward pass.
        expected: usize,
        /// Positions that were shown.
        got: usize,
    },
    /// A row is to be steered, but the step came without hidden states.
    #[error(
        "hidden states: expected them for {row}, whose reweighter uses expected logits, got none"
    )]
    HiddenMissing {
        /// The first such row.
        row: RowId,
    },
    /// A row is to be contrasted with another model, but the step came without that model's logits.
    #[error(
        "logits of the other model: expected them for {row}, whose reweighter contrasts with them, got none"
    )]
    OtherLogitsMissing {
        /// The first such row.
        row: RowId,
    },
    /// A cache cannot drop, reorder or append rows.
    #[error("key-value cache: expected one that can {operation}, got a fixed one")]
    CacheFixed {
        /// What was asked of it.
        operation: &'static str,
    },
    /// The sequences have grown past what the model can attend to.
    #[error("context: expected at most {limit} tokens, got {got}")]
    ContextFull {
        /// The model's limit.
        limit: usize,
        /// The length that the sequence would have had.
        got: usize,
    },
    /// Learning failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The device failed.
    #[error("device: {0}")]
    Execution(String),
    /// The model reported an error of its own.
    #[error("model")]
    Model(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl StepError {
    /// Wraps an error of a model, so that a [`CausalLm`](crate::CausalLm) can report what this crate has no word for.
    pub fn model(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Model(source.into())
    }
}

impl From<ExecutionError> for StepError {
    fn from(error: ExecutionError) -> Self {
        Self::Execution(error.to_string())
    }
}

/// A row for which no token could be chosen; the other rows of the step are not affected.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RowError {
    /// The model's logits contain something that is not a number, or positive infinity.
    #[error("logits: expected numbers or -inf, got {got} for token {token}")]
    NotANumber {
        /// The first token with such a logit.
        token: TokenId,
        /// The logit.
        got: f32,
    },
    /// Every token is masked.
    #[error("logits: expected at least one token above -inf, got none in {vocab}")]
    AllMasked {
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// A mask has the wrong size.
    #[error("token mask: expected {expected} tokens, got {got}")]
    MaskSize {
        /// Size of the vocabulary.
        expected: usize,
        /// Size of the mask.
        got: usize,
    },
    /// A logit is to be biased, or a token of the prompt or the completion penalised, that the model does not know.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where it stands: "logit bias", "prompt" or "completion".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// A filter was run without the statistics of the row.
    #[error(
        "{filter}: expected statistics of the row, got none (a filter that wraps it has to pass on `uses_row_stats`)"
    )]
    RowStatsMissing {
        /// The filter.
        filter: &'static str,
    },
    /// A row is to be selected arithmetically and came without its code.
    #[error("arithmetic code: expected that of the row's last choice, got none")]
    CodeMissing,
    /// A row's arithmetic code cannot be one.
    #[error("arithmetic code: expected a number in [0, 1), got {got}")]
    Code {
        /// The code that came.
        got: f64,
    },
    /// A reweighter or a filter produced something that cannot be a score.
    #[error("score of token {token}: expected a number, got {got}")]
    Score {
        /// The token.
        token: TokenId,
        /// Its score.
        got: f32,
    },
}

/// Online learning that could not be done, or was not.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A distiller's prediction has the wrong shape.
    #[error("distiller: expected a prediction of shape {expected:?}, got {got:?}")]
    Prediction {
        /// `[rows, d_model]`.
        expected: Vec<usize>,
        /// What it returned.
        got: Vec<usize>,
    },
    /// A stacked distiller's gradients do not have the shapes of its parameters.
    #[error("stacked distiller: expected gradients of shapes {expected:?}, got {got:?}")]
    Gradients {
        /// Shapes of the parameters.
        expected: Vec<[usize; 3]>,
        /// Shapes of what it returned.
        got: Vec<[usize; 3]>,
    },
    /// A stacked distiller's gradient comes in factors that have no product.
    #[error(
        "stacked distiller: gradient {parameter}: expected factors with the same slots and rows, got inputs {inputs:?} and upstream {upstream:?}"
    )]
    GradientFactors {
        /// Place of the parameter that it belongs to.
        parameter: usize,
        /// The shape of the first factor, `[slots, rows, a]`.
        inputs: [usize; 3],
        /// The shape of the second factor, `[slots, rows, b]`.
        upstream: [usize; 3],
    },
    /// The worker that learns in the background has ended: its distiller panicked, or its thread was lost. What it says
    /// first is said again by every later call.
    #[error("background learning: expected a running worker, got {got}")]
    Worker {
        /// What happened.
        got: String,
    },
    /// Steering was on and rows were there to learn from, but no update happened.
    #[error(
        "online learning: expected updates from {eligible} eligible rows, got none ({skipped} rows skipped as not finite)"
    )]
    NothingLearned {
        /// Rows that were to be learned.
        eligible: u64,
        /// How many of them were skipped because their hidden states were not finite.
        skipped: u64,
    },
}

/// A request that cannot be decoded.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The prompt has no tokens.
    #[error("prompt: expected at least one token, got none")]
    EmptyPrompt,
    /// Zero completions, or zero new tokens, were asked for.
    #[error("{setting}: expected at least 1, got 0")]
    Nothing {
        /// Which setting is zero.
        setting: &'static str,
    },
    /// More completions than one batch can hold.
    #[error("completions: expected at most {limit}, got {got}")]
    TooManyCompletions {
        /// The limit.
        limit: usize,
        /// How many were asked for.
        got: usize,
    },
    /// Prompt and completion do not fit into the model's context.
    #[error(
        "prompt of {prompt} tokens: expected at most {}, to leave room for one new token in the model's context",
        .limit - 1
    )]
    PromptTooLong {
        /// Tokens in the prompt.
        prompt: usize,
        /// The model's context length.
        limit: usize,
    },
    /// A token id that is not in the vocabulary.
    #[error("{place} token {token}: expected an id below {vocab}")]
    UnknownToken {
        /// Where it stands: "prompt", "stop" or "logit bias".
        place: &'static str,
        /// The id.
        token: TokenId,
        /// Number of tokens in the vocabulary.
        vocab: usize,
    },
    /// The request alone needs more cache memory than the limit allows.
    #[error("key-value cache: expected at most {limit} bytes, the request needs {needed}")]
    CacheLimit {
        /// The limit.
        limit: usize,
        /// What the request would take at its longest.
        needed: usize,
    },
    /// Stop strings were given to a loop that has no text decoder.
    #[error("stop strings: expected a decoder built with a detokenizer, got none")]
    NoDetokenizer,
    /// A request is to be contrasted with another model, and the loop has none.
    #[error("sampling: expected a decoder built with another model to contrast with, got none")]
    NoOtherModel,
    /// A request that is not, or no longer, in the loop.
    #[error("request {}: expected one that is waiting or running, got one that has ended or never was", .request.0)]
    UnknownRequest {
        /// The request.
        request: RequestId,
    },
    /// A sampling setting that cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Tokens that could not be turned into text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("detokenizer: {0}")]
pub struct TextError(String);

impl TextError {
    /// Wraps what a tokenizer says.
    pub fn new(message: impl std::fmt::Display) -> Self {
        Self(message.to_string())
    }
}

/// A file of traces that cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TraceError {
    /// A line could not be read.
    #[error("traces, line {line}: cannot be read")]
    Io {
        /// The line, from 1.
        line: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The file does not begin as one of traces.
    #[error("traces, line 1: expected the header of a file of esamp traces, got {got}")]
    Format {
        /// What is there.
        got: String,
    },
    /// The file has a format that this version of the crate does not know.
    #[error("traces, line 1: expected format version {expected}, got {got}")]
    Version {
        /// The version that can be read.
        expected: u64,
        /// The file's.
        got: u64,
    },
    /// A line holds something else than a record.
    #[error("traces, line {line}: expected a record, got something else ({got})")]
    Line {
        /// The line, from 1.
        line: u64,
        /// What the parser says of it.
        got: String,
    },
    /// The file ends within a line.
    #[error(
        "traces, line {line}: expected a whole line, got the beginning of one (the file was cut off)"
    )]
    Truncated {
        /// The line, from 1: the last one.
        line: u64,
    },
}

/// A snapshot of a sampler that cannot be written or read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file could not be written or read.
    #[error("{}: cannot be written or read", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is damaged, none of ours, or newer than this crate.
    #[error("{}: {what}: expected {expected}, got {got}", .path.display())]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A value does not fit into the precision in which it is to be stored.
    #[error("{what}: expected a number that f16 can hold, got {got}")]
    Range {
        /// The tensor.
        what: String,
        /// The value.
        got: f32,
    },
    /// What a file holds does not belong to the distiller.
    #[error("{what}: expected {expected}, got {got}")]
    Misfit {
        /// What was counted.
        what: String,
        /// How many the distiller has.
        expected: usize,
        /// How many the file has.
        got: usize,
    },
    /// The description of the sampler could not be written.
    #[error("snapshot header: {0}")]
    Header(String),
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
    /// A setting in the file cannot work.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Learning in the background has failed.
    #[error(transparent)]
    Train(#[from] TrainError),
}

impl SnapshotError {
    pub(crate) fn header(error: impl std::fmt::Display) -> Self {
        Self::Header(error.to_string())
    }
}

/// A model, tokenizer or chat template that cannot be loaded or used.
#[cfg(feature = "llama")]
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file could not be read.
    #[error("{}: cannot be read", .path.display())]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is damaged, or not of the kind it should be.
    #[error("{}: {what}: expected {expected}, got {got}", .path.display())]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// The part of the file.
        what: String,
        /// What should be there.
        expected: String,
        /// What is there.
        got: String,
    },
    /// A key of the configuration or the metadata is missing, or has a value that cannot be used.
    #[error("key {key}: expected {expected}, got {got}")]
    Key {
        /// The key.
        key: String,
        /// What would do.
        expected: String,
        /// What is there, or "none".
        got: String,
    },
    /// A tensor is missing, or has a shape or type that cannot be used.
    #[error("tensor {name}: expected {expected}, got {got}")]
    Tensor {
        /// Name of the tensor, as the file has it.
        name: String,
        /// What would do.
        expected: String,
        /// What is there, or "none".
        got: String,
    },
    /// The tokenizer could not be built, or failed on a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template could not be parsed, or failed on a conversation.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}
