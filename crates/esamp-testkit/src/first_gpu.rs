//! The GPU that tests run on.

use std::{io::Write, process::exit, sync::OnceLock};

use burn::tensor::{Device, DeviceType};

const TO_INSTALL: &str = "install the GPU's driver and, except for Cuda, libvulkan1. For Wgpu a software driver does: \
    install chromium-common (Debian) and set VK_ICD_FILENAMES=/usr/lib/chromium/vk_swiftshader_icd.json and \
    XDG_RUNTIME_DIR";

/// Returns the first device of a kind. Without one, prints what to install and exits the process with 1, before the test
/// harness could report anything as "ok".
pub fn first_gpu(kind: DeviceType) -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let found = Device::enumerate(kind.clone()).into_vec().into_iter().next();
        found.unwrap_or_else(|| {
            // Not with `eprintln!`, whose output the harness captures.
            let _ = writeln!(
                std::io::stderr(),
                "no {kind:?} device, so nothing was tested: {TO_INSTALL}"
            );
            exit(1)
        })
    });
    device.clone()
}
