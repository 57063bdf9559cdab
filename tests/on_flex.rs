//! Everything that is not bound to one device, on flex.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]

mod cases;
mod golden;

use burn::tensor::Device;

fn device() -> Device {
    Device::flex()
}

fn another_device() -> Device {
    Device::ndarray()
}
