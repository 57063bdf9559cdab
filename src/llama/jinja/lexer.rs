//! Splits a template into tokens, with the whitespace rules that transformers sets: `trim_blocks` and
//! `lstrip_blocks`.

use super::fault::Fault;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind<'s> {
    /// Text outside of tags.
    Text(&'s str),
    /// `{{` or `{%`.
    Open(Tag),
    /// `}}` or `%}`.
    Close,
    Name(&'s str),
    String(String),
    Int(i128),
    Float(f64),
    Sign(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Tag {
    Print,
    Block,
}

#[derive(Debug)]
pub(super) struct Token<'s> {
    pub(super) line: usize,
    pub(super) kind: Kind<'s>,
}

/// Longer signs before their beginnings.
const SIGNS: [&str; 26] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[", "]", "(", ")", "{", "}",
    "<", ">", "=", ".", ":", "|", ",", ";",
];

/// The tokens of `source`, whose lines end in `\n`.
pub(super) fn tokens(source: &str) -> Result<Vec<Token<'_>>, Fault> {
    let mut lexer = Lexer { source, at: 0, line: 1, line_start: true, tokens: Vec::new() };
    while lexer.at < source.len() {
        lexer.next().map_err(|fault| fault.at(lexer.line))?;
    }
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether the text before `at` that is not part of a text token ends a line.
    line_start: bool,
    tokens: Vec<Token<'s>>,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.source[self.at..]
    }

    /// Moves on by `bytes` bytes and counts their lines.
    fn skip(&mut self, bytes: usize) {
        let skipped = &self.rest()[..bytes];
        self.line += skipped.matches('\n').count();
        self.line_start = skipped.ends_with('\n');
        self.at += bytes;
    }

    fn push(&mut self, kind: Kind<'s>) {
        self.tokens.push(Token { line: self.line, kind });
    }

    /// Reads the text up to the next tag, and the tag.
    fn next(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let opener = |at: &usize| matches!(&rest.as_bytes()[*at..*at + 2], b"{{" | b"{%" | b"{#");
        let Some(at) =
            rest.match_indices('{').map(|(at, _)| at).filter(|at| at + 1 < rest.len()).find(opener)
        else {
            self.push(Kind::Text(rest));
            self.at = self.source.len();
            return Ok(());
        };
        let kind = rest.as_bytes()[at + 1];
        let sign = rest.as_bytes().get(at + 2).copied().filter(|sign| b"+-".contains(sign));
        let text = self.before_tag(&rest[..at], sign, kind != b'{');
        if !text.is_empty() {
            self.push(Kind::Text(text));
        }
        self.skip(at + 2 + usize::from(sign.is_some()));
        match kind {
            b'#' => self.comment(),
            b'{' => self.tag(Tag::Print),
            _ => match self.raw_opener() {
                Some(length) => self.raw(length),
                None => self.tag(Tag::Block),
            },
        }
    }

    /// The text before a tag without what the tag's sign, or `lstrip_blocks`, removes from its end.
    fn before_tag(&self, text: &'s str, sign: Option<u8>, strips: bool) -> &'s str {
        if sign == Some(b'-') {
            return text.trim_end();
        }
        let last_line = text.rfind('\n').map_or(0, |at| at + 1);
        let begins_line = last_line > 0 || self.line_start;
        if strips && sign.is_none() && begins_line && text[last_line..].trim().is_empty() {
            return &text[..last_line];
        }
        text
    }

    fn comment(&mut self) -> Result<(), Fault> {
        let Some(end) = self.rest().find("#}") else {
            return Err(Fault::expected("#}", "the end of the template"));
        };
        let sign = self.rest()[..end].chars().next_back();
        self.skip(end + 2);
        match sign {
            Some('-') => self.skip_space(),
            Some('+') => {}
            _ => self.skip_newline(),
        }
        Ok(())
    }

    /// The length of ` raw %}` if that comes next.
    fn raw_opener(&self) -> Option<usize> {
        let rest = self.rest();
        let after = rest.trim_start().strip_prefix("raw")?.trim_start();
        let end =
            if after.starts_with("-%}") { 3 } else { usize::from(after.starts_with("%}")) * 2 };
        (end > 0).then(|| rest.len() - after.len() + end)
    }

    fn raw(&mut self, opener: usize) -> Result<(), Fault> {
        let strips = self.rest()[..opener].ends_with("-%}");
        self.skip(opener);
        if strips {
            self.skip_space();
        }
        let rest = self.rest();
        for (at, _) in rest.match_indices("{%") {
            let inside = &rest[at + 2..];
            let sign = inside.bytes().next().filter(|sign| b"+-".contains(sign));
            let inside = &inside[usize::from(sign.is_some())..];
            let Some(after) = inside.trim_start().strip_prefix("endraw") else { continue };
            let after = after.trim_start();
            let closer = ["-%}", "+%}", "%}"].into_iter().find(|closer| after.starts_with(closer));
            let Some(closer) = closer else { continue };
            let text = self.before_tag(&rest[..at], sign, true);
            self.push(Kind::Text(text));
            self.skip(rest.len() - after.len() + closer.len());
            match closer {
                "-%}" => self.skip_space(),
                "%}" => self.skip_newline(),
                _ => {}
            }
            return Ok(());
        }
        Err(Fault::expected("{% endraw %}", "the end of the template"))
    }

    /// Reads the tokens of a tag up to its end.
    fn tag(&mut self, tag: Tag) -> Result<(), Fault> {
        self.push(Kind::Open(tag));
        let closer = if tag == Tag::Print { "}}" } else { "%}" };
        let mut brackets = 0usize;
        loop {
            self.skip_space();
            let rest = self.rest();
            let Some(first) = rest.chars().next() else {
                return Err(Fault::expected(closer, "the end of the template"));
            };
            if brackets == 0 {
                let sign = usize::from(first == '-' || first == '+' && tag == Tag::Block);
                if rest[sign..].starts_with(closer) {
                    self.push(Kind::Close);
                    self.skip(sign + 2);
                    match (first, tag) {
                        ('-', _) => self.skip_space(),
                        ('+', _) | (_, Tag::Print) => {}
                        _ => self.skip_newline(),
                    }
                    return Ok(());
                }
            }
            if first.is_ascii_digit() {
                self.number()?;
            } else if first.is_alphabetic() || first == '_' {
                let name =
                    rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
                self.push(Kind::Name(&rest[..name]));
                self.skip(name);
            } else if first == '\'' || first == '"' {
                self.string(first)?;
            } else if let Some(sign) = SIGNS.into_iter().find(|sign| rest.starts_with(sign)) {
                match sign {
                    "[" | "(" | "{" => brackets += 1,
                    "]" | ")" | "}" => brackets = brackets.saturating_sub(1),
                    _ => {}
                }
                self.push(Kind::Sign(sign));
                self.skip(sign.len());
            } else {
                return Err(Fault::expected("an expression", format!("{first:?}")));
            }
        }
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.skip(rest.len() - rest.trim_start().len());
    }

    /// Removes one line end after a block tag, as `trim_blocks` does.
    fn skip_newline(&mut self) {
        if self.rest().starts_with('\n') {
            self.skip(1);
        }
    }

    fn number(&mut self) -> Result<(), Fault> {
        let rest = self.rest();
        let digits =
            |text: &str| text.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(text.len());
        // `a.0.1` is two lookups and not a fraction.
        let lookup = matches!(self.tokens.last(), Some(Token { kind: Kind::Sign("."), .. }));
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        let (length, value) = if radix != 10 {
            let end = rest[2..]
                .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
                .unwrap_or(rest.len() - 2);
            (
                2 + end,
                i128::from_str_radix(&rest[2..2 + end].replace('_', ""), radix).map(Kind::Int).ok(),
            )
        } else {
            let mut end = digits(rest);
            let mut float = false;
            let starts_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
            if !lookup {
                if rest[end..].strip_prefix('.').is_some_and(starts_digit) {
                    end += 1 + digits(&rest[end + 1..]);
                    float = true;
                }
                if let Some(power) = rest[end..].strip_prefix(['e', 'E']) {
                    let signed = power.strip_prefix(['+', '-']).unwrap_or(power);
                    if starts_digit(signed) {
                        end += 1 + power.len() - signed.len() + digits(signed);
                        float = true;
                    }
                }
            }
            let text = rest[..end].replace('_', "");
            let value = if float {
                text.parse().map(Kind::Float).ok()
            } else {
                text.parse().map(Kind::Int).ok()
            };
            (end, value)
        };
        let Some(value) = value else {
            return Err(Fault::expected("a number in range", &rest[..length.min(40)]));
        };
        self.push(value);
        self.skip(length);
        Ok(())
    }

    /// Reads a string with the escapes of Python.
    fn string(&mut self, quote: char) -> Result<(), Fault> {
        let rest = self.rest();
        let mut text = String::new();
        let mut chars = rest.char_indices().skip(1).peekable();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.push(Kind::String(text));
                self.skip(at + 1);
                return Ok(());
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((at, escape)) = chars.next() else { break };
            let code = match escape {
                '\n' => continue,
                'x' => Some((2, 16)),
                'u' => Some((4, 16)),
                'U' => Some((8, 16)),
                '0'..='7' => {
                    let octal = rest[at..]
                        .bytes()
                        .take(3)
                        .take_while(|b| (b'0'..=b'7').contains(b))
                        .count();
                    Some((octal, 8))
                }
                _ => None,
            };
            if let Some((length, radix)) = code {
                let from = if radix == 8 { at } else { at + 1 };
                let digits = rest
                    .get(from..from + length)
                    .filter(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
                let Some(value) = digits
                    .and_then(|digits| u32::from_str_radix(digits, radix).ok())
                    .and_then(char::from_u32)
                else {
                    return Err(Fault::expected("the code of a character", format!("\\{escape}")));
                };
                text.push(value);
                while chars.next_if(|&(next, _)| next < from + length).is_some() {}
                continue;
            }
            match escape {
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'a' => text.push('\x07'),
                'b' => text.push('\x08'),
                'f' => text.push('\x0c'),
                'v' => text.push('\x0b'),
                '\\' | '\'' | '"' => text.push(escape),
                other => text.extend(['\\', other]),
            }
        }
        Err(Fault::expected(format!("{quote} at the end of a string"), "the end of the template"))
    }
}
