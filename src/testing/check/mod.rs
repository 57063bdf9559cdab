//! Checks of a model of one's own.

mod passes;
mod rows;

use burn::tensor::{DType, Int, Tensor};

use super::fault::ModelFault;
use crate::{
    causal_lm::{CausalLm, KvCache, ModelError},
    id::TokenId,
    tap::NoTap,
    tensor::index,
};

/// Checks that a model keeps what [`CausalLm`] and [`KvCache`] promise. Meant for a test of a model or an adapter that
/// you write: a fault of this kind is seldom an error in a run, it makes the text worse or the steering meaningless.
///
/// - `forward` records every tap site once, in the order of the blocks, with the shapes it should have, and all
///   positions for a tap that wants them;
/// - the LM head, applied to the state recorded at [`TapSite::HeadInput`](crate::TapSite::HeadInput), gives the logits
///   of `forward`, for all tokens and for some, and if it has a [`product`](crate::LmHead::product), it is linear;
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
