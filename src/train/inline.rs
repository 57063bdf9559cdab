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

    fn updates(&self, row: RowId) -> u64 {
        self.bank.of(row).map_or(0, Learner::updates)
    }
}

#[cfg(test)]
mod tests {
    use burn::{module::Param, tensor::Device};

    use super::*;
    use crate::golden::*;
    use crate::{
        bank::SlotKey,
        distiller::{LowRankDistiller, LowRankStart, SourceNorm},
        id::PromptId,
    };

    fn template(device: &Device) -> LowRankDistiller {
        let init = Golden::open("lowrank.init.safetensors");
        LowRankDistiller {
            a: Param::from_tensor(init.tensor("a", device)),
            g: Param::from_tensor(init.tensor("g", device)),
            g_bias: Param::from_tensor(init.tensor("gb", device)),
            b: Param::from_tensor(init.tensor("b", device)),
            norm_weight: Param::from_tensor(init.tensor("w", device)),
            norm_bias: Param::from_tensor(init.tensor("bb", device)),
            source_norm: SourceNorm::None,
            start: LowRankStart::Normal,
        }
    }

    /// What the bank vectors were trained on: the model's final norm applied to `y` (once more: `y` is normed already).
    fn target(y: Tensor<2>) -> Tensor<2> {
        let base = Golden::open("base.safetensors");
        let weight = base.tensor::<1>("final_norm_weight", &Device::flex());
        let mean_square = y.clone().square().mean_dim(1);
        y / mean_square.add_scalar(1e-5).sqrt() * weight.unsqueeze()
    }

    /// 2 prompts × 4 rows, 4 steps, rows going inactive: predictions and parameters of the PyTorch study.
    fn matches_golden(file: &str, sharing: Sharing, keys: &[SlotKey]) {
        let golden = Golden::open(file);
        let active = golden.ints("active");
        let [x, y] = ["x", "y"].map(|key| golden.tensor::<3>(key, &Device::flex()));
        let pred = golden.values("pred");
        let mut trainer =
            InlineTrainer::new(template(&Device::flex()), OptimizerConfig::reference(), sharing);
        for step in 0..4usize {
            let live: Vec<usize> = (0..8).filter(|row| active[step * 8 + row] != 0).collect();
            let rows: Vec<RowId> =
                live.iter().map(|&row| RowId::new(row as u64 / 4, row as u64)).collect();
            let at = |states: &Tensor<3>| {
                let states = states.clone().slice([step..step + 1, 0..8, 0..576]);
                select_rows(&states.reshape([8, 576]), &live)
            };
            let expected = trainer.predict(&rows, &at(&x)).unwrap();
            let golden_rows: Vec<f32> = live
                .iter()
                .flat_map(|row| pred[(step * 8 + row) * 576..][..576].to_vec())
                .collect();
            assert_close("pred", &values(expected), &golden_rows, 1e-5);
            trainer.learn(&rows, &HiddenStates::new(at(&x), target(at(&y))).unwrap()).unwrap();
        }
        for (slot, &key) in keys.iter().enumerate() {
            let distiller = trainer.bank.get_mut(key).unwrap().distiller().clone();
            let of_slot = |name: &str, got: Vec<f32>| {
                let all = golden.values(name);
                // Adam divides a gradient by its own size: where that is near 0, rounding is an update. Measured: 1e-4.
                assert_close(name, &got, &all[slot * got.len()..][..got.len()], 2e-4);
            };
            of_slot("final.a", values(distiller.a.val()));
            of_slot("final.g", values(distiller.g.val()));
            of_slot("final.gb", values(distiller.g_bias.val()));
            of_slot("final.b", values(distiller.b.val()));
            of_slot("final.w", values(distiller.norm_weight.val()));
            of_slot("final.bb", values(distiller.norm_bias.val()));
        }
    }

    #[test]
    fn per_prompt_matches_golden() {
        let keys = [SlotKey::Prompt(PromptId(0)), SlotKey::Prompt(PromptId(1))];
        matches_golden("bank.prompt.safetensors", Sharing::PerPrompt, &keys);
    }

    #[test]
    fn global_matches_golden() {
        matches_golden("bank.global.safetensors", Sharing::Global, &[SlotKey::Everyone]);
    }

    #[test]
    fn a_row_sees_its_own_distiller_wherever_it_stands() {
        let device = Device::flex();
        let mut trainer =
            InlineTrainer::new(template(&device), OptimizerConfig::sgd(0.1), Sharing::PerPrompt);
        let golden = Golden::open("bank.prompt.safetensors");
        let x = golden.tensor::<3>("x", &device).slice([0..1, 0..8, 0..576]).reshape([8, 576]);
        let rows: Vec<RowId> = [1, 0, 1, 0, 1, 1, 0, 0].map(|p| RowId::new(p, 0)).to_vec();
        let rows: Vec<RowId> =
            rows.iter().enumerate().map(|(i, r)| RowId::new(r.prompt.0, i as u64)).collect();
        let only: Vec<usize> = (0..8).filter(|&i| rows[i].prompt.0 == 1).collect();
        let ids: Vec<RowId> = only.iter().map(|&i| rows[i]).collect();
        let taught = select_rows(&x, &only);
        trainer.predict(&ids, &taught).unwrap();
        trainer
            .learn(&ids, &HiddenStates::new(taught.clone(), taught.clone() * 2.0).unwrap())
            .unwrap();
        let together = values(trainer.predict(&rows, &x).unwrap());
        let moved = values(trainer.predict(&ids, &taught).unwrap());
        let start = values(template(&device).predict(x));
        for row in 0..8 {
            let got = &together[row * 576..][..576];
            match only.iter().position(|&i| i == row) {
                Some(place) => {
                    assert_close("taught", got, &moved[place * 576..][..576], 1e-5);
                    assert_ne!(got, &start[row * 576..][..576]);
                }
                None => assert_close("untaught", got, &start[row * 576..][..576], 1e-6),
            }
        }
    }
}
