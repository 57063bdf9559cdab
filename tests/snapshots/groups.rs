//! Snapshots of one group of a decoder.

use esamp::{
    Completion, Decoder, Event, GroupId, PromptId, Request,
    engine::{Engine, EngineConfig, Update},
    errors::{GroupError, RequestError},
    testing::TinyLm,
};

use super::*;

const GROUP: GroupId = GroupId(7);

fn decoder(sampler: Sampler) -> Decoder<TinyLm> {
    Decoder::new(TinyLm::new(1, &Device::flex()), sampler).unwrap()
}

fn fresh(config: &SamplerConfig) -> Decoder<TinyLm> {
    decoder(config.init(TinyLm::D_MODEL, &Device::flex()).unwrap())
}

/// The completions of a request of two, without their prompt's id.
fn more(decoder: &mut Decoder<TinyLm>, group: GroupId) -> Vec<(u64, Vec<u32>, Vec<Option<u32>>)> {
    let sampling = Sampling::paper().with_beta(0.7);
    let request = Request::new(vec![1, 2, 3]).with_sampling(sampling).with_completions(2);
    decoder.submit(request.with_max_new_tokens(13).with_group(group)).unwrap();
    let completions = decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
    let novelties = |completion: &Completion| {
        let choices = completion.choices.iter();
        choices.map(|choice| choice.novelty.map(|novelty| novelty.error.to_bits())).collect()
    };
    let of =
        |completion: &Completion| (completion.id.index, completion.tokens(), novelties(completion));
    completions.iter().map(of).collect()
}

/// Those with a distiller for each prompt, and nothing that all prompts share.
fn per_prompt() -> Vec<SamplerConfig> {
    configs().into_iter().filter(|config| config.sharing == Sharing::PerPrompt).collect()
}

#[test]
fn a_group_continues_after_a_restart_as_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    for config in per_prompt() {
        let mut first = fresh(&config);
        let before = more(&mut first, GROUP);
        // An update that is under way would otherwise become visible later than after loading.
        first.sampler_mut().finish().unwrap();
        first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
        let expected = more(&mut first, GROUP);
        assert_eq!(expected[0].0, 2, "the third completion");
        assert_ne!(expected[0].1, before[0].1);

        // Into a decoder with other groups, under another id.
        let mut second = fresh(&config);
        more(&mut second, GROUP);
        let other = GroupId(9);
        second.load_group(other, &path).unwrap();
        assert_eq!(second.groups(), [GROUP, other]);
        assert_eq!(second.sampler().held(), [PromptId(0), PromptId(1)]);
        assert_eq!(second.sampler().distillers(), 2);
        assert_eq!(more(&mut second, other), expected, "{config:?}");
        // The group that was there has learned nothing from it.
        first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
        let mut third = fresh(&config);
        more(&mut third, GROUP);
        third.sampler_mut().finish().unwrap();
        second.sampler_mut().finish().unwrap();
        assert_eq!(more(&mut second, GROUP), more(&mut third, GROUP));
        second.release_group(other).unwrap();
        assert_eq!(second.sampler().distillers(), 1);
        second.load_group(other, &path).unwrap();
        assert_eq!(more(&mut second, other)[1].0, 5, "the sixth completion");
    }
}

/// With adaptive sharing, the evidence about the prompt is part of the group. The shared distiller comes from a
/// snapshot of the whole sampler.
#[test]
fn a_group_of_an_adaptive_sampler_keeps_its_evidence() {
    let folder = tempfile::tempdir().unwrap();
    let [group, sampler] = ["group", "sampler"].map(|name| folder.path().join(name));
    let config =
        configs().into_iter().find(|config| matches!(config.sharing, Sharing::Adaptive(_)));
    let config = config.unwrap();
    let mut first = fresh(&config);
    more(&mut first, GROUP);
    first.save_group(GROUP, &group, SnapshotPrecision::F32).unwrap();
    first.sampler_mut().save(&sampler, SnapshotPrecision::F32).unwrap();
    let expected = more(&mut first, GROUP);

    let mut loaded = Sampler::loader(&sampler).load(&Device::flex()).unwrap();
    for prompt in loaded.held() {
        loaded.unhold(prompt);
    }
    let mut second = decoder(loaded);
    assert_eq!(second.sampler().distillers(), 1, "the shared one");
    second.load_group(GROUP, &group).unwrap();
    assert_eq!(second.sampler().distillers(), 2);
    assert_eq!(more(&mut second, GROUP), expected);
}

/// While the worker has a lesson, and while it has none: nothing is left of a group that was loaded and released.
#[test]
fn a_background_worker_takes_over_a_loaded_group() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let background = TrainingConfig::new().with_staleness(Staleness::Background);
    let config = configs().remove(0).with_training(background);
    let mut first = fresh(&config);
    more(&mut first, GROUP);
    first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
    let other = GroupId(9);
    let bytes = first.sampler().state_bytes();
    for _ in 0..3 {
        first.load_group(other, &path).unwrap();
        first.release_group(other).unwrap();
    }
    assert_eq!(first.sampler().state_bytes(), bytes);
    first.load_group(other, &path).unwrap();
    let continued = more(&mut first, other);
    first.sampler_mut().finish().unwrap();
    first.load_group(GroupId(3), &path).unwrap();
    assert_eq!(more(&mut first, GroupId(3)), continued);
    assert_ne!(continued, more(&mut fresh(&config), GROUP));
    for group in first.groups() {
        first.release_group(group).unwrap();
    }
    first.sampler_mut().finish().unwrap();
    assert_eq!((first.sampler().distillers(), first.sampler().state_bytes()), (0, 0));
}

/// What an engine has written, another engine continues as the loop does.
#[test]
fn a_group_moves_from_one_engine_to_another() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let config = configs().remove(0);
    let request = || {
        let sampling = Sampling::paper().with_beta(0.7);
        let request = Request::new(vec![1, 2, 3]).with_sampling(sampling).with_completions(2);
        request.with_max_new_tokens(13).with_group(GROUP).with_seed(0)
    };
    let tokens = |engine: &Engine| {
        let mut updates = engine.submit(request()).unwrap();
        let mut all = Vec::new();
        while let Some(update) = updates.recv() {
            if let Update::Event(Event::Finished { completion, .. }) = update {
                all.push((completion.id.index, completion.tokens()));
            }
        }
        all.sort();
        all
    };
    let start = || Engine::start(fresh(&config), EngineConfig::default()).unwrap();
    let first = start();
    let unknown = first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap_err();
    assert!(matches!(unknown, GroupError::Request(RequestError::UnknownGroup { .. })));
    tokens(&first);
    first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
    first.drain();
    let ended = first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap_err();
    assert!(matches!(ended, GroupError::Ended), "{ended}");

    let second = start();
    second.load_group(GROUP, &path).unwrap();
    let known = second.load_group(GROUP, &path).unwrap_err();
    assert!(matches!(known, GroupError::Request(RequestError::KnownGroup { .. })), "{known}");
    let continued = tokens(&second);
    second.stop();
    let mut alone = fresh(&config);
    more(&mut alone, GROUP);
    let expected = more(&mut alone, GROUP);
    let expected: Vec<_> = expected.into_iter().map(|(index, tokens, _)| (index, tokens)).collect();
    assert_eq!(continued, expected);
}

#[test]
fn half_precision_is_enough_for_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let config = configs().remove(0);
    let mut first = fresh(&config);
    more(&mut first, GROUP);
    first.save_group(GROUP, &path, SnapshotPrecision::F16).unwrap();
    let expected = more(&mut first, GROUP);
    let mut second = fresh(&config);
    second.load_group(GROUP, &path).unwrap();
    let got = more(&mut second, GROUP);
    // The second token is the first that is predicted.
    let [got, expected] = [got, expected].map(|more| f32::from_bits(more[0].2[1].unwrap()));
    assert!((got - expected).abs() < 1e-2 * expected, "{got} {expected}");
}

#[test]
fn a_group_must_be_kept_to_be_saved_and_not_kept_to_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let mut decoder = fresh(&configs()[0]).with_max_groups(1).unwrap();
    let request = |error: GroupError| match error {
        GroupError::Request(error) => error,
        other => panic!("{other:?}"),
    };
    let unknown = decoder.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap_err();
    assert_eq!(request(unknown), RequestError::UnknownGroup { group: GROUP });
    more(&mut decoder, GROUP);
    decoder.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
    let known = decoder.load_group(GROUP, &path).unwrap_err();
    assert_eq!(known.to_string(), "group 7: expected one that is not kept, got one that is");
    assert_eq!(request(known), RequestError::KnownGroup { group: GROUP });
    // The limit holds, as for a request.
    decoder.submit(Request::new(vec![1]).with_group(GROUP)).unwrap();
    let full = decoder.load_group(GroupId(8), &path).unwrap_err();
    assert_eq!(request(full), RequestError::GroupLimit { limit: 1 });
    decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
    decoder.load_group(GroupId(8), &path).unwrap();
    assert_eq!((decoder.groups(), decoder.sampler().distillers()), (vec![GroupId(8)], 1));

    let alone = configs().remove(0).with_sharing(Sharing::PerCompletion);
    let sharing = fresh(&alone).load_group(GROUP, &path).unwrap_err();
    let expected = RequestError::GroupSharing { sharing: Sharing::PerCompletion };
    assert_eq!(request(sharing), expected);
    // After a reset there is nothing to continue, and the file says so.
    decoder.sampler_mut().reset();
    decoder.save_group(GroupId(8), &path, SnapshotPrecision::F32).unwrap();
    let mut again = fresh(&configs()[0]);
    again.load_group(GROUP, &path).unwrap();
    assert_eq!(again.sampler().distillers(), 1);
}

#[test]
fn a_group_for_which_there_is_no_memory_is_not_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    let config = configs().remove(0);
    let mut first = fresh(&config);
    more(&mut first, GROUP);
    first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
    let refused = |decoder: &mut Decoder<TinyLm>, group| {
        let groups = decoder.groups();
        let error = decoder.load_group(group, &path).unwrap_err();
        let GroupError::MemoryLimit { limit, needed } = error else { panic!("{error:?}") };
        let wording =
            format!("expected at most {limit} bytes with the group's distiller, got {needed}");
        assert_eq!(error.to_string(), format!("memory: {wording}"));
        assert_eq!(decoder.groups(), groups);
        [limit, needed]
    };
    let [_, one] = refused(&mut fresh(&config).with_memory_limit(1), GROUP);
    let mut second = fresh(&config).with_memory_limit(one);
    second.load_group(GROUP, &path).unwrap();
    let other = GroupId(8);
    let [limit, two] = refused(&mut second, other);
    assert!(limit == one && two > one, "{limit} {one} {two}");
    second.release_group(GROUP).unwrap();
    second.load_group(other, &path).unwrap();
    let mut roomy = fresh(&config).with_memory_limit(two);
    for group in [GROUP, other] {
        roomy.load_group(group, &path).unwrap();
    }
}

#[test]
fn a_file_that_is_not_of_this_sampler_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let [group, sampler, damaged] = ["group", "sampler", "damaged"].map(|f| folder.path().join(f));
    let config = configs().remove(0);
    let mut first = fresh(&config);
    more(&mut first, GROUP);
    first.save_group(GROUP, &group, SnapshotPrecision::F32).unwrap();
    first.sampler_mut().save(&sampler, SnapshotPrecision::F32).unwrap();
    let wording = |decoder: &mut Decoder<TinyLm>, path: &Path| {
        let before = (decoder.sampler().distillers(), decoder.groups());
        let error = decoder.load_group(GroupId(8), path).unwrap_err();
        assert!(matches!(error, GroupError::Snapshot(_)), "{error:?}");
        assert_eq!((decoder.sampler().distillers(), decoder.groups()), before);
        error.to_string().replace(&format!("{}: ", path.display()), "")
    };
    assert_eq!(wording(&mut first, &sampler), "format: expected esamp group, got esamp snapshot");
    let error = Sampler::loader(&group).load(&Device::flex()).unwrap_err().to_string();
    assert!(error.ends_with("format: expected esamp snapshot, got esamp group"), "{error}");
    assert!(wording(&mut first, &folder.path().join("none")).contains("cannot be written or read"));

    let whole = fs::read(&group).unwrap();
    for at in (0..whole.len()).step_by(whole.len() / 40) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&damaged, &bytes).unwrap();
        wording(&mut first, &damaged);
        fs::write(&damaged, &whole[..at]).unwrap();
        wording(&mut first, &damaged);
    }
    let rate = |rate| config.clone().with_optimizer(OptimizerConfig::sgd(rate));
    fresh(&rate(0.1)).load_group(GROUP, &group).unwrap_err();
    let mut slower = fresh(&rate(0.1));
    more(&mut slower, GROUP);
    slower.save_group(GROUP, &damaged, SnapshotPrecision::F32).unwrap();
    let error = wording(&mut fresh(&rate(0.2)), &damaged);
    assert!(error.starts_with("optimizer: expected {\""), "{error}");
    let seeded = config.clone().with_distiller_seed(5);
    let error = wording(&mut fresh(&seeded), &group);
    assert_eq!(error, "distiller_seed: expected 5, got 0");
    let custom = Sampler::builder(config.clone())
        .with_distiller(scale(TinyLm::D_MODEL))
        .build(TinyLm::D_MODEL, &Device::flex());
    let error = wording(&mut decoder(custom.unwrap()), &group);
    assert_eq!(error, "custom_distiller: expected true, got false");

    // After all of these, the groups that were there go on as if nothing had happened.
    let mut undisturbed = fresh(&config);
    more(&mut undisturbed, GROUP);
    assert_eq!(more(&mut first, GROUP), more(&mut undisturbed, GROUP));
}

/// A distiller of the user's own, whose parameters do not have the shape of those in the file.
#[test]
fn parameters_that_do_not_fit_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("group");
    for slot_path in [esamp::unstable::SlotPath::OneByOne, esamp::unstable::SlotPath::Automatic] {
        let config =
            SamplerConfig::new().with_training(TrainingConfig::new().with_slot_path(slot_path));
        let of = |width: usize| {
            let builder = Sampler::builder(config.clone()).with_distiller(scale(width));
            decoder(builder.build(TinyLm::D_MODEL, &Device::flex()).unwrap())
        };
        let mut first = of(TinyLm::D_MODEL);
        more(&mut first, GROUP);
        first.save_group(GROUP, &path, SnapshotPrecision::F32).unwrap();
        let mut other = of(1);
        more(&mut other, GROUP);
        let bytes = other.sampler().state_bytes();
        let error = other.load_group(GroupId(8), &path).unwrap_err();
        assert!(matches!(error, GroupError::Snapshot(SnapshotError::Misfit { .. })), "{error:?}");
        assert_eq!((other.sampler().distillers(), other.sampler().state_bytes()), (1, bytes));
        more(&mut other, GROUP);
    }
}
