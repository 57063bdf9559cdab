//! Snapshots from untrusted sources: whole files with a right hash, but with any content. They end in an error that
//! says what is wrong, before memory is allocated for it, or load and run.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::{Path, PathBuf},
};

use burn::tensor::{Device, Tensor, TensorData};
use esamp::{
    CompletionId, Counters, Decoder, DrawKey, GroupId, HiddenStates, LmHead, Phase, Request,
    Sampler, SamplerConfig, Sampling, Sharing, StepInput, StepRow, TiedHead,
    distillers::{DistillerConfig, LowRankConfig, SwiGluConfig},
    optim::{AdaptiveConfig, TrainingConfig},
    snapshots::SnapshotPrecision,
    testing::TinyLm,
};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const D_MODEL: usize = 6;

/// One step with one row of each of three prompts.
fn step(sampler: &mut Sampler, at: usize) {
    let wave = |rows: usize, phase: f32| -> Tensor<2> {
        let numbers = (0..rows * D_MODEL).map(|i| (i as f32 * 0.71 + phase).sin());
        let data = TensorData::new(numbers.collect::<Vec<f32>>(), [rows, D_MODEL]);
        Tensor::from_data(data, &Device::flex())
    };
    let sampling = Sampling::default().with_beta(0.7).checked().unwrap();
    let head = TiedHead::new(wave(11, 0.3));
    let rows: Vec<StepRow<'_>> = (0..3)
        .map(|prompt| {
            let id = CompletionId::new(prompt, 0);
            let draw = DrawKey::new(9, &[prompt as u32], 0);
            StepRow::new(id, draw, &[], &[1], &sampling).with_phase(Phase::Decode)
        })
        .collect();
    let hidden = HiddenStates::new(wave(3, at as f32), wave(3, 2.0 * at as f32 + 1.0)).unwrap();
    let logits = head.logits(hidden.deep().clone());
    let input = StepInput::new(&rows, logits, &head).with_hidden(hidden);
    assert!(sampler.step(input).unwrap().choices.iter().all(Result::is_ok));
}

/// A file of a sampler after `steps` steps.
fn saved(folder: &Path, config: &SamplerConfig, steps: usize) -> PathBuf {
    let path = folder.join("sampler");
    let mut sampler = config.init(D_MODEL, &Device::flex()).unwrap();
    (0..steps).for_each(|at| step(&mut sampler, at));
    sampler.save(&path, SnapshotPrecision::F32).unwrap();
    path
}

fn small() -> SamplerConfig {
    let distiller = DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(4));
    SamplerConfig::new().with_distiller(distiller)
}

/// With every kind of content: evidence, a shared distiller, rows that wait for an update.
fn adaptive() -> SamplerConfig {
    let training = TrainingConfig::new().with_update_every(2);
    small().with_sharing(Sharing::Adaptive(AdaptiveConfig::default())).with_training(training)
}

/// The tensors of a file: shapes and bytes.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

/// Changes a file's header and tensors, and corrects its hash.
fn rewrite(path: &Path, change: impl FnOnce(&mut Value, &mut Tensors)) {
    let bytes = fs::read(path).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut tags: HashMap<String, String> = metadata.metadata().clone().unwrap();
    let mut header: Value = serde_json::from_str(&tags["sampler"]).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Tensors = file
        .iter()
        .map(|(name, view)| (name.to_owned(), (view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut header, &mut tensors);
    let header = header.to_string();
    let mut hash = Sha256::new();
    let mut add = |name: &str, bytes: &[u8]| {
        for part in [name.as_bytes(), bytes] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
    };
    add("precision", tags["precision"].as_bytes());
    add("sampler", header.as_bytes());
    for (name, (_, bytes)) in &tensors {
        add(name, bytes);
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    tags.insert("sampler".to_owned(), header);
    tags.insert("sha256".to_owned(), hash);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, Some(tags)).unwrap()).unwrap();
}

fn load(path: &Path) -> Result<Sampler, String> {
    let loaded = Sampler::loader(path).load(&Device::flex());
    let name = format!("{}: ", path.display());
    loaded.map_err(|error| error.to_string().replace(&name, ""))
}

#[test]
fn a_rewritten_file_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = saved(folder.path(), &adaptive(), 5);
    rewrite(&path, |_, _| ());
    let mut loaded = load(&path).unwrap();
    step(&mut loaded, 5);
    assert_eq!(loaded.counters().steps, 6);
}

/// Each of these sizes would take terabytes.
#[test]
fn a_size_that_the_file_does_not_have_is_an_error_before_it_is_allocated() {
    let folder = tempfile::tempdir().unwrap();
    let huge = json!(1u64 << 40);
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new().with_rank(2));
    let low_rank = SamplerConfig::new().with_distiller(low_rank);
    for (config, place, got, expected) in [
        (
            adaptive(),
            "/d_model",
            json!(i32::MAX),
            "parameter values of own.0: expected 51539607528, got 144",
        ),
        (
            adaptive(),
            "/config/distiller/swi_glu/d_hidden",
            huge.clone(),
            "parameter values of own.0: expected 39582418599936, got 144",
        ),
        (
            adaptive(),
            "/config/distiller/swi_glu/blocks",
            huge.clone(),
            "parameter tensors of own.0: expected 3298534883328, got 6",
        ),
        (
            adaptive(),
            "/config/distiller/swi_glu/blocks",
            json!(u64::MAX),
            "parameter tensors of own.0: expected 18446744073709551615, got 6",
        ),
        (
            low_rank,
            "/config/distiller/low_rank/rank",
            huge.clone(),
            "parameter values of own.0: expected 20890720927756, got 50",
        ),
    ] {
        for steps in [0, 2] {
            let path = saved(folder.path(), &config, steps);
            rewrite(&path, |header, _| *header.pointer_mut(place).unwrap() = got.clone());
            let error = load(&path).unwrap_err();
            if steps == 0 {
                let limit =
                    "distiller: expected at most 268435456 parameters in 4096 tensors, got ";
                assert!(error.starts_with(limit), "{place}: {error}");
            } else {
                assert_eq!(error, expected, "{place}");
            }
        }
    }
    // Without parameters to compare with, small blocks can be many.
    let path = saved(folder.path(), &adaptive(), 0);
    rewrite(&path, |header, _| {
        *header.pointer_mut("/config/distiller/swi_glu/blocks").unwrap() = json!(10_000_000);
        *header.pointer_mut("/config/distiller/swi_glu/d_hidden").unwrap() = json!(1);
        *header.pointer_mut("/d_model").unwrap() = json!(1);
    });
    let error = load(&path).unwrap_err();
    assert!(error.ends_with("got 30000000 in 30000000"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let nan = f32::NAN.to_le_bytes();
    type Change = fn(&mut Value, &mut Tensors);
    let table: [(Change, &str); 6] = [
        (
            |_, tensors| tensors.get_mut("own.0.gathered.0.deep").unwrap().0 = vec![6, 1],
            "own.0: expected rows that fit, got deep hidden state: expected shape [1, 6], got [6, 1]",
        ),
        (
            |_, tensors| {
                for name in ["own.0.gathered.0.deep", "own.0.gathered.0.shallow"] {
                    tensors.get_mut(name).unwrap().0 = vec![2, 3];
                }
            },
            "own.0.gathered.0: expected rows of width 6, got shape [2, 3]",
        ),
        (
            |_, tensors| {
                for name in ["own.0.gathered.0.deep", "own.0.gathered.0.shallow"] {
                    *tensors.get_mut(name).unwrap() = (vec![0, 6], Vec::new());
                }
            },
            "own.0.gathered.0: expected rows of width 6, got shape [0, 6]",
        ),
        (
            |_, tensors| tensors.get_mut("own.shared.0.second.3").unwrap().0 = vec![24, 1],
            "tensor own.shared.0.second.3: expected 1 dimensions, got shape [24, 1]",
        ),
        (
            |header, _| *header.pointer_mut("/trainer/slots/0/gathered").unwrap() = json!(u64::MAX),
            "tensor own.0.gathered.1.shallow: expected one of this name, got none",
        ),
        (
            |header, _| {
                *header.pointer_mut("/trainer/shared/slots/0/tensors").unwrap() = json!([5, 6, 6]);
            },
            "number of tensors in parameters: expected 6, got 5",
        ),
    ];
    for (change, expected) in table {
        let path = saved(folder.path(), &adaptive(), 5);
        rewrite(&path, change);
        assert_eq!(load(&path).unwrap_err(), expected);
    }
    // One of these would make every later mixture NaN, the other every mean of the counters.
    let path = saved(folder.path(), &adaptive(), 5);
    rewrite(&path, |_, tensors| {
        tensors.get_mut("own.evidence.0").unwrap().1[..4].copy_from_slice(&nan);
    });
    assert_eq!(load(&path).unwrap_err(), "own.evidence.0: expected finite numbers, got NaN");
    let path = saved(folder.path(), &adaptive(), 5);
    rewrite(&path, |header, _| header["sums"][1] = json!(f64::INFINITY.to_bits()));
    assert_eq!(load(&path).unwrap_err(), "counters: expected finite sums, got inf");
}

#[test]
fn a_group_is_one_distiller_and_a_number_that_can_grow() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let model = TinyLm::new(1, &Device::flex());
    let decoder = || {
        let sampler = adaptive().init(TinyLm::D_MODEL, &Device::flex()).unwrap();
        Decoder::new(&model, sampler).unwrap()
    };
    let request = || Request::new(vec![1, 2]).with_max_new_tokens(5).with_group(GroupId(1));
    let run = |decoder: &mut Decoder<&TinyLm>| {
        decoder.submit(request()).unwrap();
        decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap()
    };
    let mut first = decoder();
    run(&mut first);
    type Change = fn(&mut Value, &mut Tensors);
    let table: [(Change, &str); 7] = [
        (|header, _| drop(header.as_object_mut().unwrap().remove("next")), "1 and none"),
        (|header, _| header["next"] = json!(u64::MAX), "1 and 18446744073709551615"),
        (|header, _| header["trainer"]["slots"] = json!([]), "0 and 1"),
        (
            |header, _| {
                let slot = header["trainer"]["slots"][0].clone();
                header["trainer"]["slots"].as_array_mut().unwrap().push(slot);
            },
            "2 and 1",
        ),
        (|header, _| header["trainer"]["shared"] = header["trainer"].clone(), "1 and 1"),
        (|header, _| header["trainer"]["ahead"] = json!([header["trainer"], {}]), "1 and 1"),
        (|header, _| header["trainer"]["evidence"] = json!([0, 1]), "1 and 1"),
    ];
    for (change, got) in table {
        first.save_group(GroupId(1), &path, SnapshotPrecision::F32).unwrap();
        rewrite(&path, change);
        let error = decoder().load_group(GroupId(1), &path).unwrap_err().to_string();
        let expected = format!("expected one distiller and its number of completions, got {got}");
        assert!(error.ends_with(&expected), "{error}");
    }
    // Whatever the slot is called, it becomes that of the group.
    first.save_group(GroupId(1), &path, SnapshotPrecision::F32).unwrap();
    let change: Change = |header, _| header["trainer"]["slots"][0]["key"] = json!("everyone");
    rewrite(&path, change);
    let mut second = decoder();
    second.load_group(GroupId(1), &path).unwrap();
    assert_eq!(run(&mut second)[0].id, CompletionId::new(0, 1));
    assert_eq!(second.sampler().completions(), []);
    second.release_group(GroupId(1)).unwrap();
    assert_eq!(second.sampler().distillers(), 1, "the shared one");
}

#[test]
fn counters_stay_at_the_largest_number() {
    let folder = tempfile::tempdir().unwrap();
    let config = small().with_updates_before_steering(1);
    let path = saved(folder.path(), &config, 3);
    rewrite(&path, |header, _| {
        for (_, counter) in header["counters"].as_object_mut().unwrap() {
            if counter.is_u64() {
                *counter = json!(u64::MAX);
            }
        }
        for slot in header["trainer"]["slots"].as_array_mut().unwrap() {
            (slot["updates"], slot["age"]) = (json!(u64::MAX), json!(u64::MAX));
        }
    });
    let mut loaded = load(&path).unwrap();
    (3..6).for_each(|at| step(&mut loaded, at));
    let written = serde_json::to_value(loaded.counters()).unwrap();
    for (name, counter) in written.as_object().unwrap() {
        assert!(counter.as_u64().is_none_or(|counter| counter == u64::MAX), "{name}: {counter}");
    }
    // The number of updates stays there too: a distiller that wrapped to 0 would not steer.
    rewrite(&path, |header, _| {
        header["counters"] = serde_json::to_value(Counters::default()).unwrap();
    });
    let mut loaded = load(&path).unwrap();
    (3..6).for_each(|at| step(&mut loaded, at));
    assert_eq!((loaded.counters().steered, loaded.counters().rows_untrained), (9, 0));
    drop(loaded.finish());
}
