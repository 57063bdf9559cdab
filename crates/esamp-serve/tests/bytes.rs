//! Log-probabilities of tokens that are parts of characters.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod server;

use burn::tensor::Device;
use esamp::{TokenId, testing::ScriptedLm};
use esamp_programs::loaded::Texts;
use serde_json::{Map, Value, json};

use server::Server;

/// What the model says, over and over.
const TEXT: &str = "🦀 aé a";

/// A space and the letter a.
const WORD: TokenId = 256;

fn tokens() -> Vec<TokenId> {
    let bytes = |text: &str| text.bytes().map(TokenId::from).collect::<Vec<_>>();
    [bytes("🦀"), vec![WORD], bytes("é"), vec![WORD]].concat()
}

/// A tokenizer of the bytes and one word, whose decoder is `decoder`.
fn texts(token: impl Fn(u8) -> String, word: &str, decoder: Value) -> Texts {
    let mut vocab: Map<String, Value> = (0..=255).map(|byte| (token(byte), byte.into())).collect();
    vocab.insert(word.to_owned(), WORD.into());
    let model = json!({"type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": word == "▁a"});
    let tokenizer =
        json!({"version": "1.0", "added_tokens": [], "model": model, "decoder": decoder});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let template = "{{ messages[0].content }}";
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Texts::open(folder.path()).unwrap()
}

/// GPT-2's way, in which a character stands for each byte.
fn byte_level() -> Texts {
    let printed = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u8> = (0..=255).filter(|byte| !printed(byte)).collect();
    let token = |byte: u8| match others.iter().position(|&other| other == byte) {
        None => char::from(byte).to_string(),
        Some(at) => char::from_u32(256 + at as u32).unwrap().to_string(),
    };
    texts(
        token,
        "Ġa",
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}),
    )
}

/// SentencePiece's way, which drops a space at the beginning of a text.
fn byte_fallback() -> Texts {
    let decoders = json!([
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]);
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    texts(|byte| format!("<0x{byte:02X}>"), "▁a", decoder)
}

/// Says [`TEXT`] from the token at `from` on. The second choice is always the byte 0xe4.
fn model(from: usize) -> ScriptedLm {
    let script = move |sequence: &[TokenId]| {
        let said = tokens();
        let next = said[(from + sequence.len() - 1) % said.len()];
        let logit = |token: TokenId| match token {
            token if token == next => 9.0,
            0xe4 => 3.0,
            token => token as f32 / -1000.0,
        };
        (0..=WORD).map(logit).collect()
    };
    ScriptedLm::new(WORD as usize + 1, &Device::flex(), script)
}

fn bytes(token: &Value) -> Vec<u8> {
    let bytes = token["bytes"].as_array().unwrap();
    bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect()
}

/// The log-probabilities of all chunks of a stream, and its text.
fn streamed(server: &Server, path: &str, body: &Value) -> (Vec<Value>, String) {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let (chunks, is_done) = server.post(path, &body).chunks();
    assert!(is_done, "{chunks:?}");
    let choice = |chunk: &Value| chunk["choices"][0].clone();
    let text = |choice: &Value| {
        let text = choice["text"].as_str().or(choice["delta"]["content"].as_str());
        text.unwrap_or_default().to_owned()
    };
    let choices: Vec<Value> = chunks.iter().map(choice).collect();
    (
        choices.iter().map(|choice| choice["logprobs"].clone()).collect(),
        choices.iter().map(text).collect(),
    )
}

#[test]
fn a_token_has_its_own_bytes_in_a_chat() {
    for texts in [byte_level(), byte_fallback()] {
        let server = Server::with_texts(model(0), texts, &[]);
        let body = json!({"model": "words", "messages": [{"role": "user", "content": "!"}], "max_tokens": 8,
                          "logprobs": true, "top_logprobs": 2, "temperature": 0});
        let whole = server.post("/v1/chat/completions", &body).json();
        let choice = &whole["choices"][0];
        assert_eq!(choice["message"]["content"], TEXT, "{whole}");
        let content = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(content.iter().flat_map(bytes).collect::<Vec<_>>(), TEXT.as_bytes());
        let names: Vec<&Value> = content.iter().map(|token| &token["token"]).collect();
        assert_eq!(names, ["\\xf0", "\\x9f", "\\xa6", "\\x80", " a", "\\xc3", "\\xa9", " a"]);
        for token in content {
            let [first, second] = &token["top_logprobs"].as_array().unwrap()[..] else {
                panic!("{token}")
            };
            assert_eq!(first["bytes"], token["bytes"]);
            assert_eq!((&second["token"], bytes(second)), (&json!("\\xe4"), vec![0xe4]));
        }
        let (parts, text) = streamed(&server, "/v1/chat/completions", &body);
        let parts: Vec<Value> = parts
            .iter()
            .flat_map(|part| part["content"].as_array().cloned().unwrap_or_default())
            .collect();
        assert_eq!((&parts, &text[..]), (content, TEXT));
    }
}

#[test]
fn a_token_has_its_own_text_and_place_in_a_completion() {
    for texts in [byte_level(), byte_fallback()] {
        let server = Server::with_texts(model(0), texts, &[]);
        let body = json!({"model": "words", "prompt": [33], "max_tokens": 8, "logprobs": 1, "temperature": 0});
        let whole = server.post("/v1/completions", &body).json();
        let shown = &whole["choices"][0]["logprobs"];
        let names = [
            "bytes:\\xf0",
            "bytes:\\x9f",
            "bytes:\\xa6",
            "bytes:\\x80",
            " a",
            "bytes:\\xc3",
            "bytes:\\xa9",
            " a",
        ];
        assert_eq!(shown["tokens"], json!(names), "{whole}");
        assert_eq!(shown["text_offset"], json!([0, 0, 0, 0, 1, 3, 3, 4]));
        for (at, name) in names.iter().enumerate() {
            assert_eq!(shown["top_logprobs"][at], json!({*name: shown["token_logprobs"][at]}));
        }
        let (parts, text) = streamed(&server, "/v1/completions", &body);
        assert_eq!(text, TEXT);
        let all = |field: &str| -> Vec<Value> {
            let parts = parts.iter().filter_map(|part| part[field].as_array().cloned());
            parts.flatten().collect()
        };
        for field in ["tokens", "text_offset", "token_logprobs", "top_logprobs"] {
            assert_eq!(json!(all(field)), shown[field], "{field}");
        }
    }
}

#[test]
fn a_space_that_the_text_does_not_have_is_in_no_token() {
    for (texts, first) in [(byte_level(), " a"), (byte_fallback(), "a")] {
        let server = Server::with_texts(model(4), texts, &[]);
        let body = json!({"model": "words", "prompt": [33], "max_tokens": 4, "logprobs": 1, "temperature": 0});
        let whole = server.post("/v1/completions", &body).json();
        let choice = &whole["choices"][0];
        assert_eq!(choice["text"], format!("{first}é a"), "{whole}");
        assert_eq!(choice["logprobs"]["tokens"][0], first);
        let length = first.len();
        assert_eq!(choice["logprobs"]["text_offset"], json!([0, length, length, length + 1]));
        assert_eq!(choice["logprobs"]["top_logprobs"][0].as_object().unwrap().len(), 1, "{whole}");
    }
}
