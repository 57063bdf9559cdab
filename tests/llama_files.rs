//! Model files: which files are refused, with which message, and how the keys of a file are read.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{fs, path::PathBuf};

use burn::tensor::Device;
use esamp::llama::{Llama, RopeScaling};
use esamp_testkit::golden;

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
        edit("\"rope_type\": \"default\"", "\"rope_type\": \"yarn\""),
        "key rope_scaling.rope_type: expected default, linear or llama3, got yarn"
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
    assert!(message.contains("model.safetensors: tensor model.embed_tokens.weight"), "{message}");
    fs::write(&path, b"GGUF and nothing else").unwrap();
    assert!(refused(&truncated).contains("model.safetensors: tensor"));
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

/// The GGUF file `whole` with additional numbers or texts in its metadata.
fn with_metadata(whole: &[u8], entries: &[(&str, Result<f32, &str>)]) -> Vec<u8> {
    let string = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let mut added = Vec::new();
    for (key, value) in entries {
        added.extend(string(key));
        match value {
            Ok(number) => added.extend([6u32.to_le_bytes(), number.to_le_bytes()].concat()),
            Err(text) => added.extend([&8u32.to_le_bytes()[..], &string(text)].concat()),
        }
    }
    // One more entry, with a length that preserves the alignment of the tensors.
    added.extend([&string("filler")[..], &8u32.to_le_bytes()].concat());
    added.extend(string(&"x".repeat((32 - (added.len() + 8) % 32) % 32)));
    let count = u64::from_le_bytes(whole[16..24].try_into().unwrap()) + entries.len() as u64 + 1;
    [&whole[..16], &count.to_le_bytes(), &added, &whole[24..]].concat()
}

#[test]
fn linear_scaling_of_gguf_files_has_two_names_and_needs_no_type() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("scaled.gguf");
    let scaling = |name: &str, entries: &[(&str, Result<f32, &str>)]| {
        let whole =
            fs::read(self::folder("llama").join(format!("../../gguf/{name}.gguf"))).unwrap();
        fs::write(&path, with_metadata(&whole, entries)).unwrap();
        Llama::from_gguf(&path, &Device::flex()).map(|model| model.config().rope_scaling.clone())
    };
    let (kind, factor, older) =
        ("llama.rope.scaling.type", "llama.rope.scaling.factor", "llama.rope.scale_linear");
    assert_eq!(scaling("llama", &[]).unwrap(), RopeScaling::None);
    for entries in [
        &[(older, Ok(4.0))][..],
        &[(factor, Ok(4.0))],
        &[(kind, Err("linear")), (older, Ok(4.0))],
        &[(kind, Err("linear")), (factor, Ok(4.0))],
        &[(older, Ok(2.0)), (factor, Ok(4.0))],
    ] {
        let linear = RopeScaling::Linear { factor: 4.0 };
        assert_eq!(scaling("llama", entries).unwrap(), linear, "{entries:?}");
    }
    let none = scaling("llama", &[(kind, Err("none")), (older, Ok(4.0))]).unwrap();
    assert_eq!(none, RopeScaling::None);
    for (entries, message) in [
        (
            &[(older, Ok(0.0))][..],
            "key rope_scaling.factor: expected a finite number above 0, got 0",
        ),
        (&[(kind, Err("linear"))], "key llama.rope.scaling.factor: expected a number, got none"),
        (&[(kind, Err("yarn"))], "key llama.rope.scaling.type: expected none or linear, got yarn"),
    ] {
        assert_eq!(scaling("llama", entries).unwrap_err().to_string(), message);
    }

    let RopeScaling::Factors(plain) = scaling("llama3", &[]).unwrap() else { panic!() };
    let RopeScaling::Factors(scaled) = scaling("llama3", &[(older, Ok(4.0))]).unwrap() else {
        panic!()
    };
    assert_eq!(scaled, plain.iter().map(|factor| factor * 4.0).collect::<Vec<_>>());
}

/// A file truncated or overwritten anywhere gives a result or an error, not a crash, and no allocation of a size that a
/// damaged number asks for.
#[test]
fn a_gguf_file_damaged_anywhere_is_an_error_or_a_model() {
    let whole = fs::read(folder("llama").join("../../gguf/llama.gguf")).unwrap();
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("damaged.gguf");
    let loads = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        Llama::from_gguf(&path, &Device::flex()).map(drop)
    };
    assert!(loads(&whole).is_ok());
    for length in (0..whole.len() - 64).step_by(97).chain(0..256) {
        let message = loads(&whole[..length]).unwrap_err().to_string();
        assert!(message.contains("expected"), "{message}");
    }
    let header = 2500.min(whole.len());
    for at in 0..header {
        for value in [0, 0xff, whole[at] ^ 1] {
            let mut damaged = whole.clone();
            damaged[at] = value;
            if let Err(error) = loads(&damaged) {
                assert!(error.to_string().contains("expected"), "byte {at}: {error}");
            }
        }
    }
}
