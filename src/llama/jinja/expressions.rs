//! Builds the syntax tree: expressions.

use std::sync::Arc;

use super::{
    cursor::Parser,
    fault::Fault,
    lexer::Kind,
    tree::{Arguments, Comparison, Conditional, Expression, Operator, Step},
};

impl Parser<'_> {
    /// An expression, or several with commas between them, which make a tuple.
    pub(super) fn tuple(&mut self) -> Result<Expression, Fault> {
        let first = self.expression()?;
        if !self.is_sign(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.eat_sign(",") {
            if matches!(self.peek(), Some(Kind::Close | Kind::Sign(")"))) {
                break;
            }
            items.push(self.expression()?);
        }
        Ok(Expression::Tuple(items))
    }

    pub(super) fn expression(&mut self) -> Result<Expression, Fault> {
        let value = self.without_condition()?;
        if !self.eat_name("if") {
            return Ok(value);
        }
        let condition = self.without_condition()?;
        let otherwise = match self.eat_name("else") {
            true => Some(self.nested(Self::expression)?),
            false => None,
        };
        Ok(Expression::If(Box::new(Conditional { condition, then: value, otherwise })))
    }

    pub(super) fn without_condition(&mut self) -> Result<Expression, Fault> {
        self.separated(
            "or",
            |parser| parser.separated("and", Self::negation, Expression::And),
            Expression::Or,
        )
    }

    /// Operands with the word `separator` between them.
    fn separated(
        &mut self,
        separator: &str,
        operand: impl Fn(&mut Self) -> Result<Expression, Fault>,
        join: impl Fn(Vec<Expression>) -> Expression,
    ) -> Result<Expression, Fault> {
        let first = operand(self)?;
        if !self.is_name(separator) {
            return Ok(first);
        }
        let mut operands = vec![first];
        while self.eat_name(separator) {
            operands.push(operand(self)?);
        }
        Ok(join(operands))
    }

    fn negation(&mut self) -> Result<Expression, Fault> {
        if self.eat_name("not") {
            return Ok(Expression::Not(Box::new(self.nested(Self::negation)?)));
        }
        let first = self.chain(0)?;
        let mut compared = Vec::new();
        loop {
            let comparison = match self.peek() {
                Some(Kind::Sign("==")) => Comparison::Equal,
                Some(Kind::Sign("!=")) => Comparison::Unequal,
                Some(Kind::Sign("<")) => Comparison::Less,
                Some(Kind::Sign("<=")) => Comparison::LessOrEqual,
                Some(Kind::Sign(">")) => Comparison::Greater,
                Some(Kind::Sign(">=")) => Comparison::GreaterOrEqual,
                Some(Kind::Name("in")) => Comparison::In,
                Some(Kind::Name("not")) => {
                    self.at += 1;
                    if !self.is_name("in") {
                        return Err(self.unexpected("in"));
                    }
                    Comparison::NotIn
                }
                _ => break,
            };
            self.at += 1;
            compared.push((comparison, self.chain(0)?));
        }
        Ok(if compared.is_empty() { first } else { Expression::Compare(Box::new(first), compared) })
    }

    /// Operators from the loosest, level 0, to the tightest.
    fn chain(&mut self, level: usize) -> Result<Expression, Fault> {
        const LEVELS: [&[(&str, Operator)]; 4] = [
            &[("+", Operator::Add), ("-", Operator::Subtract)],
            &[("~", Operator::Concatenate)],
            &[
                ("*", Operator::Multiply),
                ("/", Operator::Divide),
                ("//", Operator::FloorDivide),
                ("%", Operator::Remainder),
            ],
            &[("**", Operator::Power)],
        ];
        let Some(operators) = LEVELS.get(level) else { return self.operand() };
        let first = self.chain(level + 1)?;
        let mut others = Vec::new();
        while let Some(&(_, operator)) = operators.iter().find(|(sign, _)| self.is_sign(sign)) {
            self.at += 1;
            others.push((operator, self.chain(level + 1)?));
        }
        Ok(if others.is_empty() { first } else { Expression::Chain(Box::new(first), others) })
    }

    /// A signed operand with its filters and tests.
    fn operand(&mut self) -> Result<Expression, Fault> {
        let value = self.signed()?;
        let mut steps = Vec::new();
        loop {
            if self.eat_sign("|") {
                steps.push(self.filter()?);
            } else if self.eat_name("is") {
                steps.push(self.test()?);
            } else {
                return Ok(with_steps(value, steps));
            }
        }
    }

    fn signed(&mut self) -> Result<Expression, Fault> {
        if self.eat_sign("-") {
            return Ok(Expression::Negative(Box::new(self.nested(Self::signed)?)));
        }
        if self.eat_sign("+") {
            return self.nested(Self::signed);
        }
        let value = self.nested(Self::primary)?;
        let steps = self.postfix()?;
        Ok(with_steps(value, steps))
    }

    fn test(&mut self) -> Result<Step, Fault> {
        let negated = self.eat_name("not");
        let name = self.name()?;
        let mut arguments = Arguments::default();
        if self.eat_sign("(") {
            arguments = self.arguments()?;
        } else if match self.peek() {
            Some(Kind::Name(name)) => {
                !["else", "or", "and", "is", "if", "in", "not"].contains(name)
            }
            Some(Kind::String(_) | Kind::Int(_) | Kind::Float(_) | Kind::Sign("[" | "{")) => true,
            _ => false,
        } {
            let value = self.nested(Self::primary)?;
            let steps = self.postfix()?;
            arguments.positional.push(with_steps(value, steps));
        }
        Ok(Step::Test { name, negated, arguments })
    }

    /// Attributes, items, slices and calls.
    fn postfix(&mut self) -> Result<Vec<Step>, Fault> {
        let mut steps = Vec::new();
        loop {
            if self.eat_sign(".") {
                if let Some(Kind::Int(index)) = self.peek() {
                    steps.push(Step::Item(Expression::Int(*index)));
                    self.at += 1;
                    continue;
                }
                let name = self.name()?;
                steps.push(if self.eat_sign("(") {
                    Step::Method(name, self.arguments()?)
                } else {
                    Step::Attribute(name)
                });
            } else if self.eat_sign("[") {
                steps.push(self.nested(Self::subscript)?);
            } else if self.eat_sign("(") {
                steps.push(Step::Call(self.arguments()?));
            } else {
                return Ok(steps);
            }
        }
    }

    fn subscript(&mut self) -> Result<Step, Fault> {
        let mut parts = [None, None, None];
        let mut colons = 0;
        loop {
            if self.eat_sign("]") {
                break;
            }
            if colons < 2 && self.eat_sign(":") {
                colons += 1;
            } else if parts[colons].is_none() {
                parts[colons] = Some(Box::new(self.expression()?));
            } else {
                return Err(self.unexpected("]"));
            }
        }
        match parts {
            parts if colons > 0 => Ok(Step::Slice(parts)),
            [Some(index), ..] => Ok(Step::Item(*index)),
            _ => Err(Fault::expected("an index", "[]")),
        }
    }

    pub(super) fn arguments(&mut self) -> Result<Arguments, Fault> {
        self.nested(|parser| {
            let mut arguments = Arguments::default();
            let mut first = true;
            while !parser.eat_sign(")") {
                if !std::mem::take(&mut first) {
                    parser.sign(",")?;
                    if parser.eat_sign(")") {
                        break;
                    }
                }
                let value = parser.expression()?;
                match value {
                    Expression::Name(name) if parser.eat_sign("=") => {
                        arguments.named.push((name, parser.expression()?));
                    }
                    _ if !arguments.named.is_empty() => {
                        return Err(parser.unexpected("a named argument"));
                    }
                    value => arguments.positional.push(value),
                }
            }
            Ok(arguments)
        })
    }

    fn primary(&mut self) -> Result<Expression, Fault> {
        let value = match self.peek() {
            Some(Kind::Name("true" | "True")) => Expression::Bool(true),
            Some(Kind::Name("false" | "False")) => Expression::Bool(false),
            Some(Kind::Name("none" | "None")) => Expression::None,
            Some(Kind::Name(name)) => Expression::Name(Arc::from(*name)),
            Some(Kind::Int(number)) => Expression::Int(*number),
            Some(Kind::Float(number)) => Expression::Float(*number),
            Some(Kind::String(first)) => {
                // Strings side by side are one string.
                let mut text = first.clone();
                while let Some(Kind::String(more)) =
                    self.tokens.get(self.at + 1).map(|token| &token.kind)
                {
                    text.push_str(more);
                    self.at += 1;
                }
                Expression::Text(Arc::from(text))
            }
            Some(Kind::Sign("(")) => {
                self.at += 1;
                if self.eat_sign(")") {
                    return Ok(Expression::Tuple(Vec::new()));
                }
                let value = self.tuple()?;
                self.sign(")")?;
                return Ok(value);
            }
            Some(Kind::Sign("[")) => {
                self.at += 1;
                return self.items("]", Self::expression).map(Expression::List);
            }
            Some(Kind::Sign("{")) => {
                self.at += 1;
                let entry = |parser: &mut Self| {
                    let key = parser.expression()?;
                    parser.sign(":")?;
                    Ok((key, parser.expression()?))
                };
                return self.items("}", entry).map(Expression::Dict);
            }
            _ => return Err(self.unexpected("an expression")),
        };
        self.at += 1;
        Ok(value)
    }

    /// Items with commas between them, up to `end`.
    fn items<T>(
        &mut self,
        end: &str,
        item: impl Fn(&mut Self) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let mut items = Vec::new();
        while !self.eat_sign(end) {
            if !items.is_empty() {
                self.sign(",")?;
                if self.eat_sign(end) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        Ok(items)
    }
}

fn with_steps(value: Expression, steps: Vec<Step>) -> Expression {
    match value {
        value if steps.is_empty() => value,
        Expression::Steps(first, mut before) => {
            before.extend(steps);
            Expression::Steps(first, before)
        }
        value => Expression::Steps(Box::new(value), steps),
    }
}
