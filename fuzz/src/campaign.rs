//! Runs a target on many inputs.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::ChaCha8Rng};

use crate::{mutate::mutated, targets::Target};

/// What a campaign may use. It ends with the first limit that it reaches.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub executions: u64,
    pub time: Duration,
}

/// What a campaign has done.
#[derive(Clone, Copy, Debug)]
pub struct Summary {
    pub executions: u64,
    /// Number of different outcomes.
    pub outcomes: usize,
}

/// An input that must not do what it does.
#[derive(Debug)]
pub struct Fault {
    /// A file with the input.
    pub input: PathBuf,
    /// What it does.
    pub what: String,
}

/// The most inputs that are mutated further.
const KEPT: usize = 4096;

/// An input that takes longer is a fault. Long enough for a busy machine: no target needs a tenth of it.
const SLOW: Duration = Duration::from_secs(5);
/// After this time an execution will not end by itself.
const ENDLESS: Duration = Duration::from_secs(60);

/// Runs a target on its seeds and corpus, then on mutations of them. The inputs depend on `seed` only.
///
/// # Errors
///
/// The first fault.
pub fn run(target: &Target, seed: u64, limits: Limits, folder: &Folder) -> Result<Summary, Fault> {
    let mut inputs = (target.seeds)();
    inputs.extend(folder.corpus(target.name));
    let mut found = Found::new(folder, target.name);
    let mut outcomes = HashSet::new();
    let mut executions = 0;
    for input in &inputs {
        executions += 1;
        outcomes.insert(found.execute(target, input)?);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let began = Instant::now();
    while executions < limits.executions && began.elapsed() < limits.time {
        let input = mutated(&inputs, &mut rng);
        executions += 1;
        if outcomes.insert(found.execute(target, &input)?) && inputs.len() < KEPT {
            inputs.push(input);
        }
    }
    Ok(Summary { executions, outcomes: outcomes.len() })
}

/// Runs a target on one input and returns the outcome.
///
/// # Errors
///
/// The fault, if it is one.
pub fn run_one(target: &Target, input: &[u8], folder: &Folder) -> Result<String, Fault> {
    Found::new(folder, target.name).execute(target, input)
}

/// The folder of this package, with the corpus and what was found.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// The folder in the checkout that the program was built in.
    pub fn of_the_checkout() -> Self {
        Self(env!("CARGO_MANIFEST_DIR").into())
    }

    /// Another folder of this kind.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The committed inputs of a target, by name.
    fn corpus(&self, target: &str) -> Vec<Vec<u8>> {
        let entries = fs::read_dir(self.0.join("corpus").join(target)).into_iter().flatten();
        let mut paths: Vec<PathBuf> =
            entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        paths.iter().filter_map(|path| fs::read(path).ok()).collect()
    }
}

/// Writes an input before it is executed, so that it is there when it has ended the process.
struct Found {
    path: PathBuf,
    file: io::Result<File>,
    watch: Watch,
}

impl Found {
    fn new(folder: &Folder, target: &str) -> Self {
        let found = folder.0.join("found");
        let path = found.join(format!("{target}.running"));
        let file = fs::create_dir_all(&found).and_then(|()| File::create(&path));
        Self { watch: Watch::new(&path), path, file }
    }

    fn execute(&mut self, target: &Target, input: &[u8]) -> Result<String, Fault> {
        // Without the file a fault that ends the process could not be repeated.
        if let Err(error) = self.note(input) {
            return Err(Fault {
                input: self.path.clone(),
                what: format!("cannot be written: {error}"),
            });
        }
        self.watch.begin();
        let began = Instant::now();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
        let took = began.elapsed();
        self.watch.end();
        let what = match outcome {
            Ok(Ok(outcome)) if took < SLOW => return Ok(outcome),
            Ok(Ok(_)) => format!("takes {took:?}"),
            Ok(Err(broken)) => broken,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text =
                    text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
                format!("panics: {}", text.unwrap_or_default())
            }
        };
        Err(Fault { input: self.keep(input), what })
    }

    fn note(&mut self, input: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Ok(file) => file,
            Err(error) => return Err(io::Error::new(error.kind(), error.to_string())),
        };
        file.seek(SeekFrom::Start(0))?;
        file.write_all(input)?;
        file.set_len(input.len() as u64)
    }

    /// Keeps an input under a name of its own.
    fn keep(&self, input: &[u8]) -> PathBuf {
        let sum = input.iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, &byte| {
            // FNV-1a
            (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let kept = self.path.with_extension(format!("{sum:016x}"));
        if fs::write(&kept, input).is_ok() { kept } else { self.path.clone() }
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Ends the process if an execution does not end: a thread cannot be stopped from outside.
struct Watch {
    began: Arc<Mutex<Option<Instant>>>,
    is_over: Arc<AtomicBool>,
}

impl Watch {
    fn new(input: &Path) -> Self {
        let (began, is_over) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let watch = Self { began: Arc::clone(&began), is_over: Arc::clone(&is_over) };
        let input = input.to_owned();
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(200));
                let began: Option<Instant> = *began.lock().unwrap_or_else(PoisonError::into_inner);
                if began.is_some_and(|began| began.elapsed() > ENDLESS) {
                    let _ = writeln!(
                        io::stderr(),
                        "{}: does not end within {ENDLESS:?}",
                        input.display()
                    );
                    std::process::abort();
                }
            }
        });
        watch
    }

    fn begin(&self) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn end(&self) {
        *self.began.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}
