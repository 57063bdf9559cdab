//! Split GGUF files: `NAME-00001-of-00003.gguf` and so on. The first part has the metadata of the model.

use std::path::{Path, PathBuf};

use super::{super::kind::wrong_file, reader::Gguf};
use crate::{error::Printable, llama::error::LoadError};

/// Opens the other parts of a split file, of which `first` is the first, and adds their tensors.
pub(super) fn add_parts(first: &mut Gguf) -> Result<(), LoadError> {
    let count = number(first, COUNT)?.unwrap_or(1);
    if count <= 1 {
        return Ok(());
    }
    let path = first.parts[0].path.clone();
    // Five digits of the file name.
    if count > MOST_PARTS {
        let expected = format!("at most {MOST_PARTS} parts");
        return Err(wrong_file(&path, &expected, count.to_string(), "download the model again"));
    }
    let this = number(first, NUMBER)?.unwrap_or(0);
    if this >= count {
        let expected = format!("a part below {count}, counted from 0");
        return Err(wrong_file(&path, &expected, this.to_string(), "download the part again"));
    }
    if this != 0 {
        let next_step = match part_path(&path, this, 0, count) {
            Some(first) => format!("give the first part, {}", Printable(first.to_string_lossy())),
            None => "give the first part".to_owned(),
        };
        let got = format!("part {} of {count}", this + 1);
        return Err(wrong_file(&path, &format!("part 1 of {count}"), got, next_step));
    }
    for index in 1..count {
        let Some(part) = part_path(&path, 0, index, count) else {
            let expected = format!("a file name that ends with {}", suffix(0, count));
            let next_step = "give the parts the names they were published with";
            return Err(wrong_file(&path, &expected, "another one", next_step));
        };
        if !part.exists() {
            let expected = format!("part {} of {count}", index + 1);
            let next_step = "download all parts into one folder, and give the first";
            return Err(wrong_file(&part, &expected, "no such file", next_step));
        }
        let other = Gguf::open_part(&part)?;
        let found = (number(&other, NUMBER)?, number(&other, COUNT)?);
        if found != (Some(index), Some(count)) {
            let expected = format!("part {} of {count}", index + 1);
            let got = match found {
                (Some(index), Some(count)) => {
                    format!("part {} of {count}", index.saturating_add(1))
                }
                _ => "a file that is no part".to_owned(),
            };
            let next_step = "download all parts of the same model again";
            return Err(wrong_file(&part, &expected, got, next_step));
        }
        let at = first.parts.len();
        for (name, mut info) in other.tensors {
            info.part = at;
            if first.tensors.contains_key(&name) {
                return Err(LoadError::Format {
                    path: part,
                    what: format!("tensor entry {name}"),
                    expected: "it in one part".to_owned(),
                    got: "it in two".to_owned(),
                });
            }
            first.tensors.insert(name, info);
        }
        first.parts.extend(other.parts);
    }
    Ok(())
}

/// Keys of a part's index, from 0, and of the number of parts.
const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
/// The most parts that the names of files have digits for.
const MOST_PARTS: usize = 99_999;

fn number(file: &Gguf, key: &str) -> Result<Option<usize>, LoadError> {
    if file.has_key(key) { file.size(key).map(Some) } else { Ok(None) }
}

fn suffix(index: usize, count: usize) -> String {
    format!("-{:05}-of-{count:05}.gguf", index + 1)
}

/// The path of part `to`, given that of part `from`. `None` if that has not the usual name.
fn part_path(path: &Path, from: usize, to: usize, count: usize) -> Option<PathBuf> {
    let stem = path.file_name()?.to_str()?.strip_suffix(&suffix(from, count))?;
    Some(path.with_file_name(format!("{stem}{}", suffix(to, count))))
}
