//! Exploratory Sampling (ESamp): decode a language model so that its samples differ in ideas, not only in words.
//!
//! While a model decodes, a small network (the *distiller*) learns online to predict the model's deep hidden state
//! from its shallow one. Where the prediction fails, the sampler shifts probability towards the tokens that the
//! distiller did not expect (arXiv 2604.24927). This crate works with any language model written in [`burn`].
//!
//! ```
//! use std::ops::ControlFlow;
//!
//! use burn::tensor::Device;
//! use esamp::{CausalLm, Decoder, Request, SamplerConfig, testing::TinyLm};
//!
//! let model = TinyLm::new(1, &Device::flex()); // or any other `CausalLm`
//! let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
//! let mut decoder = Decoder::new(&model, sampler)?;
//! decoder.submit(Request::new(vec![1, 2, 3]).with_completions(16))?;
//! let completions = decoder.run(|_event| ControlFlow::Continue(()))?;
//! assert_eq!(completions.len(), 16);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to start
//!
//! - You have a burn model: implement [`CausalLm`] and use the [`Decoder`]. [The guide](guide::your_model) shows how.
//! - You have a decode loop: call [`Sampler::step`] in it, once per step.
//! - You have an engine without burn tensors: [slices are enough](guide::your_engine).
//! - You want a model that is ready to run: the feature `llama` and its module `llama`.
//! - You want to choose settings: [which to start with](guide::choose_settings), and [all of them](guide::settings).
//!
//! # Map of the crate
//!
//! | item | what it is for |
//! |---|---|
//! | [`Decoder`], [`Request`], [`Event`], [`Completion`] | the ready decode loop |
//! | [`engine`] | the decode loop on a thread of its own, for many callers |
//! | [`CausalLm`], [`KvCache`], [`LmHead`], [`HiddenStateTap`] | what the loop needs of a model |
//! | [`Sampler`], [`StepInput`], [`StepRow`], [`Choice`] | one step, for a loop of your own |
//! | [`SamplerConfig`], [`Sharing`], [`optim`], [`distillers`] | the distillers and how they learn |
//! | [`Sampling`], [`filters`], [`reweighters`], [`Penalties`] | how one request's tokens are chosen |
//! | [`Counters`], [`telemetry`], [`snapshots`] | what happened, and saving what was learned |
//! | [`errors`] | every error type |
//! | [`testing`] | models without weights, for tests |
//! | [`guide`] | chapters to read |
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bank;
mod candidates;
mod causal_lm;
mod custom;
mod decode;
mod distiller;
mod draw;
pub mod engine;
mod error;
mod fire;
pub mod guide;
mod hidden;
mod host;
mod id;
#[cfg(feature = "llama")]
pub mod llama;
mod lm_head;
mod novelty;
mod numeric;
mod penalties;
mod sampler;
mod sampling;
mod select;
mod snapshot;
mod tap;
pub mod telemetry;
mod tensor;
pub mod testing;
mod text;
mod train;

/// The code of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

#[cfg(test)]
use esamp_testkit::golden;

/// The tensors that the API takes.
pub use burn;
/// The random number generators that [`Draw`](filters::Draw) returns.
pub use rand;

pub use bank::Sharing;
pub use candidates::{LogitsProcessor, TokenMask};
pub use causal_lm::{BatchSize, CacheLimits, CausalLm, KvCache};
pub use decode::{
    Completion, DecodeStats, Decoder, Event, FinishReason, Request, Submitted, TokenMasker,
};
pub use draw::DrawKey;
pub use fire::Fire;
pub use hidden::{HiddenStates, TapSite};
pub use id::{CompletionId, GroupId, PromptId, TokenId};
pub use lm_head::{HeadRows, LmHead, TiedHead};
pub use penalties::{Dry, Penalties};
pub use sampler::{
    Choice, Novelty, Phase, Sampler, SamplerBuilder, SamplerConfig, StepInput, StepOutput, StepRow,
};
pub use sampling::{CheckedSampling, Sampling, TemperatureOrder};
pub use select::{Selection, TokenSelector};
pub use tap::{HiddenStateTap, NoTap, PairTap, SequenceTap};
pub use telemetry::Counters;
pub use text::{Detokenize, TextStream};

/// Filters: which tokens remain candidates. They see the reference distribution only.
pub mod filters {
    pub use crate::{
        candidates::{
            Candidate, CandidateFilter, Candidates, FilterConfig, RowContext, built_in::*,
        },
        custom::Custom,
        draw::Draw,
    };
}

/// Reweighters: new scores for the candidates from their reference and expected logits.
pub mod reweighters {
    pub use crate::novelty::{
        Contrast, Expects, Extrapolate, NoveltyReweighter, Orthogonal, ReweighterConfig,
    };
}

/// Distillers: small networks that predict the deep hidden state from the shallow one.
pub mod distillers {
    pub use crate::{
        distiller::{
            Distiller, LowRankConfig, LowRankDistiller, LowRankStart, OutputStart, SourceNorm,
            SwiGluBlock, SwiGluConfig, SwiGluDistiller,
        },
        sampler::DistillerConfig,
    };
}

/// How distillers learn: optimizers, schedules, and when an update becomes visible.
pub mod optim {
    pub use crate::{
        bank::AdaptiveConfig,
        train::{
            Learner, LossReduction, OptimizerConfig, Schedule, Staleness, TrainRows,
            TrainingConfig, TrainingWorker, Update, UpdateRule,
        },
    };
}

/// Saving and loading what a sampler has learned: see [`Sampler::save`] and [`Sampler::loader`].
pub mod snapshots {
    pub use crate::snapshot::{SamplerLoader, SnapshotPrecision};
}

/// Every error type of the crate.
pub mod errors {
    #[cfg(feature = "llama")]
    pub use crate::llama::LoadError;
    pub use crate::{
        causal_lm::ModelError,
        decode::{GroupError, RequestError},
        error::{ConfigError, RowError},
        hidden::HiddenError,
        sampler::StepError,
        snapshot::SnapshotError,
        telemetry::TraceError,
        text::TextError,
        train::TrainError,
    };
}

/// Implementation details that are public for experiments. **Unstable**: they may change in any release.
pub mod unstable {
    pub use crate::{
        bank::{AdaptiveStart, SlotKey},
        candidates::{Reach, RowStats},
        distiller::{ForwardPass, Gradient, StackedDistiller},
        sampler::{ExpectedControl, LogitsTransfer},
        telemetry::stages::StageSeconds,
        train::SlotPath,
    };
}
