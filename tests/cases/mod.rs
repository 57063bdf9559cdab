//! Everything that is not bound to one kind of device. A program that runs it says in `device` which device it is to be, and
//! calls `refuse` with another one, where it has one.

mod background;
mod batch_independence;
mod contrast;
mod decode_loop;
mod decode_loop_refusals;
mod expected_control;
mod gradients;
mod heads;
mod penalties;
mod reweighters;
mod sampler_step;
mod sampler_step_refusals;
mod sampler_step_rows;
mod selection;
mod starting_points;
mod starting_points_ridge;
mod state_bytes;
mod telemetry;
mod telemetry_observers;
mod traps;
mod traps_11_to_20;
mod traps_met_here;
mod warm_up;

use burn::tensor::Device;

/// What comes from another device than the sampler's is an error.
#[cfg_attr(
    not(feature = "ndarray"),
    allow(
        dead_code,
        reason = "flex is the only CPU device then, so there is no other one to refuse"
    )
)]
pub(crate) fn refuse(elsewhere: &Device) {
    sampler_step_refusals::hidden_states_or_a_head_elsewhere_are_an_error(elsewhere);
    warm_up::a_prompt_elsewhere_is_an_error(elsewhere);
}
