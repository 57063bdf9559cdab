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
    let changed = lines[1].replacen("\"text\":\"", "\"text\":\"x", 1);
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
