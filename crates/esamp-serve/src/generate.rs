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
    Completion, Event, FinishReason, Submitted,
    engine::{Update, Updates},
};
use futures_util::stream::unfold;
use serde_json::Value;
use tracing::{error, info};

use crate::{
    app::{App, Kind, random},
    body,
    error::{ApiError, json_response, refused},
    fields::Fields,
    groups::GroupUse,
    keys::Client,
    params::Params,
    prompt::Prompt,
    reply::{Part, Piece, Reply, Usage},
};

/// Answers a request for completions.
pub(crate) async fn generate(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    request: Request,
) -> Result<Response, ApiError> {
    let headers = request.headers().clone();
    let body = body::json(request, app.limits.body, app.limits.client_timeout).await?;
    let mut body = Fields::new("", body)?;
    check_model(&app, &mut body)?;
    let params = Params::read(&mut body, &headers, kind, &app.limits)?;
    let prompt = Prompt::read(&mut body, kind)?;
    body.end()?;
    let answer = submit(app, client, kind, &params, prompt).await?;
    if params.is_streamed { Ok(answer.stream(params.wants_usage)) } else { answer.whole().await }
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

/// Encodes the prompt, submits the request and waits until the engine has taken it.
async fn submit(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    params: &Params,
    prompt: Prompt,
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

    let mut group = params.group.as_ref().map(|name| app.groups.enter(client, name)).transpose()?;
    // Memory is set aside for the whole length, so a request that names none does not get the whole context.
    let room = app.context_length.map_or(usize::MAX, |length| length.saturating_sub(tokens.len()));
    let max_new_tokens =
        params.max_new_tokens.unwrap_or(app.limits.default_tokens.min(room.max(1)));
    let prompt_tokens = tokens.len();
    let mut request = esamp::Request::new(tokens)
        .with_completions(params.completions)
        .with_max_new_tokens(max_new_tokens)
        .with_seed(params.seed)
        .with_sampling(params.sampling.clone())
        .with_stop_tokens(app.texts.tokenizer.stop_tokens())
        .with_stop_strings(&params.stop)
        .with_prompt_warm_up(params.warm_up_updates);
    if let Some(group) = &group {
        request = request.with_group(group.id);
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
    if let Some(forgotten) = group.as_mut().and_then(GroupUse::keep) {
        app.engine.release_group(forgotten);
    }
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let reply = Reply {
        kind,
        id,
        created: since_1970.as_secs(),
        model: app.model.clone(),
        seed: params.seed,
        group: params.group.clone(),
        wants_log_probs: params.log_probs.is_some(),
        wants_details: params.wants_details,
    };
    Ok(Answer::new(app, reply, updates, &submitted, prompt_tokens, group))
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
    started: Instant,
    _group: Option<GroupUse>,
}

/// What has been received of a completion.
#[derive(Default)]
struct Text {
    text: String,
    pieces: Vec<Piece>,
    /// The characters that have been sent in a stream.
    offset: usize,
    is_opened: bool,
    finish: Option<&'static str>,
}

impl Answer {
    fn new(
        app: Arc<App>,
        reply: Reply,
        updates: Updates,
        submitted: &Submitted,
        prompt: usize,
        group: Option<GroupUse>,
    ) -> Self {
        app.traffic.open.fetch_add(1, Ordering::Relaxed);
        let count = submitted.completions.len();
        Self {
            app,
            reply,
            updates,
            first: submitted.completions.first().map_or(0, |completion| completion.index),
            texts: (0..count).map(|_| Text::default()).collect(),
            running: count,
            usage: Usage { prompt, completion: 0 },
            failure: None,
            started: Instant::now(),
            _group: group,
        }
    }

    /// Receives one event and returns the completion that it is about; `None` after the last one.
    async fn receive(&mut self) -> Option<usize> {
        loop {
            match self.updates.next().await {
                Some(Update::Event(Event::Token { completion, choice, text })) => {
                    let at = self.place(completion.index)?;
                    self.usage.completion += 1;
                    let received = &mut self.texts[at];
                    received.text.push_str(&text);
                    if self.reply.shows_tokens() {
                        received.pieces.push(Piece::new(&choice, text, &self.app.texts.tokenizer));
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
                let message =
                    format!("{choice}: cancelled: it waited {seconds} s in total to be read");
                let status = StatusCode::REQUEST_TIMEOUT;
                Err(ApiError::new(status, "not_read", message).with_param(&choice))
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
            offset: 0,
            finish: text.finish,
        });
        let body = self.reply.whole(&parts.collect::<Vec<_>>(), self.usage);
        Ok(json_response(StatusCode::OK, &body))
    }

    /// A stream of server-sent events.
    fn stream(self, wants_usage: bool) -> Response {
        let state = (self, VecDeque::new(), false);
        let stream = unfold(state, move |(mut answer, mut queue, mut is_over)| async move {
            while queue.is_empty() && !is_over {
                match answer.receive().await {
                    Some(at) => answer.parts(at, &mut queue),
                    None => {
                        is_over = true;
                        answer.end(wants_usage, &mut queue);
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
            let (offset, finish) = (received.offset, received.finish);
            let part = Part { index: at, text: &text, pieces: &pieces, offset, finish };
            send(reply.chunk(&part));
            received.offset += text.chars().count();
        }
    }

    /// Queues the end of the stream. An error is the last event: `[DONE]` says that all went well.
    fn end(&mut self, wants_usage: bool, queue: &mut VecDeque<String>) {
        if let Some(failure) = take(&mut self.failure) {
            queue.push_back(failure.body().to_string());
            return;
        }
        if wants_usage {
            queue.push_back(self.reply.usage_chunk(self.usage).to_string());
        }
        queue.push_back("[DONE]".to_owned());
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.app.traffic.open.fetch_sub(1, Ordering::Relaxed);
        info!(
            id = self.reply.id,
            completions = self.texts.len(),
            cancelled = self.running,
            prompt_tokens = self.usage.prompt,
            completion_tokens = self.usage.completion,
            milliseconds = self.started.elapsed().as_millis() as u64,
            "completions"
        );
    }
}
