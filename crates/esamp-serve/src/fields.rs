//! Reads the fields of a JSON object, with errors that say which field is wrong and how.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The fields of a JSON object that have not been read yet. A field that is `null` counts as absent, as in OpenAI's
/// API.
pub(crate) struct Fields {
    /// Where the object is: empty for the body, `esamp.` for the object of that name.
    prefix: String,
    map: Map<String, Value>,
}

impl Fields {
    /// The fields of the object `name`; of the body if the name is empty.
    pub(crate) fn new(name: &str, value: Value) -> Result<Self, ApiError> {
        let prefix = if name.is_empty() { String::new() } else { format!("{name}.") };
        match value {
            Value::Object(map) => Ok(Self { prefix, map }),
            other if name.is_empty() => {
                Err(ApiError::field("body", "a JSON object", &shown(&other)))
            }
            other => Err(ApiError::field(name, "an object", &shown(&other))),
        }
    }

    /// The full name of a field.
    pub(crate) fn name(&self, field: &str) -> String {
        format!("{}{field}", self.prefix)
    }

    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// An error about a field.
    pub(crate) fn wrong(&self, field: &str, expected: &str, got: &Value) -> ApiError {
        ApiError::field(self.name(field), expected, &shown(got))
    }

    /// A number. It is checked as it will be used, in 32 bits.
    pub(crate) fn number(
        &mut self,
        field: &str,
        expected: &str,
        holds: impl Fn(f32) -> bool,
    ) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let number = value.as_f64().map(|number| number as f32);
        match number.filter(|&number| number.is_finite() && holds(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.wrong(field, expected, &value)),
        }
    }

    /// A whole number.
    pub(crate) fn integer(
        &mut self,
        field: &str,
        range: RangeInclusive<i128>,
    ) -> Result<Option<i128>, ApiError> {
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        match whole(&value).filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let expected = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.wrong(field, &expected, &value))
            }
        }
    }

    /// A number of things, from `least` on.
    pub(crate) fn count(&mut self, field: &str, least: u32) -> Result<Option<usize>, ApiError> {
        let number = self.integer(field, i128::from(least)..=i128::from(u32::MAX))?;
        Ok(number.and_then(|number| usize::try_from(number).ok()))
    }

    /// A text or some.
    pub(crate) fn texts(&mut self, field: &str) -> Result<Option<Vec<String>>, ApiError> {
        const MOST: usize = 16;
        const LONGEST: usize = 256;
        let Some(value) = self.take(field) else {
            return Ok(None);
        };
        let texts: Option<Vec<String>> = match &value {
            Value::String(text) => Some(vec![text.clone()]),
            Value::Array(items) if items.len() <= MOST => {
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
            }
            _ => None,
        };
        let is_valid = |text: &String| (1..=LONGEST).contains(&text.len());
        match texts.filter(|texts| texts.iter().all(is_valid)) {
            Some(texts) => Ok(Some(texts)),
            None => {
                let expected = format!(
                    "a string, or an array of at most {MOST} strings, of 1 to {LONGEST} bytes each"
                );
                Err(self.wrong(field, &expected, &value))
            }
        }
    }

    pub(crate) fn flag(&mut self, field: &str) -> Result<bool, ApiError> {
        match self.take(field) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(field, "true or false", &other)),
        }
    }

    pub(crate) fn text(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(field, "a string", &other)),
        }
    }

    /// The fields of an object within this one; none if it is absent.
    pub(crate) fn object(&mut self, field: &str) -> Result<Self, ApiError> {
        let value = self.take(field).unwrap_or_else(|| Value::Object(Map::new()));
        Self::new(&self.name(field), value)
    }

    /// Accepts fields without looking at them.
    pub(crate) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.remove(*field);
        }
    }

    /// Refuses fields that nobody has read.
    pub(crate) fn end(self) -> Result<(), ApiError> {
        let unknown = self.map.iter().find(|(_, value)| !value.is_null());
        match unknown {
            None => Ok(()),
            Some((field, _)) => {
                let name = cut(&self.name(field));
                let message = format!("{name}: expected a field of this API, got an unknown one");
                Err(ApiError::request("unknown_field", message).with_param(&name))
            }
        }
    }
}

/// A whole number, however large.
pub(crate) fn whole(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

/// A value in an error message.
pub(crate) fn shown(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("an array of {}", items.len()),
        Value::Object(_) => "an object".to_owned(),
        other => cut(&other.to_string()),
    }
}

/// The beginning of a text, so that an error does not repeat a whole body.
pub(crate) fn cut(text: &str) -> String {
    const SHOWN: usize = 60;
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::new("", value).unwrap()
    }

    #[test]
    fn errors_name_the_field_what_was_expected_and_what_was_sent() {
        let mut body = fields(json!({"a": "x", "b": 7, "c": 1e300, "d": 2.5, "e": {"f": []}}));
        let below = |limit: f32| move |number: f32| number < limit;
        let said = [
            body.number("a", "a number", |_| true).unwrap_err().message,
            body.number("b", "a number below 5", below(5.0)).unwrap_err().message,
            body.number("c", "a number", |_| true).unwrap_err().message,
            body.integer("d", 0..=9).unwrap_err().message,
            body.object("e").unwrap().flag("f").unwrap_err().message,
            Fields::new("", json!([1])).err().unwrap().message,
        ];
        assert_eq!(
            said,
            [
                "a: expected a number, got \"x\"",
                "b: expected a number below 5, got 7",
                "c: expected a number, got 1e+300",
                "d: expected a whole number from 0 to 9, got 2.5",
                "e.f: expected true or false, got an array of 0",
                "body: expected a JSON object, got an array of 1",
            ]
        );
    }

    #[test]
    fn null_is_absent_and_unread_fields_are_unknown() {
        let mut body = fields(json!({"a": null, "b": 1, "user": {}, "z": null}));
        assert_eq!(body.text("a").unwrap(), None);
        body.ignore(&["user"]);
        let error = body.end().unwrap_err();
        assert_eq!((error.param.as_deref(), error.code), (Some("b"), "unknown_field"));
    }

    #[test]
    fn the_largest_seed_is_a_whole_number() {
        let mut body = fields(json!({"seed": u64::MAX}));
        let seed = body.integer("seed", 0..=i128::from(u64::MAX)).unwrap();
        assert_eq!(seed, Some(i128::from(u64::MAX)));
    }
}
