//! Everything that is not bound to one device, on ndarray.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]

mod cases;

use burn::tensor::Device;
use esamp_testkit::golden;

fn device() -> Device {
    Device::ndarray()
}

#[test]
fn what_is_on_another_device_is_refused() {
    cases::refuse(&Device::flex());
}
