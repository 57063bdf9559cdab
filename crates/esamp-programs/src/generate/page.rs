//! Writes the run as an HTML page.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crate::{
    failure::Failure,
    page::{Page, ShownArm},
};
use esamp::llama::Tokenizer;

use super::{
    Model,
    args::Args,
    arms::Arm,
    render::{numbers, said, title},
};

/// The HTML file: created before the run, written after it.
pub struct HtmlFile {
    path: PathBuf,
    file: File,
}

impl HtmlFile {
    /// Creates the file before the run, so that a path that cannot be written fails early. Truncates an
    /// existing file.
    pub fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| failure(path, &error))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Writes the page from what the arms have recorded.
    pub fn write<M: Model>(
        mut self,
        model: &str,
        args: &Args,
        arms: &[Arm<'_, M>],
        tokenizer: &Tokenizer,
    ) -> Result<(), Failure> {
        let settings = arms.last().map(|arm| said(&arm.settings.sampling)).unwrap_or_default();
        let arms = arms.iter().map(|arm| {
            let beta = if arm.settings.steered {
                format!("β {}, ", arm.settings.sampling.beta)
            } else {
                String::new()
            };
            let facts = beta + &numbers(arm).join(", ");
            let recording = arm.recording().unwrap_or_default();
            ShownArm::new(title(&arm.settings.name), facts, &arm.completions, &recording, tokenizer)
        });
        let page = Page {
            title: model.to_owned(),
            prompt: args.prompt.clone(),
            settings: format!("{} completions, seed {}, {settings}", args.samples, args.seed),
            arms: arms.collect::<Result<_, _>>().map_err(|error| {
                Failure::runtime(error, "check that the tokenizer belongs to the model")
            })?,
        };
        let written = self.file.write_all(page.html().as_bytes());
        written.and_then(|()| self.file.flush()).map_err(|error| failure(&self.path, &error))
    }
}

fn failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("--html {}: {error}", path.display()), "check the path and the disk")
}
