//! Files that went wrong once: README.md in this folder says what is unusual about each.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use burn::tensor::Device;
use esamp::{
    CausalLm, Decoder, FinishReason, Request, SamplerConfig, Sampling, TextStream, TokenId,
    llama::{ChatMessage, ChatTemplate, Llama, RopeScaling, Tokenizer},
};
use esamp_testkit::bounded;

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cases_from_reports").join(name)
}

/// The common model with the files of a case.
fn folder(name: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for from in ["model", name] {
        for entry in fs::read_dir(case(from)).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    folder
}

struct Loaded {
    model: Llama,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

impl Loaded {
    fn folder(path: &Path) -> Self {
        Self {
            model: Llama::from_hf_folder(path, &Device::flex()).unwrap(),
            tokenizer: Tokenizer::from_hf_folder(path).unwrap(),
            template: ChatTemplate::from_hf_folder(path).unwrap().unwrap(),
        }
    }

    fn gguf(path: &Path) -> Self {
        Self {
            model: Llama::from_gguf(path, &Device::flex()).unwrap(),
            tokenizer: Tokenizer::from_gguf(path).unwrap(),
            template: ChatTemplate::from_gguf(path).unwrap().unwrap(),
        }
    }

    fn prompt(&self, message: &str) -> String {
        self.template.render(&[ChatMessage::user(message)]).unwrap()
    }

    /// The greedy answer to a message, and why it ended.
    fn answer(&self, message: &str) -> (String, FinishReason) {
        let sampler =
            SamplerConfig::new().init(self.model.d_model(), &self.model.device()).unwrap();
        let mut decoder =
            Decoder::new(&self.model, sampler).unwrap().with_detokenizer(self.tokenizer.clone());
        let prompt = self.tokenizer.encode_rendered(&self.prompt(message)).unwrap();
        let request = Request::new(prompt)
            .with_max_new_tokens(8)
            .with_stop_tokens(self.tokenizer.stop_tokens().to_vec())
            .with_sampling(Sampling::paper().with_beta(0.0).with_temperature(0.0));
        decoder.submit(request).unwrap();
        let mut completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
        let completion = completions.remove(0);
        (completion.text.unwrap(), completion.finish)
    }

    #[track_caller]
    fn says_ok_and(&self, end: TokenId) {
        assert_eq!(self.answer("hi"), ("OK".to_owned(), FinishReason::StopToken(end)));
    }
}

/// A case that the model answers, with its warnings.
#[track_caller]
fn answered(name: &str) -> (Loaded, Vec<String>) {
    let folder = folder(name);
    let loaded = Loaded::folder(folder.path());
    loaded.says_ok_and(258);
    let warnings = [loaded.model.warnings(), loaded.tokenizer.warnings()].concat();
    (loaded, warnings)
}

#[test]
fn every_end_token_of_a_gguf_file_ends_a_completion() {
    Loaded::gguf(&case("endoftext_is_an_end.gguf")).says_ok_and(256);
    let tokenizer = Tokenizer::from_gguf(case("eom_is_an_end.gguf")).unwrap();
    assert_eq!(tokenizer.stop_tokens(), [256, 258]);
}

#[test]
fn ids_that_no_model_draws_are_left_out() {
    let (_, warnings) = answered("eos_beyond_the_vocabulary");
    let warning =
        "key eos_token_id: expected an id below 260, got 999: left out, because no model draws it";
    assert_eq!(warnings, [warning]);
    let wrapped = Tokenizer::from_gguf(case("hostile/eos_wrap.gguf")).unwrap();
    assert!(!wrapped.stop_tokens().contains(&65), "{:?}", wrapped.stop_tokens());
    assert!(wrapped.warnings()[0].contains("got 4294967361: left out"), "{:?}", wrapped.warnings());
}

#[test]
fn chat_templates_are_rendered_as_by_transformers() {
    let rendered = |name: &str| answered(name).0.prompt("a < b & 'c'");
    let chat = |text: &str| format!("<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(rendered("generation_tag"), chat("a < b & 'c'"));
    assert_eq!(rendered("tools_are_none"), chat("a < b & 'c'"));
    let json = "\"a < b & 'c'\"<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(rendered("json_without_escapes"), json);

    let (loaded, _) = answered("special_tokens_map");
    let prompt = loaded.tokenizer.encode_rendered(&loaded.prompt("hi")).unwrap();
    assert_eq!((prompt.len(), prompt[0]), (22, 256));
}

#[test]
fn configurations_are_read_as_by_transformers() {
    let (loaded, warnings) = answered("tied_but_another_head");
    assert!(!loaded.model.config().tied_embeddings);
    assert!(warnings[0].ends_with("got another matrix: used as the LM head"), "{warnings:?}");

    let (loaded, warnings) = answered("rope_without_kind");
    let config = loaded.model.config();
    assert_eq!((config.rope_theta, &config.rope_scaling), (500_000.0, &RopeScaling::None));
    assert!(warnings.is_empty(), "{warnings:?}");

    let (loaded, _) = answered("llama3_rope_without_length");
    let RopeScaling::Llama3 { original_context, .. } = loaded.model.config().rope_scaling else {
        panic!("{:?}", loaded.model.config());
    };
    assert_eq!(original_context, 256.0);

    assert_eq!(answered("stale_index").1, [""; 0]);
}

/// A model that repeats half a character once decoded the whole text for every token, and showed nothing before its
/// end.
#[test]
fn half_characters_are_shown_as_they_come() {
    let tokenizer = Tokenizer::from_hf_folder(case("model")).unwrap();
    let half = tokenizer.token_id("ä").unwrap(); // the byte 0xE4
    let mut stream = TextStream::default();
    for at in 0..8_000 {
        let piece = stream.push(half, &tokenizer).unwrap();
        assert_eq!(piece, if at == 0 { "" } else { "\u{fffd}" });
    }
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
#[cfg(target_os = "linux")]
fn hostile_files_end_in_an_error() {
    bounded::test("hostile_files_end_in_an_error", 200, || {
        let error = Llama::from_gguf(case("hostile/arch_ansi.gguf"), &Device::flex()).unwrap_err();
        let message = error.to_string();
        assert!(message.contains("got \\u{1b}]0;OWNED\\u{7}"), "{message}");
        for (name, expected) in [
            ("ansi", "\\u{1b}]0;OWNED\\u{7}"),
            ("double", "expected a template that needs at most"),
            ("indent", "expected a template that needs at most"),
            ("loop", "expected a template that needs at most"),
            ("setrec", "got a namespace"),
        ] {
            let path = case(&format!("hostile/tpl_{name}.gguf"));
            let template = ChatTemplate::from_gguf(path).unwrap().unwrap();
            let message = template.render(&[ChatMessage::user("hi")]).unwrap_err().to_string();
            assert!(message.starts_with("chat template: line 1: "), "{message}");
            assert!(message.contains(expected), "{message}");
            assert!(!message.contains(char::is_control), "{message:?}");
        }
    });
}
