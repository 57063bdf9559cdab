//! Finds numbers in a text.

/// All numbers written in digits, in order and in a normal form: `1,024`, `01024` and `1024.0` all become
/// `1024`.
///
/// A comma belongs to a number if it separates groups of three digits (the first group may be shorter), a
/// point if a digit follows it. A hyphen before a number is a minus sign unless a letter or digit precedes
/// it.
pub fn numbers(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    // The number of digits from a position on.
    let run = |at: usize| characters.iter().skip(at).take_while(|c| c.is_ascii_digit()).count();
    let mut found = Vec::new();
    let mut at = 0;
    while at < characters.len() {
        let mut group = run(at);
        if group == 0 {
            at += 1;
            continue;
        }
        let start = at;
        let mut whole: String = characters[at..at + group].iter().collect();
        at += group;
        while group <= 3 && characters.get(at) == Some(&',') && run(at + 1) == 3 {
            whole.extend(&characters[at + 1..at + 4]);
            (group, at) = (3, at + 4);
        }
        let mut fraction = String::new();
        if characters.get(at) == Some(&'.') && run(at + 1) > 0 {
            let end = at + 1 + run(at + 1);
            fraction.extend(&characters[at + 1..end]);
            at = end;
        }
        let hyphen = start > 0 && ['-', '−'].contains(&characters[start - 1]);
        let is_minus = hyphen && (start < 2 || !characters[start - 2].is_alphanumeric());
        found.push(normal(&whole, &fraction, is_minus));
    }
    found
}

/// The last whole number in a text that is in the range `could_be`. This finds the answer of a text that
/// reasons first, even if it repeats the question afterwards.
pub fn last_number(text: &str, could_be: std::ops::RangeInclusive<u64>) -> Option<String> {
    let is_possible = |number: &String| number.parse().is_ok_and(|n: u64| could_be.contains(&n));
    numbers(text).into_iter().rfind(is_possible)
}

fn normal(whole: &str, fraction: &str, is_minus: bool) -> String {
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let fraction = fraction.trim_end_matches('0');
    let mut number = match fraction {
        "" => whole.to_owned(),
        _ => format!("{whole}.{fraction}"),
    };
    if is_minus && number != "0" {
        number.insert(0, '-');
    }
    number
}
