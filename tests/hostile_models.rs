//! Model files that ask for more than they hold end in an error, within limits of memory and time that the operating
//! system sets: each test runs in a process of its own.

#![cfg(target_os = "linux")] // `ulimit -v` works there
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::Device;
use esamp::llama::{Llama, Tokenizer};
use esamp_testkit::{bounded, gguf::GgufFile};

fn write(file: &GgufFile) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hostile.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    (folder, path)
}

/// 0.8 MB that would be a model of 11 GB.
#[test]
fn overlapping_tensors() {
    bounded::test("overlapping_tensors", 300, || {
        const Q4_0: u32 = 2;
        let mut file = GgufFile::default()
            .text("general.architecture", "llama")
            .number("llama.embedding_length", 1024)
            .number("llama.feed_forward_length", 1024)
            .number("llama.block_count", 400)
            .number("llama.attention.head_count", 8)
            .number("llama.context_length", 64)
            .float("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .zeros(1024 * 1024 / 32 * 18)
            .tensor_at("token_embd.weight", &[256, 1024], Q4_0, 0)
            .tensor_at("output_norm.weight", &[1024], 0, 0);
        for block in 0..400 {
            for norm in ["attn_norm", "ffn_norm"] {
                file = file.tensor_at(&format!("blk.{block}.{norm}.weight"), &[1024], 0, 0);
            }
            for name in
                ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
            {
                let name = format!("blk.{block}.{name}.weight");
                file = file.tensor_at(&name, &[1024, 1024], Q4_0, 0);
            }
        }
        let (_folder, path) = write(&file);
        let message = Llama::from_gguf(path, &Device::flex()).unwrap_err().to_string();
        assert!(message.contains("expected bytes of its own, got bytes of tensor"), "{message}");
    });
}

/// 32 MB of flags in one array, which would be 1 GB of values.
#[test]
fn a_large_array() {
    bounded::test("a_large_array", 300, || {
        let mut array = [&7u32.to_le_bytes()[..], &(32u64 << 20).to_le_bytes()].concat();
        array.resize(array.len() + (32 << 20), 1);
        let (_folder, path) = write(&GgufFile::default().raw("flags", 9, &array));
        let message = Tokenizer::from_gguf(path).unwrap_err().to_string();
        assert_eq!(message, "key tokenizer.ggml.model: expected a string, got none");
    });
}

fn sentence_piece(tokens: &[String]) -> GgufFile {
    GgufFile::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", tokens)
        .floats("tokenizer.ggml.scores", &vec![0.0; tokens.len()])
}

/// A token of 300 KB, whose splits take seconds to look up.
#[test]
fn a_long_token() {
    bounded::test("a_long_token", 300, || {
        let (_folder, path) = write(&sentence_piece(&["a".repeat(300_000), "a".to_owned()]));
        let message = Tokenizer::from_gguf(path).unwrap_err().to_string();
        assert!(message.ends_with("got 300000 bytes"), "{message}");
    });
}

/// 0.5 MB of tokens with 0.2 GB of merges, and 1.2 MB of tokens of many lengths that have none.
#[test]
fn many_merges() {
    bounded::test("many_merges", 300, || {
        let tokens: Vec<String> = (1..=1000).map(|length| "a".repeat(length)).collect();
        let (_folder, path) = write(&sentence_piece(&tokens));
        let message = Tokenizer::from_gguf(path).unwrap_err().to_string();
        assert!(message.contains("about two merges a token"), "{message}");

        let lengths = (1..=1024).cycle().take(2340).enumerate();
        let tokens: Vec<String> = lengths
            .map(|(at, length)| format!("{at:04}{}", "a".repeat(length))[..length].to_owned())
            .collect();
        let (_folder, path) = write(&sentence_piece(&tokens));
        drop(Tokenizer::from_gguf(path)); // an error or a tokenizer, but soon
    });
}

/// 60 MB of tokens of a kilobyte, each of which could be split at any place into tokens of lengths that there are.
#[test]
fn many_long_tokens() {
    bounded::test("many_long_tokens", 1000, || {
        let lengths = (1..1024).chain(std::iter::repeat_n(1024, 60_000)).enumerate();
        let text = |(at, length): (usize, usize)| {
            format!("{at:05}{}", "a".repeat(length))[..length].to_owned()
        };
        let tokens: Vec<String> = lengths.map(text).collect();
        let (_folder, path) = write(&sentence_piece(&tokens));
        drop(Tokenizer::from_gguf(path)); // an error or a tokenizer, but soon
    });
}

/// The largest vocabulary of merges that is allowed: every text of up to 14 letters of two, 0.6 MB.
#[test]
fn the_most_merges() {
    bounded::test("the_most_merges", 300, || {
        let texts = (1..15).flat_map(|length| (0..1 << length).map(move |bits| (length, bits)));
        let letter = |bits: usize, at: usize| if bits >> at & 1 == 0 { 'a' } else { 'b' };
        let tokens: Vec<String> =
            texts.map(|(length, bits)| (0..length).map(|at| letter(bits, at)).collect()).collect();
        let (_folder, path) = write(&sentence_piece(&tokens));
        assert_eq!(Tokenizer::from_gguf(path).unwrap().vocab_size(), tokens.len());
    });
}
