//! Metadata values of a GGUF file.

use crate::llama::error::LoadError;

/// A metadata value. Numbers of all widths share one variant per kind.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    /// An array of numbers or flags of one type, as the bytes of the file: decoded, an array of bytes would be 24 times
    /// as large.
    Numbers {
        kind: u32,
        bytes: Vec<u8>,
    },
    /// An array of arrays. None of the keys that are read has one, so only its length is kept.
    Arrays(usize),
}

impl Value {
    /// Type ids of the format.
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;

    /// Number of bytes of a number or flag; `None` for any other type.
    pub(super) fn width(kind: u32) -> Option<usize> {
        match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        }
    }

    /// Decodes a number or flag from at least the bytes of its width.
    pub(super) fn number(kind: u32, bytes: &[u8]) -> Option<Self> {
        Some(match kind {
            0 => Self::Unsigned((*bytes.first()?).into()),
            1 => Self::Signed(i8::from_le_bytes(*bytes.first_chunk()?).into()),
            2 => Self::Unsigned(u16::from_le_bytes(*bytes.first_chunk()?).into()),
            3 => Self::Signed(i16::from_le_bytes(*bytes.first_chunk()?).into()),
            4 => Self::Unsigned(u32::from_le_bytes(*bytes.first_chunk()?).into()),
            5 => Self::Signed(i32::from_le_bytes(*bytes.first_chunk()?).into()),
            6 => Self::Float(f32::from_le_bytes(*bytes.first_chunk()?).into()),
            7 => Self::Bool(*bytes.first()? != 0),
            10 => Self::Unsigned(u64::from_le_bytes(*bytes.first_chunk()?)),
            11 => Self::Signed(i64::from_le_bytes(*bytes.first_chunk()?)),
            12 => Self::Float(f64::from_le_bytes(*bytes.first_chunk()?)),
            _ => return None,
        })
    }

    pub(super) fn as_size(&self) -> Option<usize> {
        usize::try_from(self.as_integer()?).ok()
    }

    pub(super) fn as_integer(&self) -> Option<i128> {
        match self {
            Self::Unsigned(value) => Some((*value).into()),
            Self::Signed(value) => Some((*value).into()),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f32> {
        match self {
            Self::Float(value) => Some(*value as f32),
            _ => None,
        }
    }

    /// Converts the items of an array of numbers. `None` if it is no such array, or an item is not converted.
    pub(super) fn items<T>(&self, item: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        match self {
            Self::Numbers { kind, bytes } => bytes
                .chunks_exact(Self::width(*kind)?)
                .map(|bytes| item(&Self::number(*kind, bytes)?))
                .collect(),
            Self::Strings(items) if items.is_empty() => Some(Vec::new()),
            _ => None,
        }
    }

    pub(super) fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Strings(items) => Some(items),
            Self::Numbers { bytes, .. } if bytes.is_empty() => Some(&[]),
            _ => None,
        }
    }
}

/// The error about a metadata key.
pub(super) fn unusable(key: &str, expected: &str, got: Option<&Value>) -> LoadError {
    let array = |items: usize| format!("an array of {items} values");
    let got = match got {
        None => "none".to_owned(),
        Some(Value::Strings(items)) => array(items.len()),
        Some(Value::Numbers { kind, bytes }) => {
            array(bytes.len() / Value::width(*kind).unwrap_or(1))
        }
        Some(Value::Arrays(items)) => array(*items),
        Some(value) => format!("{value:?}"),
    };
    LoadError::Key { key: key.to_owned(), expected: expected.to_owned(), got }
}
