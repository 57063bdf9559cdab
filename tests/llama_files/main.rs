//! Model files: which files are refused, with which message, and how the keys of a file are read.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod gguf;

use std::{
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, NoTap,
    llama::{Llama, LlamaConfig, RopeScaling, Tokenizer},
};
use esamp_testkit::{gguf::GgufFile, golden};
use safetensors::{SafeTensors, tensor::TensorView};
use serde_json::json;

fn folder(name: &str) -> PathBuf {
    golden::path("llama").join(name)
}

/// A copy of a golden folder to damage.
fn copy(name: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder(name)).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
    }
    copy
}

fn refused(folder: &tempfile::TempDir) -> String {
    Llama::from_hf_folder(folder.path(), &Device::flex()).unwrap_err().to_string()
}

#[test]
fn a_damaged_folder_is_an_error_that_names_what_is_wrong() {
    let edit = |from: &str, to: &str| {
        let copy = copy("llama");
        let path = copy.path().join("config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        fs::write(&path, text.replace(from, to)).unwrap();
        refused(&copy)
    };
    assert_eq!(
        edit("\"model_type\": \"llama\"", "\"model_type\": \"mamba\""),
        "key model_type: expected llama, qwen2 or qwen3, got mamba"
    );
    assert_eq!(
        edit("\"hidden_size\": 32", "\"hidden_size\": \"wide\""),
        "key hidden_size: expected a whole number, got \"wide\""
    );
    assert_eq!(
        edit("\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\""),
        "key hidden_act: expected \"silu\", got \"gelu\""
    );
    assert_eq!(
        edit("\"rope_type\": \"default\"", "\"rope_type\": \"longrope\""),
        "key rope_parameters.rope_type: expected default, linear, dynamic, llama3 or yarn, got longrope"
    );
    assert_eq!(
        edit("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3"),
        "key n_kv_heads: expected a divisor of 4 heads, got 3"
    );
    assert_eq!(
        edit("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        "tensor model.layers.2.self_attn.q_proj.weight: expected shape [32, 32], got none"
    );
    assert_eq!(
        edit("\"intermediate_size\": 48", "\"intermediate_size\": 50"),
        "tensor model.layers.0.mlp.gate_proj.weight: expected shape [50, 32], got shape [48, 32]"
    );
    assert!(edit("{", "").contains("config.json: content: expected JSON"));

    let truncated = copy("llama");
    let path = truncated.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let message = refused(&truncated);
    assert!(message.contains("model.safetensors: content: expected 88"), "{message}");
    assert!(message.contains(" bytes (is the file complete?), got 44"), "{message}");
    fs::write(&path, &bytes[..100]).unwrap();
    let message = refused(&truncated);
    assert!(message.contains("model.safetensors: header: expected at most 92 bytes"), "{message}");
    fs::remove_file(&path).unwrap();
    assert!(refused(&truncated).ends_with("model.safetensors: cannot be read"));

    let not_gguf = Llama::from_gguf(folder("llama").join("config.json"), &Device::flex());
    let message = not_gguf.unwrap_err().to_string();
    assert!(message.contains("header: expected a file that begins with \"GGUF\""), "{message}");

    let sharded = copy("sharded_bf16");
    let index = sharded.path().join("model.safetensors.index.json");
    fs::write(&index, "{\"weight_map\": {}}").unwrap();
    assert!(refused(&sharded).ends_with("model.safetensors: cannot be read"));
    fs::write(&index, "{}").unwrap();
    assert!(refused(&sharded).contains("key weight_map: expected an object"));
}

/// What a folder or file says it is, and the next step for the user.
fn told(path: &Path) -> (String, String) {
    let error = if path.is_dir() {
        Llama::from_hf_folder(path, &Device::flex()).unwrap_err()
    } else {
        Llama::from_gguf(path, &Device::flex()).unwrap_err()
    };
    let message = error.to_string();
    let message = message.strip_prefix(&format!("{}", path.display())).unwrap_or(&message);
    (message.trim_start_matches('/').to_owned(), error.next_step().to_owned())
}

#[test]
fn a_file_that_is_something_else_says_what_it_is_and_what_to_do() {
    let begins = |(message, next_step): (String, String), what: &str, next: &str| {
        assert!(message.ends_with(what), "{message}");
        assert!(next_step.starts_with(next), "{next_step}");
    };
    let lfs = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n";
    let html = "\n<!DOCTYPE html><html><title>Sign in</title></html>";
    for (content, what, next) in [
        (lfs, "got a Git LFS pointer", "run `git lfs pull`"),
        (html, "got a web page", "download the file again: the server answered with a page"),
        ("", "got an empty file", "download the file again"),
    ] {
        for name in ["config.json", "model.safetensors"] {
            let copy = copy("llama");
            fs::write(copy.path().join(name), content).unwrap();
            begins(told(copy.path()), &format!("file, {what}"), next);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        fs::write(&path, content).unwrap();
        begins(told(&path), &format!("expected a GGUF file, {what}"), next);
    }
    let safetensors = folder("llama").join("model.safetensors");
    begins(told(&safetensors), "got a safetensors file", "give its folder as the model");

    let only = |name: &str| {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(name), "").unwrap();
        folder
    };
    let gguf = only("Model-Q4_K_M.gguf");
    let file = gguf.path().join("Model-Q4_K_M.gguf");
    begins(
        told(gguf.path()),
        "expected a folder with config.json, got the GGUF file \"Model-Q4_K_M.gguf\"",
        &format!("give the file itself as the model: {}", file.display()),
    );
    begins(told(only("adapter_config.json").path()), "got a LoRA adapter", "merge the adapter");
    let torch = copy("llama");
    fs::rename(torch.path().join("model.safetensors"), torch.path().join("pytorch_model.bin"))
        .unwrap();
    begins(told(torch.path()), "got weights in PyTorch's own format", "convert them");
    let tokenizer = Tokenizer::from_hf_folder(only("tokenizer.model").path()).unwrap_err();
    assert!(tokenizer.next_step().starts_with("convert it with transformers"), "{tokenizer}");

    let sharded = copy("sharded_bf16");
    let part = sharded.path().join("model-00001-of-00003.safetensors");
    fs::remove_file(&part).unwrap();
    let (message, next_step) = told(sharded.path());
    assert!(message.contains("model-00001-of-00003.safetensors: expected a part"), "{message}");
    assert!(message.ends_with("got no such file"), "{message}");
    assert!(next_step.starts_with("download this file too"), "{next_step}");
}

#[test]
fn gguf_files_that_are_no_model_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.gguf");
    let mut big_endian = GgufFile::default().bytes();
    big_endian[4..8].copy_from_slice(&3u32.to_be_bytes());
    let clip = GgufFile::default().text("general.architecture", "clip").bytes();
    let lora =
        GgufFile::default().text("general.architecture", "llama").text("general.type", "adapter");
    for (bytes, what, next) in [
        (big_endian, "got a big-endian one", "convert it to little-endian"),
        (clip, "got the vision or audio part of a model (mmproj)", "give the file of the language"),
        (lora.bytes(), "got a LoRA adapter", "merge it into its base model"),
    ] {
        fs::write(&path, bytes).unwrap();
        let (message, next_step) = told(&path);
        assert!(message.ends_with(what), "{message}");
        assert!(next_step.starts_with(next), "{next_step}");
    }
}

#[test]
fn a_folder_without_the_usual_names_says_which_names_it_has() {
    let copy = copy("llama");
    let path = copy.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap().replace("\"model.", "\"");
    let renamed =
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &bytes[8 + length..]].concat();
    fs::write(&path, renamed).unwrap();
    let (message, next_step) = told(copy.path());
    assert!(
        message.ends_with(
            "expected tensor names that begin with \"model.\", got 21 tensors, such as \"embed_tokens.weight\", \
             \"layers.0.input_layernorm.weight\", \"layers.0.mlp.down_proj.weight\""
        ),
        "{message}"
    );
    assert!(next_step.starts_with("save the model with its head"), "{next_step}");
}

/// A golden folder with other settings in its configuration.
fn with_settings(name: &str, change: impl Fn(&mut serde_json::Value)) -> tempfile::TempDir {
    let copy = copy(name);
    let path = copy.path().join("config.json");
    let mut config = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    copy
}

fn logits(model: &Llama) -> Vec<f32> {
    let tokens = Tensor::<1, Int>::from_data([6, 7, 8], &Device::flex()).unsqueeze::<2>();
    let logits = model.forward(tokens, &mut model.new_cache(), &mut NoTap).unwrap();
    logits.into_data().try_into_vec().unwrap()
}

#[test]
fn an_lm_head_that_differs_from_a_tied_embedding_is_used_with_a_warning() {
    let device = Device::flex();
    let plain = Llama::from_hf_folder(folder("llama"), &device).unwrap();
    assert!(plain.warnings().is_empty());
    let tied = with_settings("llama", |config| config["tie_word_embeddings"] = true.into());
    let kept = Llama::from_hf_folder(tied.path(), &device).unwrap();
    assert_eq!(logits(&kept), logits(&plain));
    assert!(!kept.config().tied_embeddings);
    assert_eq!(
        kept.warnings(),
        [
            "tensor lm_head.weight: expected the embedding, because the configuration ties them, got another matrix: \
          used as the LM head"
        ]
    );
    // The same matrix twice is no reason for a warning.
    let path = tied.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let embedding = file.tensor("model.embed_tokens.weight").unwrap().data().to_vec();
    let at =
        file.tensor("lm_head.weight").unwrap().data().as_ptr() as usize - bytes.as_ptr() as usize;
    let mut twice = bytes.clone();
    twice[at..at + embedding.len()].copy_from_slice(&embedding);
    fs::write(&path, twice).unwrap();
    let same = Llama::from_hf_folder(tied.path(), &device).unwrap();
    assert!(same.warnings().is_empty());
    assert!(same.config().tied_embeddings);
}

/// As in transformers, which refuses it too: a matrix that cannot be the head says that the files do not belong
/// together.
#[test]
fn an_lm_head_of_the_wrong_shape_is_an_error_beside_a_tied_embedding_too() {
    let tied = with_settings("llama", |config| config["tie_word_embeddings"] = true.into());
    let path = tied.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let whole = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = whole.tensors().into_iter().map(|(name, tensor)| match name.as_str() {
        "lm_head.weight" => {
            let data = &tensor.data()[..95 * 32 * 4];
            let cut = TensorView::new(tensor.dtype(), vec![95, 32], data).unwrap();
            (name, cut)
        }
        _ => (name, tensor),
    });
    fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    let expected = "tensor lm_head.weight: expected shape [96, 32], got shape [95, 32]";
    assert_eq!(refused(&tied), expected);
}

#[test]
fn a_single_file_counts_before_an_index() {
    let device = Device::flex();
    let copy = copy("llama");
    let index = copy.path().join("model.safetensors.index.json");
    let stale =
        r#"{"weight_map": {"model.embed_tokens.weight": "model-00001-of-00002.safetensors"}}"#;
    fs::write(index, stale).unwrap();
    let model = Llama::from_hf_folder(copy.path(), &device).unwrap();
    let plain = Llama::from_hf_folder(folder("llama"), &device).unwrap();
    assert_eq!(logits(&model), logits(&plain));
}

#[test]
fn rotary_settings_may_be_incomplete() {
    let load = |name: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let folder = with_settings(name, change);
        let model = Llama::from_hf_folder(folder.path(), &Device::flex()).unwrap();
        (model.config().clone(), model.warnings().to_vec())
    };
    let (without_kind, _) =
        load("llama", &|config| config["rope_parameters"] = json!({"rope_theta": 500_000.0}));
    assert_eq!(without_kind.rope_scaling, RopeScaling::None);
    assert_eq!(without_kind.rope_theta, 500_000.0);
    let (empty, _) = load("llama", &|config| {
        config["rope_scaling"] = json!({});
        config["rope_parameters"] = json!({"rope_theta": 7000.0, "rope_type": null});
    });
    assert_eq!((empty.rope_scaling, empty.rope_theta), (RopeScaling::None, 7000.0));
    let original = |config: LlamaConfig| match config.rope_scaling {
        RopeScaling::Llama3 { original_context, .. } => original_context,
        RopeScaling::Yarn { original_context, .. } => original_context,
        other => panic!("{other:?}"),
    };
    let without = |config: &mut serde_json::Value| {
        let rope = config["rope_parameters"].as_object_mut().unwrap();
        rope.remove("original_max_position_embeddings").unwrap();
    };
    assert_eq!(original(load("llama3", &|_| ()).0), 16.0);
    assert_eq!(original(load("llama3", &without).0), 128.0); // max_position_embeddings
    assert_eq!(original(load("yarn", &without).0), 128.0);
    let outside = |config: &mut serde_json::Value| {
        config["original_max_position_embeddings"] = 32.into();
    };
    assert_eq!(original(load("llama3", &outside).0), 32.0);

    // YaRN makes the context as long as it was trained for. Dynamic NTK begins where the context ends here.
    assert_eq!(load("yarn", &|_| ()).0.context_length, 256);
    let (dynamic, warnings) = load("dynamic", &|_| ());
    assert_eq!((dynamic.context_length, dynamic.rope_scaling), (40, RopeScaling::None));
    assert_eq!(
        warnings,
        [
            "key rope_parameters.rope_type: expected default, linear, llama3 or yarn, got dynamic: used without \
          scaling, up to 40 tokens, where dynamic scaling begins"
        ]
    );
}
