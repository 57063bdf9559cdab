//! Compares SmolLM2-135M-Instruct, loaded from its GGUF file, with an independent PyTorch implementation.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::ops::ControlFlow;

use burn::tensor::{DType, Device, Int, Tensor};
use esamp::{
    CausalLm, CompletionId, Decoder, DrawKey, KvCache, PairTap, Request, SamplerConfig, Sampling,
    TapSite, TokenId,
    distillers::{DistillerConfig, LowRankConfig},
    filters::{CandidateFilter, Candidates, RowContext, TopP},
    llama::Llama,
};
use esamp_programs::model_source::{Cache, ModelSource};
use esamp_testkit::golden::{self, Golden, assert_close, values};

fn smollm2(device: &Device) -> Llama {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
    Llama::from_gguf(path, device).unwrap()
}

fn tokens(ids: &[TokenId], device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
    Tensor::<1, Int>::from_data(ids.as_slice(), device).unsqueeze()
}

fn argmax(logits: &[f32]) -> TokenId {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as TokenId
}

#[derive(serde::Deserialize)]
struct Case {
    prompt_ids: Vec<TokenId>,
    token_ids: Vec<TokenId>,
}

fn cases() -> Vec<Case> {
    let path = golden::path("greedy.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn greedy(model: &Llama, case: &Case, count: usize) -> Vec<TokenId> {
    let device = model.device();
    let mut cache = model.new_cache();
    let mut tap = esamp::NoTap;
    let mut logits =
        model.forward(tokens(&case.prompt_ids, &device), &mut cache, &mut tap).unwrap();
    let mut got = Vec::new();
    loop {
        got.push(argmax(&values(logits)));
        if got.len() == count {
            return got;
        }
        logits =
            model.forward(tokens(&got[got.len() - 1..], &device), &mut cache, &mut tap).unwrap();
    }
}

/// The bytes of packed matrices, counted from the kinds and shapes of the file's tensors: the embedding is Q8_0, all other
/// matrices are Q4_1. Words of 16 × 32 bits are filled up at the end of a row; a group of 32 has a scale, and in Q4_1 a
/// least number, of 16 bits each.
#[test]
fn packed_weights_take_the_bytes_of_their_codes_and_scales() {
    let path = ModelSource::SmolLm2.fetch(&Cache::from_env().unwrap()).unwrap();
    let file = std::fs::metadata(path).unwrap().len() as f64;
    let bytes = |rows: usize, width: usize, bits: usize, scales: usize| {
        rows * ((width * bits).div_ceil(512) * 64 + width / 32 * scales * 2)
    };
    let q4_1 = |rows, width| bytes(rows, width, 4, 2);
    let attention = q4_1(576 + 192 + 192, 576) + q4_1(576, 576);
    let mlp = q4_1(1536 + 1536, 576) + q4_1(576, 1536);
    let counted = bytes(49_152, 576, 8, 1) + 30 * (attention + mlp);
    let model = smollm2(&Device::flex());
    assert_eq!(model.weight_bytes(), counted);
    assert!(counted as f64 <= 1.25 * file, "{counted} {file}");
}

/// The path in `f32` is the oracle: the numbers are the same to the last bit, for a prompt, several rows and one, and for
/// some tokens of the head.
#[test]
fn packed_weights_give_the_numbers_of_f32() {
    let packed = smollm2(&Device::flex());
    let wide = packed.clone().cast(DType::F32).unwrap();
    let parameters = wide.config().num_params();
    assert!((wide.weight_bytes() as f64 / (4 * parameters) as f64 - 1.0).abs() < 1e-3);

    let device = Device::flex();
    let mut caches = [packed.new_cache(), wide.new_cache()];
    let mut both = |input: Tensor<2, Int>, rows: usize| {
        let [a, b] = [(&packed, 0), (&wide, 1)].map(|(model, at)| {
            if rows > 1 {
                caches[at].keep_rows(&vec![0; rows]).unwrap();
            }
            let mut tap = PairTap::new(TapSite::AfterBlock(0), TapSite::HeadInput);
            let logits = model.forward(input.clone(), &mut caches[at], &mut tap).unwrap();
            let deep = tap.take().unwrap().deep().clone();
            let some = Tensor::from_data([[3, 0, 49_151]], &device).repeat_dim(0, input.dims()[0]);
            let some = model.lm_head().logits_at(deep, some);
            (values(logits), values(some))
        });
        assert!(a == b, "{rows} rows");
    };
    let prompt: Vec<TokenId> = (100..400).collect();
    both(tokens(&prompt, &device), 1);
    both(tokens(&[7], &device), 1);
    for rows in [2, 5, 16] {
        both(tokens(&vec![9; rows], &device).reshape([rows, 1]), rows);
    }
}

#[test]
fn greedy_tokens_are_those_of_pytorch() {
    let model = smollm2(&Device::flex());
    for case in cases() {
        assert_eq!(greedy(&model, &case, case.token_ids.len()), case.token_ids);
    }
}

#[test]
fn hidden_states_and_logits_are_those_of_pytorch() {
    let device = Device::flex();
    let model = smollm2(&device);
    let base = Golden::open("base.safetensors");
    let ids = |key: &str| base.ints(key).into_iter().map(|id| id as TokenId).collect::<Vec<_>>();
    let (prompt, generated) = (ids("prompt_ids"), ids("token_ids"));
    let mut cache = model.new_cache();
    let mut tap = PairTap::default();
    model.forward(tokens(&prompt, &device), &mut cache, &mut tap).unwrap();
    let prefill = tap.take().unwrap();
    let last =
        base.tensor::<2>("prefill_h1", &device).slice([prompt.len() - 1..prompt.len(), 0..576]);
    assert_close("prefill h1", &values(prefill.shallow().clone()), &values(last), 1e-4);

    let [h1, hn] = ["h1", "hN"].map(|key| base.values(key));
    let (top_ids, top_logits) = (base.ints("ref_ids_top64"), base.values("ref_logits_top64"));
    let log_sum_exp = base.values("ref_logsumexp");
    // Row `i` of the vectors predicted token `i`: row 0 comes from the prompt's last position.
    assert_close("h1", &values(prefill.shallow().clone()), &h1[..576], 1e-4);
    for (step, &token) in generated[..31].iter().enumerate() {
        let logits = model.forward(tokens(&[token], &device), &mut cache, &mut tap).unwrap();
        let hidden = tap.take().unwrap();
        let row = step + 1;
        let at = |all: &[f32]| all[row * 576..][..576].to_vec();
        assert_close("h1", &values(hidden.shallow().clone()), &at(&h1), 1e-4);
        assert_close("hN", &values(hidden.deep().clone()), &at(&hn), 1e-4);
        let logits = values(logits);
        let got: Vec<f32> =
            top_ids[row * 64..][..64].iter().map(|&id| logits[id as usize]).collect();
        assert_close("logits", &got, &top_logits[row * 64..][..64], 1e-4);
        let total: f64 = logits.iter().map(|&l| f64::from(l - got[0]).exp()).sum();
        let total = (total.ln() + f64::from(got[0])) as f32;
        assert_close("log-sum-exp", &[total], &[log_sum_exp[row]], 1e-4);
        assert_close("head", &values(model.lm_head().logits(hidden.deep().clone())), &logits, 1e-6);
    }
}

/// The one golden keep mask that needs the mass of the whole vocabulary: T 0.8, top-p 0.95.
#[test]
fn the_nucleus_is_that_of_pytorch() {
    let device = Device::flex();
    let model = smollm2(&device);
    let (base, filter) = (Golden::open("base.safetensors"), Golden::open("filter.safetensors"));
    assert_eq!(filter.values("params1"), [0.8, 0.0, 0.95, 0.0]);
    let keep = filter.ints("keep1");
    let log_sum_exp = base.values("ref_logsumexp");
    let logits = values(model.lm_head().logits(base.tensor("hN", &device)));
    let mut compared = 0;
    for step in 0..32 {
        let row = &logits[step * 49152..][..49152];
        assert!(log_sum_exp[step].is_finite());
        let row: Vec<f32> = row.iter().map(|logit| logit / 0.8).collect();
        let mut candidates = Candidates::from_logits(&row).unwrap();
        let context = RowContext::new(CompletionId::new(0, 0), 0, DrawKey::new(0, &[], 0).at(0));
        TopP { p: 0.95 }.filter(&context, &mut candidates);
        let expected = keep[step * 64..][..64].iter().sum::<i64>() as usize;
        // The mask covers only the best 64 tokens.
        assert_eq!(candidates.len().min(64), expected, "step {step}");
        compared += usize::from(expected < 64);
    }
    assert!(compared > 20);
}

/// ndarray takes half a second for one product with the head, so this test uses only one short prompt.
#[test]
#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "ndarray is deprecated upstream and supported here")]
fn the_real_model_runs_on_ndarray() {
    let model = smollm2(&Device::ndarray());
    let case = &cases()[0];
    assert_eq!(greedy(&model, case, 3), case.token_ids[..3]);
}

/// The tokens and their log-probabilities of completions of a long prompt, which is read with this budget while others
/// run.
fn with_prefill_budget(model: &Llama, budget: Option<usize>) -> Vec<Vec<(TokenId, f32)>> {
    let low_rank = DistillerConfig::LowRank(LowRankConfig::new());
    let sampler = SamplerConfig::new().with_distiller(low_rank);
    let sampler = sampler.init(model.d_model(), &model.device()).unwrap();
    let mut decoder = Decoder::new(model, sampler).unwrap();
    if let Some(budget) = budget {
        decoder = decoder.with_prefill_budget(budget).unwrap();
    }
    let [short, long] = [0, 1].map(|case| cases()[case].prompt_ids.clone());
    let request = |prompt: Vec<TokenId>, tokens| {
        let request = Request::new(prompt).with_max_new_tokens(tokens).with_seed(11);
        request.with_sampling(Sampling::default()).with_completions(2)
    };
    decoder.submit(request(short, 12)).unwrap();
    decoder.step().unwrap();
    let long = long.iter().copied().cycle().take(40).collect();
    decoder.submit(request(long, 8)).unwrap();
    let mut completions = decoder.run(|_| ControlFlow::Continue(())).unwrap();
    completions.sort_by_key(|completion| completion.id);
    let choices = completions.into_iter().map(|completion| completion.choices);
    choices.map(|c| c.into_iter().map(|c| (c.token, c.log_prob)).collect()).collect()
}

/// The pieces in which a prompt is read change its numbers by rounding only, and no token here depends on that.
#[test]
fn a_prefill_budget_does_not_change_the_tokens() {
    let model = smollm2(&Device::flex());
    let whole = with_prefill_budget(&model, None);
    assert_eq!(whole.iter().map(Vec::len).collect::<Vec<_>>(), [12, 12, 8, 8]);
    let mut largest = 0.0f32;
    for budget in [7, 16] {
        let pieces = with_prefill_budget(&model, Some(budget));
        for (got, expected) in pieces.iter().flatten().zip(whole.iter().flatten()) {
            assert_eq!(got.0, expected.0, "{budget}");
            largest = largest.max((got.1 - expected.1).abs());
        }
    }
    assert!(largest < 1e-3, "{largest}");
}
