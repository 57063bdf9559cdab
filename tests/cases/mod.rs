//! All tests that do not depend on the kind of device. A test program that includes this module defines `device`,
//! which returns the device to test, and calls `refuse` with another device if it has one.

mod admission;
mod background;
mod batch_independence;
mod best_logits;
mod check_model;
mod contrast;
mod decode_loop;
mod decode_loop_panics;
mod decode_loop_refusals;
mod decode_loop_room;
mod decode_loop_text;
mod diverged;
mod engine;
mod expected_control;
mod gradients;
mod heads;
mod log_probs;
mod logits_processor;
mod min_new_tokens;
mod pausing;
mod penalties;
mod reweighters;
mod sampler_step;
mod sampler_step_refusals;
mod sampler_step_rows;
mod selection;
mod sequences;
#[cfg(feature = "flex")]
mod slices;
mod starting_points;
mod starting_points_ridge;
mod state_bytes;
mod telemetry;
mod telemetry_observers;
mod traps;
mod traps_11_to_20;
mod traps_met_here;
mod warm_up;
mod warm_up_in_parts;

#[cfg(any(feature = "ndarray", feature = "cuda", feature = "vulkan", feature = "wgpu"))]
use burn::tensor::Device;
use esamp::{
    SamplerConfig,
    distillers::{DistillerConfig, SwiGluConfig},
};

/// The default distiller, a twelfth as wide. For cases of many steps: a software GPU takes a third of a second for a step
/// of the default one, nearly all of it for the products of its hidden width.
pub(crate) fn narrow_distiller() -> SwiGluConfig {
    SwiGluConfig::new().with_d_hidden(32)
}

/// The default settings with [`narrow_distiller`].
pub(crate) fn narrow() -> SamplerConfig {
    SamplerConfig::new().with_distiller(DistillerConfig::SwiGlu(narrow_distiller()))
}

/// Checks that tensors on another device than the sampler's are an error.
#[cfg(any(feature = "ndarray", feature = "cuda", feature = "vulkan", feature = "wgpu"))] // flex alone has no other device
pub(crate) fn refuse(elsewhere: &Device) {
    sampler_step_refusals::hidden_states_or_a_head_elsewhere_are_an_error(elsewhere);
    warm_up::a_prompt_elsewhere_is_an_error(elsewhere);
}
