//! Reports at the end of a run, and on its records.

use super::*;

#[test]
fn a_run_ends_in_its_report_and_its_records_give_the_same_one() {
    let bench = Bench::new();
    let [first, second] = ["one.md", "two.md"].map(|name| bench.folder.path().join(name));
    let args = [&SMALL[..], &ARMS, &["--report", first.to_str().unwrap()]].concat();
    let said = bench.said(&args);
    assert!(said.ends_with(&format!("{}\n", first.display())), "{said}");
    let records = bench.out();
    let again = ["--records", records.to_str().unwrap(), "--report", second.to_str().unwrap()];
    // Single tokens were kept, so the report needs the model's tokenizer, and the model must be the right
    // one.
    let other = evaluate(&again);
    assert_eq!(other.status.code(), Some(2));
    let message = String::from_utf8(other.stderr).unwrap();
    // After the message about the download, if there is one.
    assert!(message.contains("error: --model: expected the model of the records, "), "{message}");
    let model = bench.folder.path().join("model");
    let output = evaluate(&[&again[..], &["--model", model.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let [one, two] = [&first, &second].map(|path| fs::read_to_string(path).unwrap());
    assert!(one.contains("stories (3 problems × 2 seeds)"), "{one}");
    // The model has random weights: no product is right, regardless of the sampling.
    assert!(
        one.lines().any(|line| line.starts_with("| esamp-0.5 | 0.000 | 0.000 [0.000, 0.000] |")),
        "{one}"
    );
    for figure in ["products-pass-at-k.svg", "products-pareto.svg", "stories-pareto.svg"] {
        let [one, two] = ["one", "two"]
            .map(|name| fs::read(bench.folder.path().join(name).join(figure)).unwrap());
        assert!(one == two, "{figure}");
    }
    // The reports differ only in their names and commands.
    let same = |text: String, name: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.starts_with("cargo run "));
        lines.map(|line| line.replace(&format!("({name}/"), "(")).collect()
    };
    assert_eq!(same(one, "one"), same(two, "two"));
}

#[test]
fn a_report_on_records_needs_both() {
    let output = evaluate(&["--records", "x.jsonl"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--report <FILE>"));

    let output = evaluate(&["--records", "no-such.jsonl", "--report", "r.md"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.starts_with("error: no-such.jsonl: "), "{message}");
}

/// A session file whose first line was cut by a kill and continued by the next run.
#[test]
fn a_damaged_session_does_not_prevent_a_report() {
    let bench = Bench::new();
    let [report, records] = ["report.md", "run.jsonl"].map(|name| bench.folder.path().join(name));
    bench.said(&[&SMALL[..], &ARMS].concat());
    let sessions = bench.folder.path().join("run.jsonl.sessions");
    let whole = fs::read_to_string(&sessions).unwrap();
    let torn = format!("{}{whole}{whole}", &whole[..whole.find("\"started\"").unwrap() + 12]);
    fs::write(&sessions, torn).unwrap();
    let (records, to) = (records.to_str().unwrap(), report.to_str().unwrap());
    bench.said(&["--records", records, "--report", to]);
    let text = fs::read_to_string(&report).unwrap();
    assert!(text.contains(" min in 1 session; 1 more with a damaged line |"), "{text}");
}

/// Such records once led to a report without end.
#[test]
fn damaged_records_are_an_error_of_the_report() {
    let bench = Bench::new();
    bench.said(&[&SMALL[..], &ARMS].concat());
    let text = fs::read_to_string(bench.out()).unwrap();
    let emptied = text.lines().enumerate().map(|(place, line)| {
        let line = line::unseal(line).unwrap().object.into_owned();
        let mut record: serde_json::Value = serde_json::from_str(&line).unwrap();
        for completion in record["completions"].as_array_mut().into_iter().flatten() {
            completion["tokens"] = serde_json::json!([]);
            completion["text"] = "".into();
        }
        if place == 0 { line + "\n" } else { format!("{record}\n") }
    });
    fs::write(bench.out(), emptied.collect::<String>()).unwrap();
    let out = bench.out();
    let output = bench.evaluate(&["--records", out.to_str().unwrap(), "--report", "r.md"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    let expected = ", line 2: expected a record, got completion 0 with 0 tokens of 1 to 6\nnext step: the file is \
                    damaged: restore it, or run its command with another --out\n";
    assert!(message.ends_with(expected), "{message}");
}
