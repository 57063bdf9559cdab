//! Refuses a command line in which one file would overwrite another.

use std::{
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
};

use crate::{failure::Failure, model_source::ModelSource};

/// A file that a command line names.
#[derive(Clone, Debug)]
pub struct NamedFile {
    /// What names it, such as `--out`.
    flag: String,
    path: PathBuf,
    is_written: bool,
}

impl NamedFile {
    /// A file that the program reads.
    pub fn read(flag: &str, path: impl Into<PathBuf>) -> Self {
        Self { flag: flag.to_owned(), path: path.into(), is_written: false }
    }

    /// A file that the program writes.
    pub fn written(flag: &str, path: impl Into<PathBuf>) -> Self {
        Self { flag: flag.to_owned(), path: path.into(), is_written: true }
    }

    /// The files of a model on disk; none if it is downloaded.
    pub fn of_model(flag: &str, model: &ModelSource) -> Vec<Self> {
        let ModelSource::Path(path) = model else {
            return Vec::new();
        };
        if !path.is_dir() {
            return vec![Self::read(flag, path)];
        }
        // A folder that cannot be read is an error of loading the model.
        let entries = fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
        let files = entries.filter(|entry| belongs_to_a_model(&entry.file_name()));
        files.map(|entry| Self::read(flag, entry.path())).collect()
    }
}

/// Whether a file of a Hugging Face folder is a part of the model. A run may write its other files there.
fn belongs_to_a_model(name: &OsString) -> bool {
    const SETTINGS: [&str; 6] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
    ];
    let name = name.to_string_lossy();
    SETTINGS.contains(&&*name)
        || [".safetensors", ".safetensors.index.json"].iter().any(|end| name.ends_with(end))
}

/// Refuses two names of the same file if the program writes it. Names are the same file if they lead to the same
/// place through symbolic and, on Unix, hard links, whether or not the file exists yet. Devices and pipes may be named
/// twice: writing to them overwrites nothing.
///
/// # Errors
///
/// The first such pair.
pub fn check_distinct(files: &[NamedFile]) -> Result<(), Failure> {
    let identities: Vec<Option<Identity>> = files.iter().map(|file| identity(&file.path)).collect();
    for (at, file) in files.iter().enumerate() {
        for (before, other) in files[..at].iter().enumerate() {
            let is_same = identities[at].is_some() && identities[at] == identities[before];
            if is_same && (file.is_written || other.is_written) {
                return Err(Failure::usage(
                    format!(
                        "{} {}: expected a file of its own, got that of {}",
                        file.flag,
                        file.path.display(),
                        other.flag
                    ),
                    "one would overwrite the other: give each a file of its own",
                ));
            }
        }
    }
    Ok(())
}

/// What makes two paths the same file.
#[derive(Debug, PartialEq)]
enum Identity {
    /// Device and inode of a file that exists.
    #[cfg(unix)]
    Inode(u64, u64),
    /// The absolute path without links.
    Place(PathBuf),
}

/// `None` for devices, pipes and folders.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => None,
        #[cfg(unix)]
        Ok(found) => {
            use std::os::unix::fs::MetadataExt;
            Some(Identity::Inode(found.dev(), found.ino()))
        }
        #[cfg(not(unix))]
        Ok(_) => Some(Identity::Place(fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()))),
        // Not there yet, and neither is what a link to it would lead to.
        Err(_) => Some(Identity::Place(place(path).unwrap_or_else(|_| path.to_owned()))),
    }
}

/// Where a file would be created.
fn place(path: &Path) -> io::Result<PathBuf> {
    /// As many links as Linux follows.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        let Ok(target) = fs::read_link(&path) else {
            break;
        };
        // An absolute target replaces the path.
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    let path = std::path::absolute(path)?;
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path);
    };
    Ok(fs::canonicalize(folder)?.join(name))
}
