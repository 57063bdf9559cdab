//! One tiny model of each architecture.

use esamp::{
    CausalLm, HiddenStateTap, PairTap, Request, SequenceTap, TapSite, testing::check_model_within,
};
use esamp_llama_cpp::LlamaCpp;

use super::{
    decoder, greedy, load, losses, no_tap, numbers, options, own_greedy, plain, run, tiny, tokens,
};

const ARCHITECTURES: [&str; 9] =
    ["llama", "llama-q4_1", "qwen2", "qwen3", "qwen3moe", "gemma3", "phi3", "gpt-oss", "granite"];

const PROMPT: [u32; 12] = [84, 259, 101, 40, 263, 97, 12, 200, 71, 66, 180, 33];

/// Activations are quantised to 8 bits per block of 32 before they are multiplied: a relative error of about 1/250 in
/// each product, and more where a small difference changes how a number is rounded.
const TOLERANCE: f32 = 0.05;

fn each(check: impl Fn(&str, LlamaCpp)) {
    for name in ARCHITECTURES {
        for unified in [true, false] {
            let options = options().with_unified_cache(unified).with_cells(4096);
            check(&format!("{name}, unified {unified}"), load(&tiny(name), &options));
        }
    }
}

#[test]
fn every_architecture_keeps_the_promises_of_a_model() {
    each(|name, model| {
        let prompts = [&PROMPT[..], &PROMPT[3..8], &PROMPT[5..]];
        check_model_within(&model, &prompts, TOLERANCE).unwrap_or_else(|fault| {
            panic!("{name}: {fault}");
        });
    });
}

#[test]
fn greedy_tokens_are_those_of_llama_cpp_alone() {
    for name in ARCHITECTURES {
        let (path, options) = (tiny(name), options());
        let expected = own_greedy(&path, &options, &PROMPT, 32);
        let model = load(&path, &options);
        assert_eq!(greedy(&model, &PROMPT, 32, no_tap), expected, "{name}");
        assert_eq!(greedy(&model, &PROMPT, 32, PairTap::default), expected, "{name}, tapped");
        let mut decoder = decoder(&model);
        let request = Request::new(PROMPT.to_vec()).with_max_new_tokens(32).with_sampling(plain());
        decoder.submit(request).unwrap();
        assert_eq!(run(&mut decoder).unwrap()[0].tokens(), expected, "{name}, decode loop");
    }
}

/// A tap of all sites that keeps the shapes.
#[derive(Default)]
struct Shapes(Vec<(TapSite, [usize; 3])>, bool);

impl HiddenStateTap for Shapes {
    fn wants(&self, _: TapSite) -> bool {
        true
    }

    fn wants_all_positions(&self) -> bool {
        self.1
    }

    fn record(&mut self, site: TapSite, hidden: &burn::tensor::Tensor<3>) {
        self.0.push((site, hidden.dims()));
    }
}

#[test]
fn taps_have_the_shapes_asked_for() {
    each(|name, model| {
        assert_eq!((model.d_model(), model.n_layers()), (64, 2), "{name}");
        for (all, seq) in [(true, 6), (false, 1)] {
            let mut shapes = Shapes(Vec::new(), all);
            let rows = tokens(&PROMPT, 2);
            let logits = model.forward(rows, &mut model.new_cache(), &mut shapes).unwrap();
            assert_eq!(logits.dims(), [2, model.vocab_size()], "{name}");
            let sites = [TapSite::AfterBlock(0), TapSite::AfterBlock(1), TapSite::HeadInput];
            assert_eq!(shapes.0, sites.map(|site| (site, [2, seq, 64])), "{name}");
        }
    });
}

#[test]
fn states_of_a_prompt_longer_than_a_batch_are_those_of_its_parts() {
    let long: Vec<u32> = (0..90).map(|at| (at * 37 + 11) % 260).collect();
    let read = |batch: usize| {
        let model = load(&tiny("gemma3"), &options().with_batch(batch).with_max_rows(1));
        let mut tap = SequenceTap::default();
        let (cache, prompt) = (&mut model.new_cache(), tokens(&long, 1));
        let logits = model.forward(prompt, cache, &mut tap).unwrap();
        tap.end_pass(long.len()).unwrap();
        let states = tap.take().unwrap();
        [numbers(&logits), numbers(states.shallow()), numbers(states.deep())]
    };
    for (whole, parts) in read(512).into_iter().zip(read(7)) {
        assert!(super::difference(&whole, &parts) < TOLERANCE);
    }
}

#[test]
fn esamp_learns_each_of_them() {
    for name in ARCHITECTURES {
        let model = load(&tiny(name), &options());
        let [untrained, trained] = losses(&model, &PROMPT);
        assert!(trained < untrained, "{name}: {untrained} to {trained}");
    }
}
