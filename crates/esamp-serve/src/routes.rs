//! The paths of the server.

use std::{any::Any, sync::Arc};

use axum::{
    Extension, Router,
    extract::{MatchedPath, Path, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    app::{App, Kind},
    error::{ApiError, json_response},
    generate::generate,
    hosts::check_host,
    keys::Client,
    metrics::CONTENT_TYPE,
    page,
};

/// The paths, with everything that is done for all of them.
pub(crate) fn router(app: Arc<App>) -> Router {
    let with_key = Router::new()
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(models))
        .route("/v1/models/{*model}", get(model))
        .route("/metrics", get(show_metrics))
        .route_layer(from_fn_with_state(app.clone(), authenticate));
    Router::new()
        .route("/", get(show_page))
        .route("/health", get(health))
        .merge(with_key)
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), check_host))
        .layer(from_fn_with_state(app.clone(), count))
        .with_state(app)
}

fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    ApiError::internal("server: the request led to a panic").into_response()
}

async fn authenticate(
    State(app): State<Arc<App>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let client = app.keys.client(request.headers())?;
    request.extensions_mut().insert(client);
    Ok(next.run(request).await)
}

/// Counts responses. Paths that do not exist are counted together, so that clients cannot make the table grow.
async fn count(
    State(app): State<Arc<App>>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let path = path.map_or_else(|| "other".to_owned(), |path| path.as_str().to_owned());
    let mut response = next.run(request).await;
    if app.traffic.connections.get() > app.limits.connections as i64 {
        // The spare connections are for everyone.
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let status = response.status().as_u16();
    tracing::debug!(path, status, "response");
    app.traffic.responses.with_label_values(&[&path, response.status().as_str()]).inc();
    response
}

async fn completions(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    generate(app, client, Kind::Completion, request).await
}

async fn chat(
    State(app): State<Arc<App>>,
    Extension(client): Extension<Client>,
    request: Request,
) -> Result<Response, ApiError> {
    generate(app, client, Kind::Chat, request).await
}

fn described(app: &App) -> Value {
    json!({
        "id": app.model, "object": "model", "created": app.started, "owned_by": "esamp",
        "max_model_len": app.context_length, "weight_bytes": app.weight_bytes,
    })
}

async fn models(State(app): State<Arc<App>>) -> Response {
    json_response(StatusCode::OK, &json!({"object": "list", "data": [described(&app)]}))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    if name == app.model {
        return Ok(json_response(StatusCode::OK, &described(&app)));
    }
    let error = ApiError::field("model", &format!("{:?}", app.model), "another");
    Err(ApiError { status: StatusCode::NOT_FOUND, code: "model_not_found", ..error })
}

async fn health(State(app): State<Arc<App>>) -> Response {
    if app.engine.is_running() {
        return json_response(StatusCode::OK, &json!({"status": "ok"}));
    }
    json_response(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "ending"}))
}

async fn show_metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    let text = app.traffic.text(&app.engine);
    let text = text.map_err(|error| ApiError::internal(format!("metrics: {error}")))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text))
}

async fn show_page(State(app): State<Arc<App>>) -> Html<String> {
    Html(page::page(&app))
}

async fn no_such_path() -> ApiError {
    let message = "path: expected one of this API, such as /v1/completions, got another";
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn no_such_method(method: Method) -> ApiError {
    let message = format!("method: expected another for this path, got {method}");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
