//! The network that is trained is the library's Llama family, and training works.

use burn::{
    module::Param,
    tensor::{DType, Device, Int, Tensor},
};
use esamp::{CausalLm, NoTap, llama::Llama};
use esamp_eval::{
    known::{
        Drawn, Item, Network, NetworkShape, Paths, Peakedness, TrainSettings, Vocabulary, World,
        drawn, load, save, tasks, train,
    },
    record::Split,
};

use super::*;

fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// The network with its weights rounded as they are saved.
fn rounded(mut network: Network) -> Network {
    fn round<const D: usize>(weight: &mut Param<Tensor<D>>) {
        let value = weight.val().cast(DType::BF16).cast(DType::F32);
        *weight = Param::from_tensor(value);
    }
    round(&mut network.embedding);
    round(&mut network.norm);
    for block in &mut network.blocks {
        for matrix in [
            &mut block.query,
            &mut block.key,
            &mut block.value,
            &mut block.output,
            &mut block.gate,
            &mut block.up,
            &mut block.down,
        ] {
            round(matrix);
        }
        round(&mut block.attention_norm);
        round(&mut block.mlp_norm);
    }
    network
}

#[test]
fn the_librarys_own_model_gives_the_logits_of_the_network() {
    let device = Device::flex();
    let vocabulary = Vocabulary::of(&Paths::line());
    let shape = NetworkShape {
        d_model: 32,
        d_hidden: 48,
        n_layers: 3,
        n_heads: 4,
        vocab: vocabulary.size(),
    };
    let network = rounded(Network::new(shape, 7, &device));
    let folder = tempfile::tempdir().unwrap();
    save(&network, &vocabulary, &serde_json::json!({}), folder.path()).unwrap();
    let again = load(folder.path(), shape, &device).unwrap();
    let model = Llama::from_hf_folder(folder.path(), &device).unwrap();
    let tokens =
        Tensor::<2, Int>::from_data([[3, 9, 4, 5, 1, 2, 20], [8, 8, 3, 6, 1, 2, 25]], &device);
    let expected = values(network.forward(tokens.clone(), 6));
    assert_eq!(values(again.forward(tokens.clone(), 6)), expected);
    let wider = NetworkShape { d_hidden: 64, ..shape };
    let error = load(folder.path(), wider, &device).unwrap_err().to_string();
    assert_eq!(
        error,
        "model.layers.0.mlp.gate_proj.weight: expected bf16 of shape [64, 32], got BF16 of shape [48, 32]"
    );
    let got = values(model.forward(tokens, &mut model.new_cache(), &mut NoTap).unwrap());
    assert_eq!(got.len(), expected.len());
    let spread = expected.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (got, expected) in got.iter().zip(&expected) {
        assert!((got - expected).abs() < 1e-4 * spread.max(1.0), "{got} instead of {expected}");
    }
}

/// Two answers, `a a` and `b b`.
struct Doubles;

impl World for Doubles {
    fn name(&self) -> &'static str {
        "doubles"
    }

    fn what(&self) -> &'static str {
        "a word twice"
    }

    fn query(&self) -> &'static str {
        ""
    }

    fn longest(&self) -> usize {
        2
    }

    fn words(&self) -> Vec<String> {
        ["a", "b"].map(str::to_owned).into()
    }

    fn training(&self) -> Vec<Item> {
        ["a a", "b b"].map(|answer| Item { query: "", answer: answer.to_owned() }).into()
    }

    fn canonical(&self, answer: &[&str]) -> Option<String> {
        (answer.len() == 2 && answer[0] == answer[1]).then(|| answer[0].to_owned())
    }

    fn answers(&self) -> usize {
        2
    }
}

#[test]
fn training_learns_the_answers_and_is_reproducible() {
    let shape = NetworkShape { d_model: 16, d_hidden: 16, n_layers: 1, n_heads: 2, vocab: 21 };
    let settings = TrainSettings { steps: 150, rows: 16, rate: 1e-2, seed: 3 };
    let losses = || {
        let mut losses = Vec::new();
        let after = |_, loss, _: &Network| losses.push(loss);
        let start = Network::new(shape, 3, &Device::flex());
        assert!(drawn(&start, &Doubles, 64, 1).right < 16, "two words of 21 twice, by chance");
        let network = train(&Doubles, Peakedness::Even, start, settings, after);
        let Drawn { right, different, .. } = drawn(&network, &Doubles, 64, 1);
        assert!(right > 48 && different == 2, "{right} right, {different} different");
        (losses, values(network.norm.val()))
    };
    let (first, weights) = losses();
    // Four tokens, of which the first is certain, the second one of two, and the others certain: ln 2 / 4 = 0.173.
    let end = first[140..].iter().sum::<f32>() / 10.0;
    assert!((0.1..0.25).contains(&end), "{end}");
    assert_eq!((first, weights), losses());
}

/// The models of the repository are right often enough, and a peaked one repeats itself where an even one does not.
#[test]
fn the_trained_models_do_what_they_are_for() {
    let mut distinct = std::collections::BTreeMap::new();
    for &(task, model) in esamp_eval::round2::KNOWN {
        let loaded = Loaded::open(&known().join(model));
        let known = tasks().into_iter().find(|known| known.name() == task).unwrap();
        let header = header(&*known, "plain-1", 256, 64);
        let record = loaded.run(&header, known.split(Split::Dev).remove(0)).remove(0);
        let score = record.tally.unwrap().score(256);
        assert!(score.valid > 0.2, "{model}: {score:?}");
        // Of 2,000 triangles the models know the 1,250 that they have seen, and hardly any other.
        assert!(score.new > 0.0 || task == "triangle", "{model}: {score:?}");
        distinct.insert(model, score.distinct / score.valid);
    }
    for (model, even) in &distinct {
        let peaked = model.strip_suffix("-even").map(|task| format!("{task}-peaked"));
        if let Some(peaked) = peaked.and_then(|peaked| distinct.get(&*peaked)) {
            assert!(even - peaked > 0.1, "{model}: {distinct:?}");
        }
    }
}
