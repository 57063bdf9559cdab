//! Loading a model from a Hugging Face folder.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    store::{ModuleStore, SafetensorsStore, bridge},
    tensor::{DType, Device},
};
use serde_json::Value;

use super::{TensorSource, tensor_error};
use crate::{
    llama::error::LoadError,
    llama::{Llama, LlamaConfig},
};

impl Llama {
    /// Loads a model from a folder with `config.json` and either `model.safetensors`, or
    /// `model.safetensors.index.json` and its shards. Weights of any floating-point type are converted to `f32`.
    ///
    /// # Errors
    ///
    /// [`LoadError`] with the name of the file, key or tensor, what was expected and what was found.
    pub fn from_hf_folder(folder: impl AsRef<Path>, device: &Device) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let config = LlamaConfig::from_hf_value(&read_json(&folder.join("config.json"))?)?;
        Self::from_source(config, &mut Shards::open(folder)?, device)
    }
}

/// Reads a JSON file.
pub(in crate::llama) fn read_json(path: &Path) -> Result<Value, LoadError> {
    let text = fs::read_to_string(path)
        .map_err(|source| LoadError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|error| LoadError::Format {
        path: path.to_owned(),
        what: "content".to_owned(),
        expected: "JSON".to_owned(),
        got: error.to_string(),
    })
}

/// One or more safetensors files, read tensor by tensor.
struct Shards {
    /// The file of each tensor. Empty if there is only one file.
    index: HashMap<String, PathBuf>,
    single: PathBuf,
    open: HashMap<PathBuf, SafetensorsStore>,
}

impl Shards {
    fn open(folder: &Path) -> Result<Self, LoadError> {
        let index_path = folder.join("model.safetensors.index.json");
        let mut index = HashMap::new();
        if index_path.exists() {
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
        Ok(Self { index, single: folder.join("model.safetensors"), open: HashMap::new() })
    }
}

impl TensorSource for Shards {
    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let path = match self.index.get(name) {
            Some(path) => path.clone(),
            None if self.index.is_empty() => self.single.clone(),
            None => return Err(tensor_error(name, format!("shape {shape:?}"), "none")),
        };
        let damaged = |error: &dyn std::fmt::Display| LoadError::Format {
            path: path.clone(),
            what: format!("tensor {name}"),
            expected: "a safetensors file that holds it".to_owned(),
            got: error.to_string(),
        };
        if !self.open.contains_key(&path) {
            fs::File::open(&path).map_err(|source| LoadError::Io { path: path.clone(), source })?;
            self.open.insert(path.clone(), SafetensorsStore::from_file(&path));
        }
        let Some(store) = self.open.get_mut(&path) else {
            return Err(damaged(&"none"));
        };
        let tensor = store.get_tensor(name).map_err(|error| damaged(&error))?;
        let Some(tensor) = tensor else {
            return Err(tensor_error(name, format!("shape {shape:?}"), "none"));
        };
        let data = bridge::to_data(tensor).map_err(|error| damaged(&error))?;
        if data.shape().as_slice() != shape {
            let got = format!("shape {:?}", data.shape().as_slice());
            return Err(tensor_error(name, format!("shape {shape:?}"), got));
        }
        if !data.dtype().is_float() {
            return Err(tensor_error(
                name,
                "floating-point numbers",
                format!("{:?}", data.dtype()),
            ));
        }
        let data = if data.dtype() == DType::F32 { data } else { data.convert::<f32>() };
        data.try_into_vec::<f32>().map_err(|error| damaged(&format!("{error:?}")))
    }
}
