//! The Llama family against PyTorch's transformers, and its cache against itself: tests/golden/llama/make.py.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;

use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, KvCache, NoTap, PairTap, SequenceTap, TokenId, errors::ModelError, llama::Llama,
};
use esamp_testkit::golden::{self, Golden, assert_close, devices, values};

const MODELS: [&str; 9] = [
    "llama",
    "llama3",
    "linear_rope",
    "qwen2",
    "qwen3",
    "sharded_bf16",
    "yarn",
    "yarn_options",
    "dynamic",
];
const VOCAB: usize = 96;
const D_MODEL: usize = 32;

fn folder(name: &str) -> PathBuf {
    golden::path("llama").join(name)
}

fn load(name: &str, device: &Device) -> Llama {
    Llama::from_hf_folder(folder(name), device).unwrap()
}

fn expected(name: &str) -> Golden {
    Golden::open(&format!("llama/{name}/expected.safetensors"))
}

fn ids(golden: &Golden, key: &str) -> Vec<TokenId> {
    golden.ints(key).into_iter().map(|id| id as TokenId).collect()
}

/// A whole prompt at once, as for learning from it: every position of both sites, in one pass and in several.
#[test]
fn a_sequence_tap_sees_what_transformers_has_at_every_position() {
    for device in devices() {
        for name in MODELS {
            let (model, golden) = (load(name, &device), expected(name));
            let prompt = ids(&golden, "prompt0_ids");
            let split = prompt.len() / 3;
            for chunks in [vec![&prompt[..]], vec![&prompt[..split], &prompt[split..]]] {
                let (mut cache, mut tap) = (model.new_cache(), SequenceTap::default());
                let mut logits = Vec::new();
                for chunk in chunks {
                    let input = tokens(&[chunk], &device);
                    logits = values(model.forward(input, &mut cache, &mut tap).unwrap());
                    tap.end_pass(chunk.len()).unwrap();
                }
                let hidden = tap.take().unwrap();
                let shallow = golden.values("block0_0");
                assert_close(name, &values(hidden.shallow().clone()), &shallow, 1e-4);
                let deep = golden.values("head_input_0");
                assert_close(name, &values(hidden.deep().clone()), &deep, 1e-4);
                let input = tokens(&[&prompt], &device);
                let plain = model.forward(input, &mut model.new_cache(), &mut NoTap).unwrap();
                assert_close(name, &logits, &values(plain), 1e-4);
            }
        }
    }
}

/// `[rows, seq]` from rows of the same length.
fn tokens(rows: &[&[TokenId]], device: &Device) -> Tensor<2, Int> {
    let flat: Vec<i32> = rows.iter().flat_map(|row| row.iter().map(|&id| id as i32)).collect();
    Tensor::<1, Int>::from_data(flat.as_slice(), device).reshape([rows.len(), rows[0].len()])
}

fn argmax(logits: &[f32]) -> TokenId {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0 as TokenId
}

#[test]
fn logits_and_hidden_states_are_those_of_transformers() {
    for device in devices() {
        for name in MODELS {
            let (model, golden) = (load(name, &device), expected(name));
            for prompt in 0..2 {
                let prompt_ids = ids(&golden, &format!("prompt{prompt}_ids"));
                let last = prompt_ids.len() - 1;
                let row = |key: String, width: usize| golden.values(&key)[last * width..].to_vec();
                let mut tap = PairTap::default();
                let mut cache = model.new_cache();
                let logits =
                    model.forward(tokens(&[&prompt_ids], &device), &mut cache, &mut tap).unwrap();
                let hidden = tap.take().unwrap();
                let block0 = row(format!("block0_{prompt}"), D_MODEL);
                let head_input = row(format!("head_input_{prompt}"), D_MODEL);
                assert_close(name, &values(hidden.shallow().clone()), &block0, 1e-4);
                assert_close(name, &values(hidden.deep().clone()), &head_input, 1e-4);
                assert_close(name, &values(logits), &row(format!("logits{prompt}"), VOCAB), 1e-4);
            }
        }
    }
}

#[test]
fn gguf_files_of_the_same_models_give_the_same() {
    let device = Device::flex();
    for name in ["llama", "llama3", "qwen2", "qwen3"] {
        let path = folder(name).join("../../gguf").join(format!("{name}.gguf"));
        let (model, golden) = (Llama::from_gguf(path, &device).unwrap(), expected(name));
        for prompt in 0..2 {
            let prompt_ids = ids(&golden, &format!("prompt{prompt}_ids"));
            let mut cache = model.new_cache();
            let logits =
                model.forward(tokens(&[&prompt_ids], &device), &mut cache, &mut NoTap).unwrap();
            let expected = golden.values(&format!("logits{prompt}"));
            assert_close(name, &values(logits), &expected[expected.len() - VOCAB..], 1e-4);
        }
    }
}

#[test]
fn decoding_with_the_cache_gives_the_tokens_of_decoding_without() {
    let device = Device::flex();
    for name in MODELS {
        let (model, golden) = (load(name, &device), expected(name));
        for prompt in 0..2 {
            let mut cache = model.new_cache();
            let mut next = ids(&golden, &format!("prompt{prompt}_ids"));
            let mut got = Vec::new();
            for _ in 0..8 {
                let logits =
                    model.forward(tokens(&[&next], &device), &mut cache, &mut NoTap).unwrap();
                got.push(argmax(&values(logits)));
                next = vec![got[got.len() - 1]];
            }
            assert_eq!(got, ids(&golden, &format!("greedy{prompt}")), "{name}");
        }
    }
}

#[test]
fn a_prompt_in_chunks_gives_the_logits_of_the_whole() {
    let device = Device::flex();
    for name in MODELS {
        let (model, golden) = (load(name, &device), expected(name));
        let prompt = ids(&golden, "prompt0_ids");
        let whole = &alone(&model, &prompt, &[])[0];
        for size in [1, 3, prompt.len() - 1] {
            let mut cache = model.new_cache();
            let mut logits = Vec::new();
            for chunk in prompt.chunks(size) {
                let ids = tokens(&[chunk], &device);
                logits = values(model.forward(ids, &mut cache, &mut NoTap).unwrap());
            }
            assert_close(name, &logits, whole, 1e-4);
        }
    }
}

/// The logits for a prompt and for each of the following tokens, without other rows in the batch.
fn alone(model: &Llama, prompt: &[TokenId], then: &[TokenId]) -> Vec<Vec<f32>> {
    let (device, mut cache) = (model.device(), model.new_cache());
    let mut forward = |ids: &[TokenId]| {
        values(model.forward(tokens(&[ids], &device), &mut cache, &mut NoTap).unwrap())
    };
    let mut all = vec![forward(prompt)];
    all.extend(then.iter().map(|&id| forward(&[id])));
    all
}

#[test]
fn rows_of_different_lengths_share_a_batch() {
    let device = Device::flex();
    for name in ["llama", "llama3", "qwen3"] {
        let (model, golden) = (load(name, &device), expected(name));
        let prompts = [ids(&golden, "prompt0_ids"), ids(&golden, "prompt1_ids")];
        let then: [[TokenId; 6]; 3] =
            [[9, 8, 7, 10, 11, 12], [20, 21, 22, 23, 24, 25], [30, 31, 32, 33, 34, 35]];
        // Row 0 is the long prompt, rows 1 and 2 are two completions of the short one.
        let alone = [
            alone(&model, &prompts[0], &then[0]),
            alone(&model, &prompts[1], &then[1]),
            alone(&model, &prompts[1], &then[2]),
        ];
        for longest_first in [true, false] {
            let prefill = |prompt: &[TokenId]| {
                let mut cache = model.new_cache();
                model.forward(tokens(&[prompt], &device), &mut cache, &mut NoTap).unwrap();
                cache
            };
            let long = prefill(&prompts[0]);
            let mut short = prefill(&prompts[1]);
            short.keep_rows(&[0, 0]).unwrap();
            let (mut cache, mut order) = match longest_first {
                true => (long.clone(), vec![0, 1, 2]),
                false => (short.clone(), vec![1, 2, 0]),
            };
            cache.append_rows(if longest_first { short } else { long }).unwrap();
            assert_eq!(cache.rows(), 3);
            for step in 0..6 {
                if step == 3 {
                    // The long row leaves, and the padding of the others with it; the others swap places.
                    let keep: Vec<usize> = (0..3).rev().filter(|&at| order[at] != 0).collect();
                    cache.keep_rows(&keep).unwrap();
                    order = keep.iter().map(|&at| order[at]).collect();
                    assert_eq!(cache.lengths(), vec![prompts[1].len() + 3; 2]);
                }
                let now: Vec<[TokenId; 1]> = order.iter().map(|&row| [then[row][step]]).collect();
                let now: Vec<&[TokenId]> = now.iter().map(|ids| &ids[..]).collect();
                let logits = model.forward(tokens(&now, &device), &mut cache, &mut NoTap).unwrap();
                let logits = values(logits);
                for (at, &row) in order.iter().enumerate() {
                    let got = &logits[at * VOCAB..][..VOCAB];
                    assert_close(name, got, &alone[row][step + 1], 1e-4);
                }
            }
        }
    }
}

#[test]
fn a_row_may_join_a_running_batch() {
    let device = Device::flex();
    let model = load("llama", &device);
    let long: Vec<TokenId> = (6..90).collect(); // more than the first capacity
    let (late, then): (Vec<TokenId>, Vec<TokenId>) = ((40..45).collect(), (50..60).collect());
    let joined = alone(&model, &late, &then);
    let mut cache = model.new_cache();
    model.forward(tokens(&[&long], &device), &mut cache, &mut NoTap).unwrap();
    let mut newcomer = model.new_cache();
    model.forward(tokens(&[&late], &device), &mut newcomer, &mut NoTap).unwrap();
    cache.append_rows(newcomer).unwrap();
    for (step, &id) in then.iter().enumerate() {
        let logits =
            model.forward(tokens(&[&[7], &[id]], &device), &mut cache, &mut NoTap).unwrap();
        assert_close("joined", &values(logits)[VOCAB..], &joined[step + 1], 1e-4);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    let device = Device::flex();
    let model = load("llama", &device);
    let mut cache = model.new_cache();
    let prompt: Vec<TokenId> = (0..90).collect();
    model.forward(tokens(&[&prompt], &device), &mut cache, &mut NoTap).unwrap();
    let error = model.forward(tokens(&[&[1], &[2]], &device), &mut cache, &mut NoTap).unwrap_err();
    assert_eq!(error.to_string(), "tokens for the key-value cache: expected 1 rows, got 2");
    assert_eq!(cache.keep_rows(&[0, 1]).unwrap_err().to_string(), "row 1: expected a row below 1");
    let long: Vec<TokenId> = (0..39).collect();
    let error = model.forward(tokens(&[&long], &device), &mut cache, &mut NoTap).unwrap_err();
    assert!(matches!(error, ModelError::ContextFull { limit: 128, got: 129 }));
    cache.keep_rows(&[]).unwrap();
    assert_eq!(cache.rows(), 0);
    let empty = Tensor::<2, Int>::zeros([1, 0], &device);
    assert!(model.forward(empty, &mut cache, &mut NoTap).is_err());
    let other = load("qwen3", &device); // other head width
    let mut theirs = other.new_cache();
    other.forward(tokens(&[&[1, 2]], &device), &mut theirs, &mut NoTap).unwrap();
    let mut mine = model.new_cache();
    model.forward(tokens(&[&[1, 2]], &device), &mut mine, &mut NoTap).unwrap();
    assert_eq!(
        mine.append_rows(theirs).unwrap_err().to_string(),
        "key-value cache to append: expected shape [2, 8], got [2, 16]"
    );
}

#[test]
fn the_cache_of_another_model_is_an_error() {
    let device = Device::flex();
    let (model, other) = (load("llama", &device), load("qwen3", &device)); // other head width
    let mut theirs = other.new_cache();
    other.forward(tokens(&[&[1, 2]], &device), &mut theirs, &mut NoTap).unwrap();
    let error = model.forward(tokens(&[&[3]], &device), &mut theirs, &mut NoTap).unwrap_err();
    assert_eq!(error.to_string(), "key-value cache: expected shape [2, 8], got [2, 16]");
    other.forward(tokens(&[&[3]], &device), &mut theirs, &mut NoTap).unwrap();

    let shallow = model.config().clone().with_n_layers(1);
    let shallow = Llama::random(shallow, 1, &device).unwrap();
    let error = model.forward(tokens(&[&[3]], &device), &mut shallow.new_cache(), &mut NoTap);
    let message = "key-value cache, in blocks: expected shape [2], got [1]";
    assert_eq!(error.unwrap_err().to_string(), message);
}

#[test]
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
fn a_cache_on_another_device_is_an_error() {
    let (device, elsewhere) = (Device::flex(), Device::ndarray());
    let model = load("llama", &device);
    let (there, mut theirs) = (load("llama", &elsewhere), model.new_cache());
    there.forward(tokens(&[&[1]], &elsewhere), &mut theirs, &mut NoTap).unwrap();
    let error = model.forward(tokens(&[&[3]], &device), &mut theirs, &mut NoTap).unwrap_err();
    assert!(error.to_string().starts_with("key-value cache: expected device "), "{error}");
}
