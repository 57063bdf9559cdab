//! Runs every case that does not depend on the device (tests/cases) on the first Cuda device. Without one, prints a
//! message and exits before the harness could report anything as "ok".

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cases;

use burn::tensor::{Device, DeviceType};
use esamp_testkit::{first_gpu::first_gpu, golden};

fn device() -> Device {
    first_gpu(DeviceType::Cuda)
}

#[test]
fn tensors_on_another_device_are_refused() {
    cases::refuse(&Device::flex());
}
