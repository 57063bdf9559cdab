//! Reader of the GGUF container: metadata and tensor locations.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use super::{
    super::kind::{self, wrong_file},
    layout,
    quant::Kind,
    split,
    value::{Value, unusable},
};
use crate::llama::error::LoadError;

/// A GGUF file (versions 2 and 3, little-endian), or all parts of a split one. The metadata is read on opening, tensors
/// on demand.
///
/// Counts and lengths in the file are not trusted: each is compared with the remaining size of the file before anything
/// is allocated for it, and tensors may not share bytes. The metadata takes at most about ten times its size in the
/// file, and the tensors, as `f32`, at most eight times theirs.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// One file, or the parts of a split file in order.
    pub(super) parts: Vec<Part>,
    pub(super) metadata: HashMap<String, Value>,
    pub(super) tensors: HashMap<String, TensorInfo>,
}

/// A file with tensors.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) file: File,
    /// Base of the tensor offsets, in bytes.
    pub(super) data_start: u64,
    pub(super) len: u64,
}

/// Description of a tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorInfo {
    /// Row-major shape: the file's dimensions, slowest first.
    pub(crate) shape: Vec<usize>,
    pub(crate) kind: u32,
    pub(super) offset: u64,
    /// Index of the part that holds it.
    pub(super) part: usize,
}

const MAGIC: u32 = u32::from_le_bytes(*b"GGUF");
const VERSIONS: [u32; 2] = [2, 3];
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMENSIONS: u32 = 4;
/// Maximum nesting depth of arrays.
// Arrays are read recursively. Without a limit, a damaged file could overflow the stack.
const MAX_DEPTH: usize = 4;

/// A tensor as it is packed in the file.
pub(super) struct Packed {
    pub(super) kind: Kind,
    pub(super) raw: Vec<u8>,
    elements: usize,
}

impl Packed {
    /// Bytes of `elements` numbers; `None` when they do not fill whole blocks.
    pub(super) fn bytes_of(&self, elements: usize) -> Option<usize> {
        self.kind.bytes(elements)
    }

    /// Dequantises `row`, which begins at a byte of the tensor.
    pub(super) fn dequantise_row(&self, from: usize, row: &mut [f32]) {
        self.kind.blocks(&self.raw[from..], row);
    }
}

impl Gguf {
    /// Opens a file and reads everything except the tensor data. Opens the other parts of a split file too.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        let mut file = Self::open_part(path)?;
        split::add_parts(&mut file)?;
        layout::check(&file)?;
        Ok(file)
    }

    /// Opens a file on its own.
    pub(super) fn open_part(path: &Path) -> Result<Self, LoadError> {
        let at = |source| LoadError::Io { path: path.to_owned(), source };
        let mut file = File::open(path).map_err(at)?;
        let len = file.metadata().map_err(at)?.len();
        let mut head = Vec::new();
        (&mut file).take(512).read_to_end(&mut head).map_err(at)?;
        file.seek(SeekFrom::Start(0)).map_err(at)?;
        if !head.starts_with(b"GGUF")
            && let Some(error) = kind::of_file(path, &head, "a GGUF file")
        {
            return Err(error);
        }
        let mut reader =
            Cursor { reader: BufReader::new(file), left: len, path, what: "header".to_owned() };
        let magic = reader.u32()?;
        if magic != MAGIC {
            let got =
                format!("{:?}", magic.to_le_bytes().map(char::from).iter().collect::<String>());
            return Err(reader.wrong("a file that begins with \"GGUF\"", got));
        }
        let version = reader.u32()?;
        if VERSIONS.contains(&version.swap_bytes()) {
            let next_step = "convert it to little-endian with gguf_convert_endian.py of llama.cpp";
            return Err(wrong_file(
                path,
                "a little-endian GGUF file",
                "a big-endian one",
                next_step,
            ));
        }
        if !VERSIONS.contains(&version) {
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
        check_purpose(path, &metadata)?;
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
        let data_start = (len - reader.left).next_multiple_of(alignment);
        let file = reader.reader.into_inner();
        let part = Part { path: path.to_owned(), file, data_start, len };
        Ok(Self { parts: vec![part], metadata, tensors })
    }

    pub(crate) fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// Reads and dequantises a tensor.
    pub(crate) fn read(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let Packed { kind, raw, elements } = self.read_packed(name)?;
        Ok(kind.dequantise(&raw, elements))
    }

    /// Reads a tensor as it is packed in the file.
    pub(super) fn read_packed(&mut self, name: &str) -> Result<Packed, LoadError> {
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
        let part = &mut self.parts[info.part];
        let place = layout::place(name, info, kind, part)?;
        let mut raw = vec![0; place.bytes];
        part.file
            .seek(SeekFrom::Start(place.start))
            .and_then(|_| part.file.read_exact(&mut raw))
            .map_err(|source| LoadError::Io { path: part.path.clone(), source })?;
        Ok(Packed { kind, raw, elements: place.elements })
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

    /// A whole number of any size and sign, if the file has the key.
    pub(crate) fn integer(&self, key: &str) -> Result<Option<i128>, LoadError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let integer = value.as_integer();
        integer.map(Some).ok_or_else(|| unusable(key, "a whole number", Some(value)))
    }

    pub(crate) fn number(&self, key: &str) -> Result<f32, LoadError> {
        let value = self.metadata.get(key);
        value.and_then(Value::as_float).ok_or_else(|| unusable(key, "a number", value))
    }

    pub(crate) fn flag(&self, key: &str) -> Result<bool, LoadError> {
        match self.metadata.get(key) {
            Some(Value::Bool(value)) => Ok(*value),
            other => Err(unusable(key, "true or false", other)),
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<&[String], LoadError> {
        let value = self.metadata.get(key);
        let strings = value.and_then(Value::as_strings);
        strings.ok_or_else(|| unusable(key, "an array of strings", value))
    }

    pub(crate) fn numbers(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let value = self.metadata.get(key);
        let numbers = value.and_then(|value| value.items(Value::as_float));
        numbers.ok_or_else(|| unusable(key, "an array of numbers", value))
    }

    pub(crate) fn sizes(&self, key: &str) -> Result<Vec<usize>, LoadError> {
        let value = self.metadata.get(key);
        let sizes = value.and_then(|value| value.items(Value::as_size));
        sizes.ok_or_else(|| unusable(key, "an array of whole numbers", value))
    }
}

/// Refuses files that share the container with models but are something else.
fn check_purpose(path: &Path, metadata: &HashMap<String, Value>) -> Result<(), LoadError> {
    let text = |key: &str| match metadata.get(key) {
        Some(Value::String(text)) => text.as_str(),
        _ => "",
    };
    let (got, next_step) = match (text("general.type"), text("general.architecture")) {
        ("adapter", _) => (
            "a LoRA adapter",
            "merge it into its base model with llama-export-lora of llama.cpp, and give the result",
        ),
        ("mmproj", _) | (_, "clip") => (
            "the vision or audio part of a model (mmproj)",
            "give the file of the language model, which has a name without mmproj",
        ),
        ("imatrix", _) => ("statistics for quantisation (imatrix)", "give the file of the model"),
        _ => return Ok(()),
    };
    Err(wrong_file(path, "a language model", got, next_step))
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
    fn count(&mut self, size: u64) -> Result<usize, LoadError> {
        let (count, most) = (self.u64()?, self.left / size);
        let fits = usize::try_from(count).ok().filter(|_| count <= most);
        fits.ok_or_else(|| self.wrong(format!("a count of at most {most}"), count))
    }

    fn string(&mut self) -> Result<String, LoadError> {
        let length = self.count(1)?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|error| self.wrong("UTF-8", error))
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<Value, LoadError> {
        if let Some(width) = Value::width(kind) {
            let mut bytes = [0; 8];
            self.fill(&mut bytes[..width])?;
            let number = Value::number(kind, &bytes);
            return number.ok_or_else(|| self.wrong("a number", kind));
        }
        match kind {
            Value::STRING => Ok(Value::String(self.string()?)),
            Value::ARRAY if depth < MAX_DEPTH => self.array(depth),
            other => Err(self.wrong("a value type from 0 to 12", other)),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, LoadError> {
        let kind = self.u32()?;
        if let Some(width) = Value::width(kind) {
            let count = self.count(width as u64)?;
            let mut bytes = vec![0; count * width]; // at most what is left of the file
            self.fill(&mut bytes)?;
            return Ok(Value::Numbers { kind, bytes });
        }
        if kind == Value::STRING {
            let count = self.count(8)?;
            return Ok(Value::Strings(
                (0..count).map(|_| self.string()).collect::<Result<_, _>>()?,
            ));
        }
        let count = self.count(12)?;
        for _ in 0..count {
            self.value(kind, depth + 1)?;
        }
        Ok(Value::Arrays(count))
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
        Ok(TensorInfo { shape, kind: self.u32()?, offset: self.u64()?, part: 0 })
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
        for (at, name) in tensors.iter().enumerate() {
            bytes.extend(string(name));
            bytes.extend(1u32.to_le_bytes()); // number of dimensions
            bytes.extend(1u64.to_le_bytes()); // size of the dimension
            bytes.extend(0u32.to_le_bytes()); // type F32
            bytes.extend((32 * at as u64).to_le_bytes()); // offset
        }
        bytes.resize(bytes.len().next_multiple_of(32) + 32 * tensors.len(), 0);
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
