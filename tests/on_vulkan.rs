//! Everything that is not bound to one device, on the first Vulkan device. Where there is none, the program says so and ends
//! before the harness could call anything "ok".

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cases;
mod first_gpu;
mod golden;

use burn::tensor::{Device, DeviceType};

fn device() -> Device {
    first_gpu::first_gpu(DeviceType::Vulkan)
}

fn another_device() -> Device {
    Device::flex()
}
