//! A decoder for an arm: prompts in, completions with their meters out.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
};

use esamp::{
    CausalLm, Completion, Counters, Decoder, Detokenize, FinishReason, Request, Sampler, Sampling,
    TokenId, errors::TrainError,
};
use esamp_programs::failure::Failure;

use crate::{
    controls::{
        Crowding, Elliptical, GaussianError, HeadDirections, PerPrompt, Recoding, ShuffledErrors,
    },
    meter::{Meter, RowMeter},
    record::{ArmRecord, ErrorName, Rival},
    tasks::Problem,
    token_texts::{OpeningMasker, TokenTexts},
};

/// Encodes a message as tokens.
pub type Encode<'m> = Box<dyn Fn(&str) -> Result<Vec<TokenId>, Failure> + 'm>;

/// A model with what it needs to read and write text.
pub struct Subject<'m, M> {
    /// The model.
    pub model: &'m M,
    /// Encodes a message to the model.
    pub encode: Encode<'m>,
    /// The detokenizer.
    pub detokenizer: Arc<dyn Detokenize>,
    /// Tokens that end a completion.
    pub stop_tokens: Vec<TokenId>,
}

/// A decoder with the settings of an arm and a new sampler.
pub struct ArmDecoder<'m, M: CausalLm> {
    arm: &'m ArmRecord,
    sampling: Sampling,
    stop_tokens: Vec<TokenId>,
    recoding: Option<Recoding>,
    /// The most tokens of a completion.
    tokens: usize,
    decoder: Decoder<&'m M>,
    meter: Arc<Mutex<Meter>>,
}

impl<'m, M: CausalLm> ArmDecoder<'m, M> {
    /// A decoder for completions of at most `tokens` tokens. Its meters keep single tokens if `keeps_tokens`.
    ///
    /// # Errors
    ///
    /// Settings that the model does not allow.
    pub fn new(
        subject: &Subject<'m, M>,
        arm: &'m ArmRecord,
        tokens: usize,
        keeps_tokens: bool,
    ) -> Result<Self, Failure> {
        let model = subject.model;
        let mut sampler: Sampler = arm.sampler.init(model.d_model(), &model.device())?;
        match arm.error {
            ErrorName::Own => {}
            ErrorName::Gaussian => sampler.set_expected_control(GaussianError),
            ErrorName::Shuffled => sampler.set_expected_control(ShuffledErrors::default()),
            ErrorName::Elliptical => {
                let start = Elliptical::new(model.d_model(), arm.sampler.distiller_seed);
                sampler.set_expected_control(PerPrompt::new(start));
            }
        }
        let (mut sampling, mut recoding) = (arm.sampling.sampling(), None);
        match arm.rival {
            None => {}
            Some(Rival::Crowding) => {
                let head = HeadDirections::of(model)?;
                sampling = sampling.with_custom_reweighter(Crowding::new(head.into()));
            }
            Some(Rival::Recoding) => recoding = Some(Recoding::new(texts_of(subject)?)?),
        }
        let meter = Arc::new(Mutex::new(Meter::new(keeps_tokens)));
        let decoder = Decoder::new(model, sampler)?
            .with_detokenizer(subject.detokenizer.clone())
            .with_observer(meter.clone());
        let stop_tokens = subject.stop_tokens.clone();
        Ok(Self { arm, sampling, stop_tokens, recoding, tokens, decoder, meter })
    }

    /// The requests for completions of a problem, whose encoded prompt is `prompt`: one, except in an arm that gives every
    /// completion a prompt of its own.
    ///
    /// # Errors
    ///
    /// A prompt that cannot be encoded, and a vocabulary without a text that is forced.
    pub fn requests(
        &self,
        subject: &Subject<'m, M>,
        problem: &Problem,
        prompt: &[TokenId],
        completions: usize,
        seed: u64,
    ) -> Result<Vec<Request>, Failure> {
        let opening = problem.opening;
        if let Some(recoding) = &self.recoding {
            let of_row = |row| {
                let prompt = (subject.encode)(&Recoding::primed(&problem.prompt, seed, row))?;
                // Rows with the same word have the same prompt and index, so they need seeds of their own.
                let request = self.request(&prompt, 1, seed.wrapping_add(row << 48));
                let masker = recoding.masker(opening.unwrap_or_default(), seed, row);
                Ok(request.with_masker(masker))
            };
            return (0..completions as u64).map(of_row).collect();
        }
        let request = self.request(prompt, completions, seed);
        Ok(vec![match opening {
            Some(opening) => {
                request.with_masker(OpeningMasker { texts: texts_of(subject)?, opening })
            }
            None => request,
        }])
    }

    /// A request for completions of a prompt.
    fn request(&self, prompt: &[TokenId], completions: usize, seed: u64) -> Request {
        Request::new(prompt.to_vec())
            .with_completions(completions)
            .with_max_new_tokens(self.tokens)
            .with_seed(seed)
            .with_stop_tokens(self.stop_tokens.clone())
            .with_prompt_warm_up(self.arm.prompt_warm_up)
            .with_sampling(self.sampling.clone())
            .with_reference_log_probs()
    }

    /// Runs requests to their ends. The completions are ordered by request and index.
    ///
    /// # Errors
    ///
    /// A request that cannot run, a step that fails, and a completion whose record would be incomplete.
    pub fn run(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
    ) -> Result<Vec<(Completion, RowMeter)>, Failure> {
        for request in requests {
            self.decoder.submit(request).map_err(|error| {
                Failure::runtime(error, "give a model with a longer context, or fewer --tokens")
            })?;
        }
        let step = "report this with the command line that led to it";
        let completions = self.decoder.run(|_| ControlFlow::Continue(()));
        let completions = completions.map_err(|error| Failure::runtime(error, step))?;
        let mut meter = self.meter.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rows = Vec::with_capacity(completions.len());
        for completion in completions {
            let row = meter.take(completion.id).unwrap_or_default();
            check(self.arm, &completion, &row)?;
            rows.push((completion, row));
        }
        Ok(rows)
    }

    /// Checks that something was learned and returns the sampler's counters.
    ///
    /// # Errors
    ///
    /// An arm whose distiller should have learned and did not.
    pub fn finish(mut self) -> Result<Counters, Failure> {
        let never = self.arm.sampler.training.update_every > self.tokens;
        match self.decoder.sampler_mut().finish() {
            // The frozen distiller: its update interval exceeds the number of tokens, so it never learns.
            Err(TrainError::NothingLearned { .. }) if never => {}
            finished => {
                let counters = self.decoder.sampler().counters();
                finished.map_err(|error| Failure::learning(error, counters))?;
            }
        }
        Ok(*self.decoder.sampler().counters())
    }
}

/// The texts of a model's tokens.
fn texts_of<M: CausalLm>(subject: &Subject<'_, M>) -> Result<Arc<TokenTexts>, Failure> {
    let vocab = subject.model.vocab_size();
    TokenTexts::of(&*subject.detokenizer, vocab, &subject.stop_tokens).map(Arc::new)
}

/// Refuses a completion whose record would be incomplete.
fn check(arm: &ArmRecord, completion: &Completion, meter: &RowMeter) -> Result<(), Failure> {
    let got = match &completion.finish {
        FinishReason::Failed(error) => error.to_string(),
        FinishReason::NoText(error) => error.to_string(),
        finish @ (FinishReason::Aborted | FinishReason::Cancelled) => finish.name().to_owned(),
        _ if meter.tokens != completion.choices.len() as u64 || meter.tokens == 0 => {
            format!("{} tokens of which {} were traced", completion.choices.len(), meter.tokens)
        }
        _ if !meter.log_prob.is_finite() => format!("a log-probability of {}", meter.log_prob),
        _ => return Ok(()),
    };
    Err(Failure::new(
        format!(
            "arm {}, completion {}: expected a complete one, got {got}",
            arm.name, completion.id.index
        ),
        "remove the arm, or report this with the command line that led to it",
    ))
}
