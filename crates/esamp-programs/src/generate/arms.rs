//! The model and the decoders that run on it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{failure::Failure, loaded::Texts};
use esamp::{
    CausalLm, Completion, Counters, DecodeStats, Decoder, Event, FinishReason, Request, Sampler,
    SamplerConfig, TokenId,
    snapshots::SnapshotPrecision,
    telemetry::{Observer, Recorder, RowTrace, StepTrace},
};

use super::{
    Model,
    args::Args,
    settings::{ArmSettings, check_outlives},
    trace::Trace,
};

/// One column: a decoder and the text of its completions so far.
pub struct Arm<'m, M: Model> {
    pub settings: ArmSettings,
    pub texts: Vec<String>,
    pub completions: Vec<Completion>,
    decoder: Decoder<&'m M>,
    trace: Option<Trace>,
    recorder: Option<Arc<Mutex<Recorder>>>,
}

impl<'m, M: Model> Arm<'m, M> {
    /// Creates the decoder and submits the prompt. `other` is the model to contrast with.
    pub fn start(
        settings: ArmSettings,
        (model, texts): (&'m M, &Texts),
        other: Option<M>,
        prompt: &[TokenId],
        args: &Args,
    ) -> Result<Self, Failure> {
        let sampler = sampler(&settings, args, model)?;
        let mut decoder = Decoder::new(model, sampler)?.with_detokenizer(texts.tokenizer.clone());
        if let Some(other) = other {
            decoder = decoder.with_other_model(other)?;
        }
        let request = Request::new(prompt.to_vec())
            .with_completions(args.samples)
            .with_max_new_tokens(args.max_new_tokens)
            .with_min_new_tokens(args.stopping.min_new_tokens)
            .with_seed(args.seed)
            .with_stop_tokens(stop_tokens(model, texts, args)?)
            .with_stop_strings(&args.stopping.stop)
            .with_prompt_warm_up(args.learning.warm_up_updates.unwrap_or(0))
            .with_sampling(settings.sampling.clone());
        decoder
            .submit(request)
            .map_err(|error| Failure::runtime(error, "change the prompt or the flag it names"))?;
        let texts = vec![String::new(); args.samples];
        let (trace, recorder) = (None, None);
        Ok(Self { settings, texts, completions: Vec::new(), decoder, trace, recorder })
    }

    /// Writes every token and step from now on to the trace file.
    pub fn trace_to(&mut self, trace: Trace) {
        self.trace = Some(trace);
        self.watch();
    }

    /// Records every token and step from now on.
    pub fn record(&mut self) {
        self.recorder = Some(Arc::default());
        self.watch();
    }

    /// What has been recorded.
    pub fn recording(&self) -> Option<Recorder> {
        let recorder = self.recorder.as_ref()?;
        Some(recorder.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    fn watch(&mut self) {
        let mut watchers = Watchers(self.trace.iter().map(Trace::observer).collect());
        if let Some(recorder) = &self.recorder {
            watchers.0.push(Box::new(recorder.clone()));
        }
        self.decoder.sampler_mut().set_observer(watchers);
    }

    /// Decodes one token of every completion that has not ended.
    pub fn step(&mut self) -> Result<(), Failure> {
        if self.is_done() {
            return Ok(());
        }
        let events = self.decoder.step().map_err(|error| {
            Failure::runtime(error, "report this with the command line that led to it")
        })?;
        for event in events {
            match event {
                Event::Token { completion, text, .. } => {
                    self.texts[completion.index as usize].push_str(&text);
                }
                Event::Finished { completion, text } => {
                    self.texts[completion.id.index as usize].push_str(&text);
                    self.completions.push(completion);
                }
                _ => {}
            }
        }
        self.trace.as_ref().map_or(Ok(()), Trace::flush)
    }

    pub fn is_done(&self) -> bool {
        self.decoder.is_idle()
    }

    /// Puts the completions, which have ended in any order, in the order of their ids.
    pub fn finish(&mut self) {
        self.completions.sort_by_key(|completion| completion.id);
    }

    /// Why a completion failed, if it did.
    pub fn failure(&self, sample: usize) -> Option<String> {
        self.completions.iter().find(|c| c.id.index == sample as u64).and_then(failure_of)
    }

    /// Fails if all completions failed, or if the distiller should have learned and did not.
    pub fn check(&mut self) -> Result<(), Failure> {
        let failures: Vec<String> = self.completions.iter().filter_map(failure_of).collect();
        match failures.first() {
            Some(first) if failures.len() == self.completions.len() => Err(Failure::new(
                format!(
                    "{}: expected completions, got none: {} of {} failed, the first with: {first}",
                    self.settings.name,
                    failures.len(),
                    self.completions.len()
                ),
                "check the model; try another --temperature or --beta",
            )),
            _ => {
                let finished = self.decoder.sampler_mut().finish();
                finished.map_err(|error| Failure::learning(error, self.counters()))
            }
        }
    }

    /// Saves what was learned to a snapshot.
    pub fn save(&mut self, path: &Path) -> Result<(), Failure> {
        let saved = self.decoder.sampler_mut().save(path, SnapshotPrecision::F32);
        saved.map_err(|error| Failure::runtime(error, "check the path of --save and the disk"))
    }

    /// The configuration the sampler was made from.
    pub fn sampler(&self) -> &SamplerConfig {
        self.decoder.sampler().config()
    }

    pub fn counters(&self) -> &Counters {
        self.decoder.sampler().counters()
    }

    pub fn stats(&self) -> &DecodeStats {
        self.decoder.stats()
    }
}

/// Several observers as one, because a sampler takes only one.
struct Watchers(Vec<Box<dyn Observer>>);

impl Observer for Watchers {
    fn token(&mut self, trace: &RowTrace) {
        for watcher in &mut self.0 {
            watcher.token(trace);
        }
    }

    fn step(&mut self, trace: &StepTrace) {
        for watcher in &mut self.0 {
            watcher.step(trace);
        }
    }
}

/// The tokens that end a completion.
fn stop_tokens(model: &impl CausalLm, texts: &Texts, args: &Args) -> Result<Vec<TokenId>, Failure> {
    let (own, vocab) = (&args.stopping.stop_token, model.vocab_size());
    if let Some(token) = own.iter().find(|&&token| token as usize >= vocab) {
        return Err(Failure::usage(
            format!("--stop-token: expected an id below {vocab}, got {token}"),
            "give the id of a token of the model",
        ));
    }
    let of_the_model: &[TokenId] =
        if args.stopping.ignore_eos { &[] } else { texts.tokenizer.stop_tokens() };
    Ok([of_the_model, own].concat())
}

/// A new sampler, or the one loaded from a snapshot.
fn sampler(settings: &ArmSettings, args: &Args, model: &impl CausalLm) -> Result<Sampler, Failure> {
    let sampler = match &args.files.load {
        Some(path) if settings.steered => {
            let loaded = Sampler::loader(path).load(&model.device()).map_err(|error| {
                Failure::runtime(error, "give a file that --save has written for this model")
            })?;
            check_outlives("--load", loaded.sharing())?;
            loaded
        }
        _ => settings.sampler.init(model.d_model(), &model.device())?,
    };
    Ok(sampler)
}

/// Why a completion failed, if it did.
pub fn failure_of(completion: &Completion) -> Option<String> {
    match &completion.finish {
        FinishReason::Failed(error) => Some(error.to_string()),
        FinishReason::NoText(error) => Some(error.to_string()),
        FinishReason::Aborted => Some("the step failed as a whole".to_owned()),
        _ => None,
    }
}
