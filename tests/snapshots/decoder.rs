//! Snapshots of a decoder, and of a trainer that has failed.

use super::*;

#[test]
fn a_decoder_does_not_confuse_a_new_prompt_with_one_that_the_sampler_knows() {
    let model = esamp::testing::TinyLm::new(1, &Device::flex());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sampler");
    let config = SamplerConfig::new();
    let width = esamp::testing::TinyLm::D_MODEL;
    let mut decoder =
        esamp::Decoder::new(&model, config.init(width, &Device::flex()).unwrap()).unwrap();
    decoder.submit(esamp::Request::new(vec![1, 2]).with_completions(2)).unwrap();
    for _ in 0..20 {
        drop(decoder.step().unwrap());
    }
    decoder.sampler_mut().save(&path, SnapshotPrecision::F32).unwrap();

    let loaded = Sampler::loader(&path).load(&Device::flex()).unwrap();
    let running = loaded.completions();
    assert_eq!(running, [CompletionId::new(0, 0), CompletionId::new(0, 1)]);
    let tokens = |sampler: Sampler| {
        let mut decoder = esamp::Decoder::new(&model, sampler).unwrap();
        decoder.submit(esamp::Request::new(vec![3]).with_max_new_tokens(12)).unwrap();
        let run = decoder.run(|_| std::ops::ControlFlow::Continue(())).unwrap();
        (run[0].tokens(), run[0].id, decoder.into_sampler())
    };
    let fresh = tokens(config.init(width, &Device::flex()).unwrap());
    let (after, row, mut sampler) = tokens(loaded);
    assert_eq!((after, row), (fresh.0, CompletionId::new(1, 0)), "a distiller of its own");
    assert_eq!(sampler.distillers(), 1, "the old prompt's is still there");
    for row in running {
        sampler.release(row);
    }
    assert_eq!(sampler.distillers(), 0);
}

#[test]
fn a_failed_update_prevents_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let background = TrainingConfig::new().with_staleness(Staleness::Background);
    let config = SamplerConfig::new().with_training(background);
    let mut sampler =
        Sampler::builder(config).with_distiller(Fails {}).build(D_MODEL, &Device::flex()).unwrap();
    step(&mut sampler, 0);
    let error = sampler.save(&path, SnapshotPrecision::F32).unwrap_err();
    assert!(
        matches!(error, SnapshotError::Train(esamp::errors::TrainError::Worker { .. })),
        "{error}"
    );
    assert!(!path.exists());
}

/// A distiller whose updates panic.
#[derive(Module, Debug)]
struct Fails {}

impl Distiller for Fails {
    fn predict(&self, shallow: Tensor<2>) -> Tensor<2> {
        shallow
    }

    fn loss(&self, _shallow: Tensor<2>, _deep: Tensor<2>) -> Tensor<1> {
        panic!("never")
    }
}
