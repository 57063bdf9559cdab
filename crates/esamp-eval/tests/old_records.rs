//! Arms from records of earlier versions are read with their original meaning.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
};

use esamp::{SamplerConfig, Sampling, reweighters::ReweighterConfig};
use esamp_eval::{
    arms,
    controls::{ArmSampling, ControlConfig, Matched},
    record::{ArmRecord, ErrorName, Role, Run, parse_header},
};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

/// An arm as version 0.1.0-dev wrote it in its first records, with these values of `reweighter`, `overlap` and
/// `expected_control`.
fn old_arm(reweighter: &str, overlap: &str, expected_control: &str) -> String {
    r#"{"name":"a","what":"b","role":"control","sampling":{"temperature":1.0,"temperature_order":"before_filters","filters":[{"min_p":{"p":0.05}}],"beta":0.5,"reweighter":REWEIGHTER,"penalties":{"repetition":1.0,"frequency":0.0,"presence":0.0},"logit_bias":{},"fire":null,"selection":"random"},"sampler":{"distiller":{"swi_glu":{"blocks":2,"d_hidden":384,"source_norm":"rms","output_start":"zero"}},"optimizer":{"rule":{"adam":{"beta_1":0.9,"beta_2":0.999,"epsilon":0.0001}},"learning_rate":0.003,"schedule":"constant","loss":"mean","max_grad_norm":0.5},"sharing":"per_prompt","training":{"train_rows":"all","update_every":1,"staleness":"inline","slot_path":"automatic"},"steps_before_steering":0,"overlap":OVERLAP,"distiller_seed":0,"expected_control":CONTROL},"prompt_warm_up":0}"#
        .replace("REWEIGHTER", reweighter)
        .replace("OVERLAP", overlap)
        .replace("CONTROL", expected_control)
}

fn read(text: &str) -> Result<ArmRecord, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn expected(sampling: impl Into<ArmSampling>, error: ErrorName) -> ArmRecord {
    ArmRecord {
        name: "a".to_owned(),
        what: "b".to_owned(),
        role: Role::Control,
        sampling: sampling.into(),
        sampler: SamplerConfig::for_short_completions(),
        prompt_warm_up: 0,
        error,
        rival: None,
    }
}

fn settings() -> Sampling {
    Sampling::new().with_beta(0.5).with_min_p(0.05)
}

#[test]
fn controls_of_the_scores_keep_their_names() {
    for (name, control) in [
        (r#""subtract""#, ControlConfig::Subtract),
        (r#""sharpen""#, ControlConfig::Sharpen),
        (r#""random_reward""#, ControlConfig::RandomReward),
        (r#""surprisal""#, ControlConfig::Surprisal),
        (r#"{"matched_random":"extrapolate"}"#, ControlConfig::MatchedRandom(Matched::Extrapolate)),
        (r#"{"matched_random":"orthogonal"}"#, ControlConfig::MatchedRandom(Matched::Orthogonal)),
    ] {
        let got = read(&old_arm(name, r#""none""#, r#""none""#)).unwrap();
        assert_eq!(got, expected(ArmSampling::controlled(settings(), control), ErrorName::Own));
        assert!(got.sampling.sampling().validate().is_ok());
    }
}

#[test]
fn controls_of_the_error_were_a_setting_of_the_sampler() {
    for (name, error) in [
        (r#""none""#, ErrorName::Own),
        (r#""gaussian_error""#, ErrorName::Gaussian),
        (r#""shuffled_errors""#, ErrorName::Shuffled),
    ] {
        let got = read(&old_arm(r#""extrapolate""#, r#""none""#, name)).unwrap();
        assert_eq!(got, expected(settings(), error));
        let again = serde_json::to_string(&got).unwrap();
        assert!(!again.contains("expected_control"), "{again}");
        assert_eq!(read(&again).unwrap(), got);
    }
    let orthogonal = read(&old_arm(r#""orthogonal""#, r#""none""#, r#""none""#)).unwrap();
    let reweighter = settings().with_reweighter(ReweighterConfig::Orthogonal);
    assert_eq!(orthogonal, expected(reweighter, ErrorName::Own));
}

#[test]
fn settings_that_no_longer_exist_are_refused() {
    let esamp = r#""extrapolate""#;
    let early = read(&old_arm(esamp, r#""early_tap""#, r#""none""#)).unwrap_err();
    assert!(early.contains(r#"overlap: expected none, got "early_tap""#), "{early}");
    let unknown = read(&old_arm(esamp, r#""none""#, r#""mirrored""#)).unwrap_err();
    assert!(
        unknown.contains(
            r#"expected_control: expected none, gaussian_error or shuffled_errors, got "mirrored""#
        ),
        "{unknown}"
    );
    let both = old_arm(esamp, r#""none""#, r#""gaussian_error""#)
        .replace(r#""prompt_warm_up":0"#, r#""prompt_warm_up":0,"error":"own""#);
    let both = read(&both).unwrap_err();
    assert!(both.contains(r#"expected none together with error, got "gaussian_error""#), "{both}");
}

/// The records of docs/results: the sampling settings of their arms serialise to the same bytes, and arms that still
/// have a name still have the same settings.
#[test]
fn the_records_of_this_repository_are_written_as_they_were() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results/records");
    for (name, count) in [("development.jsonl.gz", 41), ("held-out.jsonl.gz", 8)] {
        let path = folder.join(name);
        let mut line = String::new();
        let file = BufReader::new(MultiGzDecoder::new(File::open(&path).unwrap()));
        { file }.read_line(&mut line).unwrap();
        let (header, is_sealed) = parse_header(&path, &line).unwrap();
        let arms = header.arms;
        assert_eq!((arms.len(), is_sealed), (count, false), "these have no checksums");
        let written: Value = serde_json::from_str(&line).unwrap();
        for (arm, written) in arms.iter().zip(written["arms"].as_array().unwrap()) {
            let sampling = serde_json::to_string(&arm.sampling).unwrap();
            assert!(line.contains(&format!(r#""sampling":{sampling},"sampler""#)), "{}", arm.name);
            assert_eq!(serde_json::from_str::<Value>(&sampling).unwrap(), written["sampling"]);
            let now = arms::named(&arm.name).unwrap().remove(0);
            assert_eq!(now, ArmRecord { what: now.what.clone(), ..arm.clone() });
        }
    }
}

/// None of them is refused as damaged.
#[test]
fn the_records_of_this_repository_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/results/records");
    for (name, count) in [("development.jsonl.gz", 492), ("held-out.jsonl.gz", 1440)] {
        assert_eq!(Run::read(&folder.join(name)).unwrap().records.len(), count);
    }
}
