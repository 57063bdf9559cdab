//! Rows of SmolLM2 in batches: shared, copied, dropped, on several threads.

use esamp::{CausalLm, KvCache, NoTap, PairTap, Request, TokenId, llama::Tokenizer};
use esamp_llama_cpp::LlamaCpp;

use super::{
    SMOLLM2, decoder, difference, greedy, load, no_tap, numbers, options, plain, run, tiny, tokens,
};

fn prompt(text: &str) -> Vec<TokenId> {
    Tokenizer::from_gguf(&*SMOLLM2).unwrap().encode(text).unwrap()
}

/// The parts of the largest logit, shallow and deep number by which a row may differ from the row alone. On a CPU,
/// attention adds up values in `f16`, in the order of the cells, and a row alone has other cells. That changes how some
/// activations are rounded to 8 bits, and the differences grow over 30 blocks. Measured: 0.032, 0.004 and 0.011; none
/// with a buffer for each row.
const LOGITS: f32 = 0.05;
const SHALLOW: f32 = 0.02;
const DEEP: f32 = 0.05;

#[test]
fn the_decode_loop_is_the_loop_by_hand_with_requests_of_several_lengths() {
    for unified in [true, false] {
        let model = load(&SMOLLM2, &options().with_unified_cache(unified).with_cells(4096));
        let texts = ["The capital of France is", "1 2 3 4 5 6 7 8", "Once"];
        let mut decoder = decoder(&model);
        for text in texts {
            let request = Request::new(prompt(text)).with_completions(2).with_max_new_tokens(12);
            decoder.submit(request.with_sampling(plain())).unwrap();
        }
        let completions = run(&mut decoder).unwrap();
        for (index, text) in texts.iter().enumerate() {
            let expected = greedy(&model, &prompt(text), 12, no_tap);
            for completion in &completions[2 * index..2 * index + 2] {
                assert_eq!(completion.tokens(), expected, "unified {unified}: {text}");
            }
        }
    }
}

#[test]
fn a_paused_completion_goes_on_where_it_was() {
    let model = load(&SMOLLM2, &options().with_cells(1024));
    let mut decoder = decoder(&model);
    let text = prompt("The capital of France is");
    let request = Request::new(text.clone()).with_completions(3).with_max_new_tokens(12);
    let ids = decoder.submit(request.with_sampling(plain())).unwrap().completions;
    for _ in 0..4 {
        decoder.step().unwrap();
    }
    decoder.pause(ids[1]).unwrap();
    for _ in 0..3 {
        decoder.step().unwrap();
    }
    assert_eq!((decoder.running(), decoder.paused()), (2, vec![ids[1]]));
    decoder.resume(ids[1]).unwrap();
    let expected = greedy(&model, &text, 12, no_tap);
    let completions = run(&mut decoder).unwrap();
    assert_eq!(completions.len(), 3);
    assert!(completions.iter().all(|completion| completion.tokens() == expected));

    let mut cache = model.new_cache();
    let two: Vec<TokenId> = [text.as_slice(), text.as_slice()].concat();
    model.forward(tokens(&two, 2), &mut cache, &mut NoTap).unwrap();
    assert!(cache.split_rows(&[2]).is_err());
    assert!(cache.split_rows(&[1, 1]).is_err());
    assert_eq!((cache.split_rows(&[1]).unwrap().rows(), cache.rows()), (1, 1));
}

#[test]
fn rows_with_separate_buffers_have_ids_without_gaps() {
    let model = load(&tiny("llama"), &options().with_unified_cache(false).with_cells(4096));
    let prompts = [[84, 104, 259, 40], [1, 2, 3, 4], [50, 40, 30, 20], [9, 8, 7, 6]];
    let mut cache = model.new_cache();
    model.forward(tokens(&prompts.concat(), 4), &mut cache, &mut NoTap).unwrap();
    cache.keep_rows(&[3, 1]).unwrap();
    let ids = format!("{cache:?}");
    assert!(ids.contains("sequence: 0") && ids.contains("sequence: 1"), "{ids}");
    let logits = model.forward(tokens(&[5, 6], 2), &mut cache, &mut NoTap).unwrap();
    for (row, (prompt, next)) in [(prompts[3], 5), (prompts[1], 6)].into_iter().enumerate() {
        let mut alone = model.new_cache();
        model.forward(tokens(&prompt, 1), &mut alone, &mut NoTap).unwrap();
        let expected = model.forward(tokens(&[next], 1), &mut alone, &mut NoTap).unwrap();
        let got = numbers(&logits.clone().narrow(0, row, 1));
        assert!(difference(&numbers(&expected), &got) < 1e-4, "{row}");
    }
}

/// Logits, shallow and deep states of each row.
type Rows = Vec<[Vec<f32>; 3]>;

/// Reads prompts of several lengths into one cache, keeps the rows `keep`, and reads one more token for each.
fn read(model: &LlamaCpp, prompts: &[&[TokenId]], keep: &[usize], next: &[TokenId]) -> Rows {
    let mut cache = model.new_cache();
    for prompt in prompts {
        let mut one = model.new_cache();
        model.forward(tokens(prompt, 1), &mut one, &mut NoTap).unwrap();
        cache.append_rows(one).unwrap();
    }
    cache.keep_rows(keep).unwrap();
    let mut tap = PairTap::default();
    let logits = model.forward(tokens(next, next.len()), &mut cache, &mut tap).unwrap();
    let hidden = tap.take().unwrap();
    let all = [numbers(&logits), numbers(hidden.shallow()), numbers(hidden.deep())];
    let row = |row: usize| {
        [0, 1, 2].map(|what: usize| {
            let width = all[what].len() / next.len();
            all[what][row * width..][..width].to_vec()
        })
    };
    (0..next.len()).map(row).collect()
}

#[test]
fn rows_of_a_batch_have_the_states_that_they_have_alone() {
    for unified in [true, false] {
        let model = load(&SMOLLM2, &options().with_unified_cache(unified).with_cells(4096));
        let long = prompt("The lighthouse had been dark for years");
        let short = prompt("A cat");
        // Rows 2, 0, 0 of three, so that sequence ids are out of order, repeated and have a gap.
        let together = read(&model, &[&long, &long, &short], &[2, 0, 0], &[700, 800, 900]);
        for (row, (prompt, next)) in [(&short, 700), (&long, 800), (&long, 900)].iter().enumerate()
        {
            let alone = &read(&model, &[prompt], &[0], &[*next])[0];
            for (what, limit) in [LOGITS, SHALLOW, DEEP].into_iter().enumerate() {
                let far = difference(&alone[what], &together[row][what]);
                assert!(far < limit, "unified {unified}, row {row}, {what}: {far}");
                let other = difference(&alone[what], &together[(row + 1) % 3][what]);
                assert!(other > 3.0 * limit, "another row's, {what}: {other}");
            }
        }
    }
}

#[test]
fn models_and_caches_are_dropped_in_any_order() {
    let (one, two) = (load(&SMOLLM2, &options()), load(&SMOLLM2, &options()));
    let mut cache = one.new_cache();
    one.forward(tokens(&[1, 2, 3], 1), &mut cache, &mut NoTap).unwrap();
    let error = two.forward(tokens(&[1], 1), &mut cache, &mut NoTap).unwrap_err();
    let message = "key-value cache: expected one of this model, got one of another";
    assert_eq!(error.to_string(), message);
    let error = cache.append_rows(two.new_cache()).unwrap_err().to_string();
    assert!(error.starts_with("key-value cache to append: expected one of the same"), "{error}");
    drop(one); // the cache keeps the context alive
    cache.keep_rows(&[0, 0]).unwrap();
    assert_eq!(cache.lengths(), [3, 3]);
    assert!(cache.keep_rows(&[2]).is_err());
    assert_eq!(cache.lengths(), [3, 3]);
    drop(two);
    drop(cache);
}

#[test]
fn a_model_is_used_by_several_threads_and_so_are_two_models() {
    let (one, two) = (load(&SMOLLM2, &options()), load(&tiny("qwen3"), &options()));
    let expected = [&one, &two].map(|model| greedy(model, &[1, 2, 3], 8, no_tap));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            for (model, expected) in [&one, &two].into_iter().zip(&expected) {
                let tap = PairTap::default;
                scope.spawn(move || assert_eq!(&greedy(model, &[1, 2, 3], 8, tap), expected));
            }
        }
    });
    // And moved to another thread, with a cache that outlives it there.
    let mut cache = two.new_cache();
    std::thread::spawn(move || {
        two.forward(tokens(&[1, 2], 1), &mut cache, &mut NoTap).unwrap();
        drop(two);
        cache
    })
    .join()
    .unwrap();
}
