//! What llama.cpp logs becomes records of the crate `log`, and a logger that panics does no harm. A program of its own,
//! because it has one logger.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use esamp_llama_cpp::{LlamaCpp, Options};
use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger;

static RECORDS: Mutex<Vec<(Level, String)>> = Mutex::new(Vec::new());
static PANICS: AtomicBool = AtomicBool::new(false);

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.target() == "llama.cpp" {
            RECORDS.lock().unwrap().push((record.level(), record.args().to_string()));
            assert!(!PANICS.load(Ordering::Relaxed), "a logger that panics");
        }
    }

    fn flush(&self) {}
}

#[test]
fn lines_become_records_and_errors_their_reason() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(LevelFilter::Trace);
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let options = Options::new().with_threads(1).with_cells(256).with_max_rows(2);
    LlamaCpp::load(models.join("qwen3.gguf"), &options).unwrap();
    let taken = || std::mem::take(&mut *RECORDS.lock().unwrap());
    let records = taken();
    assert!(records.iter().any(|(level, text)| *level == Level::Debug && text.contains("n_ctx")));
    assert!(records.iter().all(|(level, _)| *level > Level::Error), "{records:?}");

    // A file without one of the tensors: our reader takes it, llama.cpp does not.
    let mut file = std::fs::read(models.join("qwen3.gguf")).unwrap();
    let name = b"blk.1.ffn_up.weight";
    let at = file.windows(name.len()).position(|window| window == name).unwrap();
    file[at] = b'x';
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, file).unwrap();
    let refusal = || LlamaCpp::load(&path, &options).map(|_| ()).unwrap_err().to_string();
    let expected = refusal();
    assert!(expected.contains("tensor 'blk.1.ffn_up.weight' not found"), "{expected}");
    let said = |text: &str| text.contains("'blk.1.ffn_up.weight' not found");
    assert!(taken().iter().any(|(level, text)| *level == Level::Error && said(text)));

    PANICS.store(true, Ordering::Relaxed);
    std::panic::set_hook(Box::new(|_| {})); // quiet
    let got = refusal();
    let _ = std::panic::take_hook();
    PANICS.store(false, Ordering::Relaxed);
    assert!(!taken().is_empty());
    assert_eq!(got, expected);
}
