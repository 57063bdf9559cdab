//! The tokenizer that this crate's users take from a GGUF file, against llama.cpp's own.

use std::path::Path;

use esamp::{
    TokenId,
    llama::{ChatMessage, ChatTemplate, Tokenizer},
};
use esamp_llama_cpp::own_loop::OwnLoop;
use esamp_testkit::golden;

use super::{SMOLLM2, options, tiny};

/// No character is decomposed: for Qwen, ours composes them as its own tokenizer does (NFC), and llama.cpp does not.
const TEXTS: [&str; 11] = [
    "The capital of France is",
    "the night and the light on thin ice",
    "  two spaces,\n\nlines\tand tabs \n end ",
    "It's 12345 o'clock; they'll say it'd BEEN",
    "HTTPServer camelCase XMLHttp and DON'T",
    "naïve café, Ελλάδα, Привет, 東京, 🦀 é",
    "x = [1, 2.50]; // path/to/file\r\n",
    "<|im_start|>user\nHello<|im_end|>\n",
    "",
    " ",
    "100000000 000",
];

fn assert_same(path: &Path, texts: &[String]) {
    let ours = Tokenizer::from_gguf(path).unwrap();
    let theirs = OwnLoop::load(path, &options(), None).unwrap();
    for text in texts {
        let expected = theirs.tokenize(text, true).unwrap();
        assert_eq!(ours.encode(text).unwrap(), expected, "{}: {text:?}", path.display());
        let expected = theirs.tokenize(text, false).unwrap();
        let got = ours.encode_rendered(text).unwrap();
        assert_eq!(got, expected, "{}, rendered: {text:?}", path.display());
    }
}

#[derive(serde::Deserialize)]
struct Greedy {
    prompt: String,
    chat: bool,
    prompt_ids: Vec<TokenId>,
}

#[test]
fn smollm2_has_the_tokens_of_llama_cpp_on_the_golden_prompts() {
    let golden = std::fs::read_to_string(golden::path("greedy.json")).unwrap();
    let golden: Vec<Greedy> = serde_json::from_str(&golden).unwrap();
    let template = ChatTemplate::from_gguf(&*SMOLLM2).unwrap().unwrap();
    let theirs = OwnLoop::load(&*SMOLLM2, &options(), None).unwrap();
    let mut texts = Vec::new();
    for case in golden {
        let text = match case.chat {
            true => template.render(&[ChatMessage::user(case.prompt)]).unwrap(),
            false => case.prompt,
        };
        assert_eq!(theirs.tokenize(&text, false).unwrap(), case.prompt_ids, "{text:?}");
        texts.push(text);
    }
    texts.extend(TEXTS.map(str::to_owned));
    assert_same(&SMOLLM2, &texts);
}

#[test]
fn vocabularies_of_other_families_have_the_tokens_of_llama_cpp() {
    for name in ["llama", "llama-q4_1", "qwen2", "gemma3", "phi3", "gpt-oss"] {
        assert_same(&tiny(name), &TEXTS.map(str::to_owned));
    }
}
