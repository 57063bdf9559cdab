//! One connection. Where a head is malformed, too long or too slow, hyper sends a status without a body, or nothing;
//! here those clients get an error in the same shape as all others.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, http::StatusCode};
use hyper::{Error, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::timeout,
};
use tokio_io_timeout::TimeoutStream;
use tracing::debug;

use crate::{app::App, error::ApiError};

/// The buffer of a connection, and so the longest head. Small, so that the engine notices soon that a client does not
/// read.
pub(crate) const BUFFER: usize = 32 << 10;

/// How long, and for how many bytes, a client may go on sending after it was refused. It does not see the answer if the
/// connection is reset, which is what closing does to one with unread bytes.
const LINGER: (Duration, u64) = (Duration::from_secs(2), 1 << 20);

/// How connections are served.
pub(crate) fn protocol(app: &App) -> http1::Builder {
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(app.limits.client_timeout)
        .max_buf_size(BUFFER);
    protocol
}

/// Serves a connection until it ends. Once `stop` changes, it ends after the response that is being written.
pub(crate) async fn connection(
    app: Arc<App>,
    protocol: http1::Builder,
    socket: TcpStream,
    router: Router,
    mut stop: watch::Receiver<()>,
) {
    let limit = app.limits.client_timeout;
    let io = TokioIo::new(Wire::new(socket, limit));
    let mut connection = protocol.serve_connection(io, TowerToHyperService::new(router));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        _ = stop.changed() => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = &ended {
        debug!(%error, "connection");
    }
    // The handler of a request that is being answered ends here.
    let parts = connection.into_parts();
    let wire = parts.io.into_inner();
    let Some(error) = refusal(ended.err(), &wire, &parts.read_buf, limit) else { return };
    app.traffic.responses.with_label_values(&["other", error.status.as_str()]).inc();
    if let Err(error) = refuse(wire.io, &error).await {
        debug!(%error, "connection");
    }
}

/// What to tell a client that has got no answer. `read` is what it has sent of its next request.
fn refusal(ended: Option<Error>, wire: &Wire, read: &[u8], limit: Duration) -> Option<ApiError> {
    if let Some(status) = wire.refused {
        return Some(refused_head(status, ended.as_ref(), read));
    }
    let error = ended?;
    if error.is_timeout() && !read.is_empty() {
        let message = format!("headers: expected all of them within {} s", limit.as_secs());
        return Some(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message));
    }
    if error.is_incomplete_message() && wire.is_awaited {
        let message = if read.is_empty() {
            "connection: expected it to stay open until the response is read, got the end of the client's sending half"
        } else {
            "headers: expected all of them, got the end of the connection"
        };
        return Some(ApiError::request("connection_closed", message));
    }
    // The beginning of HTTP/2.
    error.is_parse().then(|| refused_head(StatusCode::BAD_REQUEST, Some(&error), read))
}

/// The error for a head that hyper has refused.
fn refused_head(status: StatusCode, why: Option<&Error>, read: &[u8]) -> ApiError {
    match status {
        // Not even the first line has an end.
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE if !read.contains(&b'\n') => {
            let message = format!("path: expected a head of at most {BUFFER} bytes, got more");
            ApiError::new(StatusCode::URI_TOO_LONG, "path_too_long", message)
        }
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            let message =
                format!("headers: expected at most {BUFFER} bytes in 100 fields, got more");
            ApiError::new(status, "headers_too_large", message)
        }
        _ => {
            let why = why.map_or_else(|| "another".to_owned(), Error::to_string);
            let message = format!("request: expected a head of HTTP/1.1, got: {why}");
            ApiError::new(status, "invalid_http", message)
        }
    }
}

/// Sends an error, closes the sending half and waits a moment for the client to close the other.
async fn refuse(mut io: Io, error: &ApiError) -> io::Result<()> {
    io.write_all(&error.last_response()).await?;
    io.shutdown().await?;
    let (time, bytes) = LINGER;
    let mut rest = io.take(bytes);
    let mut dropped = vec![0; 4096];
    let drain = async {
        while rest.read(&mut dropped).await? > 0 {}
        io::Result::Ok(())
    };
    timeout(time, drain).await.unwrap_or(Ok(()))
}

type Io = Pin<Box<TimeoutStream<TcpStream>>>;

/// The socket of a connection. It knows whether the client awaits an answer, and holds back the bare status of hyper.
struct Wire {
    io: Io,
    /// Nothing has been written since the client last sent something.
    is_awaited: bool,
    /// The status that hyper has refused a request with.
    refused: Option<StatusCode>,
}

impl Wire {
    /// A client that does not read for as long as `limit` does not keep its connection.
    fn new(socket: TcpStream, limit: Duration) -> Self {
        let mut io = TimeoutStream::new(socket);
        io.set_write_timeout(Some(limit));
        Self { io: Box::pin(io), is_awaited: false, refused: None }
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = self.io.as_mut().poll_read(context, buffer);
        self.is_awaited |= buffer.filled().len() > before;
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(status) = bare_status(bytes) {
            self.refused = Some(status);
            return Poll::Ready(Ok(bytes.len()));
        }
        self.is_awaited = false;
        self.io.as_mut().poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            return Poll::Ready(Ok(())); // the error comes first
        }
        self.io.as_mut().poll_shutdown(context)
    }
}

/// The status of a response of hyper's own: the head of an error, and no body. All errors of the router have one, and
/// no line of a body begins like a head, because all bodies are JSON, events of JSON, metrics or the page.
fn bare_status(bytes: &[u8]) -> Option<StatusCode> {
    const LONGEST: usize = 512;
    if bytes.len() > LONGEST {
        return None;
    }
    let head = std::str::from_utf8(bytes.strip_suffix(b"\r\n\r\n")?).ok()?;
    let mut lines = head.split("\r\n");
    let status: StatusCode = lines.next()?.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
    let is_bare = lines.any(|line| line.eq_ignore_ascii_case("content-length: 0"));
    (status.is_client_error() && is_bare).then_some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_head_of_an_error_without_a_body_is_held_back() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(bare_status(bare), Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
        for other in [
            &b"HTTP/1.1 400 Bad Request\r\ncontent-length: 12\r\n\r\n"[..],
            b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\nmore",
            b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            b"data: HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n",
            b"",
        ] {
            assert_eq!(bare_status(other), None, "{other:?}");
        }
    }
}
