//! Trace files in JSON Lines format: one JSON object per line.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use super::{Observer, RowTrace, StepTrace, error::TraceError};

/// One line of a trace file after its header.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum TraceRecord {
    /// A token.
    Token(RowTrace),
    /// A step, after its tokens.
    Step(StepTrace),
    /// The number of further records that were not kept.
    Dropped {
        /// Number of records.
        records: u64,
    },
}

/// The first line of a trace file.
#[derive(Serialize, Deserialize)]
struct Header {
    #[serde(rename = "type")]
    kind: String,
    format: String,
    version: u64,
}

const KIND: &str = "header";
const FORMAT: &str = "esamp_traces";
const VERSION: u64 = 1;

/// Writes traces as JSON Lines while the run produces them. The format is described in [the
/// guide](crate::guide::telemetry).
///
/// As an observer it cannot return an error. It keeps the first one, stops writing, and returns the error from
/// [`finish`](Self::finish) or [`flush`](Self::flush). Every line is passed to the writer immediately, so use a
/// `BufWriter`.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use burn::tensor::Device;
/// use esamp::{SamplerConfig, telemetry::TraceWriter};
///
/// let file = std::io::BufWriter::new(Vec::new());
/// let writer = Arc::new(Mutex::new(TraceWriter::new(file)?));
/// let mut sampler = SamplerConfig::new().init(576, &Device::flex())?;
/// sampler.set_observer(writer.clone());
/// // … steps …
/// writer.lock().unwrap().flush()?; // an error if a line could not be written
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TraceWriter<W> {
    writer: W,
    error: Option<io::Error>,
    broken: bool,
}

impl<W: Write> TraceWriter<W> {
    /// Starts a trace file by writing its header.
    ///
    /// # Errors
    ///
    /// Any error of the writer.
    pub fn new(writer: W) -> io::Result<Self> {
        let mut new = Self { writer, error: None, broken: false };
        new.line(&Header { kind: KIND.into(), format: FORMAT.into(), version: VERSION })?;
        Ok(new)
    }

    /// Writes one record.
    ///
    /// # Errors
    ///
    /// Any error of the writer.
    pub fn write(&mut self, record: &TraceRecord) -> io::Result<()> {
        self.line(record)
    }

    /// Flushes the writer.
    ///
    /// # Errors
    ///
    /// The first write error. Later calls report that an earlier line was not written.
    pub fn flush(&mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => Err(error),
            None if self.broken => Err(io::Error::other("traces: an earlier line was not written")),
            None => self.writer.flush(),
        }
    }

    /// Flushes the writer and returns it.
    ///
    /// # Errors
    ///
    /// The first write error.
    pub fn finish(mut self) -> io::Result<W> {
        self.flush()?;
        Ok(self.writer)
    }

    fn line(&mut self, line: &impl Serialize) -> io::Result<()> {
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        self.writer.write_all(&text)
    }

    /// Writes a line from an observer callback, which cannot return an error.
    fn observe(&mut self, line: &impl Serialize) {
        if !self.broken
            && let Err(error) = self.line(line)
        {
            self.broken = true;
            self.error = Some(error);
        }
    }
}

/// Borrowed form of [`TraceRecord`], to serialise without a clone.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Borrowed<'a> {
    Token(&'a RowTrace),
    Step(&'a StepTrace),
}

impl<W: Write + Send> Observer for TraceWriter<W> {
    fn token(&mut self, trace: &RowTrace) {
        self.observe(&Borrowed::Token(trace));
    }

    fn step(&mut self, trace: &StepTrace) {
        self.observe(&Borrowed::Step(trace));
    }
}

/// Reads a file that a [`TraceWriter`] or a [`Recorder`](super::Recorder) has written.
///
/// Floating-point numbers round-trip to within one unit in the last place of an `f64`.
///
/// ```
/// use esamp::{errors::TraceError, telemetry::{Recorder, read_traces}};
///
/// let mut file = Vec::new();
/// Recorder::new().write_json_lines(&mut file)?;
/// assert_eq!(read_traces(&file[..]).count(), 0); // a header and no records
///
/// let cut = &file[..file.len() - 5];
/// let error = read_traces(cut).next().unwrap().unwrap_err();
/// assert!(matches!(error, TraceError::Truncated { line: 1 }));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_traces<R: BufRead>(reader: R) -> TraceReader<R> {
    TraceReader { reader, line: 0, ended: false }
}

/// Iterator over the records of a trace file: see [`read_traces`].
///
/// It ends after an error. Records returned before the error are valid.
#[derive(Debug)]
pub struct TraceReader<R> {
    reader: R,
    line: u64,
    ended: bool,
}

impl<R: BufRead> TraceReader<R> {
    /// Parses the next line. `None` at the end of the file.
    fn parse<T: for<'a> Deserialize<'a>>(&mut self) -> Result<Option<T>, TraceError> {
        self.line += 1;
        let line = self.line;
        let mut text = Vec::new();
        let read = self.reader.read_until(b'\n', &mut text);
        if read.map_err(|source| TraceError::Io { line, source })? == 0 {
            return Ok(None);
        }
        let whole = text.ends_with(b"\n");
        match serde_json::from_slice(&text) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_eof() && !whole => Err(TraceError::Truncated { line }),
            Err(error) => Err(TraceError::Line { line, got: error.to_string() }),
        }
    }

    fn header(&mut self) -> Result<(), TraceError> {
        let header: Header = match self.parse() {
            Ok(Some(header)) => header,
            Ok(None) => return Err(TraceError::Format { got: "an empty file".into() }),
            Err(TraceError::Line { got, .. }) => return Err(TraceError::Format { got }),
            Err(error) => return Err(error),
        };
        if header.kind != KIND || header.format != FORMAT {
            let got = format!("{} of {}", header.kind, header.format);
            return Err(TraceError::Format { got });
        }
        if header.version != VERSION {
            return Err(TraceError::Version { expected: VERSION, got: header.version });
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Option<TraceRecord>, TraceError> {
        if self.line == 0 {
            self.header()?;
        }
        self.parse()
    }
}

impl<R: BufRead> Iterator for TraceReader<R> {
    type Item = Result<TraceRecord, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let record = self.read().transpose();
        self.ended = !matches!(record, Some(Ok(_)));
        record
    }
}
