//! The overhead bench on a tiny model, from arguments to figures. No test asserts a time.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use clap::Parser;
use esamp_bench::overhead::{
    args::Args,
    device::{DeviceError, DeviceName},
    report, run, state,
    subject::ModelName,
};
use serde_json::Value;

fn report(line: &str) -> String {
    let args = Args::try_parse_from(["overhead"].into_iter().chain(line.split(' '))).unwrap();
    let mut out = Vec::new();
    report::report(&args, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn figures(line: &str) -> Vec<Value> {
    report(line).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// 6 tokens take 5 decode steps; the warm-up round also learns.
#[test]
fn json_has_one_object_per_configuration_with_every_key() {
    let all = figures("--model tiny --rounds 1 --tokens 6 --filter min-p --json");
    assert_eq!(all.len(), 9, "four groups with two distillers, and one without β");
    for figures in &all {
        for key in ["config", "distiller", "model", "dtype", "device"] {
            assert!(figures[key].is_string(), "{key}: {figures}");
        }
        for key in ["tokens_per_second_plain", "tokens_per_second_esamp", "ratio", "q1", "q3"] {
            assert!(figures[key].as_f64().unwrap() > 0.0, "{key}: {figures}");
        }
        let floor = figures["floor"].as_f64().unwrap();
        assert!(floor > 0.0 && floor <= 1.0, "{figures}");
        let beta = figures["beta"].as_f64().unwrap();
        let prompts = match figures["config"].as_str().unwrap().split(' ').next().unwrap() {
            "1" => 1,
            "4" => 4,
            other => panic!("{other} prompts"),
        };
        let steered = u64::from(beta != 0.0);
        assert_eq!(figures["updates"], 2 * 5 * prompts * steered, "{figures}");
        let rows = figures["rows"].as_u64().unwrap();
        assert_eq!(figures["rows_learned"], 2 * 5 * rows * steered, "{figures}");
    }
}

#[test]
fn global_and_background_configurations_are_named_and_counted() {
    let line = "--model tiny --rounds 1 --tokens 6 --filter top-p --distiller swiglu --groups 9x2";
    let shared = figures(&format!("{line} --sharing global --json"));
    assert_eq!(shared[0]["config"], "9 x 2, top-p .95, swiglu (paper), beta 0.25, global");
    assert_eq!((&shared[0]["updates"], &shared[0]["rows_learned"]), (&10.into(), &180.into()));
    let background = figures(&format!("{line} --background --beta 0.5 --json"));
    assert_eq!(background[0]["config"], "9 x 2, top-p .95, swiglu (paper), beta 0.5, background");
    assert_eq!(background[0]["updates"], 90);
    assert_eq!(background[0]["rows_learned"], 180);
}

#[test]
fn the_text_ends_with_the_memory_of_a_prompts_distiller() {
    let text = report("--model tiny --rounds 1 --tokens 3 --groups 1x2 --filter none");
    // Parameters and both moments: 3·(2304·4096)·4 and 3·(3·64·4096 + 64 + 2·4096)·4 bytes.
    let expected = [
        "distiller state per prompt at d = 4096, swiglu (paper): 113.2 MB (target: at most 160 MB)",
        "distiller state per prompt at d = 4096, low-rank 64: 9.5 MB (target: at most 20 MB)",
    ];
    assert!(text.ends_with(&format!("{}\n{}\n", expected[0], expected[1])), "{text}");
    assert!(
        text.starts_with("a tiny shape, random weights, f32, 0.1 MB of matrices, flex, "),
        "{text}"
    );
    assert_eq!(text.matches("1 x 2, no filter, ").count(), 2, "{text}");
    for state in state::of_each_distiller().unwrap() {
        assert!(state.bytes <= state.target, "{state}");
    }
}

/// Compares with the published parameter counts of the models.
#[test]
fn the_shapes_are_those_of_their_namesakes() {
    for (model, params) in [
        (ModelName::Half, 494_032_768),
        (ModelName::Two, 1_711_376_384),
        (ModelName::Seven, 7_615_616_512),
    ] {
        let shape = model.shape().unwrap();
        shape.validate().unwrap();
        assert_eq!(shape.num_params(), params, "{model:?}");
    }
}

#[test]
fn the_gpu_preset_is_the_workload_of_the_reference() {
    let args = Args::try_parse_from(["overhead", "--gpu"]).unwrap();
    assert_eq!((args.device(), args.tokens()), (DeviceName::Cuda, 256));
    let plans = args.plans();
    let names: Vec<(ModelName, Vec<String>)> = plans
        .iter()
        .map(|plan| (plan.model, plan.cases.iter().map(run::Case::name).collect()))
        .collect();
    let cheap = "8 x 16, min-p .05, low-rank 64, beta 0.25";
    let paper = "8 x 16, min-p .05, swiglu (paper), beta 0.25";
    let seven = vec![cheap.to_owned(), paper.to_owned(), format!("{paper}, global")];
    assert_eq!(names, [(ModelName::Seven, seven), (ModelName::Half, vec![cheap.to_owned()])]);
    assert!(plans.iter().all(|plan| plan.dtype.name() == "bf16"));
    assert!(plans.iter().flat_map(|plan| &plan.cases).all(|case| !case.in_turns));
}

#[test]
fn options_that_cannot_be_run_are_refused() {
    let refused = |line: &str| {
        let args = ["overhead"].into_iter().chain(line.split(' '));
        Args::try_parse_from(args).unwrap_err().to_string()
    };
    for groups in ["16", "0x4", "4x0", "axb"] {
        let expected = format!("expected PROMPTSxCOMPLETIONS, both at least 1, got {groups}");
        assert!(refused(&format!("--groups {groups}")).contains(&expected));
    }
    assert!(refused("--gpu --model tiny").contains("cannot be used with"));
    let args = Args::try_parse_from(["overhead", "--only", "nothing of the kind"]).unwrap();
    let error = report::report(&args, &mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "--only: expected a part of a name, got nothing of the kind");
    let error = DeviceError::NotThere { name: "cuda" };
    assert_eq!(error.to_string(), "--device cuda: expected a device of this kind, got none");
    #[cfg(not(feature = "cuda"))]
    assert_eq!(
        DeviceName::Cuda.open().unwrap_err().to_string(),
        "--device cuda: expected a program built with --features cuda-nvrtc, got one without it"
    );
    #[cfg(not(feature = "ndarray"))]
    assert_eq!(
        DeviceName::Ndarray.open().unwrap_err().to_string(),
        "--device ndarray: expected a program built with --features ndarray, got one without it"
    );
}
