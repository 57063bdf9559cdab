//! What the last text of a completion is: with special tokens, half characters and a detokenizer that fails.

use super::decode_loop::{counter, digits, run, sampler};
use crate::device;
use esamp::{
    Completion, Decoder, Detokenize, FinishReason, Request, Sampling, TokenId, errors::TextError,
    testing::ScriptedLm,
};

/// Tokens 0 to 6 are digits, 7 is the special token `<end>`, 8 is the letter a with the first byte of a character of
/// three bytes, and 9 is that byte alone.
pub(super) struct Halves;

impl Detokenize for Halves {
    fn decode(&self, tokens: &[TokenId]) -> Result<String, TextError> {
        let bytes = tokens.iter().flat_map(|&token| match token {
            7 => vec![],
            8 => vec![b'a', 0xe4],
            9 => vec![0xe4],
            digit => vec![b'0' + digit as u8],
        });
        Ok(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
    }

    fn special_token(&self, text: &str) -> Option<TokenId> {
        (text == "<end>").then_some(7)
    }
}

fn request(prompt: TokenId, stops: &[&str]) -> Request {
    let greedy = Sampling::paper().with_beta(0.0).with_temperature(0.0);
    let request = Request::new(vec![prompt]).with_sampling(greedy).with_max_new_tokens(6);
    request.with_stop_strings(stops.iter().copied())
}

fn completion(model: ScriptedLm, request: Request) -> Completion {
    let mut decoder = Decoder::new(model, sampler(10)).unwrap().with_detokenizer(Halves);
    decoder.submit(request).unwrap();
    run(&mut decoder).remove(0)
}

/// Chooses these tokens one after the other, and 0 after them.
pub(super) fn script(tokens: &'static [TokenId]) -> ScriptedLm {
    ScriptedLm::new(10, &device(), move |sequence| {
        let next = tokens.get(sequence.len() - 1).copied().unwrap_or_default();
        (0..10).map(|token| if token == next { 9.0 } else { 0.0 }).collect()
    })
}

#[test]
fn a_stop_string_that_is_a_special_token_ends_a_completion() {
    let got = completion(counter(), request(3, &["9", "<end>"]));
    assert_eq!(got.tokens(), [4, 5, 6, 7]);
    assert_eq!(got.finish, FinishReason::StopString("<end>".to_owned()));
    assert_eq!(got.text.as_deref(), Some("456"));
}

#[test]
fn an_incomplete_character_is_shown_before_a_special_token_but_not_after_a_stop_string() {
    let got = completion(script(&[1, 8, 7]), request(0, &["<end>"]));
    assert_eq!(got.text.as_deref(), Some("1a\u{fffd}"));
    assert_eq!(got.finish, FinishReason::StopString("<end>".to_owned()));

    // The first bytes are shown as soon as they cannot become a character any more; the last one is still held.
    let bytes = &[1, 8, 9, 9, 9];
    let got = completion(script(bytes), request(0, &[]).with_max_new_tokens(5));
    assert_eq!(got.text.as_deref(), Some("1a\u{fffd}\u{fffd}\u{fffd}\u{fffd}"));
    let got = completion(script(bytes), request(0, &["a\u{fffd}"]));
    assert_eq!(got.tokens(), bytes);
    assert_eq!(got.text.as_deref(), Some("1"));
    assert_eq!(got.finish, FinishReason::StopString("a\u{fffd}".to_owned()));
}

/// The detokenizer is not asked again, and what might have been the beginning of a stop string is shown.
#[test]
fn the_text_before_a_failure_of_the_detokenizer_is_kept() {
    let broken = |tokens: &[TokenId]| match tokens.contains(&4) {
        true => Err(TextError::new("no 4")),
        false => digits(tokens),
    };
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(broken);
    decoder.submit(request(1, &["34"])).unwrap();
    let got = run(&mut decoder).remove(0);
    assert_eq!(got.tokens(), [2, 3, 4]);
    assert_eq!(got.text.as_deref(), Some("23"));
    assert_eq!(got.finish, FinishReason::NoText(TextError::new("no 4")));
}
