//! Everything that is not bound to one device, on ndarray.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]

mod cases;
mod golden;

use burn::tensor::Device;

fn device() -> Device {
    Device::ndarray()
}

fn another_device() -> Device {
    Device::flex()
}
