//! Detokenisation of tokens that arrive one at a time.

use thiserror::Error;

use crate::id::TokenId;

/// Turns tokens into text.
///
/// Implemented for closures, and for [`Tokenizer`](crate::llama::Tokenizer) if the feature `llama` is enabled.
///
/// ```
/// use esamp::{Detokenize, TokenId, errors::TextError};
///
/// struct Words(Vec<String>);
///
/// impl Detokenize for Words {
///     fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
///         let word = |&token: &TokenId| {
///             let word = self.0.get(token as usize).map(String::as_str);
///             word.ok_or_else(|| TextError::new(format!("expected a token below {}, got {token}", self.0.len())))
///         };
///         tokens.iter().map(word).collect()
///     }
/// }
///
/// let words = Words(["to", " be", " or", " not"].map(String::from).to_vec());
/// assert_eq!(words.decode(&[0, 1, 2, 3])?, "to be or not");
/// assert!(words.decode(&[4]).is_err());
/// # Ok::<(), TextError>(())
/// ```
pub trait Detokenize: Send + Sync {
    /// Decodes a sequence of tokens. Bytes that are not (yet) valid UTF-8 become U+FFFD.
    ///
    /// # Errors
    ///
    /// [`TextError`] with the tokenizer's message.
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError>;

    /// The special token with this text, such as `<|im_end|>`. [`decode`](Self::decode) skips special tokens, so that
    /// a stop string with the text of one could not be found in the text of a completion. By default there are none.
    fn special_token(&self, _text: &str) -> Option<TokenId> {
        None
    }

    /// The bytes that a token adds to the text, if tokens may end inside of a character. A token without text, such as
    /// a special token, has an empty list. With them, a [`TextStream`] sees which bytes may still become a character;
    /// without, it infers that from the U+FFFD at the end of the text.
    ///
    /// They are those of a token in the middle of a text: a tokenizer may drop a space at the beginning, and
    /// [`decode`](Self::decode) then does. The bytes of an encoded text, one token after the other, are those of the
    /// text.
    ///
    /// A detokenizer knows the bytes of all tokens or, as by default, `None` of any.
    fn token_bytes(&self, _token: TokenId) -> Option<Vec<u8>> {
        None
    }
}

impl<F: Fn(&[TokenId]) -> Result<String, TextError> + Send + Sync> Detokenize for F {
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        self(tokens)
    }
}

impl<T: Detokenize + ?Sized> Detokenize for std::sync::Arc<T> {
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        (**self).decode(tokens)
    }

    fn special_token(&self, text: &str) -> Option<TokenId> {
        (**self).special_token(text)
    }

    fn token_bytes(&self, token: TokenId) -> Option<Vec<u8>> {
        (**self).token_bytes(token)
    }
}

/// The text of a growing token sequence, in pieces.
///
/// A character may be spread over several tokens; its piece is returned with the last of them. The pieces together
/// are the text of all tokens, unless the detokenizer changes text that has already been shown: `ByteFallback`
/// decodes a run of bytes as a whole, and one invalid byte turns the whole run into U+FFFD. Text that has been shown
/// then stays, and only the bytes after it become U+FFFD.
///
/// Bytes that never become a character are shown as U+FFFD. If the detokenizer knows the
/// [bytes of its tokens](Detokenize::token_bytes), only those that may still become a character are held back: at most
/// the first three of one. Otherwise text that ends with U+FFFD is held back for three tokens.
///
/// Cost: each token decodes a bounded number of tokens, for every sequence.
#[derive(Clone, Debug, Default)]
pub struct TextStream {
    /// The tokens that were shown last. Tokenizers depend on what precedes a token (a space is dropped at the
    /// beginning of a text), so that the pending tokens are decoded after these.
    context: Vec<TokenId>,
    /// The text of `context` alone.
    before: String,
    /// The tokens whose text has not been shown.
    pending: Vec<TokenId>,
    /// The beginning of the text of `pending` that has been shown all the same: a token can end one character and
    /// begin another.
    shown: String,
    /// The rest of the text of `pending`, which ends inside a character. Empty if nothing is pending.
    held: String,
}

/// The largest number of tokens that a character without its last byte can be spread over.
const INSIDE_A_CHARACTER: usize = 3;

/// The largest number of pending tokens, and of tokens without text that are kept. Only a detokenizer whose texts
/// cannot be split leads to more than [`INSIDE_A_CHARACTER`] pending ones.
const MOST_PENDING: usize = 16;

impl TextStream {
    /// Adds the next token and returns the text that can be shown now.
    ///
    /// # Errors
    ///
    /// Any error of the detokenizer.
    pub fn push(
        &mut self,
        token: TokenId,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        match detokenizer.token_bytes(token) {
            Some(bytes) if bytes.is_empty() => Ok(String::new()),
            Some(_) => self.push_bytes(token, detokenizer),
            None => self.push_text(token, detokenizer),
        }
    }

    /// Adds a token of a detokenizer that knows the bytes of its tokens. Shows all but the bytes that may still become
    /// a character.
    fn push_bytes(
        &mut self,
        token: TokenId,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        self.pending.push(token);
        let bytes = |&token: &TokenId| detokenizer.token_bytes(token).unwrap_or_default();
        let bytes: Vec<Vec<u8>> = self.pending.iter().map(bytes).collect();
        let incomplete = incomplete(&bytes.concat());
        // The tokens before those that hold the incomplete character.
        let (mut count, mut left) = (bytes.len(), incomplete as isize);
        while left > 0 && count > 0 {
            count -= 1;
            left -= bytes[count].len() as isize;
        }
        let piece = self.text_of(bytes.len(), detokenizer)?;
        let new =
            |settled: &str, shown: &str| settled.strip_prefix(shown).unwrap_or(settled).to_owned();
        if left < 0 {
            // The first of the others also ends a character. It stays, without what came before it.
            let settled = settled(&piece);
            let new = new(settled, &self.shown);
            self.pending.drain(..count);
            self.context.clear();
            self.before.clear();
            let rest = detokenizer.decode(&self.pending)?;
            let settled = self::settled(&rest);
            settled.clone_into(&mut self.shown);
            rest[settled.len()..].clone_into(&mut self.held);
            return Ok(new);
        }
        if count == 0 {
            self.held = piece;
            return Ok(String::new());
        }
        let first =
            if count == bytes.len() { piece.clone() } else { self.text_of(count, detokenizer)? };
        let held = match piece.strip_prefix(&first) {
            Some(rest) => rest.to_owned(),
            None => detokenizer.decode(&self.pending[count..])?,
        };
        let new = new(&first, &std::mem::take(&mut self.shown));
        self.show(count, new, held, detokenizer)
    }

    /// Adds a token of a detokenizer that does not know the bytes of its tokens.
    fn push_text(
        &mut self,
        token: TokenId,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        self.pending.push(token);
        let piece = self.text_of(self.pending.len(), detokenizer)?;
        if piece.is_empty() && self.held.is_empty() {
            return self.add_without_text(token, detokenizer);
        }
        // Fewer characters than before, the last of which is U+FFFD: the text has that character itself, and with its
        // last byte `ByteFallback` turns one U+FFFD per byte into it.
        let is_shorter = piece.chars().count() < self.held.chars().count();
        if !piece.ends_with(char::REPLACEMENT_CHARACTER) || is_shorter {
            return self.show(self.pending.len(), piece, String::new(), detokenizer);
        }
        // A byte that continues a character does not change the text either, but has a text when it is alone.
        if piece == self.held && detokenizer.decode(&[token])?.is_empty() {
            self.pending.pop();
            return Ok(String::new());
        }
        self.held = piece;
        if self.pending.len() <= INSIDE_A_CHARACTER {
            return Ok(String::new());
        }
        self.show_what_is_final(detokenizer)
    }

    /// Ends the stream. Returns the text that was held back, including an incomplete character.
    pub fn finish(self) -> String {
        self.held
    }

    /// The text of the first `count` pending tokens.
    fn text_of(&self, count: usize, detokenizer: &dyn Detokenize) -> Result<String, TextError> {
        let pending = &self.pending[..count];
        let after = detokenizer.decode(&[&self.context, pending].concat())?;
        match after.strip_prefix(&self.before) {
            Some(piece) => Ok(piece.to_owned()),
            // The new tokens changed the text of the old ones, so only their own text can be shown.
            None => detokenizer.decode(pending),
        }
    }

    /// Adds a token without text, such as a special token. It is dropped: otherwise a run of such tokens would be
    /// decoded again with every new one.
    ///
    /// Before the first text, some are kept: a token that is only a space has no text there, but lets the next token
    /// keep its own.
    fn add_without_text(
        &mut self,
        token: TokenId,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        self.pending.clear();
        let is_special = !self.before.is_empty() && detokenizer.decode(&[token])?.is_empty();
        if !is_special && self.context.len() < MOST_PENDING {
            self.context.push(token);
        }
        Ok(String::new())
    }

    /// Shows the pending tokens that no later token can change, although the text ends inside a character: those
    /// before the last few, split where the texts of both parts together are the text of the whole.
    fn show_what_is_final(&mut self, detokenizer: &dyn Detokenize) -> Result<String, TextError> {
        for left in 1..=INSIDE_A_CHARACTER {
            let count = self.pending.len() - left;
            let first = self.text_of(count, detokenizer)?;
            let rest = detokenizer.decode(&self.pending[count..])?;
            let is_split = !first.is_empty()
                && self.held.strip_prefix(&first).is_some_and(|after| after == rest);
            if is_split {
                return self.show(count, first, rest, detokenizer);
            }
        }
        if self.pending.len() < MOST_PENDING {
            return Ok(String::new());
        }
        let piece = std::mem::take(&mut self.held);
        self.show(self.pending.len(), piece, String::new(), detokenizer)
    }

    /// Makes the first `count` pending tokens the context. `piece` is their text, `held` that of the others.
    fn show(
        &mut self,
        count: usize,
        piece: String,
        held: String,
        detokenizer: &dyn Detokenize,
    ) -> Result<String, TextError> {
        self.context = self.pending.drain(..count).collect();
        self.before = detokenizer.decode(&self.context)?;
        self.held = held;
        Ok(piece)
    }
}

/// A text without the incomplete character at its end.
fn settled(text: &str) -> &str {
    text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(text)
}

/// The number of bytes at the end that may become a character with more.
fn incomplete(mut bytes: &[u8]) -> usize {
    while let Err(error) = std::str::from_utf8(bytes) {
        let invalid = &bytes[error.valid_up_to()..];
        match error.error_len() {
            Some(length) => bytes = &invalid[length..],
            None => return invalid.len(),
        }
    }
    0
}

/// Tokens that could not be turned into text.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("detokenizer: {0}")]
pub struct TextError(String);

impl TextError {
    /// Creates an error from a tokenizer's message.
    pub fn new(message: impl std::fmt::Display) -> Self {
        Self(message.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A token is a byte.
    fn bytes(tokens: &[TokenId]) -> Result<String, TextError> {
        let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn pieces(tokens: &[TokenId]) -> Vec<String> {
        let mut stream = TextStream::default();
        let mut pieces: Vec<String> =
            tokens.iter().map(|&token| stream.push(token, &bytes).unwrap()).collect();
        pieces.push(stream.finish());
        pieces
    }

    fn tokens(text: &str) -> Vec<TokenId> {
        text.bytes().map(TokenId::from).collect()
    }

    #[test]
    fn a_character_comes_with_its_last_byte() {
        assert_eq!(pieces(&tokens("aé🦀")), ["a", "", "é", "", "", "", "🦀", ""]);
    }

    #[test]
    fn an_incomplete_character_comes_at_the_end() {
        assert_eq!(pieces(&[97, 0xf0, 0x9f]).concat(), "a\u{fffd}");
    }

    #[test]
    fn words_keep_the_space_that_a_tokenizer_drops_at_the_start() {
        // Like SentencePiece: every word begins with a space, and the first space of a text is dropped.
        let words = |tokens: &[TokenId]| -> Result<String, TextError> {
            let text: String = tokens.iter().map(|token| format!(" w{token}")).collect();
            Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
        };
        let mut stream = TextStream::default();
        let all: Vec<String> = (0..4).map(|token| stream.push(token, &words).unwrap()).collect();
        assert_eq!(all, ["w0", " w1", " w2", " w3"]);
    }

    /// Like `ByteFallback`: a token below 256 is a byte, and a run of bytes is decoded as a whole. Larger tokens are
    /// words, and the first space of a text is dropped.
    fn byte_fallback(tokens: &[TokenId]) -> Result<String, TextError> {
        let mut text = String::new();
        for run in tokens.chunk_by(|a, b| *a < 256 && *b < 256) {
            if run[0] >= 256 {
                text.push_str(&format!(" w{}", run[0]));
                continue;
            }
            let bytes: Vec<u8> = run.iter().map(|&token| token as u8).collect();
            let invalid = "\u{fffd}".repeat(run.len());
            text.push_str(&String::from_utf8(bytes).unwrap_or(invalid));
        }
        Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
    }

    #[test]
    fn an_invalid_byte_after_a_character_does_not_stop_the_text() {
        let mut stream = TextStream::default();
        let tokens = [tokens("😀"), vec![0xf0, 300, 301]].concat();
        let pieces: Vec<String> =
            tokens.iter().map(|&token| stream.push(token, &byte_fallback).unwrap()).collect();
        assert_eq!(pieces, ["", "", "", "😀", "", "\u{fffd} w300", " w301"]);
        assert_eq!(stream.finish(), "");
    }

    /// Special tokens, from 1,000, have no text. The others are those of [`byte_fallback`] or [`bytes`].
    fn without_special(
        tokens: &[TokenId],
        decode: fn(&[TokenId]) -> Result<String, TextError>,
    ) -> Result<String, TextError> {
        let rest: Vec<TokenId> = tokens.iter().copied().filter(|&token| token < 1000).collect();
        decode(&rest)
    }

    /// Pushes tokens. Returns the pieces, the rest, and the largest number of tokens that one push decoded.
    fn counted(
        tokens: &[TokenId],
        decode: fn(&[TokenId]) -> Result<String, TextError>,
    ) -> (Vec<String>, String, usize) {
        let decoded = std::sync::atomic::AtomicUsize::new(0);
        let order = std::sync::atomic::Ordering::Relaxed;
        let counting = |tokens: &[TokenId]| {
            decoded.fetch_add(tokens.len(), order);
            without_special(tokens, decode)
        };
        let mut stream = TextStream::default();
        let mut most = 0;
        let pieces = tokens
            .iter()
            .map(|&token| {
                let before = decoded.load(order);
                let piece = stream.push(token, &counting).unwrap();
                most = most.max(decoded.load(order) - before);
                piece
            })
            .collect();
        (pieces, stream.finish(), most)
    }

    #[test]
    fn half_characters_are_shown_at_most_three_late_and_at_constant_cost() {
        for decode in [bytes, byte_fallback] {
            let (pieces, rest, most) = counted(&[0xe4; 2_000], decode);
            let mut shown = 0;
            for (at, piece) in pieces.iter().enumerate() {
                assert!(piece.chars().all(|c| c == '\u{fffd}'), "{piece:?}");
                shown += piece.chars().count();
                assert!(shown + 3 > at, "{shown} of {}", at + 1);
            }
            assert_eq!(shown + rest.chars().count(), 2_000);
            assert!(most < 64, "{most} tokens decoded for one");
        }
    }

    #[test]
    fn the_replacement_character_itself_is_a_character() {
        for text in ["\u{fffd}Σ", "a\u{fffd}\u{fffd}🦀", "a 🦀"] {
            for decode in [bytes, byte_fallback] {
                let (pieces, rest, _) = counted(&tokens(text), decode);
                assert_eq!(pieces.concat() + &rest, text);
            }
        }
    }

    #[test]
    fn special_tokens_are_forgotten_at_constant_cost() {
        // Before any text, after a word, and inside a character.
        let words = [vec![1000; 2_000], vec![300], vec![1000; 2_000], vec![301]].concat();
        let (pieces, _, most) = counted(&words, byte_fallback);
        assert_eq!(pieces.concat(), "w300 w301");
        assert_eq!(pieces[2_000], "w300");
        assert!(most < 64, "{most} tokens decoded for one");

        let crab = tokens("🦀");
        let inside = [&crab[..2], &[1000; 2_000], &crab[2..]].concat();
        let (pieces, _, most) = counted(&inside, bytes);
        assert_eq!(pieces.concat(), "🦀");
        assert!(most < 64, "{most} tokens decoded for one");
    }

    /// Like SentencePiece: token 0 is a space, every other token has a space and a word.
    #[test]
    fn a_space_at_the_start_lets_the_next_word_keep_its_own() {
        let words = |tokens: &[TokenId]| -> Result<String, TextError> {
            let word = |&token: &TokenId| match token {
                0 => " ".to_owned(),
                1000.. => String::new(),
                _ => format!(" w{token}"),
            };
            let text: String = tokens.iter().map(word).collect();
            Ok(text.strip_prefix(' ').unwrap_or(&text).to_owned())
        };
        let mut stream = TextStream::default();
        let tokens = [vec![0], vec![1000; 100], vec![5, 6]].concat();
        let pieces: Vec<String> =
            tokens.iter().map(|&token| stream.push(token, &words).unwrap()).collect();
        assert_eq!(pieces.concat(), " w5 w6");
    }

    /// Every token ends one invalid sequence and begins another, so that no split gives the text of the whole.
    #[test]
    fn bytes_that_cannot_be_split_are_shown_too() {
        let straddling = |tokens: &[TokenId]| -> Result<String, TextError> {
            let bytes: Vec<u8> = tokens.iter().flat_map(|_| [0xa6, 0xf0]).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let mut stream = TextStream::default();
        let pieces: Vec<String> =
            (0..1_000).map(|token| stream.push(token, &straddling).unwrap()).collect();
        assert!(pieces.iter().all(|piece| piece.chars().count() <= 17));
        let shown = pieces.concat().chars().count();
        assert!(shown > 1_000 - 17, "{shown}");
        assert_eq!(shown + stream.finish().chars().count(), 1_001);
    }

    /// A token of one byte is the byte; larger ones are pairs of bytes and, from 2^16, have no text.
    struct Bytes {
        falls_back: bool,
    }

    impl Bytes {
        /// The text as far as it cannot change any more.
        fn settled(&self, tokens: &[TokenId]) -> String {
            let bytes: Vec<u8> =
                tokens.iter().flat_map(|&token| self.token_bytes(token).unwrap()).collect();
            let end = bytes.len() - incomplete(&bytes);
            String::from_utf8_lossy(&bytes[..end]).into_owned()
        }
    }

    impl Detokenize for Bytes {
        fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
            if self.falls_back {
                return without_special(tokens, byte_fallback);
            }
            let bytes: Vec<u8> =
                tokens.iter().flat_map(|&token| self.token_bytes(token).unwrap()).collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        }

        fn token_bytes(&self, token: TokenId) -> Option<Vec<u8>> {
            Some(match token {
                1000.. if self.falls_back => Vec::new(),
                0..256 => vec![token as u8],
                _ if self.falls_back => format!(" w{token}").into_bytes(),
                0x1_0000.. => Vec::new(),
                _ => vec![(token >> 8) as u8, token as u8],
            })
        }
    }

    #[test]
    fn known_bytes_are_held_back_only_while_they_may_become_a_character() {
        let pieces = |falls_back: bool, tokens: &[TokenId]| {
            let (mut stream, detokenizer) = (TextStream::default(), Bytes { falls_back });
            let mut pieces: Vec<String> =
                tokens.iter().map(|&token| stream.push(token, &detokenizer).unwrap()).collect();
            pieces.push(stream.finish());
            pieces
        };
        let lost = "\u{fffd}";
        for falls_back in [false, true] {
            // The second half of a character cannot follow the first byte of another one.
            let got = pieces(falls_back, &[0xe4; 4]);
            assert_eq!(got, ["", lost, lost, lost, lost]);
            assert_eq!(pieces(falls_back, &[0x80; 2]), [lost, lost, ""]);
            let crab = [&tokens("🦀")[..], &[0xf0]].concat();
            assert_eq!(pieces(falls_back, &crab), ["", "", "", "🦀", "", lost]);
        }
        // Three bytes of one character are one U+FFFD, or one for each byte.
        let begun = [0xf0, 0x9f, 0xa6, 0xe4];
        assert_eq!(pieces(false, &begun), ["", "", "", lost, lost]);
        assert_eq!(pieces(true, &begun), ["", "", "", &lost.repeat(3), lost]);
        assert_eq!(pieces(true, &[0xf0, 300, 301]), ["", "\u{fffd} w300", " w301", ""]);
        // Tokens without text change nothing, also inside of a character.
        assert_eq!(pieces(true, &[1000, 300, 1000, 301]), ["", "w300", "", " w301", ""]);
        assert_eq!(pieces(false, &[0xc3, 0x1_0000, 0xa9]), ["", "", "é", ""]);
        // A token that ends one character and begins another.
        assert_eq!(pieces(false, &[0xe4e4, 0xb8, 0xad]), [lost, "", "中", ""]);
        assert_eq!(pieces(false, &[0xc3, 0xa9e4, 0xb8ad]), ["", "é", "中", ""]);
        assert_eq!(pieces(false, &[0xc3, 0xa9e4, 0x41c3, 0xa9]), ["", "é", "\u{fffd}A", "é", ""]);
    }

    proptest! {
        #[test]
        fn known_bytes_are_shown_as_soon_as_they_are_settled(
            tokens in prop::collection::vec(
                prop_oneof![0u32..256, 0x80u32..0x100, 256u32..0x1_0000, Just(0x1_0000)], 0..60,
            )
        ) {
            let (mut stream, detokenizer) = (TextStream::default(), Bytes { falls_back: false });
            let mut shown = String::new();
            for (at, &token) in tokens.iter().enumerate() {
                shown += &stream.push(token, &detokenizer).unwrap();
                prop_assert_eq!(&shown, &detokenizer.settled(&tokens[..=at]));
            }
            prop_assert_eq!(shown + &stream.finish(), detokenizer.decode(&tokens).unwrap());
        }

        #[test]
        fn known_bytes_in_runs_are_held_back_at_most_while_they_may_become_a_character(
            tokens in prop::collection::vec(
                prop_oneof![3 => 0u32..256, 3 => 0x80u32..0x100, 1 => 256u32..300, 1 => Just(1000)], 0..60,
            )
        ) {
            let (mut stream, detokenizer) = (TextStream::default(), Bytes { falls_back: true });
            for (at, &token) in tokens.iter().enumerate() {
                stream.push(token, &detokenizer).unwrap();
                let bytes: Vec<u8> = tokens[..=at]
                    .iter()
                    .flat_map(|&token| detokenizer.token_bytes(token).unwrap())
                    .collect();
                prop_assert_eq!(stream.pending.len(), incomplete(&bytes));
            }
        }

        #[test]
        fn words_come_at_once_after_any_bytes(
            tokens in prop::collection::vec(prop_oneof![3 => 0u32..256, 1 => 256u32..300], 0..60)
        ) {
            let mut stream = TextStream::default();
            for (at, &token) in tokens.iter().enumerate() {
                let piece = stream.push(token, &byte_fallback).unwrap();
                if token >= 256 {
                    let word = if at == 0 { format!("w{token}") } else { format!(" w{token}") };
                    prop_assert!(piece.ends_with(&word), "{piece:?} for {word:?}");
                }
            }
        }

        #[test]
        fn the_pieces_of_valid_bytes_are_their_text(text in "\\PC{0,40}", word in 256u32..300) {
            let mut stream = TextStream::default();
            let tokens = [tokens(&text), vec![word]].concat();
            let pieces: Result<String, TextError> =
                tokens.iter().map(|&token| stream.push(token, &byte_fallback)).collect();
            prop_assert_eq!(pieces.unwrap(), byte_fallback(&tokens).unwrap());
        }

        #[test]
        fn the_pieces_of_valid_text_are_the_text(text in "\\PC{0,40}") {
            prop_assert_eq!(pieces(&tokens(&text)).concat(), text);
        }

        #[test]
        fn the_pieces_of_any_bytes_are_their_text(bytes_in in prop::collection::vec(0u32..256, 0..60)) {
            prop_assert_eq!(pieces(&bytes_in).concat(), bytes(&bytes_in).unwrap());
        }
    }
}
