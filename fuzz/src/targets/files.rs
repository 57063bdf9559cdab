//! Readers that take the path of a file.

use std::{
    collections::HashMap,
    fs,
    io::Write,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Mutex, OnceLock, PoisonError},
};

use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, CompletionId, Decoder, Detokenize, DrawKey, GroupId, HiddenStates, NoTap, Request,
    Sampler, SamplerConfig, Sampling, Sharing, StepInput, StepRow,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    errors::{GroupError, SnapshotError},
    llama::{ChatMessage, ChatTemplate, Llama, Tokenizer},
    snapshots::SnapshotPrecision,
    testing::ScriptedLm,
};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

use super::{Outcome, kind};

/// A path for the inputs of a target, which run one after the other.
fn place(target: &'static str) -> PathBuf {
    static FOLDERS: OnceLock<Mutex<HashMap<&str, TempDir>>> = OnceLock::new();
    let folders = FOLDERS.get_or_init(Mutex::default);
    let mut folders = folders.lock().unwrap_or_else(PoisonError::into_inner);
    let folder = folders.entry(target).or_insert_with(|| {
        tempfile::tempdir().unwrap_or_else(|error| panic!("no folder for inputs: {error}"))
    });
    folder.path().to_owned()
}

/// Writes an input over the last one. Emptying the file first would have some file systems write it to the disk.
fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let file = fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)
    });
    written.map_err(|error| format!("{}: {error}", path.display()))
}

/// A GGUF file: its tokenizer, its template and its model.
pub(super) fn gguf(bytes: &[u8]) -> Outcome {
    let path = place("gguf").join("model.gguf");
    write(&path, bytes)?;
    let tokenizer = Tokenizer::from_gguf(&path).map_or_else(kind, |found| used(&found));
    let template = match ChatTemplate::from_gguf(&path) {
        Ok(Some(template)) => {
            template.render(&[ChatMessage::user("hello")]).map_or_else(kind, |_| "rendered".into())
        }
        Ok(None) => "none".into(),
        Err(error) => kind(error),
    };
    let model = Llama::from_gguf(&path, &Device::flex()).map_or_else(kind, |model| decoded(&model));
    Ok(format!("{tokenizer}; {template}; {model}"))
}

/// What a tokenizer makes of texts and tokens. Errors are fine.
fn used(tokenizer: &Tokenizer) -> String {
    let texts = ["", "hello world", " \u{fffd}é\n12</s>"];
    let failed = texts.iter().filter(|text| tokenizer.encode(text).is_err()).count();
    let ids: Vec<u32> = (0..8).chain([u32::MAX]).collect();
    format!("{failed} of {} texts fail, {}", texts.len(), tokenizer.decode(&ids).is_ok())
}

/// A forward pass over two tokens.
fn decoded(model: &Llama) -> String {
    if model.vocab_size() < 2 {
        return "no vocabulary".into();
    }
    let tokens = Tensor::<2, Int>::from_data([[0, 1]], &model.device());
    let mut cache = model.new_cache();
    model.forward(tokens, &mut cache, &mut NoTap).map_or_else(kind, |_| "decoded".into())
}

/// A folder with a configuration and weights: the JSON, a zero byte, and the safetensors file.
pub(super) fn safetensors(bytes: &[u8]) -> Outcome {
    let folder = place("safetensors");
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    let weights = bytes.get(end + 1..).unwrap_or_default();
    write(&folder.join("config.json"), &bytes[..end])?;
    write(&folder.join("model.safetensors"), weights)?;
    let model = Llama::from_hf_folder(&folder, &Device::flex());
    Ok(model.map_or_else(kind, |model| decoded(&model)))
}

/// A model of 16 tokens and one block.
pub(super) fn safetensors_seeds() -> Vec<Vec<u8>> {
    let config = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":8,"intermediate_size":8,"num_hidden_layers":1,"num_attention_heads":2,"num_key_value_heads":1,"vocab_size":16,"max_position_embeddings":32,"rms_norm_eps":1e-05,"rope_theta":10000.0,"hidden_act":"silu","tie_word_embeddings":false,"eos_token_id":2}"#;
    let shapes = [
        ("lm_head.weight", vec![16, 8]),
        ("model.embed_tokens.weight", vec![16, 8]),
        ("model.layers.0.input_layernorm.weight", vec![8]),
        ("model.layers.0.mlp.down_proj.weight", vec![8, 8]),
        ("model.layers.0.mlp.gate_proj.weight", vec![8, 8]),
        ("model.layers.0.mlp.up_proj.weight", vec![8, 8]),
        ("model.layers.0.post_attention_layernorm.weight", vec![8]),
        ("model.layers.0.self_attn.k_proj.weight", vec![4, 8]),
        ("model.layers.0.self_attn.o_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.q_proj.weight", vec![8, 8]),
        ("model.layers.0.self_attn.v_proj.weight", vec![4, 8]),
        ("model.norm.weight", vec![8]),
    ];
    let number = |at: usize| (at as f32 * 0.37).sin().to_le_bytes();
    let numbers: Vec<u8> = (0..16 * 8).flat_map(number).collect();
    let views = shapes.into_iter().filter_map(|(name, shape)| {
        let size = 4 * shape.iter().product::<usize>();
        Some((name, TensorView::new(Dtype::F32, shape, &numbers[..size]).ok()?))
    });
    let weights = safetensors::serialize(views, None).unwrap_or_default();
    vec![[config.as_bytes(), &[0], &weights].concat()]
}

/// The `tokenizer.json` of a folder.
pub(super) fn tokenizer(bytes: &[u8]) -> Outcome {
    let folder = place("tokenizer");
    write(&folder.join("tokenizer.json"), bytes)?;
    Ok(Tokenizer::from_hf_folder(&folder).map_or_else(kind, |found| used(&found)))
}

/// A snapshot of what a sampler has learned.
pub(super) fn snapshot(bytes: &[u8]) -> Outcome {
    let path = place("snapshot").join("snapshot");
    write(&path, bytes)?;
    let load = || Sampler::loader(&path).load(&Device::flex());
    let mut loaded = load();
    if let Err(error) = &loaded
        && let Some(bytes) = with_its_hash(bytes, error)
    {
        write(&path, &bytes)?;
        loaded = load();
    }
    Ok(loaded.map_or_else(kind, |sampler| format!("loaded, {} distillers", sampler.distillers())))
}

/// A snapshot with the hash of its content, if it has another one: no change of an input would get past that check.
fn with_its_hash(bytes: &[u8], error: &SnapshotError) -> Option<Vec<u8>> {
    let SnapshotError::Format { what, expected, got, .. } = error else { return None };
    if !what.starts_with("SHA-256") || expected.len() != got.len() {
        return None;
    }
    let at = bytes.windows(got.len()).position(|part| part == expected.as_bytes())?;
    let mut bytes = bytes.to_vec();
    bytes[at..at + got.len()].copy_from_slice(got.as_bytes());
    Some(bytes)
}

const GROUP: GroupId = GroupId(1);

/// What a group has learned. A group that is read is continued.
pub(super) fn group(bytes: &[u8]) -> Outcome {
    let path = place("group").join("group");
    write(&path, bytes)?;
    let mut decoder = group_decoder().map_err(|error| error.to_string())?;
    let mut loaded = decoder.load_group(GROUP, &path);
    if let Err(GroupError::Snapshot(error)) = &loaded
        && let Some(bytes) = with_its_hash(bytes, error)
    {
        write(&path, &bytes)?;
        loaded = decoder.load_group(GROUP, &path);
    }
    let kept = (decoder.groups().len(), decoder.sampler().distillers());
    match loaded {
        Ok(()) if kept == (1, 1) => Ok(match continued(&mut decoder) {
            Ok(completions) => format!("continued {completions}"),
            Err(error) => kind(error),
        }),
        Err(error) if kept == (0, 0) => Ok(kind(error)),
        _ => Err(format!("expected a group or nothing, got (groups, distillers) {kept:?}")),
    }
}

type Failure = Box<dyn std::error::Error>;

/// A loop over a model of four tokens.
fn group_decoder() -> Result<Decoder<ScriptedLm>, Failure> {
    let model = ScriptedLm::new(4, &Device::flex(), |tokens| {
        (0..4).map(|at| (at as f32 + tokens.len() as f32).sin()).collect()
    });
    let distiller = DistillerConfig::LowRank(LowRankConfig::new().with_rank(2));
    let sampler = SamplerConfig::new().with_distiller(distiller).init(4, &model.device())?;
    Ok(Decoder::new(model, sampler)?)
}

/// Two completions of the group. Returns why they have ended.
fn continued(decoder: &mut Decoder<ScriptedLm>) -> Result<String, Failure> {
    let sampling = Sampling::new().with_beta(0.5).with_top_k(3);
    let request = Request::new(vec![1, 2]).with_sampling(sampling).with_completions(2);
    decoder.submit(request.with_max_new_tokens(3).with_group(GROUP))?;
    let completions = decoder.run(|_| ControlFlow::Continue(()))?;
    Ok(completions.iter().map(|completion| completion.finish.name()).collect::<Vec<_>>().join(" "))
}

/// Files of a group that has learned, in both precisions.
pub(super) fn group_seeds() -> Vec<Vec<u8>> {
    let saved = |precision| -> Result<Vec<u8>, Failure> {
        let path = place("group").join("seed");
        let mut decoder = group_decoder()?;
        continued(&mut decoder)?;
        decoder.save_group(GROUP, &path, precision)?;
        Ok(fs::read(path)?)
    };
    let precisions = [SnapshotPrecision::F32, SnapshotPrecision::F16];
    precisions.into_iter().filter_map(|precision| saved(precision).ok()).collect()
}

/// Snapshots of both distillers, with and without a private part.
pub(super) fn snapshot_seeds() -> Vec<Vec<u8>> {
    let distillers = [
        DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(4)),
        DistillerConfig::LowRank(LowRankConfig::new().with_rank(2)),
    ];
    let configs = distillers.into_iter().flat_map(|distiller| {
        let of = move |sharing| {
            SamplerConfig::new().with_distiller(distiller.clone()).with_sharing(sharing)
        };
        [of(Sharing::Global), of(Sharing::Adaptive(Default::default()))]
    });
    configs.filter_map(|config| learned(config).ok()).collect()
}

/// The snapshot of a sampler after two steps.
fn learned(config: SamplerConfig) -> Result<Vec<u8>, Failure> {
    const WIDTH: usize = 4;
    let device = Device::flex();
    let mut sampler = config.init(WIDTH, &device)?;
    let sampling = Sampling::new().with_beta(0.5).with_top_k(4).checked()?;
    let head = |hidden: Tensor<2>| hidden;
    let prompt = [1, 2];
    for position in 0..2 {
        let generated = vec![0; position + 1];
        let id = CompletionId::new(0, 0);
        let draw = DrawKey::new(1, &prompt, 0);
        let rows = [StepRow::new(id, draw, &prompt, &generated, &sampling)];
        let states = Tensor::<2>::from_data([[0.5, -1.0, 0.25, 1.0]], &device);
        let hidden = HiddenStates::new(states.clone(), states.clone() * 2.0)?;
        sampler.step(StepInput::new(&rows, states, &head).with_hidden(hidden))?;
    }
    let path = place("snapshot").join("seed");
    sampler.save(&path, SnapshotPrecision::F32)?;
    Ok(fs::read(path)?)
}
