//! Chat templates: the part of Jinja that they use, as transformers renders it.
//!
//! A template is a program from an untrusted file. A general engine for Jinja does not bound what such a program costs:
//! a step of it can join lists, compare, print or repeat values of any size, and values can hold themselves. Here each
//! value is a tree of bounded depth, and everything that makes or reads one is paid for from a [`budget::Budget`]
//! first. So a template ends, with an error if it must, in bounded time, memory and stack.

mod arguments;
mod budget;
mod calls;
mod checks;
mod clock;
mod cursor;
mod evaluate;
mod expressions;
mod fault;
mod filters;
mod lexer;
mod methods;
mod numbers;
mod operators;
mod parser;
mod printf;
mod run;
mod sequences;
mod strings;
mod text;
mod tree;
mod value;

use std::sync::Arc;

pub(super) use fault::Fault;

use budget::Budget;
use run::Run;
use value::Value;

/// The longest template that is read. Those of published models are shorter than 32 KB.
const MAX_BYTES: usize = 512 << 10;

/// A parsed template.
#[derive(Clone, Debug)]
pub(super) struct Template {
    block: Arc<tree::Block>,
}

/// A variable of a template.
pub(super) enum Variable<'a> {
    None,
    True,
    Text(&'a str),
    /// A list of dictionaries.
    Records(Vec<Vec<(&'a str, &'a str)>>),
}

impl Template {
    pub(super) fn parse(source: &str) -> Result<Self, Fault> {
        if source.len() > MAX_BYTES {
            return Err(Fault::expected(format!("at most {MAX_BYTES} bytes"), source.len()));
        }
        // Jinja writes every line end as \n and drops one at the end of a template.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let source = source.strip_suffix('\n').unwrap_or(&source);
        Ok(Self { block: Arc::new(parser::parse(source)?) })
    }

    /// Renders the template with `variables`.
    pub(super) fn render(&self, variables: &[(&str, Variable<'_>)]) -> Result<String, Fault> {
        let size = |variable: &Variable<'_>| match variable {
            Variable::None | Variable::True => 0,
            Variable::Text(text) => text.len(),
            // The names of fields count, so that a conversation of many empty messages has a budget too.
            Variable::Records(records) => {
                records.iter().flatten().map(|(name, text)| 64 + name.len() + text.len()).sum()
            }
        };
        let budget = Budget::of(variables.iter().map(|(_, variable)| size(variable)).sum());
        let mut values = Vec::with_capacity(variables.len());
        for (name, variable) in variables {
            values.push((*name, value(variable, &budget)?));
        }
        Run::new(&budget).template(&self.block, values)
    }
}

fn value(variable: &Variable<'_>, budget: &Budget) -> Result<Value, Fault> {
    match variable {
        Variable::None => Ok(Value::None),
        Variable::True => Ok(Value::Bool(true)),
        Variable::Text(text) => Value::text(text, budget),
        Variable::Records(records) => {
            let mut list = Vec::with_capacity(records.len());
            for record in records {
                let mut entries = Vec::with_capacity(record.len());
                for (name, text) in record {
                    entries.push((Value::text(name, budget)?, Value::text(text, budget)?));
                }
                list.push(Value::dict(entries, budget)?);
            }
            Value::list(list, budget)
        }
    }
}
