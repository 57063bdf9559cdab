//! Requests for completions: from the body to the engine.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use axum::{extract::Request, http::StatusCode, response::Response};
use esamp::{TokenId, engine::Update};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    task::spawn_blocking,
};
use tracing::info;

use crate::{
    answer::{Answer, Served, Submitted},
    app::{App, Kind, random},
    body,
    error::{ApiError, refused},
    fields::Fields,
    keys::Client,
    params::Params,
    prompt::{Prompt, place},
    reply::{Group, Reply},
};

/// Answers a request for completions.
pub(crate) async fn generate(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    request: Request,
) -> Result<Response, ApiError> {
    let permit = app.places.clone().try_acquire_owned().map_err(|_| {
        let most = app.limits.connections;
        ApiError::busy(format!("server: expected fewer than {most} requests at once, got as many"))
    })?;
    let headers = request.headers().clone();
    let body = body::json(request, app.limits.body, app.limits.client_timeout).await?;
    let started = Instant::now();
    let mut body = Fields::new("", body)?;
    check_model(&app, &mut body)?;
    let params = Params::read(&mut body, &headers, kind, &app)?;
    let prompts = Prompt::read(&mut body, kind)?;
    body.end()?;
    check_completions(&app, &params, &prompts)?;
    let answer = submit(app, client, kind, &params, prompts, permit, started).await?;
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

/// The limit on completions is for all prompts together.
fn check_completions(app: &App, params: &Params, prompts: &[Prompt]) -> Result<(), ApiError> {
    let most = app.limits.completions;
    if prompts.len().saturating_mul(params.completions) > most {
        let expected = format!("at most {most} completions in all, n of each prompt");
        let got = format!("{} prompts with n {}", prompts.len(), params.completions);
        return Err(ApiError::field("prompt", &expected, &got));
    }
    Ok(())
}

/// Encodes prompts where that blocks nobody, one request after the other. The request's permit goes with them: a prompt
/// whose client has gone stays in the queue of the blocking threads until one comes to it, and counts until then.
async fn encode(
    app: Arc<App>,
    kind: Kind,
    prompts: Vec<Prompt>,
    permit: OwnedSemaphorePermit,
) -> Result<(Vec<Vec<TokenId>>, OwnedSemaphorePermit), ApiError> {
    let (sender, receiver) = oneshot::channel();
    spawn_blocking(move || {
        if sender.is_closed() {
            return; // the client has gone
        }
        let encode = |(at, prompt): (usize, &Prompt)| {
            let place = place(kind, at, prompts.len());
            let tokens = prompt.encode(&app, &place)?;
            let longest = app.limits.prompt;
            if tokens.len() > longest {
                let got = format!("{} tokens", tokens.len());
                let error = ApiError::field(place, &format!("at most {longest} tokens"), &got);
                return Err(ApiError { code: "context_length_exceeded", ..error });
            }
            Ok(tokens)
        };
        let tokens = prompts.iter().enumerate().map(encode).collect::<Result<_, _>>();
        let _ = sender.send(tokens.map(|tokens| (tokens, permit)));
    });
    let encoded = receiver.await;
    encoded.map_err(|_| ApiError::internal("server: encoding the prompt led to a panic"))?
}

/// Encodes the prompts, submits a request for each and waits until the engine has taken them.
async fn submit(
    app: Arc<App>,
    client: Client,
    kind: Kind,
    params: &Params,
    prompts: Vec<Prompt>,
    permit: OwnedSemaphorePermit,
    started: Instant,
) -> Result<Answer, ApiError> {
    let id = match kind {
        Kind::Completion => format!("cmpl-{:016x}", random()),
        Kind::Chat => format!("chatcmpl-{:016x}", random()),
    };
    if app.logs_prompts {
        for prompt in &prompts {
            info!(id, prompt = prompt.logged(), "prompt");
        }
    }
    let (prompts, permit) = encode(app.clone(), kind, prompts, permit).await?;
    let count = prompts.len();
    let prompt_tokens = prompts.iter().map(Vec::len).sum();
    let requests = prompts.into_iter().enumerate();
    let requests = requests.map(|(at, tokens)| request(&app, client, params, at, tokens));
    let requests = requests.collect::<Result<Vec<_>, _>>()?;
    // Those that are queued are cancelled if another is refused.
    let queued = requests.into_iter().map(|request| app.engine.submit(request));
    let queued = queued.collect::<Result<Vec<_>, _>>()?;
    let mut submitted = Vec::new();
    for (at, mut updates) in queued.into_iter().enumerate() {
        let completions = match updates.next().await {
            Some(Update::Accepted(accepted)) => accepted.completions,
            Some(Update::Refused(error)) => return Err(refused(&error, &place(kind, at, count))),
            _ => return Err(ApiError::ending()),
        };
        // In a group that is kept, indices go on.
        let first = completions.first().map_or(0, |completion| completion.index);
        submitted.push(Submitted { updates, first, completions: completions.len() });
    }
    let is_known = submitted.first().is_some_and(|submitted| submitted.first > 0);
    let group = |name: &String| Group { name: name.clone(), is_known };
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
    let served = Served { _permit: permit, started };
    Ok(Answer::new(app, reply, submitted, prompt_tokens, served))
}

/// The request to the engine for the completions of one prompt, the one at `at` of a list.
fn request(
    app: &App,
    client: Client,
    params: &Params,
    at: usize,
    tokens: Vec<TokenId>,
) -> Result<esamp::Request, ApiError> {
    // Memory is set aside for the whole length, so a request that names none does not get the whole context.
    let room = app.context_length.map_or(usize::MAX, |length| length.saturating_sub(tokens.len()));
    let max_new_tokens =
        params.max_new_tokens.unwrap_or(app.limits.default_tokens.min(room.max(1)));
    let min_new_tokens = params.min_new_tokens;
    if min_new_tokens > max_new_tokens {
        let expected = format!("at most max_tokens, {max_new_tokens}");
        return Err(ApiError::field("min_tokens", &expected, &min_new_tokens.to_string()));
    }
    // The prompts of a list have seeds of their own, so that equal ones have different completions.
    let seed = (params.seed as u64).wrapping_add(at as u64);
    let mut request = esamp::Request::new(tokens)
        .with_completions(params.completions)
        .with_max_new_tokens(max_new_tokens)
        .with_min_new_tokens(min_new_tokens)
        .with_seed(seed)
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
    Ok(request)
}
