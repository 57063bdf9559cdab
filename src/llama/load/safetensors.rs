//! Loading a model from a Hugging Face folder.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{ErrorKind, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use half::{bf16, f16};
use safetensors::{
    Dtype,
    tensor::{Metadata, TensorInfo},
};
use serde_json::Value;

use super::{TensorSource, kind, tensor_error};
use crate::{
    llama::error::LoadError,
    llama::{Llama, LlamaConfig},
};

impl Llama {
    /// Loads a model from a folder with `config.json` and either `model.safetensors`, or
    /// `model.safetensors.index.json` and its shards. A `model.safetensors` takes precedence over an index. Weights of
    /// type F64, F32, F16 and BF16 are converted to `f32`, so they take at most twice the size of the files.
    ///
    /// The files are read, not mapped into memory: if another process shortens a mapped file, the operating system ends
    /// the process that uses it; a file that is read gives an error. A file that is rewritten in place during loading
    /// may still give a mixture of both contents.
    ///
    /// [`warnings`](Self::warnings) holds what is unusual about the model.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the file, key or tensor, what was expected and what was found.
    pub fn from_hf_folder(folder: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let mut warnings = Vec::new();
        let json = read_json(&folder.join("config.json"))?;
        let config = LlamaConfig::from_hf_value(&json, &mut warnings)?;
        let mut model = Self::from_source(config, &mut Shards::open(folder)?, device)?;
        warnings.append(&mut model.warnings);
        model.warnings = warnings;
        Ok(model)
    }
}

/// Reads a JSON file.
pub(in crate::llama) fn read_json(path: &Path) -> Result<Value, LoadError> {
    let bytes = fs::read(path).map_err(|error| missing_or(path, error))?;
    serde_json::from_slice(&bytes).map_err(|error| {
        kind::of_file(path, &bytes, "a JSON file").unwrap_or_else(|| LoadError::Format {
            path: path.to_owned(),
            what: "content".to_owned(),
            expected: "JSON".to_owned(),
            got: error.to_string(),
        })
    })
}

/// The error for a file that could not be opened; if it is missing, what its folder holds instead.
fn missing_or(path: &Path, source: std::io::Error) -> LoadError {
    let name = path.file_name().and_then(|name| name.to_str());
    let instead = match (source.kind(), path.parent(), name) {
        (ErrorKind::NotFound, Some(folder), Some(name)) => kind::of_folder(folder, name),
        _ => None,
    };
    instead.unwrap_or_else(|| LoadError::Io { path: path.to_owned(), source })
}

/// One or more safetensors files, read tensor by tensor.
struct Shards {
    /// The file of each tensor. Empty if there is only one file.
    index: HashMap<String, PathBuf>,
    single: PathBuf,
    open: HashMap<PathBuf, Shard>,
}

impl Shards {
    fn open(folder: &Path) -> Result<Self, LoadError> {
        let single = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        let mut index = HashMap::new();
        // An index may have been left over from before the shards were merged into one file.
        if !single.exists() && index_path.exists() {
            let json = read_json(&index_path)?;
            let Some(map) = json.get("weight_map").and_then(Value::as_object) else {
                return Err(LoadError::Format {
                    path: index_path,
                    what: "key weight_map".to_owned(),
                    expected: "an object of tensor names and files".to_owned(),
                    got: json.get("weight_map").map_or("none".to_owned(), Value::to_string),
                });
            };
            for (name, file) in map {
                // Use only the file name, so that an index cannot refer to files outside its folder.
                let file = file.as_str().and_then(|file| Path::new(file).file_name());
                let Some(file) = file else {
                    return Err(tensor_error(name, "a file in the index", "none"));
                };
                index.insert(name.clone(), folder.join(file));
            }
        }
        Ok(Self { index, single, open: HashMap::new() })
    }

    /// The file that holds a tensor according to the index, opened. `None` if the index does not name the tensor.
    fn shard(&mut self, name: &str) -> Result<Option<&mut Shard>, LoadError> {
        let path = match self.index.get(name) {
            Some(path) => path.clone(),
            None if self.index.is_empty() => self.single.clone(),
            None => return Ok(None),
        };
        if !self.open.contains_key(&path) {
            let shard = Shard::open(&path, !self.index.is_empty())?;
            self.open.insert(path.clone(), shard);
        }
        Ok(self.open.get_mut(&path))
    }

    /// The error for a tensor that no file holds.
    fn missing(&self, name: &str, shape: &[usize]) -> LoadError {
        let mut names: Vec<&str> = self.index.keys().map(String::as_str).collect();
        let single = self.open.get(&self.single).map(|shard| shard.header.offset_keys());
        names.extend(single.iter().flatten().map(String::as_str));
        names.sort_unstable();
        if names.iter().any(|name| name.starts_with("model.")) || names.is_empty() {
            return tensor_error(name, format!("shape {shape:?}"), "none");
        }
        // Names are the file's: show a few, escaped and shortened.
        let shown: Vec<String> = names
            .iter()
            .take(3)
            .map(|name| format!("{:?}", name.chars().take(60).collect::<String>()))
            .collect();
        kind::wrong_file(
            self.single.parent().unwrap_or(&self.single),
            "tensor names that begin with \"model.\"",
            format!("{} tensors, such as {}", names.len(), shown.join(", ")),
            "save the model with its head: AutoModelForCausalLM of transformers writes the names that are expected",
        )
    }
}

impl TensorSource for Shards {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        match self.shard(name)? {
            Some(shard) if shard.header.info(name).is_some() => shard.read(name, shape),
            _ => Err(self.missing(name, shape)),
        }
    }

    fn has(&mut self, name: &str) -> Result<bool, LoadError> {
        Ok(self.shard(name)?.is_some_and(|shard| shard.header.info(name).is_some()))
    }
}

/// An open safetensors file.
struct Shard {
    path: PathBuf,
    file: File,
    header: Metadata,
    /// Base of the tensor offsets, in bytes.
    data_start: u64,
}

impl Shard {
    fn open(path: &Path, is_part: bool) -> Result<Self, LoadError> {
        let io = |source| LoadError::Io { path: path.to_owned(), source };
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if is_part && error.kind() == ErrorKind::NotFound => {
                let next_step = "download this file too, into the same folder";
                let expected = "a part of the model, named by model.safetensors.index.json";
                return Err(kind::wrong_file(path, expected, "no such file", next_step));
            }
            Err(error) => return Err(missing_or(path, error)),
        };
        let damaged = |what: &str, expected: String, got: String| LoadError::Format {
            path: path.to_owned(),
            what: what.to_owned(),
            expected,
            got,
        };
        let file_len = file.metadata().map_err(io)?.len();
        let mut head = Vec::new();
        (&mut file).take(512).read_to_end(&mut head).map_err(io)?;
        if head.get(8) != Some(&b'{')
            && let Some(error) = kind::of_file(path, &head, "a safetensors file")
        {
            return Err(error);
        }
        let Some(length) = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes)) else {
            let got = format!("{} bytes", head.len());
            return Err(damaged("header", "a length of 8 bytes".to_owned(), got));
        };
        // The length comes from the file: compare it with the file's before anything is allocated for it.
        if length > file_len.saturating_sub(8) {
            let expected =
                format!("at most {} bytes (is the file complete?)", file_len.saturating_sub(8));
            return Err(damaged("header", expected, format!("{length} bytes")));
        }
        file.seek(SeekFrom::Start(8)).map_err(io)?;
        let mut header = Vec::new();
        (&mut file).take(length).read_to_end(&mut header).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header).map_err(|error| {
            damaged("header", "that of a safetensors file".to_owned(), error.to_string())
        })?;
        let data_start = 8 + length;
        let whole = data_start.saturating_add(header.data_len() as u64);
        if whole != file_len {
            let expected = format!("{whole} bytes (is the file complete?)");
            return Err(damaged("content", expected, format!("{file_len} bytes")));
        }
        Ok(Self { path: path.to_owned(), file, header, data_start })
    }

    /// Reads a tensor in pieces, so that its bytes are not in memory alongside its numbers.
    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        const PIECE: usize = 1 << 20; // a multiple of every element's size
        let Some(TensorInfo { dtype, shape: found, data_offsets: (start, end) }) =
            self.header.info(name)
        else {
            return Err(tensor_error(name, format!("shape {shape:?}"), "none"));
        };
        if found != shape {
            let got = format!("shape {found:?}");
            return Err(tensor_error(name, format!("shape {shape:?}"), got));
        }
        let append: fn(&[u8], &mut Vec<f32>) = match dtype {
            Dtype::F32 => |bytes, to| extend(bytes, to, f32::from_le_bytes),
            Dtype::F16 => |bytes, to| extend(bytes, to, |two| f16::from_le_bytes(two).to_f32()),
            Dtype::BF16 => |bytes, to| extend(bytes, to, |two| bf16::from_le_bytes(two).to_f32()),
            Dtype::F64 => |bytes, to| extend(bytes, to, |eight| f64::from_le_bytes(eight) as f32),
            other => return Err(tensor_error(name, "F32, F16, BF16 or F64", other)),
        };
        let io = |source| LoadError::Io { path: self.path.clone(), source };
        let mut left = end - start;
        self.file.seek(SeekFrom::Start(self.data_start + *start as u64)).map_err(io)?;
        let mut values = Vec::with_capacity(shape.iter().product());
        let mut piece = vec![0; left.min(PIECE)];
        while left > 0 {
            let piece = &mut piece[..left.min(PIECE)];
            self.file.read_exact(piece).map_err(io)?;
            append(piece, &mut values);
            left -= piece.len();
        }
        Ok(values)
    }
}

/// Appends numbers of `N` bytes each.
fn extend<const N: usize>(bytes: &[u8], to: &mut Vec<f32>, number: impl Fn([u8; N]) -> f32) {
    to.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| number(bytes)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let golden = crate::golden::path("llama/llama/model.safetensors");
        let bytes = fs::read(golden).unwrap();
        fs::write(&path, &bytes).unwrap();
        let mut shards = Shards::open(folder.path()).unwrap();
        assert!(shards.has("lm_head.weight").unwrap());
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let error = shards.take("model.norm.weight", &[32]).unwrap_err();
        assert!(error.to_string().ends_with("model.safetensors: cannot be read"), "{error}");
    }

    #[test]
    fn every_type_of_floating_point_numbers_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let numbers = [1.5f32, -0.25];
        let bytes: [Vec<u8>; 5] = [
            numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            numbers.iter().flat_map(|n| f16::from_f32(*n).to_le_bytes()).collect(),
            numbers.iter().flat_map(|n| bf16::from_f32(*n).to_le_bytes()).collect(),
            numbers.iter().flat_map(|n| f64::from(*n).to_le_bytes()).collect(),
            vec![0; 8],
        ];
        let types = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64, Dtype::I32];
        let views = types.iter().zip(&bytes).map(|(&dtype, bytes)| {
            let view = safetensors::tensor::TensorView::new(dtype, vec![2], bytes).unwrap();
            (format!("{dtype}"), view)
        });
        fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
        let mut shards = Shards::open(folder.path()).unwrap();
        for name in ["F32", "F16", "BF16", "F64"] {
            assert_eq!(shards.take(name, &[2]).unwrap(), numbers, "{name}");
        }
        let error = shards.take("I32", &[2]).unwrap_err().to_string();
        assert_eq!(error, "tensor I32: expected F32, F16, BF16 or F64, got I32");
    }
}
