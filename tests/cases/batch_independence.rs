//! A row's tokens do not depend on the other rows of the batch.

use std::ops::ControlFlow;

use super::narrow;
use crate::device;
use burn::tensor::{Int, Tensor};
use esamp::{
    CausalLm, Completion, Decoder, KvCache, NoTap, Request, SamplerConfig, Sampling, Sharing,
    TokenId, testing::TinyLm,
};

fn model() -> TinyLm {
    TinyLm::new(5, &device())
}

fn decoder(model: &TinyLm) -> Decoder<&TinyLm> {
    let config = narrow().with_sharing(Sharing::PerCompletion);
    Decoder::new(model, config.init(TinyLm::D_MODEL, &device()).unwrap()).unwrap()
}

fn request(prompt: &[TokenId], seed: u64, beta: f32) -> Request {
    let sampling: Sampling = Sampling::default().with_beta(beta).with_min_p(0.02);
    Request::new(prompt.to_vec())
        .with_seed(seed)
        .with_sampling(sampling)
        .with_max_new_tokens(20)
        .with_completions(2)
}

fn tokens(completions: &[Completion]) -> Vec<Vec<TokenId>> {
    completions.iter().map(Completion::tokens).collect()
}

fn run(decoder: &mut Decoder<&TinyLm>) -> Vec<Completion> {
    decoder.run(|_| ControlFlow::Continue(())).unwrap()
}

/// A prompt alone, in a batch, submitted last, joining late, and after a neighbour has ended.
#[test]
fn tokens_do_not_depend_on_the_other_rows() {
    let model = model();
    for beta in [0.0, 0.25, 1.0] {
        let mine = || request(&[7, 8, 9], 11, beta);
        let alone = {
            let mut decoder = decoder(&model);
            decoder.submit(mine()).unwrap();
            tokens(&run(&mut decoder))
        };
        assert_ne!(alone[0], alone[1], "two completions of one prompt differ");
        let others = [request(&[1], 2, beta), request(&[3; 30], 4, beta).with_max_new_tokens(5)];

        let mut first = decoder(&model);
        first.submit(mine()).unwrap();
        for other in &others {
            drop(first.submit(other.clone()).unwrap());
        }
        assert_eq!(tokens(&run(&mut first)[..2]), alone, "submitted first, beta {beta}");

        let mut last = decoder(&model);
        for other in &others {
            drop(last.submit(other.clone()).unwrap());
        }
        last.submit(mine()).unwrap();
        let completions = run(&mut last);
        assert_eq!(tokens(&completions[4..]), alone, "submitted last, beta {beta}");

        let mut late = decoder(&model);
        for other in &others {
            drop(late.submit(other.clone()).unwrap());
        }
        for _ in 0..3 {
            drop(late.step().unwrap());
        }
        late.submit(mine()).unwrap();
        let completions = run(&mut late);
        assert_eq!(tokens(&completions[4..]), alone, "joined late, beta {beta}");
    }
}

#[test]
fn the_seed_the_prompt_and_the_index_determine_the_tokens() {
    let model = model();
    let run_one = |prompt: &[TokenId], seed| {
        let mut decoder = decoder(&model);
        decoder.submit(request(prompt, seed, 0.25)).unwrap();
        tokens(&run(&mut decoder))
    };
    assert_eq!(run_one(&[7, 8, 9], 11), run_one(&[7, 8, 9], 11));
    assert_ne!(run_one(&[7, 8, 9], 11), run_one(&[7, 8, 9], 12));
}

#[test]
fn logits_do_not_depend_on_the_other_rows() {
    let (model, device) = (model(), device());
    let feed = |rows: &[&[TokenId]]| {
        let flat: Vec<i32> = rows.iter().flat_map(|r| r.iter().map(|&t| t as i32)).collect();
        Tensor::<1, Int>::from_data(flat.as_slice(), &device).reshape([rows.len(), rows[0].len()])
    };
    let mut together = model.new_cache();
    model.forward(feed(&[&[1, 2, 3, 4, 5, 6]]), &mut together, &mut NoTap).unwrap();
    let mut short = model.new_cache();
    model.forward(feed(&[&[9, 8]]), &mut short, &mut NoTap).unwrap();
    let mut alone = short.clone();
    together.append_rows(short).unwrap();
    for token in 20..30 {
        let both = model.forward(feed(&[&[token], &[token + 1]]), &mut together, &mut NoTap);
        let one = model.forward(feed(&[&[token + 1]]), &mut alone, &mut NoTap);
        let both: Vec<f32> = both.unwrap().into_data().try_into_vec().unwrap();
        let one: Vec<f32> = one.unwrap().into_data().try_into_vec().unwrap();
        for (a, b) in both[TinyLm::VOCAB..].iter().zip(&one) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}

/// A change here changes every user's samples and must be listed under "value-breaking" in the changelog.
#[test]
fn value_stability() {
    let model = model();
    let pinned = |config: SamplerConfig, beta: f32| {
        let sampler = config.init(TinyLm::D_MODEL, &device()).unwrap();
        let mut decoder = Decoder::new(&model, sampler).unwrap();
        decoder.submit(request(&[1, 2, 3], 42, beta).with_max_new_tokens(12)).unwrap();
        tokens(&run(&mut decoder))
    };
    let low_rank =
        esamp::distillers::DistillerConfig::LowRank(esamp::distillers::LowRankConfig::new());
    let all = [
        pinned(SamplerConfig::new(), 0.0),
        pinned(SamplerConfig::new(), 1.0),
        pinned(SamplerConfig::new().with_distiller(low_rank), 1.0),
    ];
    #[rustfmt::skip]
    let expected: [[TokenId; 24]; 3] = [
        [51, 45, 28, 19, 61, 18, 19, 18, 29, 63, 5, 56, 28, 45, 11, 43, 30, 3, 26, 3, 55, 40, 51, 28],
        [51, 28, 28, 20, 20, 28, 29, 29, 40, 57, 3, 8, 28, 45, 9, 18, 18, 17, 26, 60, 45, 9, 18, 45],
        [51, 28, 28, 20, 20, 28, 21, 60, 29, 21, 20, 28, 28, 45, 9, 18, 20, 28, 28, 45, 9, 18, 45, 3],
    ];
    assert_eq!(all.map(|arm| arm.concat()), expected.map(|arm| arm.to_vec()));
}
