//! Pages, ends of completions, and files that are written.

use super::*;

#[test]
fn a_page_shows_every_token_of_both_columns_and_works_with_a_trace() {
    let bench = Bench::new();
    let (page, trace) = (bench.file("page.html"), bench.file("trace"));
    let without = bench.arms(&["--min-p", "0"]);
    let with = bench.arms(&["--min-p", "0", "--html", &page, "--trace", &trace]);
    for (with, without) in with.iter().zip(&without) {
        assert_eq!(with["samples"], without["samples"], "whoever watches changes nothing");
    }
    let html = fs::read_to_string(page).unwrap();
    assert_eq!(html.matches("data-tip=").count(), 2 * 2 * 8);
    assert!(html.contains("w1 w2 w3"), "the prompt");
    assert!(html.contains("2 completions, seed 7, T 1") && html.contains("β 0.25"), "settings");
    // The words of the last column, as in the report.
    let (_, last) = html.rsplit_once("<section class=\"arm\">").unwrap();
    for sample in with[1]["samples"].as_array().unwrap() {
        for word in sample["text"].as_str().unwrap().split_whitespace() {
            assert!(last.contains(&format!("<b>{word}</b>")), "{word}");
        }
    }
    let trace = fs::read(trace).unwrap();
    let traced = read_traces(trace.as_slice());
    let tokens = traced.filter(|record| matches!(record, Ok(TraceRecord::Token(_)))).count();
    assert_eq!(tokens, 16);
}

#[test]
fn a_page_that_cannot_be_written_is_an_error_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("no/such/folder/page.html");
    let path = path.to_str().unwrap();
    let output = run(&["--model", folder.path().to_str().unwrap(), "--html", path]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.starts_with(&format!("error: --html {path}: No such file")), "{message}");
    assert!(message.contains("next step: check the path and the disk"), "{message}");
}

#[test]
#[cfg(target_os = "linux")]
fn a_page_on_a_full_disk_fails_the_run_and_the_text_is_still_printed() {
    let bench = Bench::new();
    let flags = ["--json", "--model", bench.model(), "--raw", "--prompt", "w1"];
    let output = run(&[&flags[..], &["--max-new-tokens", "2", "--html", "/dev/full"]].concat());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("\nerror: --html /dev/full: No space left"), "{message}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["arms"].as_array().unwrap().len(), 2);
}

#[test]
fn a_completion_ends_where_the_flags_say() {
    let bench = Bench::new();
    let base = ["--plain", "--samples", "1", "--max-new-tokens", "12"];
    let run = |extra: &[&str]| bench.arm(&[&base[..], extra].concat())["samples"][0].take();
    let words = |sample: &Value| -> Vec<String> {
        sample["text"].as_str().unwrap().split_whitespace().map(str::to_owned).collect()
    };
    let usual = run(&[]);
    let said = words(&usual);
    assert_eq!((said.len(), &usual["finish"]), (12, &json!("max_new_tokens")));
    // The fourth word, or where it first occurs.
    let at = said.iter().position(|word| *word == said[3]).unwrap();
    let text = run(&["--stop", "not a word", "--stop", &said[3]]);
    assert_eq!((&text["finish"], words(&text)), (&json!("stop_string"), said[..at].to_vec()));
    let id = usual["tokens"][3].to_string();
    let token = run(&["--stop-token", &id]);
    assert_eq!((&token["finish"], words(&token)), (&json!("stop_token"), said[..at].to_vec()));
    let longest = run(&["--stop-token", &id, "--min-new-tokens", "12"]);
    assert_eq!(longest["finish"], "max_new_tokens");
    assert!(!longest["tokens"].as_array().unwrap().contains(&usual["tokens"][3]));
    // A model whose only end token is that one.
    let config = bench.file("generation_config.json");
    fs::write(config, json!({"eos_token_id": usual["tokens"][3]}).to_string()).unwrap();
    assert_eq!(run(&[])["finish"], "stop_token");
    assert_eq!(run(&["--ignore-eos"])["tokens"], usual["tokens"]);
    assert_eq!(run(&["--ignore-eos", "--stop-token", &id])["finish"], "stop_token");

    let output =
        self::run(&["--model", bench.model(), "--raw", "--prompt", "w1", "--stop-token", "96"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("\nerror: --stop-token: expected an id below 96, got 96\n"),
        "{message}"
    );
    assert!(refused(&["--stop", ""]).contains("--stop <TEXT>"));
}

#[test]
fn minus_one_is_what_other_tools_mean_by_it() {
    let bench = Bench::new();
    for off in ["0", "-1"] {
        let arm = bench.arm(&["--top-k", off, "--min-p", "0"]);
        assert_eq!(arm["sampling"]["filters"], json!([]), "{off}");
    }
    assert!(refused(&["--top-k", "-2"]).contains("-2 is not in -1.."));

    let run = |seed: &str| -> Value {
        let flags =
            ["--json", "--plain", "--model", bench.model(), "--prompt", "w1", "--seed", seed];
        serde_json::from_slice(&run(&flags).stdout).unwrap()
    };
    let [one, two] = ["-1", "-1"].map(run);
    assert_ne!(one["seed"], two["seed"], "drawn");
    let again = run(&one["seed"].to_string());
    assert_eq!(again["arms"][0]["samples"], one["arms"][0]["samples"]);
    let message = refused(&["--seed", "-2"]);
    assert!(message.contains("or -1 for a random one"), "{message}");
}

#[test]
fn a_file_does_not_overwrite_another() {
    let bench = Bench::new();
    let [one, settings] = ["one", "settings.json"].map(|name| bench.file(name));
    fs::write(&settings, "{}").unwrap();
    let weights = bench.file("model.safetensors");
    let before = fs::read(&weights).unwrap();
    for (flags, message) in [
        (
            vec!["--html", &one, "--trace", &one],
            "--html ONE: expected a file of its own, got that of --trace",
        ),
        (
            vec!["--save", &one, "--html", &one],
            "--save ONE: expected a file of its own, got that of --html",
        ),
        (vec!["--config", &settings, "--trace", &settings], "got that of --config"),
        (vec!["--html", &weights], "got that of --model"),
        (vec!["--load", &one, "--trace", &one], "got that of --trace"),
    ] {
        let model = ["--model", bench.model(), "--sharing", "global"];
        let model = if flags[0] == "--load" { &model[..2] } else { &model[..] };
        let output = run(&[model, &flags].concat());
        let said = String::from_utf8(output.stderr).unwrap().replace(&one, "ONE");
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }
    assert!(fs::read(&weights).unwrap() == before && !Path::new(&one).exists());
}
