//! `check_model`: it accepts models that keep their promises, and says what is wrong with others.

use crate::{device, golden::tolerance};
use burn::tensor::{Device, Int, Tensor};
use esamp::{
    CausalLm, HiddenStateTap, KvCache, LmHead, TapSite, TokenId,
    errors::ModelError,
    testing::{ModelFault, TinyLm, TokenCache, check_model, check_model_within},
};

const PROMPTS: [&[TokenId]; 2] = [&[3, 1, 4, 1, 5, 9], &[2, 6, 5]];

/// What a model does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// It records the deep state ten times too large.
    Deep,
    /// It records the deep state before the blocks.
    Order,
    /// It records the first block twice.
    Twice,
    /// It does not record the first block.
    Missing,
    /// It records one position when all are wanted.
    LastOnly,
    /// It records all positions in the wrong order.
    Backwards,
    /// Its head gathers other tokens than it was asked for.
    Gather,
    /// Its head has a soft-cap and says that it is linear.
    Capped,
    /// Its head multiplies the rows of other tokens than it was asked for.
    Product,
    /// It forgets the beginning of a prompt that is read in pieces.
    Pieces,
    /// Its rows see each other.
    Rows,
    /// Its cache keeps rows in another order.
    Keep,
    /// Its cache exchanges appended rows.
    Append,
    /// Its cache counts one row too many.
    Count,
    /// Its logits are not numbers.
    NaN,
    /// It fails on a cache that is not empty.
    Fails,
}

struct Faulty {
    inner: TinyLm,
    fault: Option<Fault>,
    head: FaultyHead,
}

struct FaultyHead {
    inner: TinyLm,
    fault: Option<Fault>,
}

impl LmHead for FaultyHead {
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let logits = self.inner.lm_head().logits(hidden);
        if self.fault == Some(Fault::Capped) { logits.tanh() } else { logits }
    }

    fn logits_at(&self, hidden: Tensor<2>, tokens: Tensor<2, Int>) -> Tensor<2> {
        let others = self.fault == Some(Fault::Gather);
        self.logits(hidden).gather(1, if others { tokens.add_scalar(1) } else { tokens })
    }

    fn product(&self, x: Tensor<2>, tokens: Option<Tensor<2, Int>>) -> Option<Tensor<2>> {
        let others = self.fault == Some(Fault::Product);
        let all = self.inner.lm_head().logits(x);
        Some(match tokens {
            Some(tokens) if others => all.gather(1, tokens.add_scalar(1)),
            Some(tokens) => all.gather(1, tokens),
            None => all,
        })
    }
}

struct FaultyCache {
    inner: TokenCache,
    fault: Option<Fault>,
}

impl KvCache for FaultyCache {
    fn rows(&self) -> usize {
        self.inner.rows() + usize::from(self.fault == Some(Fault::Count) && self.inner.rows() > 0)
    }

    fn keep_rows(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        let mut rows = rows.to_vec();
        if self.fault == Some(Fault::Keep) {
            rows.reverse();
        }
        self.inner.keep_rows(&rows)
    }

    fn append_rows(&mut self, other: Self) -> Result<(), ModelError> {
        self.inner.append_rows(other.inner)?;
        match self.fault {
            Some(Fault::Append) => self.inner.keep_rows(&[1, 0]),
            _ => Ok(()),
        }
    }
}

/// Passes on what the model records, with a fault.
struct FaultyTap<'a> {
    tap: &'a mut dyn HiddenStateTap,
    fault: Option<Fault>,
}

impl HiddenStateTap for FaultyTap<'_> {
    fn wants(&self, site: TapSite) -> bool {
        self.tap.wants(site)
    }

    fn wants_all_positions(&self) -> bool {
        self.tap.wants_all_positions()
    }

    fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
        let [rows, seq, width] = hidden.dims();
        match (self.fault, site) {
            (Some(Fault::Deep), TapSite::HeadInput) => {
                self.tap.record(site, &hidden.clone().mul_scalar(10.0));
            }
            (Some(Fault::Order), TapSite::HeadInput) => {}
            (Some(Fault::Order), TapSite::AfterBlock(0)) => {
                self.tap.record(TapSite::HeadInput, hidden);
                self.tap.record(site, hidden);
            }
            (Some(Fault::Twice), TapSite::AfterBlock(0)) => {
                self.tap.record(site, hidden);
                self.tap.record(site, hidden);
            }
            (Some(Fault::Missing), TapSite::AfterBlock(0)) => {}
            (Some(Fault::LastOnly), _) => {
                self.tap.record(site, &hidden.clone().slice([0..rows, seq - 1..seq, 0..width]));
            }
            (Some(Fault::Backwards), TapSite::AfterBlock(0)) => {
                self.tap.record(site, &hidden.clone().flip([1]));
            }
            _ => self.tap.record(site, hidden),
        }
    }
}

impl CausalLm for Faulty {
    type Cache = FaultyCache;

    fn new_cache(&self) -> FaultyCache {
        FaultyCache { inner: self.inner.new_cache(), fault: self.fault }
    }

    fn forward(
        &self,
        tokens: Tensor<2, Int>,
        cache: &mut FaultyCache,
        tap: &mut dyn HiddenStateTap,
    ) -> Result<Tensor<2>, ModelError> {
        let is_first = cache.inner.rows() == 0;
        match self.fault {
            Some(Fault::Pieces) if !is_first && cache.inner.rows() == 1 => {
                cache.inner = self.inner.new_cache();
            }
            Some(Fault::Fails) if !is_first => {
                return Err(ModelError::other("no more than one pass"));
            }
            _ => {}
        }
        let mut tap = FaultyTap { tap, fault: self.fault };
        let logits = self.inner.forward(tokens, &mut cache.inner, &mut tap)?;
        Ok(match self.fault {
            Some(Fault::Rows) => logits.zeros_like() + logits.mean_dim(0),
            Some(Fault::NaN) => logits.mul_scalar(f32::NAN),
            Some(Fault::Capped) => logits.tanh(),
            _ => logits,
        })
    }

    fn lm_head(&self) -> &dyn LmHead {
        &self.head
    }

    fn device(&self) -> Device {
        self.inner.device()
    }

    fn d_model(&self) -> usize {
        self.inner.d_model()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> Option<usize> {
        self.inner.context_length()
    }
}

fn with(fault: impl Into<Option<Fault>>) -> Faulty {
    let (inner, fault) = (TinyLm::new(3, &device()), fault.into());
    let head = FaultyHead { inner: inner.clone(), fault };
    Faulty { inner, fault, head }
}

#[test]
fn a_model_that_keeps_its_promises_passes() {
    check_model(&TinyLm::new(1, &device()), &PROMPTS).unwrap();
    check_model(&with(None), &PROMPTS).unwrap();
}

#[test]
fn a_tolerance_of_ones_own_replaces_that_of_the_type() {
    let model = with(Some(Fault::Deep)); // its head's logits are ten times too large
    check_model_within(&model, &PROMPTS, 10.0).unwrap();
    let fault = check_model_within(&model, &PROMPTS, 8.0).unwrap_err().to_string();
    assert!(fault.contains("and are 10.000 times as large"), "{fault}");
}

#[test]
fn every_fault_is_named() {
    for (fault, expected) in [
        (
            Fault::Deep,
            "logits of the LM head for the state recorded at HeadInput: expected those of `forward`",
        ),
        (Fault::Order, "recorded tap sites: expected AfterBlock(0) first, HeadInput last"),
        (Fault::Twice, "recorded tap sites: expected AfterBlock(0) first, HeadInput last"),
        (Fault::Missing, "recorded tap sites: expected AfterBlock(0) first, HeadInput last"),
        (
            Fault::LastOnly,
            "forward pass for a tap that wants all positions: tap site AfterBlock(0): expected the states of 6 \
             positions, got 1",
        ),
        (
            Fault::Backwards,
            "states recorded at AfterBlock(0): expected those of passes that end at their position",
        ),
        (Fault::Gather, "logits of `logits_at`: expected those of `logits`"),
        (Fault::Capped, "numbers of `product`: expected those of `logits(hidden) - logits(0)`"),
        (
            Fault::Product,
            "numbers of `product` for some tokens: expected those of `product` for all tokens",
        ),
        (
            Fault::Pieces,
            "logits of a prompt read in pieces: expected those of the prompt read at once",
        ),
        (Fault::Rows, "logits of rows that go on in a batch: expected those of the row alone"),
        (Fault::Keep, "logits after `keep_rows(&[2, 0])`: expected those of the row alone"),
        (Fault::Append, "logits after `append_rows`: expected those of the row alone"),
        (Fault::Count, "rows of the cache after a prompt: expected 1, got 2"),
        (Fault::NaN, "logits: expected numbers or -inf, got NaN"),
        (
            Fault::Fails,
            "forward pass over a piece: expected no error, got: model: no more than one pass",
        ),
    ] {
        let fault_found = check_model(&with(fault), &PROMPTS).unwrap_err().to_string();
        assert!(fault_found.starts_with(expected), "{fault:?}: {fault_found}");
    }
    let deep = check_model(&with(Fault::Deep), &PROMPTS).unwrap_err();
    let ModelFault::Differs { ratio, .. } = &deep else { unreachable!("{deep}") };
    let ratio = ratio.unwrap();
    assert!(f64::from((ratio - 10.0).abs()) < 10.0 * tolerance(&device(), 1e-4), "{deep}");
    let said = format!(", and are {ratio:.3} times as large; record the state");
    assert!(deep.to_string().contains(&said), "{deep}");
}

#[test]
fn prompts_that_do_not_suffice_are_refused() {
    let model = TinyLm::new(1, &device());
    let refused = |prompts: &[Vec<TokenId>]| check_model(&model, prompts).unwrap_err().to_string();
    let expected = "prompts: expected at least two of different lengths, each of at least 2 tokens, got lengths ";
    for (prompts, lengths) in [
        (vec![], "[]"),
        (vec![vec![1, 2, 3]], "[3]"),
        (vec![vec![1, 2], vec![3, 4]], "[2, 2]"),
        (vec![vec![1, 2], vec![3]], "[2, 1]"),
    ] {
        assert_eq!(refused(&prompts), format!("{expected}{lengths}"));
    }
    assert_eq!(refused(&[vec![1, 64], vec![1, 2, 3]]), "prompts: expected tokens below 64, got 64");
    assert_eq!(
        refused(&[vec![1; 511], vec![1, 2]]),
        "prompts: expected at most 510 tokens each, got lengths [511, 2]"
    );
}
