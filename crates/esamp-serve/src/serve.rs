//! Accepts connections, and ends them when the server is told to stop.

use std::{
    io,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpSocket},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

use crate::{
    app::{App, Limits},
    connection::{BUFFER, connection, protocol},
    routes::router,
};

/// Connections that the system holds until they are accepted.
const BACKLOG: u32 = 1024;

/// How long responses may take to reach their clients after their completions have been cancelled.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Listens on an address. Connections get a send buffer of a fixed size, which the system doubles: one that grows, to
/// 4 MB on Linux, would take in 18,000 events before anyone notices that their client does not read.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As TcpListener::bind. On Windows it would let another program take the address.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(BUFFER as u32)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until `stop` is ready. Then it accepts no more connections and requests, lets the open ones end for `grace`,
/// or until `stop` is ready again, and cancels those that are left.
pub async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    mut stop: impl AsyncFnMut(),
    grace: Duration,
) {
    let (ending, open) = watch::channel(());
    accept(listener, &app, stop(), open).await;
    info!(open = app.traffic.open.get(), "stopping");
    let engine = app.engine.clone();
    // Refuses what still arrives on open connections. The thread ends with the engine.
    std::thread::spawn(move || engine.drain());
    let _ = ending.send(()); // an error means that no connection is open
    let mut ended = pin!(ending.closed());
    let are_open = tokio::select! {
        () = &mut ended => false,
        () = sleep(grace) => true,
        () = stop() => true,
    };
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
    open: watch::Receiver<()>,
) {
    let router = router(app.clone());
    let places = Arc::new(Semaphore::new(app.limits.connections + Limits::SPARE));
    let protocol = protocol(app);
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
        let counted = Counted::new(app.clone(), place);
        let served =
            connection(app.clone(), protocol.clone(), socket, router.clone(), open.clone());
        tokio::spawn(async move {
            served.await;
            drop(counted);
        });
    }
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
