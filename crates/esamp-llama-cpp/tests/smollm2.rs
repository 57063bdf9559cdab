//! SmolLM2-135M-Instruct on llama.cpp: the decode loop, rows, taps and errors.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{ops::ControlFlow, path::PathBuf, sync::LazyLock};

use burn::tensor::{Device, Int, Tensor, TensorData};
use esamp::{
    CausalLm, Completion, Decoder, FinishReason, KvCache, LmHead, NoTap, PairTap, Request,
    SamplerConfig, Sampling, SequenceTap, TapSite, TokenId, llama::Tokenizer,
};
use esamp_llama_cpp::{LlamaCpp, LlamaCppError, Options};
use esamp_programs::model_source::{Cache, ModelSource};

static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap());

fn options() -> Options {
    Options::new().with_threads(2).with_cells(1024).with_max_rows(16)
}

fn model(options: Options) -> LlamaCpp {
    LlamaCpp::load(&*PATH, &options).unwrap()
}

fn prompt(text: &str) -> Vec<TokenId> {
    Tokenizer::from_gguf(&*PATH).unwrap().encode(text).unwrap()
}

fn tokens(tokens: &[TokenId], rows: usize) -> Tensor<2, Int> {
    let ids: Vec<i64> = tokens.iter().map(|&token| i64::from(token)).collect();
    let shape = [rows, ids.len() / rows];
    Tensor::from_data(TensorData::new(ids, shape), &Device::flex())
}

fn numbers<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.clone().into_data().try_into_vec().unwrap()
}

fn best(logits: &[f32]) -> TokenId {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as TokenId
}

/// Greedy decoding of one row by hand.
fn greedy(model: &LlamaCpp, prompt: &[TokenId], count: usize) -> Vec<TokenId> {
    let mut cache = model.new_cache();
    let mut logits = model.forward(tokens(prompt, 1), &mut cache, &mut NoTap).unwrap();
    let mut out = vec![best(&numbers(&logits))];
    while out.len() < count {
        let next = tokens(&out[out.len() - 1..], 1);
        logits = model.forward(next, &mut cache, &mut NoTap).unwrap();
        out.push(best(&numbers(&logits)));
    }
    out
}

fn run(model: &LlamaCpp, requests: Vec<Request>) -> Vec<Completion> {
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(model, sampler);
    for request in requests {
        decoder.submit(request).unwrap();
    }
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn the_decode_loop_is_the_loop_by_hand_with_requests_of_several_lengths() {
    for unified in [true, false] {
        let model = model(options().with_unified_cache(unified));
        let sampling = Sampling::default().with_temperature(0.0).with_beta(0.0);
        let texts = ["The capital of France is", "1 2 3 4 5 6 7 8", "Once"];
        let request = |text: &&str| {
            Request::new(prompt(text))
                .with_completions(2)
                .with_max_new_tokens(12)
                .with_sampling(sampling.clone())
        };
        let completions = run(&model, texts.iter().map(request).collect());
        for (index, text) in texts.iter().enumerate() {
            let expected = greedy(&model, &prompt(text), 12);
            for completion in &completions[2 * index..2 * index + 2] {
                assert_eq!(completion.tokens(), expected, "unified {unified}: {text}");
            }
        }
    }
}

#[test]
fn rows_of_a_batch_have_the_states_that_they_have_alone() {
    for unified in [true, false] {
        let model = model(options().with_unified_cache(unified));
        let (long, short) = (prompt("The lighthouse had been dark for years"), prompt("A cat"));
        let read = |prompts: &[&[TokenId]], keep: &[usize], next: &[TokenId]| {
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
            let [logits, shallow, deep] =
                [numbers(&logits), numbers(hidden.shallow()), numbers(hidden.deep())];
            (0..next.len())
                .map(|row| {
                    let cut = |all: &[f32]| {
                        let width = all.len() / next.len();
                        all[row * width..][..width].to_vec()
                    };
                    [cut(&logits), cut(&shallow), cut(&deep)]
                })
                .collect::<Vec<_>>()
        };
        // Rows 2, 0, 0 of three, so that sequence ids are out of order, repeated and have a gap.
        let together = read(&[&long, &long, &short], &[2, 0, 0], &[700, 800, 900]);
        for (row, (prompt, next)) in [(&short, 700), (&long, 800), (&long, 900)].iter().enumerate()
        {
            let alone = read(&[prompt], &[0], &[*next]);
            for (what, limit) in [(0, 0.5), (1, 0.01), (2, 0.2)] {
                let far = largest_difference(&together[row][what], &alone[0][what]);
                assert!(far < limit, "unified {unified}, row {row}, {what}: {far}");
            }
            let other = (row + 1) % 3;
            let far = largest_difference(&together[row][1], &together[other][1]);
            assert!(far > 0.1, "the states of different tokens differ: {far}");
        }
    }
}

#[test]
fn taps_have_the_shapes_asked_for_and_the_head_makes_the_logits_from_the_deep_state() {
    let model = model(options());
    let prompt = prompt("The capital of France is");
    let d_model = model.d_model();
    assert_eq!((d_model, model.vocab_size(), model.n_layers()), (576, 49152, 30));

    let mut all = SequenceTap::default();
    model.forward(tokens(&prompt, 1), &mut model.new_cache(), &mut all).unwrap();
    all.end_pass(prompt.len()).unwrap();
    let all = all.take().unwrap();
    assert_eq!(all.shallow().dims(), [prompt.len(), d_model]);

    for sites in [(0, None), (14, None), (0, Some(29))] {
        let deep = sites.1.map_or(TapSite::HeadInput, TapSite::AfterBlock);
        let mut last = PairTap::new(TapSite::AfterBlock(sites.0), deep);
        let logits = model.forward(tokens(&prompt, 1), &mut model.new_cache(), &mut last).unwrap();
        let last = last.take().unwrap();
        assert_eq!(last.deep().dims(), [1, d_model]);
        if sites == (0, None) {
            let end = |states: &Tensor<2>| numbers(states)[(prompt.len() - 1) * d_model..].to_vec();
            assert!(largest_difference(&end(all.shallow()), &numbers(last.shallow())) < 0.01);
            assert!(largest_difference(&end(all.deep()), &numbers(last.deep())) < 0.2);
            // The head is dequantised: llama.cpp quantises the activations that it multiplies.
            let ours = numbers(&model.lm_head().logits(last.deep().clone()));
            assert!(largest_difference(&ours, &numbers(&logits)) < 0.6);
        }
    }
}

#[test]
fn esamp_learns() {
    let model = model(options());
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler);
    let request = Request::new(prompt("Once upon a time"))
        .with_completions(4)
        .with_max_new_tokens(24)
        .with_prompt_warm_up(2);
    decoder.submit(request).unwrap();
    let mut losses = Vec::new();
    while !decoder.is_idle() {
        decoder.step().unwrap();
        losses.extend(decoder.sampler().counters().mean_loss());
    }
    assert!(decoder.sampler().counters().updates >= 23);
    assert!(losses.last() < losses.first(), "{losses:?}");
}

#[test]
fn a_full_cache_or_too_many_rows_ends_completions_and_the_loop_goes_on() {
    let model = model(options().with_cells(256).with_max_rows(4));
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler);
    let request = |rows: usize, count: usize| {
        Request::new(prompt("Once upon a time")).with_completions(rows).with_max_new_tokens(count)
    };
    decoder.submit(request(4, 200)).unwrap();
    let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err().to_string();
    let message =
        "llama.cpp: expected 4 free cells among the 256 of its cache (`with_cells`), got fewer";
    assert!(error.contains(message), "{error}");
    let ended = decoder.take_completions();
    assert!(ended.iter().all(|completion| matches!(completion.finish, FinishReason::Aborted)));

    decoder.submit(request(5, 4)).unwrap();
    let error = decoder.run(|_| ControlFlow::Continue(())).unwrap_err().to_string();
    let message = "llama.cpp: expected at most 4 rows in use (`with_max_rows`), got 5";
    assert!(error.contains(message), "{error}");
    decoder.take_completions();

    decoder.submit(request(4, 8)).unwrap();
    assert_eq!(decoder.run(|_| ControlFlow::Continue(())).unwrap().len(), 4);
}

#[test]
fn a_pass_that_fails_leaves_the_cache_as_it_was() {
    let model = model(options().with_cells(256).with_batch(64));
    let prompt = prompt("The capital of France is");
    let mut other = model.new_cache();
    model.forward(tokens(&[5; 100], 1), &mut other, &mut NoTap).unwrap();
    let mut cache = model.new_cache();
    model.forward(tokens(&prompt, 1), &mut cache, &mut NoTap).unwrap();
    // The first batches fit, a later one does not.
    let error = model.forward(tokens(&[7; 200], 1), &mut cache, &mut NoTap).unwrap_err();
    assert!(error.to_string().contains("free cells"), "{error}");
    assert_eq!(cache.lengths(), [prompt.len()]);
    drop(other);
    let next = model.forward(tokens(&[700], 1), &mut cache, &mut NoTap).unwrap();
    let mut alone = model.new_cache();
    model.forward(tokens(&prompt, 1), &mut alone, &mut NoTap).unwrap();
    let expected = model.forward(tokens(&[700], 1), &mut alone, &mut NoTap).unwrap();
    assert!(largest_difference(&numbers(&next), &numbers(&expected)) < 0.5);
    // One row longer than the cache is refused before llama.cpp sees it.
    let error = model.forward(tokens(&[7; 300], 1), &mut model.new_cache(), &mut NoTap);
    let message = "context: expected at most 256 tokens, got 300";
    assert_eq!(error.unwrap_err().to_string(), message);
}

#[test]
fn models_and_caches_are_dropped_in_any_order_and_shared_by_threads() {
    let (one, two) = (model(options()), model(options()));
    let mut cache = one.new_cache();
    one.forward(tokens(&[1, 2, 3], 1), &mut cache, &mut NoTap).unwrap();
    let error = two.forward(tokens(&[1], 1), &mut cache, &mut NoTap).unwrap_err();
    let message = "key-value cache: expected one of this model, got one of another";
    assert_eq!(error.to_string(), message);
    assert!(cache.append_rows(two.new_cache()).is_err());
    drop(one); // the cache keeps the context alive
    cache.keep_rows(&[0, 0]).unwrap();
    assert_eq!(cache.lengths(), [3, 3]);
    drop(cache);

    let expected = greedy(&two, &[1, 2, 3], 8);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(greedy(&two, &[1, 2, 3], 8), expected));
        }
    });
}

#[test]
fn files_and_options_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let message = |path: &PathBuf, options: Options| {
        LlamaCpp::load(path, &options).map(|_| ()).unwrap_err().to_string()
    };
    assert!(message(&path, options()).ends_with("cannot be read"));
    std::fs::write(&path, "not a model at all").unwrap();
    let text = message(&path, options());
    assert!(text.contains("expected a file that begins with \"GGUF\""), "{text}");
    let whole = std::fs::read(&*PATH).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    assert!(matches!(
        LlamaCpp::load(&path, &options()),
        Err(LlamaCppError::Load(_) | LlamaCppError::Setup { .. })
    ));
    assert_eq!(message(&PATH, options().with_threads(0)), "threads: expected 1 to 4096, got 0");
    assert_eq!(
        message(&PATH, options().with_max_rows(257)),
        "max_rows: expected 1 to 256, got 257"
    );
}
