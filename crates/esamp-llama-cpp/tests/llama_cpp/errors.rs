//! What bad files, options and runs get: typed errors that say what was expected and what was got.

use std::path::Path;

use esamp::{CausalLm, FinishReason, HiddenStateTap, NoTap, PairTap, Request, TapSite, TokenId};
use esamp_llama_cpp::{LlamaCpp, Options};

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
    decoder.submit(request(4, 200)).unwrap();
    let error = run(&mut decoder).unwrap_err();
    let message =
        "llama.cpp: expected 4 free cells among the 256 of its cache (`with_cells`), got fewer";
    assert!(error.contains(message), "{error}");
    let ended = decoder.take_completions();
    assert_eq!(ended.len(), 4);
    assert!(ended.iter().all(|completion| matches!(completion.finish, FinishReason::Aborted)));

    decoder.submit(request(5, 4)).unwrap();
    let error = run(&mut decoder).unwrap_err();
    let message = "llama.cpp: expected at most 4 rows in use (`with_max_rows`), got 5";
    assert!(error.contains(message), "{error}");
    decoder.take_completions();

    decoder.submit(request(4, 8)).unwrap();
    assert_eq!(run(&mut decoder).unwrap().len(), 4);
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
            "model: expected logits that are W·x alone, got gemma3.final_logit_softcapping = 30.000000",
        ),
    ] {
        assert_eq!(refusal(&tiny(name), &options()), expected);
    }
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = |options: Options| refusal(&tiny("llama"), &options);
    for (options, message) in [
        (options().with_threads(0), "threads: expected 1 to 4096, got 0"),
        (options().with_max_rows(0), "max_rows: expected 1 to 256, got 0"),
        (options().with_max_rows(257), "max_rows: expected 1 to 256, got 257"),
        (options().with_cells(15), "cells: expected 16 to 2147483647, got 15"),
        (options().with_batch(0), "batch: expected 1 to 2147483647, got 0"),
    ] {
        assert_eq!(refused(options), message);
    }
    // More than the model's context length in every row is not reserved.
    let model = load(&tiny("llama"), &options().with_cells(i32::MAX as usize));
    assert_eq!(model.context_length(), Some(512));
}
