//! Compares sentence embeddings with the package sentence-transformers: tests/golden/minilm/make.py.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::PathBuf};

use burn::tensor::Device;
use esamp_eval::sentence_embedding::SentenceEmbedder;
use esamp_programs::model_source::{Cache, Wheel};
use esamp_testkit::golden;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    sentences: Vec<Sentence>,
}

#[derive(Deserialize)]
struct Sentence {
    text: String,
    tokens: Vec<u32>,
    embedding: Vec<f32>,
}

fn sentences() -> Vec<Sentence> {
    let path = golden::path("minilm/minilm.json");
    serde_json::from_slice::<Golden>(&fs::read(path).unwrap()).unwrap().sentences
}

fn folder() -> PathBuf {
    Cache::from_env().unwrap().wheel_folder(&Wheel::minilm()).unwrap()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn embeddings_are_those_of_sentence_transformers() {
    let sentences = sentences();
    let texts: Vec<String> = sentences.iter().map(|sentence| sentence.text.clone()).collect();
    for device in golden::devices() {
        let embedder = SentenceEmbedder::load(&folder(), &device).unwrap();
        assert_eq!(embedder.width(), 384);
        let together = embedder.embed(&texts).unwrap();
        for (sentence, embedding) in sentences.iter().zip(&together) {
            let Sentence { text, tokens, embedding: expected } = sentence;
            assert_eq!(&embedder.tokens(text).unwrap(), tokens, "{text:?}");
            let (cosine, difference) =
                (cosine(embedding, expected), max_difference(embedding, expected));
            assert!(cosine > 0.9999, "{text:?}: cosine {cosine}");
            assert!(difference < 1e-5, "{text:?}: differs by {difference}");
            assert!((length(embedding) - 1.0).abs() < 1e-5, "{text:?}");
        }
    }
}

fn length(embedding: &[f32]) -> f64 {
    embedding.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn neighbours_order_and_truncated_text_do_not_matter() {
    let embedder = SentenceEmbedder::load(&folder(), &Device::flex()).unwrap();
    let long = sentences().pop().unwrap();
    assert_eq!(long.tokens.len(), SentenceEmbedder::MAX_TOKENS);
    // More than one batch, with mixed lengths.
    let texts: Vec<String> = (0..40)
        .map(|i| match i % 13 {
            5 => long.text.clone(),
            _ => {
                format!("{}sheep number {i} jumps over the fence", "again and ".repeat(i * 7 % 11))
            }
        })
        .collect();
    let together = embedder.embed(&texts).unwrap();
    for (text, embedding) in texts.iter().zip(&together) {
        let alone = embedder.embed(std::slice::from_ref(text)).unwrap();
        assert!(max_difference(&alone[0], embedding) < 1e-5, "{text}");
    }
    let longer = format!("{} And then something else entirely.", long.text);
    assert_eq!(embedder.embed(&[longer]).unwrap()[0], embedder.embed(&[long.text]).unwrap()[0]);
    assert!(embedder.embed(&[]).unwrap().is_empty());
}

#[test]
fn texts_with_the_same_meaning_are_close() {
    let embedder = SentenceEmbedder::load(&folder(), &Device::flex()).unwrap();
    let texts =
        ["A dog runs after the ball.", "The puppy is chasing a ball.", "Interest rates fell."];
    let points = embedder.embed(&texts.map(str::to_owned)).unwrap();
    let (same, other) = (cosine(&points[0], &points[1]), cosine(&points[0], &points[2]));
    assert!(same > 0.5 && other < 0.2, "{same} {other}");
}

/// A folder with this configuration, the real tokenizer and these bytes as weights.
fn folder_with(config: &Value, weights: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    fs::copy(folder().join("tokenizer.json"), copy.path().join("tokenizer.json")).unwrap();
    fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
    fs::write(copy.path().join("model.safetensors"), weights).unwrap();
    copy
}

#[test]
fn a_folder_without_a_valid_model_is_an_error_that_names_the_file() {
    let good: Value =
        serde_json::from_slice(&fs::read(folder().join("config.json")).unwrap()).unwrap();
    let refused = |config: &Value, weights: &[u8]| {
        let folder = folder_with(config, weights);
        let error = SentenceEmbedder::load(folder.path(), &Device::flex()).unwrap_err();
        error.to_string().replace(&format!("{}/", folder.path().display()), "")
    };
    let with = |key: &str, value: Value| {
        let mut config = good.clone();
        config[key] = value;
        config
    };
    for (key, value, expected) in [
        ("hidden_act", json!("relu"), "expected gelu, got relu"),
        ("position_embedding_type", json!("relative_key"), "expected absolute, got relative_key"),
        ("num_attention_heads", json!(7), "expected a divisor of 384, got 7"),
        ("num_attention_heads", json!(0), "expected a divisor of 384, got 0"),
        ("max_position_embeddings", json!(128), "expected at least 256, got 128"),
    ] {
        let message = refused(&with(key, value), b"");
        assert_eq!(message, format!("config.json: key {key}: {expected}"));
    }
    let message = refused(&json!({"hidden_size": 384}), b"");
    assert!(message.starts_with("config.json: content: expected the configuration of a BERT, got"));

    let whole = fs::read(folder().join("model.safetensors")).unwrap();
    for damaged in [&b""[..], &whole[..whole.len() / 2], b"PK\x03\x04 this is a zip file"] {
        let message = refused(&good, damaged);
        let start =
            "model.safetensors: content: expected a safetensors file that holds the weights, got ";
        assert!(message.starts_with(start), "{message}");
    }
    let message = refused(&with("intermediate_size", json!(1024)), &whole);
    let start = "model.safetensors: tensors: expected tensors of the shapes that config.json asks for, got ";
    assert!(message.starts_with(start) && message.contains("1024"), "{message}");
    let message = refused(&with("num_hidden_layers", json!(7)), &whole);
    assert!(message.starts_with("model.safetensors: tensor blocks.6."), "{message}");
    assert!(message.ends_with(": expected numbers, got none"), "{message}");

    let folder = folder_with(&good, b"");
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    let error = SentenceEmbedder::load(folder.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: content: expected a tokenizer, got"), "{error}");
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let error = SentenceEmbedder::load(folder.path(), &Device::flex()).unwrap_err().to_string();
    assert!(error.ends_with("tokenizer.json: cannot be read"), "{error}");
}
