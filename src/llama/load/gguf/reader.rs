//! Reader of the GGUF container: metadata and tensor locations.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::quant::Kind;
use crate::llama::error::LoadError;

/// A GGUF file (versions 2 and 3, little-endian). The metadata is read on opening, tensors on demand.
///
/// Counts and lengths in the file are not trusted: each is compared with the remaining size of the file before
/// anything is allocated for it.
#[derive(Debug)]
pub(crate) struct Gguf {
    path: PathBuf,
    file: File,
    metadata: HashMap<String, Value>,
    tensors: HashMap<String, TensorInfo>,
    /// Base of the tensor offsets, in bytes.
    data_start: u64,
    file_len: u64,
}

/// A metadata value. Numbers of all widths share one variant per kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Array(Vec<Value>),
}

/// Description of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Row-major shape: the file's dimensions, slowest first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: u32,
    offset: u64,
}

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
/// Maximum nesting depth of arrays.
// Arrays are read recursively. Without a limit, a damaged file could overflow the stack.
const MAX_DEPTH: usize = 4;

impl Gguf {
    /// Opens a file and reads everything except the tensor data.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let at = |source| LoadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(at)?;
        let file_len = file.metadata().map_err(at)?.len();
        let mut reader = Cursor {
            reader: BufReader::new(file),
            left: file_len,
            path,
            what: "header".to_owned(),
        };
        let magic = reader.u32()?;
        if magic != MAGIC {
            let got =
                format!("{:?}", magic.to_le_bytes().map(char::from).iter().collect::<String>());
            return Err(reader.wrong("a file that begins with \"GGUF\"", got));
        }
        let version = reader.u32()?;
        if version != 2 && version != 3 {
            return Err(reader.wrong("version 2 or 3", format!("version {version}")));
        }
        // The smallest sizes of an entry in bytes. Of a tensor: length of the name (8), number of dimensions (4), type
        // (4), offset (8). Of the metadata: length of the key (8), type (4).
        let tensor_count = reader.count(24)?;
        let metadata_count = reader.count(12)?;
        let mut metadata = HashMap::new();
        for entry in 0..metadata_count {
            reader.what = format!("metadata entry {entry}");
            let key = reader.string()?;
            reader.what = format!("metadata key {key}");
            let kind = reader.u32()?;
            let value = reader.value(kind, 0)?;
            if metadata.insert(key, value).is_some() {
                return Err(reader.wrong("it once", "it twice"));
            }
        }
        let mut tensors = HashMap::new();
        for entry in 0..tensor_count {
            reader.what = format!("tensor entry {entry}");
            let name = reader.string()?;
            reader.what = format!("tensor entry {name}");
            if tensors.insert(name, reader.tensor_info()?).is_some() {
                return Err(reader.wrong("it once", "it twice"));
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => DEFAULT_ALIGNMENT,
            Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() => *alignment,
            Some(other) => {
                reader.what = "metadata key general.alignment".to_owned();
                return Err(reader.wrong("a power of two", format!("{other:?}")));
            }
        };
        let data_start = (file_len - reader.left).next_multiple_of(alignment);
        let file = reader.reader.into_inner();
        Ok(Self { path: path.to_owned(), file, metadata, tensors, data_start, file_len })
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads and dequantises a tensor.
    pub(crate) fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let wrong = |expected: String, got: String| LoadError::Tensor {
            name: name.to_owned(),
            expected,
            got,
        };
        let Some(info) = self.tensors.get(name) else {
            return Err(wrong("a tensor of this name".to_owned(), "none".to_owned()));
        };
        // An unknown type is an error only here, so that a file may contain such tensors if the model does not use
        // them.
        let Some(kind) = Kind::from_id(info.kind) else {
            return Err(wrong(format!("one of the kinds {}", Kind::NAMES), Kind::name(info.kind)));
        };
        let elements = info.shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size));
        let bytes = elements.and_then(|elements| kind.bytes(elements));
        let (Some(elements), Some(bytes)) = (elements, bytes) else {
            let expected = format!("a whole number of {} blocks", Kind::name(info.kind));
            return Err(wrong(expected, format!("shape {:?}", info.shape)));
        };
        let start = self.data_start.checked_add(info.offset);
        let end = start.and_then(|start| start.checked_add(bytes as u64));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(wrong("an offset inside of the file".to_owned(), info.offset.to_string()));
        };
        // Checked before memory is reserved: the shape comes from the file and may be of any size.
        if end > self.file_len {
            let expected = format!("a file of at least {end} bytes (is it whole?)");
            return Err(wrong(expected, format!("{} bytes", self.file_len)));
        }
        let mut raw = vec![0; bytes];
        self.file
            .seek(SeekFrom::Start(start))
            .and_then(|_| self.file.read_exact(&mut raw))
            .map_err(|source| LoadError::Io { path: self.path.clone(), source })?;
        Ok(kind.dequantise(&raw, elements))
    }

    pub(crate) fn has_key(&self, key: &str) -> bool {
        self.metadata.contains_key(key)
    }

    pub(crate) fn string(&self, key: &str) -> Result<&str, LoadError> {
        match self.metadata.get(key) {
            Some(Value::String(value)) => Ok(value),
            other => Err(unusable(key, "a string", other)),
        }
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize, LoadError> {
        let value = self.metadata.get(key);
        value.and_then(Value::as_size).ok_or_else(|| unusable(key, "a whole number", value))
    }

    pub(crate) fn number(&self, key: &str) -> Result<f32, LoadError> {
        match self.metadata.get(key) {
            Some(Value::Float(value)) => Ok(*value as f32),
            other => Err(unusable(key, "a number", other)),
        }
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, LoadError> {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => Ok(*value),
            other => Err(unusable(key, "true or false", other)),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<String>, LoadError> {
        self.array(key, "an array of strings", |value| match value {
            Value::String(value) => Some(value.clone()),
            _ => None,
        })
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        self.array(key, "an array of numbers", |value| match value {
            Value::Float(value) => Some(*value as f32),
            _ => None,
        })
    }

    pub(crate) fn sizes(&self, key: &str) -> Result<Vec<usize>, LoadError> {
        self.array(key, "an array of whole numbers", Value::as_size)
    }

    fn array<T>(
        &self,
        key: &str,
        expected: &str,
        item: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, LoadError> {
        let value = self.metadata.get(key);
        let items = match value {
            Some(Value::Array(items)) => items.iter().map(item).collect(),
            _ => None,
        };
        items.ok_or_else(|| unusable(key, expected, value))
    }
}

impl Value {
    fn as_size(&self) -> Option<usize> {
        match self {
            Self::Unsigned(value) => usize::try_from(*value).ok(),
            Self::Signed(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }
}

fn unusable(key: &str, expected: &str, got: Option<&Value>) -> LoadError {
    let got = match got {
        None => "none".to_owned(),
        Some(Value::Array(items)) => format!("an array of {} values", items.len()),
        Some(value) => format!("{value:?}"),
    };
    LoadError::Key { key: key.to_owned(), expected: expected.to_owned(), got }
}

/// Reads numbers and strings, and tracks how much of the file is left.
struct Cursor<'a> {
    reader: BufReader<File>,
    left: u64,
    path: &'a Path,
    /// The part of the file being read, for error messages.
    what: String,
}

impl Cursor<'_> {
    fn wrong(&self, expected: impl ToString, got: impl ToString) -> LoadError {
        LoadError::Format {
            path: self.path.to_owned(),
            what: self.what.clone(),
            expected: expected.to_string(),
            got: got.to_string(),
        }
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), LoadError> {
        if bytes.len() as u64 > self.left {
            let expected = format!("{} more bytes (is the file whole?)", bytes.len());
            return Err(self.wrong(expected, self.left));
        }
        self.reader
            .read_exact(bytes)
            .map_err(|source: io::Error| LoadError::Io { path: self.path.to_owned(), source })?;
        self.left -= bytes.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// Reads a count of items of at least `size` bytes each, and checks that they fit into the rest of the file.
    fn count(&mut self, size: u64) -> Result<u64, LoadError> {
        let count = self.u64()?;
        if count > self.left / size {
            let expected = format!("a count of at most {}", self.left / size);
            return Err(self.wrong(expected, count));
        }
        Ok(count)
    }

    fn string(&mut self) -> Result<String, LoadError> {
        let length = self.count(1)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| self.wrong("UTF-8", error))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, LoadError> {
        Ok(match kind {
            0 => Value::Unsigned(u8::from_le_bytes(self.bytes()?).into()),
            1 => Value::Signed(i8::from_le_bytes(self.bytes()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.bytes()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.bytes()?).into()),
            4 => Value::Unsigned(u32::from_le_bytes(self.bytes()?).into()),
            5 => Value::Signed(i32::from_le_bytes(self.bytes()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes()?).into()),
            7 => Value::Bool(self.bytes::<1>()? != [0]),
            8 => Value::String(self.string()?),
            9 if depth < MAX_DEPTH => {
                let kind = self.u32()?;
                let count = self.count(1)?;
                let mut items = Vec::new();
                // `count` says only that each item has a byte in the file. In memory an item takes many more, so
                // nothing is reserved.
                for _ in 0..count {
                    items.push(self.value(kind, depth + 1)?);
                }
                Value::Array(items)
            }
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.bytes()?)),
            12 => Value::Float(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.wrong("a value type from 0 to 12", other)),
        })
    }

    fn tensor_info(&mut self) -> Result<TensorInfo, LoadError> {
        let dimensions = self.u32()?;
        if dimensions == 0 || dimensions > MAX_DIMENSIONS {
            return Err(self.wrong("1 to 4 dimensions", dimensions));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64()?;
            let size = usize::try_from(size).map_err(|_| self.wrong("a size in memory", size))?;
            shape.push(size);
        }
        shape.reverse();
        Ok(TensorInfo { shape, kind: self.u32()?, offset: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// A file with `true` under these keys, and tensors of one number under these names.
    fn open(keys: &[&str], tensors: &[&str]) -> Result<Gguf, LoadError> {
        let mut bytes = [&MAGIC.to_le_bytes()[..], &3u32.to_le_bytes()].concat();
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((keys.len() as u64).to_le_bytes());
        for key in keys {
            bytes.extend([&string(key)[..], &7u32.to_le_bytes(), &[1]].concat());
        }
        for name in tensors {
            bytes.extend(string(name));
            bytes.extend(1u32.to_le_bytes()); // number of dimensions
            bytes.extend(1u64.to_le_bytes()); // size of the dimension
            bytes.extend(0u32.to_le_bytes()); // type F32
            bytes.extend(0u64.to_le_bytes()); // offset
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.gguf");
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path)
    }

    #[test]
    fn duplicate_names_are_refused() {
        assert!(open(&["a", "b"], &["a", "b"]).is_ok());
        let message =
            |keys: &[&str], tensors: &[&str]| open(keys, tensors).unwrap_err().to_string();
        let twice = message(&["a", "b", "a"], &[]);
        assert!(twice.ends_with("metadata key a: expected it once, got it twice"), "{twice}");
        let twice = message(&[], &["t", "t"]);
        assert!(twice.ends_with("tensor entry t: expected it once, got it twice"), "{twice}");
    }
}
