//! Filters on the items of a list.

use std::cmp::Ordering;

use super::{
    arguments::{Values, given, is_true, needed, size},
    budget::Budget,
    checks,
    fault::Fault,
    methods::items,
    operators::combine,
    tree::Operator,
    value::Value,
};

/// What an attribute path, such as `a.b` or `0`, leads to.
pub(super) fn member(value: &Value, path: &Value, budget: &Budget) -> Result<Value, Fault> {
    let Value::Text(path) = path else { return item(value, path, budget) };
    let mut found = value.clone();
    for part in path.split('.') {
        let key = match part.parse() {
            Ok(index) => Value::Int(index),
            Err(_) => Value::text(part, budget)?,
        };
        found = item(&found, &key, budget)?;
    }
    Ok(found)
}

/// `value[key]`, undefined if there is none.
pub(super) fn item(value: &Value, key: &Value, budget: &Budget) -> Result<Value, Fault> {
    let at = |length: usize| {
        let at = key.as_int().ok()?;
        usize::try_from(if at < 0 { at.saturating_add(length as i128) } else { at }).ok()
    };
    Ok(match value {
        Value::Undefined => return Err(Fault::expected("a value with items", value.kind())),
        Value::Dict(_) => value.key(key, budget)?.unwrap_or(Value::Undefined),
        Value::List(list) => at(list.items.len())
            .and_then(|at| list.items.get(at))
            .cloned()
            .unwrap_or(Value::Undefined),
        Value::Text(text) => {
            budget.bytes(text.len())?;
            match at(text.chars().count()).and_then(|at| text.chars().nth(at)) {
                Some(c) => Value::text(c.encode_utf8(&mut [0; 4]), budget)?,
                None => Value::Undefined,
            }
        }
        _ => Value::Undefined,
    })
}

/// `select(test, ...)` and its three relatives.
pub(super) fn select(
    name: &str,
    value: &Value,
    mut args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    let wanted = name.starts_with("select");
    let attribute = match name.ends_with("attr") {
        true if args.positional.is_empty() => return Err(Fault::expected("an attribute", "none")),
        true => Some(args.positional.remove(0)),
        false => None,
    };
    let test = if args.positional.is_empty() { None } else { Some(args.positional.remove(0)) };
    let mut kept = Vec::new();
    for item in value.items(budget)? {
        let tested = match &attribute {
            Some(attribute) => member(&item, attribute, budget)?,
            None => item.clone(),
        };
        let holds = match &test {
            None => tested.is_true(),
            Some(test) => {
                budget.entries(args.positional.len() + 1)?;
                let args =
                    Values { positional: args.positional.clone(), named: args.named.clone() };
                checks::holds(test.as_text()?, &tested, args, budget)?
            }
        };
        if holds == wanted {
            kept.push(item);
        }
    }
    Value::list(kept, budget)
}

/// Filters that compare items.
pub(super) fn ordered(
    name: &str,
    value: &Value,
    args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    if name == "sum" {
        let [attribute, start] = args.take(["attribute", "start"])?;
        let mut sum = start.unwrap_or(Value::Int(0));
        for item in value.items(budget)? {
            let item = match given(attribute.clone()) {
                Some(attribute) => member(&item, &attribute, budget)?,
                None => item,
            };
            sum = combine(Operator::Add, &sum, &item, budget)?;
        }
        return Ok(sum);
    }
    let (pairs, reverse, case_sensitive, attribute) = match name {
        "dictsort" => {
            let [case_sensitive, by, reverse] = args.take(["case_sensitive", "by", "reverse"])?;
            let by_value = matches!(&by, Some(Value::Text(by)) if &**by == "value");
            let Value::List(pairs) = items(value, budget)? else { return Ok(Value::Undefined) };
            (pairs.items.clone(), reverse, case_sensitive, Some(Value::Int(i128::from(by_value))))
        }
        "sort" => {
            let [reverse, case_sensitive, attribute] =
                args.take(["reverse", "case_sensitive", "attribute"])?;
            (value.items(budget)?, reverse, case_sensitive, attribute)
        }
        _ => {
            let [case_sensitive, attribute] = args.take(["case_sensitive", "attribute"])?;
            (value.items(budget)?, None, case_sensitive, attribute)
        }
    };
    let attribute = given(attribute);
    let mut keyed = Vec::with_capacity(pairs.len());
    for item in pairs {
        let key = match &attribute {
            Some(attribute) => member(&item, attribute, budget)?,
            None => item.clone(),
        };
        let key = match key {
            Value::Text(text) if !is_true(case_sensitive.as_ref()) => {
                Value::text(&text.to_lowercase(), budget)?
            }
            key => key,
        };
        keyed.push((key, item));
    }
    if name == "unique" {
        let mut unique: Vec<(Value, Value)> = Vec::new();
        for (key, item) in keyed {
            let mut seen = false;
            for (other, _) in &unique {
                seen = seen || other.equals(&key, budget)?;
            }
            if !seen {
                unique.push((key, item));
            }
        }
        return Value::list(unique.into_iter().map(|(_, item)| item).collect(), budget);
    }
    let reverse = is_true(reverse.as_ref()) || name == "max";
    let mut sorted = sorted(keyed, reverse, budget)?.into_iter().map(|(_, item)| item);
    match name {
        "min" | "max" => Ok(sorted.next().unwrap_or(Value::Undefined)),
        _ => Value::list(sorted.collect(), budget),
    }
}

/// Sorts items by their keys; equal ones keep their order. Not `sort_by`, which may panic where the comparison is no
/// total order: that of numbers is none if there are NaN, or integers that no float holds.
fn sorted(
    mut left: Vec<(Value, Value)>,
    reverse: bool,
    budget: &Budget,
) -> Result<Vec<(Value, Value)>, Fault> {
    if left.len() < 2 {
        return Ok(left);
    }
    let right = left.split_off(left.len() / 2);
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let mut left = sorted(left, reverse, budget)?.into_iter().peekable();
    let mut right = sorted(right, reverse, budget)?.into_iter().peekable();
    let first = if reverse { Ordering::Greater } else { Ordering::Less };
    while let (Some((a, _)), Some((b, _))) = (left.peek(), right.peek()) {
        let next = if b.order(a, budget)? == first { right.next() } else { left.next() };
        merged.extend(next);
    }
    merged.extend(left.chain(right));
    Ok(merged)
}

/// `batch(n)`: lists of `n` items; `slice(n)`: `n` lists.
pub(super) fn parts(
    name: &str,
    value: &Value,
    args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    let [count, fill] =
        args.take([if name == "batch" { "linecount" } else { "slices" }, "fill_with"])?;
    let count = size(Some(&needed(count, "count")?), 0)?;
    let fill = given(fill);
    if count == 0 {
        return Err(Fault::expected("a count above 0", "0"));
    }
    let items = value.items(budget)?;
    let mut lists = Vec::new();
    if name == "batch" {
        for chunk in items.chunks(count) {
            let mut list = chunk.to_vec();
            if let Some(fill) = &fill {
                budget.entries(count - list.len())?;
                list.resize(count, fill.clone());
            }
            lists.push(Value::list(list, budget)?);
        }
        return Value::list(lists, budget);
    }
    budget.entries(count)?;
    let (length, longer) = (items.len() / count, items.len() % count);
    let mut at = 0;
    for slice in 0..count {
        let end = at + length + usize::from(slice < longer);
        let mut list = items[at..end].to_vec();
        if let (Some(fill), true) = (&fill, slice >= longer) {
            list.push(fill.clone());
        }
        at = end;
        lists.push(Value::list(list, budget)?);
    }
    Value::list(lists, budget)
}
