//! What methods and filters of strings share.

use super::{arguments::size, budget::Budget, fault::Fault, text::Writer, value::Value};

/// A separator, which must not be empty.
pub(super) fn filled<T: AsRef<str>>(separator: &T) -> Result<&T, Fault> {
    match separator.as_ref() {
        "" => Err(Fault::expected("a separator", "an empty string")),
        _ => Ok(separator),
    }
}

/// The part of a text from one character to another. `None` if it begins after its own end or that of the text: Python
/// finds nothing there, not even an empty string.
pub(super) fn part<'t>(
    text: &'t str,
    start: Option<&Value>,
    end: Option<&Value>,
) -> Result<Option<&'t str>, Fault> {
    if start.is_none() && end.is_none() {
        return Ok(Some(text));
    }
    let length = text.chars().count();
    let place = |value: Option<&Value>, default: usize| match value {
        None | Some(Value::None) => Ok(default as i128),
        Some(value) => value.as_int(),
    };
    let (start, end) = (place(start, 0)?, place(end, length)?);
    let (from, to) = (clamped(start, length), clamped(end, length));
    if from > to || start > length as i128 {
        return Ok(None);
    }
    let byte = |at: usize| text.char_indices().nth(at).map_or(text.len(), |(byte, _)| byte);
    Ok(Some(&text[byte(from)..byte(to)]))
}

/// A place in something of `length` items; negative places count from the end.
pub(super) fn clamped(at: i128, length: usize) -> usize {
    let length = length as i128;
    let at = if at < 0 { at.saturating_add(length) } else { at };
    usize::try_from(at.clamp(0, length)).unwrap_or(0)
}

pub(super) fn strip(
    text: &str,
    method: &str,
    chars: Option<&Value>,
    budget: &Budget,
) -> Result<Value, Fault> {
    let chars = chars.map(Value::as_text).transpose()?;
    if let Some(chars) = chars {
        budget.bytes(text.len().saturating_mul(chars.len()))?; // every character is looked up among them
    }
    let strips = |c: char| chars.map_or(c.is_whitespace(), |chars| chars.contains(c));
    Value::text(
        match method {
            "lstrip" => text.trim_start_matches(strips),
            "rstrip" => text.trim_end_matches(strips),
            _ => text.trim_matches(strips),
        },
        budget,
    )
}

pub(super) fn replace(
    text: &str,
    old: &Value,
    new: &Value,
    count: Option<&Value>,
    budget: &Budget,
) -> Result<Value, Fault> {
    let (old, new) = (old.as_text()?, new.as_text()?);
    let count = match count {
        None | Some(Value::None) => usize::MAX,
        Some(count) if count.as_int()? < 0 => usize::MAX,
        count => size(count, 0)?,
    };
    budget.bytes(text.len())?;
    let found = text.matches(&**old).take(count).count();
    budget.bytes(new.len().saturating_mul(found))?;
    Value::text(&text.replacen(&**old, new, count), budget)
}

pub(super) fn split(
    text: &str,
    separator: Option<&str>,
    limit: usize,
    from_end: bool,
    budget: &Budget,
) -> Result<Value, Fault> {
    let separator = separator.map(|separator| filled(&separator).copied()).transpose()?;
    let pieces = limit.saturating_add(1);
    match (separator, from_end) {
        (Some(separator), false) => Value::texts(text.splitn(pieces, separator), budget),
        (Some(separator), true) => {
            budget.entries(text.len().min(pieces))?;
            let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
            parts.reverse();
            Value::texts(parts, budget)
        }
        (None, from_end) => {
            let mut parts = Vec::new();
            let mut rest = if from_end { text.trim_end() } else { text.trim_start() };
            budget.entries(text.len().min(pieces) / 2)?;
            while parts.len() < limit && !rest.is_empty() {
                let cut = if from_end {
                    rest.rfind(char::is_whitespace)
                } else {
                    rest.find(char::is_whitespace)
                };
                let Some(at) = cut else { break };
                let (before, after) = rest.split_at(at);
                if from_end {
                    parts.push(after.trim_start());
                    rest = before.trim_end();
                } else {
                    parts.push(before);
                    rest = after.trim_start();
                }
            }
            let rest = if parts.len() < limit { rest.trim() } else { rest };
            if !rest.is_empty() {
                parts.push(rest);
            }
            if from_end {
                parts.reverse();
            }
            Value::texts(parts, budget)
        }
    }
}

pub(super) fn pad(
    text: &str,
    method: &str,
    width: usize,
    fill: &str,
    budget: &Budget,
) -> Result<Value, Fault> {
    if fill.chars().count() != 1 {
        return Err(Fault::expected("one character to fill with", format!("{fill:?}")));
    }
    let length = text.chars().count();
    let missing = width.saturating_sub(length);
    let before = match method {
        "ljust" => 0,
        // Python puts the odd character to the left if the width is odd.
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let mut writer = Writer::new(budget);
    let signs = usize::from(method == "zfill" && text.starts_with(['+', '-']));
    writer.push(&text[..signs])?;
    writer.repeat(fill, before)?;
    writer.push(&text[signs..])?;
    writer.repeat(fill, missing - before)?;
    Value::text(&writer.text, budget)
}

pub(super) fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().collect::<String>());
    first.unwrap_or_default() + &chars.as_str().to_lowercase()
}

/// Capital letters at the beginnings of words, whose characters `in_word` tells.
pub(super) fn title(text: &str, in_word: fn(char) -> bool) -> String {
    let mut begins = true;
    let mut cased = String::with_capacity(text.len());
    for c in text.chars() {
        if begins {
            cased.extend(c.to_uppercase())
        } else {
            cased.extend(c.to_lowercase())
        }
        begins = !in_word(c);
    }
    cased
}

/// Whether a text has letters of one case, `wanted`, and none of the other.
pub(super) fn has_case(text: &str, wanted: fn(char) -> bool, other: fn(char) -> bool) -> bool {
    text.chars().any(wanted) && !text.chars().any(other)
}
