//! Tests within limits that the operating system sets.

use std::{env, process::Command};

/// Runs the test `name`, whose body is `body`, in a process of its own with at most `mebibytes` of memory and 5 seconds
/// of processor time. Needs `ulimit -v`, which works on Linux.
pub fn test(name: &str, mebibytes: usize, body: impl FnOnce()) {
    const INSIDE: &str = "ESAMP_TEST_IS_BOUNDED";
    if env::var_os(INSIDE).is_some() {
        return body();
    }
    let limits =
        format!("ulimit -v {} && ulimit -t 5 && exec \"$0\" --exact {name}", mebibytes << 10);
    let output = Command::new("sh")
        .args(["-c", &limits])
        .arg(env::current_exe().unwrap())
        .env(INSIDE, "1")
        .env("MALLOC_ARENA_MAX", "1") // each arena reserves 64 MiB
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(text.contains("1 passed"), "{text}");
}
