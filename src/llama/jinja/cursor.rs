//! Reads tokens one after another.

use std::sync::Arc;

use super::{
    fault::Fault,
    lexer::{Kind, Token},
    tree::Name,
};

/// How deeply statements and brackets may nest. Published templates stay below 20. Parsing and evaluating are recursive
/// in this depth, and in nothing else.
const MAX_DEPTH: usize = 60;

/// A parser of statements (`parser.rs`) and expressions (`expressions.rs`).
pub(super) struct Parser<'s> {
    pub(super) tokens: Vec<Token<'s>>,
    pub(super) at: usize,
    depth: usize,
}

impl<'s> Parser<'s> {
    pub(super) fn new(tokens: Vec<Token<'s>>) -> Self {
        Self { tokens, at: 0, depth: 0 }
    }

    pub(super) fn line(&self) -> usize {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    pub(super) fn peek(&self) -> Option<&Kind<'s>> {
        self.tokens.get(self.at).map(|token| &token.kind)
    }

    pub(super) fn is_sign(&self, sign: &str) -> bool {
        matches!(self.peek(), Some(Kind::Sign(s)) if *s == sign)
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Kind::Name(n)) if *n == name)
    }

    pub(super) fn eat_sign(&mut self, sign: &str) -> bool {
        let found = self.is_sign(sign);
        self.at += usize::from(found);
        found
    }

    pub(super) fn eat_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += usize::from(found);
        found
    }

    pub(super) fn sign(&mut self, sign: &str) -> Result<(), Fault> {
        if self.eat_sign(sign) { Ok(()) } else { Err(self.unexpected(sign)) }
    }

    pub(super) fn keyword(&mut self, name: &str) -> Result<(), Fault> {
        if self.eat_name(name) { Ok(()) } else { Err(self.unexpected(name)) }
    }

    pub(super) fn close(&mut self) -> Result<(), Fault> {
        if self.peek() != Some(&Kind::Close) {
            return Err(self.unexpected("the end of the tag"));
        }
        self.at += 1;
        Ok(())
    }

    pub(super) fn name(&mut self) -> Result<Name, Fault> {
        match self.peek() {
            Some(Kind::Name(name)) => {
                let name = Arc::from(*name);
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> Fault {
        let got = match self.peek() {
            None => "the end of the template".to_owned(),
            Some(Kind::Text(_)) => "text".to_owned(),
            Some(Kind::Open(_)) => "a tag".to_owned(),
            Some(Kind::Close) => "the end of the tag".to_owned(),
            Some(Kind::Name(name)) => (*name).to_owned(),
            Some(Kind::String(text)) => format!("{text:?}"),
            Some(Kind::Int(number)) => number.to_string(),
            Some(Kind::Float(number)) => number.to_string(),
            Some(Kind::Sign(sign)) => (*sign).to_owned(),
        };
        Fault::expected(expected, got)
    }

    /// Runs `parse` one level deeper.
    pub(super) fn nested<T>(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.depth == MAX_DEPTH {
            return Err(Fault::expected(
                format!("at most {MAX_DEPTH} nested tags and brackets"),
                "more",
            ));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }
}
