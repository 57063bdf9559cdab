//! Errors in the shape of OpenAI's API.

use axum::{
    body::Body,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use esamp::{
    engine::EngineError,
    errors::{ConfigError, RequestError},
};
use serde_json::{Value, json};

/// An error that a client gets: a status, and a body that names the field, what was expected and what was sent.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub status: StatusCode,
    /// The field of the request that is wrong.
    pub param: Option<String>,
    pub code: &'static str,
    pub message: String,
    pub retry_after: Option<u32>,
}

impl ApiError {
    pub fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, param: None, code, message: message.into(), retry_after: None }
    }

    /// A request that is wrong as a whole.
    pub fn request(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// A field with a wrong value.
    pub fn field(param: impl Into<String>, expected: &str, got: &str) -> Self {
        let param = param.into();
        let message = format!("{param}: expected {expected}, got {got}");
        Self { param: Some(param), ..Self::request("invalid_value", message) }
    }

    /// A field that is meant for something this server cannot do.
    pub fn unsupported(param: &str, why: &str) -> Self {
        let error = Self::request("unsupported_value", format!("{param}: {why}"));
        Self { param: Some(param.to_owned()), ..error }
    }

    pub fn with_param(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// The server has too much to do.
    pub fn busy(message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "engine_busy", message);
        Self { retry_after: Some(1), ..error }
    }

    /// The server is about to end.
    pub fn ending() -> Self {
        let message = "server: expected one that accepts requests, got one that is shutting down";
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", message);
        Self { retry_after: Some(5), ..error }
    }

    /// The model or the server failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// OpenAI's name for this kind of error.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The whole response as bytes, for a connection that is closed after it.
    pub(crate) fn last_response(&self) -> Vec<u8> {
        let body = self.body().to_string();
        let length = body.len();
        let head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n",
            self.status
        );
        [head, body].concat().into_bytes()
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        json!({"error": {
            "message": self.message, "type": self.kind(), "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.body());
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Busy { .. } => Self::busy(error.to_string()),
            _ => Self::ending(),
        }
    }
}

/// What the decode loop refuses. `prompt` is the field that the prompt is in.
pub fn refused(error: &RequestError, prompt: &str) -> ApiError {
    let message = error.to_string();
    let wrong = |code, param: &str| ApiError::request(code, message.clone()).with_param(param);
    match error {
        RequestError::PromptTooLong { prompt: tokens, limit } => {
            let expected =
                format!("at most {} tokens, to leave room for a new one", limit.saturating_sub(1));
            let error = ApiError::field(prompt, &expected, &format!("{tokens} tokens"));
            ApiError { code: "context_length_exceeded", ..error }
        }
        RequestError::UnknownToken { place: "logit bias", .. } => {
            wrong("invalid_value", "logit_bias")
        }
        RequestError::UnknownToken { place: "sequence breaker", .. } => {
            wrong("invalid_value", "dry_sequence_breakers")
        }
        RequestError::EmptyPrompt | RequestError::UnknownToken { .. } => {
            wrong("invalid_value", prompt)
        }
        RequestError::TooManyCompletions { .. } => wrong("invalid_value", "n"),
        RequestError::CacheLimit { .. } | RequestError::MemoryLimit { .. } => {
            wrong("memory_limit_exceeded", "max_tokens")
        }
        RequestError::GroupSharing { .. } => wrong("unsupported_value", "esamp.group"),
        RequestError::GroupLimit { .. } => ApiError::busy(message).with_param("esamp.group"),
        RequestError::Config(ConfigError::OutOfRange { setting, .. }) => {
            wrong("invalid_value", &setting.replace(' ', "_"))
        }
        RequestError::NoPromptId => ApiError::internal(message),
        _ => ApiError::request("invalid_request", message),
    }
}
