//! Serving a router over HTTP/1.1 until told to stop.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tidewire_gateway::Hangup;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait after the system refused a connection, most often because too many files are open.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// The address at the other end of a connection, in the extensions of every request on it. IPv4 addresses are written as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub IpAddr);

/// The place of a connection among the most that are open, in the extensions of every request on it.
#[derive(Clone, Debug)]
pub(crate) struct Place(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Place {
    /// Lets another connection in, because somebody else counts this one from now on.
    pub(crate) fn give_back(&self) {
        drop(self.0.lock().take());
    }
}

/// Serves `router` until `stop`, then refuses new connections and lets open requests finish for up to `drain`.
///
/// At most `most` connections are open, those not counted that have become a `WebSocket` or a stream. Over that, the next ones wait in the system's queue until one closes.
pub async fn serve(most: usize, listener: TcpListener, router: Router, stop: CancellationToken, drain: Duration) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let builder = Arc::new(builder);
    let connections = TaskTracker::new();
    let mut places = Places { free: Arc::new(Semaphore::new(most)), full: false };
    loop {
        let accepted = async { (places.take().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok((stream, address)) => (stream, Peer(address.ip().to_canonical())),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            }
        };
        tidewire_gateway::tune(&stream);
        let (builder, router, stop) = (builder.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            let place = Place(Arc::new(Mutex::new(place)));
            let hangup = Hangup::default();
            let asked = hangup.clone();
            let service = service_fn(move |request: http::Request<Incoming>| {
                let mut request = request.map(Body::new);
                let extensions = request.extensions_mut();
                extensions.insert(peer);
                extensions.insert(place.clone());
                extensions.insert(hangup.clone());
                router.clone().oneshot(request)
            });
            let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let mut stopping = false;
            loop {
                tokio::select! {
                    // An error here is a client that went away or sent no HTTP; it has been answered as far as it can be.
                    ended = connection.as_mut() => return drop(ended),
                    () = stop.cancelled(), if !stopping => {
                        stopping = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    within = asked.asked() => return drop(tokio::time::timeout(within, connection).await),
                }
            }
        });
    }
    // New clients are refused from here on, instead of waiting for an answer that never comes.
    drop(listener);
    connections.close();
    drop(tokio::time::timeout(drain, connections.wait()).await);
}

/// Room for connections.
struct Places {
    free: Arc<Semaphore>,
    /// Whether the last connection had to wait for its place, so that a long rush is one line in the log.
    full: bool,
}

impl Places {
    /// A place, held until it is dropped. Nothing only if the semaphore were closed, which nobody does.
    async fn take(&mut self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.free.clone().try_acquire_owned() {
            self.full = false;
            return Some(place);
        }
        if !std::mem::replace(&mut self.full, true) {
            tracing::warn!("the most HTTP connections are open; new ones wait until one closes");
        }
        self.free.clone().acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        address: std::net::SocketAddr,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    async fn start(most: usize, router: Router) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let stop = CancellationToken::new();
        let task = tokio::spawn(serve(most, listener, router, stop.clone(), Duration::from_secs(60)));
        Server { address, stop, task }
    }

    async fn ask(client: &mut TcpStream) {
        client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("sent");
    }

    async fn is_answered(client: &mut TcpStream) {
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 200");
    }

    #[tokio::test]
    async fn a_connection_over_the_most_waits_until_one_closes() {
        let server = start(1, Router::new().route("/", get(async || "ok"))).await;
        let mut first = TcpStream::connect(server.address).await.expect("a connection");
        ask(&mut first).await;
        is_answered(&mut first).await;
        let mut second = TcpStream::connect(server.address).await.expect("a place in the system's queue");
        ask(&mut second).await;
        let early = tokio::time::timeout(Duration::from_millis(100), second.readable()).await;
        assert!(early.is_err(), "the second is answered while the first is open");
        drop(first);
        is_answered(&mut second).await;
        server.stop.cancel();
        server.task.await.expect("the server ends");
    }

    #[tokio::test]
    async fn a_stop_refuses_new_connections_and_finishes_open_requests() {
        let begun = Arc::new(Semaphore::new(0));
        let released = CancellationToken::new();
        let handler = {
            let (begun, released) = (begun.clone(), released.clone());
            async move || {
                begun.add_permits(1);
                released.cancelled().await;
                "ok"
            }
        };
        let server = start(10, Router::new().route("/", get(handler))).await;
        let mut client = TcpStream::connect(server.address).await.expect("a connection");
        ask(&mut client).await;
        drop(begun.acquire().await);
        server.stop.cancel();
        // The accept loop ends in its own time, so a connection may still get in just before.
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        released.cancel();
        is_answered(&mut client).await;
        server.task.await.expect("the server ends");
    }
}
