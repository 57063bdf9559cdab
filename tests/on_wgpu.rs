//! Runs every case that does not depend on the device (tests/cases) on the first WebGPU device. A software Vulkan driver
//! is enough: CONTRIBUTING.md says how to get one. Without any device, prints what to install and exits with 1.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cases;

use burn::tensor::{Device, DeviceType};
use esamp_testkit::{first_gpu::first_gpu, golden};

fn device() -> Device {
    first_gpu(DeviceType::Wgpu)
}

#[test]
fn tensors_on_another_device_are_refused() {
    cases::refuse(&Device::flex());
}
