//! Filters.

use super::{
    arguments::{Values, given, is_true, needed, size},
    budget::Budget,
    fault::Fault,
    methods::items,
    numbers::number,
    printf::percent,
    sequences::{member, ordered, parts, select},
    strings::{capitalized, pad, replace, strip, title},
    text::{JsonStyle, Writer},
    value::Value,
};

/// The value that `value | name(args)` has.
pub(super) fn apply(
    name: &str,
    value: &Value,
    args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    match name {
        "map" => return map(value, args, budget),
        "select" | "reject" | "selectattr" | "rejectattr" => {
            return select(name, value, args, budget);
        }
        _ => {}
    }
    single(name, value, args, budget)
}

/// A filter that applies no other.
fn single(name: &str, value: &Value, args: Values, budget: &Budget) -> Result<Value, Fault> {
    if let Value::Text(text) = value {
        budget.bytes(text.len())?; // every filter reads its text
    }
    match name {
        "tojson" => tojson(value, args, budget),
        "default" | "d" => {
            let [default, boolean] = args.take(["default_value", "boolean"])?;
            let missing =
                matches!(value, Value::Undefined) || is_true(boolean.as_ref()) && !value.is_true();
            if missing {
                default.map_or_else(|| Value::text("", budget), Ok)
            } else {
                Ok(value.clone())
            }
        }
        "length" | "count" => {
            args.none()?;
            Ok(Value::Int(value.len()? as i128))
        }
        "list" => {
            args.none()?;
            Value::list(value.items(budget)?, budget)
        }
        "items" => {
            args.none()?;
            if matches!(value, Value::Undefined) {
                Value::list(Vec::new(), budget)
            } else {
                items(value, budget)
            }
        }
        "first" | "last" => {
            args.none()?;
            let items = value.items(budget)?;
            let item = if name == "first" { items.first() } else { items.last() };
            Ok(item.cloned().unwrap_or(Value::Undefined))
        }
        "reverse" => {
            args.none()?;
            let mut items = value.items(budget)?;
            items.reverse();
            match value {
                Value::Text(_) => {
                    let mut writer = Writer::new(budget);
                    items.iter().try_for_each(|item| writer.print(item))?;
                    Value::text(&writer.text, budget)
                }
                _ => Value::list(items, budget),
            }
        }
        "join" => {
            let [separator, attribute] = args.take(["d", "attribute"])?;
            let attribute = given(attribute);
            let mut writer = Writer::new(budget);
            for (at, item) in value.items(budget)?.iter().enumerate() {
                if let (Some(separator), true) = (&separator, at > 0) {
                    writer.print(separator)?;
                }
                match &attribute {
                    Some(attribute) => writer.print(&member(item, attribute, budget)?)?,
                    None => writer.print(item)?,
                }
            }
            Value::text(&writer.text, budget)
        }
        "sort" | "unique" | "min" | "max" | "sum" | "dictsort" => {
            ordered(name, value, args, budget)
        }
        "batch" | "slice" => parts(name, value, args, budget),
        "abs" | "round" | "int" | "float" => number(name, value, args, budget),
        _ => {
            let mut writer = Writer::new(budget);
            writer.print(value)?;
            text(name, &writer.text, args, budget)
        }
    }
}

/// Filters that take every value as text.
fn text(name: &str, text: &str, args: Values, budget: &Budget) -> Result<Value, Fault> {
    let plain = |args: Values, text: String| args.none().and_then(|()| Value::text(&text, budget));
    match name {
        "string" | "safe" => plain(args, text.to_owned()),
        "upper" => plain(args, text.to_uppercase()),
        "lower" => plain(args, text.to_lowercase()),
        "capitalize" => plain(args, capitalized(text)),
        "title" => plain(args, title(text, |c| !c.is_whitespace() && !"-({[<".contains(c))),
        "trim" => {
            let [chars] = args.take(["chars"])?;
            strip(text, "strip", given(chars).as_ref(), budget)
        }
        "replace" => {
            let [old, new, count] = args.take(["old", "new", "count"])?;
            replace(text, &needed(old, "old")?, &needed(new, "new")?, count.as_ref(), budget)
        }
        "wordcount" => {
            args.none()?;
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            Ok(Value::Int(words.filter(|word| !word.is_empty()).count() as i128))
        }
        "indent" => indent(text, args, budget),
        "truncate" => truncate(text, args, budget),
        "center" => {
            let [width] = args.take(["width"])?;
            pad(text, "center", size(width.as_ref(), 80)?, " ", budget)
        }
        "format" => percent(text, &Value::tuple(args.positional, budget)?, budget),
        "escape" | "e" => {
            args.none()?;
            let mut writer = Writer::new(budget);
            let mut buffer = [0; 4];
            for c in text.chars() {
                writer.push(match c {
                    '&' => "&amp;",
                    '<' => "&lt;",
                    '>' => "&gt;",
                    '\'' => "&#39;",
                    '"' => "&#34;",
                    c => c.encode_utf8(&mut buffer),
                })?;
            }
            Value::text(&writer.text, budget)
        }
        "urlencode" => {
            args.none()?;
            let mut writer = Writer::new(budget);
            for byte in text.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'.' | b'-' | b'~' | b'/' => {
                        writer.push(char::from(byte).encode_utf8(&mut [0; 4]))?;
                    }
                    byte => writer.push(&format!("%{byte:02X}"))?,
                }
            }
            Value::text(&writer.text, budget)
        }
        other => Err(Fault::expected("a filter that chat templates use", other)),
    }
}

fn tojson(value: &Value, args: Values, budget: &Budget) -> Result<Value, Fault> {
    let [ascii, indent, separators, sort_keys] =
        args.take(["ensure_ascii", "indent", "separators", "sort_keys"])?;
    let indent = match given(indent) {
        Some(Value::Text(text)) => Some(text.to_string()),
        // Python's json writes lines without any indent for 0.
        Some(width) => {
            let mut spaces = Writer::new(budget);
            spaces.repeat(" ", size(Some(&width), 0)?)?;
            Some(spaces.text)
        }
        None => None,
    };
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = given(separators) {
        let given = separators.items(budget)?;
        let [item, key] = given.as_slice() else {
            return Err(Fault::expected("two separators", given.len()));
        };
        item_separator = item.as_text()?.to_string();
        key_separator = key.as_text()?.to_string();
    }
    let style = JsonStyle {
        ascii: is_true(ascii.as_ref()),
        indent,
        item_separator,
        key_separator,
        sort_keys: is_true(sort_keys.as_ref()),
    };
    let mut writer = Writer::new(budget);
    writer.json(value, &style, 0)?;
    Value::text(&writer.text, budget)
}

fn indent(text: &str, args: Values, budget: &Budget) -> Result<Value, Fault> {
    let [width, first, blank] = args.take(["width", "first", "blank"])?;
    let (unit, count) = match &width {
        Some(Value::Text(text)) => (&**text, 1),
        width => (" ", size(width.as_ref(), 4)?),
    };
    let mut writer = Writer::new(budget);
    for (at, line) in text.split('\n').enumerate() {
        writer.push(if at > 0 { "\n" } else { "" })?;
        let indented = if at == 0 {
            is_true(first.as_ref())
        } else {
            !line.is_empty() || is_true(blank.as_ref())
        };
        if indented {
            writer.repeat(unit, count)?;
        }
        writer.push(line)?;
    }
    Value::text(&writer.text, budget)
}

fn truncate(text: &str, args: Values, budget: &Budget) -> Result<Value, Fault> {
    let [length, kill_words, end, leeway] = args.take(["length", "killwords", "end", "leeway"])?;
    let length = size(length.as_ref(), 255)?;
    let leeway = size(given(leeway).as_ref(), 5)?;
    let end = end.unwrap_or(Value::text("...", budget)?);
    let end = end.as_text()?;
    let ending = end.chars().count();
    if length < ending {
        return Err(Fault::expected(format!("a length of at least {ending}"), length));
    }
    if text.chars().count() <= length.saturating_add(leeway) {
        return Value::text(text, budget);
    }
    let cut = text.char_indices().nth(length - ending).map_or(text, |(at, _)| &text[..at]);
    let kept = if is_true(kill_words.as_ref()) {
        cut
    } else {
        cut.rsplit_once(' ').map_or(cut, |(kept, _)| kept)
    };
    budget.bytes(kept.len() + end.len())?;
    Value::text(&[kept, end].concat(), budget)
}

/// `map(filter, ...)` and `map(attribute=...)`.
fn map(value: &Value, mut args: Values, budget: &Budget) -> Result<Value, Fault> {
    let attribute = args.named.iter().any(|(name, _)| &**name == "attribute");
    let mut mapped = Vec::new();
    if attribute {
        let [attribute, default] = args.take(["attribute", "default"])?;
        let attribute = needed(attribute, "attribute")?;
        for item in value.items(budget)? {
            let found = member(&item, &attribute, budget)?;
            let missing = matches!(found, Value::Undefined);
            mapped.push(if missing { default.clone().unwrap_or(found) } else { found });
        }
        return Value::list(mapped, budget);
    }
    if args.positional.is_empty() {
        return Err(Fault::expected("a filter or attribute to map with", "none"));
    }
    let filter = args.positional.remove(0);
    let filter = filter.as_text()?;
    for item in value.items(budget)? {
        budget.entries(args.positional.len() + 1)?;
        let args = Values { positional: args.positional.clone(), named: args.named.clone() };
        mapped.push(single(filter, &item, args, budget)?);
    }
    Value::list(mapped, budget)
}
