//! The device to compute on.

use burn::tensor::Device;
use clap::ValueEnum;
use thiserror::Error;

/// The backends the bench can be built with.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum DeviceName {
    /// CPU.
    Flex,
    /// CPU, deprecated and slow.
    Ndarray,
    /// NVIDIA GPU.
    Cuda,
    /// A GPU with a Vulkan driver.
    Vulkan,
    /// Any GPU that wgpu supports.
    Wgpu,
}

/// The requested device is not available.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum DeviceError {
    #[error(
        "--device {name}: expected a program built with --features {feature}, got one without it"
    )]
    NotBuilt { name: &'static str, feature: &'static str },
    #[error("--device {name}: expected a device of this kind, got none")]
    NotThere { name: &'static str },
}

impl DeviceName {
    /// Opens the first device of this kind, if the backend is built in and a device exists.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[allow(deprecated, reason = "deprecated upstream and supported here")]
            Self::Ndarray => Ok(Device::ndarray()),
            #[cfg(feature = "cuda")]
            Self::Cuda => found(self.name(), burn::tensor::DeviceType::Cuda),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => found(self.name(), burn::tensor::DeviceType::Vulkan),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => found(self.name(), burn::tensor::DeviceType::Wgpu),
            #[cfg(not(feature = "ndarray"))]
            Self::Ndarray => not_built(self.name(), "ndarray"),
            #[cfg(not(feature = "cuda"))]
            Self::Cuda => not_built(self.name(), "cuda-nvrtc"),
            #[cfg(not(feature = "vulkan"))]
            Self::Vulkan => not_built(self.name(), "vulkan"),
            #[cfg(not(feature = "wgpu"))]
            Self::Wgpu => not_built(self.name(), "wgpu"),
        }
    }

    /// Whether every operation has finished when its call returns.
    pub fn is_cpu(self) -> bool {
        matches!(self, Self::Flex | Self::Ndarray)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::Ndarray => "ndarray",
            Self::Cuda => "cuda",
            Self::Vulkan => "vulkan",
            Self::Wgpu => "wgpu",
        }
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu", feature = "vulkan"))]
fn found(name: &'static str, kind: burn::tensor::DeviceType) -> Result<Device, DeviceError> {
    // Without a driver this is empty; it does not panic.
    let device = Device::enumerate(kind).into_vec().into_iter().next();
    device.ok_or(DeviceError::NotThere { name })
}

#[cfg(not(all(feature = "ndarray", feature = "cuda", feature = "wgpu", feature = "vulkan")))]
fn not_built(name: &'static str, feature: &'static str) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { name, feature })
}
