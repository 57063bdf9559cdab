//! What is fuzzed. A target takes any bytes and returns their outcome.

mod files;
mod numbers;
mod texts;

use std::fmt::Display;

/// The outcome of an input, without its numbers; or the promise that it has broken.
pub type Outcome = Result<String, String>;

/// Something that reads what others have written.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    /// Runs it on an input.
    pub run: fn(&[u8]) -> Outcome,
    /// Inputs to begin with, in addition to the corpus.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const ALL: [Target; 9] = [
    Target { name: "gguf", run: files::gguf, seeds: Vec::new },
    Target { name: "safetensors", run: files::safetensors, seeds: files::safetensors_seeds },
    Target { name: "tokenizer", run: files::tokenizer, seeds: Vec::new },
    Target { name: "template", run: texts::template, seeds: Vec::new },
    Target { name: "snapshot", run: files::snapshot, seeds: files::snapshot_seeds },
    Target { name: "group", run: files::group, seeds: files::group_seeds },
    Target { name: "trace", run: texts::trace, seeds: Vec::new },
    Target { name: "settings", run: texts::settings, seeds: texts::settings_seeds },
    Target { name: "step", run: numbers::step, seeds: numbers::step_seeds },
];

/// The target of this name.
pub fn named(name: &str) -> Option<Target> {
    ALL.into_iter().find(|target| target.name == name)
}

/// The words of an error without what differs from input to input: numbers, quoted text, and names that are no words.
fn kind(error: impl Display) -> String {
    const WORDS: usize = 12;
    let text = error.to_string();
    // Every other part is quoted.
    let unquoted: Vec<&str> = text.split(['"', '`']).step_by(2).collect();
    let unquoted = unquoted.join(" ");
    let is_word = |word: &&str| {
        let word = word.trim_end_matches([',', ':', '.', ';', ')']);
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase())
    };
    unquoted.split_whitespace().filter(is_word).take(WORDS).collect::<Vec<_>>().join(" ")
}
