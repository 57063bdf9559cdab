//! The trainer against the golden vectors of the PyTorch study.

use super::*;

/// The target of the golden vectors: the model's final norm applied to `y`, which is already normed.
fn target(y: Tensor<2>) -> Tensor<2> {
    let base = Golden::open("base.safetensors");
    let weight = base.tensor::<1>("final_norm_weight", &Device::flex());
    let mean_square = y.clone().square().mean_dim(1);
    y / mean_square.add_scalar(1e-5).sqrt() * weight.unsqueeze()
}

/// 2 prompts × 4 rows and 4 steps, with rows going inactive: predictions and parameters of the PyTorch study.
fn matches_golden(trainer: &mut dyn OnlineTrainer, file: &str) {
    let golden = Golden::open(file);
    let active = golden.ints("active");
    let [x, y] = ["x", "y"].map(|key| golden.tensor::<3>(key, &Device::flex()));
    let pred = golden.values("pred");
    for step in 0..4usize {
        let live: Vec<usize> = (0..8).filter(|row| active[step * 8 + row] != 0).collect();
        let rows: Vec<CompletionId> =
            live.iter().map(|&row| CompletionId::new(row as u64 / 4, row as u64)).collect();
        let at = |states: &Tensor<3>| {
            let states = states.clone().slice([step..step + 1, 0..8, 0..576]);
            crate::tensor::select_rows(&states.reshape([8, 576]), &live)
        };
        let expected = trainer.predict(&rows, &at(&x)).unwrap().expected;
        let golden_rows: Vec<f32> =
            live.iter().flat_map(|row| pred[(step * 8 + row) * 576..][..576].to_vec()).collect();
        assert_close("pred", &values(expected), &golden_rows, 1e-5);
        let hidden = HiddenStates::new(at(&x), target(at(&y))).unwrap();
        trainer.learn(&rows, &hidden, &[]).unwrap();
    }
    for (slot, state) in trainer.export().unwrap().slots.into_iter().enumerate() {
        let parameters = state.state.tensors.unwrap().parameters;
        // In the order of the module's fields.
        for (name, got) in ["a", "g", "gb", "b", "w", "bb"].iter().zip(parameters) {
            let name = format!("final.{name}");
            let (all, got) = (golden.values(&name), values(got));
            // Adam divides a gradient by its own magnitude, so near 0 a rounding error changes the update. Measured:
            // 1e-4.
            assert_close(&name, &got, &all[slot * got.len()..][..got.len()], 2e-4);
        }
    }
}

#[test]
fn per_prompt_matches_golden() {
    every_path(OptimizerConfig::adam_w(1e-3), Sharing::PerPrompt, |trainer| {
        let mut trainer = trainer();
        matches_golden(&mut *trainer, "bank.prompt.safetensors");
        assert_eq!(trainer.distillers(), 2);
    });
}

#[test]
fn global_matches_golden() {
    every_path(OptimizerConfig::adam_w(1e-3), Sharing::Global, |trainer| {
        let mut trainer = trainer();
        matches_golden(&mut *trainer, "bank.global.safetensors");
        assert_eq!(trainer.distillers(), 1);
    });
}

#[test]
fn a_row_sees_its_own_distiller_wherever_it_stands() {
    let device = Device::flex();
    every_path(OptimizerConfig::sgd(0.1), Sharing::PerPrompt, |trainer| {
        let mut trainer = trainer();
        let golden = Golden::open("bank.prompt.safetensors");
        let x = golden.tensor::<3>("x", &device).slice([0..1, 0..8, 0..576]).reshape([8, 576]);
        let prompts = [1, 0, 1, 0, 1, 1, 0, 0];
        let rows: Vec<CompletionId> =
            (0..8).map(|i| CompletionId::new(prompts[i], i as u64)).collect();
        let only: Vec<usize> = (0..8).filter(|&i| prompts[i] == 1).collect();
        let ids: Vec<CompletionId> = only.iter().map(|&i| rows[i]).collect();
        let taught = crate::tensor::select_rows(&x, &only);
        trainer.predict(&ids, &taught).unwrap();
        let hidden = HiddenStates::new(taught.clone(), taught.clone() * 2.0).unwrap();
        trainer.learn(&ids, &hidden, &[]).unwrap();
        let together = values(trainer.predict(&rows, &x).unwrap().expected);
        let moved = values(trainer.predict(&ids, &taught).unwrap().expected);
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
    });
}
