//! Serving a router over HTTP/1.1 until told to stop.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

/// How long a client may take to send the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to wait after the system refused a connection, most often because too many files are open.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// Serves `router` until `stop`, then lets open requests finish for up to `drain`.
pub async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, drain: Duration) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let builder = Arc::new(builder);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(AFTER_REFUSAL).await;
                continue;
            }
        };
        // Without it, small answers would wait for the client's acknowledgement of the one before.
        drop(stream.set_nodelay(true));
        let (builder, router, stop) = (builder.clone(), router.clone(), stop.clone());
        connections.spawn(async move {
            let service =
                service_fn(move |request: http::Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
            let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
            let mut connection = std::pin::pin!(connection);
            tokio::select! {
                // An error here is a client that went away or sent no HTTP; it has been answered as far as it can be.
                ended = connection.as_mut() => drop(ended),
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    drop(connection.await);
                }
            }
        });
    }
    connections.close();
    drop(tokio::time::timeout(drain, connections.wait()).await);
}
