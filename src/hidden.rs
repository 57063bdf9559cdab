//! The two hidden states of a step, validated on construction.

use burn::tensor::{DType, Device, ExecutionError, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

#[cfg(feature = "flex")]
use crate::tensor::from_f32;
use crate::tensor::select_rows;

/// A site in a model where a hidden state can be tapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum TapSite {
    /// The residual stream after transformer block `i`, counted from 0.
    AfterBlock(usize),
    /// The input of the LM head, after the final norm.
    HeadInput,
}

impl std::fmt::Display for TapSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AfterBlock(block) => write!(f, "AfterBlock({block})"),
            Self::HeadInput => write!(f, "HeadInput"),
        }
    }
}

/// The shallow and the deep hidden state of every row of one step.
///
/// Both are `[rows, d_model]`, in the order of the step's rows, in `f32`, on one device, and detached from any
/// autodiff graph. The distiller always receives these, regardless of the model's precision.
#[derive(Clone, Debug)]
pub struct HiddenStates {
    shallow: Tensor<2>,
    deep: Tensor<2>,
}

impl HiddenStates {
    /// Creates the pair from two hidden states, `[rows, d_model]` each. They are cast to `f32` if the model computes
    /// in another floating-point type.
    ///
    /// # Errors
    ///
    /// [`HiddenError::Shape`] when the two differ in shape, [`HiddenError::DeviceMismatch`] when they live on different
    /// devices, [`HiddenError::DType`] when one is not a floating-point tensor that can be cast.
    pub fn new(shallow: Tensor<2>, deep: Tensor<2>) -> Result<Self, HiddenError> {
        if shallow.dims() != deep.dims() {
            return Err(HiddenError::Shape {
                what: "deep hidden state",
                expected: shallow.dims().to_vec(),
                got: deep.dims().to_vec(),
            });
        }
        let (shallow, deep) = (shallow.inner(), deep.inner());
        if shallow.device() != deep.device() {
            return Err(HiddenError::DeviceMismatch {
                what: "deep hidden state",
                expected: format!("{:?}", shallow.device()),
                got: format!("{:?}", deep.device()),
            });
        }
        Ok(Self {
            shallow: to_f32("shallow hidden state", shallow)?,
            deep: to_f32("deep hidden state", deep)?,
        })
    }

    /// Creates the pair from host memory, on the device `flex`: two slices, `[rows, d_model]` each in row-major order.
    /// They are copied.
    ///
    /// # Errors
    ///
    /// [`HiddenError::Shape`] when the slices differ in length or do not consist of whole rows.
    #[cfg(feature = "flex")]
    pub fn from_slices(d_model: usize, shallow: &[f32], deep: &[f32]) -> Result<Self, HiddenError> {
        let rows = shallow.len() / d_model.max(1);
        for (what, got) in
            [("shallow hidden state", shallow.len()), ("deep hidden state", deep.len())]
        {
            if got != rows * d_model {
                return Err(HiddenError::Shape {
                    what,
                    expected: vec![rows, d_model],
                    got: vec![got],
                });
            }
        }
        let tensor = |numbers: &[f32]| from_f32(numbers.to_vec(), [rows, d_model], &Device::flex());
        Ok(Self { shallow: tensor(shallow), deep: tensor(deep) })
    }

    /// The shallow states, `[rows, d_model]`.
    pub fn shallow(&self) -> &Tensor<2> {
        &self.shallow
    }

    /// The deep states, `[rows, d_model]`.
    pub fn deep(&self) -> &Tensor<2> {
        &self.deep
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shallow.dims()[0]
    }

    /// Width of the model.
    pub fn d_model(&self) -> usize {
        self.shallow.dims()[1]
    }

    /// The device of the states.
    pub fn device(&self) -> Device {
        self.shallow.device()
    }

    /// The states of the given rows, in the given order.
    ///
    /// # Errors
    ///
    /// [`HiddenError::RowOutOfRange`] when a row does not exist.
    pub fn select(&self, rows: &[usize]) -> Result<Self, HiddenError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(HiddenError::RowOutOfRange { row, rows: self.rows() });
        }
        Ok(self.at(rows))
    }

    /// Concatenates the rows of several states. `parts` must not be empty, and all parts must have the same width and
    /// device.
    pub(crate) fn concat(parts: &[Self]) -> Self {
        let cat = |of: fn(&Self) -> &Tensor<2>| {
            Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), 0)
        };
        Self { shallow: cat(Self::shallow), deep: cat(Self::deep) }
    }

    /// The indices of rows whose shallow and deep states are both finite. Copies one number per row from the device.
    pub(crate) fn finite_rows(&self) -> Result<Vec<usize>, HiddenError> {
        let finite = |states: &Tensor<2>| states.clone().is_finite().all_dim(1).int();
        let both = (finite(&self.shallow) * finite(&self.deep)).try_into_data()?;
        let flags = both.convert::<i64>().try_into_vec::<i64>();
        let flags = flags.map_err(|error| HiddenError::Device(format!("{error:?}")))?;
        Ok((0..flags.len()).filter(|&row| flags[row] != 0).collect())
    }

    /// [`select`](Self::select) without a range check, for rows that are known to exist.
    pub(crate) fn at(&self, rows: &[usize]) -> Self {
        Self { shallow: select_rows(&self.shallow, rows), deep: select_rows(&self.deep, rows) }
    }
}

/// Casts a floating-point tensor to `f32`, the precision of the distillers.
pub(crate) fn to_f32(what: &'static str, tensor: Tensor<2>) -> Result<Tensor<2>, HiddenError> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor),
        DType::F64 | DType::F16 | DType::BF16 | DType::Flex32 => Ok(tensor.cast(DType::F32)),
        other => Err(HiddenError::DType {
            what,
            expected: "a floating-point type",
            got: format!("{other:?}"),
        }),
    }
}

/// Hidden states that are inconsistent or were not recorded correctly by the model.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum HiddenError {
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The tensor.
        what: &'static str,
        /// The required shape.
        expected: Vec<usize>,
        /// The actual shape.
        got: Vec<usize>,
    },
    /// A tensor has an unsupported element type.
    #[error("{what}: expected {expected}, got {got}")]
    DType {
        /// The tensor.
        what: &'static str,
        /// The required type.
        expected: &'static str,
        /// The actual type.
        got: String,
    },
    /// Tensors live on different devices.
    #[error("{what}: expected device {expected}, got {got}")]
    DeviceMismatch {
        /// The tensor.
        what: &'static str,
        /// The required device.
        expected: String,
        /// The actual device.
        got: String,
    },
    /// A row index is out of range.
    #[error("row {row}: expected a row below {rows}")]
    RowOutOfRange {
        /// The requested row.
        row: usize,
        /// The number of rows.
        rows: usize,
    },
    /// The model did not record the hidden state at a site.
    #[error("tap site {site}: expected one `record` in the forward pass, got none")]
    SiteNotRecorded {
        /// The site.
        site: TapSite,
    },
    /// The model recorded the hidden state at a site more than once.
    #[error(
        "tap site {site}: expected one `record` in the forward pass, got more (is the tap emptied after each?)"
    )]
    SiteRecordedTwice {
        /// The site.
        site: TapSite,
    },
    /// The model recorded a different number of positions at a site than it read tokens.
    #[error(
        "tap site {site}: expected the states of {expected} positions, got {got} (a model that norms its last \
         position only \
         must do so for all of them when `HiddenStateTap::wants_all_positions` says so)"
    )]
    Positions {
        /// The site.
        site: TapSite,
        /// Number of tokens in the forward pass.
        expected: usize,
        /// Number of recorded positions.
        got: usize,
    },
    /// The device failed.
    #[error("device: {0}")]
    Device(String),
}

impl From<ExecutionError> for HiddenError {
    fn from(error: ExecutionError) -> Self {
        Self::Device(error.to_string())
    }
}
