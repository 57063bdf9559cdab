//! Merges the records of all shards of a plan into those of a run without shards, byte for byte.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
};

use esamp_programs::failure::Failure;

use crate::{
    plan::{MOST_RECORDS, piece, planned_records, units},
    provenance::SessionFile,
    record::{
        Header, ReadError,
        line::{seal, unseal, without_shard},
        parse_header, read_lines,
    },
    shard::Shard,
    store::{PlanError, differing_setting, disk, follow, open_alone},
};

/// Files that are not all shards of one plan, each once and complete.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error("expected the files of all shards, got none")]
    NoFiles,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error("{}: expected the records of a shard, got those of a whole plan", .path.display())]
    Whole { path: PathBuf },
    #[error("{}: expected {setting} {expected} as in {}, got {got}", .path.display(), .first.display())]
    Mixed { path: PathBuf, first: PathBuf, setting: String, expected: String, got: String },
    #[error("shard {shard}: expected one file, got {} and {}", .one.display(), .other.display())]
    Doubled { shard: Shard, one: PathBuf, other: PathBuf },
    #[error("{}: expected the {expected} records of shard {shard}, got {got}", .path.display())]
    Unfinished { path: PathBuf, shard: Shard, expected: usize, got: usize },
    #[error("expected all shards from 1/{count} to {count}/{count}, got no file of {missing}")]
    Missing { count: u32, missing: String },
}

impl From<MergeError> for Failure {
    fn from(error: MergeError) -> Self {
        let next_step = match &error {
            MergeError::NoFiles => "name the files that --shard was run with as --out",
            MergeError::Read(ReadError::Io { .. }) => "check the path",
            MergeError::Read(ReadError::Header { .. }) => {
                "name files that this program has written with --shard"
            }
            MergeError::Read(ReadError::Record { .. }) | MergeError::Plan(_) => {
                "the file is damaged: restore it, or run its shard again with another --out"
            }
            MergeError::Whole { .. } => "leave it out: it needs no merging",
            MergeError::Mixed { .. } => {
                "merge shards of one plan, run by one version of the program"
            }
            MergeError::Doubled { .. } => "leave one of them out",
            MergeError::Unfinished { .. } => "run the command of this shard again to finish it",
            MergeError::Missing { .. } => "name their files too, or run them",
        };
        Self::runtime(error, next_step)
    }
}

/// The records of all shards in the order of the plan.
#[derive(Debug)]
pub struct Merged {
    /// The file of records.
    text: String,
    /// The file of sessions: those of the shards, one shard after the other.
    sessions: Vec<u8>,
    /// The number of records.
    pub records: usize,
    /// The number of shards.
    pub shards: usize,
}

/// A file with the records of a shard.
struct ShardFile {
    path: PathBuf,
    shard: Shard,
    header: Header,
    /// The header of the whole plan, as it is written.
    object: String,
    /// The finished lines, with the header.
    text: String,
}

impl Merged {
    /// Reads and checks the files of all shards, plain or compressed with gzip, in any order.
    ///
    /// # Errors
    ///
    /// See [`MergeError`]: every shard must be there, once and complete.
    pub fn of(paths: &[PathBuf]) -> Result<Self, MergeError> {
        let (first, rest) = paths.split_first().ok_or(MergeError::NoFiles)?;
        let mut shards = vec![ShardFile::read(first)?];
        for path in rest {
            let file = ShardFile::read(path)?;
            file.check_same(&shards[0])?;
            shards.push(file);
        }
        shards.sort_by_key(|file| file.shard);
        check_complete(&shards)?;
        Self::join(&shards)
    }

    /// Joins the shards of a plan, all of them and in order.
    fn join(shards: &[ShardFile]) -> Result<Self, MergeError> {
        let header = Header { shard: None, ..shards[0].header.clone() };
        let lines: Result<Vec<_>, MergeError> = shards.iter().map(ShardFile::records).collect();
        let mut lines: Vec<_> = lines?.into_iter().map(Vec::into_iter).collect();
        let records = lines.iter().map(ExactSizeIterator::len).sum();
        let mut text = seal(&shards[0].object) + "\n";
        for unit in units(&header) {
            let owner = Shard::place_of(piece(&header, &unit), shards.len());
            for line in lines[owner].by_ref().take(unit.problems.len()) {
                text.push_str(line);
                text.push('\n');
            }
        }
        let mut sessions = Vec::new();
        for file in shards {
            let path = SessionFile::path_beside(&file.path);
            match fs::read(&path) {
                Ok(bytes) => sessions.extend(bytes),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ReadError::Io { path, source }.into()),
            }
            if sessions.last().is_some_and(|&last| last != b'\n') {
                sessions.push(b'\n');
            }
        }
        Ok(Self { text, sessions, records, shards: shards.len() })
    }

    /// Writes the files of records and sessions. Files with a beginning of them, as a merge that was killed leaves
    /// them, are completed.
    ///
    /// # Errors
    ///
    /// Files with other content, files that another program is writing, and I/O errors.
    pub fn write(&self, out: &Path) -> Result<(), Failure> {
        let files =
            [(out.to_owned(), self.text.as_bytes()), (SessionFile::path_of(out), &self.sessions)];
        let mut rests = Vec::new();
        // Nothing is written if either has other content.
        for (path, whole) in files {
            let (file, found) = open_alone(&path)?;
            let Some(rest) = whole.strip_prefix(&found[..]) else {
                return Err(Failure::usage(
                    format!(
                        "{}: expected no file, or the beginning of the merged one, got other content",
                        path.display()
                    ),
                    "write to another file",
                ));
            };
            rests.push((path, file, rest));
        }
        for (path, mut file, rest) in rests {
            let written = file.write_all(rest).and_then(|()| file.sync_data());
            written.map_err(|error| disk(&path, error))?;
        }
        Ok(())
    }
}

impl ShardFile {
    fn read(path: &Path) -> Result<Self, MergeError> {
        let wrong = |got: &str| ReadError::Header { path: path.to_owned(), got: got.to_owned() };
        let text = read_lines(path)?;
        let first = text.lines().next().unwrap_or_default();
        let (header, is_sealed) = parse_header(path, first)?;
        let Some(shard) = header.shard else {
            return Err(MergeError::Whole { path: path.to_owned() });
        };
        // The list of units of a larger plan would fill the memory.
        let sizes =
            [header.problems, header.tasks.len(), header.arms.len()].map(|size| size as u64);
        let planned = planned_records([sizes[0], header.seeds, sizes[1], sizes[2]]);
        if planned > MOST_RECORDS {
            let got = format!("one of {planned} records, which is more than {MOST_RECORDS}");
            return Err(wrong(&got).into());
        }
        if !is_sealed {
            return Err(wrong("one without a checksum").into());
        }
        let object = unseal(first).map_err(|got| wrong(&got))?.object;
        let object = without_shard(&object, shard);
        let object = object.ok_or_else(|| wrong("one that this program has not written"))?;
        Ok(Self { path: path.to_owned(), shard, header, object, text })
    }

    /// Refuses a shard of another plan than the first one.
    fn check_same(&self, first: &Self) -> Result<(), MergeError> {
        let [count, first_count] = [self, first].map(|file| file.shard.count().to_string());
        let (setting, expected, got) = if count != first_count {
            ("number of shards".to_owned(), first_count, count)
        } else if self.object != first.object {
            differing_setting(&first.object, &self.object).map_err(|error| ReadError::Header {
                path: self.path.clone(),
                got: error.to_string(),
            })?
        } else {
            return Ok(());
        };
        let (path, first) = (self.path.clone(), first.path.clone());
        Err(MergeError::Mixed { path, first, setting, expected, got })
    }

    /// The lines of the records, all of the shard and in order.
    fn records(&self) -> Result<Vec<&str>, MergeError> {
        let lines: Vec<&str> = self.text.lines().skip(1).collect();
        let units = units(&self.header);
        let (done, _) = follow(&self.path, &self.header, true, &units, &lines)?;
        if done == units.len() {
            return Ok(lines);
        }
        Err(MergeError::Unfinished {
            path: self.path.clone(),
            shard: self.shard,
            expected: units.iter().map(|unit| unit.problems.len()).sum(),
            got: lines.len(),
        })
    }
}

/// Refuses a shard that is there twice and one that is not there. `shards` are in order, and all of one plan.
fn check_complete(shards: &[ShardFile]) -> Result<(), MergeError> {
    /// How many missing shards a message names.
    const NAMED: usize = 8;
    if let Some(pair) = shards.windows(2).find(|pair| pair[0].shard == pair[1].shard) {
        let [one, other] = [0, 1].map(|at| pair[at].path.clone());
        return Err(MergeError::Doubled { shard: pair[0].shard, one, other });
    }
    let count = shards[0].shard.count();
    let missing = count as usize - shards.len();
    if missing == 0 {
        return Ok(());
    }
    let found: BTreeSet<u32> = shards.iter().map(|file| file.shard.number()).collect();
    let names = (1..=count).filter(|number| !found.contains(number)).take(NAMED);
    let names: Vec<String> = names.map(|number| format!("{number}/{count}")).collect();
    let mut missing_names = names.join(", ");
    if missing > NAMED {
        missing_names += &format!(" and {} more", missing - NAMED);
    }
    Err(MergeError::Missing { count, missing: missing_names })
}
