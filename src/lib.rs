#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bank;
mod candidates;
mod causal_lm;
mod decode;
mod distiller;
mod draw;
mod error;
#[cfg(test)]
#[path = "../tests/golden/mod.rs"]
mod golden;
pub mod guide;
mod hidden;
mod id;
#[cfg(feature = "llama")]
pub mod llama;
mod lm_head;
mod novelty;
pub mod prelude;
mod sampler;
mod sampling;
mod select;
mod tap;
mod telemetry;
pub mod testing;
mod text;
mod train;

pub use bank::Sharing;
pub use candidates::{
    Candidate, CandidateFilter, Candidates, FilterConfig, MinP, Reach, RowContext, TokenMask, TopK,
    TopP,
};
pub use causal_lm::{CausalLm, KvCache};
pub use decode::{
    Completion, DecodeStats, Decoder, Event, FinishReason, Request, Submitted, TokenMasker,
};
pub use distiller::{
    Distiller, LowRankConfig, LowRankDistiller, LowRankStart, OutputStart, SourceNorm, SwiGluBlock,
    SwiGluConfig, SwiGluDistiller,
};
pub use draw::{Draw, DrawKey};
#[cfg(feature = "llama")]
pub use error::LoadError;
pub use error::{ConfigError, RequestError, RowError, StepError, TextError, TrainError};
pub use hidden::HiddenStates;
pub use id::{PromptId, RequestId, RowId, TokenId};
pub use lm_head::{LmHead, TiedHead};
pub use novelty::{Extrapolate, NoveltyReweighter};
pub use sampler::{
    Choice, DistillerConfig, Novelty, Phase, Sampler, SamplerConfig, StepInput, StepOutput, StepRow,
};
pub use sampling::{Sampling, SamplingConfig, TemperatureOrder};
pub use tap::{HiddenStateTap, NoTap, PairTap, SequenceTap, TapSite};
pub use telemetry::Counters;
pub use text::{Detokenize, TextStream};
pub use train::{Learner, OptimizerConfig, Update, UpdateRule};
