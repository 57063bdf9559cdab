//! Tests: what can stand after `is`.

use super::{
    arguments::{Values, needed},
    budget::Budget,
    fault::Fault,
    operators::{combine, compare},
    strings::has_case,
    tree::{Comparison, Operator},
    value::Value,
};

/// Whether `value is name(args)`.
pub(super) fn holds(
    name: &str,
    value: &Value,
    args: Values,
    budget: &Budget,
) -> Result<bool, Fault> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(Comparison::Equal),
        "ne" | "!=" => Some(Comparison::Unequal),
        "lt" | "lessthan" | "<" => Some(Comparison::Less),
        "le" | "<=" => Some(Comparison::LessOrEqual),
        "gt" | "greaterthan" | ">" => Some(Comparison::Greater),
        "ge" | ">=" => Some(Comparison::GreaterOrEqual),
        "in" => Some(Comparison::In),
        _ => None,
    };
    if let Some(comparison) = comparison {
        let [other] = args.take(["other"])?;
        return compare(comparison, value, &needed(other, "other")?, budget);
    }
    let remainder = |args: Values, divisor: Option<i128>| {
        let divisor = match divisor {
            Some(divisor) => {
                args.none()?;
                Value::Int(divisor)
            }
            None => {
                let [divisor] = args.take(["num"])?;
                needed(divisor, "num")?
            }
        };
        combine(Operator::Remainder, value, &divisor, budget)?.as_int()
    };
    match name {
        "even" => return Ok(remainder(args, Some(2))? == 0),
        "odd" => return Ok(remainder(args, Some(2))? == 1),
        "divisibleby" => return Ok(remainder(args, None)? == 0),
        "sameas" => {
            let [other] = args.take(["other"])?;
            let other = needed(other, "other")?;
            return Ok(value.kind() == other.kind() && value.equals(&other, budget)?);
        }
        _ => args.none()?,
    }
    Ok(match name {
        "defined" => !matches!(value, Value::Undefined),
        "undefined" => matches!(value, Value::Undefined),
        "none" => matches!(value, Value::None),
        "boolean" => matches!(value, Value::Bool(_)),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => matches!(value, Value::Int(_) | Value::Float(_) | Value::Bool(_)),
        "string" => matches!(value, Value::Text(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => {
            matches!(value, Value::List(_) | Value::Dict(_) | Value::Text(_) | Value::Undefined)
        }
        "iterable" => {
            matches!(value, Value::List(_) | Value::Dict(_) | Value::Text(_) | Value::Undefined)
        }
        "callable" => matches!(value, Value::Macro(_) | Value::Function(_)),
        "lower" | "upper" => {
            let text = value.as_text()?;
            budget.bytes(text.len())?;
            match name {
                "lower" => has_case(text, char::is_lowercase, char::is_uppercase),
                _ => has_case(text, char::is_uppercase, char::is_lowercase),
            }
        }
        other => return Err(Fault::expected("a test that chat templates use", other)),
    })
}
