//! HTTP/1.1 over kept-alive connections, each with one request in flight.

use crate::report::Histogram;
use anyhow::{Context, Result, bail, ensure};
use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

/// A server that has not answered one request for so long is stuck, and so would the measurement be.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that breaks so many times without an answer in between ends the run.
const MAX_BREAKS_IN_A_ROW: u32 = 3;
/// The largest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What one run did.
pub(crate) struct Load {
    /// Operations answered with a 2xx status (answers times operations per request).
    pub(crate) ops: u64,
    /// Requests without an answer because their connection broke; it was opened again. Zero in a healthy run.
    pub(crate) errors: u64,
    /// From the first request to the last answer. Connecting is not in it.
    pub(crate) elapsed: Duration,
    /// One value per answered request, from its first byte sent to its last byte received.
    pub(crate) latency: Histogram,
}

/// Keeps `connections` requests in flight for `duration`, then lets the last ones finish.
///
/// `make_request` gets the number of the request (from 0, each once, over all connections) and returns its bytes, as
/// [`request`] makes them. Each request counts as `ops_per_request` operations.
///
/// # Errors
/// Any answer other than 2xx ends the run, with that answer's status and body. So does a server that cannot be reached,
/// that breaks one connection four times in a row, or that leaves a request unanswered for 30 s.
pub(crate) async fn run(
    addr: SocketAddr,
    connections: usize,
    duration: Duration,
    make_request: impl Fn(u64) -> Vec<u8> + Send + Sync + 'static,
    ops_per_request: u64,
) -> Result<Load> {
    ensure!(connections > 0, "a load needs at least one connection");
    let mut opened = Vec::with_capacity(connections);
    for _ in 0..connections {
        opened.push(Connection::open(addr).await?);
    }
    let make_request = Arc::new(make_request);
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut drivers = JoinSet::new();
    for connection in opened {
        drivers.spawn(drive(connection, start + duration, Arc::clone(&make_request), Arc::clone(&next)));
    }

    let mut load = Load { ops: 0, errors: 0, elapsed: Duration::ZERO, latency: Histogram::new() };
    while let Some(driven) = drivers.join_next().await {
        // Leaving early drops the set, which ends the other drivers.
        let (latency, errors) = driven.context("a load driver panicked")??;
        load.latency.merge(&latency);
        load.errors += errors;
    }
    load.elapsed = start.elapsed();
    load.ops = load.latency.count() * ops_per_request;
    Ok(load)
}

/// Sends one request after the other until `end`; returns the latencies and the number of broken connections.
async fn drive(
    mut connection: Connection,
    end: Instant,
    make_request: Arc<impl Fn(u64) -> Vec<u8>>,
    next: Arc<AtomicU64>,
) -> Result<(Histogram, u64)> {
    let (mut latency, mut errors, mut breaks) = (Histogram::new(), 0, 0);
    while Instant::now() < end {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let request = make_request(number);
        let sent = Instant::now();
        match connection.exchange(&request).await {
            Ok(Answer { status: 200..=299, .. }) => {
                latency.record(sent.elapsed());
                breaks = 0;
            }
            Ok(Answer { status, body }) => {
                bail!("request {number} was answered with status {status}: {}", String::from_utf8_lossy(body));
            }
            Err(error) if breaks < MAX_BREAKS_IN_A_ROW && is_break(&error) => {
                errors += 1;
                breaks += 1;
                connection = Connection::open(connection.addr).await?;
            }
            Err(error) => return Err(error).with_context(|| format!("request {number}")),
        }
    }
    Ok((latency, errors))
}

/// Whether the other side closed the connection, rather than answering something that cannot be read.
fn is_break(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

/// The bytes of a request. `authorization` and `body` are left out when empty.
pub(crate) fn request(method: &str, path: &str, authorization: &str, body: &str) -> Vec<u8> {
    let authorization =
        if authorization.is_empty() { String::new() } else { format!("authorization: {authorization}\r\n") };
    let content = if body.is_empty() { "" } else { "content-type: application/json\r\n" };
    let length = body.len();
    format!("{method} {path} HTTP/1.1\r\nhost: bench\r\n{authorization}{content}content-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// An answer; the body lies in the connection's buffer until the next exchange.
pub(crate) struct Answer<'a> {
    /// The status code.
    pub(crate) status: u16,
    /// The whole body.
    pub(crate) body: &'a [u8],
}

/// One kept-alive connection, for loads whose next request depends on the last answer (claim, then settle).
pub(crate) struct Connection {
    addr: SocketAddr,
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects, with Nagle's algorithm off.
    ///
    /// # Errors
    /// If nothing listens at `addr`.
    pub(crate) async fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.with_context(|| format!("connecting to http://{addr}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { addr, stream, buffer: Vec::with_capacity(4096) })
    }

    /// Sends `request` and reads the answer to its end, whatever the status. After an error the connection is of no
    /// further use.
    ///
    /// # Errors
    /// `UnexpectedEof` and the like when the connection breaks, `TimedOut` after 30 s, `InvalidData` for an answer that is
    /// not HTTP/1.1 or has no `Content-Length` (chunked bodies are not read).
    pub(crate) async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer<'_>> {
        let Self { stream, buffer, .. } = self;
        let head = tokio::time::timeout(ANSWER_TIMEOUT, async {
            stream.write_all(request).await?;
            buffer.clear();
            let head = loop {
                fill(stream, buffer).await?;
                if let Some(head) = parse_head(buffer)? {
                    break head;
                }
            };
            while buffer.len() < head.body_start + head.body_len {
                fill(stream, buffer).await?;
            }
            Ok::<_, io::Error>(head)
        })
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer within 30 s"))??;
        Ok(Answer { status: head.status, body: &self.buffer[head.body_start..][..head.body_len] })
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection before its answer"));
    }
    Ok(())
}

#[derive(Debug, PartialEq)]
struct Head {
    status: u16,
    body_start: usize,
    body_len: usize,
}

/// Reads status and `Content-Length`; `None` while the head is incomplete.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() > MAX_HEAD_BYTES { Err(invalid("a head of more than 16 KiB")) } else { Ok(None) };
    };
    let head = std::str::from_utf8(&bytes[..end]).map_err(|_| invalid("a head that is not text"))?;
    let mut lines = head.split("\r\n");
    let status: u16 = lines
        .next()
        .and_then(|line| line.strip_prefix("HTTP/1.1 "))
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid("no HTTP/1.1 status line"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse().map_err(|_| invalid("a Content-Length that is no number")));
    let body_len = match length {
        Some(length) => length?,
        None if status == 204 || status == 304 => 0,
        None => return Err(invalid("an answer without Content-Length")),
    };
    Ok(Some(Head { status, body_start: end + 4, body_len }))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("expected an answer with a Content-Length, found {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[test]
    fn a_head_is_read_however_its_header_is_written() {
        let bytes = b"HTTP/1.1 201 Created\r\nDate: x\r\nCONTENT-length:  5\r\n\r\nhello";
        assert_eq!(parse_head(bytes).unwrap(), Some(Head { status: 201, body_start: 53, body_len: 5 }));
        assert_eq!(parse_head(&bytes[..48]).unwrap(), None);
        let empty = parse_head(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap();
        assert_eq!((empty.status, empty.body_len), (204, 0));
        assert!(parse_head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(parse_head(b"SSH-2.0\r\n\r\n").is_err());
    }

    /// Answers each request on each connection with `answer`, and closes a connection after `per_connection` of them.
    async fn server(answer: &'static str, per_connection: usize) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    for _ in 0..per_connection {
                        if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                            return;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        addr
    }

    fn get(_: u64) -> Vec<u8> {
        request("GET", "/", "", "")
    }

    #[tokio::test]
    async fn each_answer_counts_as_many_operations_as_its_request_has() {
        let addr = server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", usize::MAX).await;
        let load = run(addr, 4, Duration::from_millis(50), get, 100).await.unwrap();
        assert_eq!(load.ops, load.latency.count() * 100);
        assert!(load.ops > 0 && load.errors == 0 && load.elapsed >= Duration::from_millis(50));
    }

    #[tokio::test]
    async fn the_first_refusal_ends_the_run_and_shows_its_body() {
        let addr = server("HTTP/1.1 403 Forbidden\r\ncontent-length: 4\r\n\r\nnope", usize::MAX).await;
        let error = run(addr, 2, Duration::from_secs(60), get, 1).await.err().unwrap().to_string();
        assert!(error.contains("403") && error.contains("nope"), "{error}");
    }

    #[tokio::test]
    async fn a_connection_closed_by_the_server_is_counted_and_opened_again() {
        let addr = server("HTTP/1.1 204 No Content\r\n\r\n", 10).await;
        let load = run(addr, 1, Duration::from_millis(50), get, 1).await.unwrap();
        assert!(load.errors > 0 && load.ops > load.errors, "{} errors, {} ops", load.errors, load.ops);
    }
}
