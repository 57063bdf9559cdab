//! The two hidden states of a step, checked once.

use burn::tensor::{DType, Device, ExecutionError, Tensor};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::tensor::select_rows;

/// A place in a model where a hidden state can be seen.
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
/// Both are `[rows, d_model]`, in the order of the step's rows, in `f32`, on one device, cut off from any autodiff
/// graph: whatever the model's precision, the distiller sees these.
#[derive(Clone, Debug)]
pub struct HiddenStates {
    shallow: Tensor<2>,
    deep: Tensor<2>,
}

impl HiddenStates {
    /// Takes the two hidden states, `[rows, d_model]` each, casting them to `f32` if the model computes in less.
    ///
    /// # Errors
    ///
    /// [`HiddenError::Shape`] when the two differ in shape, [`HiddenError::Device`] when they live on different
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
            return Err(HiddenError::Device {
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

    /// Where the states live.
    pub fn device(&self) -> Device {
        self.shallow.device()
    }

    /// The states of some rows, in the order given.
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

    /// The rows of several, one after the other: at least one, all of one width and on one device.
    pub(crate) fn concat(parts: &[Self]) -> Self {
        let cat = |of: fn(&Self) -> &Tensor<2>| {
            Tensor::cat(parts.iter().map(|part| of(part).clone()).collect(), 0)
        };
        Self { shallow: cat(Self::shallow), deep: cat(Self::deep) }
    }

    /// The rows where both states are finite. Reads one number per row back from the device.
    pub(crate) fn finite_rows(&self) -> Result<Vec<usize>, HiddenError> {
        let finite = |states: &Tensor<2>| states.clone().is_finite().all_dim(1).int();
        let both = (finite(&self.shallow) * finite(&self.deep)).try_into_data()?;
        let flags = both.convert::<i64>().try_into_vec::<i64>();
        let flags = flags.map_err(|error| HiddenError::Execution(format!("{error:?}")))?;
        Ok((0..flags.len()).filter(|&row| flags[row] != 0).collect())
    }

    /// [`select`](Self::select) for rows that are known to exist.
    pub(crate) fn at(&self, rows: &[usize]) -> Self {
        Self { shallow: select_rows(&self.shallow, rows), deep: select_rows(&self.deep, rows) }
    }
}

/// In the precision that distillers see.
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

/// Hidden states that do not fit together, or that a model has not shown as it should.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum HiddenError {
    /// A tensor has the wrong shape.
    #[error("{what}: expected shape {expected:?}, got {got:?}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// The shape that fits.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// A tensor has an element type that cannot be used.
    #[error("{what}: expected {expected}, got {got}")]
    DType {
        /// Which tensor.
        what: &'static str,
        /// What would fit.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// Tensors live on different devices.
    #[error("{what}: expected device {expected}, got {got}")]
    Device {
        /// Which tensor.
        what: &'static str,
        /// Where it should be.
        expected: String,
        /// Where it is.
        got: String,
    },
    /// A row number is too large.
    #[error("row {row}: expected a row below {rows}")]
    RowOutOfRange {
        /// The row asked for.
        row: usize,
        /// Number of rows there are.
        rows: usize,
    },
    /// The model never showed the hidden state at a site.
    #[error("tap site {site}: expected one `record` in the forward pass, got none")]
    SiteNotRecorded {
        /// The site.
        site: TapSite,
    },
    /// The model showed the hidden state at a site more than once.
    #[error(
        "tap site {site}: expected one `record` in the forward pass, got more (is the tap emptied after each?)"
    )]
    SiteRecordedTwice {
        /// The site.
        site: TapSite,
    },
    /// The model showed fewer positions at a site than it read tokens.
    #[error(
        "tap site {site}: expected the states of {expected} positions, got {got} (a model that norms its last position only \
         must do so for all of them when `HiddenStateTap::wants_all_positions` says so)"
    )]
    Positions {
        /// The site.
        site: TapSite,
        /// Tokens of the forward pass.
        expected: usize,
        /// Positions that were shown.
        got: usize,
    },
    /// The device failed.
    #[error("device: {0}")]
    Execution(String),
}

impl From<ExecutionError> for HiddenError {
    fn from(error: ExecutionError) -> Self {
        Self::Execution(error.to_string())
    }
}
