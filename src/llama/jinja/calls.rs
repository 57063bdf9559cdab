//! Calls macros, functions and recursive loops.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use super::{
    arguments::{Values, needed},
    clock,
    fault::Fault,
    run::Run,
    text::Writer,
    tree::{Expression, Macro, Step},
    value::{Closure, Loop, Scope, Value},
};

/// A longer range is an error in transformers too.
const MAX_RANGE: i128 = 100_000;

impl Run<'_> {
    /// Calls the macro of a `call` tag.
    pub(super) fn call_block(
        &mut self,
        call: &Expression,
        caller: Value,
        scope: &Rc<Scope>,
    ) -> Result<Value, Fault> {
        let Expression::Steps(first, steps) = call else {
            return Err(Fault::expected("a call after the word call", "another expression"));
        };
        let Some((Step::Call(arguments), before)) = steps.split_last() else {
            return Err(Fault::expected("a call after the word call", "another expression"));
        };
        let function = self.value(first, scope)?;
        let function = self.steps(function, before, scope)?;
        let args = self.arguments(arguments, scope)?;
        self.call(&function, args, Some(caller))
    }

    pub(super) fn call(
        &mut self,
        function: &Value,
        args: Values,
        caller: Option<Value>,
    ) -> Result<Value, Fault> {
        match function {
            Value::Macro(closure) => self.call_macro(closure, args, caller),
            Value::Function(name) => self.call_function(name, args),
            Value::Loop(state) => match &state.code {
                Some(code) => {
                    let [items] = args.take(["iterable"])?;
                    let items = needed(items, "iterable")?;
                    self.captured(|run| run.repeat(code, &items, &state.scope, state.depth + 1))
                }
                None => Err(Fault::expected("a recursive loop to call", "another loop")),
            },
            other => Err(Fault::expected("a function to call", other.kind())),
        }
    }

    fn call_macro(
        &mut self,
        closure: &Closure,
        args: Values,
        caller: Option<Value>,
    ) -> Result<Value, Fault> {
        let code: &Macro = &closure.code;
        let scope = Scope::inside(&closure.scope);
        if args.positional.len() > code.parameters.len() {
            let expected = format!("at most {} arguments for {}", code.parameters.len(), code.name);
            return Err(Fault::expected(expected, args.positional.len()));
        }
        let mut positional = args.positional.into_iter();
        let mut named = args.named;
        for (name, default) in &code.parameters {
            // The search for a named argument reads as many names.
            self.budget.entries(named.len())?;
            let given = positional.next().or_else(|| {
                let at = named.iter().position(|(known, _)| known == name)?;
                Some(named.remove(at).1)
            });
            let value = match (given, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.value(default, &scope)?,
                (None, None) => Value::Undefined,
            };
            scope.set(name.clone(), value);
        }
        if let Some((name, _)) = named.first() {
            return Err(Fault::expected(format!("a parameter of {}", code.name), name));
        }
        if let Some(caller) = caller {
            scope.set(Arc::from("caller"), caller);
        }
        self.captured(|run| run.scoped(&code.body, &scope).map(|_| ()))
    }

    fn call_function(&mut self, name: &str, args: Values) -> Result<Value, Fault> {
        match name {
            "range" => {
                let [first, stop, step] = args.take(["first", "stop", "step"])?;
                let first = needed(first, "stop")?.as_int()?;
                let (start, stop) = match stop {
                    Some(stop) => (first, stop.as_int()?),
                    None => (0, first),
                };
                let step = step.map_or(Ok(1), |step| step.as_int())?;
                let length = match step {
                    0 => return Err(Fault::expected("a step other than 0", "0")),
                    step if (step > 0) == (stop > start) && stop != start => {
                        let span = stop
                            .checked_sub(start)
                            .and_then(i128::checked_abs)
                            .unwrap_or(i128::MAX);
                        (span - 1) / step.checked_abs().unwrap_or(i128::MAX) + 1
                    }
                    _ => 0,
                };
                if length > MAX_RANGE {
                    return Err(Fault::expected(format!("a range of at most {MAX_RANGE}"), length));
                }
                self.budget.entries(usize::try_from(length).unwrap_or(usize::MAX))?;
                Value::list(
                    (0..length).map(|at| Value::Int(start + at * step)).collect(),
                    self.budget,
                )
            }
            "dict" | "namespace" => {
                let mut entries = Vec::new();
                for given in args.positional {
                    let Value::Dict(dict) = &given else {
                        return Err(Fault::expected("a dictionary", given.kind()));
                    };
                    self.budget.entries(2 * dict.entries.len())?;
                    entries.extend(dict.entries.iter().cloned());
                }
                entries
                    .extend(args.named.into_iter().map(|(name, value)| (Value::Text(name), value)));
                let Value::Dict(dict) = Value::dict(entries, self.budget)? else {
                    return Ok(Value::Undefined);
                };
                if name == "dict" {
                    return Ok(Value::Dict(dict));
                }
                let mut attributes = Vec::with_capacity(dict.entries.len());
                for (key, value) in &dict.entries {
                    attributes.push((key.as_text()?.clone(), value.clone()));
                }
                Ok(Value::Namespace(Rc::new(RefCell::new(attributes))))
            }
            "raise_exception" => {
                let [message] = args.take(["message"])?;
                let mut writer = Writer::new(self.budget);
                writer.print(&needed(message, "message")?)?;
                Err(Fault::new(writer.text))
            }
            _ => {
                let [format] = args.take(["format"])?;
                Value::text(&clock::now(needed(format, "format")?.as_text()?)?, self.budget)
            }
        }
    }
}

pub(super) fn loop_method(state: &Loop, name: &str, args: Values) -> Result<Value, Fault> {
    match name {
        "cycle" if !args.positional.is_empty() => {
            Ok(args.positional[state.index.get() % args.positional.len()].clone())
        }
        "cycle" => Err(Fault::expected("values to cycle through", "none")),
        other => Err(Fault::expected("cycle or an attribute of loop", other)),
    }
}
