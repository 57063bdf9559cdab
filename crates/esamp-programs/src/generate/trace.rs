//! The trace file.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::failure::Failure;
use esamp::telemetry::{Observer, TraceWriter};

/// A trace file that can be read while it grows.
pub struct Trace {
    path: PathBuf,
    writer: Arc<Mutex<TraceWriter<BufWriter<File>>>>,
}

impl Trace {
    /// Creates the file. Truncates an existing one.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let writer = File::create(path).and_then(|file| TraceWriter::new(BufWriter::new(file)));
        let writer = writer.map_err(|error| failure(path, error))?;
        Ok(Self { path: path.to_owned(), writer: Arc::new(Mutex::new(writer)) })
    }

    /// The observer that writes to the file.
    pub fn observer(&self) -> Box<dyn Observer> {
        Box::new(self.writer.clone())
    }

    /// Flushes what the last step wrote. Observers cannot return errors, so a failed write is reported
    /// here.
    pub fn flush(&self) -> Result<(), Failure> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.flush().map_err(|error| failure(&self.path, error))
    }
}

fn failure(path: &Path, error: io::Error) -> Failure {
    Failure::new(format!("--trace {}: {error}", path.display()), "check the path and the disk")
}
