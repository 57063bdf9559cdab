//! The command line. What it makes of the library's settings is in `settings`.

use std::path::PathBuf;

use clap::{Parser, ValueEnum, builder::RangedU64ValueParser};
use esamp::{
    Selection, Sharing, TemperatureOrder,
    filters::{EpsilonCutoff, EtaCutoff, FilterConfig, MinP, TopK, TopNSigma, TopP, Typical, Xtc},
    reweighters::ReweighterConfig,
};
use esamp_programs::{
    device::DeviceName,
    failure::Failure,
    model_source::{FetchError, ModelSource},
};

/// Completions of one prompt side by side: plain sampling and ESamp, or what --reweighter names.
#[derive(Debug, Parser)]
#[command(name = "generate", version, args_override_self = true)]
pub struct Args {
    /// What to complete; a chat message unless --raw.
    #[arg(
        long,
        default_value = "Continue this short story in an original way. Write only the continuation.\n\n\
                         The lighthouse had been dark for twenty years when"
    )]
    pub prompt: String,
    /// Completions per arm.
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub samples: usize,
    /// The most tokens of a completion.
    #[arg(long, default_value_t = 64, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub max_new_tokens: usize,
    /// Seed of the random numbers.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// A GGUF file, a Hugging Face folder, or hf:ORG/NAME [default: SmolLM2-135M-Instruct]
    #[arg(long)]
    pub model: Option<String>,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = DeviceName::Flex)]
    pub device: DeviceName,
    /// Complete the prompt as it is, without the model's chat template.
    #[arg(long)]
    pub raw: bool,
    /// Only plain sampling.
    #[arg(long)]
    pub plain: bool,
    /// Print one JSON object instead, with the settings that --config reads.
    #[arg(long)]
    pub json: bool,
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

/// How far to steer, and where.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Steering")]
pub struct Steering {
    /// Exploration strength; 0 is plain sampling [default: the usual one of the reweighter]
    #[arg(long, allow_negative_numbers = true)]
    pub beta: Option<f32>,
    /// What beta is the strength of [default: extrapolate]
    #[arg(long, value_enum)]
    pub reweighter: Option<ReweighterName>,
    /// The second model of `--reweighter contrast`, named as in --model; it must have the same tokenizer.
    #[arg(long, value_name = "MODEL")]
    pub contrast_with: Option<String>,
}

/// What a token is drawn with.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Drawing")]
pub struct Drawing {
    /// Temperature; 0 takes the best token [default: 1]
    #[arg(long, allow_negative_numbers = true)]
    pub temperature: Option<f32>,
    /// Whether filters see logits before or after the temperature [default: before-filters]
    #[arg(long, value_enum)]
    pub temperature_order: Option<OrderName>,
    /// Temperature of the first token alone (FIRE), 10 to 50.
    #[arg(long, value_name = "TEMPERATURE", allow_negative_numbers = true)]
    pub fire: Option<f32>,
    /// Spread the completions over the distribution (arithmetic sampling) instead of drawing each on its own.
    #[arg(long)]
    pub arithmetic: bool,
    /// Divides the logits of tokens that have occurred, in the prompt too; 1 is off.
    #[arg(long, allow_negative_numbers = true)]
    pub repetition_penalty: Option<f32>,
    /// Subtracted from a logit for each time that its token has occurred in the completion; 0 is off.
    #[arg(long, allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Subtracted from the logit of every token that has occurred in the completion; 0 is off.
    #[arg(long, allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
}

/// Who is left to be drawn.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Filters, in the order in which they run")]
pub struct Filters {
    /// Keep tokens at most so many standard deviations below the best logit.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub top_n_sigma: Option<f32>,
    /// Keep so many of the best tokens.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Keep the tokens of this mass whose surprisal is nearest to the entropy.
    #[arg(long, value_name = "MASS", allow_negative_numbers = true)]
    pub typical: Option<f32>,
    /// Keep the best tokens that together have this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Keep tokens at least this many times as likely as the best one; 0 keeps all [default: 0.05; 0.1 with contrast, 0 with --settings paper or reference]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Keep tokens more likely than this.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub epsilon: Option<f32>,
    /// The same with a cutoff that falls with the entropy.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub eta: Option<f32>,
    /// With this probability, drop all tokens above the threshold but the least likely of them.
    #[arg(long, value_name = "THRESHOLD,PROBABILITY", value_parser = xtc, allow_hyphen_values = true)]
    pub xtc: Option<Xtc>,
}

/// The distiller.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Learning")]
pub struct Learning {
    /// What the other settings start from [default: default]
    #[arg(long, value_enum)]
    pub settings: Option<SettingsName>,
    /// The network that learns to expect the deep hidden state [default: swiglu]
    #[arg(long, value_enum)]
    pub distiller: Option<DistillerName>,
    /// Learning rate of the distiller [default: 4e-4 for swiglu, 1e-3 for low-rank]
    #[arg(long, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Which completions share a distiller [default: per-prompt]
    #[arg(long, value_enum)]
    pub sharing: Option<SharingName>,
    /// Updates on the prompt, before the first token [default: 0]
    #[arg(long, value_name = "UPDATES")]
    pub warm_up_steps: Option<usize>,
    /// Updates that a distiller must have had before it steers [default: 0]
    #[arg(long, value_name = "UPDATES")]
    pub steps_before_steering: Option<usize>,
}

/// What is read and written.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Files")]
pub struct Files {
    /// Settings as JSON: {"sampling": {…}, "sampler": {…}}, each with what differs. A flag overrides it.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Write every token and step of the last column as JSON Lines, as they come.
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a page to look at in a browser: every token with its novelty and what steering did to it.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Start from what --save has written, with the learning settings that are in it.
    #[arg(long, value_name = "FILE")]
    pub load: Option<PathBuf>,
    /// Write what was learned; with --sharing global or adaptive, where it outlives its prompt.
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
}

/// The reweighters, under the names of the library.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ReweighterName {
    /// ESamp.
    Extrapolate,
    /// ESamp without what only sharpens.
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

/// What filters see.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OrderName {
    /// Logits divided by the temperature.
    BeforeFilters,
    /// Logits as the model gave them.
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

/// Settings that belong together.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum SettingsName {
    /// The paper's, and min-p 0.05.
    Default,
    /// The paper's: no filter.
    Paper,
    /// The reference implementation's cheap ones: low-rank, plain descent, one row learned; no filter.
    Reference,
}

/// The distillers that the library has a name for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DistillerName {
    /// The paper's: two residual SwiGLU blocks.
    Swiglu,
    /// The reference implementation's: a low-rank gated residual.
    LowRank,
}

/// Who shares a distiller.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SharingName {
    /// Everyone.
    Global,
    /// The completions of a prompt.
    PerPrompt,
    /// Nobody.
    PerCompletion,
    /// Everyone and the completions of a prompt, mixed by how well each predicts.
    Adaptive,
}

impl From<SharingName> for Sharing {
    fn from(name: SharingName) -> Self {
        match name {
            SharingName::Global => Self::Global,
            SharingName::PerPrompt => Self::PerPrompt,
            SharingName::PerCompletion => Self::PerCompletion,
            SharingName::Adaptive => Self::Adaptive(Default::default()),
        }
    }
}

impl Args {
    /// The model asked for.
    pub fn source(&self) -> Result<ModelSource, Failure> {
        match &self.model {
            None => Ok(ModelSource::SmolLm2),
            Some(model) => Ok(model.parse::<ModelSource>()?),
        }
    }

    /// The model to contrast with, if there is to be one.
    pub fn other_source(&self) -> Result<Option<ModelSource>, Failure> {
        let parse = |model: &String| match model.parse::<ModelSource>() {
            Err(FetchError::Unknown(got)) => Err(Failure::usage(
                format!("--contrast-with: expected a path that exists or hf:ORG/NAME, got {got}"),
                "give a .gguf file, a folder with config.json, or hf:ORG/NAME",
            )),
            source => Ok(source?),
        };
        self.steering.contrast_with.as_ref().map(parse).transpose()
    }
}

impl Drawing {
    /// Where the number comes from that picks the token, if it was said.
    pub fn selection(&self) -> Option<Selection> {
        self.arithmetic.then_some(Selection::Arithmetic)
    }
}

impl Filters {
    /// Those that were named, in their order; `usual_min_p` where min-p was not.
    pub fn list(&self, usual_min_p: Option<f32>) -> Vec<FilterConfig> {
        let min_p = self.min_p.or(usual_min_p).filter(|&p| p != 0.0);
        [
            self.top_n_sigma.map(|n| FilterConfig::TopNSigma(TopNSigma { n })),
            self.top_k.map(|k| FilterConfig::TopK(TopK { k })),
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

    /// Whether a filter was named.
    pub fn any(&self) -> bool {
        self.min_p.is_some() || !self.list(None).is_empty()
    }
}

fn xtc(text: &str) -> Result<Xtc, String> {
    let wrong = || "expected two numbers, as in 0.1,0.5".to_owned();
    let (threshold, probability) = text.split_once(',').ok_or_else(wrong)?;
    let number = |text: &str| text.trim().parse().map_err(|_| wrong());
    Ok(Xtc { threshold: number(threshold)?, probability: number(probability)? })
}
