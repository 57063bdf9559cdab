//! The trainer for a CPU: the update of step `t` is done before step `t + 1` begins.

use burn::tensor::Tensor;

use super::{Learner, OnlineTrainer, OptimizerConfig};
use crate::{
    bank::{DistillerBank, Sharing},
    distiller::Distiller,
    error::TrainError,
    hidden::{HiddenStates, select_rows},
    id::RowId,
};

/// Predicts and learns on the caller's thread, one slot after the other.
///
/// Every slot starts as a copy of one template, so what a slot learns does not depend on when it was made.
#[derive(Debug)]
pub(crate) struct InlineTrainer<D> {
    template: D,
    optimizer: OptimizerConfig,
    bank: DistillerBank<Learner<D>>,
}

impl<D: Distiller> InlineTrainer<D> {
    pub(crate) fn new(template: D, optimizer: OptimizerConfig, sharing: Sharing) -> Self {
        Self { template, optimizer, bank: DistillerBank::new(sharing) }
    }
}

impl<D: Distiller> OnlineTrainer for InlineTrainer<D> {
    fn begin(&mut self, row: RowId) {
        let (template, optimizer) = (&self.template, self.optimizer);
        self.bank.join(row, || Learner::start(template.clone(), optimizer));
    }

    fn release(&mut self, row: RowId) {
        self.bank.leave(row);
    }

    fn reset(&mut self) {
        self.bank.clear();
    }

    fn distillers(&self) -> usize {
        self.bank.len()
    }

    fn predict(&mut self, rows: &[RowId], shallow: &Tensor<2>) -> Result<Tensor<2>, TrainError> {
        rows.iter().for_each(|&row| self.begin(row));
        let groups = self.bank.groups(rows);
        let mut expected = Vec::with_capacity(groups.len());
        for (key, members) in &groups {
            let Some(learner) = self.bank.get_mut(*key) else {
                continue;
            };
            let shallow = select_rows(shallow, members);
            let shape = shallow.dims();
            let prediction = learner.distiller().predict(shallow);
            if prediction.dims() != shape {
                return Err(TrainError::Prediction {
                    expected: shape.to_vec(),
                    got: prediction.dims().to_vec(),
                });
            }
            expected.push(prediction);
        }
        let order: Vec<usize> = groups.into_iter().flat_map(|(_, members)| members).collect();
        let mut place = vec![0; order.len()];
        order.iter().enumerate().for_each(|(at, &row)| place[row] = at);
        Ok(select_rows(&Tensor::cat(expected, 0), &place))
    }

    fn learn(&mut self, rows: &[RowId], hidden: &HiddenStates) -> Result<usize, TrainError> {
        let groups = self.bank.groups(rows);
        let mut updates = 0;
        for (key, members) in groups {
            if let Some(learner) = self.bank.get_mut(key) {
                learner.update(&hidden.at(&members));
                updates += 1;
            }
        }
        Ok(updates)
    }
}
