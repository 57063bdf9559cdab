//! When a prompt may join the running rows: the memory of the caches, and caches that cannot change their rows.

use super::{
    contrast::{contrast, decoder, hashing},
    decode_loop::{count_from, counter, run, sampler},
    decode_loop_refusals::{Can, Limited},
};
use crate::device;
use esamp::{
    CausalLm, Completion, Decoder, Request, Sampling,
    testing::{ScriptedLm, TinyLm},
};

/// Whether a forward pass had two rows.
fn together(model: &ScriptedLm) -> bool {
    model.calls().iter().any(|rows| rows.len() == 2)
}

#[test]
fn room_is_counted_at_the_length_of_the_longest_row() {
    // One byte per token. The first row may take 1 + 5 columns, so the second, of 1 + 2, takes 6 as well.
    for (limit, joins) in [(11, false), (12, true)] {
        let model = counter();
        let mut decoder = Decoder::new(&model, sampler(10)).unwrap().with_kv_limit(limit);
        decoder.submit(count_from(1)).unwrap();
        decoder.step().unwrap();
        decoder.submit(count_from(5).with_max_new_tokens(2)).unwrap();
        let tokens: Vec<_> = run(&mut decoder).iter().map(Completion::tokens).collect();
        assert_eq!(tokens, [vec![2, 3, 4, 5, 6], vec![6, 7]]);
        assert_eq!(together(&model), joins, "{limit}");
    }
}

#[test]
fn the_other_models_rows_are_counted_when_a_prompt_joins() {
    // 1 + 5 columns of one byte in each cache: two rows in the first, and the contrasted one in the second.
    let plain = Sampling::paper().with_beta(0.0);
    let request = |sampling: &Sampling| {
        Request::new(vec![1]).with_max_new_tokens(5).with_sampling(sampling.clone())
    };
    for [first, second] in [[plain.clone(), contrast(0.5)], [contrast(0.5), plain]] {
        for (limit, joins) in [(17, false), (18, true)] {
            let model = hashing(1);
            let mut decoder = decoder(model.clone()).with_other_model(hashing(2)).unwrap();
            decoder = decoder.with_kv_limit(limit);
            decoder.submit(request(&first)).unwrap();
            decoder.submit(request(&second)).unwrap();
            run(&mut decoder);
            assert_eq!(together(&model), joins, "{limit}");
        }
    }
}

#[test]
fn the_other_models_own_bytes_are_counted() {
    let (model, other) = (TinyLm::new(1, &device()), TinyLm::new(2, &device()));
    let per_token = model.kv_bytes_per_token();
    assert!(per_token > 1);
    let decoder = decoder(model).with_other_model(other).unwrap();
    let request = Request::new(vec![1]).with_max_new_tokens(5).with_sampling(contrast(0.5));
    assert_eq!(decoder.kv_bytes_needed(&request), 2 * 6 * per_token);
}

/// Completions of two prompts that end one after the other.
#[test]
fn the_other_models_cache_is_never_asked_for_an_unsupported_operation() {
    let tokens = |model: ScriptedLm, can: Can| -> Vec<_> {
        let other = Limited { inner: model, can };
        let mut decoder = decoder(hashing(1)).with_other_model(other).unwrap();
        let request = |prompt, length| {
            let request = Request::new(vec![prompt]).with_max_new_tokens(length).with_seed(3);
            request.with_completions(2).with_sampling(contrast(0.5))
        };
        let first = decoder.submit(request(1, 5)).unwrap();
        decoder.submit(request(2, 3)).unwrap();
        decoder.step().unwrap();
        decoder.cancel(first.completions[0]).unwrap();
        run(&mut decoder).iter().map(Completion::tokens).collect()
    };
    let can = |repeat, drop, append| Can { repeat, drop, append };
    let expected = tokens(hashing(2), can(true, true, true));
    assert_eq!(expected.iter().map(Vec::len).collect::<Vec<_>>(), [2, 5, 3, 3]);
    for repeat in [true, false] {
        for (drop, append) in [(true, false), (false, true), (false, false)] {
            let got = tokens(hashing(2), can(repeat, drop, append));
            assert_eq!(got, expected, "repeat {repeat}, drop {drop}, append {append}");
        }
    }
}

#[test]
fn the_largest_number_of_completions_is_accepted() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    let most = count_from(1).with_completions(Request::MAX_COMPLETIONS);
    assert_eq!(decoder.submit(most).unwrap().completions.len(), Request::MAX_COMPLETIONS);
    let more = count_from(1).with_completions(Request::MAX_COMPLETIONS + 1);
    assert!(decoder.submit(more).is_err());
}
