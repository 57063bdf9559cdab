//! Everything that is not bound to one device, on the first Vulkan device. Where there is none, the program says so and ends
//! before the harness could call anything "ok".

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

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

use std::{io::Write, process::exit, sync::OnceLock};

use burn::tensor::{Device, DeviceType};

fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let first = || Device::enumerate(DeviceType::Vulkan).into_vec().into_iter().next();
    let device = DEVICE.get_or_init(|| {
        first().unwrap_or_else(|| {
            // Not through eprintln, which the harness keeps to itself.
            let _ = writeln!(std::io::stderr(), "no Vulkan device: nothing was tested");
            exit(0)
        })
    });
    device.clone()
}

fn another_device() -> Device {
    Device::flex()
}
