//! Record files: interrupted runs, and files that are refused.

use super::*;

#[test]
fn a_run_that_was_killed_ends_with_the_same_bytes() {
    let folder = Folder::new();
    let header = header(&tiny_tasks(), ARMS);
    let whole = folder.file("whole.jsonl");
    run(&header, &whole, None).unwrap();
    let bytes = fs::read(&whole).unwrap();
    let ends: Vec<usize> =
        (0..bytes.len()).filter(|&at| bytes[at] == b'\n').map(|at| at + 1).collect();
    assert_eq!(ends.len(), 37);
    // An empty file, a partial header, and cuts around line ends, both at the end of a batch and inside
    // one.
    let mut cuts = vec![0, 10, bytes.len() - 1, bytes.len()];
    cuts.extend(ends.iter().step_by(7).chain(&ends[..4]).flat_map(|&end| [end - 1, end, end + 9]));
    for cut in cuts.into_iter().filter(|&cut| cut <= bytes.len()) {
        let path = folder.file("cut.jsonl");
        fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
        assert!(fs::read(&path).unwrap() == bytes, "cut at {cut}");
    }
}

#[test]
fn a_run_that_is_out_of_time_can_be_resumed() {
    let folder = Folder::new();
    let (path, whole) = (folder.file("run.jsonl"), folder.file("whole.jsonl"));
    let header = header(&tiny_tasks(), ARMS);
    assert_eq!(run(&header, &path, Some(Duration::ZERO)).unwrap(), Ended::OutOfTime);
    assert_eq!(Run::read(&path).unwrap().records, []);
    assert_eq!(run(&header, &path, Some(Duration::MAX / 4)).unwrap(), Ended::Complete);
    run(&header, &whole, None).unwrap();
    assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap());
}

#[test]
fn a_file_with_other_settings_is_refused_naming_the_first_difference() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let begun = header(&tiny_tasks(), ARMS);
    run(&begun, &path, Some(Duration::ZERO)).unwrap();
    let name = path.display().to_string();
    let refused = |header: &Header| {
        error(Store::open(&path, header)).strip_prefix(&format!("{name}: ")).unwrap().to_owned()
    };
    let mut others = vec![
        (Header { problems: 4, ..begun.clone() }, "expected a file of problems 4, got one of 3"),
        (
            Header { split: Split::HeldOut, ..begun.clone() },
            r#"expected a file of split "held_out", got one of "dev""#,
        ),
        (
            Header { commit: "abc".into(), ..begun.clone() },
            r#"expected a file of commit "abc", got one of "unknown""#,
        ),
        (
            Header { arms: arms::named("min-p-1,fire").unwrap(), ..begun.clone() },
            "expected a file of arms min-p-1, fire, got one of min-p-1, esamp-0.5, esamp-0.5-shared",
        ),
        (
            Header { token_arm: Some("esamp-0.5".into()), ..begun.clone() },
            r#"expected a file of token_arm "esamp-0.5", got one of null"#,
        ),
    ];
    let mut model = begun.clone();
    model.model.sha256 = "00".into();
    others.push((model, r#"expected a file of model.sha256 "00", got one of """#));
    let mut beta = begun.clone();
    beta.arms[1].sampling.settings.beta = 0.75;
    others.push((beta, "expected a file of arms.esamp-0.5.sampling.beta 0.75, got one of 0.5"));
    for (header, wording) in others {
        assert_eq!(refused(&header), wording);
    }
    let other = Header { format_version: 0, ..begun.clone() };
    let other =
        format!("{}\n", serde_json::to_string(&record::Line::Header(Box::new(other))).unwrap());
    fs::write(&path, other).unwrap();
    assert!(
        refused(&begun).contains("expected a header of format version 1, got format version 0")
    );
    for foreign in ["a private letter\n", "a letter", "\u{feff}"] {
        fs::write(&path, foreign).unwrap();
        assert!(refused(&begun).starts_with("expected a file that this program has written, got "));
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign, "the file is unchanged");
    }
}

#[test]
fn records_that_are_not_those_of_the_plan_are_refused() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    run(&header, &path, None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let open = |lines: &[&str]| {
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        let message = error(run(&header, &path, None));
        message.strip_prefix(path.to_str().unwrap()).unwrap().to_owned()
    };
    assert_eq!(
        open(&[lines[0], lines[2]]),
        ", line 2: expected syllables 0 under min-p-1, seed 0, got syllables 1 under min-p-1, seed 0"
    );
    assert!(
        open(&[lines[0], "{}"])
            .starts_with(", line 2: expected syllables 0 under min-p-1, seed 0, got ")
    );
    assert_eq!(open(&[&lines[..], &[lines[1]]].concat()), ": expected 36 records, got more");
    // The first record of a batch of two, but changed.
    let changed = unseal(lines[1]).unwrap().object.replacen("\"text\":\"", "\"text\":\"x", 1);
    let changed = seal(&changed);
    assert_eq!(
        open(&[lines[0], &changed]),
        ": expected record 0 of the unfinished batch to be reproduced, got a different one"
    );
}

#[test]
fn a_file_has_one_writer() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = header(&tiny_tasks(), ARMS);
    let first = Store::open(&path, &header).unwrap();
    let wording = ": expected to be the only writer, got another one";
    assert!(error(Store::open(&path, &header)).ends_with(wording));
    drop(first);
    Store::open(&path, &header).unwrap();
}

#[test]
fn a_file_that_cannot_be_read_says_where() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = Header { problems: 1, seeds: 1, ..header(&tiny_tasks(), "min-p-1") };
    run(&header, &path, None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let read = |text: &str| {
        fs::write(&path, text).unwrap();
        Run::read(&path).map(|run| run.records.len()).map_err(|error| {
            error.to_string().strip_prefix(path.to_str().unwrap()).unwrap().to_owned()
        })
    };
    assert_eq!(read(&text), Ok(2));
    assert_eq!(read(&text[..text.len() - 5]), Ok(1), "an unfinished line is ignored");
    assert_eq!(read(""), Err(": expected a header of format version 1, got an empty file".into()));
    let first = text.lines().next().unwrap();
    assert_eq!(
        read(&format!("{first}\n{first}\n")),
        Err(", line 2: expected a record, got a second header".into())
    );
}

/// The records of a run, and the file with another text in place of the second line.
fn with_second_line(change: impl Fn(&str) -> String) -> String {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    let header = Header { problems: 1, seeds: 1, ..header(&tiny_tasks(), "esamp-0.5") };
    let header = Header { token_arm: Some("esamp-0.5".into()), ..header };
    run(&header, &path, None).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    assert!(lines.iter().all(|line| unseal(line).unwrap().is_sealed), "{text}");
    lines[1] = change(&lines[1]);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    // A report and a run that resumes refuse the same lines.
    let error = Run::read(&path).unwrap_err().to_string();
    let (_, got) = error.split_once(", line 2: expected a record, got ").unwrap();
    let resumed = self::error(Store::open(&path, &header));
    assert!(resumed.ends_with(got), "{resumed}");
    got.to_owned()
}

#[test]
fn a_record_with_one_other_digit_is_refused() {
    for (key, digit) in [("\"seed\":0", "\"seed\":1"), ("\"mean_kl\":0.", "\"mean_kl\":1.")] {
        let got = with_second_line(|line| line.replacen(key, digit, 1));
        assert!(got.starts_with("one of checksum "), "{got}");
    }
    let got = with_second_line(|line| unseal(line).unwrap().object.into_owned());
    assert_eq!(got, "one without a checksum in a file with checksums");
}

/// Figures of a report need not have an end or a meaning for such records. Their checksums are right.
#[test]
fn a_record_that_no_run_writes_is_refused() {
    let with = |change: fn(&mut serde_json::Value)| {
        with_second_line(|line| {
            let mut record = serde_json::from_str(&unseal(line).unwrap().object).unwrap();
            change(&mut record);
            seal(&record.to_string())
        })
    };
    let first = |change: fn(&mut serde_json::Value)| change;
    for (change, expected) in [
        (
            first(|r| r["completions"][0]["tokens"] = serde_json::json!([])),
            "completion 0 with 0 tokens of 1 to 10",
        ),
        (
            first(|r| r["completions"][2]["tokens"][1] = 64.into()),
            "completion 2 with token 64 of a vocabulary of 64",
        ),
        (
            first(|r| r["completions"][0]["log_prob_sum"] = 2.into()),
            "completion 0 with log_prob_sum 2, which is not in [-1e15, 1e-3]",
        ),
        (
            first(|r| r["completions"][0]["mean_entropy"] = 1e300.into()),
            "which is not in [-1e-3, 1e15]",
        ),
        (
            first(|r| r["completions"] = serde_json::json!([])),
            "one with 0 completions in a file with 4",
        ),
        (first(|r| r["totals"]["tokens"] = 41.into()), "a total of 41 tokens over 40"),
        (first(|r| r["task"] = "x".into()), "one of the task x, which the header does not name"),
        (first(|r| r["arm"] = "x".into()), "one of the arm x, which the header does not name"),
        (first(|r| r["problem"] = 1.into()), "problem 1, seed 0 of 1 problems and 1 seeds"),
        (
            first(|r| r["token_sample"][0]["completion"] = 4.into()),
            "a token at 1 of completion 4, which has 0",
        ),
        (first(|r| r["token_sample"][0]["novelty"] = 1e17.into()), "which is not in [-1e-3, 1e15]"),
        (first(|r| r["completions"][0]["mean_kl"] = serde_json::Value::Null), "expected f64"),
    ] {
        let got = with(change);
        assert!(got.contains(expected), "{got}");
    }
}

#[test]
fn a_record_counts_once() {
    let folder = Folder::new();
    let path = folder.file("run.jsonl");
    run(&Header { problems: 1, seeds: 1, ..header(&tiny_tasks(), "min-p-1") }, &path, None)
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let last = text.lines().last().unwrap();
    fs::write(&path, format!("{text}{last}\n")).unwrap();
    let error = Run::read(&path).unwrap_err().to_string();
    assert!(error.ends_with("got silence 0 under min-p-1, seed 0 for the second time"), "{error}");
}

/// Files that were begun before there were checksums.
#[test]
fn a_file_without_checksums_is_read_and_resumed() {
    let folder = Folder::new();
    let (path, whole) = (folder.file("run.jsonl"), folder.file("whole.jsonl"));
    let header = header(&tiny_tasks(), ARMS);
    run(&header, &whole, None).unwrap();
    let whole = Run::read(&whole).unwrap();
    let text = fs::read_to_string(folder.file("whole.jsonl")).unwrap();
    // A header, two batches and the first of the two records of a third one.
    let old = text.lines().take(6).map(|line| unseal(line).unwrap().object.into_owned() + "\n");
    fs::write(&path, old.collect::<String>()).unwrap();
    assert_eq!(Run::read(&path).unwrap().records, whole.records[..5]);
    assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
    assert_eq!(Run::read(&path).unwrap(), whole);
}

/// A run that ends while a problem is decoded, as a killed one does, again and again.
#[test]
fn an_interruption_loses_one_problem_and_a_run_always_advances() {
    let folder = Folder::new();
    let (path, whole) = (folder.file("run.jsonl"), folder.file("whole.jsonl"));
    let header =
        Header { one_by_one: true, batch: 3, ..header(&tiny_tasks(), "min-p-1,esamp-0.5") };
    run(&header, &whole, None).unwrap();
    let model = TinyLm::new(1, &Device::flex());
    let problems = problems_of(&tiny_tasks(), header.split, header.problems).unwrap();
    let planned = 2 * 3 * 2 * 2;
    for done in 0..planned {
        let begun = std::cell::Cell::new(0);
        let subject = Subject {
            encode: Box::new(|text| {
                begun.set(begun.get() + 1);
                if begun.get() > 1 {
                    return Err(Failure::new("interrupted".to_owned(), "run it again"));
                }
                encode(text)
            }),
            ..subject(&model)
        };
        let mut store = Store::open(&path, &header).unwrap();
        assert_eq!((store.records(), store.planned()), (done, planned));
        let ended = run_all(&subject, &header, &problems, &mut store, None, |_, _| {});
        assert_eq!(ended.is_ok(), done + 1 == planned);
    }
    assert!(fs::read(&path).unwrap() == fs::read(&whole).unwrap());

    // Problems decoded together give the same tokens: an arm that shares nothing between them is the same one.
    let together = folder.file("together.jsonl");
    run(&Header { one_by_one: false, ..header }, &together, None).unwrap();
    let tokens = |path: &Path| -> Vec<Vec<TokenId>> {
        let records = Run::read(path).unwrap().records.into_iter();
        records.flat_map(|record| record.completions).map(|completion| completion.tokens).collect()
    };
    assert_eq!(tokens(&whole), tokens(&together));
}

#[test]
fn a_damaged_session_is_counted_and_its_end_is_overwritten() {
    let folder = Folder::new();
    let out = folder.file("run.jsonl");
    let path = SessionFile::path_of(&out);
    assert_eq!(SessionFile::read(&out).unwrap(), Sessions::default());
    let session = |records: usize| {
        let mut file = SessionFile::open(&out, records, 9).unwrap();
        file.update(records + 1).unwrap();
        file.update(records + 2).unwrap();
    };
    let records = || -> Vec<[usize; 2]> {
        SessionFile::read(&out).unwrap().sessions.iter().map(|session| session.records).collect()
    };
    session(0);
    let text = fs::read_to_string(&path).unwrap();
    // Half a line, all of it but its end, and a whole one.
    for (cut, left) in [
        (text.len() / 2, vec![]),
        (text.trim_end().len(), vec![[0, 2]]),
        (text.len(), vec![[0, 2]]),
    ] {
        fs::write(&path, &text[..cut]).unwrap();
        session(2);
        assert_eq!(records(), [left, vec![[2, 4]]].concat(), "cut at {cut}");
        assert_eq!(SessionFile::read(&out).unwrap().damaged, 0);
    }
    // As an earlier version continued after half a line.
    fs::write(&path, format!("{}{text}{text}\u{fffd}\n", &text[..30])).unwrap();
    session(2);
    let found = SessionFile::read(&out).unwrap();
    assert_eq!((records(), found.damaged), (vec![[0, 2], [2, 4]], 2));

    fs::write(&path, "a private letter").unwrap();
    let message = error(SessionFile::open(&out, 0, 9));
    assert!(message.ends_with("expected sessions of this program, got other content"), "{message}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "a private letter");
}

#[test]
fn a_shorter_session_replaces_a_longer_one() {
    let folder = Folder::new();
    let out = folder.file("run.jsonl");
    let mut file = SessionFile::open(&out, 0, 9).unwrap();
    for records in [1_000_000, 7] {
        file.update(records).unwrap();
        let Sessions { sessions, damaged } = SessionFile::read(&out).unwrap();
        let found: Vec<usize> =
            sessions.iter().map(|session: &Session| session.records[1]).collect();
        assert_eq!((found, damaged), (vec![records], 0));
    }
}
