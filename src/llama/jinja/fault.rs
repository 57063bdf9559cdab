//! Why a template cannot be parsed or rendered.

use std::fmt;

/// An error of a template, with the line of the template where it is known.
#[derive(Debug)]
pub(in crate::llama) struct Fault {
    line: Option<usize>,
    message: String,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { line: None, message: message.into() }
    }

    /// Bad input: what was expected, and what the template has.
    pub(super) fn expected(expected: impl fmt::Display, got: impl fmt::Display) -> Self {
        Self::new(format!("expected {expected}, got {got}"))
    }

    /// Adds the line, unless an inner statement has added its own.
    pub(super) fn at(mut self, line: usize) -> Self {
        self.line.get_or_insert(line);
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}
