//! Arguments of filters, tests, methods and functions.

use super::{fault::Fault, tree::Name, value::Value};

pub(super) struct Values {
    pub(super) positional: Vec<Value>,
    pub(super) named: Vec<(Name, Value)>,
}

impl Values {
    /// The arguments in the order of `names`, whether the template gives them by position or by name. More, or others,
    /// are an error of the template and not left out.
    pub(super) fn take<const N: usize>(
        self,
        names: [&str; N],
    ) -> Result<[Option<Value>; N], Fault> {
        let mut taken = [const { None }; N];
        if self.positional.len() > N {
            return Err(Fault::expected(format!("at most {N} arguments"), self.positional.len()));
        }
        for (at, value) in self.positional.into_iter().enumerate() {
            taken[at] = Some(value);
        }
        for (name, value) in self.named {
            match names.iter().position(|known| **known == *name) {
                Some(at) if taken[at].is_none() => taken[at] = Some(value),
                Some(_) => return Err(Fault::expected(format!("{name} once"), "it twice")),
                None => {
                    let known = if N == 0 { "none".to_owned() } else { names.join(", ") };
                    return Err(Fault::expected(format!("an argument of {known}"), name));
                }
            }
        }
        Ok(taken)
    }

    pub(super) fn none(self) -> Result<(), Fault> {
        self.take([]).map(|[]| ())
    }
}

/// An argument that must be there.
pub(super) fn needed(value: Option<Value>, name: &str) -> Result<Value, Fault> {
    value.ok_or_else(|| Fault::expected(format!("the argument {name}"), "none"))
}

/// A number that must not be negative. Sizes beyond memory are clamped, for the budget to refuse.
pub(super) fn size(value: Option<&Value>, default: usize) -> Result<usize, Fault> {
    match value {
        None => Ok(default),
        Some(value) => Ok(usize::try_from(value.as_int()?.max(0)).unwrap_or(usize::MAX)),
    }
}

pub(super) fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

/// An argument that may be missing or `none`.
pub(super) fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|value| !matches!(value, Value::None))
}
