//! Checks of a model of one's own.

use burn::tensor::{DType, Int, Tensor};

use super::fault::ModelFault;
use crate::{
    causal_lm::{CausalLm, KvCache, ModelError},
    hidden::{TapSite, to_f32},
    id::TokenId,
    tap::{HiddenStateTap, NoTap, PairTap, SequenceTap},
    tensor::index,
};

/// Checks that a model keeps what [`CausalLm`] and [`KvCache`] promise. Meant for a test of a model or an adapter that
/// you write: a fault of this kind is seldom an error in a run, it makes the text worse or the steering meaningless.
///
/// - `forward` records every tap site once, in the order of the blocks, with the shapes it should have, and all
///   positions for a tap that wants them;
/// - the LM head, applied to the state recorded at [`TapSite::HeadInput`], gives the logits of `forward`, for all
///   tokens and for some, and if it has a [`product`](crate::LmHead::product), it is linear;
/// - a prompt that is read in pieces has the logits of one that is read at once;
/// - a row that was copied, moved or appended to others with [`KvCache::keep_rows`] and [`KvCache::append_rows`], or
///   that was in a batch from the start, has the logits of the same tokens alone. Operations that the cache says it
///   cannot do are left out.
///
/// `prompts` are at least two, of different lengths, each of at least two tokens, with room for two more in the
/// context. Logits may differ by a small part of the largest one: 0.003 in `f32`, 0.03 in `f16` and 0.1 in `bf16`;
/// [`check_model_within`] takes another.
///
/// ```
/// use burn::tensor::Device;
/// use esamp::testing::{TinyLm, check_model};
///
/// let model = TinyLm::new(1, &Device::flex());
/// check_model(&model, &[vec![3, 1, 4, 1, 5], vec![9, 2, 6]])?;
/// # Ok::<(), esamp::testing::ModelFault>(())
/// ```
///
/// Cost: about 30 forward passes per prompt, and two per token.
///
/// # Errors
///
/// [`ModelFault`]: the first fault that is found.
pub fn check_model<M: CausalLm>(
    model: &M,
    prompts: &[impl AsRef<[TokenId]>],
) -> Result<(), ModelFault> {
    check_all(model, prompts, None)
}

/// [`check_model`] with a tolerance of your own instead of that of the model's type: the part of the largest logit by
/// which logits may differ, and the part of the largest number of a hidden state.
///
/// For a model that computes with quantised weights or activations. Its results are `f32`, but rounding is far coarser,
/// and a number that falls to the other side of a rounding boundary makes it visible: 0.05 is a usual value. A
/// tolerance hides faults that are smaller, so choose it little larger than what the check reports.
///
/// # Errors
///
/// [`ModelFault`]: the first fault that is found.
pub fn check_model_within<M: CausalLm>(
    model: &M,
    prompts: &[impl AsRef<[TokenId]>],
    tolerance: f32,
) -> Result<(), ModelFault> {
    check_all(model, prompts, Some(tolerance))
}

fn check_all<M: CausalLm>(
    model: &M,
    prompts: &[impl AsRef<[TokenId]>],
    given: Option<f32>,
) -> Result<(), ModelFault> {
    let prompts: Vec<&[TokenId]> = prompts.iter().map(AsRef::as_ref).collect();
    check_prompts(model, &prompts)?;
    let mut check = Check { model, given, tolerance: 0.0 };
    check.parts()?;
    for prompt in &prompts {
        check.taps_and_head(prompt)?;
        check.pieces(prompt)?;
        check.batch(prompt)?;
        check.kept_rows(prompt)?;
        check.all_positions(prompt)?;
    }
    for pair in prompts.windows(2) {
        check.appended_rows(pair[0], pair[1])?;
        check.appended_rows(pair[1], pair[0])?;
    }
    Ok(())
}

/// Tokens that are added to a row after its prompt.
const MORE: usize = 2;

fn check_prompts<M: CausalLm>(model: &M, prompts: &[&[TokenId]]) -> Result<(), ModelFault> {
    let refuse = |expected: String, got: String| Err(ModelFault::Prompts { expected, got });
    let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.len()).collect();
    if lengths.iter().any(|&length| length < 2) || lengths.windows(2).all(|two| two[0] == two[1]) {
        let expected = "at least two of different lengths, each of at least 2 tokens".to_owned();
        return refuse(expected, format!("lengths {lengths:?}"));
    }
    let vocab = model.vocab_size();
    let mut tokens = prompts.iter().copied().flatten();
    if let Some(token) = tokens.find(|&&token| token as usize >= vocab) {
        return refuse(format!("tokens below {vocab}"), token.to_string());
    }
    let longest = lengths.iter().max().map_or(0, |longest| longest + MORE);
    match model.context_length() {
        Some(limit) if longest > limit => {
            let expected = format!("at most {} tokens each", limit.saturating_sub(MORE));
            refuse(expected, format!("lengths {lengths:?}"))
        }
        _ => Ok(()),
    }
}

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

/// Logits of several rows on the host.
type Rows = Vec<Vec<f32>>;

struct Check<'a, M> {
    model: &'a M,
    /// The caller's tolerance.
    given: Option<f32>,
    /// The part of the largest number by which numbers may differ.
    tolerance: f32,
}

impl<M: CausalLm> Check<'_, M> {
    /// Checks what can be checked without a forward pass.
    fn parts(&self) -> Result<(), ModelFault> {
        let (head, device) = (self.model.lm_head(), self.model.device().inner());
        same("rows of a new cache", 0, self.model.new_cache().rows())?;
        if let Some(shape) = head.shape() {
            let expected = [self.model.d_model(), self.model.vocab_size()];
            same("shape of the LM head", expected, shape)?;
        }
        head.device().map_or(Ok(()), |got| same("device of the LM head", device, got.inner()))
    }

    /// Checks what one forward pass records, and the head on it. Sets the tolerance.
    fn taps_and_head(&mut self, prompt: &[TokenId]) -> Result<(), ModelFault> {
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
    fn pieces(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
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
    fn all_positions(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
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

    /// Checks rows that are in one batch from the start.
    fn batch(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let mut cache = self.model.new_cache();
        let prompts = [prompt.to_vec(), prompt.to_vec()];
        let logits = self.forward("forward pass over two rows", &prompts, &mut cache)?;
        let whole = self.alone(prompt)?;
        let hint = "check that rows do not see each other";
        for row in &logits {
            self.compare("logits of a row in a batch", "the row alone", hint, &whole, row)?;
        }
        self.step("logits of rows that go on in a batch", hint, &mut prompts.to_vec(), &mut cache)
    }

    /// Checks rows that were copied, moved and dropped.
    fn kept_rows(&self, prompt: &[TokenId]) -> Result<(), ModelFault> {
        let mut cache = self.model.new_cache();
        let keep = |cache: &mut M::Cache, rows: &[usize]| {
            cache.keep_rows(rows).map_err(failed("keep_rows"))?;
            same("rows of the cache after `keep_rows`", rows.len(), cache.rows())
        };
        let mut rows = if cache.can_repeat_rows() {
            self.forward("forward pass over a prompt", &[prompt.to_vec()], &mut cache)?;
            keep(&mut cache, &[0, 0, 0])?;
            vec![prompt.to_vec(); 3]
        } else {
            let rows = vec![prompt.to_vec(); 3];
            self.forward("forward pass over three rows", &rows, &mut cache)?;
            rows
        };
        let hint =
            "check that `keep_rows` copies every part of the cache, positions and lengths included";
        self.step("logits after `keep_rows(&[0, 0, 0])`", hint, &mut rows, &mut cache)?;
        if !cache.can_drop_rows() {
            return Ok(());
        }
        keep(&mut cache, &[2, 0])?;
        let mut rows = vec![rows[2].clone(), rows[0].clone()];
        self.step("logits after `keep_rows(&[2, 0])`", hint, &mut rows, &mut cache)
    }

    /// Checks rows that were appended to others of another length.
    fn appended_rows(&self, first: &[TokenId], second: &[TokenId]) -> Result<(), ModelFault> {
        let during = "forward pass over a prompt";
        let (mut cache, mut other) = (self.model.new_cache(), self.model.new_cache());
        if !cache.can_append_rows() {
            return Ok(());
        }
        self.forward(during, &[first.to_vec()], &mut cache)?;
        self.forward(during, &[second.to_vec()], &mut other)?;
        cache.append_rows(other).map_err(failed("append_rows"))?;
        same("rows of the cache after `append_rows`", 2, cache.rows())?;
        let mut rows = vec![first.to_vec(), second.to_vec()];
        let hint = "check the positions and the mask of the shorter sequence";
        self.step("logits after `append_rows`", hint, &mut rows, &mut cache)?;
        if !cache.can_drop_rows() {
            return Ok(());
        }
        cache.keep_rows(&[1]).map_err(failed("keep_rows"))?;
        let hint = "check that `keep_rows` keeps the positions and lengths of appended rows";
        let what = "logits after `append_rows` and `keep_rows(&[1])`";
        self.step(what, hint, &mut [rows[1].clone()], &mut cache)
    }

    /// Appends another token to each of `rows` and checks that each has the logits of its tokens alone.
    fn step(
        &self,
        what: &'static str,
        hint: &'static str,
        rows: &mut [Vec<TokenId>],
        cache: &mut M::Cache,
    ) -> Result<(), ModelFault> {
        let vocab = self.model.vocab_size();
        let next: Vec<Vec<TokenId>> = rows
            .iter()
            .enumerate()
            .map(|(row, tokens)| vec![((tokens[0] as usize + row) % vocab) as TokenId])
            .collect();
        let logits = self.forward("forward pass over one more token", &next, cache)?;
        for ((row, next), got) in rows.iter_mut().zip(next).zip(logits) {
            row.extend(next);
            self.compare(what, "the row alone", hint, &self.alone(row)?, &got)?;
        }
        Ok(())
    }

    /// The logits after `tokens`, read at once by an empty cache.
    fn alone(&self, tokens: &[TokenId]) -> Result<Vec<f32>, ModelFault> {
        let mut cache = self.model.new_cache();
        let rows = self.forward("forward pass over a prompt", &[tokens.to_vec()], &mut cache)?;
        Ok(rows.concat())
    }

    /// One forward pass over rows of equal length.
    fn forward(
        &self,
        during: &'static str,
        rows: &[Vec<TokenId>],
        cache: &mut M::Cache,
    ) -> Result<Rows, ModelFault> {
        let logits = self.model.forward(self.tokens(rows), cache, &mut NoTap);
        let logits = self.read(logits.map_err(failed(during))?, rows.len())?;
        same("rows of the cache after a forward pass", rows.len(), cache.rows())?;
        Ok(logits)
    }

    fn tokens(&self, rows: &[Vec<TokenId>]) -> Tensor<2, Int> {
        let tokens = rows.iter().flatten().map(|&token| token as usize);
        let seq = rows.first().map_or(0, Vec::len);
        index(tokens, &self.model.device()).reshape([rows.len(), seq])
    }

    /// Checks the shape of logits and copies them to the host.
    fn read(&self, logits: Tensor<2>, rows: usize) -> Result<Rows, ModelFault> {
        let vocab = self.model.vocab_size();
        same("shape of the logits", [rows, vocab], logits.dims())?;
        let logits = numbers(logits.inner())?;
        if let Some(bad) = logits.iter().find(|logit| logit.is_nan() || **logit == f32::INFINITY) {
            let (what, expected) = ("logits", "numbers or -inf".to_owned());
            return Err(ModelFault::Mismatch { what, expected, got: bad.to_string() });
        }
        Ok(logits.chunks(vocab).map(<[f32]>::to_vec).collect())
    }

    fn compare(
        &self,
        what: &'static str,
        like: &'static str,
        hint: &'static str,
        expected: &[f32],
        got: &[f32],
    ) -> Result<(), ModelFault> {
        let finite = expected.iter().filter(|number| number.is_finite());
        let allowed = self.tolerance * finite.fold(f32::MIN_POSITIVE, |max, x| max.max(x.abs()));
        let largest = |factor: f32| {
            let pairs = expected.iter().zip(got).filter(|(expected, got)| expected != got);
            let differences = pairs.map(|(expected, got)| (factor * expected - got).abs());
            // Not `f32::max`, which would ignore the difference to a NaN.
            differences.fold(0.0, |max: f32, x| if x.is_nan() || x > max { x } else { max })
        };
        let difference = largest(1.0);
        if difference <= allowed {
            return Ok(());
        }
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let factor = dot(expected, got) / dot(expected, expected);
        let ratio = (largest(factor) <= allowed * factor.abs()).then_some(factor);
        Err(ModelFault::Differs { what, like, difference, allowed, ratio, hint })
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

fn failed(during: &'static str) -> impl Fn(ModelError) -> ModelFault {
    move |source| ModelFault::Failed { during, source }
}

fn numbers(tensor: Tensor<2>) -> Result<Vec<f32>, ModelFault> {
    let during = "copy from the device";
    let data = tensor.cast(DType::F32).try_into_data().map_err(ModelError::from);
    let data = data.map_err(failed(during))?;
    let numbers = data.try_into_vec::<f32>();
    numbers.map_err(|error| failed(during)(ModelError::Device(format!("{error:?}"))))
}

fn same<T: PartialEq + std::fmt::Debug>(
    what: &'static str,
    expected: T,
    got: T,
) -> Result<(), ModelFault> {
    if expected == got {
        return Ok(());
    }
    let (expected, got) = (format!("{expected:?}"), format!("{got:?}"));
    Err(ModelFault::Mismatch { what, expected, got })
}
