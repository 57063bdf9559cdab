//! Stop strings in text that arrives in pieces.

/// Finds stop strings across piece boundaries. Holds back text that may be the beginning of one.
#[derive(Clone, Debug, Default)]
pub(super) struct StopScanner {
    stops: Vec<String>,
    held: String,
}

/// Result of scanning one piece of text.
#[derive(Debug, PartialEq)]
pub(super) enum Scan {
    /// Text that can be shown; no stop string so far.
    Show(String),
    /// A stop string was found; `text` is the text before it.
    Stop { text: String, stop: String },
}

impl StopScanner {
    /// Creates a scanner for these strings. Empty strings are ignored.
    pub(super) fn new(stops: &[String]) -> Self {
        let stops = stops.iter().filter(|stop| !stop.is_empty()).cloned().collect();
        Self { stops, held: String::new() }
    }

    /// Adds the next piece of text.
    pub(super) fn push(&mut self, piece: &str) -> Scan {
        // Text that was shown is not searched again: it was shown because no stop string can begin in it.
        self.held.push_str(piece);
        let found =
            self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)));
        // The first in the text and not in the list: what follows it must not be shown.
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            let stop = stop.clone();
            self.held.truncate(at);
            return Scan::Stop { text: std::mem::take(&mut self.held), stop };
        }
        let safe = self.held.len() - self.could_become_a_stop();
        let rest = self.held.split_off(safe);
        Scan::Show(std::mem::replace(&mut self.held, rest))
    }

    /// Returns the text that was held back. Call it when no more text follows.
    pub(super) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Length in bytes of the longest suffix of the held text that is a prefix of a stop string.
    fn could_become_a_stop(&self) -> usize {
        let ends = self.held.char_indices().map(|(at, _)| &self.held[at..]);
        let begins = |end: &&str| self.stops.iter().any(|stop| stop.starts_with(*end));
        // The suffixes are tried longest first. They begin at characters, so no character is split.
        ends.into_iter().find(begins).map_or(0, str::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut scanner = StopScanner::new(&stops);
        let mut shown = Vec::new();
        for piece in pieces {
            match scanner.push(piece) {
                Scan::Show(text) => shown.push(text),
                Scan::Stop { text, stop } => {
                    shown.push(text);
                    return (shown, Some(stop));
                }
            }
        }
        shown.push(scanner.finish());
        (shown, None)
    }

    #[test]
    fn a_stop_string_may_be_spread_over_pieces() {
        let (shown, stop) = scan(&["\n\nQ:"], &["A: 4", "\n", "\n", "Q", ": next"]);
        assert_eq!(shown, ["A: 4", "", "", "", ""]);
        assert_eq!(stop.as_deref(), Some("\n\nQ:"));
    }

    #[test]
    fn text_that_was_held_back_is_shown_if_it_is_no_stop_string() {
        let (shown, stop) = scan(&["END"], &["the E", "N", "d"]);
        assert_eq!(shown, ["the ", "", "ENd", ""]);
        assert_eq!(stop, None);
        assert_eq!(scan(&["END"], &["EN"]).0, ["", "EN"]);
    }

    #[test]
    fn the_first_stop_in_the_text_wins() {
        assert_eq!(scan(&["b", "a"], &["xaby"]), (vec!["x".to_owned()], Some("a".to_owned())));
        assert_eq!(scan(&["ab", "bc"], &["xa", "bc"]).1.as_deref(), Some("ab"));
    }

    #[test]
    fn characters_stay_whole() {
        assert_eq!(scan(&["é!"], &["café", "?"]).0, ["caf", "é?", ""]);
    }

    #[test]
    fn without_stop_strings_nothing_is_held_back() {
        assert_eq!(scan(&["", ""], &["a", "b"]).0, ["a", "b", ""]);
    }
}
