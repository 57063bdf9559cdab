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

use crate::{hash::hexadecimal, record::Session};

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

/// The words of this program's command. Words that are not UTF-8 are no error, because paths need not be.
pub fn command() -> Vec<String> {
    std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// This run's line in the session file. It is rewritten after every batch, so that a killed run leaves its
/// last state. A run with nothing to do writes no line.
#[derive(Debug)]
pub struct SessionFile {
    path: PathBuf,
    file: File,
    start: u64,
    /// Length of the line as it was last written.
    width: usize,
    session: Session,
    clock: Instant,
}

/// The contents of a session file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sessions {
    pub sessions: Vec<Session>,
    /// Number of lines that are no session, as a program killed while it wrote may leave them.
    pub damaged: usize,
}

/// The first bytes of a session.
const BEGIN: &[u8] = b"{\"command\":[";

impl SessionFile {
    /// The path of the session file for a record file.
    pub fn path_of(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".sessions");
        name.into()
    }

    /// The path of the session file for records that are read. For compressed records it is named after the
    /// uncompressed file.
    pub fn path_beside(records: &Path) -> PathBuf {
        if records.extension().is_some_and(|ending| ending == "gz") {
            Self::path_of(&records.with_extension(""))
        } else {
            Self::path_of(records)
        }
    }

    /// Reads the session file of a record file; empty if there is none.
    ///
    /// Damaged lines are counted, not refused: no figure of a report depends on a session.
    ///
    /// # Errors
    ///
    /// A file that cannot be read.
    pub fn read(records: &Path) -> Result<Sessions, Failure> {
        let path = Self::path_beside(records);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Sessions::default()),
            Err(error) => return Err(failure(&path, error)),
        };
        let mut found = Sessions::default();
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(session) => found.sessions.push(session),
                Err(_) => found.damaged += 1,
            }
        }
        Ok(found)
    }

    /// Opens the file to append to the sessions of earlier runs. What a killed run has left of a line is overwritten.
    ///
    /// # Errors
    ///
    /// A file that ends with something else, and I/O errors.
    pub fn open(out: &Path, records: usize, planned: usize) -> Result<Self, Failure> {
        let path = Self::path_of(out);
        let at = |error| failure(&path, error);
        let opened =
            File::options().create(true).truncate(false).read(true).write(true).open(&path);
        let mut file = opened.map_err(at)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(at)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let rest = &bytes[whole..];
        if !rest.starts_with(BEGIN) && !BEGIN.starts_with(rest) {
            return Err(Failure::usage(
                format!("{}: expected sessions of this program, got other content", path.display()),
                "write to another file with --out",
            ));
        }
        let mut start = whole as u64;
        if serde_json::from_slice::<Session>(rest).is_ok() {
            // Only the end of the line is missing.
            file.write_all(b"\n").map_err(at)?;
            start = bytes.len() as u64 + 1;
        }
        file.set_len(start).map_err(at)?;
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let session = Session {
            command: command(),
            started: since.as_secs(),
            seconds: 0.0,
            records: [records; 2],
            planned,
            machine: machine(),
        };
        Ok(Self { path, file, start, width: 0, session, clock: Instant::now() })
    }

    /// Adds words to the command, for settings that it has from the environment: the same command then gives the same
    /// records elsewhere.
    pub fn add_to_command(&mut self, words: impl IntoIterator<Item = String>) {
        self.session.command.extend(words);
    }

    /// Records the progress of the run.
    pub fn update(&mut self, records: usize) -> Result<(), Failure> {
        self.session.seconds = self.clock.elapsed().as_secs_f64();
        self.session.records[1] = records;
        let written = serde_json::to_string(&self.session).map_err(io::Error::from);
        let written = written.and_then(|line| {
            // One write over the old line, with spaces at the end if the new one is shorter: there is no moment at
            // which a kill leaves a part of a line.
            let width = self.width.max(line.len());
            self.file.seek(io::SeekFrom::Start(self.start))?;
            self.file.write_all(format!("{line:width$}\n").as_bytes())?;
            self.width = width;
            Ok(())
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
