//! Everything that is not bound to one device, on flex.

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
fn what_is_on_another_device_is_refused() {
    cases::refuse(&Device::ndarray());
}
