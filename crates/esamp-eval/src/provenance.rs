//! The provenance of results: code, model and machine.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    process::Command,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use esamp_programs::failure::Failure;
use sha2::{Digest, Sha256};

use crate::record::Session;

/// The paths whose content can affect results.
const CODE: [&str; 4] = ["src", "crates", "Cargo.toml", "Cargo.lock"];

/// The commit of a checkout, in the form of [`Header::commit`](crate::record::Header::commit).
pub fn commit(checkout: &Path) -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").arg("-C").arg(checkout).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed =
        git(&[&["status", "--porcelain", "--untracked-files=no", "--"], &CODE[..]].concat());
    match changed.as_deref() {
        Some("") => head,
        _ => head + "-modified",
    }
}

/// SHA-256 of a model file; for a folder, of the names and hashes of its files.
pub fn model_hash(path: &Path) -> Result<String, Failure> {
    let at = |error| {
        Failure::new(
            format!("{}: {error}", path.display()),
            "check the model's path and permissions",
        )
    };
    if !path.is_dir() {
        return file_hash(path).map_err(at);
    }
    let entries = fs::read_dir(path).map_err(at)?.collect::<Result<Vec<_>, _>>().map_err(at)?;
    let mut files: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).collect();
    files.retain(|file| file.is_file());
    files.sort_unstable();
    let mut hash = Sha256::new();
    for file in files {
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(file_hash(&file).map_err(at)?);
    }
    Ok(hexadecimal(&hash.finalize()))
}

fn file_hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hexadecimal(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Processor, number of threads and operating system.
pub fn machine() -> String {
    let cpu = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let cpu = cpu.unwrap_or_else(|| format!("a processor of kind {}", std::env::consts::ARCH));
    let threads = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{cpu}, {threads} threads, {}", std::env::consts::OS)
}

/// This run's line in the session file. It is rewritten after every batch, so that a killed run leaves its
/// last state. A run with nothing to do writes no line.
#[derive(Debug)]
pub struct SessionFile {
    path: PathBuf,
    file: File,
    start: u64,
    session: Session,
    clock: Instant,
}

impl SessionFile {
    /// The path of the session file for a record file.
    pub fn path_of(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".sessions");
        name.into()
    }

    /// Reads the session file of a record file; empty if there is none. For compressed records the session
    /// file is named after the uncompressed file.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or a line that is not a session.
    pub fn read(out: &Path) -> Result<Vec<Session>, Failure> {
        let unpacked = if out.extension().is_some_and(|ending| ending == "gz") {
            out.with_extension("")
        } else {
            out.to_owned()
        };
        let path = Self::path_of(&unpacked);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failure(&path, error)),
        };
        let sessions = text.lines().map(serde_json::from_str).collect::<Result<_, _>>();
        sessions.map_err(|error| failure(&path, error.into()))
    }

    /// Opens the file to append to the sessions of earlier runs.
    pub fn open(out: &Path, records: usize, planned: usize) -> Result<Self, Failure> {
        let path = Self::path_of(out);
        let opened =
            File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.map_err(|error| failure(&path, error))?;
        let start = file.seek(io::SeekFrom::End(0)).map_err(|error| failure(&path, error))?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = Session {
            command: std::env::args().collect(),
            started: since.as_secs(),
            seconds: 0.0,
            records: [records; 2],
            planned,
            machine: machine(),
        };
        Ok(Self { path, file, start, session, clock: Instant::now() })
    }

    /// Records the progress of the run.
    pub fn update(&mut self, records: usize) -> Result<(), Failure> {
        self.session.seconds = self.clock.elapsed().as_secs_f64();
        self.session.records[1] = records;
        let written = serde_json::to_string(&self.session).map_err(io::Error::from);
        let written = written.and_then(|line| {
            self.file.set_len(self.start)?;
            self.file.seek(io::SeekFrom::Start(self.start))?;
            self.file.write_all(format!("{line}\n").as_bytes())
        });
        written.map_err(|error| failure(&self.path, error))
    }

    /// The time this run has taken, in seconds.
    pub fn seconds(&self) -> f64 {
        self.session.seconds
    }
}

fn failure(path: &Path, error: io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "check the path of --out and the disk")
}
