//! In-memory recorder of traces.

use std::io::{self, Write};

use super::{Observer, RowTrace, StepTrace, TraceRecord, TraceWriter};

/// Keeps the traces of a run in memory, up to a limit.
///
/// Records past the limit are counted but not kept, so a recording is always the beginning of a run. For a long run,
/// use a [`TraceWriter`].
///
/// ```
/// use std::{
///     ops::ControlFlow,
///     sync::{Arc, Mutex},
/// };
///
/// use burn::tensor::Device;
/// use esamp::{CausalLm, Decoder, Request, SamplerConfig, telemetry::Recorder, testing::TinyLm};
///
/// let recorder = Arc::new(Mutex::new(Recorder::new()));
/// let model = TinyLm::new(1, &Device::flex());
/// let sampler = SamplerConfig::new().init(model.d_model(), &model.device())?;
/// let mut decoder = Decoder::new(&model, sampler)?.with_observer(recorder.clone());
/// decoder.submit(Request::new(vec![1, 2, 3]).with_max_new_tokens(8))?;
/// decoder.run(|_| ControlFlow::Continue(()))?;
///
/// let recorder = recorder.lock().unwrap();
/// assert_eq!(recorder.tokens().count(), 8);
/// assert_eq!(recorder.loss_curve().len(), 7); // the first token is not learned
/// let mut file = Vec::new();
/// recorder.write_json_lines(&mut file)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Recorder {
    records: Vec<TraceRecord>,
    limit: usize,
    dropped: u64,
}

impl Recorder {
    /// The default limit, in records. Each token is one record and each step is one record. A record takes about 350
    /// bytes, and a step takes 40 more for each slot that learned.
    pub const DEFAULT_LIMIT: usize = 200_000;

    /// Creates an empty recorder with the default limit.
    pub fn new() -> Self {
        Self { records: Vec::new(), limit: Self::DEFAULT_LIMIT, dropped: 0 }
    }

    /// Sets the maximum number of records to keep.
    pub fn with_limit(mut self, records: usize) -> Self {
        self.limit = records;
        self
    }

    /// The records, in chronological order.
    pub fn records(&self) -> &[TraceRecord] {
        &self.records
    }

    /// The recorded tokens.
    pub fn tokens(&self) -> impl Iterator<Item = &RowTrace> {
        self.records.iter().filter_map(|record| match record {
            TraceRecord::Token(trace) => Some(trace),
            _ => None,
        })
    }

    /// The recorded steps.
    pub fn steps(&self) -> impl Iterator<Item = &StepTrace> {
        self.records.iter().filter_map(|record| match record {
            TraceRecord::Step(trace) => Some(trace),
            _ => None,
        })
    }

    /// Step number and mean loss of every recorded step with rows to learn from.
    pub fn loss_curve(&self) -> Vec<(u64, f64)> {
        self.steps().filter_map(|step| Some((step.step, step.loss?))).collect()
    }

    /// Number of records past the limit, which were not kept.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Removes all records and resets the count of dropped ones.
    pub fn clear(&mut self) {
        self.records.clear();
        self.dropped = 0;
    }

    /// Writes the recording as JSON Lines. If records were dropped, the last line gives their number. The format is
    /// described in [the guide](crate::guide::telemetry).
    ///
    /// # Errors
    ///
    /// Any error of the writer.
    pub fn write_json_lines(&self, writer: impl Write) -> io::Result<()> {
        let mut writer = TraceWriter::new(writer)?;
        self.records.iter().try_for_each(|record| writer.write(record))?;
        if self.dropped > 0 {
            writer.write(&TraceRecord::Dropped { records: self.dropped })?;
        }
        writer.finish().map(drop)
    }

    /// Keeps a record if the limit allows it, and counts it as dropped otherwise.
    fn keep(&mut self, record: impl FnOnce() -> TraceRecord) {
        if self.records.len() < self.limit {
            self.records.push(record());
        } else {
            self.dropped += 1;
        }
    }
}

impl Default for Recorder {
    fn default() -> Self {
        Self::new()
    }
}

impl Observer for Recorder {
    fn token(&mut self, trace: &RowTrace) {
        self.keep(|| TraceRecord::Token(trace.clone()));
    }

    fn step(&mut self, trace: &StepTrace) {
        self.keep(|| TraceRecord::Step(trace.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bank::Sharing,
        telemetry::{Counters, read_traces, trace::example},
    };

    fn recorded(limit: usize) -> Recorder {
        let mut recorder = Recorder::new().with_limit(limit);
        for step in 0..4 {
            // The first step belongs to a prompt: nothing is learned there.
            let token = example(step, 0, 0, (step > 0).then_some(10.0 / step as f64));
            recorder.token(&token);
            let counters = Counters { steps: step + 1, ..Counters::default() };
            recorder.step(&StepTrace::of(&[token], Sharing::PerPrompt, 0, 1, 1, counters));
        }
        recorder
    }

    #[test]
    fn the_loss_curve_is_that_of_the_steps_that_learned() {
        assert_eq!(recorded(100).loss_curve(), [(1, 10.0), (2, 5.0), (3, 10.0 / 3.0)]);
    }

    #[test]
    fn records_past_the_limit_are_counted_and_the_file_says_so() {
        for (limit, tokens, steps, dropped) in
            [(8, 4, 4, 0), (7, 4, 3, 1), (1, 1, 0, 7), (0, 0, 0, 8)]
        {
            let mut recorder = recorded(limit);
            assert_eq!((recorder.tokens().count(), recorder.steps().count()), (tokens, steps));
            assert_eq!(recorder.dropped(), dropped);
            let mut file = Vec::new();
            recorder.write_json_lines(&mut file).unwrap();
            let read: Vec<TraceRecord> = read_traces(&file[..]).map(Result::unwrap).collect();
            let said = read.last().is_some_and(|last| match last {
                TraceRecord::Dropped { records } => *records == dropped,
                _ => false,
            });
            assert_eq!(said, dropped > 0, "limit {limit}");
            recorder.clear();
            assert_eq!((recorder.records().len(), recorder.dropped()), (0, 0));
        }
    }

    #[test]
    fn a_record_has_the_size_that_the_docs_say() {
        assert!(size_of::<TraceRecord>() <= 350, "{}", size_of::<TraceRecord>());
        assert!(size_of::<super::super::SlotTrace>() <= 40);
    }
}
