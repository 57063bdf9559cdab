//! Everything that is not bound to one kind of device. A program that runs it says in `device` which device it is to be, and
//! in `another_device` what is to be refused beside it.

mod background;
mod batch_independence;
mod contrast;
mod decode_loop;
mod expected_control;
mod gradients;
mod heads;
mod penalties;
mod reweighters;
mod sampler_step;
mod selection;
mod starting_points;
mod state_bytes;
mod telemetry;
mod traps;
mod traps_met_here;
mod warm_up;
