//! The record file of a run: appended to batch by batch, safe against interruption.
//!
//! Records follow the order of the plan, so a file is always a prefix of the complete one. If the program
//! was killed while writing a line, that line is dropped and its batch ([`Unit`]) runs again, as a whole, because
//! the rows of a batch may share a distiller. Records of that batch that are already in the file must come out
//! byte for byte the same; otherwise the run is refused as not reproducible.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use esamp_programs::failure::Failure;
use serde_json::Value;

use crate::{
    plan::{Unit, units},
    record::{
        Header, Line, ProblemRecord,
        line::{parse_record, seal, unseal},
        parse_header,
    },
};

/// The file that a run writes to.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    units: Vec<Unit>,
    /// Number of units that are completely in the file.
    done: usize,
    /// Lines of the next unit that are already in the file, without their checksums.
    begun: Vec<String>,
    records: usize,
}

impl Store {
    /// Creates a file, or resumes one that has the same header.
    ///
    /// # Errors
    ///
    /// A file with other content or settings, or with records that do not follow the plan; a file that
    /// another program is writing; and I/O errors.
    pub fn open(path: &Path, header: &Header) -> Result<Self, Failure> {
        let at = |error| disk(path, error);
        let (mut file, bytes) = open_alone(path)?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let wanted = object(&Line::Header(Box::new(header.clone())))?;
        let first = seal(&wanted) + "\n";
        if whole == 0 && !first.as_bytes().starts_with(&bytes) {
            return Err(foreign(path, "other content"));
        }
        let text = str::from_utf8(&bytes[..whole]).map_err(|_| foreign(path, "binary data"))?;
        let mut lines = text.lines();
        let is_sealed = match lines.next() {
            Some(found) => check_header(path, found, &wanted)?,
            None => {
                file.set_len(0).map_err(at)?;
                file.rewind().map_err(at)?;
                file.write_all(first.as_bytes()).and_then(|()| file.sync_data()).map_err(at)?;
                true
            }
        };
        let lines: Vec<&str> = lines.collect();
        let units = units(header);
        let (done, begun) = follow(path, header, is_sealed, &units, &lines).map_err(|error| {
            Failure::runtime(error, "another program has changed the file: write to another one")
        })?;
        if whole > 0 {
            file.set_len(whole as u64).map_err(at)?;
            file.seek(SeekFrom::End(0)).map_err(at)?;
        }
        let begun = lines[lines.len() - begun..].iter().map(|line| unseal(line));
        let begun: Result<_, String> = begun.map(|line| Ok(line?.object.into_owned())).collect();
        let begun = begun.map_err(|got| foreign(path, &got))?;
        Ok(Self { path: path.to_owned(), file, units, done, begun, records: lines.len() })
    }

    /// The next unit to run.
    pub fn next(&self) -> Option<&Unit> {
        self.units.get(self.done)
    }

    /// The units that are in the file, and the remaining ones.
    pub fn split(&self) -> (&[Unit], &[Unit]) {
        self.units.split_at(self.done)
    }

    /// Records in the file.
    pub fn records(&self) -> usize {
        self.records
    }

    /// Records in the complete file.
    pub fn planned(&self) -> usize {
        self.units.iter().map(|unit| unit.problems.len()).sum()
    }

    /// Writes the records of the [next](Self::next) unit. They are on the disk when this returns.
    ///
    /// # Errors
    ///
    /// Records that differ from those a killed run wrote for the same unit, and I/O errors.
    pub fn append(&mut self, records: Vec<ProblemRecord>) -> Result<(), Failure> {
        let lines = records.into_iter().map(|record| object(&Line::Problem(Box::new(record))));
        let lines: Vec<String> = lines.collect::<Result<_, _>>()?;
        if let Some(place) =
            (0..self.begun.len()).find(|&at| lines.get(at) != Some(&self.begun[at]))
        {
            return Err(Failure::new(
                format!(
                    "{}: expected record {place} of the unfinished batch to be reproduced, got a different one",
                    self.path.display()
                ),
                "the program or the machine has changed: write to another file",
            ));
        }
        let new = &lines[self.begun.len()..];
        let text: String = new.iter().map(|line| seal(line) + "\n").collect();
        let written = self.file.write_all(text.as_bytes());
        written.and_then(|()| self.file.sync_data()).map_err(|error| disk(&self.path, error))?;
        self.records += new.len();
        self.begun.clear();
        self.done += 1;
        Ok(())
    }
}

/// Opens a file, or creates an empty one, as its only writer. Returns it with its content, positioned at the end.
///
/// # Errors
///
/// A file that another program is writing, and I/O errors.
pub fn open_alone(path: &Path) -> Result<(File, Vec<u8>), Failure> {
    let at = |error| disk(path, error);
    let mut options = OpenOptions::new();
    let opened = options.create(true).truncate(false).read(true).write(true).open(path);
    let mut file = opened.map_err(at)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Failure::new(
                format!("{}: expected to be the only writer, got another one", path.display()),
                "wait for the other run, or write to another file",
            ));
        }
        Err(TryLockError::Error(error)) => return Err(at(error)),
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(at)?;
    Ok((file, bytes))
}

/// Records that are not those of the plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("{}, line {line}: expected {expected}, got {got}", .path.display())]
    Record { path: PathBuf, line: usize, expected: String, got: String },
    #[error("{}: expected {expected} records, got more", .path.display())]
    More { path: PathBuf, expected: usize },
}

/// Compares the records of a file with the plan. Returns the number of complete units and the lines of the
/// next one.
///
/// # Errors
///
/// A record that is damaged or at the place of another one, and records after the last one.
pub fn follow(
    path: &Path,
    header: &Header,
    is_sealed: bool,
    units: &[Unit],
    lines: &[&str],
) -> Result<(usize, usize), PlanError> {
    let name = |task: &str, problem: usize, arm: &str, seed: u64| {
        format!("{task} {problem} under {arm}, seed {seed}")
    };
    let mut left = lines.iter().enumerate();
    for (done, unit) in units.iter().enumerate() {
        for (begun, expected) in unit.keys(header).into_iter().enumerate() {
            let Some((place, text)) = left.next() else {
                return Ok((done, begun));
            };
            let wrong = |got: String| {
                let expected = name(&expected.0, expected.1, &expected.2, expected.3);
                PlanError::Record { path: path.to_owned(), line: place + 2, expected, got }
            };
            let record = parse_record(text, header, is_sealed).map_err(wrong)?;
            let ProblemRecord { task, problem, arm, seed, .. } = record;
            if (&task, problem, &arm, seed) != (&expected.0, expected.1, &expected.2, expected.3) {
                return Err(wrong(name(&task, problem, &arm, seed)));
            }
        }
    }
    match left.next() {
        None => Ok((units.len(), 0)),
        Some((place, _)) => Err(PlanError::More { path: path.to_owned(), expected: place }),
    }
}

/// Refuses a file with other settings and names the first difference. Returns whether the file has checksums.
fn check_header(path: &Path, found: &str, wanted: &str) -> Result<bool, Failure> {
    let found = unseal(found).map_err(|got| foreign(path, &got))?;
    if found.object == wanted {
        return Ok(found.is_sealed);
    }
    let error = |error: serde_json::Error| foreign(path, &error.to_string());
    parse_header(path, &found.object).map_err(|error| foreign(path, &error.to_string()))?;
    let (setting, expected, got) = differing_setting(wanted, &found.object).map_err(error)?;
    Err(Failure::usage(
        format!("{}: expected a file of {setting} {expected}, got one of {got}", path.display()),
        "use the settings, model and commit the file was started with, or write to another file",
    ))
}

/// The first setting in which two headers differ: its name, the wanted value and the found one.
///
/// # Errors
///
/// A header that is not JSON.
pub fn differing_setting(
    wanted: &str,
    found: &str,
) -> serde_json::Result<(String, String, String)> {
    let (wanted, found) = (serde_json::from_str(wanted)?, serde_json::from_str(found)?);
    Ok(difference(&wanted, &found)
        .unwrap_or_else(|| ("header".to_owned(), "this one".to_owned(), "another".to_owned())))
}

/// The first difference between two values: its name, the wanted value and the found one.
fn difference(wanted: &Value, found: &Value) -> Option<(String, String, String)> {
    let within = |key: String, wanted: &Value, found: &Value| {
        let (name, expected, got) = difference(wanted, found)?;
        Some((if name.is_empty() { key } else { format!("{key}.{name}") }, expected, got))
    };
    match (wanted, found) {
        (Value::Object(wanted), Value::Object(found)) => {
            let keys = wanted.keys().chain(found.keys().filter(|key| !wanted.contains_key(*key)));
            let value = |map: &serde_json::Map<String, Value>, key: &String| {
                map.get(key).cloned().unwrap_or(Value::Null)
            };
            keys.into_iter()
                .find_map(|key| within(key.clone(), &value(wanted, key), &value(found, key)))
        }
        (Value::Array(wanted), Value::Array(found)) => {
            let name = |value: &Value| value["name"].as_str().map(str::to_owned);
            let names = |values: &[Value]| {
                let names: Option<Vec<String>> = values.iter().map(name).collect();
                names.map_or_else(|| format!("{} values", values.len()), |names| names.join(", "))
            };
            let same = wanted.len() == found.len();
            let same = same && wanted.iter().zip(found).all(|(w, f)| name(w) == name(f));
            if !same {
                return Some((String::new(), names(wanted), names(found)));
            }
            wanted.iter().zip(found).enumerate().find_map(|(at, (wanted, found))| {
                within(name(wanted).unwrap_or_else(|| at.to_string()), wanted, found)
            })
        }
        (wanted, found) if wanted == found => None,
        (wanted, found) => Some((String::new(), wanted.to_string(), found.to_string())),
    }
}

/// A line without its checksum.
fn object(line: &Line) -> Result<String, Failure> {
    let step = "report this with the command line that led to it";
    serde_json::to_string(line).map_err(|error| Failure::runtime(error, step))
}

fn foreign(path: &Path, got: &str) -> Failure {
    Failure::usage(
        format!("{}: expected a file that this program has written, got {got}", path.display()),
        "write to another file",
    )
}

/// An I/O error of a file that is written.
pub fn disk(path: &Path, error: std::io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()), "check the path of --out and the disk")
}
