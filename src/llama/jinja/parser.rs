//! Builds the syntax tree: statements.

use std::sync::Arc;

use super::{
    cursor::Parser,
    fault::Fault,
    lexer::{Kind, Tag, tokens},
    tree::{Arguments, Block, Expression, For, Macro, Name, Node, Statement, Step, Target},
};

/// Parses a template, whose lines end in `\n`.
pub(super) fn parse(source: &str) -> Result<Block, Fault> {
    let mut parser = Parser::new(tokens(source)?);
    let (block, _) = parser.block(&[]).map_err(|fault| fault.at(parser.line()))?;
    Ok(block)
}

impl Parser<'_> {
    /// Parses statements up to a tag that begins with one of `ends`, or to the end of the template if there are none.
    /// Returns that name, with the tag's other tokens still to be read.
    fn block(&mut self, ends: &[&'static str]) -> Result<(Block, &'static str), Fault> {
        let mut block = Block::new();
        loop {
            let line = self.line();
            let statement = match self.peek() {
                None if ends.is_empty() => return Ok((block, "")),
                None => return Err(self.unexpected(ends[0])),
                Some(Kind::Text(text)) => {
                    let text = (*text).to_owned();
                    self.at += 1;
                    Statement::Text(text)
                }
                Some(Kind::Open(Tag::Print)) => {
                    self.at += 1;
                    let value = self.nested(Self::tuple)?;
                    self.close()?;
                    Statement::Print(value)
                }
                _ => {
                    self.at += 1;
                    if let Some(end) = ends.iter().find(|end| self.is_name(end)) {
                        self.at += 1;
                        return Ok((block, end));
                    }
                    self.nested(Self::statement)?
                }
            };
            block.push(Node { line, statement });
        }
    }

    /// Parses the body of a tag that `end` ends, after the tag's own tokens.
    fn body(&mut self, end: &'static str) -> Result<Block, Fault> {
        self.close()?;
        let (body, _) = self.block(&[end])?;
        self.close()?;
        Ok(body)
    }

    fn statement(&mut self) -> Result<Statement, Fault> {
        let tag = self.name()?;
        Ok(match &*tag {
            "if" => self.conditional()?,
            "for" => self.repeated()?,
            "set" => self.assignment()?,
            "macro" => {
                let name = self.name()?;
                self.sign("(")?;
                let parameters = self.parameters()?;
                let body = self.body("endmacro")?;
                Statement::Macro(Arc::new(Macro { name, parameters, body }))
            }
            "call" => {
                let parameters = if self.eat_sign("(") { self.parameters()? } else { Vec::new() };
                let call = self.expression()?;
                let body = self.body("endcall")?;
                let caller = Arc::new(Macro { name: Arc::from("caller"), parameters, body });
                Statement::Call { call, caller }
            }
            "filter" => {
                let filters = self.filters()?;
                Statement::Filter { filters, body: self.body("endfilter")? }
            }
            "with" => {
                let mut values = Vec::new();
                while self.peek() != Some(&Kind::Close) {
                    if !values.is_empty() {
                        self.sign(",")?;
                    }
                    let target = self.target_item()?;
                    self.sign("=")?;
                    values.push((target, self.expression()?));
                }
                Statement::With { values, body: self.body("endwith")? }
            }
            // The text of an assistant's message, which transformers marks for training. It has a scope of its own.
            "generation" => {
                Statement::With { values: Vec::new(), body: self.body("endgeneration")? }
            }
            "break" => {
                self.close()?;
                Statement::Break
            }
            "continue" => {
                self.close()?;
                Statement::Continue
            }
            other => return Err(Fault::expected("a tag that chat templates have", other)),
        })
    }

    fn conditional(&mut self) -> Result<Statement, Fault> {
        let mut branches = Vec::new();
        loop {
            let condition = self.tuple()?;
            self.close()?;
            let (body, end) = self.block(&["endif", "elif", "else"])?;
            branches.push((condition, body));
            let otherwise = match end {
                "elif" => continue,
                "else" => self.body("endif")?,
                _ => {
                    self.close()?;
                    Block::new()
                }
            };
            return Ok(Statement::If { branches, otherwise });
        }
    }

    fn repeated(&mut self) -> Result<Statement, Fault> {
        let target = self.target()?;
        self.keyword("in")?;
        let items = self.without_condition()?;
        let condition = if self.eat_name("if") { Some(self.expression()?) } else { None };
        let recursive = self.eat_name("recursive");
        self.close()?;
        let (body, end) = self.block(&["endfor", "else"])?;
        let otherwise = if end == "else" {
            self.body("endfor")?
        } else {
            self.close()?;
            Block::new()
        };
        Ok(Statement::For(Arc::new(For { target, items, condition, recursive, body, otherwise })))
    }

    fn assignment(&mut self) -> Result<Statement, Fault> {
        let target = self.target()?;
        if self.eat_sign("=") {
            let value = self.tuple()?;
            self.close()?;
            return Ok(Statement::Set(target, value));
        }
        let filters = if self.eat_sign("|") { self.filters()? } else { Vec::new() };
        Ok(Statement::SetBlock { target, filters, body: self.body("endset")? })
    }

    fn target(&mut self) -> Result<Target, Fault> {
        let mut targets = vec![self.target_item()?];
        let mut several = false;
        while self.eat_sign(",") {
            several = true;
            if matches!(self.peek(), Some(Kind::Name("in") | Kind::Sign("=" | ")"))) {
                break;
            }
            targets.push(self.target_item()?);
        }
        match targets.pop() {
            Some(only) if !several => Ok(only),
            last => Ok(Target::Several(targets.into_iter().chain(last).collect())),
        }
    }

    fn target_item(&mut self) -> Result<Target, Fault> {
        if self.eat_sign("(") {
            let target = self.nested(Self::target)?;
            self.sign(")")?;
            return Ok(target);
        }
        let name = self.name()?;
        if ["true", "false", "none", "True", "False", "None"].contains(&&*name) {
            return Err(Fault::expected("the name of a variable", name));
        }
        Ok(if self.eat_sign(".") {
            Target::Attribute(name, self.name()?)
        } else {
            Target::Name(name)
        })
    }

    fn parameters(&mut self) -> Result<Vec<(Name, Option<Expression>)>, Fault> {
        let mut parameters = Vec::new();
        while !self.eat_sign(")") {
            if !parameters.is_empty() {
                self.sign(",")?;
            }
            let name = self.name()?;
            let default = if self.eat_sign("=") { Some(self.expression()?) } else { None };
            parameters.push((name, default));
        }
        Ok(parameters)
    }

    /// The filters of `{% filter a | b %}`.
    fn filters(&mut self) -> Result<Vec<Step>, Fault> {
        let mut filters = vec![self.filter()?];
        while self.eat_sign("|") {
            filters.push(self.filter()?);
        }
        Ok(filters)
    }

    pub(super) fn filter(&mut self) -> Result<Step, Fault> {
        let name = self.name()?;
        let arguments = if self.eat_sign("(") { self.arguments()? } else { Arguments::default() };
        Ok(Step::Filter(name, arguments))
    }
}
