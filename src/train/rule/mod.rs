//! The update rules, over the parameters of many slots at once.

mod adam;
mod host;
mod moments;
mod on_device;
#[cfg(test)]
mod tests;

use burn::tensor::Tensor;

pub(super) use moments::{Moments, bytes};
pub(super) use on_device::apply_joined;

use super::optimizer::OptimizerConfig;
use crate::{distiller::Gradient, host::is_flex};

/// Does one optimizer step for every slot, in place if nothing else holds the tensors. `done` is the number of updates
/// that each slot has had. A parameter without a gradient is unchanged. With clipping, returns the norm of each slot's
/// gradient before clipping, `[slots, 1, 1]`.
///
/// All tensors are `[slots, a, b]`. Nothing is read back from the device. On flex, whose memory is the host's, one
/// pass over memory replaces about fourteen.
pub(in crate::train) fn apply(
    config: &OptimizerConfig,
    done: &[u64],
    parameters: &mut [Tensor<3>],
    moments: &mut Moments,
    gradients: Vec<Option<Gradient>>,
) -> Option<Tensor<3>> {
    match gradients.iter().flatten().next().map(Gradient::device) {
        Some(device) if is_flex(&device) => {
            host::apply(config, done, parameters, moments, gradients, &device)
        }
        _ => on_device::apply(config, done, parameters, moments, gradients),
    }
}
