//! Reads the body of a request, with limits.
//!
//! The layers of tower do not do this: `RequestBodyLimitLayer` and axum's `DefaultBodyLimit` answer in plain text while
//! the client still sends, so that it sees a reset; `TimeoutLayer` bounds the time to the response, which for completions
//! is theirs to take, and `RequestBodyTimeoutLayer` the time between two parts of a body, so that a slow client never
//! ends; `ConcurrencyLimitLayer` counts a request until its response begins, not until its stream has ended.

use std::time::Duration;

use axum::{
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::BodyExt;
use serde_json::Value;

use crate::error::ApiError;

/// Bytes beyond the limit that are read and dropped, because a client that is still sending does not see a response.
const DROPPED: usize = 64 << 20;

/// Reads a JSON body of at most `limit` bytes that arrives within `timeout`.
pub(crate) async fn json(
    request: Request,
    limit: usize,
    timeout: Duration,
) -> Result<Value, ApiError> {
    // Also keeps a web page of another origin from sending requests: browsers ask first for this type.
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let is_json = kind
        .split(';')
        .next()
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        let message = "Content-Type: expected application/json, got another or none";
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "unsupported_media_type", message));
    }
    let bytes = tokio::time::timeout(timeout, bytes(request, limit)).await;
    let bytes = bytes.map_err(|_| {
        let message = format!("body: expected all of it within {} s", timeout.as_secs());
        ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message)
    })??;
    if let Err(error) = std::str::from_utf8(&bytes) {
        let message =
            format!("body: expected UTF-8, got an invalid byte at offset {}", error.valid_up_to());
        return Err(ApiError::request("invalid_utf8", message));
    }
    serde_json::from_slice(&bytes).map_err(|error| {
        ApiError::request("invalid_json", format!("body: expected JSON, got: {error}"))
    })
}

async fn bytes(request: Request, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut body = request.into_body();
    let (mut bytes, mut length) = (Vec::new(), 0usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            ApiError::request("invalid_request", format!("body: expected all of it, got: {error}"))
        })?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        length = length.saturating_add(data.len());
        if length > limit.saturating_add(DROPPED) {
            break;
        }
        if length > limit {
            bytes = Vec::new();
        } else {
            bytes.extend_from_slice(&data);
        }
    }
    if length > limit {
        let message = format!("body: expected at most {limit} bytes, got more");
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(bytes)
}
