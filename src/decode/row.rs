//! A running completion.

use std::sync::Arc;

use super::{
    request::{Accepted, Completion, Event, FinishReason, TokenMasker},
    stop::{Scan, StopScanner},
};
use crate::{
    candidates::TokenMask,
    draw::DrawKey,
    error::RowError,
    id::{CompletionId, TokenId},
    novelty::Expects,
    sampler::{Choice, Phase, StepRow},
    sampling::CheckedSampling,
    select::Selection,
    text::{Detokenize, TextStream},
};

/// The state of one completion while it is being decoded.
pub(super) struct Row {
    pub(super) id: CompletionId,
    request: Arc<Accepted>,
    draw: DrawKey,
    code: Option<f64>,
    /// The maximum number of tokens, and the finish reason when it is reached.
    limit: (usize, FinishReason),
    generated: Vec<TokenId>,
    choices: Vec<Choice>,
    mask: Option<TokenMask>,
    stream: TextStream,
    stops: StopScanner,
    text: String,
}

impl Row {
    pub(super) fn new(
        id: CompletionId,
        request: Arc<Accepted>,
        context_length: Option<usize>,
    ) -> Self {
        let room = request.longest(context_length) - request.prompt.len();
        let limit = if room < request.max_new_tokens {
            (room, FinishReason::ContextFull)
        } else {
            (request.max_new_tokens, FinishReason::MaxNewTokens)
        };
        let code = match request.sampling.selection {
            Selection::Random | Selection::Custom(_) => None,
            Selection::Arithmetic => Some(DrawKey::arithmetic_code(
                request.seed(),
                &request.prompt,
                id.index,
                request.completions as u64,
            )),
        };
        Self {
            draw: DrawKey::new(request.seed(), &request.prompt, id.index),
            code,
            stops: StopScanner::new(&request.stop_strings),
            id,
            request,
            limit,
            generated: Vec::new(),
            choices: Vec::new(),
            mask: None,
            stream: TextStream::default(),
            text: String::new(),
        }
    }

    /// The token to feed to the model next.
    pub(super) fn last_token(&self) -> TokenId {
        self.generated.last().copied().unwrap_or_default()
    }

    /// The prompt, which all completions of a request share.
    pub(super) fn prompt(&self) -> &[TokenId] {
        &self.request.prompt
    }

    /// The maximum number of cache columns (tokens) that this row needs.
    pub(super) fn longest(&self) -> usize {
        self.request.prompt.len() + self.limit.0
    }

    pub(super) fn expects(&self) -> Expects {
        self.request.expects()
    }

    pub(super) fn sampling(&self) -> &CheckedSampling {
        &self.request.ready
    }

    /// Number of warm-up updates on the prompt before the first token; 0 if the row does not use a distiller.
    pub(super) fn prompt_warm_up(&self) -> usize {
        if self.sampling().uses_distiller() { self.request.prompt_warm_up } else { 0 }
    }

    /// Computes the mask of allowed tokens for the next step, from a vocabulary of `vocab` tokens. Call it before
    /// [`step_row`](Self::step_row), which borrows the mask.
    ///
    /// # Errors
    ///
    /// Any error of the request's masker.
    pub(super) fn prepare(&mut self, vocab: usize) -> Result<(), RowError> {
        self.mask = match &self.request.masker {
            Some(masker) => masker.mask(self.id, &self.generated)?,
            None => None,
        };
        if self.generated.len() < self.request.min_new_tokens {
            for token in self.request.ending_tokens() {
                self.mask.get_or_insert_with(|| TokenMask::all(vocab)).set(token, false);
            }
        }
        Ok(())
    }

    pub(super) fn masker(&self) -> Option<&Arc<dyn TokenMasker>> {
        self.request.masker.as_ref()
    }

    /// The sampler's view of the row.
    pub(super) fn step_row(&self, phase: Phase) -> StepRow<'_> {
        StepRow {
            id: self.id,
            phase,
            draw: self.draw,
            code: self.code,
            prompt: self.prompt(),
            generated: &self.generated,
            sampling: self.sampling(),
            allowed: self.mask.as_ref(),
            wants_reference_log_prob: self.request.wants_reference_log_probs,
            top_log_probs: self.request.top_log_probs,
        }
    }

    /// Records the sampler's choice. Returns the finish reason if the row has ended.
    pub(super) fn accept(
        &mut self,
        choice: Result<Choice, RowError>,
        detokenizer: Option<&dyn Detokenize>,
        events: &mut impl Extend<Event>,
    ) -> Option<FinishReason> {
        let choice = match choice {
            Ok(choice) => choice,
            Err(error) => return Some(FinishReason::Failed(error)),
        };
        let token = choice.token;
        self.generated.push(token);
        // The sampler keeps nothing between steps, so the row carries its code to the next one.
        self.code = choice.code;
        self.choices.push(choice.clone());
        // A stop token is part of the completion but has no text.
        let mut finish = if self.request.stop_tokens.contains(&token) {
            Some(FinishReason::StopToken(token))
        } else {
            self.special_stop().map(|text| FinishReason::StopString(text.to_owned()))
        };
        let mut text = String::new();
        if let Some(detokenizer) = detokenizer
            && finish.is_none()
        {
            match self.stream.push(token, detokenizer) {
                Ok(piece) => (text, finish) = self.scan(&piece),
                Err(error) => finish = Some(FinishReason::NoText(error)),
            }
        }
        self.text.push_str(&text);
        events.extend([Event::Token { completion: self.id, choice, text }]);
        // A stop string takes precedence over the length limit when both apply to the same token.
        if finish.is_none() && self.generated.len() >= self.limit.0 {
            finish = Some(self.limit.1.clone());
        }
        finish
    }

    /// The stop string whose text is that of the last token, if it is a special token.
    fn special_stop(&self) -> Option<&str> {
        let last = self.generated.last()?;
        let stop = self.request.special_stops.iter().find(|(token, _)| token == last);
        stop.map(|(_, text)| text.as_str())
    }

    /// Ends the row. Returns the completion, with a text if `has_text`, and the text that no token event has shown
    /// yet.
    ///
    /// Calls no code of the user, so that a row can be ended after that code has panicked.
    pub(super) fn finish(
        mut self,
        mut finish: FinishReason,
        has_text: bool,
    ) -> (Completion, String) {
        let mut text = String::new();
        // After a stop string in the text nothing is shown any more; before a special token, what the stream holds is.
        let is_over =
            matches!(finish, FinishReason::StopString(_)) && self.special_stop().is_none();
        if matches!(finish, FinishReason::NoText(_)) {
            // What the stream holds cannot become text any more. What might have begun a stop string is text.
            text = self.stops.finish();
        } else if !is_over {
            let piece = std::mem::take(&mut self.stream).finish();
            // An incomplete character at the end may still complete a stop string.
            let (shown, stopped) = self.scan(&piece);
            text = shown;
            match stopped {
                // A stop string replaces only the regular finish reasons: a failure or a cancellation is more
                // important.
                Some(reason) => {
                    use FinishReason::{ContextFull, MaxNewTokens, StopString, StopToken};
                    if matches!(finish, StopToken(_) | StopString(_) | MaxNewTokens | ContextFull) {
                        finish = reason;
                    }
                }
                None => text.push_str(&self.stops.finish()),
            }
        }
        self.text.push_str(&text);
        let completion = Completion {
            id: self.id,
            choices: self.choices,
            text: has_text.then_some(self.text),
            finish,
        };
        (completion, text)
    }

    /// Scans a piece for stop strings. Returns the text to show and the finish reason if a stop string was found.
    fn scan(&mut self, piece: &str) -> (String, Option<FinishReason>) {
        match self.stops.push(piece) {
            Scan::Show(text) => (text, None),
            Scan::Stop { text, stop } => (text, Some(FinishReason::StopString(stop))),
        }
    }
}
