//! Runs every case that does not depend on the device (tests/cases) on ndarray.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]

mod cases;

use burn::tensor::Device;
use esamp_testkit::golden;

fn device() -> Device {
    Device::ndarray()
}

#[test]
fn tensors_on_another_device_are_refused() {
    cases::refuse(&Device::flex());
}
