//! Recent prediction errors of a prompt's own distiller and of the shared one.

use burn::tensor::{DType, Device, Tensor, activation::sigmoid};

use crate::{
    id::{CompletionId, PromptId},
    tensor::{from_f32, select_rows},
};

/// The upper bound of one relative squared error: a deep state near 0 must not dominate the mean for the rest of a
/// run.
const LARGEST_ERROR: f32 = 4.0;

/// The evidence about all prompts in one tensor. The number of kernel launches per step does not depend on the number
/// of prompts, and nothing is read back.
#[derive(Clone, Debug, Default)]
pub(super) struct Evidence {
    /// The prompt of each row of `sums`.
    prompts: Vec<PromptId>,
    /// `[prompts, 3]`: the discounted errors of the own and of the shared distiller, and the discounted number of
    /// steps, which corrects their bias towards 0. `None` without prompts.
    sums: Option<Tensor<2>>,
}

impl Evidence {
    /// The number of values per prompt.
    pub(super) const WIDTH: usize = 3;

    /// Restores evidence that [`of_each`](Self::of_each) returned. Every tensor is `[3]`.
    pub(super) fn new(each: Vec<(PromptId, Tensor<1>)>) -> Self {
        let (prompts, sums): (Vec<_>, Vec<_>) = each.into_iter().unzip();
        let sums = sums.into_iter().map(|sums| sums.reshape([1, Self::WIDTH]));
        let sums = (!prompts.is_empty()).then(|| Tensor::cat(sums.collect(), 0));
        Self { prompts, sums }
    }

    /// Returns the evidence about each prompt, `[3]` each.
    pub(super) fn of_each(&self) -> Vec<(PromptId, Tensor<1>)> {
        let Some(sums) = &self.sums else {
            return Vec::new();
        };
        let row = |at: usize| sums.clone().narrow(0, at, 1).reshape([Self::WIDTH]);
        self.prompts.iter().enumerate().map(|(at, &prompt)| (prompt, row(at))).collect()
    }

    /// Keeps the evidence about the prompts for which `stays` returns true.
    pub(super) fn retain(&mut self, stays: impl Fn(PromptId) -> bool) {
        let kept: Vec<usize> =
            (0..self.prompts.len()).filter(|&at| stays(self.prompts[at])).collect();
        if kept.len() == self.prompts.len() {
            return;
        }
        self.prompts = kept.iter().map(|&at| self.prompts[at]).collect();
        let sums = self.sums.take().filter(|_| !kept.is_empty());
        self.sums = sums.map(|sums| select_rows(&sums, &kept));
    }

    /// Returns the weight of the own distiller for each row, `[rows, 1]`: σ(sharpness · lead), or ½ without evidence.
    pub(super) fn weights(
        &self,
        rows: &[CompletionId],
        sharpness: f32,
        device: &Device,
    ) -> Tensor<2> {
        let nothing = || Tensor::zeros([1, Self::WIDTH], (device, DType::F32));
        let unknown = self.prompts.len();
        // Rows of unknown prompts read an extra row of zeros, so that all rows take one gather and one formula.
        let index: Vec<usize> =
            rows.iter().map(|row| self.place(row.prompt).unwrap_or(unknown)).collect();
        let known = match &self.sums {
            Some(sums) if index.contains(&unknown) => Tensor::cat(vec![sums.clone(), nothing()], 0),
            Some(sums) => sums.clone(),
            None => nothing(),
        };
        let sums = select_rows(&known, &index);
        let column = |at: usize| sums.clone().narrow(1, at, 1);
        // Without evidence both errors are 0, and 0 / ε = 0.
        let steps = column(2).clamp_min(f32::MIN_POSITIVE);
        let lead = (column(1) - column(0)) / steps;
        sigmoid(lead.mul_scalar(sharpness))
    }

    /// Adds the errors of one step. `own` and `shared` are the predictions of the two distillers for `rows`, and
    /// `deep` the actual deep states, `[rows, d_model]` each. Prompts without rows are unchanged.
    pub(super) fn add(
        &mut self,
        rows: &[CompletionId],
        [own, shared]: [&Tensor<2>; 2],
        deep: &Tensor<2>,
        discount: f64,
    ) {
        let length = deep.clone().square().sum_dim(1).clamp_min(f32::MIN_POSITIVE);
        let error = |expected: &Tensor<2>| {
            let error = (expected.clone() - deep.clone()).square().sum_dim(1) / length.clone();
            error.clamp_max(LARGEST_ERROR)
        };
        let errors = Tensor::cat(vec![error(own), error(shared), length.ones_like()], 1);
        let device = deep.device();
        let places = self.seat(rows, &device);
        let Some(sums) = self.sums.take() else {
            return; // no rows, no prompts
        };
        let prompts = self.prompts.len();
        let mut counts = vec![0usize; prompts];
        for &place in &places {
            counts[place] += 1;
        }
        // A matrix that averages over the rows of each prompt; all other entries are 0.
        // The product with it takes one launch for any number of prompts. It also multiplies each row's errors by the
        // zeros of the other prompts, so they must be finite: `Step::learn` passes only rows whose prediction and
        // states are.
        let mut averages = vec![0.0f32; prompts * rows.len()];
        for (row, &place) in places.iter().enumerate() {
            averages[place * rows.len() + row] = 1.0 / counts[place] as f32;
        }
        // A prompt without rows keeps `1 · sums + 0`, which is the same bits.
        let kept = counts.iter().map(|&count| if count > 0 { discount as f32 } else { 1.0 });
        let kept = from_f32(kept.collect(), [prompts, 1], &device);
        let means = from_f32(averages, [prompts, rows.len()], &device).matmul(errors);
        self.sums = Some(sums * kept + means.mul_scalar(1.0 - discount));
    }

    /// Returns the place of each row's prompt. New prompts get a place, with all sums 0.
    fn seat(&mut self, rows: &[CompletionId], device: &Device) -> Vec<usize> {
        let before = self.prompts.len();
        let places = rows.iter().map(|row| {
            self.place(row.prompt).unwrap_or_else(|| {
                self.prompts.push(row.prompt);
                self.prompts.len() - 1
            })
        });
        let places = places.collect();
        let new = self.prompts.len() - before;
        if new > 0 {
            let zeros = Tensor::zeros([new, Self::WIDTH], (device, DType::F32));
            let known = self.sums.take().into_iter();
            self.sums = Some(Tensor::cat(known.chain([zeros]).collect(), 0));
        }
        places
    }

    fn place(&self, prompt: PromptId) -> Option<usize> {
        self.prompts.iter().position(|&known| known == prompt)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.prompts.is_empty() && self.sums.is_none()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::golden::{assert_close, devices, values};

    const D: usize = 3;

    fn states(rows: usize, phase: f32, device: &Device) -> Tensor<2> {
        let numbers = (0..rows * D).map(|i| (i as f32 * 0.83 + phase).sin() * 1.5);
        from_f32(numbers.collect(), [rows, D], device)
    }

    /// Prompts that start, pause and end, against the formula of `AdaptiveConfig` computed per prompt in f64.
    #[test]
    fn many_prompts_at_once_are_each_prompt_alone() {
        let steps: [&[u64]; 7] =
            [&[4], &[4, 2, 4], &[9, 2, 2, 9, 4], &[2], &[7, 9], &[9, 7, 4, 2], &[7]];
        let (discount, sharpness) = (0.8f64, 3.0f32);
        for device in devices() {
            let mut evidence = Evidence::default();
            let mut oracle: BTreeMap<u64, [f64; 3]> = BTreeMap::new();
            for (at, prompts) in steps.iter().enumerate() {
                let rows: Vec<CompletionId> =
                    prompts.iter().map(|&p| CompletionId::new(p, p)).collect();
                let [own, shared, deep] =
                    [0.1, 1.7, 2.9].map(|phase| states(rows.len(), phase + at as f32, &device));
                let untouched = |evidence: &Evidence| -> Vec<(PromptId, Vec<f32>)> {
                    let rests = |(prompt, _): &(PromptId, _)| !prompts.contains(&prompt.0);
                    let each = evidence.of_each().into_iter().filter(rests);
                    each.map(|(prompt, sums)| (prompt, values(sums))).collect()
                };
                let resting = untouched(&evidence);
                evidence.add(&rows, [&own, &shared], &deep, discount);
                assert_eq!(
                    untouched(&evidence),
                    resting,
                    "prompts without rows stay bit-identical"
                );

                let [own, shared, deep] = [own, shared, deep].map(values);
                let error = |expected: &[f32], row: usize| {
                    let at = row * D..(row + 1) * D;
                    let square = |pair: (&f32, &f32)| f64::from(pair.0 - pair.1).powi(2);
                    let error: f64 =
                        expected[at.clone()].iter().zip(&deep[at.clone()]).map(square).sum();
                    let length: f64 = deep[at].iter().map(|&x| f64::from(x).powi(2)).sum();
                    (error / length).min(4.0)
                };
                for &prompt in oracle.keys().chain(*prompts).copied().collect::<Vec<_>>().iter() {
                    oracle.entry(prompt).or_default();
                }
                for (prompt, sums) in &mut oracle {
                    let mine: Vec<usize> =
                        (0..prompts.len()).filter(|&row| prompts[row] == *prompt).collect();
                    if mine.is_empty() {
                        continue;
                    }
                    let mean = |expected: &[f32]| {
                        mine.iter().map(|&row| error(expected, row)).sum::<f64>()
                            / mine.len() as f64
                    };
                    for (sum, new) in sums.iter_mut().zip([mean(&own), mean(&shared), 1.0]) {
                        *sum = discount * *sum + (1.0 - discount) * new;
                    }
                }
                if at == 4 {
                    evidence.retain(|prompt| prompt.0 != 2);
                    oracle.remove(&2);
                }
                for (prompt, sums) in evidence.of_each() {
                    let expected = oracle[&prompt.0].map(|sum| sum as f32);
                    assert_close("sums", &values(sums), &expected, 1e-5);
                }
                // Prompts in any order, known or unknown, with repeats.
                let asked = [9, 5, 4, 2, 7, 4].map(|prompt| CompletionId::new(prompt, 0));
                let expected = asked.map(|row| {
                    let [own, shared, steps] =
                        oracle.get(&row.prompt.0).copied().unwrap_or_default();
                    let lead = if steps > 0.0 { (shared - own) / steps } else { 0.0 };
                    (1.0 / (1.0 + (-f64::from(sharpness) * lead).exp())) as f32
                });
                let got = values(evidence.weights(&asked, sharpness, &device));
                assert_close("weights", &got, &expected, 1e-5);

                // Export and import give the same evidence.
                let again = Evidence::new(evidence.of_each());
                assert_eq!(values(again.weights(&asked, sharpness, &device)), got);
            }
            evidence.retain(|_| false);
            assert!(evidence.is_empty());
        }
    }
}
