//! What happened, in numbers: totals, one trace per token, one per step, and their way into a file.

mod counters;
mod error;
mod json_lines;
mod measures;
mod observer;
mod recorder;
mod stages;
mod trace;

pub use counters::Counters;
pub use error::TraceError;
pub use json_lines::{TraceReader, TraceRecord, TraceWriter, read_traces};
pub(crate) use measures::Measures;
pub use observer::Observer;
pub use recorder::Recorder;
pub(crate) use stages::StageClock;
pub use stages::StageSeconds;
pub use trace::{RowTrace, SlotTrace, Steering, StepTrace};
