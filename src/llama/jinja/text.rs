//! Values as text: as Python prints them, and as JSON.

use std::fmt::Write;

use super::{budget::Budget, fault::Fault, value::Value};

/// A text that is being written and paid for.
pub(super) struct Writer<'b> {
    pub(super) text: String,
    budget: &'b Budget,
}

impl<'b> Writer<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { text: String::new(), budget }
    }

    pub(super) fn push(&mut self, text: &str) -> Result<(), Fault> {
        self.budget.bytes(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    /// Writes `count` times `text`.
    pub(super) fn repeat(&mut self, text: &str, count: usize) -> Result<(), Fault> {
        self.budget.bytes(text.len().saturating_mul(count))?;
        self.text.extend(std::iter::repeat_n(text, count));
        Ok(())
    }

    /// Writes a value as `print` does.
    pub(super) fn print(&mut self, value: &Value) -> Result<(), Fault> {
        match value {
            Value::Undefined => Ok(()),
            Value::Text(text) => self.push(text),
            other => self.repr(other),
        }
    }

    /// Writes a value as it is written inside of a list.
    fn repr(&mut self, value: &Value) -> Result<(), Fault> {
        self.budget.step()?;
        match value {
            Value::Undefined => self.push("Undefined"),
            Value::None => self.push("None"),
            Value::Bool(value) => self.push(if *value { "True" } else { "False" }),
            Value::Int(value) => self.push(&value.to_string()),
            Value::Float(value) => self.push(&float(*value)),
            Value::Text(text) => self.quoted(text),
            Value::List(list) => {
                let (open, close) = if list.tuple { ("(", ")") } else { ("[", "]") };
                self.push(open)?;
                for (at, item) in list.items.iter().enumerate() {
                    self.push(if at > 0 { ", " } else { "" })?;
                    self.repr(item)?;
                }
                self.push(if list.tuple && list.items.len() == 1 { "," } else { "" })?;
                self.push(close)
            }
            Value::Dict(dict) => {
                self.push("{")?;
                for (at, (key, value)) in dict.entries.iter().enumerate() {
                    self.push(if at > 0 { ", " } else { "" })?;
                    self.repr(key)?;
                    self.push(": ")?;
                    self.repr(value)?;
                }
                self.push("}")
            }
            other => Err(Fault::expected("something that can be printed", other.kind())),
        }
    }

    fn quoted(&mut self, text: &str) -> Result<(), Fault> {
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        self.budget.bytes(text.len() + 2)?;
        self.text.push(quote);
        for c in text.chars() {
            match c {
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\\' => self.text.push_str("\\\\"),
                c if c == quote => self.text.extend(['\\', c]),
                c if c.is_control() => {
                    // A byte becomes at most four, which the price of a byte allows for.
                    let _ = write!(self.text, "\\x{:02x}", u32::from(c));
                }
                c => self.text.push(c),
            }
        }
        self.text.push(quote);
        Ok(())
    }

    /// Writes a value as Python's `json.dumps` does.
    pub(super) fn json(
        &mut self,
        value: &Value,
        style: &JsonStyle,
        level: usize,
    ) -> Result<(), Fault> {
        self.budget.step()?;
        match value {
            Value::None => self.push("null"),
            Value::Bool(value) => self.push(if *value { "true" } else { "false" }),
            Value::Int(_) => self.repr(value),
            Value::Float(value) => self.push(&json_float(*value)),
            Value::Text(text) => self.json_text(text, style),
            Value::List(list) => {
                let items = list.items.iter().map(|item| (None, item));
                self.json_container(["[", "]"], items, style, level)
            }
            Value::Dict(dict) => {
                let mut entries = Vec::with_capacity(dict.entries.len());
                for (key, value) in &dict.entries {
                    let mut writer = Writer::new(self.budget);
                    match key {
                        Value::Text(text) => writer.push(text)?,
                        Value::None | Value::Bool(_) | Value::Int(_) | Value::Float(_) => {
                            writer.json(key, style, level)?;
                        }
                        other => return Err(Fault::expected("a key that JSON has", other.kind())),
                    }
                    entries.push((Some(writer.text), value));
                }
                if style.sort_keys {
                    entries.sort_by(|a, b| a.0.cmp(&b.0));
                }
                self.json_container(["{", "}"], entries.into_iter(), style, level)
            }
            other => Err(Fault::expected("a value that JSON has", other.kind())),
        }
    }

    fn json_container<'v>(
        &mut self,
        [open, close]: [&str; 2],
        entries: impl ExactSizeIterator<Item = (Option<String>, &'v Value)>,
        style: &JsonStyle,
        level: usize,
    ) -> Result<(), Fault> {
        let empty = entries.len() == 0;
        self.push(open)?;
        for (at, (key, value)) in entries.enumerate() {
            self.push(if at > 0 { &style.item_separator } else { "" })?;
            self.json_line(style, level + 1)?;
            if let Some(key) = key {
                self.json_text(&key, style)?;
                self.push(&style.key_separator)?;
            }
            self.json(value, style, level + 1)?;
        }
        if !empty {
            self.json_line(style, level)?;
        }
        self.push(close)
    }

    fn json_line(&mut self, style: &JsonStyle, level: usize) -> Result<(), Fault> {
        let Some(indent) = &style.indent else { return Ok(()) };
        self.push("\n")?;
        self.repeat(indent, level)
    }

    fn json_text(&mut self, text: &str, style: &JsonStyle) -> Result<(), Fault> {
        self.push("\"")?;
        let mut units = [0; 2];
        for c in text.chars() {
            match c {
                '"' => self.push("\\\"")?,
                '\\' => self.push("\\\\")?,
                '\n' => self.push("\\n")?,
                '\r' => self.push("\\r")?,
                '\t' => self.push("\\t")?,
                '\x08' => self.push("\\b")?,
                '\x0c' => self.push("\\f")?,
                c if c < ' ' || style.ascii && !c.is_ascii() => {
                    for unit in c.encode_utf16(&mut units) {
                        self.push(&format!("\\u{unit:04x}"))?;
                    }
                }
                c => self.push(c.encode_utf8(&mut [0; 4]))?,
            }
        }
        self.push("\"")
    }
}

/// The arguments of `tojson`.
pub(super) struct JsonStyle {
    pub(super) ascii: bool,
    pub(super) indent: Option<String>,
    pub(super) item_separator: String,
    pub(super) key_separator: String,
    pub(super) sort_keys: bool,
}

/// A number as Python prints it.
pub(super) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    let text = format!("{value:?}");
    match text.split_once('e') {
        // Python writes a sign and two digits of the exponent.
        Some((digits, power)) => {
            let digits = digits.strip_suffix(".0").unwrap_or(digits);
            match power.strip_prefix('-') {
                Some(power) => format!("{digits}e-{power:0>2}"),
                None => format!("{digits}e+{power:0>2}"),
            }
        }
        None => text,
    }
}

fn json_float(value: f64) -> String {
    match float(value) {
        text if text == "nan" => "NaN".to_owned(),
        text if text == "inf" => "Infinity".to_owned(),
        text if text == "-inf" => "-Infinity".to_owned(),
        text => text,
    }
}
