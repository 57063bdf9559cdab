//! Files and folders that are something else than they were taken for, told by their first bytes or their contents.

use std::{fs, path::Path};

use crate::{error::Printable, llama::error::LoadError};

/// The error for a file that begins with `head`, if that says what it is. `expected` is what it was taken for.
pub(super) fn of_file(path: &Path, head: &[u8], expected: &str) -> Option<LoadError> {
    let begins = |with: &str| {
        let text = head.trim_ascii_start();
        text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()))
    };
    let (got, next_step) = if head.is_empty() {
        ("an empty file", "download the file again")
    } else if begins("version https://git-lfs") {
        ("a Git LFS pointer", "run `git lfs pull` in its folder, or download the file itself")
    } else if begins("<!doctype html") || begins("<html") {
        (
            "a web page",
            "download the file again: the server answered with a page, such as an error or a login",
        )
    } else if head.starts_with(b"GGUF") {
        ("a GGUF file", "give this file itself as the model, not its folder")
    } else if head.starts_with(b"PK\x03\x04") {
        ("a ZIP archive", "unpack it; weights of PyTorch must be converted to safetensors")
    } else if head.get(4..9) == Some(b"\0\0\0\0{") {
        ("a safetensors file", "give its folder as the model, with config.json and tokenizer.json")
    } else {
        return None;
    };
    Some(wrong_file(path, expected, got, next_step))
}

/// The error for a folder without the file `missing`, if what it holds instead says what it is.
pub(super) fn of_folder(folder: &Path, missing: &str) -> Option<LoadError> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    let holds = |name: &str| names.iter().any(|there| there == name);
    let gguf = names.iter().find(|name| name.ends_with(".gguf"));
    let (got, next_step) = if holds("adapter_config.json") {
        (
            "a LoRA adapter".to_owned(),
            "merge the adapter into its base model (merge_and_unload of peft) and load the result"
                .to_owned(),
        )
    } else if let Some(gguf) = gguf {
        let file = folder.join(gguf);
        (
            format!("the GGUF file {gguf:?}"),
            format!("give the file itself as the model: {}", Printable(file.to_string_lossy())),
        )
    } else if missing == "tokenizer.json" && (holds("tokenizer.model") || holds("vocab.json")) {
        (
            "a tokenizer in an older format".to_owned(),
            "convert it with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)".to_owned(),
        )
    } else if missing.ends_with(".safetensors")
        && names.iter().any(|name| name.starts_with("pytorch_model"))
    {
        (
            "weights in PyTorch's own format".to_owned(),
            "convert them with transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                .to_owned(),
        )
    } else {
        return None;
    };
    Some(wrong_file(folder, &format!("a folder with {missing}"), got, next_step))
}

/// Builds the error about a file that is something else than it was taken for.
pub(super) fn wrong_file(
    path: &Path,
    expected: &str,
    got: impl Into<String>,
    next_step: impl Into<String>,
) -> LoadError {
    LoadError::WrongFile {
        path: path.to_owned(),
        expected: expected.to_owned(),
        got: got.into(),
        next_step: next_step.into(),
    }
}
