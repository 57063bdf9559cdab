//! Text in columns of a fixed width.

use console::{measure_text_width, truncate_str};

/// The separator between two columns.
pub const GAP: &str = "  │  ";

/// Joins columns line by line, padding each line to the column width.
pub fn side_by_side(columns: &[Vec<String>], width: usize) -> Vec<String> {
    let height = columns.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |column: &Vec<String>, line: usize| {
        let text = column.get(line).map(String::as_str).unwrap_or_default();
        let fill = width.saturating_sub(measure_text_width(text));
        format!("{text}{}", " ".repeat(fill))
    };
    (0..height)
        .map(|line| columns.iter().map(|c| cell(c, line)).collect::<Vec<_>>().join(GAP))
        .collect()
}

/// Wraps a text into lines of at most `width` columns, at word boundaries where possible. Control
/// characters are escaped.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let text = printable(text);
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let mut word = word.to_owned();
            let gap = usize::from(!line.is_empty());
            if measure_text_width(&line) + gap + measure_text_width(&word) > width {
                if !line.is_empty() {
                    lines.push(std::mem::take(&mut line));
                }
                while measure_text_width(&word) > width {
                    let head = truncate_str(&word, width, "").into_owned();
                    if head.is_empty() {
                        break;
                    }
                    word = word[head.len()..].to_owned();
                    lines.push(head);
                }
            } else if gap == 1 {
                line.push(' ');
            }
            line.push_str(&word);
        }
        lines.push(line);
    }
    lines
}

/// Escapes control characters and characters that change the writing direction, because model output must
/// not control the terminal.
pub(crate) fn printable(text: &str) -> String {
    let steers = |c: char| {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || c.is_control() && !c.is_whitespace()
    };
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if steers(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}
