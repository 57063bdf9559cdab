//! The two hidden states of a step, checked once.

use burn::tensor::{DType, Device, Tensor};

use crate::error::StepError;
pub(crate) use crate::tensor::select_rows;

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
    /// [`StepError::Shape`] when the two differ in shape, [`StepError::Device`] when they live on different devices,
    /// [`StepError::DType`] when one is not a floating-point tensor that can be cast.
    pub fn new(shallow: Tensor<2>, deep: Tensor<2>) -> Result<Self, StepError> {
        if shallow.dims() != deep.dims() {
            return Err(StepError::Shape {
                what: "deep hidden state",
                expected: shallow.dims().to_vec(),
                got: deep.dims().to_vec(),
            });
        }
        let (shallow, deep) = (shallow.inner(), deep.inner());
        if shallow.device() != deep.device() {
            return Err(StepError::Device {
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
    /// [`StepError::RowOutOfRange`] when a row does not exist.
    pub fn select(&self, rows: &[usize]) -> Result<Self, StepError> {
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(StepError::RowOutOfRange { row, rows: self.rows() });
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

    /// The rows whose states are finite, both of them. Reads one number a row back from the device.
    pub(crate) fn finite_rows(&self) -> Result<Vec<usize>, StepError> {
        let finite = |states: &Tensor<2>| states.clone().is_finite().all_dim(1).int();
        let both = (finite(&self.shallow) * finite(&self.deep)).try_into_data()?;
        let flags = both.convert::<i64>().try_into_vec::<i64>();
        let flags = flags.map_err(|error| StepError::Execution(format!("{error:?}")))?;
        Ok((0..flags.len()).filter(|&row| flags[row] != 0).collect())
    }

    /// [`select`](Self::select) for rows that are known to exist.
    pub(crate) fn at(&self, rows: &[usize]) -> Self {
        Self { shallow: select_rows(&self.shallow, rows), deep: select_rows(&self.deep, rows) }
    }
}

/// In the precision that distillers see.
pub(crate) fn to_f32(what: &'static str, tensor: Tensor<2>) -> Result<Tensor<2>, StepError> {
    match tensor.dtype() {
        DType::F32 => Ok(tensor),
        DType::F64 | DType::F16 | DType::BF16 | DType::Flex32 => Ok(tensor.cast(DType::F32)),
        other => Err(StepError::DType {
            what,
            expected: "a floating-point type",
            got: format!("{other:?}"),
        }),
    }
}
