//! Trace files: what is written can be read, and what cannot be read is an error.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    io::{self, Write},
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use burn::tensor::Device;
use esamp::{
    CausalLm, CompletionId, Decoder, PromptId, Request, SamplerConfig,
    errors::TraceError,
    telemetry::{Observer, Recorder, Steering, TraceRecord, TraceWriter, read_traces},
    testing::TinyLm,
    unstable::SlotKey,
};
use serde_json::Value;

const OLD: &str = include_str!("old_traces/1.jsonl");

/// A short run, recorded.
fn recorded() -> Recorder {
    let recorder = Arc::new(Mutex::new(Recorder::new()));
    let model = TinyLm::new(3, &Device::flex());
    let sampler = SamplerConfig::new().init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(&model, sampler).unwrap().with_observer(recorder.clone());
    let request = Request::new(vec![1, 2]).with_completions(2).with_max_new_tokens(5);
    decoder.submit(request.with_reference_log_probs()).unwrap();
    decoder.run(|_| ControlFlow::Continue(())).unwrap();
    let recorder = recorder.lock().unwrap();
    recorder.clone()
}

fn written(recorder: &Recorder) -> Vec<u8> {
    let mut file = Vec::new();
    recorder.write_json_lines(&mut file).unwrap();
    file
}

/// Equality, except that a number may differ in its last place.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= f64::EPSILON * a.abs()
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b,
    }
}

#[test]
fn what_is_written_can_be_read() {
    let recorder = recorded();
    let file = written(&recorder);
    let read: Vec<TraceRecord> = read_traces(&file[..]).map(Result::unwrap).collect();
    assert_eq!(read.len(), recorder.records().len());
    assert_eq!(read.len(), 2 * 5 + 5);
    for (read, record) in read.iter().zip(recorder.records()) {
        let [a, b] = [read, record].map(|record| serde_json::to_value(record).unwrap());
        assert!(same(&a, &b), "{a} {b}");
    }
    let text = String::from_utf8(file).unwrap();
    assert!(text.ends_with('\n'));
    let types: Vec<String> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["type"].as_str().unwrap().into())
        .collect();
    assert_eq!(types[..4], ["header", "token", "token", "step"]);
}

#[test]
fn a_writer_during_a_run_writes_the_same_as_a_recorder_afterwards() {
    let recorder = recorded();
    let mut writer = TraceWriter::new(Vec::new()).unwrap();
    for record in recorder.records() {
        match record {
            TraceRecord::Token(trace) => writer.token(trace),
            TraceRecord::Step(trace) => writer.step(trace),
            _ => unreachable!("nothing was dropped"),
        }
    }
    assert_eq!(writer.finish().unwrap(), written(&recorder));
}

#[test]
fn a_file_truncated_anywhere_is_an_error_or_a_shorter_file() {
    let recorder = recorded();
    let file = written(&recorder);
    let whole = file.len();
    let lines_before = |at: usize| file[..at].iter().filter(|&&byte| byte == b'\n').count();
    for at in 0..whole {
        let read: Vec<_> = read_traces(&file[..at]).collect();
        let lines = lines_before(at);
        let (good, bad): (Vec<_>, Vec<_>) = read.iter().partition(|record| record.is_ok());
        // A file cut at the end of a line, with or without its newline, looks complete.
        let at_an_end = at > 0 && (file[at - 1] == b'\n' || file[at] == b'\n');
        if at_an_end {
            let records = if file[at] == b'\n' { lines } else { lines - 1 };
            assert_eq!((good.len(), bad.len()), (records, 0), "cut at {at}");
            continue;
        }
        assert_eq!((good.len(), bad.len()), (lines.saturating_sub(1), 1), "cut at {at}");
        match read.last().unwrap() {
            Err(TraceError::Truncated { line }) => assert_eq!(*line, lines as u64 + 1),
            Err(TraceError::Format { .. }) => assert_eq!(at, 0, "an empty file"),
            other => panic!("cut at {at}: {other:?}"),
        }
    }
}

#[test]
fn a_file_of_version_1_stays_readable() {
    let read: Vec<TraceRecord> = read_traces(OLD.as_bytes()).map(Result::unwrap).collect();
    let [
        TraceRecord::Token(first),
        TraceRecord::Step(start),
        TraceRecord::Token(second),
        TraceRecord::Step(end),
        TraceRecord::Dropped { records: 12 },
    ] = &read[..]
    else {
        panic!("{read:?}");
    };
    assert_eq!((first.completion, first.steering), (CompletionId::new(0, 1), Steering::FirstToken));
    assert_eq!((first.model_surprisal, first.loss, first.novelty), (Some(1.25), None, None));
    assert_eq!((second.token, second.unsteered_token), (3, Some(4)));
    assert_eq!((second.kl, second.sharpening_share), (0.0625, Some(0.25)));
    assert_eq!((start.loss, start.counters.tokens, end.counters.interventions), (None, 1, 1));
    let slot = &end.slots[0];
    assert_eq!((slot.slot, slot.rows, slot.loss), (SlotKey::Prompt(PromptId(0)), 1, 2.0));
    // Nothing is lost: written again, the file has every key of the original. Counters may have been added since.
    let mut writer = TraceWriter::new(Vec::new()).unwrap();
    for record in &read {
        writer.write(record).unwrap();
    }
    let written = String::from_utf8(writer.finish().unwrap()).unwrap();
    assert_eq!(written.lines().count(), OLD.lines().count());
    for (new, old) in written.lines().zip(OLD.lines()) {
        let [new, old] = [new, old].map(|line| serde_json::from_str(line).unwrap());
        assert!(has_all_of(&new, &old), "{new}\n{old}");
    }
}

/// Whether `new` has every key of `old` with the same value.
fn has_all_of(new: &Value, old: &Value) -> bool {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => old
            .iter()
            .all(|(key, value)| new.get(key).is_some_and(|other| has_all_of(other, value))),
        (Value::Array(new), Value::Array(old)) => {
            new.len() == old.len() && new.iter().zip(old).all(|(new, old)| has_all_of(new, old))
        }
        _ => new == old,
    }
}

#[test]
fn a_file_that_is_not_a_trace_is_an_error() {
    let wording = |file: &[u8]| -> Vec<String> {
        read_traces(file).filter_map(Result::err).map(|error| error.to_string()).collect()
    };
    let header = OLD.lines().next().unwrap();
    let expected = "traces, line 1: expected the header of a file of esamp traces, got";
    assert_eq!(wording(b""), [format!("{expected} an empty file")]);
    assert!(wording(b"one, two\n")[0].starts_with(expected));
    assert_eq!(
        wording(b"{\"type\":\"header\",\"format\":\"other\",\"version\":1}\n"),
        [format!("{expected} header of other")]
    );
    let newer = header.replace("\"version\":1", "\"version\":2");
    assert_eq!(wording(newer.as_bytes()), ["traces, line 1: expected format version 1, got 2"]);
    let line = |text: &str| wording(format!("{header}\n{text}\n").as_bytes());
    for text in ["{\"type\":\"song\"}", "", "{\"type\":\"token\",\"step\":0}", "7", "{\"type\""] {
        let got = line(text);
        assert_eq!(got.len(), 1);
        let expected = "traces, line 2: expected a record, got something else (";
        assert!(got[0].starts_with(expected), "{}", got[0]);
    }
    let cut = format!("{header}\n{{\"type\":\"dropped\",\"rec");
    assert_eq!(
        wording(cut.as_bytes()),
        ["traces, line 2: expected a whole line, got the beginning of one (the file was cut off)"]
    );
    // A field that a later version of the crate has added is ignored.
    let more = OLD.replace("\"kl\":", "\"mood\":\"good\",\"kl\":");
    assert_eq!(wording(more.as_bytes()).len(), 0);
}

/// Accepts the given number of bytes, then fails.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.0 {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "disk full"));
        }
        self.0 -= bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_writer_that_fails_keeps_its_first_error() {
    assert!(TraceWriter::new(Full(10)).is_err());
    let recorder = recorded();
    let trace = recorder.tokens().next().unwrap();
    let mut writer = TraceWriter::new(Full(60)).unwrap();
    writer.flush().unwrap();
    writer.token(trace);
    writer.token(trace);
    assert_eq!(writer.flush().unwrap_err().to_string(), "disk full");
    let wording = "traces: an earlier line was not written";
    assert_eq!(writer.flush().unwrap_err().to_string(), wording);
    assert_eq!(writer.finish().err().unwrap().to_string(), wording);
    assert!(recorder.write_json_lines(Full(100)).is_err());
}

#[test]
fn reading_that_fails_names_the_line() {
    struct Broken<'a>(&'a [u8]);
    impl io::Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("cable")),
                read => Ok(read),
            }
        }
    }
    let first_two = OLD.lines().take(2).collect::<Vec<_>>().join("\n") + "\n";
    let mut reader = read_traces(io::BufReader::new(Broken(first_two.as_bytes())));
    assert!(reader.next().unwrap().is_ok());
    let error = reader.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "traces, line 3: cannot be read");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "cable");
    assert!(reader.next().is_none(), "it ends there");
}
