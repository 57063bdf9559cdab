//! Runs a template.

use std::{cell::Cell, rc::Rc, sync::Arc};

use super::{
    budget::Budget,
    fault::Fault,
    text::Writer,
    tree::{For, Node, Statement, Step, Target},
    value::{Closure, Loop, Scope, Value},
};

/// How deeply statements, expressions and calls may nest when they run. Running is recursive in this depth, and in
/// nothing else; half of the stack of a thread (2 MB) is enough even without optimisation.
const MAX_DEPTH: usize = 120;

/// The functions that a template can call.
const FUNCTIONS: [&str; 5] = ["range", "dict", "namespace", "raise_exception", "strftime_now"];

/// How a block ended.
#[derive(PartialEq)]
pub(super) enum Flow {
    On,
    Break,
    Continue,
}

pub(super) struct Run<'b> {
    pub(super) budget: &'b Budget,
    output: Writer<'b>,
    depth: usize,
}

impl<'b> Run<'b> {
    pub(super) fn new(budget: &'b Budget) -> Self {
        Self { budget, output: Writer::new(budget), depth: 0 }
    }

    /// Runs a template with `variables` and returns its text.
    pub(super) fn template(
        mut self,
        block: &[Node],
        variables: Vec<(&str, Value)>,
    ) -> Result<String, Fault> {
        let scope = Rc::new(Scope::default());
        for name in FUNCTIONS {
            scope.set(Arc::from(name), Value::Function(Arc::from(name)));
        }
        for (name, value) in variables {
            scope.set(Arc::from(name), value);
        }
        let ran = self.block(block, &scope);
        scope.end();
        ran.map(|_| self.output.text)
    }

    fn block(&mut self, block: &[Node], scope: &Rc<Scope>) -> Result<Flow, Fault> {
        for node in block {
            let flow = self
                .nested(|run| run.statement(&node.statement, scope))
                .map_err(|fault| fault.at(node.line))?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    /// Runs a block with variables of its own.
    pub(super) fn scoped(&mut self, block: &[Node], scope: &Rc<Scope>) -> Result<Flow, Fault> {
        let ran = self.block(block, scope);
        scope.end();
        ran
    }

    /// Runs `inner` one level deeper.
    pub(super) fn nested<T>(
        &mut self,
        inner: impl FnOnce(&mut Self) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        self.budget.step()?;
        if self.depth == MAX_DEPTH {
            return Err(Fault::expected(format!("at most {MAX_DEPTH} nested steps"), "more"));
        }
        self.depth += 1;
        let done = inner(self);
        self.depth -= 1;
        done
    }

    fn statement(&mut self, statement: &Statement, scope: &Rc<Scope>) -> Result<Flow, Fault> {
        match statement {
            Statement::Text(text) => self.output.push(text)?,
            Statement::Print(expression) => {
                let value = self.value(expression, scope)?;
                self.output.print(&value)?;
            }
            Statement::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.value(condition, scope)?.is_true() {
                        return self.block(body, scope);
                    }
                }
                return self.block(otherwise, scope);
            }
            Statement::For(code) => {
                let items = self.value(&code.items, scope)?;
                self.repeat(code, &items, scope, 0)?;
            }
            Statement::Set(target, expression) => {
                let value = self.value(expression, scope)?;
                self.assign(target, value, scope)?;
            }
            Statement::SetBlock { target, filters, body } => {
                let text = self.filtered(filters, body, scope)?;
                self.assign(target, text, scope)?;
            }
            Statement::Filter { filters, body } => {
                let text = self.filtered(filters, body, scope)?;
                self.output.print(&text)?;
            }
            Statement::Macro(code) => {
                let closure = Closure { code: code.clone(), scope: scope.clone() };
                scope.set(code.name.clone(), Value::Macro(Rc::new(closure)));
            }
            Statement::Call { call, caller } => {
                let closure = Closure { code: caller.clone(), scope: scope.clone() };
                let text = self.call_block(call, Value::Macro(Rc::new(closure)), scope)?;
                self.output.print(&text)?;
            }
            Statement::With { values, body } => {
                let inner = Scope::inside(scope);
                for (target, expression) in values {
                    let value = self.value(expression, scope)?;
                    self.assign(target, value, &inner)?;
                }
                return self.scoped(body, &inner);
            }
            Statement::Break => return Ok(Flow::Break),
            Statement::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::On)
    }

    /// The text of a block, filtered.
    fn filtered(
        &mut self,
        filters: &[Step],
        body: &[Node],
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        let inner = Scope::inside(scope);
        let text = self.captured(|run| run.scoped(body, &inner).map(|_| ()))?;
        self.steps(text, filters, scope)
    }

    /// What `write` writes, as a value.
    pub(super) fn captured(
        &mut self,
        write: impl FnOnce(&mut Self) -> Result<(), Fault>,
    ) -> Result<Value, Fault> {
        let outer = std::mem::replace(&mut self.output, Writer::new(self.budget));
        let written = write(self);
        let inner = std::mem::replace(&mut self.output, outer);
        written?;
        Value::text(&inner.text, self.budget)
    }

    pub(super) fn repeat(
        &mut self,
        code: &Arc<For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth: usize,
    ) -> Result<(), Fault> {
        let mut items = items.items(self.budget)?;
        if let Some(condition) = &code.condition {
            let mut kept = Vec::new();
            for item in items {
                let inner = Scope::inside(scope);
                self.assign(&code.target, item.clone(), &inner)?;
                if self.value(condition, &inner)?.is_true() {
                    kept.push(item);
                }
            }
            items = kept;
        }
        if items.is_empty() {
            self.scoped(&code.otherwise, &Scope::inside(scope))?;
            return Ok(());
        }
        let recursive = code.recursive.then(|| code.clone());
        let state = Rc::new(Loop {
            items,
            index: Cell::new(0),
            depth,
            code: recursive,
            scope: scope.clone(),
        });
        for (at, item) in state.items.iter().enumerate() {
            self.budget.step()?;
            state.index.set(at);
            let inner = Scope::inside(scope);
            inner.set(Arc::from("loop"), Value::Loop(state.clone()));
            self.assign(&code.target, item.clone(), &inner)?;
            if self.scoped(&code.body, &inner)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn assign(&mut self, target: &Target, value: Value, scope: &Rc<Scope>) -> Result<(), Fault> {
        match target {
            Target::Name(name) => scope.set(name.clone(), value),
            Target::Attribute(name, attribute) => {
                let Some(Value::Namespace(entries)) = scope.get(name) else {
                    return Err(Fault::expected("a namespace to set an attribute of", name));
                };
                value.depth()?; // a namespace in a namespace could hold itself
                let mut entries = entries.borrow_mut();
                self.budget.entries(2 * entries.len() + 2)?;
                match entries.iter_mut().find(|(known, _)| known == attribute) {
                    Some(entry) => entry.1 = value,
                    None => entries.push((attribute.clone(), value)),
                }
            }
            Target::Several(targets) => {
                let items = value.items(self.budget)?;
                if items.len() != targets.len() {
                    return Err(Fault::expected(
                        format!("{} values to unpack", targets.len()),
                        items.len(),
                    ));
                }
                for (target, item) in targets.iter().zip(items) {
                    self.assign(target, item, scope)?;
                }
            }
        }
        Ok(())
    }
}
