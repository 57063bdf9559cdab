//! On a device whose default type is half precision, distillers are still in full precision. This is a separate test
//! program, because the default applies to the whole process.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};
use esamp::{
    CompletionId, DrawKey, HiddenStates, LmHead, Phase, SamplerConfig, Sampling, Sharing,
    StepInput, StepRow, TiedHead,
    distillers::{DistillerConfig, LowRankConfig, LowRankStart, SwiGluConfig},
    snapshots::SnapshotPrecision,
};

const D_MODEL: usize = 8;

#[test]
fn distillers_do_not_follow_the_devices_default() {
    let mut device = Device::flex();
    device.configure(FloatDType::BF16).unwrap();
    let half = |rows: usize, phase: f32| {
        let numbers = (0..rows * D_MODEL).map(|i| (i as f32 * 0.7 + phase).sin());
        let data = TensorData::new(numbers.collect::<Vec<f32>>(), [rows, D_MODEL]);
        Tensor::<2>::from_data(data, &device)
    };
    assert_eq!(half(1, 0.0).dtype(), DType::BF16, "the premise");
    let ridge = LowRankStart::Ridge { rows: 3, lambda: 1e-2 };
    let low_rank = LowRankConfig::new().with_rank(2).with_start(ridge);
    for distiller in [
        DistillerConfig::SwiGlu(SwiGluConfig::new().with_d_hidden(5)),
        DistillerConfig::LowRank(low_rank),
    ] {
        for sharing in [Sharing::PerPrompt, Sharing::Adaptive(Default::default())] {
            let config =
                SamplerConfig::new().with_distiller(distiller.clone()).with_sharing(sharing);
            let mut sampler = config.init(D_MODEL, &device).unwrap();
            let head = TiedHead::new(half(11, 0.3));
            let sampling = Sampling::paper().checked().unwrap();
            for at in 0..4 {
                let rows = [0, 1].map(|request| {
                    StepRow::new(
                        CompletionId::new(request, request),
                        DrawKey::new(1, &[], request),
                        &[],
                        &[1],
                        &sampling,
                    )
                    .with_phase(Phase::Decode)
                });
                let hidden = HiddenStates::new(half(2, at as f32), half(2, 9.0)).unwrap();
                assert_eq!(hidden.deep().dtype(), DType::F32);
                let logits = head.logits(hidden.deep().clone());
                let input = StepInput::new(&rows, logits, &head).with_hidden(hidden);
                let choices = sampler.step(input).unwrap().choices;
                assert!(choices.iter().all(|c| c.as_ref().unwrap().novelty.is_some()));
            }
            assert!(sampler.counters().rows_learned >= 8);
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("sampler");
            sampler.save(&path, SnapshotPrecision::F32).unwrap();
            esamp::Sampler::loader(&path).load(&device).unwrap();
        }
    }
}
