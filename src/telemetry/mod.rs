//! Telemetry: counters, one trace per token, one trace per step, and trace files.

mod counters;
mod error;
mod json_lines;
mod measures;
mod observer;
mod recorder;
pub(crate) mod stages;
mod trace;

pub use counters::Counters;
pub(crate) use counters::add;
pub use error::TraceError;
pub use json_lines::{TraceReader, TraceRecord, TraceWriter, read_traces};
pub(crate) use measures::Measures;
pub use observer::Observer;
pub use recorder::Recorder;
pub(crate) use stages::{StageClock, StageSeconds};
pub use trace::{RowTrace, SlotTrace, Steering, StepTrace};
