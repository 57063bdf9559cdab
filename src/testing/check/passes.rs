//! What a forward pass records and gives, and the head on it.

use burn::tensor::{DType, Int, Tensor};

use super::{Check, Rows, failed, numbers, same};
use crate::{
    causal_lm::{CausalLm, KvCache},
    hidden::{TapSite, to_f32},
    id::TokenId,
    tap::{HiddenStateTap, PairTap, SequenceTap},
    testing::fault::ModelFault,
};

/// A tap that keeps every call.
#[derive(Default)]
struct Calls(Vec<(TapSite, Tensor<3>)>);

impl HiddenStateTap for Calls {
    fn wants(&self, _site: TapSite) -> bool {
        true
    }

    fn record(&mut self, site: TapSite, hidden: &Tensor<3>) {
        self.0.push((site, hidden.clone()));
    }
}

impl<M: CausalLm> Check<'_, M> {
    /// Checks what can be checked without a forward pass.
    pub(super) fn parts(&self) -> Result<(), ModelFault> {
        let (head, device) = (self.model.lm_head(), self.model.device().inner());
        same("rows of a new cache", 0, self.model.new_cache().rows())?;
        if let Some(shape) = head.shape() {
            let expected = [self.model.d_model(), self.model.vocab_size()];
            same("shape of the LM head", expected, shape)?;
        }
        head.device().map_or(Ok(()), |got| same("device of the LM head", device, got.inner()))
    }

    /// Checks what one forward pass records, and the head on it. Sets the tolerance.
    pub(super) fn taps_and_head(&mut self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let mut calls = Calls::default();
        let (mut cache, during) = (self.model.new_cache(), "forward pass over a prompt");
        let tokens = self.tokens(&[prompt.to_vec()]);
        let logits = self.model.forward(tokens, &mut cache, &mut calls).map_err(failed(during))?;
        let dtypes = calls.0.iter().map(|(_, state)| state.dtype()).chain([logits.dtype()]);
        self.tolerance = self.given.unwrap_or(dtypes.map(tolerance).fold(0.0, f32::max));
        let logits = self.read(logits, 1)?;
        same("rows of the cache after a prompt", 1, cache.rows())?;

        let sites: Vec<TapSite> = calls.0.iter().map(|&(site, _)| site).collect();
        let order = |site: &TapSite| match site {
            TapSite::AfterBlock(block) => *block,
            TapSite::HeadInput => usize::MAX,
        };
        let is_sorted = sites.windows(2).all(|two| order(&two[0]) < order(&two[1]));
        let ends = (sites.first(), sites.last());
        if !is_sorted || ends != (Some(&TapSite::AfterBlock(0)), Some(&TapSite::HeadInput)) {
            let expected = "AfterBlock(0) first, HeadInput last, each once and in the order of the \
                            blocks";
            let (what, expected) = ("recorded tap sites", expected.to_owned());
            return Err(ModelFault::Mismatch { what, expected, got: format!("{sites:?}") });
        }
        let mut deep = None;
        for (_, state) in calls.0 {
            let [rows, seq, width] = state.dims();
            // A model that applies its head to the last position only may record that one alone.
            let shown = if seq == 1 { 1 } else { prompt.len() };
            same(
                "shape of a recorded state",
                [1, shown, self.model.d_model()],
                [rows, seq, width],
            )?;
            same(
                "device of a recorded state",
                self.model.device().inner(),
                state.device().inner(),
            )?;
            deep = Some(state.inner().slice([0..1, seq - 1..seq, 0..width]).reshape([1, width]));
        }
        let Some(deep) = deep else { return Ok(()) };
        let deep = to_f32("deep hidden state", deep)
            .map_err(|source| ModelFault::Hidden { during, source })?;
        let head = self.model.lm_head();
        let of_head = self.read(head.logits(deep.clone()).inner(), 1)?;
        self.compare(
            "logits of the LM head for the state recorded at HeadInput",
            "`forward`",
            "record the state that the head reads, after the final norm, and put a scale or a soft-cap of the logits \
             into the head",
            &logits[0],
            &of_head[0],
        )?;
        let some: Vec<TokenId> = prompt.iter().copied().take(2).collect();
        let at = self.tokens(std::slice::from_ref(&some));
        let of_some = head.logits_at(deep.clone(), at.clone()).inner();
        same("shape of `logits_at` for 2 tokens", [1, 2], of_some.dims())?;
        let of_some = numbers(of_some)?;
        let expected: Vec<f32> = some.iter().map(|&token| logits[0][token as usize]).collect();
        let hint = "check the indices that `logits_at` gathers";
        self.compare("logits of `logits_at`", "`logits`", hint, &expected, &of_some)?;
        self.product(deep, &some, at)
    }

    /// Checks that a head that says it is linear is so.
    fn product(
        &self,
        deep: Tensor<2>,
        some: &[TokenId],
        at: Tensor<2, Int>,
    ) -> Result<(), ModelFault> {
        let head = self.model.lm_head();
        let Some(of_all) = head.product(deep.clone(), None) else {
            return Ok(());
        };
        // At the origin a linear head gives its bias, which is not part of the product.
        let bias = head.logits(deep.clone().zeros_like()).cast(DType::F32);
        let expected = self.read(head.logits(deep.clone()).cast(DType::F32) - bias, 1)?;
        let of_all = self.read(of_all, 1)?;
        let hint = "return `None` from `product` if the logits are not `W·hidden + b`, and leave the bias out";
        let like = "`logits(hidden) - logits(0)`";
        self.compare("numbers of `product`", like, hint, &expected[0], &of_all[0])?;
        let what = "numbers of `product` for some tokens";
        let Some(of_some) = head.product(deep, Some(at)) else {
            let expected = "the products".to_owned();
            return Err(ModelFault::Mismatch { what, expected, got: "None".to_owned() });
        };
        same("shape of `product` for 2 tokens", [1, some.len()], of_some.dims())?;
        let expected: Vec<f32> = some.iter().map(|&token| of_all[0][token as usize]).collect();
        let hint = "check the indices that `product` gathers";
        self.compare(what, "`product` for all tokens", hint, &expected, &numbers(of_some.inner())?)
    }

    /// Checks a prompt that is read token by token, and in two pieces.
    pub(super) fn pieces(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let whole = self.alone(prompt)?;
        for size in [1, prompt.len().div_ceil(2)] {
            let (mut cache, mut logits) = (self.model.new_cache(), Rows::new());
            for piece in prompt.chunks(size) {
                logits =
                    self.forward("forward pass over a piece", &[piece.to_vec()], &mut cache)?;
            }
            self.compare(
                "logits of a prompt read in pieces",
                "the prompt read at once",
                "check the positions, the causal mask and the cache of a pass that does not begin the sequence",
                &whole,
                &logits[0],
            )?;
        }
        Ok(())
    }

    /// Checks that the states of all positions are those of passes that end there.
    pub(super) fn all_positions(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let during = "forward pass for a tap that wants all positions";
        let hidden = |source| ModelFault::Hidden { during, source };
        let mut all = SequenceTap::default();
        let tokens = self.tokens(&[prompt.to_vec()]);
        let mut cache = self.model.new_cache();
        self.model.forward(tokens, &mut cache, &mut all).map_err(failed(during))?;
        all.end_pass(prompt.len()).map_err(hidden)?;
        let all = all.take().map_err(hidden)?;
        let mut cache = self.model.new_cache();
        for (at, &token) in prompt.iter().enumerate() {
            let mut one = PairTap::default();
            let tokens = self.tokens(&[vec![token]]);
            self.model.forward(tokens, &mut cache, &mut one).map_err(failed(during))?;
            let one = one.take().map_err(hidden)?;
            let at = all.select(&[at]).map_err(hidden)?;
            for (what, all, one) in [
                ("states recorded at AfterBlock(0)", at.shallow(), one.shallow()),
                ("states recorded at HeadInput", at.deep(), one.deep()),
            ] {
                let hint = "record all positions in their order, each without those that follow it";
                let (one, all) = (numbers(one.clone())?, numbers(all.clone())?);
                self.compare(what, "passes that end at their position", hint, &one, &all)?;
            }
        }
        Ok(())
    }
}

/// The tolerance of a model that computes in this type.
fn tolerance(dtype: DType) -> f32 {
    match dtype {
        DType::BF16 => 0.1,
        DType::F16 => 0.03,
        _ => 0.003,
    }
}
