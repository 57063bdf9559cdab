//! When a prompt may join the running rows: the memory of the caches, and caches that cannot change their rows.

use super::{
    contrast::{contrast, decoder, hashing},
    decode_loop::{count_from, counter, run, sampler},
    decode_loop_refusals::{Can, Limited},
};
use crate::device;
use esamp::{
    CacheLimits, CausalLm, Completion, Decoder, GroupId, Request, Sampling,
    errors::RequestError,
    testing::{ScriptedLm, TinyLm},
};

/// Whether a forward pass had two rows.
fn together(model: &ScriptedLm) -> bool {
    model.calls().iter().any(|rows| rows.len() == 2)
}

#[test]
fn room_is_counted_at_the_length_of_the_longest_row() {
    // The first row may take 1 + 5 columns, so the second, of 1 + 2, takes 6 as well.
    for (less, joins) in [(1, false), (0, true)] {
        let model = counter();
        let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
        let limit = decoder.bytes_needed(&count_from(1).with_completions(2)) - less;
        decoder = decoder.with_memory_limit(limit);
        decoder.submit(count_from(1)).unwrap();
        decoder.step().unwrap();
        decoder.submit(count_from(5).with_max_new_tokens(2)).unwrap();
        let tokens: Vec<_> = run(&mut decoder).iter().map(Completion::tokens).collect();
        assert_eq!(tokens, [vec![2, 3, 4, 5, 6], vec![6, 7]]);
        assert_eq!(together(&model), joins, "{less}");
    }
}

#[test]
fn prompts_wait_for_room_in_a_cache_of_fixed_size() {
    // Each request takes 1 token of the prompt and 2 · 4 of its completions, in 2 rows: the last token is not read.
    let submit = |decoder: &mut Decoder<&ScriptedLm>, rows: usize| {
        decoder.submit(count_from(1).with_completions(rows)).map(|_| ())
    };
    for (tokens, rows, joins) in [(17, 9, false), (18, 9, true), (18, 3, false)] {
        let model = counter().with_cache_limits(CacheLimits { rows, tokens });
        let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
        submit(&mut decoder, 2).unwrap();
        decoder.step().unwrap();
        submit(&mut decoder, 2).unwrap();
        decoder.step().unwrap();
        assert_eq!(decoder.running(), if joins { 4 } else { 2 }, "{tokens} {rows}");
        assert_eq!(run(&mut decoder).len(), 4);
    }
    let model = counter().with_cache_limits(CacheLimits { rows: 3, tokens: 12 });
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap();
    let limit = |what, limit, needed| Err(RequestError::CacheLimit { what, limit, needed });
    assert_eq!(submit(&mut decoder, 3), limit("tokens", 12, 13));
    assert_eq!(submit(&mut decoder, 4), limit("rows", 3, 4));
}

#[test]
fn a_cache_of_fixed_size_of_the_other_model_counts_too() {
    let limits = CacheLimits { rows: usize::MAX, tokens: 9 };
    let model = hashing(1);
    let other = hashing(2).with_cache_limits(limits);
    let mut decoder = decoder(model.clone()).with_other_model(other).unwrap();
    let request = Request::new(vec![1]).with_max_new_tokens(5).with_sampling(contrast(0.5));
    for _ in 0..2 {
        decoder.submit(request.clone()).unwrap();
    }
    run(&mut decoder);
    assert!(!together(&model), "5 + 5 tokens do not fit");
    let error = decoder.submit(request.with_completions(3)).unwrap_err();
    assert_eq!(error, RequestError::CacheLimit { what: "tokens", limit: 9, needed: 13 });
}

#[test]
fn the_other_models_rows_are_counted_when_a_prompt_joins() {
    // 1 + 5 columns of one byte in each cache: two rows in the first, and the contrasted one in the second. The
    // expected logits of two rows are counted, 8 bytes per token of the vocabulary.
    let plain = Sampling::paper().with_beta(0.0);
    let request = |sampling: &Sampling| {
        Request::new(vec![1]).with_max_new_tokens(5).with_sampling(sampling.clone())
    };
    for [first, second] in [[plain.clone(), contrast(0.5)], [contrast(0.5), plain.clone()]] {
        for (less, joins) in [(1, false), (0, true)] {
            let model = hashing(1);
            let mut decoder = decoder(model.clone()).with_other_model(hashing(2)).unwrap();
            let two = Request::new(vec![1]).with_max_new_tokens(5).with_completions(2);
            let two = decoder.bytes_needed(&two.with_sampling(plain.clone()));
            let limit = two + 6 + 2 * 8 * model.vocab_size() - less;
            decoder = decoder.with_memory_limit(limit);
            decoder.submit(request(&first)).unwrap();
            decoder.submit(request(&second)).unwrap();
            run(&mut decoder);
            assert_eq!(together(&model), joins, "{less}");
        }
    }
}

#[test]
fn the_other_models_own_bytes_are_counted() {
    let (model, other) = (TinyLm::new(1, &device()), TinyLm::new(2, &device()));
    let per_token = model.kv_bytes_per_token();
    assert!(per_token > 1);
    let vocab = model.vocab_size();
    let decoder = decoder(model).with_other_model(other).unwrap();
    let request = |sampling| Request::new(vec![1]).with_max_new_tokens(5).with_sampling(sampling);
    let [plain, contrasted] = [Sampling::paper().with_beta(0.0), contrast(0.5)]
        .map(|sampling| decoder.bytes_needed(&request(sampling)));
    assert_eq!(contrasted - plain, 6 * per_token + 8 * vocab);
}

/// A decoder, a steered request of this group, and the bytes of a distiller.
fn steered() -> (Decoder<TinyLm>, impl Fn(Option<u64>) -> Request, usize) {
    let decoder = decoder(TinyLm::new(3, &device()));
    let request = |group: Option<u64>| {
        let request = Request::new(vec![1, 2]).with_max_new_tokens(4);
        let request = request.with_sampling(Sampling::paper());
        if let Some(group) = group { request.with_group(GroupId(group)) } else { request }
    };
    let plain = request(None).with_sampling(Sampling::paper().with_beta(0.0));
    let difference = decoder.bytes_needed(&request(None)) - decoder.bytes_needed(&plain);
    let distiller = difference - 8 * decoder.model().vocab_size(); // its expected logits
    (decoder, request, distiller)
}

#[test]
fn distillers_are_counted() {
    for (less, running) in [(1, 1), (0, 2)] {
        let (mut decoder, request, distiller) = steered();
        assert!(distiller > 1000);
        let limit = decoder.bytes_needed(&request(None).with_completions(2)) + distiller - less;
        decoder = decoder.with_memory_limit(limit);
        for _ in 0..2 {
            decoder.submit(request(None)).unwrap();
        }
        decoder.step().unwrap();
        assert_eq!(decoder.running(), running, "{less}");
        assert_eq!(run(&mut decoder).len(), 2);
    }
}

#[test]
fn groups_without_completions_are_evicted_for_their_memory() {
    let (mut decoder, request, distiller) = steered();
    let alone = decoder.bytes_needed(&request(None));
    decoder = decoder.with_memory_limit(alone + distiller);
    let groups = |decoder: &Decoder<TinyLm>| -> Vec<u64> {
        decoder.groups().iter().map(|group| group.0).collect()
    };
    for (group, kept) in [(1, vec![1]), (2, vec![1, 2]), (3, vec![2, 3]), (2, vec![3, 2])] {
        decoder.submit(request(Some(group))).unwrap();
        run(&mut decoder);
        assert_eq!(groups(&decoder), kept, "{group}");
    }
    // A second row has no room in any case, so it waits and nothing is evicted for it.
    decoder.submit(request(Some(2))).unwrap();
    decoder.step().unwrap();
    decoder.submit(request(None)).unwrap();
    decoder.step().unwrap();
    assert_eq!((decoder.running(), groups(&decoder)), (1, vec![3, 2]));
    run(&mut decoder);
    assert_eq!(groups(&decoder), [2], "alone it needs the memory of one");
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
