//! Writes small GGUF files, also ones that no converter would write.

/// A GGUF file of version 3 that is being put together.
#[derive(Clone, Debug, Default)]
pub struct GgufFile {
    entries: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

impl GgufFile {
    /// Adds a value as the bytes of the format, with the id of its type.
    pub fn raw(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.entries.push([&string(key)[..], &kind.to_le_bytes(), value].concat());
        self
    }

    /// Adds a text.
    pub fn text(self, key: &str, text: &str) -> Self {
        self.raw(key, 8, &string(text))
    }

    /// Adds a whole number of 32 bits.
    pub fn number(self, key: &str, number: u32) -> Self {
        self.raw(key, 4, &number.to_le_bytes())
    }

    /// Adds a number with a fraction.
    pub fn float(self, key: &str, number: f32) -> Self {
        self.raw(key, 6, &number.to_le_bytes())
    }

    /// Adds a flag.
    pub fn flag(self, key: &str, flag: bool) -> Self {
        self.raw(key, 7, &[u8::from(flag)])
    }

    /// Adds an array of texts.
    pub fn texts(self, key: &str, texts: &[impl AsRef<str>]) -> Self {
        let mut value = [&8u32.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().for_each(|text| value.extend(string(text.as_ref())));
        self.raw(key, 9, &value)
    }

    /// Adds an array of whole numbers.
    pub fn numbers(self, key: &str, numbers: &[i32]) -> Self {
        let mut value = [&5u32.to_le_bytes()[..], &(numbers.len() as u64).to_le_bytes()].concat();
        numbers.iter().for_each(|number| value.extend(number.to_le_bytes()));
        self.raw(key, 9, &value)
    }

    /// Adds an array of numbers with fractions.
    pub fn floats(self, key: &str, numbers: &[f32]) -> Self {
        let mut value = [&6u32.to_le_bytes()[..], &(numbers.len() as u64).to_le_bytes()].concat();
        numbers.iter().for_each(|number| value.extend(number.to_le_bytes()));
        self.raw(key, 9, &value)
    }

    /// Adds a tensor of the type with id `kind`; `shape` is row-major.
    pub fn tensor(self, name: &str, shape: &[u64], kind: u32, data: &[u8]) -> Self {
        let offset = self.data.len().next_multiple_of(ALIGNMENT);
        let mut file = self.tensor_at(name, shape, kind, offset as u64);
        file.data.resize(offset, 0);
        file.data.extend(data);
        file
    }

    /// Adds the description of a tensor without its data.
    pub fn tensor_at(mut self, name: &str, shape: &[u64], kind: u32, offset: u64) -> Self {
        let mut info = [&string(name)[..], &(shape.len() as u32).to_le_bytes()].concat();
        shape.iter().rev().for_each(|size| info.extend(size.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.tensors.push(info);
        self
    }

    /// Adds zeros to the data of the tensors.
    pub fn zeros(mut self, bytes: usize) -> Self {
        self.data.resize(self.data.len() + bytes, 0);
        self
    }

    /// The content of the file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        bytes.extend(self.entries.concat());
        bytes.extend(self.tensors.concat());
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes.extend(&self.data);
        bytes
    }

    /// A byte-level vocabulary of these tokens and types (1 normal, 3 control), without merges, split as by Qwen2.
    pub fn vocabulary(tokens: &[(&str, i32)]) -> Self {
        let (texts, types): (Vec<&str>, Vec<i32>) = tokens.iter().copied().unzip();
        Self::default()
            .text("general.architecture", "qwen2")
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", "qwen2")
            .texts("tokenizer.ggml.tokens", &texts)
            .numbers("tokenizer.ggml.token_type", &types)
            .texts("tokenizer.ggml.merges", &[] as &[&str])
    }
}
