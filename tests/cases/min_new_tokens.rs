//! The minimum number of new tokens.

use super::{
    decode_loop::{Masked, count_from, counter, digits, run, sampler},
    decode_loop_text::{Halves, script},
    penalties::constant,
};
use esamp::{
    Completion, CompletionId, Decoder, FinishReason, Request, Sampling, TokenId, TokenMask,
    errors::{RequestError, RowError},
};

fn greedy(prompt: TokenId) -> Request {
    let greedy = Sampling::paper().with_beta(0.0).with_temperature(0.0);
    Request::new(vec![prompt]).with_sampling(greedy).with_max_new_tokens(5)
}

/// Token 3 has a logit of 1, 7 of .9 and all others of 0.
fn stopped_at_3(request: Request) -> Completion {
    let mut decoder = Decoder::new(constant(), sampler(10)).unwrap();
    decoder.submit(request.with_stop_tokens([3])).unwrap();
    run(&mut decoder).remove(0)
}

#[test]
fn stop_tokens_cannot_be_chosen_before() {
    for (min, tokens) in [(0, &[3][..]), (1, &[7, 3]), (2, &[7, 7, 3]), (4, &[7, 7, 7, 7, 3])] {
        let got = stopped_at_3(greedy(1).with_min_new_tokens(min));
        assert_eq!((got.tokens(), &got.finish), (tokens.to_vec(), &FinishReason::StopToken(3)));
    }
    let got = stopped_at_3(greedy(1).with_min_new_tokens(5));
    assert_eq!((got.tokens(), got.finish), (vec![7; 5], FinishReason::MaxNewTokens));
}

#[test]
fn a_masker_decides_among_the_others() {
    let allowing = |tokens: &'static [TokenId]| {
        let masker = move |_: CompletionId, _: &[TokenId]| -> Masked {
            Ok(Some(TokenMask::allowing(10, tokens.iter().copied())))
        };
        stopped_at_3(greedy(1).with_min_new_tokens(2).with_masker(masker))
    };
    assert_eq!(allowing(&[3, 5, 7]).tokens(), [7, 7, 3]);
    assert_eq!(allowing(&[3, 5]).tokens(), [5, 5, 3]);
    let nothing = allowing(&[3]);
    assert_eq!(nothing.finish, FinishReason::Failed(RowError::AllMasked { vocab: 10 }));
    assert_eq!(nothing.choices, []);
}

#[test]
fn a_stop_string_counts_as_a_stop_token_if_it_is_a_special_token() {
    let stopped = |min| {
        let mut decoder = Decoder::new(script(&[7; 6]), sampler(10)).unwrap();
        decoder = decoder.with_detokenizer(Halves);
        let request = greedy(1).with_min_new_tokens(min).with_stop_strings(["<end>"]);
        decoder.submit(request).unwrap();
        run(&mut decoder).remove(0)
    };
    for (min, tokens) in [(0, &[7][..]), (2, &[0, 0, 7])] {
        let got = stopped(min);
        assert_eq!(got.tokens(), tokens);
        assert_eq!(got.finish, FinishReason::StopString("<end>".to_owned()));
    }
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_detokenizer(digits);
    decoder.submit(count_from(3).with_min_new_tokens(4).with_stop_strings(["56"])).unwrap();
    let got = run(&mut decoder).remove(0);
    assert_eq!((got.tokens(), got.text.as_deref()), (vec![4, 5, 6], Some("4")));
    assert_eq!(got.finish, FinishReason::StopString("56".to_owned()));
}

#[test]
fn a_minimum_above_the_maximum_is_refused() {
    let mut decoder = Decoder::new(constant(), sampler(10)).unwrap();
    let error = decoder.submit(greedy(1).with_min_new_tokens(6)).unwrap_err();
    assert!(matches!(error, RequestError::Config(_)), "{error:?}");
    assert_eq!(error.to_string(), "min_new_tokens: expected at most max_new_tokens, got 6");
    assert!(decoder.is_idle());
}
