//! Text and numbers in HTML.

/// Escapes a text for an element or a quoted attribute. Model output must not break the page: control
/// characters, and characters that change the writing direction, are written as escapes.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' | '\t' => out.push(c),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_unicode()),
            c => out.push(c),
        }
    }
    out
}

/// Formats a number with three significant digits and a typographic minus sign.
pub(super) fn number(x: f64) -> String {
    let x = if x == 0.0 { 0.0 } else { x }; // −0 becomes 0
    let size = x.abs();
    let digits = if size == 0.0 || size >= 100.0 {
        0
    } else {
        (2 - size.log10().floor() as i32).clamp(0, 6) as usize
    };
    let text = if (1e-4..1e6).contains(&size) || size == 0.0 {
        format!("{x:.digits$}")
    } else {
        format!("{x:.1e}")
    };
    text.replace('-', "−")
}

/// Formats a log-probability as a percentage.
pub(super) fn percent(log_prob: f64) -> String {
    format!("{} %", number(100.0 * log_prob.exp()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_significant_digits() {
        for (x, text) in [
            (0.0, "0"),
            (-0.0, "0"),
            (1234.6, "1235"),
            (-12.345, "−12.3"),
            (1.0, "1.00"),
            (0.98765, "0.988"),
            (0.000_123_4, "0.000123"),
            (-0.000_012, "−1.2e−5"),
            (2.5e7, "2.5e7"),
        ] {
            assert_eq!(number(x), text);
        }
        assert_eq!(
            [percent(0.0), percent(0.5f64.ln()), percent(f64::NEG_INFINITY)],
            ["100 %", "50.0 %", "0 %"]
        );
    }
}
