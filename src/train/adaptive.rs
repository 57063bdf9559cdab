//! Mixes the prediction of a prompt's own distiller with that of the shared one, weighted by their recent errors.

use burn::tensor::Tensor;

use super::{
    config::TrainingConfig,
    error::TrainError,
    evidence::Evidence,
    inline::InlineTrainer,
    slots::{Misfit, Slots},
    state::{Learned, TrainerState},
    trainer::{OnlineTrainer, Prediction},
};
use crate::{
    bank::{AdaptiveConfig, AdaptiveStart, Sharing},
    hidden::HiddenStates,
    id::{CompletionId, PromptId},
};

/// Two trainers: one with a slot for each prompt, and one with a single slot for all prompts.
#[derive(Clone, Debug)]
pub(crate) struct AdaptiveTrainer<S> {
    own: InlineTrainer<S>,
    shared: InlineTrainer<S>,
    config: AdaptiveConfig,
    /// The recent prediction errors of both trainers on each prompt.
    evidence: Evidence,
}

impl<S: Slots> AdaptiveTrainer<S> {
    pub(crate) fn new(slots: S, config: AdaptiveConfig, training: TrainingConfig) -> Self {
        Self {
            own: InlineTrainer::new(slots.clone(), Sharing::PerPrompt, training),
            shared: InlineTrainer::new(slots, Sharing::Global, training),
            config,
            evidence: Evidence::default(),
        }
    }

    /// With [`AdaptiveStart::Shared`], starts the own distiller of each new prompt as a copy of the shared one.
    ///
    /// Both `predict` and `learn` call this first, because the background worker learns without predicting.
    fn start_own(&mut self, rows: &[CompletionId]) {
        if self.config.start != AdaptiveStart::Shared {
            return;
        }
        for &row in rows {
            self.own.begin(row);
            // Another completion of the prompt may have started the slot already, and it may have learned since.
            if !self.own.is_seated(row) {
                self.own.start_from(row, &self.shared, row);
            }
        }
    }
}

impl<S: Slots> OnlineTrainer for AdaptiveTrainer<S> {
    fn begin(&mut self, row: CompletionId) {
        self.own.begin(row);
        self.shared.begin(row);
    }

    fn release(&mut self, row: CompletionId) {
        self.own.release(row);
        self.shared.release(row);
        // The evidence is about the prompt, so it is kept until the prompt's last completion has ended.
        let prompts = self.own.prompts();
        self.evidence.retain(|prompt| prompts.binary_search(&prompt).is_ok());
    }

    fn has(&self, row: CompletionId) -> bool {
        self.own.has(row)
    }

    fn reset(&mut self) {
        self.own.reset();
        self.shared.reset();
        self.evidence = Evidence::default();
    }

    fn distillers(&self) -> usize {
        self.own.distillers() + self.shared.distillers()
    }

    fn state_bytes(&self) -> usize {
        self.own.state_bytes() + self.shared.state_bytes()
    }

    fn bytes_for(&self, completions: &[CompletionId]) -> usize {
        self.own.bytes_for(completions).saturating_add(self.shared.bytes_for(completions))
    }

    fn updates(&self, row: CompletionId) -> u64 {
        self.own.updates(row)
    }

    fn completions(&self) -> Vec<CompletionId> {
        self.own.completions()
    }

    fn waiting_rows(&self) -> usize {
        self.own.waiting_rows() + self.shared.waiting_rows()
    }

    fn predict(
        &mut self,
        rows: &[CompletionId],
        shallow: &Tensor<2>,
    ) -> Result<Prediction, TrainError> {
        // Start the shared slot first: a prompt's own distiller may be a copy of it.
        self.shared.start(rows);
        self.start_own(rows);
        let own = self.own.predict(rows, shallow)?.expected;
        let shared = self.shared.predict(rows, shallow)?.expected;
        let weight = self.evidence.weights(rows, self.config.sharpness, &shallow.device());
        // In this form, two equal predictions are mixed without rounding for any weight: their difference is exactly
        // 0.
        let expected = shared.clone() + (own.clone() - shared.clone()) * weight;
        Ok(Prediction { expected, parts: vec![own, shared] })
    }

    fn learn(
        &mut self,
        rows: &[CompletionId],
        hidden: &HiddenStates,
        parts: &[Tensor<2>],
    ) -> Result<Learned, TrainError> {
        // Without predictions there are no errors to record.
        if let [own, shared] = parts {
            // These predictions were made before the updates below, so no distiller is judged on rows that it has
            // already learned from.
            let discount = self.config.discount();
            self.evidence.add(rows, [own, shared], hidden.deep(), discount);
        }
        self.start_own(rows);
        // Each distiller learns from its own error, regardless of its weight. With a loss on the mixture, the one that
        // predicts better would leave the other little to learn, and the shared distiller would learn nothing from the
        // prompts that it predicts worse.
        let own = self.own.learn(rows, hidden, &[])?;
        let shared = self.shared.learn(rows, hidden, &[])?;
        // Both trainers learn from the same rows, so the rows are counted once.
        Ok(Learned {
            rows: own.rows.max(shared.rows),
            updates: own.updates + shared.updates,
            fits: own.fits + shared.fits,
            fits_failed: own.fits_failed + shared.fits_failed,
            ..Learned::default()
        })
    }

    fn warm_up(
        &mut self,
        row: CompletionId,
        hidden: &HiddenStates,
        updates: usize,
        is_first: bool,
    ) -> Result<Learned, TrainError> {
        // Warm-up updates go to the own distiller only: the shared one must not learn from prompts.
        self.begin(row);
        self.start_own(&[row]);
        self.own.warm_up(row, hidden, updates, is_first)
    }

    fn restart(
        &mut self,
        failed: &[CompletionId],
        fine: &[CompletionId],
        broken: &[Vec<bool>],
    ) -> Result<Learned, TrainError> {
        // If both parts are finite, their mixture was too large for the LM head, and either may be the reason.
        let is_known = broken.iter().flatten().any(|&broken| broken);
        let restart = |trainer: &mut InlineTrainer<S>, part: usize| {
            let is_broken = |at: usize| {
                let of_part = broken.get(part).and_then(|rows| rows.get(at));
                !is_known || of_part.is_some_and(|&broken| broken)
            };
            let (bad, good): (Vec<usize>, Vec<usize>) =
                (0..failed.len()).partition(|&at| is_broken(at));
            let rows = |places: Vec<usize>| places.into_iter().map(|at| failed[at]);
            let fine: Vec<CompletionId> = fine.iter().copied().chain(rows(good)).collect();
            trainer.restart_slots(&rows(bad).collect::<Vec<_>>(), &fine)
        };
        let mut done = restart(&mut self.own, 0);
        done += restart(&mut self.shared, 1);
        Ok(done)
    }

    fn finish(&mut self) -> Result<Learned, TrainError> {
        Ok(Learned::default())
    }

    fn export(&mut self) -> Result<TrainerState, TrainError> {
        let mut state = self.own.export()?;
        state.shared = Some(Box::new(self.shared.export()?));
        state.evidence = self.evidence.of_each();
        Ok(state)
    }

    fn import(&mut self, mut state: TrainerState) -> Result<(), Misfit> {
        let evidence = checked(std::mem::take(&mut state.evidence))?;
        match state.shared.take() {
            Some(shared) => self.shared.import(*shared)?,
            None => self.shared.reset(),
        }
        self.own.import(state)?;
        self.evidence = Evidence::new(evidence);
        Ok(())
    }

    fn adopt(&mut self, mut state: TrainerState) -> Result<(), Misfit> {
        let mut evidence = self.evidence.of_each();
        evidence.extend(checked(std::mem::take(&mut state.evidence))?);
        let members: Vec<CompletionId> =
            state.slots.iter().flat_map(|slot| slot.members.iter().copied()).collect();
        self.own.adopt(state)?;
        members.into_iter().for_each(|row| self.shared.begin(row));
        self.evidence = Evidence::new(evidence);
        Ok(())
    }
}

/// Checks evidence from a file. [`Evidence::new`] relies on its length.
fn checked(evidence: Vec<(PromptId, Tensor<1>)>) -> Result<Vec<(PromptId, Tensor<1>)>, Misfit> {
    for (prompt, sums) in &evidence {
        let (expected, got) = (Evidence::WIDTH, sums.dims()[0]);
        if got != expected {
            let what = format!("evidence about prompt {}", prompt.0);
            return Err(Misfit { what, expected, got });
        }
    }
    Ok(evidence)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;
    use crate::{
        distiller::{LowRankConfig, LowRankStart, SwiGluConfig, SwiGluDistiller},
        golden::{assert_close, values},
        train::{OptimizerConfig, SeparateSlots, StackedSlots},
    };

    const D_MODEL: usize = 6;

    fn slots() -> StackedSlots<SwiGluDistiller> {
        let distiller = SwiGluConfig::new().with_blocks(1).with_d_hidden(8);
        let distiller = distiller.init(D_MODEL, 1, &Device::flex()).unwrap();
        // Plain SGD: the test compares what the distillers know, not how Adam starts.
        let optimizer = OptimizerConfig::sgd(0.1);
        StackedSlots::new(&distiller, optimizer).unwrap()
    }

    fn adaptive(config: AdaptiveConfig) -> AdaptiveTrainer<StackedSlots<SwiGluDistiller>> {
        AdaptiveTrainer::new(slots(), config, TrainingConfig::default())
    }

    fn single(sharing: Sharing) -> InlineTrainer<StackedSlots<SwiGluDistiller>> {
        InlineTrainer::new(slots(), sharing, TrainingConfig::default())
    }

    /// One row for each prompt at a step. The deep states are `sign` times a fixed map of the shallow ones.
    fn step(
        prompts: &[u64],
        step: usize,
        sign: impl Fn(u64) -> f32,
    ) -> (Vec<CompletionId>, HiddenStates) {
        let rows: Vec<CompletionId> = prompts.iter().map(|&p| CompletionId::new(p, p)).collect();
        let (mut shallow, mut deep) = (Vec::new(), Vec::new());
        for &prompt in prompts {
            // Three contexts that repeat, so that there is something to learn.
            let x = |i: usize| ((i * 5 + step % 3 * 11) as f32 * 1.7).sin();
            shallow.extend((0..D_MODEL).map(x));
            deep.extend((0..D_MODEL).map(|i| sign(prompt) * 1.5 * x((i + 1) % D_MODEL)));
        }
        let tensor = |numbers| {
            let data = TensorData::new(numbers, [prompts.len(), D_MODEL]);
            Tensor::<2>::from_data(data, &Device::flex())
        };
        (rows, HiddenStates::new(tensor(shallow), tensor(deep)).unwrap())
    }

    /// The mean relative squared error over the second half of each prompt's steps.
    fn error(trainer: &mut dyn OnlineTrainer, sign: impl Fn(u64) -> f32, length: usize) -> f32 {
        let (mut sum, mut count) = (0.0, 0.0);
        for group in 0..6u64 {
            let prompts = [2 * group, 2 * group + 1];
            for at in 0..length {
                let (rows, hidden) = step(&prompts, at, &sign);
                let Prediction { expected, parts } =
                    trainer.predict(&rows, hidden.shallow()).unwrap();
                let error: f32 = (expected - hidden.deep().clone()).square().sum().into_scalar();
                let length_2: f32 = hidden.deep().clone().square().sum().into_scalar();
                if 2 * at >= length {
                    sum += error / length_2;
                    count += 1.0;
                }
                trainer.learn(&rows, &hidden, &parts).unwrap();
            }
            for p in prompts {
                trainer.release(CompletionId::new(p, p));
            }
        }
        sum / count
    }

    #[test]
    fn the_mixture_follows_the_better_prediction() {
        // Prompts that agree: what the shared distiller learned from other prompts helps.
        let same = |_: u64| 1.0;
        let errors = |sign: &dyn Fn(u64) -> f32, length| {
            [
                error(&mut single(Sharing::PerPrompt), sign, length),
                error(&mut single(Sharing::Global), sign, length),
                error(&mut adaptive(AdaptiveConfig::default()), sign, length),
                error(
                    &mut adaptive(AdaptiveConfig {
                        start: AdaptiveStart::Fresh,
                        ..AdaptiveConfig::default()
                    }),
                    sign,
                    length,
                ),
            ]
        };
        let [own, shared, mixed, fresh] = errors(&same, 8);
        assert!(shared < own, "short prompts that agree: {shared} {own}");
        assert!(mixed < 0.5 * own && fresh < 0.5 * own, "{mixed} {fresh} {own}");
        // Prompts that contradict each other: what the shared distiller learns helps none of them.
        let opposite = |prompt: u64| if prompt.is_multiple_of(2) { 1.0 } else { -1.0 };
        let [own, shared, mixed, fresh] = errors(&opposite, 60);
        assert!(own < shared, "prompts that contradict each other: {own} {shared}");
        assert!(mixed < 0.5 * shared && fresh < 0.5 * shared, "{mixed} {fresh} {shared}");
    }

    #[test]
    fn the_weight_is_that_of_the_formula() {
        let config = AdaptiveConfig { half_life: 3.0, sharpness: 5.0, ..Default::default() };
        let mut trainer = adaptive(config);
        let gamma = 0.5f64.powf(1.0 / 3.0);
        let (mut own_mean, mut shared_mean, mut steps) = (0.0f64, 0.0f64, 0.0f64);
        for at in 0..5 {
            let (rows, hidden) = step(&[3], at, |_| 1.0);
            let Prediction { expected, parts } = trainer.predict(&rows, hidden.shallow()).unwrap();
            let lead = if steps > 0.0 { (shared_mean - own_mean) / steps } else { 0.0 };
            let weight = 1.0 / (1.0 + (-5.0 * lead).exp());
            let mixed: Vec<f32> = values(parts[0].clone())
                .iter()
                .zip(values(parts[1].clone()))
                .map(|(&own, shared)| shared + (own - shared) * weight as f32)
                .collect();
            assert_close("mixture", &values(expected), &mixed, 1e-5);
            let deep = values(hidden.deep().clone());
            let length: f64 = deep.iter().map(|&d| f64::from(d).powi(2)).sum();
            let error = |part: &Tensor<2>| {
                let pairs = deep.iter().zip(values(part.clone()));
                pairs.map(|(&d, p)| f64::from(d - p).powi(2)).sum::<f64>() / length
            };
            own_mean = gamma * own_mean + (1.0 - gamma) * error(&parts[0]);
            shared_mean = gamma * shared_mean + (1.0 - gamma) * error(&parts[1]);
            steps = gamma * steps + (1.0 - gamma);
            trainer.learn(&rows, &hidden, &parts).unwrap();
        }
        assert_eq!(trainer.distillers(), 2);
        trainer.release(CompletionId::new(3, 3));
        assert!(trainer.evidence.is_empty(), "evidence is dropped with its prompt");
        assert_eq!(trainer.distillers(), 1, "the shared one stays");
    }

    #[test]
    fn a_new_prompt_starts_as_configured() {
        for (start, same) in [(AdaptiveStart::Shared, true), (AdaptiveStart::Fresh, false)] {
            let mut trainer = adaptive(AdaptiveConfig { start, ..Default::default() });
            for at in 0..10 {
                let (rows, hidden) = step(&[0], at, |_| 1.0);
                let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
                trainer.learn(&rows, &hidden, &parts).unwrap();
            }
            let (rows, hidden) = step(&[1], 3, |_| 1.0);
            let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
            assert_eq!(values(parts[0].clone()) == values(parts[1].clone()), same, "{start:?}");
        }
    }

    #[test]
    fn a_copy_of_the_shared_distiller_has_an_empty_optimizer_state() {
        let distiller = SwiGluConfig::new().with_blocks(1).with_d_hidden(8);
        let distiller = distiller.init(D_MODEL, 1, &Device::flex()).unwrap();
        let slots = StackedSlots::new(&distiller, OptimizerConfig::adam_w(1e-2)).unwrap();
        let config = AdaptiveConfig::default();
        let mut trainer = AdaptiveTrainer::new(slots, config, TrainingConfig::default());
        for at in 0..5 {
            let (rows, hidden) = step(&[0], at, |_| 1.0);
            let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
            trainer.learn(&rows, &hidden, &parts).unwrap();
        }
        let (rows, hidden) = step(&[1], 5, |_| 1.0);
        trainer.predict(&rows, hidden.shallow()).unwrap();
        let mut state = trainer.export().unwrap();
        let copy = state.slots.remove(1).state;
        let shared = state.shared.unwrap().slots.remove(0).state;
        assert_eq!((copy.age, shared.age), (0, 5));
        let (copy, shared) = (copy.tensors.unwrap(), shared.tensors.unwrap());
        let all = |tensors: &[Tensor<1>]| -> Vec<f32> {
            tensors.iter().flat_map(|tensor| values(tensor.clone())).collect()
        };
        assert_eq!(all(&copy.parameters), all(&shared.parameters));
        for (moments, of_shared) in [(copy.first, shared.first), (copy.second, shared.second)] {
            assert!(all(&of_shared).iter().any(|&moment| moment != 0.0));
            assert!(all(&moments).iter().all(|&moment| moment == 0.0));
        }
    }

    #[test]
    fn a_restart_keeps_the_distillers_that_are_not_at_fault() {
        let mut trainer = adaptive(AdaptiveConfig::default());
        for at in 0..5 {
            let (rows, hidden) = step(&[0, 1], at, |prompt| prompt as f32 - 0.5);
            let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
            trainer.learn(&rows, &hidden, &parts).unwrap();
        }
        let (rows, hidden) = step(&[0, 1], 5, |_| 1.0);
        type Trainer = AdaptiveTrainer<StackedSlots<SwiGluDistiller>>;
        let restart = |trainer: &mut Trainer, failed: usize, broken: [&[bool]; 2]| {
            let (failed, fine) = rows.split_at(failed);
            let done = trainer.restart(failed, fine, &broken.map(<[bool]>::to_vec)).unwrap();
            (done.restarts, done.updates_undone)
        };
        let updates = |trainer: &Trainer| [0, 1].map(|at| trainer.updates(rows[at]));

        // The own distiller of prompt 0 starts again as a copy of the shared one.
        assert_eq!(restart(&mut trainer, 1, [&[true], &[false]]), (1, 5));
        assert_eq!(updates(&trainer), [0, 5]);
        let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
        let [own, shared] = [0, 1].map(|part| values(parts[part].clone()));
        assert_close("copy", &own[..D_MODEL], &shared[..D_MODEL], 1e-6);
        assert_ne!(own[D_MODEL..], shared[D_MODEL..]);

        // The shared one is kept as long as another row has a finite prediction from it.
        assert_eq!(restart(&mut trainer, 1, [&[false], &[true]]), (0, 0));
        assert_eq!(restart(&mut trainer, 2, [&[false, false], &[false, true]]), (0, 0));
        assert_eq!(restart(&mut trainer, 2, [&[false, false], &[true, true]]), (1, 5));
        assert_eq!(updates(&trainer), [0, 5]);

        // Both parts are finite: their mixture was not. The shared one has its initial parameters already.
        trainer.predict(&rows, hidden.shallow()).unwrap();
        assert_eq!(restart(&mut trainer, 2, [&[false, false], &[false, false]]), (2, 5));
        assert_eq!(updates(&trainer), [0, 0]);
    }

    /// Rows are counted once, what the two distillers do is counted for both.
    #[test]
    fn what_both_distillers_do_is_counted() {
        let start = LowRankStart::Ridge { rows: 2, lambda: 1e-2 };
        let config = LowRankConfig::new().with_rank(2).with_start(start);
        let distiller = config.init(D_MODEL, 0, &Device::flex()).unwrap();
        let slots = SeparateSlots::new(distiller, OptimizerConfig::adam_w(1e-3));
        let of = |start, states: &HiddenStates, rows: &[CompletionId]| {
            let config = AdaptiveConfig::new().with_start(start);
            let mut trainer =
                AdaptiveTrainer::new(slots.clone(), config, TrainingConfig::default());
            let parts = trainer.predict(rows, states.shallow()).unwrap().parts;
            trainer.learn(rows, states, &parts).unwrap()
        };
        // Two rows of each of two prompts: two fits of their own, and one of the shared distiller.
        let (rows, states) = step(&[0, 1, 0, 1], 3, |_| 1.0);
        let counted = Learned { updates: 3, rows: 4, fits: 3, ..Learned::default() };
        assert_eq!(of(AdaptiveStart::Fresh, &states, &rows), counted);
        // Copies of the shared distiller are not fitted: that would overwrite what was copied.
        assert_eq!(of(AdaptiveStart::Shared, &states, &rows), Learned { fits: 1, ..counted });
        // Shallow states of 0 cannot be fitted.
        let zeros =
            HiddenStates::new(states.shallow().zeros_like(), states.deep().clone()).unwrap();
        assert_eq!(
            of(AdaptiveStart::Fresh, &zeros, &rows),
            Learned { fits: 0, fits_failed: 3, ..counted }
        );
    }

    #[test]
    fn the_end_of_a_prompt_leaves_the_evidence_about_the_others() {
        let mut trainer = adaptive(AdaptiveConfig::default());
        let (rows, hidden) = step(&[4, 2, 7], 0, |_| 1.0);
        let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
        trainer.learn(&rows, &hidden, &parts).unwrap();
        trainer.release(rows[0]);
        let known: Vec<u64> = trainer.evidence.of_each().iter().map(|(id, _)| id.0).collect();
        assert_eq!(known, [2, 7]);
    }

    #[test]
    fn a_reset_forgets_both_distillers_and_the_evidence() {
        let mut trainer = adaptive(AdaptiveConfig::default());
        let (rows, hidden) = step(&[4, 2], 0, |_| 1.0);
        let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
        trainer.learn(&rows, &hidden, &parts).unwrap();
        let mut known = rows.clone();
        known.sort_unstable();
        assert_eq!(trainer.completions(), known);
        assert_eq!((trainer.distillers(), trainer.waiting_rows()), (3, 0));
        trainer.reset();
        assert_eq!((trainer.distillers(), trainer.state_bytes()), (0, 0));
        assert!(trainer.completions().is_empty());
        assert!(trainer.evidence.is_empty());
    }

    #[test]
    fn a_trainer_that_learns_without_predicting_starts_prompts_the_same_way() {
        // The background worker learns from rows that the caller's copy has predicted.
        let known = |trainer: &mut AdaptiveTrainer<_>| {
            for at in 0..10 {
                let (rows, hidden) = step(&[0], at, |_| 1.0);
                let parts = trainer.predict(&rows, hidden.shallow()).unwrap().parts;
                trainer.learn(&rows, &hidden, &parts).unwrap();
            }
        };
        let (mut predicts, mut learns) =
            (adaptive(AdaptiveConfig::default()), adaptive(AdaptiveConfig::default()));
        known(&mut predicts);
        known(&mut learns);
        let (rows, hidden) = step(&[1], 3, |_| 1.0);
        let parts = predicts.predict(&rows, hidden.shallow()).unwrap().parts;
        predicts.learn(&rows, &hidden, &parts).unwrap();
        learns.begin(rows[0]);
        learns.learn(&rows, &hidden, &parts).unwrap();
        let own = |trainer: &mut AdaptiveTrainer<_>| {
            values(trainer.own.predict(&rows, hidden.shallow()).unwrap().expected)
        };
        assert_eq!(own(&mut predicts), own(&mut learns));
    }

    #[test]
    fn a_deep_state_of_zero_does_not_decide_for_ever() {
        let mut trainer = adaptive(AdaptiveConfig::default());
        let (rows, hidden) = step(&[0], 0, |_| 1.0);
        let zero = HiddenStates::new(hidden.shallow().clone(), hidden.deep().zeros_like()).unwrap();
        for states in [&zero, &hidden, &hidden] {
            let prediction = trainer.predict(&rows, states.shallow()).unwrap();
            assert!(values(prediction.expected).iter().all(|x| x.is_finite()));
            trainer.learn(&rows, states, &prediction.parts).unwrap();
        }
    }
}
