//! Evaluates expressions.

use std::rc::Rc;

use super::{
    arguments::Values,
    budget::Budget,
    calls::loop_method,
    checks,
    fault::Fault,
    filters, methods,
    operators::{combine, compare, negative},
    run::Run,
    sequences,
    strings::clamped,
    text::Writer,
    tree::{Arguments, Expression, Name, Step},
    value::{Loop, Scope, Value},
};

impl Run<'_> {
    pub(super) fn value(
        &mut self,
        expression: &Expression,
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        self.nested(|run| run.evaluate(expression, scope))
    }

    fn evaluate(&mut self, expression: &Expression, scope: &Rc<Scope>) -> Result<Value, Fault> {
        Ok(match expression {
            Expression::None => Value::None,
            Expression::Bool(value) => Value::Bool(*value),
            Expression::Int(value) => Value::Int(*value),
            Expression::Float(value) => Value::Float(*value),
            Expression::Text(text) => Value::Text(text.clone()),
            Expression::Name(name) => scope.get(name).unwrap_or(Value::Undefined),
            Expression::List(items) => Value::list(self.values(items, scope)?, self.budget)?,
            Expression::Tuple(items) => Value::tuple(self.values(items, scope)?, self.budget)?,
            Expression::Dict(entries) => {
                let mut values = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    values.push((self.value(key, scope)?, self.value(value, scope)?));
                }
                Value::dict(values, self.budget)?
            }
            Expression::Steps(first, steps) => match self.value(first, scope)? {
                Value::Undefined if !tests_definition(steps) => return Err(undefined(first)),
                first => self.steps(first, steps, scope)?,
            },
            Expression::Not(value) => Value::Bool(!self.value(value, scope)?.is_true()),
            Expression::Negative(value) => negative(&self.value(value, scope)?)?,
            Expression::And(operands) => self.until(false, operands, scope)?,
            Expression::Or(operands) => self.until(true, operands, scope)?,
            Expression::Chain(first, others) => {
                let mut value = self.value(first, scope)?;
                for (operator, other) in others {
                    let other = self.value(other, scope)?;
                    value = combine(*operator, &value, &other, self.budget)?;
                }
                value
            }
            Expression::Compare(first, others) => {
                let mut left = self.value(first, scope)?;
                for (comparison, right) in others {
                    let right = self.value(right, scope)?;
                    if !compare(*comparison, &left, &right, self.budget)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expression::If(conditional) => {
                if self.value(&conditional.condition, scope)?.is_true() {
                    self.value(&conditional.then, scope)?
                } else {
                    match &conditional.otherwise {
                        Some(otherwise) => self.value(otherwise, scope)?,
                        None => Value::Undefined,
                    }
                }
            }
        })
    }

    /// The first operand that is as `truth` says, or the last.
    fn until(
        &mut self,
        truth: bool,
        operands: &[Expression],
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        let mut value = Value::Undefined;
        for operand in operands {
            value = self.value(operand, scope)?;
            if value.is_true() == truth {
                break;
            }
        }
        Ok(value)
    }

    pub(super) fn values(
        &mut self,
        expressions: &[Expression],
        scope: &Rc<Scope>,
    ) -> Result<Vec<Value>, Fault> {
        expressions.iter().map(|expression| self.value(expression, scope)).collect()
    }

    pub(super) fn arguments(
        &mut self,
        arguments: &Arguments,
        scope: &Rc<Scope>,
    ) -> Result<Values, Fault> {
        let positional = self.values(&arguments.positional, scope)?;
        let mut named = Vec::with_capacity(arguments.named.len());
        for (name, expression) in &arguments.named {
            named.push((name.clone(), self.value(expression, scope)?));
        }
        Ok(Values { positional, named })
    }

    pub(super) fn steps(
        &mut self,
        mut value: Value,
        steps: &[Step],
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        for step in steps {
            self.budget.step()?;
            value = self.step(&value, step, scope)?;
        }
        Ok(value)
    }

    fn step(&mut self, value: &Value, step: &Step, scope: &Rc<Scope>) -> Result<Value, Fault> {
        match step {
            Step::Attribute(name) => attribute(value, name, self.budget),
            Step::Item(key) => {
                let key = self.value(key, scope)?;
                sequences::item(value, &key, self.budget)
            }
            Step::Slice(parts) => {
                let mut bounds = [const { None }; 3];
                for (bound, part) in bounds.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        let part = self.value(part, scope)?;
                        *bound =
                            if matches!(part, Value::None) { None } else { Some(part.as_int()?) };
                    }
                }
                slice(value, bounds, self.budget)
            }
            Step::Call(arguments) => {
                let args = self.arguments(arguments, scope)?;
                self.call(value, args, None)
            }
            Step::Method(name, arguments) => {
                let args = self.arguments(arguments, scope)?;
                match value {
                    Value::Loop(state) => loop_method(state, name, args),
                    Value::Namespace(_) => {
                        self.call(&attribute(value, name, self.budget)?, args, None)
                    }
                    _ => methods::call(value, name, args, self.budget),
                }
            }
            Step::Filter(name, arguments) => {
                let args = self.arguments(arguments, scope)?;
                filters::apply(name, value, args, self.budget)
            }
            Step::Test { name, negated, arguments } => {
                let args = self.arguments(arguments, scope)?;
                Ok(Value::Bool(checks::holds(name, value, args, self.budget)? != *negated))
            }
        }
    }
}

/// Whether the first step asks whether a value is defined, or gives a default for it.
fn tests_definition(steps: &[Step]) -> bool {
    !matches!(
        steps.first(),
        Some(
            Step::Attribute(_) | Step::Item(_) | Step::Slice(_) | Step::Call(_) | Step::Method(..)
        )
    )
}

fn undefined(expression: &Expression) -> Fault {
    match expression {
        Expression::Name(name) => {
            Fault::expected(format!("a value of {name}"), "none: it is undefined")
        }
        _ => Fault::expected("a value", "an undefined one"),
    }
}

fn attribute(value: &Value, name: &Name, budget: &Budget) -> Result<Value, Fault> {
    match value {
        Value::Undefined => {
            Err(Fault::expected(format!("a value with the attribute {name}"), value.kind()))
        }
        Value::Dict(_) => {
            Ok(value.key(&Value::Text(name.clone()), budget)?.unwrap_or(Value::Undefined))
        }
        Value::Namespace(entries) => {
            let entries = entries.borrow();
            budget.bytes(entries.len())?;
            let found = entries.iter().find(|(known, _)| known == name);
            Ok(found.map_or(Value::Undefined, |(_, value)| value.clone()))
        }
        Value::Loop(state) => Ok(loop_attribute(state, name)),
        _ => Ok(Value::Undefined),
    }
}

fn loop_attribute(state: &Loop, name: &str) -> Value {
    let (at, length) = (state.index.get(), state.items.len());
    let item = |at: Option<usize>| {
        at.and_then(|at| state.items.get(at)).cloned().unwrap_or(Value::Undefined)
    };
    match name {
        "index" => Value::Int(at as i128 + 1),
        "index0" => Value::Int(at as i128),
        "revindex" => Value::Int((length - at) as i128),
        "revindex0" => Value::Int((length - at) as i128 - 1),
        "first" => Value::Bool(at == 0),
        "last" => Value::Bool(at + 1 == length),
        "length" => Value::Int(length as i128),
        "depth" => Value::Int(state.depth as i128 + 1),
        "depth0" => Value::Int(state.depth as i128),
        "previtem" => item(at.checked_sub(1)),
        "nextitem" => item(Some(at + 1)),
        _ => Value::Undefined,
    }
}

/// `value[start:stop:step]`.
fn slice(
    value: &Value,
    [start, stop, step]: [Option<i128>; 3],
    budget: &Budget,
) -> Result<Value, Fault> {
    if matches!(value, Value::Dict(_) | Value::Undefined) {
        return Err(Fault::expected("a list or string to slice", value.kind()));
    }
    let items = value.items(budget)?;
    let length = items.len();
    let step = step.unwrap_or(1);
    let mut kept = Vec::new();
    if step > 0 {
        let (from, to) = (
            start.map_or(0, |at| clamped(at, length)),
            stop.map_or(length, |at| clamped(at, length)),
        );
        let step = usize::try_from(step).unwrap_or(usize::MAX);
        kept.extend(items.get(from..to).unwrap_or_default().iter().step_by(step).cloned());
    } else if step < 0 {
        // Backwards: from `start`, with it, down to `stop`, without it.
        let place = |at: i128| {
            if at < 0 {
                (at.saturating_add(length as i128)).max(-1)
            } else {
                at.min(length as i128 - 1)
            }
        };
        let (mut at, to) = (start.map_or(length as i128 - 1, place), stop.map_or(-1, place));
        while at > to {
            kept.extend(usize::try_from(at).ok().and_then(|at| items.get(at)).cloned());
            at = at.saturating_add(step);
        }
    } else {
        return Err(Fault::expected("a step other than 0", "0"));
    }
    match value {
        Value::Text(_) => {
            let mut writer = Writer::new(budget);
            kept.iter().try_for_each(|c| writer.print(c))?;
            Value::text(&writer.text, budget)
        }
        Value::List(list) if list.tuple => Value::tuple(kept, budget),
        _ => Value::list(kept, budget),
    }
}
