//! `%` formatting and `str.format`.

use super::{arguments::Values, budget::Budget, fault::Fault, text::Writer, value::Value};

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value, budget: &Budget) -> Result<Value, Fault> {
    let mut writer = Writer::new(budget);
    let several;
    let positional = match values {
        Value::List(list) if list.tuple => list.items.as_slice(),
        one => {
            several = [one.clone()];
            &several
        }
    };
    let mut next = positional.iter();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        writer.push(&rest[..at])?;
        rest = &rest[at + 1..];
        let mut value = None;
        if let Some(named) = rest.strip_prefix('(') {
            let (name, after) =
                named.split_once(')').ok_or_else(|| Fault::expected(")", "the end of a format"))?;
            let key = Value::text(name, budget)?;
            value = values.key(&key, budget)?;
            if value.is_none() {
                return Err(Fault::expected("a value of every name in a format", "none"));
            }
            rest = after;
        }
        let (spec, after) = Spec::of_percent(rest)?;
        rest = after;
        if spec.kind == '%' {
            writer.push("%")?;
            continue;
        }
        let value = match value.or_else(|| next.next().cloned()) {
            Some(value) => value,
            None => return Err(Fault::expected("a value for every % in a format", "fewer")),
        };
        spec.write(&value, &mut writer, budget)?;
    }
    writer.push(rest)?;
    if next.next().is_some() && !matches!(values, Value::Dict(_)) && !format.contains("%(") {
        return Err(Fault::expected("a % for every value in a format", "fewer"));
    }
    Value::text(&writer.text, budget)
}

/// `format.format(arguments)`.
pub(super) fn braces(format: &str, arguments: &Values, budget: &Budget) -> Result<Value, Fault> {
    let mut writer = Writer::new(budget);
    let mut next = 0;
    let mut rest = format;
    while let Some(at) = rest.find(['{', '}']) {
        writer.push(&rest[..at])?;
        let brace = &rest[at..=at];
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(brace) {
            writer.push(brace)?;
            rest = after;
            continue;
        }
        let Some((field, after)) = rest.split_once('}').filter(|_| brace == "{") else {
            return Err(Fault::expected("braces in pairs in a format", "one alone"));
        };
        rest = after;
        let (name, spec) = field.split_once(':').unwrap_or((field, ""));
        let value = if name.is_empty() {
            next += 1;
            arguments.positional.get(next - 1)
        } else if let Ok(index) = name.parse::<usize>() {
            arguments.positional.get(index)
        } else {
            // The search reads as many names.
            budget.entries(arguments.named.len())?;
            arguments.named.iter().find(|(known, _)| **known == *name).map(|(_, value)| value)
        };
        let Some(value) = value else {
            return Err(Fault::expected("a value for every {} in a format", "fewer"));
        };
        Spec::of_braces(spec)?.write(value, &mut writer, budget)?;
    }
    writer.push(rest)?;
    Value::text(&writer.text, budget)
}

/// How one value is written.
struct Spec {
    kind: char,
    align: Option<char>,
    fill: char,
    /// What stands before a number that is not negative: a plus, a space or nothing.
    sign: &'static str,
    /// Whether the base of a number is written before it.
    alternate: bool,
    width: usize,
    precision: Option<usize>,
}

/// No number has more digits, and Rust's formatting takes no more than 65,535.
const MAX_DIGITS: usize = 1000;

impl Spec {
    const PLAIN: Self = Self {
        kind: 's',
        align: None,
        fill: ' ',
        sign: "",
        alternate: false,
        width: 0,
        precision: None,
    };

    fn of_percent(text: &str) -> Result<(Self, &str), Fault> {
        let mut spec = Self::PLAIN;
        let flags = text.find(|c| !"-+ #0".contains(c)).unwrap_or(text.len());
        let has = |flag: char| text[..flags].contains(flag);
        spec.sign = if has('+') {
            "+"
        } else if has(' ') {
            " "
        } else {
            ""
        };
        spec.alternate = has('#');
        spec.align = Some(if has('-') { '<' } else { '>' });
        let rest = spec.numbers(&text[flags..])?;
        let kind = rest.chars().next();
        spec.kind =
            kind.ok_or_else(|| Fault::expected("a letter after % in a format", "its end"))?;
        // Zeros are for numbers, and only before them.
        if has('0') && !has('-') && !['s', 'r'].contains(&spec.kind) {
            spec.fill = '0';
        }
        let after = &rest[spec.kind.len_utf8()..];
        Ok((spec, after))
    }

    fn of_braces(text: &str) -> Result<Self, Fault> {
        let mut spec = Self::PLAIN;
        let mut rest = text;
        let mut chars = rest.chars();
        if let (Some(fill), Some(align @ ('<' | '>' | '^'))) = (chars.next(), chars.next()) {
            (spec.fill, spec.align) = (fill, Some(align));
            rest = chars.as_str();
        } else if rest.starts_with(['<', '>', '^']) {
            spec.align = rest.chars().next();
            rest = &rest[1..];
        }
        for (sign, written) in [("+", "+"), (" ", " "), ("-", "")] {
            if let Some(after) = rest.strip_prefix(sign) {
                (spec.sign, rest) = (written, after);
                break;
            }
        }
        if let Some(after) = rest.strip_prefix('#') {
            (spec.alternate, rest) = (true, after);
        }
        if rest.starts_with('0') {
            spec.fill = '0';
        }
        rest = spec.numbers(rest)?;
        let mut kinds = rest.chars();
        spec.kind = kinds.next().unwrap_or('v');
        if kinds.next().is_some() {
            return Err(Fault::expected("a format that this library knows", format!("{text:?}")));
        }
        Ok(spec)
    }

    /// Reads width and precision.
    fn numbers<'t>(&mut self, text: &'t str) -> Result<&'t str, Fault> {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let number = |text: &str| match text {
            "" => Ok(0),
            text => text.parse().map_err(|_| Fault::expected("a width in range", text)),
        };
        let width = digits(text);
        self.width = number(&text[..width])?;
        let Some(rest) = text[width..].strip_prefix('.') else { return Ok(&text[width..]) };
        let precision = digits(rest);
        self.precision = Some(number(&rest[..precision])?);
        Ok(&rest[precision..])
    }

    fn write(&self, value: &Value, writer: &mut Writer<'_>, budget: &Budget) -> Result<(), Fault> {
        let mut own = Writer::new(budget);
        let number = value.as_float();
        let precision = self.precision.unwrap_or(6);
        if precision > MAX_DIGITS && self.kind != 's' {
            return Err(Fault::expected(format!("at most {MAX_DIGITS} digits"), precision));
        }
        match (self.kind, number) {
            ('s', _) | ('v', None) => {
                own.print(value)?;
                if let Some(precision) = self.precision
                    && let Some((end, _)) = own.text.char_indices().nth(precision)
                {
                    own.text.truncate(end);
                }
            }
            ('v', Some(_)) => own.print(value)?,
            ('r', _) => own.print(&Value::tuple(vec![value.clone()], budget)?)?,
            ('d' | 'i' | 'u' | 'x' | 'X' | 'o', Some(_)) => own.push(&self.whole(value)?)?,
            ('f' | 'F', Some(number)) => own.push(&format!("{number:.precision$}"))?,
            (kind, _) => {
                return Err(Fault::expected(
                    "a format that fits the value",
                    format!("{kind:?} for {}", value.kind()),
                ));
            }
        }
        let mut text = match self.kind {
            'r' => own.text[1..own.text.len() - 2].to_owned(), // out of its tuple
            _ => own.text,
        };
        let numeric = number.is_some() && self.kind != 's' && self.kind != 'r';
        if numeric && !text.starts_with('-') {
            text.insert_str(0, self.sign);
        }
        let fill = self.fill.encode_utf8(&mut [0; 4]).to_owned();
        let missing = self.width.saturating_sub(text.chars().count());
        let align = self.align.unwrap_or(if numeric { '>' } else { '<' });
        if self.fill == '0' && numeric && align == '>' {
            // Zeros come after the sign and the base.
            let mut signs = usize::from(text.starts_with(['+', '-', ' ']));
            signs += self.base().len();
            writer.push(&text[..signs])?;
            writer.repeat("0", missing)?;
            return writer.push(&text[signs..]);
        }
        let before = match align {
            '<' => 0,
            '^' => missing / 2,
            _ => missing,
        };
        writer.repeat(&fill, before)?;
        writer.push(&text)?;
        writer.repeat(&fill, missing - before)
    }

    /// What is written before the digits.
    fn base(&self) -> &'static str {
        match (self.alternate, self.kind) {
            (true, 'x') => "0x",
            (true, 'X') => "0X",
            (true, 'o') => "0o",
            _ => "",
        }
    }

    /// A whole number in the base of the kind, with at least as many digits as the precision. As in Python, a negative
    /// number is a minus and its size, in every base.
    fn whole(&self, value: &Value) -> Result<String, Fault> {
        let number = match value {
            Value::Float(number) if "diu".contains(self.kind) && number.abs() < 1e38 => {
                *number as i128
            }
            other => other.as_int()?,
        };
        let size = number.unsigned_abs();
        let digits = match self.kind {
            'x' => format!("{size:x}"),
            'X' => format!("{size:X}"),
            'o' => format!("{size:o}"),
            _ => size.to_string(),
        };
        let zeros = "0".repeat(self.precision.unwrap_or(0).saturating_sub(digits.len()));
        let minus = if number < 0 { "-" } else { "" };
        Ok(format!("{minus}{}{zeros}{digits}", self.base()))
    }
}
