//! The GPU that tests run on.

use std::{io::Write, process::exit, sync::OnceLock};

use burn::tensor::{Device, DeviceType};

/// Returns the first device of a kind. Without one, prints a message and exits the process, before the test
/// harness could report anything as "ok".
pub fn first_gpu(kind: DeviceType) -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let found = Device::enumerate(kind.clone()).into_vec().into_iter().next();
        found.unwrap_or_else(|| {
            // Not with `eprintln!`, whose output the harness captures.
            let _ = writeln!(std::io::stderr(), "no {kind:?} device: nothing was tested");
            exit(0)
        })
    });
    device.clone()
}
