//! Everything that is not bound to one device, on the first Vulkan device. Where there is none, the program says so and ends
//! before the harness could call anything "ok".

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cases;

use burn::tensor::{Device, DeviceType};
use esamp_testkit::{first_gpu::first_gpu, golden};

fn device() -> Device {
    first_gpu(DeviceType::Vulkan)
}

#[test]
fn what_is_on_another_device_is_refused() {
    cases::refuse(&Device::flex());
}
