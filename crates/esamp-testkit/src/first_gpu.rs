//! The GPU that tests run on.

use std::{io::Write, process::exit, sync::OnceLock};

use burn::tensor::{Device, DeviceType};

/// The first device of a kind. Where there is none, the program says so and ends before the harness could call anything "ok".
pub fn first_gpu(kind: DeviceType) -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let found = Device::enumerate(kind.clone()).into_vec().into_iter().next();
        found.unwrap_or_else(|| {
            // Not through eprintln, which the harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "no {kind:?} device: nothing was tested");
            exit(0)
        })
    });
    device.clone()
}
