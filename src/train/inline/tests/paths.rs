//! The fast paths against their oracle.

use super::*;

/// Runs prompts that start, pause and end, with different numbers of rows, in every order.
fn eventful(trainer: &mut dyn OnlineTrainer, device: &Device) -> (Vec<Vec<f32>>, Vec<u64>) {
    let script: [&[(u64, u64)]; 9] = [
        &[(0, 0), (0, 1)],
        &[(0, 0), (1, 2), (0, 1), (1, 3), (1, 4)],
        &[(1, 3), (1, 2), (0, 1)],
        &[(1, 4)],
        &[(2, 5), (0, 0), (1, 2)],
        &[(0, 0), (2, 5)], // prompt 1 pauses, then ends
        &[(3, 6), (2, 5), (0, 0)],
        &[(2, 5), (3, 6), (3, 7)],
        &[(0, 0), (2, 5), (3, 6), (3, 7)],
    ];
    let mut seen = Vec::new();
    for (step, rows) in script.iter().enumerate() {
        if step == 6 {
            for request in 2..5 {
                trainer.release(CompletionId::new(1, request));
            }
        }
        let rows: Vec<CompletionId> = rows.iter().map(|&(p, r)| CompletionId::new(p, r)).collect();
        let hidden = hidden(rows.len(), step as f32, device);
        seen.push(values(trainer.predict(&rows, hidden.shallow()).unwrap().expected));
        trainer.learn(&rows, &hidden, &[]).unwrap();
    }
    let state = trainer.export().unwrap();
    let mut updates = Vec::new();
    for slot in state.slots {
        updates.push(slot.state.updates);
        seen.extend(slot.state.tensors.unwrap().parameters.into_iter().map(values));
    }
    (seen, updates)
}

/// The fast path against its oracle: all architectures, update rules, reductions and update intervals.
#[test]
fn stacked_slots_are_separate_slots() {
    let swiglu = |norm, start| {
        let config = SwiGluConfig::new().with_d_hidden(5);
        config.with_source_norm(norm).with_output_start(start)
    };
    for device in devices() {
        let swiglu = [
            swiglu(SourceNorm::Rms, OutputStart::Zero),
            swiglu(SourceNorm::None, OutputStart::FanIn),
        ]
        .map(|config| config.init(12, 3, &device).unwrap());
        let low_rank = crate::distiller::LowRankConfig::new().with_rank(3);
        let low_rank = low_rank.with_source_norm(SourceNorm::Rms).init(12, 4, &device).unwrap();
        let ridge = crate::distiller::LowRankConfig::new()
            .with_rank(3)
            .with_start(LowRankStart::Ridge { rows: 4, lambda: 1e-2 });
        let ridge = ridge.init(12, 4, &device).unwrap();
        let rate = 0.01;
        let optimizers = [
            OptimizerConfig::paper().with_learning_rate(rate),
            OptimizerConfig::adam_w(1e-3).with_schedule(Schedule::RampUp { updates: 3 }),
            OptimizerConfig::momentum(rate, 0.9).with_loss(LossReduction::Sum),
            OptimizerConfig::sgd(rate).with_max_grad_norm(0.1),
        ];
        let configs = [
            TrainingConfig::default(),
            TrainingConfig::new().with_update_every(2),
            TrainingConfig::new().with_train_rows(TrainRows::FirstPerPrompt),
        ];
        for sharing in [Sharing::PerPrompt, Sharing::PerCompletion, Sharing::Global] {
            for optimizer in optimizers {
                for config in configs {
                    agree(&swiglu[0], optimizer, sharing, config, &device);
                    agree(&swiglu[1], optimizer, sharing, config, &device);
                    agree(&low_rank, optimizer, sharing, config, &device);
                    agree(&ridge, optimizer, sharing, config, &device);
                }
            }
        }
    }
}

fn agree<D: Distiller>(
    distiller: &D,
    optimizer: OptimizerConfig,
    sharing: Sharing,
    config: TrainingConfig,
    device: &Device,
) {
    let stacked = StackedSlots::new(distiller, optimizer).unwrap();
    let apart = ApartSlots::new(stacked.clone());
    let separate = SeparateSlots::new(distiller.clone(), optimizer);
    let slow = eventful(&mut InlineTrainer::new(separate, sharing, config), device);
    for fast in [
        eventful(&mut InlineTrainer::new(stacked, sharing, config), device),
        eventful(&mut InlineTrainer::new(apart, sharing, config), device),
    ] {
        assert_eq!(fast.1, slow.1, "updates");
        assert_eq!(fast.0.len(), slow.0.len());
        // Predictions agree to 1e-5, and so do parameters, except with Adam: its step does not depend on the size of
        // the gradient, even if the gradient is a rounding error. There the tolerance is 1e-4.
        let steps = 9;
        let parameters = match optimizer.rule {
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => 1e-4,
            _ => 1e-5,
        };
        for (at, (fast, slow)) in fast.0.iter().zip(&slow.0).enumerate() {
            let tolerance = if at < steps { 1e-5 } else { parameters };
            let largest = slow.iter().fold(0.0f32, |a, b| a.max(b.abs())).max(1e-2);
            for (fast, slow) in fast.iter().zip(slow) {
                let close = (fast - slow).abs() <= tolerance * largest;
                assert!(close, "{at}: {fast} {slow} {optimizer:?} {sharing:?} {config:?}");
            }
        }
    }
}
