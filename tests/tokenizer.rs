//! Tokenizers and chat templates against SentencePiece and against the ids that PyTorch's tools gave the real model.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

#[path = "../examples/model_source/mod.rs"]
mod model_source;

use std::path::{Path, PathBuf};

use esamp::{
    Detokenize, TextStream, TokenId,
    llama::{ChatMessage, ChatTemplate, Tokenizer},
};
use model_source::{Cache, ModelSource};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn smollm2() -> PathBuf {
    ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap()
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(golden(name)).unwrap()).unwrap()
}

#[derive(serde::Deserialize)]
struct Greedy {
    prompt: String,
    chat: bool,
    prompt_ids: Vec<TokenId>,
    token_ids: Vec<TokenId>,
    text: String,
}

#[test]
fn smollm2_reads_prompts_as_its_own_tokenizer_does() {
    let tokenizer = Tokenizer::from_gguf(smollm2()).unwrap();
    let template = ChatTemplate::from_gguf(smollm2()).unwrap().unwrap();
    let cases: Vec<Greedy> = json("greedy.json");
    assert!(cases.iter().any(|case| case.chat) && cases.iter().any(|case| !case.chat));
    for case in cases {
        let ids = match case.chat {
            true => {
                let text = template.render(&[ChatMessage::user(case.prompt)]).unwrap();
                tokenizer.encode_rendered(&text).unwrap()
            }
            false => tokenizer.encode(&case.prompt).unwrap(),
        };
        assert_eq!(ids, case.prompt_ids);
        let text = tokenizer.decode(&case.token_ids).unwrap();
        assert_eq!(text, case.text.replace("<|im_end|>", ""));
    }
    assert_eq!(tokenizer.stop_tokens(), [2]);
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.vocab_size(), 49152);
}

#[derive(serde::Deserialize)]
struct Piece {
    text: String,
    ids: Vec<TokenId>,
    decoded: String,
}

#[test]
fn a_sentencepiece_vocabulary_reads_as_sentencepiece_does() {
    let tokenizer = Tokenizer::from_gguf(golden("tokenizer/sentencepiece.gguf")).unwrap();
    for case in json::<Vec<Piece>>("tokenizer/sentencepiece.json") {
        let mut expected = vec![1]; // the file says nothing, so a SentencePiece model gets its first token
        expected.extend(&case.ids);
        assert_eq!(tokenizer.encode(&case.text).unwrap(), expected, "{:?}", case.text);
        assert_eq!(tokenizer.encode_rendered(&case.text).unwrap(), case.ids);
        assert_eq!(tokenizer.decode(&case.ids).unwrap(), case.decoded, "{:?}", case.text);
    }
    assert_eq!(tokenizer.stop_tokens(), [2]);
}

#[test]
fn a_wrong_byte_does_not_stop_the_text_of_a_sentencepiece_model() {
    let tokenizer = Tokenizer::from_gguf(golden("tokenizer/sentencepiece.gguf")).unwrap();
    let byte = |byte: u8| tokenizer.token_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut tokens: Vec<TokenId> = "😀".bytes().map(byte).collect();
    tokens.push(byte(0xf0));
    tokens.extend(tokenizer.encode_rendered("the lighthouse").unwrap());
    let mut stream = TextStream::default();
    let pieces: Vec<String> =
        tokens.iter().map(|&token| stream.push(token, &tokenizer).unwrap()).collect();
    assert_eq!(pieces.concat(), "😀\u{fffd} the lighthouse");
}

#[test]
fn a_hugging_face_folder_brings_tokenizer_stop_tokens_and_template() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    let missing = Tokenizer::from_hf_folder(folder.path()).unwrap_err().to_string();
    assert!(missing.ends_with("tokenizer.json: cannot be read"), "{missing}");
    write(
        "tokenizer.json",
        r#"{"version": "1.0", "added_tokens": [{"id": 3, "content": "</s>", "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false}], "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2, "</s>": 3}, "unk_token": "?"}}"#,
    );
    write("config.json", r#"{"eos_token_id": 1}"#);
    assert_eq!(Tokenizer::from_hf_folder(folder.path()).unwrap().stop_tokens(), [1]);
    write("generation_config.json", r#"{"eos_token_id": [3, 1]}"#);
    let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.stop_tokens(), [3, 1]);
    assert_eq!(tokenizer.encode("a b c </s>").unwrap(), [0, 1, 2, 3]);
    assert_eq!(tokenizer.decode(&[0, 3]).unwrap(), "a");

    assert!(ChatTemplate::from_hf_folder(folder.path()).unwrap().is_none());
    write(
        "tokenizer_config.json",
        r#"{"bos_token": {"content": "<s>"}, "eos_token": "</s>", "chat_template":
            [{"name": "tools", "template": "x"}, {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]}"#,
    );
    let template = ChatTemplate::from_hf_folder(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[ChatMessage::user("hi")]).unwrap(), "<s>hi");
    write("chat_template.jinja", "{{ messages[0].content }}{{ eos_token }}");
    let template = ChatTemplate::from_hf_folder(folder.path()).unwrap().unwrap();
    assert_eq!(template.render(&[ChatMessage::user("hi")]).unwrap(), "hi</s>");

    write("tokenizer.json", "{}");
    assert!(
        Tokenizer::from_hf_folder(folder.path())
            .unwrap_err()
            .to_string()
            .starts_with("tokenizer: ")
    );
}
