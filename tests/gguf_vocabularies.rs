//! Vocabularies of GGUF files: end tokens, ids that are out of range, and files that do not say how a text is split.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ops::ControlFlow;

use burn::tensor::Device;
use esamp::{
    Decoder, Detokenize, FinishReason, Request, SamplerConfig, TokenId,
    llama::{ChatMessage, ChatTemplate, Tokenizer},
    testing::ScriptedLm,
};
use esamp_testkit::gguf::GgufFile;

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Two letters and the end tokens of Qwen2.5.
const TOKENS: [(&str, i32); 4] =
    [("a", NORMAL), ("b", NORMAL), ("<|endoftext|>", CONTROL), ("<|im_end|>", CONTROL)];

fn tokenizer(file: &GgufFile) -> Tokenizer {
    load(file).unwrap()
}

fn load(file: &GgufFile) -> Result<Tokenizer, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    Tokenizer::from_gguf(&path).map_err(|error| error.to_string())
}

/// The end tokens and the number of warnings of a vocabulary whose keys name only its last token as EOS.
fn ends(tokens: &[(&str, i32)]) -> (Vec<TokenId>, usize) {
    let last = tokens.len() as u32 - 1;
    let file = GgufFile::vocabulary(tokens).number("tokenizer.ggml.eos_token_id", last);
    let tokenizer = tokenizer(&file);
    (tokenizer.stop_tokens().to_vec(), tokenizer.warnings().len())
}

#[test]
fn every_end_token_of_the_vocabulary_ends_a_completion() {
    // Qwen2.5: EOS is <|im_end|>, and <|endoftext|> is named as BOS only.
    let file = GgufFile::vocabulary(&TOKENS)
        .number("tokenizer.ggml.eos_token_id", 3)
        .number("tokenizer.ggml.bos_token_id", 2)
        .flag("tokenizer.ggml.add_bos_token", false);
    let qwen = tokenizer(&file);
    assert_eq!(qwen.stop_tokens(), [2, 3]);
    assert!(qwen.warnings().is_empty(), "{:?}", qwen.warnings());

    // Each of the keys counts, regardless of the text of its token.
    for key in ["eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"] {
        let file = GgufFile::vocabulary(&[("a", NORMAL), ("<stop here>", CONTROL)])
            .number(&format!("tokenizer.ggml.{key}_token_id"), 1);
        assert_eq!(tokenizer(&file).stop_tokens(), [1], "{key}");
    }

    // A known text counts regardless of its type, as in llama.cpp, and has no text of its own.
    let eot = ("<|eot_id|>", NORMAL);
    let eom = ("<|eom_id|>", USER_DEFINED);
    let tokens = [("a", NORMAL), eot, eom, ("<|begin_of_text|>", CONTROL), ("</s>", CONTROL)];
    assert_eq!(ends(&tokens), (vec![1, 2, 4], 2));
    let file = GgufFile::vocabulary(&tokens);
    assert_eq!(tokenizer(&file).decode(&[0, 1, 0, 2]).unwrap(), "aa");
    assert_eq!(
        tokenizer(&file).warnings()[0],
        "key tokenizer.ggml.token_type: expected 3, a control token, for the end token \"<|eot_id|>\", got 1: \
         used as an end token"
    );

    // Separators of source files count only if the file names none.
    let tokens = [("<|fim_pad|>", CONTROL), ("<|repo_name|>", CONTROL), ("<|file_sep|>", CONTROL)];
    assert_eq!(ends(&[&tokens[..], &[("</s>", CONTROL)]].concat()).0, [0, 1, 2, 3]);
    let file = GgufFile::vocabulary(&[("[PAD]", CONTROL), ("<x>", CONTROL)])
        .number("tokenizer.ggml.fim_pad_token_id", 1);
    assert_eq!(tokenizer(&file).stop_tokens(), [1]);
}

#[test]
fn the_end_of_a_message_is_not_the_end_of_a_harmony_completion() {
    let end = ("<|end|>", CONTROL);
    let [call, turn, flush] =
        [("<|call|>", CONTROL), ("<|return|>", CONTROL), ("<|flush|>", CONTROL)];
    assert_eq!(ends(&[end, turn]).0, [0, 1]);
    assert_eq!(ends(&[end, call, turn]).0, [1, 2]);
    assert_eq!(ends(&[end, call, flush]).0, [1, 2]);
    assert_eq!(ends(&[("</s>", CONTROL), ("<|tool_response>", CONTROL)]).0, [1]);
}

#[test]
fn ids_outside_of_the_vocabulary_are_left_out_with_a_warning() {
    let plain = GgufFile::vocabulary(&[("a", NORMAL), ("b", NORMAL)]);
    let key = "tokenizer.ggml.eos_token_id";
    for (kind, value, got) in [
        (4, 2u32.to_le_bytes().to_vec(), "2"),
        (4, u32::MAX.to_le_bytes().to_vec(), "4294967295"),
        (5, (-1i32).to_le_bytes().to_vec(), "-1"),
        (10, 4_294_967_297_u64.to_le_bytes().to_vec(), "4294967297"), // 1 in 32 bits
        (10, u64::MAX.to_le_bytes().to_vec(), "18446744073709551615"),
    ] {
        let tokenizer = tokenizer(&plain.clone().raw(key, kind, &value));
        assert!(tokenizer.stop_tokens().is_empty(), "{got}");
        let warning = format!(
            "key {key}: expected an id below 2, got {got}: left out, because no model draws it"
        );
        assert_eq!(tokenizer.warnings(), [warning]);
    }
    let message = load(&plain.clone().text(key, "b")).unwrap_err();
    assert_eq!(message, format!("key {key}: expected a whole number, got String(\"b\")"));

    // A BOS token out of range is not prepended, and the chat template has no text for it.
    let file = plain
        .raw("tokenizer.ggml.bos_token_id", 10, &4_294_967_297_u64.to_le_bytes())
        .raw(key, 5, &(-1i32).to_le_bytes())
        .flag("tokenizer.ggml.add_bos_token", true)
        .text("tokenizer.chat_template", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    assert_eq!(tokenizer(&file).encode("ab").unwrap(), [0, 1]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("template.gguf");
    std::fs::write(&path, file.bytes()).unwrap();
    let template = ChatTemplate::from_gguf(&path).unwrap().unwrap();
    assert_eq!(template.render(&[ChatMessage::user("hi")]).unwrap(), "hi");
}

#[test]
fn a_file_that_does_not_say_how_to_split_a_text_is_split_as_its_architecture_does() {
    let file = |architecture: &str, pre: Option<&str>, marker: &str| {
        let file = GgufFile::default()
            .text("general.architecture", architecture)
            .text("tokenizer.ggml.model", "gpt2")
            .texts("tokenizer.ggml.tokens", &["1", "2", "12", "123", "3", marker])
            .texts("tokenizer.ggml.merges", &["1 2", "12 3"])
            .number("tokenizer.ggml.bos_token_id", 5);
        let file = match pre {
            Some(pre) => file.text("tokenizer.ggml.pre", pre),
            None => file,
        };
        let tokenizer = tokenizer(&file);
        (tokenizer.encode("123").unwrap(), tokenizer.warnings().len())
    };
    for pre in [None, Some("default")] {
        assert_eq!(file("qwen2", pre, "<|x|>"), (vec![0, 1, 4], 1)); // digits one by one
        assert_eq!(file("llama", pre, "<|begin_of_text|>"), (vec![5, 3], 1)); // by three, after BOS
        assert_eq!(file("llama", pre, "<|x|>"), (vec![3], 1));
    }
    assert_eq!(file("qwen2", Some("deepseek-r1-qwen"), "<|x|>"), (vec![0, 1, 4], 0));
}

#[test]
fn a_stop_string_may_be_the_text_of_a_special_token() {
    let vocabulary = tokenizer(&GgufFile::vocabulary(&TOKENS));
    assert_eq!(vocabulary.special_token("<|im_end|>"), Some(3));
    assert_eq!(vocabulary.special_token("a"), None);
    // The model says a, b, <|im_end|>, a, b and so on.
    let model = ScriptedLm::new(4, &Device::flex(), |sequence| {
        let next = match sequence.last().unwrap() {
            0 => 1,
            1 => 3,
            _ => 0,
        };
        (0..4).map(|token| if token == next { 50.0 } else { 0.0 }).collect()
    });
    let run = |stops: &[&str]| {
        let sampler = SamplerConfig::new().init(esamp::CausalLm::d_model(&model), &Device::flex());
        let decoder = Decoder::new(&model, sampler.unwrap()).unwrap();
        let mut decoder = decoder.with_detokenizer(vocabulary.clone());
        let request = Request::new(vec![3]).with_max_new_tokens(7);
        decoder.submit(request.with_stop_strings(stops.iter().copied())).unwrap();
        let completion = decoder.run(|_| ControlFlow::Continue(())).unwrap().remove(0);
        (completion.text.unwrap(), completion.finish)
    };
    let stopped = FinishReason::StopString("<|im_end|>".to_owned());
    assert_eq!(run(&["x", "<|im_end|>"]), ("ab".to_owned(), stopped.clone()));
    // Text that was held back, because it may begin another stop string, is not lost.
    assert_eq!(run(&["bb", "<|im_end|>"]), ("ab".to_owned(), stopped));
    assert_eq!(run(&["<|endoftext|>"]).1, FinishReason::MaxNewTokens);
}

#[test]
fn tokens_and_merges_are_bounded() {
    let long = "a".repeat(1025);
    let message = load(&GgufFile::vocabulary(&[("a", NORMAL), (&long, NORMAL)])).unwrap_err();
    let expected =
        "key tokenizer.ggml.tokens: expected tokens of at most 1024 bytes, got 1025 bytes";
    assert_eq!(message, expected);
    // 0.5 MB of tokens that would have half a million merges of half a kilobyte each.
    let tokens: Vec<String> = (1..=1000).map(|length| "a".repeat(length)).collect();
    let file = GgufFile::default()
        .text("tokenizer.ggml.model", "llama")
        .texts("tokenizer.ggml.tokens", &tokens)
        .floats("tokenizer.ggml.scores", &vec![0.0; 1000]);
    let message = load(&file).unwrap_err();
    assert!(
        message.starts_with("key tokenizer.ggml.tokens: expected about two merges"),
        "{message}"
    );
}
