//! Values of a running template.

use std::{
    cell::{Cell, RefCell},
    cmp::Ordering,
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use super::{
    budget::Budget,
    fault::Fault,
    tree::{For, Macro, Name},
};

/// How deeply lists and dictionaries may nest. What walks a value is recursive in this depth.
const MAX_DEPTH: usize = 40;

#[derive(Clone)]
pub(super) enum Value {
    Undefined,
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Arc<str>),
    List(Rc<List>),
    Dict(Rc<Dict>),
    Namespace(Rc<RefCell<Vec<(Name, Value)>>>),
    Loop(Rc<Loop>),
    Macro(Rc<Closure>),
    Function(Name),
}

/// A list or a tuple.
pub(super) struct List {
    pub(super) items: Vec<Value>,
    pub(super) tuple: bool,
    depth: usize,
}

pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    depth: usize,
}

/// A macro with the variables that it sees.
pub(super) struct Closure {
    pub(super) code: Arc<Macro>,
    pub(super) scope: Rc<Scope>,
}

/// The variable `loop` of one loop.
pub(super) struct Loop {
    pub(super) items: Vec<Value>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    /// The loop itself, if it is recursive.
    pub(super) code: Option<Arc<For>>,
    pub(super) scope: Rc<Scope>,
}

/// The variables of a block, on top of those of the block around it.
#[derive(Default)]
pub(super) struct Scope {
    variables: RefCell<HashMap<Name, Value>>,
    outer: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(outer: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self { outer: Some(outer.clone()), ..Self::default() })
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            if let Some(value) = here.variables.borrow().get(name) {
                return Some(value.clone());
            }
            scope = here.outer.as_deref();
        }
        None
    }

    pub(super) fn set(&self, name: Name, value: Value) {
        self.variables.borrow_mut().insert(name, value);
    }

    /// Ends the scope. Macros defined in it hold it and are held by it, so that nothing else would free them.
    pub(super) fn end(&self) {
        let ended = self.variables.take();
        drop(ended);
    }
}

impl Value {
    pub(super) fn text(text: &str, budget: &Budget) -> Result<Self, Fault> {
        budget.bytes(text.len())?;
        Ok(Self::Text(Arc::from(text)))
    }

    pub(super) fn list(items: Vec<Self>, budget: &Budget) -> Result<Self, Fault> {
        let depth = checked_depth(items.iter())?;
        budget.entries(items.len() + 1)?;
        Ok(Self::List(Rc::new(List { items, tuple: false, depth })))
    }

    pub(super) fn tuple(items: Vec<Self>, budget: &Budget) -> Result<Self, Fault> {
        let depth = checked_depth(items.iter())?;
        budget.entries(items.len() + 1)?;
        Ok(Self::List(Rc::new(List { items, tuple: true, depth })))
    }

    /// A list of texts.
    pub(super) fn texts<'a>(
        texts: impl IntoIterator<Item = &'a str>,
        budget: &Budget,
    ) -> Result<Self, Fault> {
        let mut items = Vec::new();
        for text in texts {
            budget.entries(1)?;
            items.push(Self::text(text, budget)?);
        }
        Self::list(items, budget)
    }

    /// A dictionary. The last of equal keys counts, in the place of the first.
    pub(super) fn dict(entries: Vec<(Self, Self)>, budget: &Budget) -> Result<Self, Fault> {
        let depth = checked_depth(entries.iter().flat_map(|(key, value)| [key, value]))?;
        budget.entries(2 * entries.len() + 1)?;
        let mut unique: Vec<(Self, Self)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if matches!(&key, Self::Dict(_)) || matches!(&key, Self::List(list) if !list.tuple) {
                return Err(Fault::expected("a key that can be hashed", key.kind()));
            }
            match position(unique.iter().map(|(key, _)| key), &key, budget)? {
                Some(at) => unique[at].1 = value,
                None => unique.push((key, value)),
            }
        }
        Ok(Self::Dict(Rc::new(Dict { entries: unique, depth })))
    }

    /// The value's type, for error messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Undefined => "an undefined value",
            Self::None => "none",
            Self::Bool(_) => "a boolean",
            Self::Int(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(list) if list.tuple => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dictionary",
            Self::Namespace(_) => "a namespace",
            Self::Loop(_) => "a loop",
            Self::Macro(_) | Self::Function(_) => "a function",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined | Self::None => false,
            Self::Bool(value) => *value,
            Self::Int(value) => *value != 0,
            Self::Float(value) => *value != 0.0,
            Self::Text(text) => !text.is_empty(),
            Self::List(list) => !list.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    pub(super) fn as_text(&self) -> Result<&Arc<str>, Fault> {
        match self {
            Self::Text(text) => Ok(text),
            other => Err(Fault::expected("a string", other.kind())),
        }
    }

    pub(super) fn as_int(&self) -> Result<i128, Fault> {
        match self {
            Self::Int(value) => Ok(*value),
            Self::Bool(value) => Ok(i128::from(*value)),
            other => Err(Fault::expected("an integer", other.kind())),
        }
    }

    /// The number as a float. `None` if this is no number; booleans are numbers, as in Python.
    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(value) => Some(*value),
            Self::Int(value) => Some(*value as f64),
            Self::Bool(value) => Some(f64::from(u8::from(*value))),
            _ => None,
        }
    }

    /// The items that a loop over the value visits.
    pub(super) fn items(&self, budget: &Budget) -> Result<Vec<Self>, Fault> {
        let items: Vec<Self> = match self {
            Self::Undefined => Vec::new(),
            Self::List(list) => {
                budget.entries(list.items.len())?;
                list.items.clone()
            }
            Self::Dict(dict) => {
                budget.entries(dict.entries.len())?;
                dict.entries.iter().map(|(key, _)| key.clone()).collect()
            }
            Self::Text(text) => {
                budget.entries(2 * text.len())?; // an entry, and a string of its own
                let mut buffer = [0; 4];
                text.chars().map(|c| Self::Text(Arc::from(&*c.encode_utf8(&mut buffer)))).collect()
            }
            other => return Err(Fault::expected("something to loop over", other.kind())),
        };
        Ok(items)
    }

    pub(super) fn len(&self) -> Result<usize, Fault> {
        match self {
            Self::Undefined => Ok(0),
            Self::Text(text) => Ok(text.chars().count()),
            Self::List(list) => Ok(list.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            other => Err(Fault::expected("something with a length", other.kind())),
        }
    }

    /// The value of a dictionary's key, if this is a dictionary that has it.
    pub(super) fn key(&self, key: &Self, budget: &Budget) -> Result<Option<Self>, Fault> {
        let Self::Dict(dict) = self else { return Ok(None) };
        let at = position(dict.entries.iter().map(|(key, _)| key), key, budget)?;
        Ok(at.map(|at| dict.entries[at].1.clone()))
    }

    pub(super) fn equals(&self, other: &Self, budget: &Budget) -> Result<bool, Fault> {
        budget.step()?;
        Ok(match (self, other) {
            (Self::Undefined, Self::Undefined) | (Self::None, Self::None) => true,
            (Self::Text(a), Self::Text(b)) => {
                budget.bytes(a.len().min(b.len()))?;
                a == b
            }
            (Self::List(a), Self::List(b)) => {
                if a.tuple != b.tuple || a.items.len() != b.items.len() {
                    return Ok(false);
                }
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b, budget)? {
                        return Ok(false);
                    }
                }
                true
            }
            (Self::Dict(a), Self::Dict(b)) => {
                if a.entries.len() != b.entries.len() {
                    return Ok(false);
                }
                for (key, value) in &a.entries {
                    match other.key(key, budget)? {
                        Some(found) if value.equals(&found, budget)? => {}
                        _ => return Ok(false),
                    }
                }
                true
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Ok(a), Ok(b)) => a == b,
                _ => matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b),
            },
        })
    }

    pub(super) fn order(&self, other: &Self, budget: &Budget) -> Result<Ordering, Fault> {
        budget.step()?;
        let ordering = match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                budget.bytes(a.len().min(b.len()))?;
                Some(a.cmp(b))
            }
            (Self::List(a), Self::List(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    let ordering = a.order(b, budget)?;
                    if ordering != Ordering::Equal {
                        return Ok(ordering);
                    }
                }
                Some(a.items.len().cmp(&b.items.len()))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Ok(a), Ok(b)) => Some(a.cmp(&b)),
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a.partial_cmp(&b),
                    _ => None,
                },
            },
        };
        ordering.ok_or_else(|| {
            Fault::expected(
                "two values that can be compared",
                format!("{} and {}", self.kind(), other.kind()),
            )
        })
    }

    /// Whether `item` is in this list, string or dictionary.
    pub(super) fn contains(&self, item: &Self, budget: &Budget) -> Result<bool, Fault> {
        match self {
            Self::Text(text) => {
                let item = item.as_text()?;
                budget.bytes(text.len())?;
                Ok(text.contains(&**item))
            }
            Self::List(list) => Ok(position(list.items.iter(), item, budget)?.is_some()),
            Self::Dict(_) => Ok(self.key(item, budget)?.is_some()),
            Self::Undefined => Ok(false),
            other => Err(Fault::expected("a list, string or dictionary", other.kind())),
        }
    }
}

/// The place of the first item that equals `value`.
pub(super) fn position<'a>(
    items: impl Iterator<Item = &'a Value>,
    value: &Value,
    budget: &Budget,
) -> Result<Option<usize>, Fault> {
    for (at, item) in items.enumerate() {
        if item.equals(value, budget)? {
            return Ok(Some(at));
        }
    }
    Ok(None)
}

/// The depth of a container of `items`. Values that can hold others without being containers, and could so hold
/// themselves, cannot be put into one.
fn checked_depth<'a>(items: impl Iterator<Item = &'a Value>) -> Result<usize, Fault> {
    let mut depth = 0;
    for item in items {
        depth = depth.max(item.depth()?);
    }
    if depth == MAX_DEPTH {
        return Err(Fault::expected(
            format!("at most {MAX_DEPTH} nested lists and dictionaries"),
            "more",
        ));
    }
    Ok(depth + 1)
}

impl Value {
    /// How many containers nest in this one, with itself.
    pub(super) fn depth(&self) -> Result<usize, Fault> {
        match self {
            Self::List(list) => Ok(list.depth),
            Self::Dict(dict) => Ok(dict.depth),
            Self::Namespace(_) | Self::Loop(_) | Self::Macro(_) => {
                Err(Fault::expected("a string, number, list or dictionary to be kept", self.kind()))
            }
            _ => Ok(0),
        }
    }
}
