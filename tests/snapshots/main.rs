//! Snapshots: an interrupted run equals an uninterrupted one, and an incomplete file is an error.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod decoder;
mod groups;

use std::{fs, path::Path};

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, TensorData},
};
use esamp::{
    CompletionId, DrawKey, HiddenStates, LmHead, Phase, Sampler, SamplerConfig, Sampling, Sharing,
    StepInput, StepRow, TiedHead, TokenId,
    distillers::{Distiller, DistillerConfig, LowRankConfig, LowRankStart, SwiGluConfig},
    errors::SnapshotError,
    optim::{AdaptiveConfig, OptimizerConfig, Staleness, TrainingConfig},
    snapshots::SnapshotPrecision,
};

const D_MODEL: usize = 6;

fn wave(rows: usize, phase: f32) -> Tensor<2> {
    let numbers = (0..rows * D_MODEL).map(|i| (i as f32 * 0.71 + phase).sin());
    let data = TensorData::new(numbers.collect::<Vec<f32>>(), [rows, D_MODEL]);
    Tensor::from_data(data, &Device::flex())
}

/// One step of up to four rows of three prompts, some of which pause or join late. Returns the results bit for bit.
fn step(sampler: &mut Sampler, at: usize) -> Vec<(TokenId, u32, Option<u32>)> {
    let sampling = Sampling::paper().with_beta(0.7).checked().unwrap();
    let head = TiedHead::new(wave(11, 0.3));
    let rows: Vec<StepRow<'_>> = [(0, 0), (0, 1), (1, 2), (2, 3)]
        .into_iter()
        .filter(|&(prompt, _)| at % 3 != 1 || prompt != 1)
        .filter(|&(prompt, _)| at > 7 || prompt != 2)
        .map(|(prompt, request)| {
            StepRow::new(
                CompletionId::new(prompt, request),
                DrawKey::new(9, &[prompt as TokenId], request),
                &[],
                &[1],
                &sampling,
            )
            .with_phase(Phase::Decode)
        })
        .collect();
    let (shallow, deep) = (wave(rows.len(), at as f32), wave(rows.len(), 2.0 * at as f32 + 1.0));
    let hidden = HiddenStates::new(shallow, deep.clone()).unwrap();
    let input = StepInput::new(&rows, head.logits(deep), &head).with_hidden(hidden);
    let choices = sampler.step(input).unwrap().choices;
    choices
        .into_iter()
        .map(Result::unwrap)
        .map(|c| (c.token, c.log_prob.to_bits(), c.novelty.map(|n| n.error.to_bits())))
        .collect()
}

fn configs() -> Vec<SamplerConfig> {
    let swiglu = || DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(5));
    let base = || SamplerConfig::new().with_distiller(swiglu());
    let training = |training: TrainingConfig| base().with_training(training);
    let low_rank = |config: LowRankConfig| {
        SamplerConfig::new().with_distiller(DistillerConfig::LowRank(config.with_rank(2)))
    };
    let ridge = LowRankStart::Ridge { rows: 17, lambda: 0.01 };
    let background = TrainingConfig::new().with_staleness(Staleness::Background);
    vec![
        base(),
        base().with_sharing(Sharing::Global),
        base().with_sharing(Sharing::PerCompletion),
        base().with_sharing(Sharing::Adaptive(AdaptiveConfig::default())),
        training(TrainingConfig::new().with_update_every(4)),
        training(background),
        training(background).with_sharing(Sharing::Adaptive(AdaptiveConfig::default())),
        training(TrainingConfig::new().with_slot_path(esamp::unstable::SlotPath::OneByOne)),
        training(TrainingConfig::new().with_slot_path(esamp::unstable::SlotPath::Stacked)),
        base().with_optimizer(OptimizerConfig::momentum(0.05, 0.9)),
        base().with_optimizer(OptimizerConfig::sgd(0.05)),
        low_rank(LowRankConfig::new()),
        low_rank(LowRankConfig::new().with_start(ridge)),
        base().with_updates_before_steering(7),
    ]
}

#[test]
fn an_interrupted_run_gives_the_tokens_of_an_uninterrupted_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler.safetensors");
    for config in configs() {
        let mut whole = config.init(D_MODEL, &Device::flex()).unwrap();
        let expected: Vec<_> = (0..14).map(|at| step(&mut whole, at)).collect();
        for interrupted_at in [0, 1, 5, 9] {
            let mut first = config.init(D_MODEL, &Device::flex()).unwrap();
            let before = expected.iter().enumerate().take(interrupted_at);
            for (at, expected) in before {
                assert_eq!(&step(&mut first, at), expected);
            }
            first.save(&path, SnapshotPrecision::F32).unwrap();
            let mut second = Sampler::loader(&path).load(&Device::flex()).unwrap();
            assert_eq!(second.config(), &config);
            assert_eq!(second.completions(), first.completions(), "with their prompts");
            for (at, expected) in expected.iter().enumerate().skip(interrupted_at) {
                assert_eq!(&step(&mut second, at), expected, "{config:?} at {interrupted_at}");
                assert_eq!(&step(&mut first, at), expected, "saving changes nothing");
            }
            whole.finish().unwrap();
            second.finish().unwrap();
            assert_eq!(second.counters(), whole.counters());
            assert_eq!(second.distillers(), whole.distillers());
            let last = CompletionId::new(2, 3);
            second.release(last);
            assert_eq!(
                second.distillers() < whole.distillers(),
                !matches!(config.sharing, Sharing::Global),
                "members are known"
            );
        }
    }
}

/// A fast decimal parser reads each of these values with an error of one unit in the last place.
#[test]
fn a_learning_rate_of_seventeen_digits_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler");
    for learning_rate in [
        0.00046288615142488443,
        0.0009365525871246181,
        0.0009178662194735241,
        0.0017390769676354225,
        0.00011459477714037295,
        1.0 / 3.0,
    ] {
        let optimizer = OptimizerConfig::paper().with_learning_rate(learning_rate);
        let config = SamplerConfig::new().with_optimizer(optimizer);
        let mut sampler = config.init(D_MODEL, &Device::flex()).unwrap();
        sampler.save(&path, SnapshotPrecision::F32).unwrap();
        let mut loaded = Sampler::loader(&path).load(&Device::flex()).unwrap();
        let got = loaded.config().optimizer.unwrap().learning_rate;
        assert_eq!(got.to_bits(), learning_rate.to_bits(), "{got:e} {learning_rate:e}");
        loaded.save(&path, SnapshotPrecision::F32).unwrap();
        assert_eq!(Sampler::loader(&path).load(&Device::flex()).unwrap().config(), &config);
    }
}

/// For a caller that manages its own threads: the caller runs the worker, and the first step does not wait for it.
#[test]
fn a_sampler_can_be_loaded_without_starting_a_thread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler");
    let device = Device::flex();
    let own = |config: &SamplerConfig| {
        Sampler::builder(config.clone())
            .with_distiller(scale(D_MODEL))
            .build(D_MODEL, &device)
            .unwrap()
    };
    for config in configs() {
        for of_the_users_own in [false, true] {
            let mut whole = match of_the_users_own {
                false => config.init(D_MODEL, &device).unwrap(),
                true => own(&config),
            };
            for at in 0..5 {
                drop(step(&mut whole, at));
            }
            whole.save(&path, SnapshotPrecision::F32).unwrap();
            let (mut sampler, worker) = match of_the_users_own {
                false => Sampler::loader(&path).load_with_worker(&device).unwrap(),
                true => Sampler::loader(&path)
                    .with_distiller(scale(D_MODEL))
                    .load_with_worker(&device)
                    .unwrap(),
            };
            let in_background = config.training.staleness == Staleness::Background;
            assert_eq!(worker.is_some(), in_background);
            assert_eq!(step(&mut sampler, 5), step(&mut whole, 5), "{config:?}");
            let thread = std::thread::spawn(|| worker.map(esamp::optim::TrainingWorker::run));
            for at in 6..12 {
                assert_eq!(step(&mut sampler, at), step(&mut whole, at));
            }
            drop(sampler);
            thread.join().unwrap(); // it ends with its sampler
        }
    }
    own(&SamplerConfig::new()).save(&path, SnapshotPrecision::F32).unwrap();
    let error = Sampler::loader(&path).load_with_worker(&device).unwrap_err().to_string();
    assert!(error.ends_with("distiller: expected one of this crate's, got one of the user's own"));
}

#[test]
fn half_precision_is_half_the_size_and_close() {
    let folder = tempfile::tempdir().unwrap();
    let config = SamplerConfig::new().with_optimizer(OptimizerConfig::sgd(0.05));
    let mut sampler = config.init(D_MODEL, &Device::flex()).unwrap();
    for at in 0..10 {
        drop(step(&mut sampler, at));
    }
    let size = |name: &str, precision, sampler: &mut Sampler| {
        let path = folder.path().join(name);
        sampler.save(&path, precision).unwrap();
        (fs::metadata(&path).unwrap().len() as f64, path)
    };
    let (full, _) = size("full", SnapshotPrecision::F32, &mut sampler);
    let (half, path) = size("half", SnapshotPrecision::F16, &mut sampler);
    assert!((half / full - 0.5).abs() < 0.02, "{half} {full}");
    let mut loaded = Sampler::loader(&path).load(&Device::flex()).unwrap();
    for (a, b) in step(&mut loaded, 10).into_iter().zip(step(&mut sampler, 10)) {
        let [a, b] = [a.2, b.2].map(|bits| f32::from_bits(bits.unwrap()));
        assert!((a - b).abs() < 2e-3 * b && a != b, "{a} {b}");
    }
}

#[test]
fn a_parameter_that_half_precision_cannot_hold_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let scale = Param::from_tensor(Tensor::full([D_MODEL], 1e6, &Device::flex()));
    let mut sampler = Sampler::builder(SamplerConfig::new())
        .with_distiller(Scale { scale })
        .build(D_MODEL, &Device::flex())
        .unwrap();
    step(&mut sampler, 0);
    let path = folder.path().join("x");
    let error = sampler.save(&path, SnapshotPrecision::F16).unwrap_err().to_string();
    assert!(error.contains("expected a number that f16 can hold, got"), "{error}");
    assert!(!path.exists());
}

/// A custom distiller.
#[derive(Module, Debug)]
struct Scale {
    scale: Param<Tensor<1>>,
}

impl Distiller for Scale {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow * self.scale.val().unsqueeze()
    }
}

fn scale(width: usize) -> Scale {
    Scale { scale: Param::from_tensor(Tensor::ones([width], &Device::flex())) }
}

#[test]
fn a_custom_distiller_is_passed_to_the_loader() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("own");
    let device = Device::flex();
    let mut whole = Sampler::builder(SamplerConfig::new())
        .with_distiller(scale(D_MODEL))
        .build(D_MODEL, &device)
        .unwrap();
    let expected: Vec<_> = (0..10).map(|at| step(&mut whole, at)).collect();
    let mut first = Sampler::builder(SamplerConfig::new())
        .with_distiller(scale(D_MODEL))
        .build(D_MODEL, &device)
        .unwrap();
    for at in 0..5 {
        drop(step(&mut first, at));
    }
    first.save(&path, SnapshotPrecision::F32).unwrap();
    let mut second = Sampler::loader(&path).with_distiller(scale(D_MODEL)).load(&device).unwrap();
    for (at, expected) in expected.iter().enumerate().take(10).skip(5) {
        assert_eq!(&step(&mut second, at), expected);
    }

    let error = Sampler::loader(&path).load(&device).unwrap_err().to_string();
    assert!(error.ends_with("distiller: expected one of this crate's, got one of the user's own"));
    let error =
        Sampler::loader(&path).with_distiller(scale(D_MODEL + 1)).load(&device).unwrap_err();
    assert_eq!(error.to_string(), "values in parameters 0: expected 7, got 6");
}

fn wording(path: &Path) -> String {
    let error = Sampler::loader(path).load(&Device::flex()).unwrap_err();
    assert!(matches!(error, SnapshotError::Format { .. }), "{error:?}");
    let name = path.display().to_string();
    error.to_string().strip_prefix(&format!("{name}: ")).unwrap().to_owned()
}

#[test]
fn a_file_that_is_truncated_or_changed_anywhere_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole");
    let config = SamplerConfig::new()
        .with_distiller(DistillerConfig::LowRank(LowRankConfig::new().with_rank(1)));
    let mut sampler = config.init(D_MODEL, &Device::flex()).unwrap();
    step(&mut sampler, 0);
    sampler.save(&path, SnapshotPrecision::F32).unwrap();
    let whole = fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged");
    for cut in (0..whole.len()).step_by(97) {
        fs::write(&damaged, &whole[..cut]).unwrap();
        assert!(Sampler::loader(&damaged).load(&Device::flex()).is_err(), "cut at {cut}");
    }
    for at in (0..whole.len()).step_by(53) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        assert!(Sampler::loader(&damaged).load(&Device::flex()).is_err(), "changed at {at}");
    }
}

#[test]
fn a_file_that_is_not_a_snapshot_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, b"GGUF and so on").unwrap();
    assert!(wording(&path).starts_with("content: expected a whole safetensors file, got "));

    let one = [0u8; 4];
    let one = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![1], &one).unwrap();
    let tagged = |pairs: &[(&str, &str)]| {
        let tags = pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let bytes = safetensors::serialize([("x", &one)], Some(tags)).unwrap();
        fs::write(&path, bytes).unwrap();
        wording(&path)
    };
    assert_eq!(tagged(&[]), "format: expected esamp snapshot, got none");
    assert_eq!(
        tagged(&[("format", "esamp snapshot"), ("version", "2")]),
        "version: expected at most 1, got 2"
    );
    let missing = Sampler::loader(folder.path().join("nobody")).load(&Device::flex()).unwrap_err();
    assert!(matches!(missing, SnapshotError::Io { .. }));
    let mut sampler = SamplerConfig::new().init(D_MODEL, &Device::flex()).unwrap();
    let nowhere = folder.path().join("no/such/folder");
    assert!(matches!(
        sampler.save(&nowhere, SnapshotPrecision::F32),
        Err(SnapshotError::Io { .. })
    ));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
}

/// One file of each version, created once and kept permanently. Its sampler has run the first five steps.
#[test]
fn files_of_earlier_versions_stay_readable() {
    const NEWEST: u32 = 1;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/old_snapshots");
    let path = |version: u32| folder.join(format!("{version}.safetensors"));
    if std::env::var_os("ESAMP_WRITE_OLD_SNAPSHOT").is_some() {
        let mut sampler = old_config().init(D_MODEL, &Device::flex()).unwrap();
        for at in 0..5 {
            drop(step(&mut sampler, at));
        }
        sampler.save(path(NEWEST), SnapshotPrecision::F32).unwrap();
    }
    for version in 1..=NEWEST {
        let loaded = Sampler::loader(path(version)).load(&Device::flex()).unwrap();
        is_the_old_sampler(loaded);
    }
}

fn is_the_old_sampler(mut loaded: Sampler) {
    assert_eq!(loaded.config(), &old_config());
    let mut whole = old_config().init(D_MODEL, &Device::flex()).unwrap();
    for at in 0..5 {
        drop(step(&mut whole, at));
    }
    assert_eq!(loaded.counters().steps, 5);
    assert_eq!(loaded.completions(), whole.completions());
    let steps = |sampler: &mut Sampler| (5..12).map(|at| step(sampler, at)).collect::<Vec<_>>();
    // The file's numbers come from the machine that wrote it: they agree approximately, and give the same tokens.
    for (loaded, whole) in steps(&mut loaded).concat().into_iter().zip(steps(&mut whole).concat()) {
        let [a, b] = [loaded.2, whole.2].map(|bits| f32::from_bits(bits.unwrap()));
        assert!((a - b).abs() < 1e-4 * b, "{a} {b}");
        assert_eq!(loaded.0, whole.0);
    }
}

fn old_config() -> SamplerConfig {
    SamplerConfig::new()
        .with_distiller(DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(4)))
        .with_sharing(Sharing::Adaptive(AdaptiveConfig::default()))
        .with_training(
            TrainingConfig::new()
                .with_update_every(2)
                .with_slot_path(esamp::unstable::SlotPath::Stacked),
        )
}
