//! What bad files, options and runs get: typed errors that say what was expected and what was got.

use std::path::Path;

use esamp::{
    CausalLm, Decoder, FinishReason, HiddenStateTap, NoTap, PairTap, Request, TapSite, TokenId,
};
use esamp_llama_cpp::{LlamaCpp, Options};
use esamp_testkit::bounded;

use super::{decoder, difference, load, numbers, options, run, tiny, tokens};

const PROMPT: [TokenId; 4] = [84, 104, 259, 40];

fn refusal(path: &Path, options: &Options) -> String {
    LlamaCpp::load(path, options).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn a_full_cache_or_too_many_rows_ends_completions_and_the_loop_goes_on() {
    // The context length of the model is 512.
    let model = load(&tiny("llama"), &options().with_cells(256).with_max_rows(4));
    let mut decoder = decoder(&model);
    let request = |rows: usize, count: usize| {
        Request::new(PROMPT.to_vec()).with_completions(rows).with_max_new_tokens(count)
    };
    // A request that can never run is refused.
    let refused = |request: Request, decoder: &mut Decoder<_>| {
        decoder.submit(request).unwrap_err().to_string()
    };
    let message = "key-value cache: expected a request of at most 256 tokens, got one of 260";
    assert_eq!(refused(request(4, 65), &mut decoder), message);
    let message = "key-value cache: expected a request of at most 4 rows, got one of 5";
    assert_eq!(refused(request(5, 4), &mut decoder), message);

    // The loop knows nothing of another cache of the same model.
    let mut other = model.new_cache();
    model.forward(tokens(&[5; 100], 1), &mut other, &mut NoTap).unwrap();
    decoder.submit(request(3, 64)).unwrap();
    let error = run(&mut decoder).unwrap_err();
    let message =
        "llama.cpp: expected 3 free cells among the 256 of its cache (`with_cells`), got fewer";
    assert!(error.contains(message), "{error}");
    let ended = decoder.take_completions();
    assert_eq!(ended.len(), 3);
    assert!(ended.iter().all(|completion| matches!(completion.finish, FinishReason::Aborted)));

    decoder.submit(request(4, 8)).unwrap();
    let error = run(&mut decoder).unwrap_err();
    let message = "llama.cpp: expected at most 4 rows in use (`with_max_rows`), got 5";
    assert!(error.contains(message), "{error}");
    decoder.take_completions();

    drop(other);
    decoder.submit(request(4, 8)).unwrap();
    assert_eq!(run(&mut decoder).unwrap().len(), 4);
}

#[test]
fn prompts_wait_for_cells_and_rows() {
    let model = load(&tiny("llama"), &options().with_cells(256).with_max_rows(4));
    let mut decoder = decoder(&model);
    // The first two requests take 2 · (4 + 2 · 60) = 248 cells and all rows.
    for _ in 0..3 {
        let request = Request::new(PROMPT.to_vec()).with_completions(2).with_max_new_tokens(61);
        decoder.submit(request).unwrap();
    }
    decoder.submit(Request::new(PROMPT.to_vec()).with_max_new_tokens(4)).unwrap();
    decoder.step().unwrap();
    assert_eq!((decoder.running(), decoder.waiting()), (4, 2));
    let completions = run(&mut decoder).unwrap();
    assert_eq!(completions.len(), 7);
    let is_whole = |finish: &FinishReason| matches!(finish, FinishReason::MaxNewTokens);
    assert!(completions.iter().all(|completion| is_whole(&completion.finish)));
}

#[test]
fn a_row_ends_where_the_context_is_full() {
    for unified in [true, false] {
        let options = options().with_cells(256).with_max_rows(1).with_unified_cache(unified);
        let model = load(&tiny("llama"), &options);
        assert_eq!(model.context_length(), Some(256));
        let mut decoder = decoder(&model);
        decoder.submit(Request::new(PROMPT.to_vec()).with_max_new_tokens(400)).unwrap();
        let completions = run(&mut decoder).unwrap();
        let finish = &completions[0].finish;
        assert!(matches!(finish, FinishReason::ContextFull), "{finish:?}");
    }
}

#[test]
fn a_pass_that_fails_leaves_the_cache_as_it_was() {
    for name in ["llama", "gemma3"] {
        let model = load(&tiny(name), &options().with_cells(256).with_batch(64));
        let mut other = model.new_cache();
        model.forward(tokens(&[5; 100], 1), &mut other, &mut NoTap).unwrap();
        let mut cache = model.new_cache();
        model.forward(tokens(&PROMPT, 1), &mut cache, &mut NoTap).unwrap();
        // The first batches fit, a later one does not.
        let error = model.forward(tokens(&[7; 200], 1), &mut cache, &mut NoTap).unwrap_err();
        assert!(error.to_string().contains("free cells among the 256"), "{error}");
        assert_eq!(cache.lengths(), [PROMPT.len()]);
        drop(other);
        let next = model.forward(tokens(&[70], 1), &mut cache, &mut NoTap).unwrap();
        let mut alone = model.new_cache();
        model.forward(tokens(&PROMPT, 1), &mut alone, &mut NoTap).unwrap();
        let expected = model.forward(tokens(&[70], 1), &mut alone, &mut NoTap).unwrap();
        assert!(difference(&numbers(&expected), &numbers(&next)) < 0.05, "{name}");
    }
}

#[test]
fn a_pass_that_fails_says_what_a_sliding_window_has_lost() {
    let model = load(&tiny("gpt-oss"), &options().with_cells(512).with_batch(100));
    let [mut first, mut third] = [0, 1].map(|_| model.new_cache());
    model.forward(tokens(&[5; 100], 1), &mut first, &mut NoTap).unwrap();
    let mut cache = model.new_cache();
    model.forward(tokens(&[6; 60], 1), &mut cache, &mut NoTap).unwrap();
    model.forward(tokens(&[5; 60], 1), &mut third, &mut NoTap).unwrap();
    // 100 cells before the row are free, and 292 after it. The second batch of 100 overwrites the row's own cells in
    // layers with a sliding window, and the last one does not fit.
    drop(first);
    let error = model.forward(tokens(&[7; 400], 1), &mut cache, &mut NoTap).unwrap_err();
    assert!(error.to_string().contains("of its cache"), "{error}");
    let error = model.forward(tokens(&[70], 1), &mut cache, &mut NoTap).unwrap_err();
    let message = "expected the last 8 tokens of each row, got 0 after a pass that failed";
    assert!(error.to_string().contains(message), "{error}");

    // A cache that was empty is empty again.
    let mut cache = model.new_cache();
    model.forward(tokens(&[7; 500], 1), &mut cache, &mut NoTap).unwrap_err();
    model.forward(tokens(&PROMPT, 2), &mut cache, &mut NoTap).unwrap();
    assert_eq!(cache.lengths(), [2, 2]);
}

#[test]
fn wrong_calls_are_refused_before_llama_cpp_sees_them() {
    let model = load(&tiny("llama"), &options().with_cells(256));
    let refused = |ids: &[TokenId], rows: usize| {
        let cache = &mut model.new_cache();
        model.forward(tokens(ids, rows), cache, &mut NoTap).unwrap_err().to_string()
    };
    assert_eq!(refused(&[7; 300], 1), "context: expected at most 256 tokens, got 300");
    assert_eq!(refused(&[1, 293], 1), "tokens: expected ids below 293, got 293");
    let mut cache = model.new_cache();
    model.forward(tokens(&PROMPT, 2), &mut cache, &mut NoTap).unwrap();
    let error = model.forward(tokens(&PROMPT, 1), &mut cache, &mut NoTap).unwrap_err();
    let message = "tokens for the key-value cache: expected 2 rows, got 1";
    assert_eq!(error.to_string(), message);

    let mut beyond = PairTap::new(TapSite::AfterBlock(2), TapSite::HeadInput);
    assert!(beyond.wants(TapSite::AfterBlock(2)));
    model.forward(tokens(&PROMPT, 1), &mut model.new_cache(), &mut beyond).unwrap();
    let message = "tap site AfterBlock(2): expected one `record` in the forward pass, got none";
    assert_eq!(beyond.take().unwrap_err().to_string(), message);
}

#[test]
fn files_that_are_no_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    assert!(refusal(&path, &options()).ends_with("cannot be read"));
    std::fs::write(&path, "not a model at all").unwrap();
    let text = refusal(&path, &options());
    assert!(text.contains("expected a file that begins with \"GGUF\""), "{text}");
    let whole = std::fs::read(tiny("llama")).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let text = refusal(&path, &options());
    assert!(text.contains("(is it whole?)"), "{text}");
    // Ours can read it, llama.cpp cannot: an architecture of the same length that it does not know.
    let at = whole.windows(5).position(|window| window == b"llama").unwrap();
    let mut unknown = whole.clone();
    unknown[at..at + 5].copy_from_slice(b"lumos");
    std::fs::write(&path, unknown).unwrap();
    let text = refusal(&path, &options());
    assert!(text.starts_with("llama.cpp: cannot load the model: "), "{text}");
    assert!(text.contains("unknown model architecture: 'lumos'"), "{text}");
}

#[cfg(target_os = "linux")] // `ulimit -v` works there
#[test]
fn too_little_memory_is_an_error() {
    bounded::test("errors::too_little_memory_is_an_error", 2048, || {
        let small = options().with_threads(1).with_cells(256).with_max_rows(1);
        // The cache of 256 rows takes 67 MB, the buffers of a pass over 100,000 tokens many times the limit.
        let large = small.clone().with_max_rows(256).with_cells(256 * 512).with_batch(100_000);
        let text = refusal(&tiny("llama"), &large);
        assert!(text.starts_with("llama.cpp: cannot create a context: "), "{text}");
        assert!(text.contains("failed to allocate"), "{text}");
        // What was allocated has been freed, and a model that fits can be loaded.
        load(&tiny("llama"), &small);
    });
}

#[test]
fn models_that_cannot_work_are_refused_with_the_reason() {
    for (name, expected) in [
        (
            "refused-mamba",
            "model: expected a decoder with attention only, got a recurrent model, whose state cannot drop tokens",
        ),
        (
            "refused-bert",
            "model: expected a model that decodes one token after another, got one without a KV cache, such as an \
             encoder",
        ),
        (
            "refused-soft-cap",
            "model: expected logits without a soft cap, got gemma3.final_logit_softcapping = 30.000000",
        ),
        (
            "refused-no-result-norm",
            "tensor result_norm: expected 1 or 1 rows of 64 numbers, got none",
        ),
    ] {
        assert_eq!(refusal(&tiny(name), &options()), expected);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |options: Options| refusal(&tiny("llama"), &options);
    for (options, message) in [
        (options().with_threads(0), "threads: expected 1 to 512, got 0"),
        (options().with_max_rows(0), "max_rows: expected 1 to 256, got 0"),
        (options().with_max_rows(257), "max_rows: expected 1 to 256, got 257"),
        (options().with_cells(15), "cells: expected 16 to 2147483647, got 15"),
        (options().with_batch(0), "batch: expected 1 to 2147483647, got 0"),
    ] {
        assert_eq!(refused(options), message);
    }
    #[cfg(not(any(feature = "cuda", feature = "metal", feature = "vulkan")))]
    for (layers, got) in [(Some(3), "3"), (None, "all")] {
        let message = refused(options().with_gpu_layers(layers));
        assert!(message.starts_with("gpu_layers: expected 0, because"), "{message}");
        assert!(message.ends_with(&format!("got {got}")), "{message}");
    }
    // More than the model's context length in every row is not reserved.
    let model = load(&tiny("llama"), &options().with_cells(i32::MAX as usize));
    assert_eq!(model.context_length(), Some(512));
}
