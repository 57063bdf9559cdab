//! Compares tokenizers and chat templates with SentencePiece, and with the ids that PyTorch's tools give for the real
//! model.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::{Path, PathBuf};

use esamp::{
    Detokenize, TextStream, TokenId,
    llama::{ChatMessage, ChatTemplate, Tokenizer},
};
use esamp_programs::model_source::{Cache, ModelSource};
use esamp_testkit::golden;

fn smollm2() -> PathBuf {
    ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap()
}

fn json<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_str(&std::fs::read_to_string(golden::path(name)).unwrap()).unwrap()
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
fn smollm2_encodes_prompts_like_its_own_tokenizer() {
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
    // EOS, and what the vocabulary has besides: <|endoftext|> and <reponame>.
    assert_eq!(tokenizer.stop_tokens(), [0, 2, 4]);
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
fn a_sentencepiece_vocabulary_encodes_like_sentencepiece() {
    let tokenizer = Tokenizer::from_gguf(golden::path("tokenizer/sentencepiece.gguf")).unwrap();
    for case in json::<Vec<Piece>>("tokenizer/sentencepiece.json") {
        let mut expected = vec![1]; // the file has no setting, so a SentencePiece model gets a BOS token
        expected.extend(&case.ids);
        assert_eq!(tokenizer.encode(&case.text).unwrap(), expected, "{:?}", case.text);
        assert_eq!(tokenizer.encode_rendered(&case.text).unwrap(), case.ids);
        assert_eq!(tokenizer.decode(&case.ids).unwrap(), case.decoded, "{:?}", case.text);
    }
    assert_eq!(tokenizer.stop_tokens(), [2]);
}

#[test]
fn an_invalid_byte_does_not_stop_the_text_of_a_sentencepiece_model() {
    let tokenizer = Tokenizer::from_gguf(golden::path("tokenizer/sentencepiece.gguf")).unwrap();
    let byte = |byte: u8| tokenizer.token_id(&format!("<0x{byte:02X}>")).unwrap();
    let mut tokens: Vec<TokenId> = "😀".bytes().map(byte).collect();
    tokens.push(byte(0xf0));
    tokens.extend(tokenizer.encode_rendered("the lighthouse").unwrap());
    let mut stream = TextStream::default();
    let pieces: Vec<String> =
        tokens.iter().map(|&token| stream.push(token, &tokenizer).unwrap()).collect();
    assert_eq!(pieces[..5], ["", "", "", "😀", ""]);
    assert_eq!(pieces[5..].concat(), "\u{fffd} the lighthouse");

    // Only bytes that may still become a character are held back.
    let mut stream = TextStream::default();
    for at in 0..2_000 {
        let piece = stream.push(byte(0xe4), &tokenizer).unwrap();
        assert_eq!(piece, if at == 0 { "" } else { "\u{fffd}" });
    }
    assert_eq!(stream.finish(), "\u{fffd}");
}

/// The bytes of all tokens.
fn bytes(tokenizer: &Tokenizer, tokens: &[TokenId]) -> Vec<u8> {
    tokens.iter().flat_map(|&token| tokenizer.token_bytes(token).unwrap()).collect()
}

/// Texts whose characters byte-level and SentencePiece vocabularies split.
const TEXTS: [&str; 4] = [
    "The keeper's lamp, 1873:\n\tdark.",
    "Ça coûte 5 €, ﬁn — “où?”",
    "灯台は二十年間暗かった。",
    "🦀👩‍👩‍👧 \u{fffd} \u{0}",
];

#[test]
fn the_bytes_of_tokens_are_those_of_the_encoded_text() {
    let smollm2 = Tokenizer::from_gguf(smollm2()).unwrap();
    for text in TEXTS {
        let tokens = smollm2.encode(text).unwrap();
        assert_eq!(bytes(&smollm2, &tokens), text.as_bytes(), "{text}");
    }
    for token in 0..smollm2.vocab_size() as TokenId {
        let text = smollm2.decode(&[token]).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes(&smollm2, &[token])), text, "{token}");
    }

    let pieces = Tokenizer::from_gguf(golden::path("tokenizer/sentencepiece.gguf")).unwrap();
    for text in TEXTS {
        let tokens = pieces.encode(text).unwrap();
        let bytes = bytes(&pieces, &tokens);
        // The vocabulary has no other space in front of a text than the one that the tokenizer adds.
        assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
    }
    let word = pieces.token_id("▁the").unwrap();
    for token in 0..pieces.vocab_size() as TokenId {
        let text = pieces.decode(&[word, token, word]).unwrap();
        let bytes = bytes(&pieces, &[word, token, word]);
        assert_eq!(String::from_utf8_lossy(&bytes[1..]), text, "{token}");
    }
}

/// A GGUF file that contains only a byte-level vocabulary, `<s> a b ab`.
fn byte_level_gguf(path: &Path, pre: &str, add_bos: Option<bool>) {
    const UINT32: u32 = 4;
    const BOOL: u32 = 7;
    const STRING: u32 = 8;
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let entry = |key: &str, kind: u32, value: Vec<u8>| {
        [string(key), kind.to_le_bytes().to_vec(), value].concat()
    };
    let strings = |texts: &[&str]| {
        let head = [&STRING.to_le_bytes()[..], &(texts.len() as u64).to_le_bytes()].concat();
        texts.iter().fold(head, |head, text| [head, string(text)].concat())
    };
    let mut entries = vec![
        entry("tokenizer.ggml.model", STRING, string("gpt2")),
        entry("tokenizer.ggml.pre", STRING, string(pre)),
        entry("tokenizer.ggml.tokens", 9, strings(&["<s>", "a", "b", "ab"])),
        entry("tokenizer.ggml.merges", 9, strings(&["a b"])),
        entry("tokenizer.ggml.bos_token_id", UINT32, 0u32.to_le_bytes().to_vec()),
    ];
    entries.extend(
        add_bos.map(|flag| entry("tokenizer.ggml.add_bos_token", BOOL, vec![u8::from(flag)])),
    );
    let mut file = b"GGUF\x03\0\0\0\0\0\0\0\0\0\0\0".to_vec(); // version 3, no tensors
    file.extend((entries.len() as u64).to_le_bytes());
    std::fs::write(path, [file, entries.concat()].concat()).unwrap();
}

#[test]
fn llama_3_prompts_begin_with_bos_unless_the_file_disables_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vocabulary.gguf");
    let encode = |pre: &str, add_bos: Option<bool>| {
        byte_level_gguf(&path, pre, add_bos);
        let tokenizer = Tokenizer::from_gguf(&path).unwrap();
        assert_eq!(tokenizer.encode_rendered("ab").unwrap(), [3]);
        tokenizer.encode("ab").unwrap()
    };
    for pre in ["llama-bpe", "llama3", "llama-v3"] {
        assert_eq!(encode(pre, None), [0, 3], "{pre}");
        assert_eq!(encode(pre, Some(true)), [0, 3], "{pre}");
        assert_eq!(encode(pre, Some(false)), [3], "{pre}");
    }
    for pre in ["gpt-2", "smollm", "qwen2"] {
        assert_eq!(encode(pre, None), [3], "{pre}");
        assert_eq!(encode(pre, Some(true)), [0, 3], "{pre}");
    }
}

#[test]
fn a_hugging_face_folder_has_tokenizer_stop_tokens_and_template() {
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
    for silent in ["{}", r#"{"eos_token_id": null}"#] {
        write("generation_config.json", silent);
        assert_eq!(Tokenizer::from_hf_folder(folder.path()).unwrap().stop_tokens(), [1]);
    }
    assert_eq!(tokenizer.encode("a b c </s>").unwrap(), [0, 1, 2, 3]);
    assert_eq!(tokenizer.decode(&[0, 3]).unwrap(), "a");

    write(
        "tokenizer.json",
        r#"{"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 2,
            "pad_type_id": 0, "pad_token": "?"}, "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
            "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "?": 2}, "unk_token": "?"}}"#,
    );
    let tokenizer = Tokenizer::from_hf_folder(folder.path()).unwrap();
    assert_eq!(tokenizer.encode("a b a").unwrap(), [0, 1, 0]);
    assert_eq!(tokenizer.encode_rendered("b").unwrap(), [1]);

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

    // An older file for the special tokens counts, unless tokenizer_config.json has the newer list of them.
    write("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}");
    write("special_tokens_map.json", r#"{"bos_token": {"content": "<b>"}, "eos_token": "<e>"}"#);
    let render = || {
        let template = ChatTemplate::from_hf_folder(folder.path()).unwrap().unwrap();
        template.render(&[ChatMessage::user("hi")]).unwrap()
    };
    assert_eq!(render(), "<b>hi<e>");
    write("tokenizer_config.json", "{}");
    assert_eq!(render(), "<b>hi<e>");
    write("tokenizer_config.json", r#"{"added_tokens_decoder": {}, "bos_token": "<s>"}"#);
    assert_eq!(render(), "<s>hi");

    write("tokenizer.json", "{}");
    assert!(
        Tokenizer::from_hf_folder(folder.path())
            .unwrap_err()
            .to_string()
            .starts_with("tokenizer: ")
    );
}

#[test]
fn a_damaged_tokenizer_is_an_error_and_no_panic() {
    let folder = tempfile::tempdir().unwrap();
    let cases =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases_from_reports/tokenizer_panics");
    let open = |name: &str| {
        std::fs::copy(cases.join(name), folder.path().join("tokenizer.json")).unwrap();
        Tokenizer::from_hf_folder(folder.path())
    };
    // Merges shorter than the prefix of their second part: panics when it is built.
    let error = open("bpe_prefix_min.json").unwrap_err().to_string();
    assert!(error.starts_with("tokenizer: expected one that works, got a panic: "), "{error}");
    // Pieces of length 0, and a template with a token that it does not define: panics when it is used.
    for name in ["fixedlength0.json", "template_missing.json"] {
        let error = match open(name) {
            Ok(tokenizer) => tokenizer.encode("a b").unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.starts_with("tokenizer: "), "{name}: {error}");
    }
}

#[test]
fn a_tokenizer_that_makes_texts_too_long_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let double = r#"{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}"#;
    let json = |rules: usize| {
        let rules = vec![double; rules].join(", ");
        format!(
            r#"{{"version": "1.0", "added_tokens": [], "normalizer": {{"type": "Sequence", "normalizers": [{rules}]}},
                "model": {{"type": "WordLevel", "vocab": {{"a": 0, "?": 1}}, "unk_token": "?"}}}}"#
        )
    };
    let open = |rules: usize| {
        std::fs::write(folder.path().join("tokenizer.json"), json(rules)).unwrap();
        Tokenizer::from_hf_folder(folder.path())
    };
    assert_eq!(open(2).unwrap().encode("a").unwrap(), [1]); // aaaa
    let error = open(40).unwrap_err().to_string();
    assert!(
        error.starts_with("key normalizer: expected rules that make a text at most 1024 times"),
        "{error}"
    );
}
