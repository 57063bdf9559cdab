//! Which prompts begin at a step, and completions that pause.

use std::{collections::BTreeMap, ops::ControlFlow};

use super::{
    decode_loop::{count_from, counter, finished, run, sampler, sampling},
    narrow,
};
use crate::device;
use esamp::{
    CompletionId, Decoder, Event, FinishReason, GroupId, Request, SamplerConfig, Sampling, Sharing,
    TokenId,
    errors::RequestError,
    testing::{ScriptedLm, TinyLm},
};

fn tiny() -> Decoder<TinyLm> {
    Decoder::new(TinyLm::new(3, &device()), sampler(TinyLm::D_MODEL)).unwrap()
}

fn esamp(prompt: Vec<TokenId>, length: usize) -> Request {
    Request::new(prompt).with_max_new_tokens(length).with_sampling(sampling(1.0)).with_seed(9)
}

/// The tokens of every completion so far.
type Tokens = BTreeMap<CompletionId, Vec<TokenId>>;

fn take(events: &[Event], tokens: &mut Tokens) {
    for event in events {
        if let Event::Token { completion, choice, .. } = event {
            tokens.entry(*completion).or_default().push(choice.token);
        }
    }
}

#[test]
fn rows_are_limited() {
    let model = counter();
    let mut decoder = Decoder::new(&model, sampler(10)).unwrap().with_max_rows(3).unwrap();
    decoder.submit(count_from(1).with_completions(2)).unwrap();
    decoder.submit(count_from(5).with_completions(2)).unwrap();
    decoder.submit(count_from(7)).unwrap();
    let error = decoder.submit(count_from(1).with_completions(4)).unwrap_err();
    assert_eq!(error, RequestError::TooManyCompletions { limit: 3, got: 4 });
    decoder.step().unwrap();
    assert_eq!((decoder.running(), decoder.waiting()), (3, 1), "the last one fits and overtakes");
    let completions = run(&mut decoder);
    assert_eq!(completions.len(), 5);
    assert!(model.calls().iter().all(|rows| rows.len() <= 3));
    assert!(Decoder::new(counter(), sampler(10)).unwrap().with_max_rows(0).is_err());
}

#[test]
fn a_large_request_is_overtaken_a_limited_number_of_times() {
    let most = Decoder::<ScriptedLm>::MAX_OVERTAKEN;
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_max_rows(2).unwrap();
    // Two rows that end at different steps, so that there is always room for one row and never for two.
    let short = || count_from(1).with_max_new_tokens(3);
    decoder.submit(count_from(1).with_max_new_tokens(4)).unwrap();
    let large = decoder.submit(count_from(3).with_completions(2)).unwrap();
    for _ in 0..3 * most {
        decoder.submit(short()).unwrap();
    }
    let mut began = Vec::new();
    let completions = decoder
        .run(|event| {
            if let Event::Token { completion, .. } = event
                && !began.contains(&completion.prompt)
            {
                began.push(completion.prompt);
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(completions.len(), 1 + 2 + 3 * most);
    let place = began.iter().position(|&prompt| prompt == large.prompt).unwrap();
    assert_eq!(place, 1 + most, "after the first and those that overtook it: {began:?}");
}

#[test]
fn a_long_prompt_is_read_in_pieces_between_the_steps_of_others() {
    let prompt: Vec<TokenId> = (0..100).map(|at| at % 60).collect();
    let alone = |request: Request| {
        let mut decoder = tiny();
        decoder.submit(request).unwrap();
        run(&mut decoder).remove(0).tokens()
    };
    let expected = [alone(esamp(vec![1, 2], 30)), alone(esamp(prompt.clone(), 4))];
    let mut decoder = tiny().with_prefill_chunk(10).unwrap().with_prefill_budget(10).unwrap();
    let short = decoder.submit(esamp(vec![1, 2], 30)).unwrap().completions[0];
    let long = decoder.submit(esamp(prompt, 4)).unwrap().completions[0];
    let (mut tokens, mut steps) = (Tokens::new(), 0);
    while !tokens.contains_key(&long) {
        take(&decoder.step().unwrap(), &mut tokens);
        steps += 1;
    }
    // 8 tokens of the first step's budget are left for the long prompt: 8 + 9 · 10 + 2 tokens.
    assert_eq!(steps, 11);
    assert_eq!(tokens[&short].len(), 1 + steps, "one token a step, and the first one");
    while !decoder.is_idle() {
        take(&decoder.step().unwrap(), &mut tokens);
    }
    assert_eq!([&tokens[&short], &tokens[&long]], [&expected[0], &expected[1]]);
    assert!(tiny().with_prefill_budget(0).is_err());
}

#[test]
fn completions_can_be_cancelled_while_their_prompt_is_read() {
    let prompt: Vec<TokenId> = (0..40).collect();
    let mut decoder = tiny().with_prefill_chunk(10).unwrap().with_prefill_budget(10).unwrap();
    let request = esamp(prompt.clone(), 5).with_completions(3);
    let ids = decoder.submit(request).unwrap().completions;
    decoder.step().unwrap();
    decoder.cancel(ids[1]).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[1].finish, FinishReason::Cancelled);
    let lengths: Vec<usize> = completions.iter().map(|c| c.tokens().len()).collect();
    assert_eq!(lengths, [5, 0, 5]);

    // With all of them, the rest of the prompt is not read, and nothing is left.
    let prompt_id = decoder.submit(esamp(prompt, 5).with_completions(2)).unwrap().prompt;
    decoder.step().unwrap();
    decoder.cancel_prompt(prompt_id).unwrap();
    assert_eq!(decoder.stats().prompt_tokens, 40, "of the first request");
    assert_eq!(run(&mut decoder).len(), 2);
    assert!(decoder.is_idle());
    assert_eq!(decoder.sampler().distillers(), 0);
}

#[test]
fn a_paused_completion_continues_as_if_it_had_not_been() {
    let submit = |decoder: &mut Decoder<TinyLm>| {
        let first = decoder.submit(esamp(vec![1, 2, 3], 12)).unwrap().completions[0];
        let second = decoder.submit(esamp(vec![4, 5], 12)).unwrap().completions[0];
        (first, second)
    };
    let mut decoder = tiny();
    submit(&mut decoder);
    let expected: Vec<_> = run(&mut decoder).iter().map(|c| c.tokens()).collect();

    let mut decoder = tiny();
    let (first, second) = submit(&mut decoder);
    let mut tokens = Tokens::new();
    for _ in 0..3 {
        take(&decoder.step().unwrap(), &mut tokens);
    }
    decoder.pause(first).unwrap();
    assert_eq!((decoder.paused(), decoder.running()), (vec![first], 1));
    assert_eq!(decoder.pause(first), Err(RequestError::UnknownCompletion { completion: first }));
    let before = tokens[&first].len();
    while !decoder.is_idle() {
        take(&decoder.step().unwrap(), &mut tokens);
    }
    assert_eq!((tokens[&first].len(), tokens[&second].len()), (before, 12));
    assert_eq!(decoder.sampler().distillers(), 1, "that of the paused completion");
    decoder.resume(first).unwrap();
    assert!(!decoder.is_idle());
    while !decoder.is_idle() {
        take(&decoder.step().unwrap(), &mut tokens);
    }
    assert_eq!([&tokens[&first], &tokens[&second]], [&expected[0], &expected[1]]);
    assert_eq!(decoder.resume(first), Err(RequestError::UnknownCompletion { completion: first }));
    assert_eq!(decoder.sampler().distillers(), 0);
}

#[test]
fn paused_completions_rejoin_a_running_batch_and_can_be_cancelled() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    let ids = [1, 4, 7].map(|start| decoder.submit(count_from(start)).unwrap().completions[0]);
    decoder.step().unwrap();
    decoder.pause(ids[0]).unwrap();
    decoder.pause(ids[2]).unwrap();
    decoder.step().unwrap();
    decoder.resume(ids[0]).unwrap();
    decoder.step().unwrap();
    decoder.cancel(ids[2]).unwrap();
    let completions = run(&mut decoder);
    assert_eq!(completions[0].tokens(), [2, 3, 4, 5, 6]);
    assert_eq!(completions[1].tokens(), [5, 6, 7, 8, 9]);
    assert_eq!(completions[2].tokens(), [8, 9]);
    assert_eq!(completions[2].finish, FinishReason::Cancelled);
}

#[test]
fn paused_rows_count_as_rows_and_as_cache() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_max_rows(1).unwrap();
    let first = decoder.submit(count_from(1)).unwrap().completions[0];
    decoder.step().unwrap();
    decoder.pause(first).unwrap();
    decoder.submit(count_from(5)).unwrap();
    decoder.step().unwrap();
    assert_eq!((decoder.running(), decoder.waiting()), (0, 1));
    decoder.resume(first).unwrap();
    assert_eq!(finished(decoder.step().unwrap()).len(), 0);
    assert_eq!(run(&mut decoder).len(), 2);
}

#[test]
fn a_run_ends_when_a_prompt_that_was_overtaken_too_often_waits_for_paused_completions() {
    let most = Decoder::<ScriptedLm>::MAX_OVERTAKEN;
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_max_rows(2).unwrap();
    let id = decoder.submit(count_from(1)).unwrap().completions[0];
    decoder.step().unwrap();
    decoder.pause(id).unwrap();
    decoder.submit(count_from(3).with_completions(2)).unwrap();
    for _ in 0..most + 1 {
        decoder.submit(count_from(5).with_max_new_tokens(1)).unwrap();
    }
    assert_eq!(run(&mut decoder).len(), most);
    assert_eq!((decoder.is_idle(), decoder.waiting()), (true, 2));
    decoder.resume(id).unwrap();
    assert_eq!(run(&mut decoder).len(), 4);
}

#[test]
fn a_run_ends_when_paused_completions_keep_prompts_waiting() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap().with_max_rows(1).unwrap();
    let id = decoder.submit(count_from(1)).unwrap().completions[0];
    decoder.step().unwrap();
    decoder.pause(id).unwrap();
    decoder.submit(count_from(5)).unwrap();
    assert!(run(&mut decoder).is_empty());
    assert_eq!((decoder.is_idle(), decoder.waiting()), (true, 1));
    decoder.resume(id).unwrap();
    let tokens: Vec<_> = run(&mut decoder).iter().map(|c| c.tokens()).collect();
    assert_eq!(tokens, [[2, 3, 4, 5, 6], [6, 7, 8, 9, 0]]);
}

#[test]
fn what_cannot_pause_says_why() {
    let mut decoder = Decoder::new(counter().with_fixed_cache(), sampler(10)).unwrap();
    let id = decoder.submit(count_from(1)).unwrap().completions[0];
    decoder.step().unwrap();
    let error = decoder.pause(id).unwrap_err().to_string();
    assert!(error.ends_with("the key-value cache cannot split rows"), "{error}");
    assert_eq!(run(&mut decoder)[0].tokens(), [2, 3, 4, 5, 6], "unchanged");

    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    decoder = decoder.with_other_model(counter()).unwrap();
    let contrastive = count_from(1).with_sampling(Sampling::contrastive());
    let id = decoder.submit(contrastive).unwrap().completions[0];
    decoder.step().unwrap();
    let error = decoder.pause(id).unwrap_err().to_string();
    assert!(error.ends_with("it contrasts with another model"), "{error}");
}

#[test]
fn a_group_continues_with_what_it_has_learned() {
    let request = |group| esamp(vec![1, 2, 3], 40).with_completions(2).with_group(GroupId(group));
    let mut decoder = tiny();
    let first = decoder.submit(request(7)).unwrap();
    let before = run(&mut decoder);
    assert_eq!(decoder.sampler().distillers(), 1, "kept although its completions have ended");
    assert_eq!(decoder.sampler().held(), [first.prompt]);
    assert!(decoder.sampler().completions().is_empty());

    let more = decoder.submit(request(7)).unwrap();
    assert_eq!(more.prompt, first.prompt);
    assert_eq!(more.completions.iter().map(|id| id.index).collect::<Vec<_>>(), [2, 3]);
    let after = run(&mut decoder);
    for (new, old) in after.iter().zip(&before) {
        assert_ne!(new.tokens(), old.tokens());
    }

    // Another group, and a request without one, begin afresh.
    decoder.submit(request(8)).unwrap();
    let other = run(&mut decoder);
    assert_eq!(other[0].tokens(), before[0].tokens());
    decoder.submit(esamp(vec![1, 2, 3], 40).with_completions(2)).unwrap();
    assert_eq!(run(&mut decoder)[0].tokens(), before[0].tokens());
    assert_eq!(decoder.groups(), [GroupId(7), GroupId(8)]);

    decoder.release_group(GroupId(7)).unwrap();
    assert_eq!(decoder.sampler().distillers(), 1);
    assert_eq!(
        decoder.release_group(GroupId(7)),
        Err(RequestError::UnknownGroup { group: GroupId(7) })
    );
    decoder.submit(request(7)).unwrap();
    assert_eq!(run(&mut decoder)[0].tokens(), before[0].tokens(), "released, so afresh");
}

/// The oracle: one distiller for everyone, and the same requests one after the other.
#[test]
fn a_group_learns_as_one_distiller_for_everyone_does() {
    let novelties = |sharing, group: Option<GroupId>| {
        let sampler = narrow().with_sharing(sharing);
        let sampler = sampler.init(TinyLm::D_MODEL, &device()).unwrap();
        let mut decoder = Decoder::new(TinyLm::new(3, &device()), sampler).unwrap();
        let mut novelties = Vec::new();
        for prompt in [vec![1, 2], vec![1, 2], vec![4]] {
            // Greedy, because the completions of a group have other random numbers.
            let mut request = esamp(prompt, 12).with_completions(2);
            request = request.with_sampling(sampling(1.0).with_temperature(0.0));
            if let Some(group) = group {
                request = request.with_group(group);
            }
            decoder.submit(request).unwrap();
            let choices = run(&mut decoder).into_iter().flat_map(|completion| completion.choices);
            novelties.extend(choices.map(|c| (c.token, c.novelty.map(|n| n.error.to_bits()))));
        }
        novelties
    };
    let grouped = novelties(Sharing::PerPrompt, Some(GroupId(3)));
    assert_eq!(grouped, novelties(Sharing::Global, None));
    assert_ne!(grouped, novelties(Sharing::PerPrompt, None));
}

#[test]
fn the_least_recently_used_group_is_evicted() {
    let request = |group| esamp(vec![1], 3).with_group(GroupId(group));
    let mut decoder = tiny().with_max_groups(2).unwrap();
    for group in [1, 2, 1] {
        decoder.submit(request(group)).unwrap();
        run(&mut decoder);
    }
    decoder.submit(request(3)).unwrap();
    assert_eq!(decoder.groups(), [GroupId(1), GroupId(3)]);
    decoder.submit(request(1)).unwrap();
    let error = decoder.submit(request(4)).unwrap_err();
    assert_eq!(error, RequestError::GroupLimit { limit: 2 }, "both have completions");
    assert_eq!(run(&mut decoder).len(), 2);
    decoder.submit(request(4)).unwrap();
    assert_eq!(decoder.groups(), [GroupId(1), GroupId(4)]);
    run(&mut decoder);
    assert_eq!(decoder.sampler().distillers(), 2);
    assert!(tiny().with_max_groups(0).is_err());

    let sampler = SamplerConfig::new().with_sharing(Sharing::PerCompletion);
    let sampler = sampler.init(TinyLm::D_MODEL, &device()).unwrap();
    let mut decoder = Decoder::new(TinyLm::new(3, &device()), sampler).unwrap();
    let error = decoder.submit(request(1)).unwrap_err();
    assert_eq!(error, RequestError::GroupSharing { sharing: Sharing::PerCompletion });
}

#[test]
fn a_seed_is_reported() {
    let mut decoder = Decoder::new(counter(), sampler(10)).unwrap();
    assert_eq!(decoder.submit(count_from(1)).unwrap().seed, 0);
    assert_eq!(decoder.submit(count_from(1).with_seed(5)).unwrap().seed, 5);
}

/// The tokens that were fed to each forward pass since `from`, over all rows.
fn fed(model: &ScriptedLm, from: usize) -> Vec<usize> {
    model.calls()[from..].iter().map(|rows| rows.iter().map(Vec::len).sum()).collect()
}

fn zeros(tokens: usize) -> Request {
    Request::new(vec![0; tokens]).with_max_new_tokens(5).with_sampling(sampling(0.0))
}

#[test]
fn a_short_prompt_begins_at_the_next_step_while_a_long_one_is_read() {
    for is_alone in [true, false] {
        let model = counter();
        let decoder = Decoder::new(&model, sampler(10)).unwrap().with_prefill_chunk(40).unwrap();
        let mut decoder = decoder.with_prefill_budget(10).unwrap();
        if !is_alone {
            decoder.submit(count_from(1).with_max_new_tokens(50)).unwrap();
            decoder.step().unwrap();
        }
        let long = decoder.submit(zeros(200)).unwrap().completions[0];
        decoder.step().unwrap();
        let short = decoder.submit(zeros(3)).unwrap().completions[0];
        let shorter = decoder.submit(zeros(2)).unwrap().completions[0];
        let (mut tokens, before) = (Tokens::new(), model.calls().len());
        take(&decoder.step().unwrap(), &mut tokens);
        assert_eq!([tokens[&short].len(), tokens[&shorter].len()], [2, 2]);
        // The shortest first, and what they leave of the budget goes to the long one. Then all that run decode.
        let running = if is_alone { 2 } else { 3 };
        assert_eq!(fed(&model, before), [2, 3, 5, running]);
        assert_eq!(tokens.get(&long), None);
        run(&mut decoder);
        assert!(decoder.is_idle());
    }
}

#[test]
fn a_long_prompt_is_overtaken_a_limited_number_of_times_while_it_is_read() {
    let most = Decoder::<ScriptedLm>::MAX_OVERTAKEN;
    let model = counter();
    let decoder = Decoder::new(&model, sampler(10)).unwrap().with_prefill_chunk(10).unwrap();
    let mut decoder = decoder.with_prefill_budget(10).unwrap();
    let long = decoder.submit(zeros(100)).unwrap().completions[0];
    decoder.step().unwrap();
    // More short prompts than the budget suffices for.
    let (mut began, mut submitted) = (Vec::new(), 0);
    while !began.contains(&long) {
        for _ in 0..2 {
            decoder.submit(zeros(8)).unwrap();
            submitted += 1;
        }
        for event in decoder.step().unwrap() {
            if let Event::Token { completion, .. } = event
                && !began.contains(&completion)
            {
                began.push(completion);
            }
        }
        assert!(submitted < 100, "it is starved");
    }
    let place = began.iter().position(|&completion| completion == long).unwrap();
    assert_eq!(place, most, "after those that overtook it: {began:?}");
    run(&mut decoder);
    assert!(decoder.is_idle());
}
