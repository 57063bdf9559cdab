//! The flags about the distiller and how it learns.

use clap::{ValueEnum, builder::RangedU64ValueParser};
use esamp::{
    SamplerConfig, Sampling, Sharing,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
};

use crate::failure::Failure;

/// The distiller and how it learns.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Learning")]
pub struct Learning {
    /// The preset that the other settings start from [default: default]
    #[arg(long, value_enum)]
    pub settings: Option<SettingsName>,
    /// The network that learns to predict the deep hidden state [default: swiglu]
    #[arg(long, value_enum)]
    pub distiller: Option<DistillerName>,
    /// Rank of the low-rank distiller [default: 64]
    #[arg(long, allow_negative_numbers = true,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=65536))]
    pub rank: Option<usize>,
    /// Learning rate of the distiller [default: 4e-4 for swiglu, 1e-3 for low-rank]
    #[arg(long, allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Which completions share a distiller [default: per-prompt]
    #[arg(long, value_enum)]
    pub sharing: Option<SharingName>,
    /// Updates on the prompt before the first token [default: 0]
    #[arg(long, value_name = "UPDATES", allow_negative_numbers = true)]
    pub warm_up_updates: Option<usize>,
    /// Updates a distiller needs before it steers [default: 0]
    #[arg(long, value_name = "UPDATES", allow_negative_numbers = true)]
    pub updates_before_steering: Option<usize>,
}

/// Presets of settings.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum SettingsName {
    /// The paper's settings with min-p 0.05.
    Default,
    /// The paper's settings, without a filter.
    Paper,
    /// Those of `default`, with a learning rate of 3e-3 for completions of about 100 tokens.
    ShortCompletions,
    /// The reference implementation's cheap settings: low-rank, plain SGD, one row learned per step, no
    /// filter.
    Reference,
}

/// The distillers that have a name on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DistillerName {
    /// The paper's distiller: two residual SwiGLU blocks.
    Swiglu,
    /// The reference implementation's distiller: a low-rank gated residual.
    LowRank,
}

/// Which completions share a distiller.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SharingName {
    /// All completions.
    Global,
    /// The completions of one prompt.
    PerPrompt,
    /// None: each completion has its own.
    PerCompletion,
    /// A shared distiller and one per prompt, mixed by how well each predicts.
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

impl Learning {
    /// The settings of the preset.
    pub fn preset(&self) -> SamplerConfig {
        match self.settings {
            None | Some(SettingsName::Default) => SamplerConfig::new(),
            Some(SettingsName::Paper) => SamplerConfig::paper(),
            Some(SettingsName::ShortCompletions) => SamplerConfig::for_short_completions(),
            Some(SettingsName::Reference) => SamplerConfig::reference(),
        }
    }

    /// The min-p that goes with the preset; `None` if it has no filter.
    pub fn usual_min_p(&self) -> Option<f32> {
        match self.settings {
            Some(SettingsName::Paper | SettingsName::Reference) => None,
            _ => Some(Sampling::DEFAULT_MIN_P),
        }
    }

    /// Sets what the flags besides the preset say.
    ///
    /// # Errors
    ///
    /// A rank for a distiller that has none.
    pub fn apply(&self, config: &mut SamplerConfig) -> Result<(), Failure> {
        if let Some(name) = self.distiller {
            config.distiller = match name {
                DistillerName::Swiglu => DistillerConfig::SwiGlu(SwiGluConfig::new()),
                DistillerName::LowRank => DistillerConfig::LowRank(LowRankConfig::new()),
            };
        }
        if let Some(rank) = self.rank {
            match &mut config.distiller {
                DistillerConfig::LowRank(low_rank) => low_rank.rank = rank,
                _ => {
                    return Err(Failure::usage(
                        "--rank: expected the low-rank distiller, got another".to_owned(),
                        "add --distiller low-rank, or drop the flag",
                    ));
                }
            }
        }
        if let Some(rate) = self.learning_rate {
            let optimizer =
                config.optimizer.unwrap_or_else(|| config.distiller.default_optimizer());
            config.optimizer = Some(optimizer.with_learning_rate(rate));
        }
        if let Some(sharing) = self.sharing {
            config.sharing = sharing.into();
        }
        if let Some(updates) = self.updates_before_steering {
            config.updates_before_steering = updates;
        }
        Ok(())
    }

    /// The settings of the command line.
    ///
    /// # Errors
    ///
    /// Settings that are out of range, and those of [`apply`](Self::apply).
    pub fn sampler(&self) -> Result<SamplerConfig, Failure> {
        let mut config = self.preset();
        self.apply(&mut config)?;
        config.validate()?;
        Ok(config)
    }
}
