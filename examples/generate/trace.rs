//! The trace file.

use std::{
    fs::File,
    io::{self, BufWriter},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use esamp::telemetry::{Observer, TraceWriter};
use esamp_programs::failure::Failure;

/// A file of traces that somebody may read while it grows.
pub struct Trace {
    path: PathBuf,
    writer: Arc<Mutex<TraceWriter<BufWriter<File>>>>,
}

impl Trace {
    /// Begins the file; what was in it is gone.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let writer = File::create(path).and_then(|file| TraceWriter::new(BufWriter::new(file)));
        let writer = writer.map_err(|error| failure(path, error))?;
        Ok(Self { path: path.to_owned(), writer: Arc::new(Mutex::new(writer)) })
    }

    /// What writes it.
    pub fn observer(&self) -> Box<dyn Observer> {
        Box::new(self.writer.clone())
    }

    /// Hands over what a step has written. An observer cannot say that it failed: here is where it is said.
    pub fn flush(&self) -> Result<(), Failure> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.flush().map_err(|error| failure(&self.path, error))
    }
}

fn failure(path: &Path, error: io::Error) -> Failure {
    Failure::new(format!("--trace {}: {error}", path.display()), "check the path and the disk")
}
