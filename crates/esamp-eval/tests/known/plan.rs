//! The plan of the second round.

use std::collections::HashSet;

use clap::Parser;
use esamp_eval::{
    args::Args,
    round2::{self, PartModel},
};

use super::*;

fn args(words: &[&str]) -> Args {
    Args::try_parse_from([&["evaluate"], words].concat()).unwrap()
}

#[test]
fn all_parts_can_run() {
    for flags in [&["--plan", "round-2"][..], &["--plan", "round-2", "--quick"]] {
        let plan = args(flags);
        let parts = round2::chosen(&plan).unwrap();
        let names: HashSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
        // Each model on either half, four parts with texts, two of rivals, and the known sets on either half.
        let expected = 2 * round2::KNOWN.len() + 8;
        assert_eq!((names.len(), parts.len()), (expected, expected));
        for part in &parts {
            let own = part.args(&plan);
            assert!(own.arms().unwrap().len() >= 2, "{}", part.name);
            for task in own.tasks().unwrap() {
                assert!(task.split(own.split.into()).len() >= part.problems, "{}", part.name);
            }
            assert!(part.most_tokens(&own).unwrap() > 0);
            if let PartModel::Known(name) = part.model {
                assert!(known().join(name).join("model.safetensors").exists(), "{name}");
                assert!(own.wave.is_some());
            }
        }
    }
}

#[test]
fn the_models_are_small_altogether() {
    let models = round2::KNOWN.iter();
    let files = models.flat_map(|(_, model)| std::fs::read_dir(known().join(model)).unwrap());
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 5_000_000, "{bytes}");
}

#[test]
fn a_plan_sets_its_own_settings() {
    for flag in [["--arms", "plain-1"], ["--samples", "3"], ["--wave", "3"], ["--model", "m"]] {
        let words = [&["evaluate", "--plan", "round-2"][..], &flag].concat();
        let error = Args::try_parse_from(words).unwrap_err().to_string();
        assert!(error.contains("cannot be used with"), "{error}");
    }
    let unknown = args(&["--plan", "round-2", "--parts", "circle"]);
    let error = round2::chosen(&unknown).unwrap_err().to_string();
    assert!(error.contains("--parts: expected the name of a part, got circle"), "{error}");
    let one = round2::chosen(&args(&["--plan", "round-2", "--parts", "sibling-even-dev"])).unwrap();
    // 10 problems × 1,024 samples × 5 tokens × the arms.
    let tokens = 10 * 1024 * 5 * round2::KNOWN_ARMS.len() as u64;
    assert_eq!(one[0].most_tokens(&one[0].args(&args(&["--plan", "round-2"]))).unwrap(), tokens);
}

#[test]
fn waves_need_distillers_per_prompt() {
    let shared = args(&["--tasks", "circle", "--arms", "esamp-0.5-shared", "--wave", "8"]);
    let error = shared.arms().unwrap_err().to_string();
    assert!(
        error.contains("--wave: expected arms with distillers per prompt, got esamp-0.5-shared"),
        "{error}"
    );
}
