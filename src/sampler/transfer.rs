//! Transfers from the device to the host.

use burn::tensor::{Int, Tensor, TensorData, Transaction};

use super::error::StepError;

/// Copies tensors of a step to the host and counts the transfers: at each of them, the host waits for the device.
#[derive(Default)]
pub(super) struct Reader {
    pub(super) transfers: u64,
}

impl Reader {
    /// Copies `f32` tensors to the host in one transfer.
    pub(super) fn read<const N: usize>(
        &mut self,
        tensors: [Tensor<2>; N],
    ) -> Result<[Vec<f32>; N], StepError> {
        self.read_with(None, tensors.map(Some)).map(|(_, read)| read)
    }

    /// Copies a tensor of integers and `f32` tensors to the host in one transfer. What is `None` is returned empty.
    pub(super) fn read_with<const N: usize>(
        &mut self,
        ints: Option<Tensor<2, Int>>,
        tensors: [Option<Tensor<2>>; N],
    ) -> Result<(Vec<i64>, [Vec<f32>; N]), StepError> {
        self.transfers += 1;
        let (has_ints, is_there) = (ints.is_some(), tensors.each_ref().map(Option::is_some));
        let transaction = ints.into_iter().fold(Transaction::default(), Transaction::register);
        let transaction = tensors.into_iter().flatten().fold(transaction, Transaction::register);
        let mut read = transaction.try_execute()?.into_iter();
        let mut next = |is_there: bool| {
            let missing = || StepError::Device("expected another tensor, got none".into());
            is_there.then(|| read.next().ok_or_else(missing)).transpose()
        };
        let failed = |error| StepError::Device(format!("{error:?}"));
        let ints = next(has_ints)?.map(|data| data.convert::<i64>().try_into_vec::<i64>());
        let ints = ints.transpose().map_err(failed)?.unwrap_or_default();
        let mut floats = [const { Vec::new() }; N];
        for (floats, is_there) in floats.iter_mut().zip(is_there) {
            let data = next(is_there)?.map(TensorData::try_into_vec::<f32>);
            *floats = data.transpose().map_err(failed)?.unwrap_or_default();
        }
        Ok((ints, floats))
    }
}
