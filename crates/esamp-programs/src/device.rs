//! The device to compute on.

use burn::tensor::Device;
use clap::ValueEnum;

use crate::failure::Failure;

/// The backends a program can be built with.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DeviceName {
    /// CPU.
    Flex,
    /// CPU, deprecated and slow.
    Ndarray,
    /// NVIDIA GPU.
    Cuda,
    /// Any GPU that wgpu supports.
    Wgpu,
    /// A GPU with a Vulkan driver.
    Vulkan,
}

impl DeviceName {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Opens the device, if the backend is built in and a device exists.
    pub fn open(self) -> Result<Device, Failure> {
        match self {
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated, reason = "deprecated upstream and supported here")]
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "cuda")]
            Self::Cuda => found("cuda", burn::tensor::DeviceType::Cuda),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => found("wgpu", burn::tensor::DeviceType::Wgpu),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => found("vulkan", burn::tensor::DeviceType::Vulkan),
            #[cfg(not(feature = "ndarray"))]
            Self::Ndarray => Err(not_built("ndarray")),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => Err(not_built("cuda")),
            #[cfg(not(feature = "wgpu"))]
            Self::Wgpu => Err(not_built("wgpu")),
            #[cfg(not(feature = "vulkan"))]
            Self::Vulkan => Err(not_built("vulkan")),
        }
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn found(name: &str, kind: burn::tensor::DeviceType) -> Result<Device, Failure> {
    let device = Device::enumerate(kind).into_vec().into_iter().next();
    device.ok_or_else(|| {
        Failure::new(
            format!("--device {name}: expected a device of this kind, got none"),
            "install its driver, or use --device flex",
        )
    })
}

#[cfg(not(all(feature = "ndarray", feature = "cuda", feature = "wgpu", feature = "vulkan")))]
fn not_built(name: &str) -> Failure {
    Failure::usage(
        format!("--device {name}: expected a program built with this backend, got one without it"),
        &format!(
            "build with this feature, for example: cargo run --release --features {name} --example generate -- \
             --device {name}"
        ),
    )
}
