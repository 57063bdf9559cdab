#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod bank;
mod candidates;
mod causal_lm;
mod custom;
mod decode;
mod distiller;
mod draw;
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
pub mod prelude;
mod sampler;
mod sampling;
mod select;
mod snapshot;
mod tap;
mod telemetry;
mod tensor;
pub mod testing;
mod text;
mod train;

#[cfg(test)]
use esamp_testkit::golden;

pub use bank::{AdaptiveConfig, AdaptiveStart, Sharing, SlotKey};
pub use candidates::{
    Candidate, CandidateFilter, Candidates, FilterConfig, Reach, RowContext, RowStats, TokenMask,
    filters::*,
};
pub use causal_lm::{CausalLm, KvCache, ModelError};
pub use custom::Custom;
pub use decode::{
    Completion, DecodeStats, Decoder, Event, FinishReason, Request, RequestError, Submitted,
    TokenMasker,
};
pub use distiller::{
    Distiller, Gradient, LowRankConfig, LowRankDistiller, LowRankStart, OutputStart, SourceNorm,
    StackedDistiller, SwiGluBlock, SwiGluConfig, SwiGluDistiller,
};
pub use draw::{Draw, DrawKey};
pub use error::{ConfigError, RowError};
pub use fire::Fire;
pub use hidden::{HiddenError, HiddenStates, TapSite};
pub use id::{PromptId, RequestId, CompletionId, TokenId};
#[cfg(feature = "llama")]
pub use llama::LoadError;
pub use lm_head::{LmHead, TiedHead};
pub use novelty::{
    Contrast, Expects, Extrapolate, NoveltyReweighter, Orthogonal, ReweighterConfig,
};
pub use penalties::Penalties;
pub use sampler::{
    Choice, DistillerConfig, ExpectedControl, Novelty, Phase, Sampler, SamplerBuilder,
    SamplerConfig, StepError, StepInput, StepOutput, StepRow,
};
pub use sampling::{CheckedSampling, Sampling, TemperatureOrder};
pub use select::Selection;
pub use snapshot::{SamplerLoader, SnapshotError, SnapshotPrecision};
pub use tap::{HiddenStateTap, NoTap, PairTap, SequenceTap};
pub use telemetry::{
    Counters, Observer, Recorder, RowTrace, SlotTrace, StageSeconds, Steering, StepTrace,
    TraceError, TraceReader, TraceRecord, TraceWriter, read_traces,
};
pub use text::{Detokenize, TextError, TextStream};
pub use train::{
    Learner, LossReduction, OptimizerConfig, Schedule, SlotPath, Staleness, TrainError, TrainRows,
    TrainingConfig, TrainingWorker, Update, UpdateRule,
};
