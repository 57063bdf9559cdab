//! The GPU that tests run on.

use std::{io::Write, process::exit, sync::OnceLock};

use burn::tensor::{Device, DeviceType};

const TO_INSTALL: &str = "install the GPU's driver and, except for Cuda, libvulkan1. For Wgpu a software driver does: \
    install chromium-common (Debian) and set VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json and \
    XDG_RUNTIME_DIR";

static DEVICE: OnceLock<Device> = OnceLock::new();

thread_local! {
    static WAIT: WaitAtEnd = const { WaitAtEnd };
}

/// Waits, at the end of a test's thread, for what the test has asked of the device. A test may end with an update under
/// way, and a software driver computes in threads of this process: if one of them still computes when the process exits,
/// it runs into what the driver's destructors have freed, and the process ends with a segmentation fault after "test
/// result: ok". The harness joins each test's thread, so nothing is under way when it exits.
struct WaitAtEnd;

impl Drop for WaitAtEnd {
    fn drop(&mut self) {
        // In another thread, because what burn keeps per thread may be gone in this one.
        let waited = std::thread::spawn(|| DEVICE.get().map(Device::sync)).join();
        if !matches!(waited, Ok(Some(Ok(())))) {
            // Not a panic, which would abort the process here.
            tell(&format!("expected the device to finish its work, got {waited:?}"));
            exit(1)
        }
    }
}

/// Returns the first device of a kind. Without one, prints what to install and exits the process with 1, before the test
/// harness could report anything as "ok".
pub fn first_gpu(kind: DeviceType) -> Device {
    let device = DEVICE.get_or_init(|| {
        let found = Device::enumerate(kind.clone()).into_vec().into_iter().next();
        found.unwrap_or_else(|| {
            tell(&format!("no {kind:?} device, so nothing was tested: {TO_INSTALL}"));
            exit(1)
        })
    });
    WAIT.with(|_| ());
    device.clone()
}

/// Prints to standard error. Not with `eprintln!`, whose output the harness captures.
fn tell(message: &str) {
    let _ = writeln!(std::io::stderr(), "{message}");
}
