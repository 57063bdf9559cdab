//! Closed pipes and other processes.

use super::*;

#[test]
fn a_reader_that_closes_the_output_ends_the_run_quietly() {
    let folder = small_model(|id| format!("w{id}"));
    let path = folder.path().to_str().unwrap();
    for extra in [&["--json"][..], &[]] {
        let mut command = Command::new(example("generate"));
        command.args(["--model", path, "--raw", "--prompt", "w1"]).args(extra);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(errors, "note: the matrices of the model take 0.1 MB\n");
    }
}

#[test]
fn a_reader_that_closes_the_errors_changes_nothing() {
    let (cache, nothing) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut command = Command::new(example("generate"));
    command.env("ESAMP_CACHE", cache.path()).env("PATH", nothing.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    // Without pip the model cannot be fetched. The attempt and the error are announced to nobody.
    assert_eq!(child.wait().unwrap().code(), Some(1));
}

#[test]
fn waiting_for_another_download_is_announced() {
    let cache = tempfile::tempdir().unwrap();
    let lock = fs::File::create(cache.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let mut command = Command::new(example("generate"));
    command.env("ESAMP_CACHE", cache.path()).env("PATH", cache.path());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = errors.next().unwrap().unwrap();
    assert!(first.starts_with("waiting for another program that is fetching a model ("), "{first}");
    drop(lock);
    assert_eq!(child.wait().unwrap().code(), Some(1), "it goes on, and there is no pip");
}
