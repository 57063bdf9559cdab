//! Accepts connections, and ends them when the server is told to stop.

use std::{
    io,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_io_timeout::TimeoutStream;
use tracing::{debug, info, warn};

use crate::{
    app::{App, Limits},
    routes::router,
};

/// The buffer of a connection. Small, so that the engine notices soon that a client does not read.
const BUFFER: usize = 32 << 10;

/// How long responses may take to reach their clients after their completions have been cancelled.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Serves until `stop` is ready. Then it accepts no more connections and requests, lets the open ones end for `grace`,
/// and cancels those that are left.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    stop: impl Future<Output = ()>,
    grace: Duration,
) {
    let open = GracefulShutdown::new();
    accept(listener, &app, stop, &open).await;
    info!(open = app.traffic.open.get(), "stopping");
    let engine = app.engine.clone();
    // Refuses what still arrives on open connections. The thread ends with the engine.
    std::thread::spawn(move || engine.drain());
    let mut ended = pin!(open.shutdown());
    let are_open = timeout(grace, &mut ended).await.is_err();
    if are_open {
        warn!(open = app.traffic.open.get(), "cancelling");
    }
    app.is_stopping.store(true, Ordering::Relaxed);
    let engine = app.engine.clone();
    let stopped = tokio::task::spawn_blocking(move || engine.stop());
    if are_open {
        let _ = timeout(LAST_WORDS, ended).await;
    }
    let _ = timeout(LAST_WORDS, stopped).await;
    info!("stopped");
}

async fn accept(
    listener: TcpListener,
    app: &Arc<App>,
    stop: impl Future<Output = ()>,
    open: &GracefulShutdown,
) {
    let router = router(app.clone());
    let places = Arc::new(Semaphore::new(app.limits.connections + Limits::SPARE));
    let mut protocol = http1::Builder::new();
    protocol
        .timer(TokioTimer::new())
        .header_read_timeout(app.limits.client_timeout)
        .max_buf_size(BUFFER);
    let mut stop = pin!(stop);
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.map_err(io::Error::other)?;
            let (socket, _) = listener.accept().await?;
            Ok::<_, io::Error>((place, socket))
        };
        let (place, socket) = tokio::select! {
            next = next => match next {
                Ok(next) => next,
                Err(error) => {
                    // Too many open files, or a client that has gone already.
                    warn!(%error, "accept");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => return,
        };
        let _ = socket.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let io = TokioIo::new(Box::pin(with_timeout(socket, app.limits.client_timeout)));
        let connection = open.watch(protocol.serve_connection(io, service));
        let counted = Counted::new(app.clone(), place);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection");
            }
            drop(counted);
        });
    }
}

/// A client that does not read does not keep its connection.
fn with_timeout(socket: TcpStream, limit: Duration) -> TimeoutStream<TcpStream> {
    let mut stream = TimeoutStream::new(socket);
    stream.set_write_timeout(Some(limit));
    stream
}

/// An open connection, in the metrics and in the limit.
struct Counted {
    app: Arc<App>,
    _place: OwnedSemaphorePermit,
}

impl Counted {
    fn new(app: Arc<App>, place: OwnedSemaphorePermit) -> Self {
        app.traffic.connections.inc();
        Self { app, _place: place }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.app.traffic.connections.dec();
    }
}
