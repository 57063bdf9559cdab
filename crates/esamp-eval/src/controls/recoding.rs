//! Recoding-Decoding: random beginnings of sentences, and a random word in the prompt.

use std::sync::Arc;

use esamp::{CompletionId, TokenId, TokenMask, TokenMasker, errors::RowError};
use esamp_programs::failure::Failure;
use sha2::{Digest, Sha256};

use crate::token_texts::TokenTexts;

/// Recoding-Decoding (arXiv 2603.19519): a random word in front of the prompt, and a random stem of three letters forced at
/// the beginning of each sentence of the completion.
///
/// Both parts of the paper are here. What is not in the outline of it that was available is ours:
///
/// - **The priming phrase** is `Related to WORD: ` in front of the message, with one of [`WORDS`] for each completion.
///   Completions of a problem therefore have different prompts, and are requests of their own.
/// - **The stems** are the first three letters of those tokens of the vocabulary that begin a capitalised word of at least
///   five letters, each as likely as any other.
/// - **Forced** means that all other tokens are masked: the model chooses among the tokens that agree with the stem, so
///   `Pas` may begin as `Pas`, `Past` or `P`. A sentence begins at the beginning of the completion, and after `.`, `!` or
///   `?` that follows two letters or a closing quotation mark. There the completion may also end.
///
/// Stem and word are a function of the seed, the row and the number of the sentence alone.
#[derive(Clone, Debug)]
pub struct Recoding {
    texts: Arc<TokenTexts>,
    stems: Arc<[String]>,
}

/// Common nouns for the priming phrase.
pub const WORDS: [&str; 64] = [
    "ANIMAL", "ART", "BANK", "BIRD", "BOAT", "BODY", "BREAD", "BRIDGE", "CASTLE", "CHILD", "CITY",
    "CLOCK", "CLOTHES", "CLOUD", "COLOUR", "DANCE", "DESERT", "DOCTOR", "DREAM", "EARTH", "ENGINE",
    "FAMILY", "FARM", "FIRE", "FISH", "FLOWER", "FOOD", "FOREST", "FRIEND", "GAME", "GARDEN",
    "GOLD", "HEALTH", "HISTORY", "HOUSE", "ICE", "ISLAND", "KING", "LANGUAGE", "LAW", "LIGHT",
    "MACHINE", "MARKET", "MONEY", "MOON", "MOUNTAIN", "MUSIC", "NIGHT", "OCEAN", "PAPER", "PLANT",
    "RIVER", "ROAD", "SCHOOL", "SHIP", "SKY", "SPORT", "STONE", "STORM", "TRAIN", "TREE", "WAR",
    "WATER", "WINTER",
];

impl Recoding {
    /// For a vocabulary.
    ///
    /// # Errors
    ///
    /// A vocabulary without stems.
    pub fn new(texts: Arc<TokenTexts>) -> Result<Self, Failure> {
        let stems = stems(&texts);
        if stems.is_empty() {
            return Err(Failure::usage(
                "recoding: expected a vocabulary with capitalised words, got none".to_owned(),
                "remove the arm",
            ));
        }
        Ok(Self { texts, stems: stems.into() })
    }

    /// The message with the priming phrase of a row.
    pub fn primed(message: &str, seed: u64, row: u64) -> String {
        let word = WORDS[draw("word", seed, row, 0, WORDS.len())];
        format!("Related to {word}: {message}")
    }

    /// The masker of a row whose completion begins with `opening`, after which the first sentence begins.
    pub fn masker(&self, opening: &str, seed: u64, row: u64) -> RecodingMasker {
        RecodingMasker { recoding: self.clone(), opening: opening.to_owned(), seed, row }
    }

    fn stem(&self, seed: u64, row: u64, sentence: u64) -> &str {
        &self.stems[draw("stem", seed, row, sentence, self.stems.len())]
    }
}

/// Forces the stems of one row. See [`Recoding::masker`].
#[derive(Clone, Debug)]
pub struct RecodingMasker {
    recoding: Recoding,
    opening: String,
    seed: u64,
    row: u64,
}

impl TokenMasker for RecodingMasker {
    fn mask(
        &self,
        _row: CompletionId,
        generated: &[TokenId],
    ) -> Result<Option<TokenMask>, RowError> {
        let texts = &self.recoding.texts;
        let text = texts.text(generated);
        if let Some(mask) = texts.opening(&self.opening, &text)? {
            return Ok(Some(mask));
        }
        let (sentence, begun) = last_sentence(text.strip_prefix(&self.opening).unwrap_or(&text));
        let word = begun.trim_start_matches(before_word);
        let stem = self.recoding.stem(self.seed, self.row, sentence);
        let Some(left) = stem.strip_prefix(word).filter(|left| !left.is_empty()) else {
            return Ok(None);
        };
        let is_first = sentence == 0;
        let has_space = begun.contains(char::is_whitespace);
        let fits = |token: &str| {
            if !word.is_empty() {
                return agrees(token, left);
            }
            let body = token.trim_start_matches(before_word);
            let spaced = is_first || has_space || token.starts_with(char::is_whitespace);
            match body.is_empty() {
                // The rest of the sentence before: a quotation mark or a line break, once.
                true => !is_first && begun.is_empty() && !token.is_empty(),
                false => spaced && agrees(body, left),
            }
        };
        // A completion ends where a sentence would begin.
        let ends = !is_first && word.is_empty();
        texts.mask(|token, is_stop| if is_stop { ends } else { fits(token) }).map(Some)
    }
}

/// Whether a token can be the next of a text that goes on with `left`.
fn agrees(token: &str, left: &str) -> bool {
    !token.is_empty() && (token.starts_with(left) || left.starts_with(token))
}

/// Whether a character can stand between the end of a sentence and the first word of the next.
fn before_word(c: char) -> bool {
    c.is_whitespace() || "\"'“”‘’()*".contains(c)
}

/// The number of the last sentence, from 0, and the text since the one before it has ended.
fn last_sentence(text: &str) -> (u64, &str) {
    let (mut sentence, mut start) = (0, 0);
    let mut before = [None, None];
    for (at, c) in text.char_indices() {
        if matches!(c, '.' | '!' | '?') {
            let is_word = before.iter().all(|c| c.is_some_and(char::is_alphabetic));
            let is_quote = before[1].is_some_and(|c| "\"”’)".contains(c));
            if is_word || is_quote {
                sentence += 1;
                start = at + c.len_utf8();
            }
        }
        before = [before[1], Some(c)];
    }
    (sentence, &text[start..])
}

/// The beginnings of words in a vocabulary, each once, in alphabetical order.
fn stems(texts: &TokenTexts) -> Vec<String> {
    let stem = |token: &str| -> Option<String> {
        let word = token.strip_prefix(' ')?;
        let mut letters = word.chars();
        let is_word = letters.next()?.is_ascii_uppercase()
            && letters.all(|letter| letter.is_ascii_lowercase());
        (is_word && word.len() >= 5).then(|| word[..3].to_owned())
    };
    let mut stems: Vec<String> = texts.iter().filter_map(stem).collect();
    stems.sort_unstable();
    stems.dedup();
    stems
}

/// A number below `count`, which is not 0.
fn draw(what: &str, seed: u64, row: u64, sentence: u64, count: usize) -> usize {
    let mut hash = Sha256::new();
    hash.update(b"esamp-eval recoding 1 ");
    for number in [seed, row, sentence] {
        hash.update(number.to_le_bytes());
    }
    hash.update(what);
    let [a, b, c, d, e, f, g, h, ..] = <[u8; 32]>::from(hash.finalize());
    // The modulo bias is below 2^-50 and negligible.
    (u64::from_le_bytes([a, b, c, d, e, f, g, h]) % count as u64) as usize
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const STOP: TokenId = 0;

    /// A vocabulary with one stem: `Pas`.
    fn vocabulary() -> Vec<&'static str> {
        vec![
            "", " Pasta", "P", "a", "as", "Past", "s", " P", "Dog", ".", " ", "\n", "\"", "!",
            " Pa", "\" Past", "er", "it", " it", "Pad", "3", "Answer", ":", "An",
        ]
    }

    fn recoding() -> Recoding {
        let texts = TokenTexts::of_texts(vocabulary().into_iter().map(str::to_owned), &[STOP]);
        Recoding::new(Arc::new(texts)).unwrap()
    }

    /// The tokens that are allowed after a text; `None` for all of them.
    fn allowed(opening: &str, tokens: &[&str]) -> Option<Vec<&'static str>> {
        let all = vocabulary();
        let id = |token: &&str| all.iter().position(|one| one == token).unwrap() as TokenId;
        let generated: Vec<TokenId> = tokens.iter().map(id).collect();
        let masker = recoding().masker(opening, 3, 4);
        let mask = masker.mask(CompletionId::new(0, 0), &generated).unwrap()?;
        let allowed = (0..all.len()).filter(|&token| mask.allows(token as TokenId));
        Some(allowed.map(|token| all[token]).collect())
    }

    #[test]
    fn a_completion_begins_with_its_stem_in_any_tokens() {
        let first = [" Pasta", "P", "Past", " P", " Pa", "\" Past"];
        assert_eq!(allowed("", &[]).unwrap(), first, "and does not end or begin with a blank");
        assert_eq!(allowed("", &["P"]).unwrap(), ["a", "as"]);
        assert_eq!(allowed("", &["P", "a"]).unwrap(), ["s"]);
        for done in [&["P", "as"][..], &["Past"], &[" Pasta"], &["Past", "er", " it"]] {
            assert_eq!(allowed("", done), None, "{done:?}");
        }
    }

    #[test]
    fn so_does_each_sentence_or_the_completion_ends() {
        // After a full stop a space is needed; a quotation mark or a line break may come first, once.
        let next = ["", " Pasta", " P", " ", "\n", "\"", " Pa"];
        assert_eq!(allowed("", &["Past", "er", "."]).unwrap(), next);
        let spaced = ["", " Pasta", "P", "Past", " P", " Pa", "\" Past"];
        assert_eq!(allowed("", &["Past", "er", ".", "\n"]).unwrap(), spaced);
        assert_eq!(allowed("", &["Past", "er", ".", "\""]).unwrap(), ["", " Pasta", " P", " Pa"]);
        assert_eq!(allowed("", &["Past", "er", ".", " P"]).unwrap(), ["a", "as"]);
        assert_eq!(allowed("", &["Past", "er", ".", " Pa", "s"]), None);
        assert_eq!(allowed("", &["Past", "3", "."]), None, "a number");
        assert_eq!(allowed("", &["Past", "er", "3", ".", "3"]), None);
        assert_eq!(allowed("", &["Past", "er", "\"", "!"]).unwrap(), next);
    }

    #[test]
    fn an_opening_comes_before_the_stem() {
        assert_eq!(allowed("Answer:", &[]).unwrap(), ["Answer"]);
        assert_eq!(allowed("Answer:", &["Answer"]).unwrap(), [":"]);
        let first = [" Pasta", "P", "Past", " P", " Pa", "\" Past"];
        assert_eq!(allowed("Answer:", &["Answer", ":"]).unwrap(), first);
        assert_eq!(allowed("Answer:", &["Answer", ":", "Past"]), None);
    }

    #[test]
    fn sentences_by_hand() {
        for (text, number, begun) in [
            ("", 0, ""),
            ("It is", 0, "It is"),
            ("It is. He", 1, " He"),
            ("Is it? No! Well", 2, " Well"),
            ("It is 3.5 or 4. I", 0, "It is 3.5 or 4. I"),
            ("J. R. is", 0, "J. R. is"),
            ("\"No\". She", 1, " She"),
            ("Wait... what", 1, ".. what"),
        ] {
            assert_eq!(last_sentence(text), (number, begun), "{text}");
        }
    }

    #[test]
    fn stems_depend_on_seed_row_and_sentence_alone() {
        let words = ["Apple", "Bread", "Candle", "Desert", "Engine", "Forest", "Garden", "House"];
        let texts = words.map(|word| format!(" {word}"));
        let other = [" Pear", " Ice", "Bicycle", " lower", " McAdam", " Élite", " UPPER"];
        let texts = texts.into_iter().chain(other.map(str::to_owned));
        let recoding = Recoding::new(Arc::new(TokenTexts::of_texts(texts, &[]))).unwrap();
        let stems = ["App", "Bre", "Can", "Des", "Eng", "For", "Gar", "Hou"];
        assert_eq!(*recoding.stems, stems);
        let of = |seed, row, sentence| recoding.stem(seed, row, sentence).to_owned();
        assert_eq!(of(1, 2, 3), of(1, 2, 3));
        for change in [[1, 0, 0], [0, 1, 0], [0, 0, 1]] {
            let along = |n: u64| of(n * change[0], n * change[1], n * change[2]);
            let counts = stems.map(|stem| (0..800).filter(|&n| along(n) == stem).count());
            // 100 each, with a standard deviation of 9.4.
            assert!(counts.iter().all(|count| (60..140).contains(count)), "{change:?} {counts:?}");
        }
        let words: HashSet<String> = (0..64).map(|row| Recoding::primed("Hi", 0, row)).collect();
        assert!(words.len() > 30 && words.iter().all(|text| text.ends_with(": Hi")), "{words:?}");
    }

    #[test]
    fn a_vocabulary_without_words_is_refused() {
        let texts = TokenTexts::of_texts(["a", "b"].map(str::to_owned), &[]);
        let error = Recoding::new(Arc::new(texts)).unwrap_err().to_string();
        let expected = "error: recoding: expected a vocabulary with capitalised words, got none";
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(HashSet::from(WORDS).len(), WORDS.len());
    }
}
