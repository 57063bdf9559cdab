//! Arithmetic and comparisons.

use std::cmp::Ordering;

use super::{
    budget::Budget,
    fault::Fault,
    printf::percent,
    text::Writer,
    tree::{Comparison, Operator},
    value::Value,
};

/// The value of `left operator right`.
pub(super) fn combine(
    operator: Operator,
    left: &Value,
    right: &Value,
    budget: &Budget,
) -> Result<Value, Fault> {
    use Operator as O;
    match (operator, left, right) {
        (O::Concatenate, ..) => {
            let mut writer = Writer::new(budget);
            writer.print(left)?;
            writer.print(right)?;
            Value::text(&writer.text, budget)
        }
        (O::Add, Value::Text(a), Value::Text(b)) => {
            budget.bytes(a.len() + b.len())?;
            Ok(Value::Text([&**a, &**b].concat().into()))
        }
        (O::Add, Value::List(a), Value::List(b)) if a.tuple == b.tuple => {
            budget.entries(a.items.len() + b.items.len())?;
            let items = a.items.iter().chain(&b.items).cloned().collect();
            if a.tuple { Value::tuple(items, budget) } else { Value::list(items, budget) }
        }
        (O::Multiply, Value::Text(text), count @ (Value::Int(_) | Value::Bool(_)))
        | (O::Multiply, count @ (Value::Int(_) | Value::Bool(_)), Value::Text(text)) => {
            let mut writer = Writer::new(budget);
            writer.repeat(text, times(count)?)?;
            Value::text(&writer.text, budget)
        }
        (O::Multiply, Value::List(list), count @ (Value::Int(_) | Value::Bool(_)))
        | (O::Multiply, count @ (Value::Int(_) | Value::Bool(_)), Value::List(list)) => {
            let count = times(count)?;
            budget.entries(list.items.len().saturating_mul(count))?;
            let items = std::iter::repeat_n(&list.items, count).flatten().cloned().collect();
            if list.tuple { Value::tuple(items, budget) } else { Value::list(items, budget) }
        }
        (O::Remainder, Value::Text(format), _) => percent(format, right, budget),
        _ => number(operator, left, right),
    }
}

/// How often a text or list is repeated; not at all if the number is negative.
fn times(count: &Value) -> Result<usize, Fault> {
    Ok(usize::try_from(count.as_int()?.max(0)).unwrap_or(usize::MAX))
}

fn number(operator: Operator, left: &Value, right: &Value) -> Result<Value, Fault> {
    use Operator as O;
    let unusable = || {
        let sign = match operator {
            O::Add => "+",
            O::Subtract => "-",
            O::Multiply => "*",
            O::Divide => "/",
            O::FloorDivide => "//",
            O::Remainder => "%",
            O::Power => "**",
            O::Concatenate => "~",
        };
        Fault::expected(
            format!("two values that {sign} takes"),
            format!("{} and {}", left.kind(), right.kind()),
        )
    };
    let range = || Fault::expected("a number in range", "one that is not");
    if let (Ok(a), Ok(b), false) = (left.as_int(), right.as_int(), operator == O::Divide) {
        let value = match operator {
            O::Add => a.checked_add(b),
            O::Subtract => a.checked_sub(b),
            O::Multiply => a.checked_mul(b),
            O::FloorDivide | O::Remainder if b == 0 => {
                return Err(Fault::expected("a divisor other than 0", "0"));
            }
            // Python rounds down, so that the remainder has the sign of the divisor.
            O::FloorDivide => a.checked_div_euclid(b).map(|q| {
                let rounds_up = b < 0 && a.checked_rem_euclid(b).is_some_and(|r| r != 0);
                if rounds_up { q - 1 } else { q }
            }),
            O::Remainder => {
                a.checked_rem_euclid(b).map(|r| if b < 0 && r != 0 { r + b } else { r })
            }
            O::Power if b < 0 => return float(operator, left, right).ok_or_else(range),
            O::Power => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            O::Divide | O::Concatenate => None,
        };
        return value.map(Value::Int).ok_or_else(range);
    }
    match (left.as_float(), right.as_float()) {
        (Some(_), Some(divisor)) => {
            if divisor == 0.0 && matches!(operator, O::Divide | O::FloorDivide | O::Remainder) {
                return Err(Fault::expected("a divisor other than 0", "0"));
            }
            float(operator, left, right).ok_or_else(unusable)
        }
        _ => Err(unusable()),
    }
}

fn float(operator: Operator, left: &Value, right: &Value) -> Option<Value> {
    let (a, b) = (left.as_float()?, right.as_float()?);
    Some(Value::Float(match operator {
        Operator::Add => a + b,
        Operator::Subtract => a - b,
        Operator::Multiply => a * b,
        Operator::Divide => a / b,
        Operator::FloorDivide => (a / b).floor(),
        Operator::Remainder => a - b * (a / b).floor(),
        Operator::Power => a.powf(b),
        Operator::Concatenate => return None,
    }))
}

pub(super) fn negative(value: &Value) -> Result<Value, Fault> {
    match value {
        Value::Float(value) => Ok(Value::Float(-value)),
        other => number(Operator::Subtract, &Value::Int(0), other),
    }
}

/// Whether `left comparison right` holds.
pub(super) fn compare(
    comparison: Comparison,
    left: &Value,
    right: &Value,
    budget: &Budget,
) -> Result<bool, Fault> {
    Ok(match comparison {
        Comparison::Equal => left.equals(right, budget)?,
        Comparison::Unequal => !left.equals(right, budget)?,
        Comparison::Less => left.order(right, budget)? == Ordering::Less,
        Comparison::LessOrEqual => left.order(right, budget)? != Ordering::Greater,
        Comparison::Greater => left.order(right, budget)? == Ordering::Greater,
        Comparison::GreaterOrEqual => left.order(right, budget)? != Ordering::Less,
        Comparison::In => right.contains(left, budget)?,
        Comparison::NotIn => !right.contains(left, budget)?,
    })
}
