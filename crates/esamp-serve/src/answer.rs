//! The answer to a request for completions: from the engine's updates to a response or a stream.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::poll_fn,
    mem::take,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Instant,
};

use axum::{
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event as SentEvent, KeepAlive, Sse},
    },
};
use esamp::{
    Completion, Event, FinishReason,
    engine::{Update, Updates},
    errors::RowError,
};
use futures_util::stream::unfold;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tracing::{error, info};

use crate::{
    app::App,
    error::{ApiError, json_response},
    reply::{Part, Piece, Reply, Usage},
    tokens::Tokens,
};

/// A request's place among those that are answered at the same time, and since when it has it.
pub(crate) struct Served {
    pub(crate) _permit: OwnedSemaphorePermit,
    pub(crate) started: Instant,
}

/// The completions of one prompt. Dropping it cancels what has not ended.
pub(crate) struct Submitted {
    pub(crate) updates: Updates,
    /// The index of the first completion, which in a group is not 0.
    pub(crate) first: u64,
    pub(crate) completions: usize,
}

/// A request that the engine has taken. Dropping it cancels what has not ended.
pub(crate) struct Answer {
    app: Arc<App>,
    reply: Reply,
    prompts: Vec<Submitted>,
    /// The prompt whose updates are looked at first, so that all have their turn.
    turn: usize,
    /// The choices, those of the first prompt first.
    texts: Vec<Text>,
    /// Completions that have not ended.
    running: usize,
    usage: Usage,
    failure: Option<ApiError>,
    served: Served,
}

/// What has been received of a completion.
#[derive(Default)]
struct Text {
    text: String,
    pieces: Vec<Piece>,
    tokens: Tokens,
    is_opened: bool,
    /// When the last token came.
    last: Option<Instant>,
    finish: Option<&'static str>,
}

impl Answer {
    pub(crate) fn new(
        app: Arc<App>,
        reply: Reply,
        prompts: Vec<Submitted>,
        prompt_tokens: usize,
        served: Served,
    ) -> Self {
        app.traffic.open.inc();
        let running = prompts.iter().map(|prompt| prompt.completions).sum();
        Self {
            app,
            reply,
            prompts,
            turn: 0,
            texts: (0..running).map(|_| Text::default()).collect(),
            running,
            usage: Usage { prompt: prompt_tokens, completion: 0 },
            failure: None,
            served,
        }
    }

    /// The next update, and which prompt it is about; `None` after the last one of all.
    async fn next(&mut self) -> Option<(usize, Update)> {
        poll_fn(|context| {
            let count = self.prompts.len();
            let mut are_over = true;
            for step in 0..count {
                let at = (self.turn + step) % count;
                match pin!(self.prompts[at].updates.next()).poll(context) {
                    Poll::Ready(Some(update)) => {
                        self.turn = at + 1;
                        return Poll::Ready(Some((at, update)));
                    }
                    Poll::Ready(None) => {}
                    Poll::Pending => are_over = false,
                }
            }
            if are_over { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    /// Receives one event and returns the completion that it is about; `None` after the last one.
    async fn receive(&mut self) -> Option<usize> {
        loop {
            match self.next().await {
                Some((prompt, Update::Event(Event::Token { completion, choice, text }))) => {
                    let at = self.place(prompt, completion.index)?;
                    self.observe(prompt, at);
                    self.usage.completion += 1;
                    let received = &mut self.texts[at];
                    received.text.push_str(&text);
                    if self.reply.shows_tokens() {
                        let tokenizer = &self.app.texts.tokenizer;
                        let piece = Piece::new(&choice, text, &mut received.tokens, tokenizer);
                        received.pieces.push(piece);
                    }
                    return Some(at);
                }
                Some((prompt, Update::Event(Event::Finished { completion, text }))) => {
                    let at = self.place(prompt, completion.id.index)?;
                    self.running -= 1;
                    self.texts[at].text.push_str(&text);
                    match self.finish(at, &completion) {
                        Ok(reason) => self.texts[at].finish = Some(reason),
                        Err(error) => _ = self.failure.get_or_insert(error),
                    }
                    return Some(at);
                }
                Some(_) => {}
                None => {
                    if self.running > 0 {
                        self.failure.get_or_insert_with(ApiError::ending);
                    }
                    return None;
                }
            }
        }
    }

    /// Measures how long a token has been waited for.
    fn observe(&mut self, prompt: usize, at: usize) {
        let now = Instant::now();
        let traffic = &self.app.traffic;
        if self.usage.completion == 0 {
            traffic.first_token.observe((now - self.served.started).as_secs_f64());
            if let Some(waited) = self.prompts[prompt].updates.waited() {
                traffic.queue.observe(waited.as_secs_f64());
            }
        }
        if let Some(last) = self.texts[at].last.replace(now) {
            traffic.between_tokens.observe((now - last).as_secs_f64());
        }
    }

    /// The choice that a completion of a prompt is.
    fn place(&self, prompt: usize, index: u64) -> Option<usize> {
        let (before, rest) = self.prompts.split_at(prompt);
        let prompt = rest.first()?;
        let at = usize::try_from(index.checked_sub(prompt.first)?).ok()?;
        let before: usize = before.iter().map(|prompt| prompt.completions).sum();
        (at < prompt.completions).then_some(before + at)
    }

    /// OpenAI's name for why a completion ended, or the error that ended it.
    fn finish(&self, at: usize, completion: &Completion) -> Result<&'static str, ApiError> {
        let choice = format!("choices[{at}]");
        let failed = |why: String| {
            error!(id = self.reply.id, choice = at, why, "a completion failed");
            Err(ApiError::internal(format!("{choice}: {why}")).with_param(&choice))
        };
        match &completion.finish {
            FinishReason::StopToken(_) | FinishReason::StopString(_) => Ok("stop"),
            FinishReason::MaxNewTokens | FinishReason::ContextFull => Ok("length"),
            FinishReason::Cancelled if self.app.is_stopping.load(Ordering::Relaxed) => {
                Err(ApiError::ending().with_param(&choice))
            }
            FinishReason::Cancelled => {
                let seconds = self.app.limits.client_timeout.as_secs();
                let message = format!("{choice}: cancelled: it waited {seconds} s to be read");
                let status = StatusCode::REQUEST_TIMEOUT;
                Err(ApiError::new(status, "not_read", message).with_param(&choice))
            }
            FinishReason::Failed(error @ RowError::AllMasked { .. }) => {
                let message =
                    format!("{choice}: {error}: the request's settings leave no token to choose");
                Err(ApiError::request("no_token_left", message).with_param(&choice))
            }
            FinishReason::Failed(error) => failed(error.to_string()),
            FinishReason::NoText(error) => failed(error.to_string()),
            _ => {
                if let Some(why) = self.app.engine.stats().last_failure {
                    error!(why, "a step failed");
                }
                failed("the model failed in a step".to_owned())
            }
        }
    }

    /// The response when all completions have ended, or the error when one has failed. The others are cancelled then.
    pub(crate) async fn whole(mut self) -> Result<Response, ApiError> {
        while self.receive().await.is_some() && self.failure.is_none() {}
        if let Some(failure) = take(&mut self.failure) {
            return Err(failure);
        }
        let texts = self.texts.iter().enumerate();
        let parts = texts.map(|(index, text)| Part {
            index,
            text: &text.text,
            pieces: &text.pieces,
            finish: text.finish,
        });
        let body = self.reply.whole(&parts.collect::<Vec<_>>(), self.usage);
        Ok(json_response(StatusCode::OK, &body))
    }

    /// A stream of server-sent events.
    pub(crate) fn stream(self) -> Response {
        let state = (self, VecDeque::new(), false);
        let stream = unfold(state, |(mut answer, mut queue, mut is_over)| async move {
            while queue.is_empty() && !is_over {
                match answer.receive().await {
                    Some(at) => answer.parts(at, &mut queue),
                    None => {
                        is_over = true;
                        answer.end(&mut queue);
                    }
                }
            }
            let event: String = queue.pop_front()?;
            let event = SentEvent::default().data(event);
            Some((Ok::<_, Infallible>(event), (answer, queue, is_over)))
        });
        // A comment now and then, so that a connection that nothing is sent on is not taken for a dead one, and a
        // client that has gone is noticed.
        Sse::new(stream).keep_alive(KeepAlive::default()).into_response()
    }

    /// Queues what has been received of a completion.
    fn parts(&mut self, at: usize, queue: &mut VecDeque<String>) {
        let (reply, received) = (&self.reply, &mut self.texts[at]);
        let mut send = |event: Value| queue.push_back(event.to_string());
        if !received.is_opened {
            received.is_opened = true;
            reply.opening(at).into_iter().for_each(&mut send);
        }
        let (text, pieces) = (take(&mut received.text), take(&mut received.pieces));
        let is_news = !text.is_empty() || !pieces.is_empty() || received.finish.is_some();
        if is_news {
            let finish = received.finish;
            send(reply.chunk(&Part { index: at, text: &text, pieces: &pieces, finish }));
        }
    }

    /// Queues the end of the stream. An error is the last event: `[DONE]` says that all went well.
    fn end(&mut self, queue: &mut VecDeque<String>) {
        if let Some(failure) = take(&mut self.failure) {
            queue.push_back(failure.body().to_string());
            return;
        }
        let usage = self.reply.usage_chunk(self.usage);
        queue.extend(usage.map(|chunk| chunk.to_string()));
        queue.push_back("[DONE]".to_owned());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let took = self.served.started.elapsed();
        self.app.traffic.open.dec();
        self.app.traffic.requests.observe(took.as_secs_f64());
        info!(
            id = self.reply.id,
            completions = self.texts.len(),
            cancelled = self.running,
            prompt_tokens = self.usage.prompt,
            completion_tokens = self.usage.completion,
            milliseconds = took.as_millis() as u64,
            "completions"
        );
    }
}
