//! The methods of Python's strings, lists and dictionaries that change nothing.

use super::{
    arguments::{Values, given, is_true, needed, size},
    budget::Budget,
    fault::Fault,
    printf::braces,
    strings::{capitalized, filled, has_case, pad, part, replace, split, strip, title},
    text::Writer,
    value::{Value, position},
};

/// Calls a method of a string, list or dictionary.
pub(super) fn call(
    value: &Value,
    method: &str,
    args: Values,
    budget: &Budget,
) -> Result<Value, Fault> {
    match value {
        Value::Text(text) => text_method(text, method, args, budget),
        Value::List(list) => match method {
            "index" => {
                let [item] = args.take(["value"])?;
                let at = position(list.items.iter(), &needed(item, "value")?, budget)?;
                let at =
                    at.ok_or_else(|| Fault::expected("an item of the list", "another value"))?;
                Ok(Value::Int(at as i128))
            }
            "count" => {
                let [item] = args.take(["value"])?;
                let item = needed(item, "value")?;
                let mut count = 0;
                for other in &list.items {
                    count += i128::from(other.equals(&item, budget)?);
                }
                Ok(Value::Int(count))
            }
            "copy" if !list.tuple => args.none().map(|()| value.clone()),
            _ => Err(unknown(value, method)),
        },
        Value::Dict(dict) => {
            let entries = dict.entries.iter();
            match method {
                "get" => {
                    let [key, default] = args.take(["key", "default"])?;
                    let found = value.key(&needed(key, "key")?, budget)?;
                    Ok(found.or(default).unwrap_or(Value::None))
                }
                "copy" => args.none().map(|()| value.clone()),
                "keys" => {
                    args.none()?;
                    Value::list(entries.map(|(key, _)| key.clone()).collect(), budget)
                }
                "values" => {
                    args.none()?;
                    Value::list(entries.map(|(_, value)| value.clone()).collect(), budget)
                }
                "items" => {
                    args.none()?;
                    items(value, budget)
                }
                _ => Err(unknown(value, method)),
            }
        }
        other => Err(unknown(other, method)),
    }
}

fn unknown(value: &Value, method: &str) -> Fault {
    Fault::expected(format!("a method of {} that changes nothing", value.kind()), method)
}

/// The pairs of a dictionary.
pub(super) fn items(value: &Value, budget: &Budget) -> Result<Value, Fault> {
    let Value::Dict(dict) = value else {
        return Err(Fault::expected("a dictionary", value.kind()));
    };
    let mut pairs = Vec::new();
    for (key, value) in &dict.entries {
        pairs.push(Value::tuple(vec![key.clone(), value.clone()], budget)?);
    }
    Value::list(pairs, budget)
}

fn text_method(text: &str, method: &str, args: Values, budget: &Budget) -> Result<Value, Fault> {
    budget.bytes(text.len())?; // every method reads the text
    let is = |holds: bool| Ok(Value::Bool(holds));
    let all =
        |holds: fn(char) -> bool| Ok(Value::Bool(!text.is_empty() && text.chars().all(holds)));
    match method {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = args.take(["chars"])?;
            strip(text, method, given(chars).as_ref(), budget)
        }
        "upper" => args.none().and_then(|()| Value::text(&text.to_uppercase(), budget)),
        "lower" | "casefold" => {
            args.none().and_then(|()| Value::text(&text.to_lowercase(), budget))
        }
        "title" => {
            args.none().and_then(|()| Value::text(&title(text, char::is_alphabetic), budget))
        }
        "capitalize" => args.none().and_then(|()| Value::text(&capitalized(text), budget)),
        "swapcase" => {
            args.none()?;
            let swap = |c: char| match c.is_uppercase() {
                true => c.to_lowercase().collect::<String>(),
                false => c.to_uppercase().collect(),
            };
            Value::text(&text.chars().map(swap).collect::<String>(), budget)
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = args.take(["prefix", "start", "end"])?;
            let part = part(text, start.as_ref(), end.as_ref())?;
            let affix = needed(affix, "prefix")?;
            let affixes = match &affix {
                Value::List(list) if list.tuple => list.items.as_slice(),
                one => std::slice::from_ref(one),
            };
            for affix in affixes {
                let affix = affix.as_text()?;
                budget.step()?;
                budget.bytes(affix.len().min(text.len()))?;
                let found = part.is_some_and(|part| match method {
                    "startswith" => part.starts_with(&**affix),
                    _ => part.ends_with(&**affix),
                });
                if found {
                    return is(true);
                }
            }
            is(false)
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = args.take(["affix"])?;
            let affix = needed(affix, "affix")?;
            let affix = &**affix.as_text()?;
            let rest = if method == "removeprefix" {
                text.strip_prefix(affix)
            } else {
                text.strip_suffix(affix)
            };
            Value::text(rest.unwrap_or(text), budget)
        }
        "replace" => {
            let [old, new, count] = args.take(["old", "new", "count"])?;
            replace(text, &needed(old, "old")?, &needed(new, "new")?, count.as_ref(), budget)
        }
        "split" | "rsplit" => {
            let [separator, limit] = args.take(["sep", "maxsplit"])?;
            let limit = limit.map_or(Ok(-1), |limit| limit.as_int())?;
            let limit =
                if limit < 0 { usize::MAX } else { usize::try_from(limit).unwrap_or(usize::MAX) };
            let separator = given(separator);
            let separator = separator.as_ref().map(Value::as_text).transpose()?;
            split(text, separator.map(|separator| &**separator), limit, method == "rsplit", budget)
        }
        "splitlines" => {
            let [keep] = args.take(["keepends"])?;
            let keep = is_true(keep.as_ref());
            let line = |line: &str| -> usize {
                if keep { line.len() } else { line.trim_end_matches(['\n', '\r']).len() }
            };
            let lines = text.split_inclusive('\n').map(|one| &one[..line(one)]);
            Value::texts(lines, budget)
        }
        "partition" | "rpartition" => {
            let [separator] = args.take(["sep"])?;
            let separator = needed(separator, "sep")?;
            let separator = &**filled(separator.as_text()?)?;
            let parts = match method {
                "partition" => {
                    text.split_once(separator).map_or([text, "", ""], |(a, b)| [a, separator, b])
                }
                _ => text.rsplit_once(separator).map_or(["", "", text], |(a, b)| [a, separator, b]),
            };
            let parts: Result<_, _> =
                parts.into_iter().map(|part| Value::text(part, budget)).collect();
            Value::tuple(parts?, budget)
        }
        "join" => {
            let [items] = args.take(["iterable"])?;
            let mut writer = Writer::new(budget);
            for (at, item) in needed(items, "iterable")?.items(budget)?.iter().enumerate() {
                writer.push(if at > 0 { text } else { "" })?;
                writer.push(item.as_text()?)?;
            }
            Value::text(&writer.text, budget)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, end] = args.take(["sub", "start", "end"])?;
            let wanted = needed(wanted, "sub")?;
            let wanted = &**wanted.as_text()?;
            let part = part(text, start.as_ref(), end.as_ref())?;
            if method == "count" {
                let count = part.map_or(0, |part| part.matches(wanted).count());
                return Ok(Value::Int(count as i128));
            }
            let found = part.and_then(|part| {
                let at =
                    if method.starts_with('r') { part.rfind(wanted) } else { part.find(wanted) };
                Some(part.as_ptr() as usize - text.as_ptr() as usize + at?)
            });
            match found {
                Some(before) => Ok(Value::Int(text[..before].chars().count() as i128)),
                None if method.ends_with("find") => Ok(Value::Int(-1)),
                None => Err(Fault::expected("a part of the string", "another string")),
            }
        }
        "zfill" | "center" | "ljust" | "rjust" => {
            let [width, fill] = args.take(["width", "fillchar"])?;
            let fill =
                fill.unwrap_or(Value::text(if method == "zfill" { "0" } else { " " }, budget)?);
            pad(text, method, size(width.as_ref(), 0)?, fill.as_text()?, budget)
        }
        "format" => braces(text, &args, budget),
        "isalpha" => all(char::is_alphabetic),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isalnum" => all(char::is_alphanumeric),
        "isspace" => all(char::is_whitespace),
        "isupper" => is(has_case(text, char::is_uppercase, char::is_lowercase)),
        "islower" => is(has_case(text, char::is_lowercase, char::is_uppercase)),
        "isascii" => is(text.is_ascii()),
        _ => Err(Fault::expected("a method of strings", method)),
    }
}
