//! Shards: together they are the run of the whole plan, and anything else is refused.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use esamp_eval::{
    merge::{MergeError, Merged},
    shard::Shard,
};

use super::*;

fn shard(number: u64, count: u64) -> Option<Shard> {
    Some(Shard::new(number, count).unwrap())
}

/// Runs all shards of a plan. Returns their files in order.
fn run_shards(folder: &Folder, header: &Header, count: u64) -> Vec<PathBuf> {
    let of = |number| {
        let path = folder.file(&format!("{number}-of-{count}.jsonl"));
        let header = Header { shard: shard(number, count), ..header.clone() };
        assert_eq!(run(&header, &path, None).unwrap(), Ended::Complete);
        path
    };
    (1..=count).map(of).collect()
}

fn merge(paths: &[PathBuf]) -> Result<Merged, String> {
    Merged::of(paths).map_err(|error: MergeError| error.to_string())
}

/// Plans whose pieces are groups of problems, because problems share a distiller or a batch, and single problems.
fn plans() -> [Header; 3] {
    let shared = header(&tiny_tasks(), ARMS);
    let alone = Header { one_by_one: true, ..header(&tiny_tasks(), "min-p-1,esamp-0.5") };
    [Header { one_by_one: true, ..shared.clone() }, shared, alone]
}

#[test]
fn merged_shards_are_the_run_of_the_whole_plan() {
    for plan in plans() {
        let folder = Folder::new();
        let whole = folder.file("whole.jsonl");
        run(&plan, &whole, None).unwrap();
        let bytes = fs::read(&whole).unwrap();
        // Two tasks of three problems, in groups of two or one by one: 4 or 6 pieces.
        for count in [1, 2, 3, 9] {
            let mut paths = run_shards(&folder, &plan, count);
            let out = folder.file(&format!("{count}.jsonl"));
            paths.rotate_left(count as usize / 2);
            let merged = merge(&paths).unwrap();
            merged.write(&out).unwrap();
            assert!(fs::read(&out).unwrap() == bytes, "{count} shards");
            assert_eq!(
                (merged.records, merged.shards),
                (bytes.split(|&b| b == b'\n').count() - 2, paths.len())
            );

            // A problem is in one shard, with all its arms and seeds.
            let mut owners: BTreeMap<(String, usize), BTreeSet<&Path>> = BTreeMap::new();
            let mut empty = 0;
            for path in &paths {
                let run = Run::read(path).unwrap();
                assert_eq!(run.header.problems, plan.problems);
                empty += usize::from(run.records.is_empty());
                for record in run.records {
                    owners.entry((record.task, record.problem)).or_default().insert(path);
                }
            }
            assert_eq!(owners.len(), 2 * 3);
            assert!(owners.values().all(|paths| paths.len() == 1), "{owners:?}");
            let pieces = if plan.one_by_one && plan.arms.len() == 2 { 6 } else { 4 };
            assert_eq!(empty, (count as usize).saturating_sub(pieces));
        }
    }
}

#[test]
fn shards_have_as_many_problems_of_each_task_give_or_take_one() {
    let plan = Header { problems: 10, one_by_one: true, ..header(&tiny_tasks(), "min-p-1") };
    for count in 1..=12 {
        let mut units = 0;
        for task in 0..2 {
            let problems: Vec<usize> = (1..=count)
                .map(|number| {
                    let header = Header { shard: shard(number, count), ..plan.clone() };
                    plan::units(&header).iter().filter(|unit| unit.task == task).count()
                })
                .collect();
            let (least, most) = (problems.iter().min().unwrap(), problems.iter().max().unwrap());
            // Units are of one problem and one of two seeds.
            assert!(most - least <= 2, "{problems:?}");
            units += problems.iter().sum::<usize>();
        }
        assert_eq!(units, 2 * 10 * 2);
    }
}

#[test]
fn a_shard_that_was_interrupted_ends_with_the_same_bytes() {
    let folder = Folder::new();
    let plan = header(&tiny_tasks(), ARMS);
    let whole = folder.file("whole.jsonl");
    run(&plan, &whole, None).unwrap();
    let paths = run_shards(&folder, &plan, 2);
    let (path, first) = (&paths[0], Header { shard: shard(1, 2), ..plan.clone() });
    let bytes = fs::read(path).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] == b'\n').collect();
    // In the header, after it, inside a batch of two problems, in a line, and before the last line end.
    for cut in [10, ends[0] + 1, ends[1] + 1, ends[5] + 30, bytes.len() - 1] {
        fs::write(path, &bytes[..cut]).unwrap();
        if cut > ends[0] {
            let lines = bytes[..cut].iter().filter(|&&byte| byte == b'\n').count();
            let (name, all, got) = (path.display(), ends.len() - 1, lines - 1);
            assert_eq!(
                merge(&paths).unwrap_err(),
                format!("{name}: expected the {all} records of shard 1/2, got {got}")
            );
        }
        assert_eq!(run(&first, path, None).unwrap(), Ended::Complete);
        assert!(fs::read(path).unwrap() == bytes, "cut at {cut}");
    }
    let out = folder.file("out.jsonl");
    merge(&paths).unwrap().write(&out).unwrap();
    assert!(fs::read(&out).unwrap() == fs::read(&whole).unwrap());

    // A file belongs to its shard.
    for (other, name) in [(shard(2, 2), r#""2/2""#), (shard(1, 3), r#""1/3""#), (None, "null")] {
        let message = error(Store::open(path, &Header { shard: other, ..plan.clone() }));
        let wording = format!(r#": expected a file of shard {name}, got one of "1/2""#);
        assert!(message.ends_with(&wording), "{message}");
    }
}

#[test]
fn shards_of_different_plans_are_refused_naming_the_first_difference() {
    let folder = Folder::new();
    let plan = Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1,esamp-0.5") };
    let paths = run_shards(&folder, &plan, 2);
    let other = folder.file("other.jsonl");
    let mut model = plan.clone();
    model.model.sha256 = "00".into();
    let mut beta = plan.clone();
    beta.arms[1].sampling.settings.beta = 0.75;
    for (second, number, count, wording) in [
        (Header { problems: 4, ..plan.clone() }, 2, 2, "problems 3"),
        (Header { seeds: 2, ..plan.clone() }, 2, 2, "seeds 1"),
        (
            Header { crate_version: "0.0.1".into(), ..plan.clone() },
            2,
            2,
            r#"crate_version "0.0.0""#,
        ),
        (Header { commit: "abc".into(), ..plan.clone() }, 2, 2, r#"commit "unknown""#),
        (model, 2, 2, r#"model.sha256 """#),
        (beta, 2, 2, "arms.esamp-0.5.sampling.beta 0.5"),
        (plan.clone(), 2, 3, "number of shards 2"),
        (plan.clone(), 1, 1, "number of shards 2"),
    ] {
        let _ = fs::remove_file(&other);
        run(&Header { shard: shard(number, count), ..second.clone() }, &other, None).unwrap();
        let message = merge(&[paths[0].clone(), other.clone()]).unwrap_err();
        let wording =
            format!("{}: expected {wording} as in {}, got ", other.display(), paths[0].display());
        assert!(message.starts_with(&wording), "{message}");
    }
    fs::remove_file(&other).unwrap();
    run(&plan, &other, None).unwrap();
    assert_eq!(
        merge(&[paths[0].clone(), other.clone()]).unwrap_err(),
        format!("{}: expected the records of a shard, got those of a whole plan", other.display())
    );
}

#[test]
fn a_shard_must_be_there_and_once() {
    let folder = Folder::new();
    let plan = Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1") };
    let paths = run_shards(&folder, &plan, 4);
    let copy = folder.file("copy.jsonl");
    fs::copy(&paths[2], &copy).unwrap();
    let all_and = |path: &PathBuf| merge(&[&paths[..], std::slice::from_ref(path)].concat());
    for again in [&copy, &paths[2]] {
        let doubled = format!(
            "shard 3/4: expected one file, got {} and {}",
            paths[2].display(),
            again.display()
        );
        assert_eq!(all_and(again).unwrap_err(), doubled);
    }
    let wording = "expected all shards from 1/4 to 4/4, got no file of ";
    assert_eq!(merge(&paths[..3]).unwrap_err(), format!("{wording}4/4"));
    assert_eq!(merge(&paths[1..3]).unwrap_err(), format!("{wording}1/4, 4/4"));
    assert_eq!(merge(&[]).unwrap_err(), "expected the files of all shards, got none");

    let many = folder.file("many.jsonl");
    run(&Header { shard: shard(5, 1_000_000), ..plan }, &many, None).unwrap();
    let message = merge(&[many]).unwrap_err();
    let named =
        "1/1000000, 2/1000000, 3/1000000, 4/1000000, 6/1000000, 7/1000000, 8/1000000, 9/1000000";
    assert!(message.ends_with(&format!("got no file of {named} and 999991 more")), "{message}");
}

#[test]
fn a_damaged_shard_is_refused() {
    let folder = Folder::new();
    let plan = Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1") };
    let paths = run_shards(&folder, &plan, 2);
    let text = fs::read_to_string(&paths[0]).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let with = |lines: &[&str]| {
        fs::write(&paths[0], lines.join("\n") + "\n").unwrap();
        let message = merge(&paths).unwrap_err();
        message.strip_prefix(paths[0].to_str().unwrap()).unwrap().to_owned()
    };
    let first = "expected syllables 0 under min-p-1, seed 0, got";
    let digit = lines[1].replacen("\"mean_kl\":0.", "\"mean_kl\":1.", 1);
    assert!(
        with(&[lines[0], &digit]).starts_with(&format!(", line 2: {first} one of checksum ")),
        "a changed digit"
    );
    assert_eq!(
        with(&[lines[0], lines[2]]),
        format!(", line 2: {first} syllables 1 under min-p-1, seed 0")
    );
    let count = lines.len() - 1;
    assert_eq!(
        with(&[&lines[..], &lines[1..2]].concat()),
        format!(": expected {count} records, got more")
    );
    let bare = unseal(lines[0]).unwrap().object.into_owned();
    let header = ": expected a header of format version 1, got ";
    assert_eq!(with(&[&bare]), format!("{header}one without a checksum"));
    let moved = bare.replacen(",\"shard\":\"1/2\"", "", 1);
    let moved = seal(&moved.replacen("{\"type\"", "{\"shard\":\"1/2\",\"type\"", 1));
    assert_eq!(with(&[&moved]), format!("{header}one that this program has not written"));
    let endless = bare.replacen("\"seeds\":1", "\"seeds\":1000000", 1);
    let wording = format!("{header}one of 6000000 records, which is more than 1000000");
    assert_eq!(with(&[&seal(&endless)]), wording);
    let empty = endless.replacen("\"problems\":3", "\"problems\":0", 1);
    let wording = format!("{header}one of 2000000 records, which is more than 1000000");
    assert_eq!(with(&[&seal(&empty)]), wording);
    // A group of no problem, and one of as many as a number can say.
    for batch in ["0", "18446744073709551615"] {
        let odd = bare.replacen("\"batch\":2", &format!("\"batch\":{batch}"), 1);
        fs::write(&paths[0], seal(&odd.replace("\"1/2\"", "\"1/1\"")) + "\n").unwrap();
        let message = merge(&paths[..1]).unwrap_err();
        assert!(message.ends_with(": expected the 6 records of shard 1/1, got 0"), "{message}");
    }
    let impossible = seal(&bare.replace("\"1/2\"", "\"3/2\""));
    let message = with(&[&impossible]);
    assert!(message.contains("expected I/N with I from 1 to N"), "{message}");
    fs::write(&paths[0], "").unwrap();
    assert!(merge(&paths).unwrap_err().ends_with(&format!("{header}an empty file")));
    fs::remove_file(&paths[0]).unwrap();
    assert!(merge(&paths).unwrap_err().starts_with(paths[0].to_str().unwrap()));
}

#[test]
fn a_merge_writes_its_own_file_only_and_completes_what_it_began() {
    let folder = Folder::new();
    let plan = Header { seeds: 1, ..header(&tiny_tasks(), "min-p-1") };
    let paths = run_shards(&folder, &plan, 2);
    // The second has no end of its line, as a killed run may leave it.
    let sessions = ["{\"command\":[1]}\n", "{\"command\":[2]}"];
    for (path, text) in paths.iter().zip(sessions) {
        fs::write(SessionFile::path_of(path), text).unwrap();
    }
    let out = folder.file("out.jsonl");
    let merged = merge(&[paths[1].clone(), paths[0].clone()]).unwrap();
    merged.write(&out).unwrap();
    let read = || [fs::read(&out).unwrap(), fs::read(SessionFile::path_of(&out)).unwrap()];
    let written = read();
    assert_eq!(written[1], b"{\"command\":[1]}\n{\"command\":[2]}\n", "in the order of shards");
    for cut in [0, 10, written[0].len() / 2, written[0].len()] {
        fs::write(&out, &written[0][..cut]).unwrap();
        fs::write(SessionFile::path_of(&out), &written[1][..cut.min(5)]).unwrap();
        merged.write(&out).unwrap();
        assert!(read() == written, "cut at {cut}");
    }
    // A compressed shard keeps the name of its sessions.
    let packed = folder.file("2-of-2.jsonl.gz");
    let mut gzip =
        flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), Default::default());
    gzip.write_all(&fs::read(&paths[1]).unwrap()).unwrap();
    gzip.finish().unwrap();
    let out_of_packed = folder.file("packed.jsonl");
    merge(&[paths[0].clone(), packed]).unwrap().write(&out_of_packed).unwrap();
    let found = [out_of_packed.clone(), SessionFile::path_of(&out_of_packed)];
    assert!(found.map(|path| fs::read(path).unwrap()) == written);

    let wording = ": expected no file, or the beginning of the merged one, got other content";
    for path in [out.clone(), SessionFile::path_of(&out)] {
        let before = fs::read(&path).unwrap();
        fs::write(&path, "a private letter").unwrap();
        let left = read();
        let message = error(merged.write(&out));
        assert_eq!(message, format!("{}{wording}", path.display()));
        assert!(read() == left, "nothing is written");
        fs::write(&path, before).unwrap();
    }
    let alone = Store::open(&out, &plan).unwrap();
    assert!(error(merged.write(&out)).ends_with("expected to be the only writer, got another one"));
    assert_eq!(
        alone.records(),
        merged.records,
        "the run of the whole plan takes the file for its own"
    );
}
