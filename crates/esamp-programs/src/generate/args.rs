//! The command line. `settings` turns it into the library's settings.

use std::{collections::hash_map::RandomState, ffi::OsString, hash::BuildHasher, path::PathBuf};

use crate::{
    failure::Failure,
    files::{NamedFile, check_distinct},
    learning::Learning,
    model_source::{FetchError, ModelSource},
};
use clap::{
    ValueEnum,
    builder::{NonEmptyStringValueParser, RangedI64ValueParser, RangedU64ValueParser},
};
use esamp::{
    Selection, TemperatureOrder, TokenId,
    filters::{EpsilonCutoff, EtaCutoff, FilterConfig, MinP, TopK, TopNSigma, TopP, Typical, Xtc},
    reweighters::ReweighterConfig,
};

/// The flags that do not depend on the engine.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The prompt; sent as a chat message unless --raw is given.
    #[arg(
        long,
        default_value = "Continue this short story in an original way. Write only the continuation.\n\n\
                         The lighthouse had been dark for twenty years when"
    )]
    pub prompt: String,
    /// Number of completions per arm.
    #[arg(long, default_value_t = 4, allow_negative_numbers = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub samples: usize,
    /// Maximum number of tokens per completion.
    #[arg(long, default_value_t = 64, allow_negative_numbers = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_new_tokens: usize,
    /// Seed of the random numbers; -1 draws a seed, which is printed.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true, value_parser = seed)]
    pub seed: u64,
    /// The model: a GGUF file, a Hugging Face folder, or hf:ORG/NAME [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    pub model: Option<OsString>,
    /// Complete the prompt as given, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// Run plain sampling only.
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON object instead of text; it contains the settings in the form that --config reads.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub stopping: Stopping,
    #[command(flatten)]
    pub steering: Steering,
    #[command(flatten)]
    pub drawing: Drawing,
    #[command(flatten)]
    pub filters: Filters,
    #[command(flatten)]
    pub learning: Learning,
    #[command(flatten)]
    pub files: Files,
}

/// What ends a completion before its maximum number of tokens.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Stopping")]
pub struct Stopping {
    /// End a completion before this text; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, value_parser = NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// End a completion at this token, in addition to the model's own; may be given several times.
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub stop_token: Vec<TokenId>,
    /// Do not end a completion at the model's end tokens.
    #[arg(long)]
    pub ignore_eos: bool,
    /// Minimum number of tokens per completion before an end token can be chosen.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub min_new_tokens: usize,
}

/// Steering strength and method.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Steering")]
pub struct Steering {
    /// Steering strength; 0 is plain sampling [default: depends on the reweighter]
    #[arg(long, allow_negative_numbers = true)]
    pub beta: Option<f32>,
    /// The reweighter whose strength beta sets [default: extrapolate]
    #[arg(long, value_enum)]
    pub reweighter: Option<ReweighterName>,
    /// The second model for `--reweighter contrast`, in the same form as --model; it must use the same
    /// tokenizer.
    #[arg(long, value_name = "MODEL")]
    pub contrast_with: Option<OsString>,
}

/// How a token is drawn.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct Drawing {
    /// Temperature; 0 is greedy decoding [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Whether the temperature is applied before or after the filters [default: before-filters]
    #[arg(long, value_enum)]
    pub temperature_order: Option<OrderName>,
    /// Temperature of the first token only (FIRE); 10 to 50 are usual.
    #[arg(long, value_name = "TEMPERATURE", allow_negative_numbers = true)]
    pub fire: Option<f32>,
    /// Use arithmetic sampling: spread the completions over the distribution instead of drawing them
    /// independently.
    #[arg(long)]
    pub arithmetic: bool,
    /// Repetition penalty: divides the logits of tokens that have occurred, including in the prompt; 1 is
    /// off.
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Frequency penalty: subtracted from a token's logit once per occurrence in the completion; 0 is off.
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Presence penalty: subtracted from the logit of every token that has occurred in the completion; 0 is
    /// off.
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Sequences of N tokens occur only once, including in the prompt; 0 is off.
    #[arg(long, value_name = "N")]
    pub no_repeat_ngram: Option<usize>,
    /// DRY: a penalty for continuing a repetition, in nats for one of three tokens; 0.8 is usual. Its other settings
    /// are set by --config.
    #[arg(long, value_name = "MULTIPLIER", allow_negative_numbers = true)]
    pub dry: Option<f32>,
}

/// The filters that narrow the candidates.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters, in the order in which they run")]
pub struct Filters {
    /// Top-nσ: keep tokens at most N standard deviations below the best logit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// Keep the K most likely tokens; 0 or -1 is off.
    #[arg(long, value_name = "K", allow_negative_numbers = true,
          value_parser = RangedI64ValueParser::<i64>::new().range(-1..))]
    pub top_k: Option<i64>,
    /// Typical sampling: keep tokens of total probability MASS whose surprisal is closest to the entropy.
    #[arg(long, value_name = "MASS", allow_negative_numbers = true)]
    pub typical: Option<f32>,
    /// Top-p: keep the most likely tokens whose total probability reaches P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Min-p: keep tokens at least P times as likely as the best one; 0 is off [default: 0.05; 0.1 with
    /// contrast, 0 with --settings paper or reference]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Epsilon cutoff: keep tokens with a probability above P.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub epsilon: Option<f32>,
    /// Eta cutoff: like epsilon, with a cutoff that falls with the entropy.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub eta: Option<f32>,
    /// XTC: with this probability, drop all tokens above the threshold except the least likely of them.
    #[arg(long, value_name = "THRESHOLD,PROBABILITY", value_parser = xtc, allow_hyphen_values = true)]
    pub xtc: Option<Xtc>,
}

/// Files to read and write.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
pub struct Files {
    /// Settings as JSON: {"sampling": {…}, "sampler": {…}}, each with the values to change. Flags override
    /// the file.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write every token and step of the last column as JSON Lines during the run.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write an HTML page that shows every token with its novelty and the effect of steering.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Start from a snapshot written by --save, with its learning settings.
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Save what was learned to a snapshot; needs --sharing global or adaptive.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

/// The reweighters, named as in the library.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReweighterName {
    /// ESamp.
    Extrapolate,
    /// ESamp without the component that only sharpens the distribution.
    Orthogonal,
    /// Contrastive decoding; needs --contrast-with.
    Contrast,
}

impl From<ReweighterName> for ReweighterConfig {
    fn from(name: ReweighterName) -> Self {
        match name {
            ReweighterName::Extrapolate => Self::Extrapolate,
            ReweighterName::Orthogonal => Self::Orthogonal,
            ReweighterName::Contrast => Self::Contrast,
        }
    }
}

/// Which logits the filters see.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OrderName {
    /// The logits divided by the temperature.
    BeforeFilters,
    /// The logits as the model returned them.
    AfterFilters,
}

impl From<OrderName> for TemperatureOrder {
    fn from(name: OrderName) -> Self {
        match name {
            OrderName::BeforeFilters => Self::BeforeFilters,
            OrderName::AfterFilters => Self::AfterFilters,
        }
    }
}

impl Args {
    /// The model to decode.
    pub fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::SmolLm2),
            Some(model) => Ok(ModelSource::named(model)?),
        }
    }

    /// The model to contrast with, if one was given.
    pub fn other_source(&self) -> Result<Option<ModelSource>, Failure> {
        let parse = |model: &OsString| match ModelSource::named(model) {
            Err(FetchError::Unknown(got)) => Err(Failure::usage(
                format!("--contrast-with: expected a path that exists or hf:ORG/NAME, got {got}"),
                "give a .gguf file, a folder with config.json, or hf:ORG/NAME",
            )),
            source => Ok(source?),
        };
        self.steering.contrast_with.as_ref().map(parse).transpose()
    }

    /// Refuses a command line on which one file would overwrite another. --load and --save may name the same file: it
    /// is replaced as a whole at the end.
    pub fn check_files(
        &self,
        model: &ModelSource,
        other: Option<&ModelSource>,
    ) -> Result<(), Failure> {
        let files = &self.files;
        let mut common = NamedFile::of_model("--model", model);
        if let Some(other) = other {
            common.extend(NamedFile::of_model("--contrast-with", other));
        }
        let read = |flag, path: &Option<PathBuf>| Some(NamedFile::read(flag, path.clone()?));
        let written = |flag, path: &Option<PathBuf>| Some(NamedFile::written(flag, path.clone()?));
        common.extend(read("--config", &files.config));
        common.extend(written("--trace", &files.trace));
        common.extend(written("--html", &files.html));
        for snapshot in [read("--load", &files.load), written("--save", &files.save)] {
            check_distinct(&[&common[..], snapshot.as_slice()].concat())?;
        }
        Ok(())
    }
}

impl Drawing {
    /// How tokens are selected, if the command line says so.
    pub fn selection(&self) -> Option<Selection> {
        self.arithmetic.then_some(Selection::Arithmetic)
    }
}

impl Filters {
    /// The filters that were given, in order; min-p is `usual_min_p` if it was not given.
    pub fn list(&self, usual_min_p: Option<f32>) -> Vec<FilterConfig> {
        let min_p = self.min_p.or(usual_min_p).filter(|&p| p != 0.0);
        // -1 is no usize. Neither is a number that no vocabulary has: it keeps every token too.
        let top_k = self.top_k.and_then(|k| usize::try_from(k).ok()).filter(|&k| k > 0);
        [
            self.top_n_sigma.map(|n| FilterConfig::TopNSigma(TopNSigma { n })),
            top_k.map(|k| FilterConfig::TopK(TopK { k })),
            self.typical.map(|mass| FilterConfig::Typical(Typical { mass })),
            self.top_p.map(|p| FilterConfig::TopP(TopP { p })),
            min_p.map(|p| FilterConfig::MinP(MinP { p })),
            self.epsilon.map(|epsilon| FilterConfig::EpsilonCutoff(EpsilonCutoff { epsilon })),
            self.eta.map(|epsilon| FilterConfig::EtaCutoff(EtaCutoff { epsilon })),
            self.xtc.map(FilterConfig::Xtc),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Whether any filter was given.
    pub fn any(&self) -> bool {
        self.min_p.is_some() || self.top_k.is_some() || !self.list(None).is_empty()
    }
}

/// A seed, or one drawn by the operating system. The drawn one is short enough to be typed.
fn seed(text: &str) -> Result<u64, String> {
    if text == "-1" {
        return Ok(RandomState::new().hash_one(()) >> 32);
    }
    text.parse().map_err(|_| {
        format!("expected a whole number from 0 to {}, or -1 for a random one", u64::MAX)
    })
}

fn xtc(text: &str) -> Result<Xtc, String> {
    let wrong = || "expected two numbers, as in 0.1,0.5".to_owned();
    let (threshold, probability) = text.split_once(',').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse().map_err(|_| wrong());
    Ok(Xtc { threshold: number(threshold)?, probability: number(probability)? })
}
