//! Everything that is not bound to one device, on ndarray.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]

#[path = "cases/background.rs"]
mod background;
#[path = "cases/batch_independence.rs"]
mod batch_independence;
#[path = "cases/contrast.rs"]
mod contrast;
#[path = "cases/decode_loop.rs"]
mod decode_loop;
#[path = "cases/expected_control.rs"]
mod expected_control;
mod golden;
#[path = "cases/gradients.rs"]
mod gradients;
#[path = "cases/heads.rs"]
mod heads;
#[path = "cases/latent_mixing.rs"]
mod latent_mixing;
#[path = "cases/overlap.rs"]
mod overlap;
#[path = "cases/penalties.rs"]
mod penalties;
#[path = "cases/reweighters.rs"]
mod reweighters;
#[path = "cases/sampler_step.rs"]
mod sampler_step;
#[path = "cases/selection.rs"]
mod selection;
#[path = "cases/starting_points.rs"]
mod starting_points;
#[path = "cases/state_bytes.rs"]
mod state_bytes;
#[path = "cases/telemetry.rs"]
mod telemetry;
#[path = "cases/traps.rs"]
mod traps;
#[path = "cases/traps_met_here.rs"]
mod traps_met_here;
#[path = "cases/warm_up.rs"]
mod warm_up;

use burn::tensor::Device;

fn device() -> Device {
    Device::ndarray()
}

fn another_device() -> Device {
    Device::flex()
}
