//! Requests for completions: from the body to the engine, and from its updates to a response or a stream.

use std::{
    collections::VecDeque,
    convert::Infallible,
    mem::take,
    sync::{Arc, atomic::Ordering},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    extract::Request,
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
    app::{App, Kind, random},
    body,
    error::{ApiError, json_response, refused},
    fields::Fields,
    keys::Client,
    params::Params,
    prompt::Prompt,
    reply::{Group, Part, Piece, Reply, Usage},
    tokens::Tokens,
};

/// Answers a request for completions.
pub(crate) async fn generate(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    request: Request,
) -> Result<Response, ApiError> {
    let place = app.places.clone().try_acquire_owned().map_err(|_| {
        let most = app.limits.connections;
        ApiError::busy(format!("server: expected fewer than {most} requests at once, got as many"))
    })?;
    let headers = request.headers().clone();
    let body = body::json(request, app.limits.body, app.limits.client_timeout).await?;
    let started = Instant::now();
    let mut body = Fields::new("", body)?;
    check_model(&app, &mut body)?;
    let params = Params::read(&mut body, &headers, kind, &app)?;
    let prompt = Prompt::read(&mut body, kind)?;
    body.end()?;
    let served = Served { _place: place, started };
    let answer = submit(app, client, kind, &params, prompt, served).await?;
    if params.is_streamed { Ok(answer.stream()) } else { answer.whole().await }
}

fn check_model(app: &App, body: &mut Fields) -> Result<(), ApiError> {
    let expected = format!("{:?}", app.model);
    match body.text("model")? {
        Some(model) if model == app.model => Ok(()),
        Some(model) => {
            let error = ApiError::field("model", &expected, &crate::fields::shown(&model.into()));
            Err(ApiError { status: StatusCode::NOT_FOUND, code: "model_not_found", ..error })
        }
        None => Err(ApiError::field("model", &expected, "none")),
    }
}

/// A request's place among those that are answered at the same time, and since when it has it.
struct Served {
    _place: OwnedSemaphorePermit,
    started: Instant,
}

/// Encodes the prompt, submits the request and waits until the engine has taken it.
async fn submit(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    params: &Params,
    prompt: Prompt,
    served: Served,
) -> Result<Answer, ApiError> {
    let id = match kind {
        Kind::Completion => format!("cmpl-{:016x}", random()),
        Kind::Chat => format!("chatcmpl-{:016x}", random()),
    };
    if app.logs_prompts {
        info!(id, prompt = prompt.logged(), "prompt");
    }
    let encoding = app.clone();
    let tokens = tokio::task::spawn_blocking(move || prompt.encode(&encoding)).await;
    let tokens = tokens.map_err(|error| ApiError::internal(error.to_string()))??;
    let longest = app.limits.prompt;
    if tokens.len() > longest {
        let got = format!("{} tokens", tokens.len());
        let error =
            ApiError::field(kind.prompt_field(), &format!("at most {longest} tokens"), &got);
        return Err(ApiError { code: "context_length_exceeded", ..error });
    }

    // Memory is set aside for the whole length, so a request that names none does not get the whole context.
    let room = app.context_length.map_or(usize::MAX, |length| length.saturating_sub(tokens.len()));
    let max_new_tokens =
        params.max_new_tokens.unwrap_or(app.limits.default_tokens.min(room.max(1)));
    let min_new_tokens = params.min_new_tokens;
    if min_new_tokens > max_new_tokens {
        let expected = format!("at most max_tokens, {max_new_tokens}");
        return Err(ApiError::field("min_tokens", &expected, &min_new_tokens.to_string()));
    }
    let prompt_tokens = tokens.len();
    let mut request = esamp::Request::new(tokens)
        .with_completions(params.completions)
        .with_max_new_tokens(max_new_tokens)
        .with_min_new_tokens(min_new_tokens)
        .with_seed(params.seed)
        .with_sampling(params.sampling.clone())
        .with_stop_tokens(app.texts.tokenizer.stop_tokens())
        .with_stop_strings(&params.stop)
        .with_prompt_warm_up(params.warm_up_updates);
    if let Some(name) = &params.group {
        request = request.with_group(app.groups.id(client, name));
    }
    if let Some(alternatives) = params.log_probs {
        request = request.with_top_log_probs(alternatives);
    }
    let mut updates = app.engine.submit(request)?;
    let submitted = match updates.next().await {
        Some(Update::Accepted(submitted)) => submitted,
        Some(Update::Refused(error)) => return Err(refused(&error, kind.prompt_field())),
        _ => return Err(ApiError::ending()),
    };
    // In a group that is kept, indices go on.
    let first = submitted.completions.first().map_or(0, |completion| completion.index);
    let group = |name: &String| Group { name: name.clone(), is_known: first > 0 };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let reply = Reply {
        kind,
        id,
        created: since_1970.as_secs(),
        model: app.model.clone(),
        seed: params.seed,
        group: params.group.as_ref().map(group),
        wants_log_probs: params.log_probs.is_some(),
        wants_details: params.wants_details,
        wants_usage: params.is_streamed && params.wants_usage,
    };
    app.traffic.open.fetch_add(1, Ordering::Relaxed);
    let count = submitted.completions.len();
    Ok(Answer {
        app,
        reply,
        updates,
        first,
        texts: (0..count).map(|_| Text::default()).collect(),
        running: count,
        usage: Usage { prompt: prompt_tokens, completion: 0 },
        failure: None,
        served,
    })
}

/// A request that the engine has taken. Dropping it cancels what has not ended.
struct Answer {
    app: Arc<App>,
    reply: Reply,
    updates: Updates,
    /// The index of the first completion, which in a group is not 0.
    first: u64,
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
    /// Receives one event and returns the completion that it is about; `None` after the last one.
    async fn receive(&mut self) -> Option<usize> {
        loop {
            match self.updates.next().await {
                Some(Update::Event(Event::Token { completion, choice, text })) => {
                    let at = self.place(completion.index)?;
                    self.observe(at);
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
                Some(Update::Event(Event::Finished { completion, text })) => {
                    let at = self.place(completion.id.index)?;
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
    fn observe(&mut self, at: usize) {
        let now = Instant::now();
        let traffic = &self.app.traffic;
        if self.usage.completion == 0 {
            traffic.first_token.observe(now - self.served.started);
        }
        if let Some(last) = self.texts[at].last.replace(now) {
            traffic.between_tokens.observe(now - last);
        }
    }

    fn place(&self, index: u64) -> Option<usize> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        (at < self.texts.len()).then_some(at)
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

    /// The response when all completions have ended.
    async fn whole(mut self) -> Result<Response, ApiError> {
        while self.receive().await.is_some() {}
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
    fn stream(self) -> Response {
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
        self.app.traffic.open.fetch_sub(1, Ordering::Relaxed);
        self.app.traffic.requests.observe(took);
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
