//! Filters of numbers.

use super::{arguments::Values, budget::Budget, fault::Fault, value::Value};

/// The filters `abs`, `int`, `float` and `round`.
pub(super) fn number(
    name: &str,
    value: &Value,
    args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    let parsed = |value: &Value| match value {
        Value::Text(text) => text.trim().replace('_', "").parse().ok(),
        other => other.as_float(),
    };
    match name {
        "abs" => {
            args.none()?;
            match value {
                Value::Float(number) => Ok(Value::Float(number.abs())),
                number => {
                    let number = number.as_int()?.checked_abs();
                    number
                        .map(Value::Int)
                        .ok_or_else(|| Fault::expected("a number in range", "one that is not"))
                }
            }
        }
        "int" => {
            let [default] = args.take(["default"])?;
            let whole = match value {
                Value::Text(text) => text.trim().replace('_', "").parse().ok(),
                Value::Float(_) => None,
                other => other.as_int().ok(),
            };
            let whole =
                whole.or_else(|| parsed(value).filter(|x| x.is_finite()).map(|x: f64| x as i128));
            Ok(whole.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = args.take(["default"])?;
            Ok(parsed(value).map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        _ => {
            let [precision, method] = args.take(["precision", "method"])?;
            let precision =
                precision.map_or(Ok(0), |precision| precision.as_int())?.clamp(-300, 300);
            let Some(number) = value.as_float() else {
                return Err(Fault::expected("a number", value.kind()));
            };
            let method = method.unwrap_or(Value::text("common", budget)?);
            let scale = 10f64.powi(precision as i32);
            let rounded = match &**method.as_text()? {
                "common" if precision >= 0 => {
                    // From the decimal digits, as Python does.
                    let digits = usize::try_from(precision).unwrap_or(0);
                    format!("{number:.digits$}").parse().unwrap_or(number)
                }
                "common" => (number * scale).round_ties_even() / scale,
                "ceil" => (number * scale).ceil() / scale,
                "floor" => (number * scale).floor() / scale,
                other => return Err(Fault::expected("common, ceil or floor", other)),
            };
            match value {
                Value::Int(_) if precision >= 0 => Ok(value.clone()),
                _ => Ok(Value::Float(rounded)),
            }
        }
    }
}
