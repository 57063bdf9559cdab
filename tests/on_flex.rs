//! Runs every case that does not depend on the device (tests/cases) on flex.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

mod cases;

use burn::tensor::Device;
use esamp_testkit::golden;

fn device() -> Device {
    Device::flex()
}

#[test]
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
fn tensors_on_another_device_are_refused() {
    cases::refuse(&Device::ndarray());
}
