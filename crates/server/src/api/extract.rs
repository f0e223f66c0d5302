//! From a raw request to typed values: the caller, the body, the query.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, FailedToBufferBody};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::Idempotency;
use tidewire_core::time::format_duration;
use tidewire_core::{Error, Kind, Result, TenantId};

use super::{Api, Shared};
use crate::auth::Caller;
use crate::problem::Problem;

/// How long a client may take to send the body of a request. The largest that is taken by default needs 2.3 Mbit/s.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How much of a body that is too large is still read, and for how long, so that its sender sees the answer.
const MAX_DISCARDED_BYTES: usize = 64 * 1024 * 1024;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(api.keys.verify(authorization)?)
    }
}

/// The query string as `T`. Code `request.invalid`.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _api: &Shared) -> Result<Self, Problem> {
        Ok(Self::of(&parts.uri)?)
    }
}

impl<T: DeserializeOwned> Query<T> {
    pub(super) fn of(uri: &Uri) -> Result<Self> {
        axum::extract::Query::try_from_uri(uri).map(|query| Self(query.0)).map_err(|error| {
            let error: &dyn std::error::Error = &error;
            let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Error::invalid("request.invalid", format!("query: {detail}"))
        })
    }
}

/// A request of which the caller and the headers are known and the body is read within the limit.
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) body: Bytes,
    headers: HeaderMap,
    path: String,
}

impl Call {
    /// Reads a call that has no query: what stands in one would otherwise be passed over, a tenant for instance. Codes of
    /// [`Self::read_beside_query`], and `request.invalid`.
    pub(super) async fn read(api: &Api, request: Request<Body>) -> Result<Self, Problem> {
        let has_query = request.uri().query().is_some_and(|query| !query.is_empty());
        let call = Self::read_beside_query(api, request).await?;
        if has_query {
            return Err(
                Error::invalid("request.invalid", "query: this call takes none; its body says all of it").into()
            );
        }
        Ok(call)
    }

    /// Verifies the caller, then reads the body. The query is read elsewhere. Codes of [`crate::auth::ApiKeys::verify`] and of
    /// [`read_body`].
    pub(super) async fn read_beside_query(api: &Api, request: Request<Body>) -> Result<Self, Problem> {
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let caller = api.keys.verify(authorization)?;
        let headers = request.headers().clone();
        let path = request.uri().path().to_owned();
        let body = read_body(request, api.max_body_bytes, BODY_TIMEOUT).await?;
        Ok(Self { caller, body, headers, path })
    }

    /// The body as `T`. Codes `json.invalid`, `request.invalid`.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        json(&self.body)
    }

    /// The body as one `T` or an array of them.
    pub(super) fn one_or_many<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        match self.body.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => self.json(),
            _ => self.json().map(|one| vec![one]),
        }
    }

    /// The `Idempotency-Key`, with a digest of what was asked. Code `idempotency.invalid_key`.
    pub(super) fn idempotency(&self) -> Result<Option<Idempotency>> {
        let Some(key) = self.headers.get("idempotency-key") else { return Ok(None) };
        let key = key
            .to_str()
            .map_err(|_| Error::invalid("idempotency.invalid_key", "Idempotency-Key: expected printable ASCII"))?;
        let mut digest = Context::new(&SHA256);
        digest.update(self.path.as_bytes());
        digest.update(&[0]);
        digest.update(&self.body);
        Idempotency::new(key.to_owned(), digest.finish().as_ref().to_vec()).map(Some)
    }
}

/// The whole body, of at most `limit` bytes and within `timeout`. Codes `body.too_large`, `request.timeout`, and `request.invalid`
/// when the client broke off.
async fn read_body(mut request: Request<Body>, limit: usize, timeout: Duration) -> Result<Bytes, Problem> {
    let too_large = || Error::new(Kind::TooLarge, "body.too_large", format!("the body may have at most {limit} bytes"));
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > limit as u64) {
        // Many clients read no answer before they have sent their body, so some of it is taken and thrown away.
        drop(tokio::time::timeout(DISCARD_TIMEOUT, discard(request.into_body())).await);
        return Err(too_large().into());
    }
    DefaultBodyLimit::max(limit).apply(&mut request);
    match tokio::time::timeout(timeout, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(BytesRejection::FailedToBufferBody(FailedToBufferBody::LengthLimitError(_)))) => Err(too_large().into()),
        Ok(Err(error)) => Err(Error::invalid("request.invalid", error.to_string()).into()),
        Err(_) => {
            let detail = format!("the body must arrive within {}", format_duration(timeout));
            Err(Problem::with_status(Error::invalid("request.timeout", detail), StatusCode::REQUEST_TIMEOUT))
        }
    }
}

/// Reads a body that nobody wants, up to [`MAX_DISCARDED_BYTES`].
async fn discard(mut body: Body) {
    let mut read = 0;
    while let Some(Ok(frame)) = body.frame().await {
        read += frame.data_ref().map_or(0, Bytes::len);
        if read > MAX_DISCARDED_BYTES {
            return;
        }
    }
}

/// JSON as `T`: text that is no JSON is `json.invalid`, JSON of another shape is `request.invalid`.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        // A wrong type can be met before the end of a text that is no JSON at all.
        let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        if error.is_data() && is_json() {
            Error::invalid("request.invalid", in_plain_words(&error.to_string()))
        } else {
            Error::invalid("json.invalid", format!("the body is not valid JSON: {error}"))
        }
    })
}

/// What serde says of a wrong type, in the words of JSON instead of Rust's.
fn in_plain_words(message: &str) -> String {
    let mut said: Vec<&str> = Vec::new();
    let mut words = message.split(' ');
    while let Some(word) = words.next() {
        match word {
            "struct" => {
                said.push("an object");
                words.next();
            }
            // "internally tagged enum Backoff"
            "enum" if said.last() == Some(&"tagged") => {
                said.truncate(said.len() - 2);
                said.push("an object");
                words.next();
            }
            "u8" | "u16" | "u32" | "u64" | "usize" | "i64" => said.push("a whole number"),
            "f64" => said.push("a number"),
            "sequence," => said.push("array,"),
            "map," => said.push("object,"),
            word => said.push(word),
        }
    }
    said.join(" ")
}

/// How many items a page may have: what was asked for, within 1 to `most`. Code `request.invalid`.
pub(super) fn page_limit(asked: Option<u32>, default: u32, most: u32) -> Result<u32> {
    match asked {
        None => Ok(default),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(limit) => Err(Error::invalid("request.invalid", format!("limit: expected 1 to {most}, got {limit}"))),
    }
}

/// The variable part of a path as text. Code `request.invalid` when it is not UTF-8.
pub(super) struct PathText(pub(super) String);

impl FromRequestParts<Shared> for PathText {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &Shared) -> Result<Self, Problem> {
        let text = axum::extract::Path::<String>::from_request_parts(parts, state).await;
        text.map(|text| Self(text.0)).map_err(|error| Error::invalid("request.invalid", error.to_string()).into())
    }
}

/// A tenant in a query string.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tenant {
    pub(super) tenant: Option<TenantId>,
}

/// Runs every entry at once, so that they share one commit, and answers in their order.
pub(super) async fn all<E, T, Fut>(api: &Shared, entries: Vec<E>, one: impl Fn(Shared, E) -> Fut) -> Result<Vec<T>>
where
    T: Send + 'static,
    Fut: Future<Output = T> + Send + 'static,
{
    let tasks: Vec<_> = entries.into_iter().map(|entry| tokio::spawn(one(api.clone(), entry))).collect();
    let mut answers = Vec::with_capacity(tasks.len());
    for task in tasks {
        answers.push(task.await.map_err(|error| Error::internal("an entry was not finished", error))?);
    }
    Ok(answers)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;

    use super::*;

    /// What a server that takes 4 bytes within 100 ms answers.
    async fn answer(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let read = |request: Request<Body>| read_body(request, 4, Duration::from_millis(100));
        let router = Router::new().route("/", post(read));
        let stop = CancellationToken::new();
        let server = tokio::spawn(crate::serve::serve(100, listener, router, stop.clone(), Duration::ZERO));
        let mut client = TcpStream::connect(address).await.expect("a connection");
        client.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = [0; 4096];
        let length = client.read(&mut answer).await.expect("an answer");
        stop.cancel();
        server.await.expect("the server ends");
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[test]
    fn a_wrong_type_is_told_without_a_word_of_rust() {
        for (said, plain) in [
            (
                "invalid type: map, expected struct NewJob at line 1",
                "invalid type: object, expected an object at line 1",
            ),
            (
                "invalid type: sequence, expected internally tagged enum Backoff",
                "invalid type: array, expected an object",
            ),
            ("invalid value: integer `-1`, expected u16", "invalid value: integer `-1`, expected a whole number"),
            ("unknown field `struct`", "unknown field `struct`"),
        ] {
            assert_eq!(in_plain_words(said), plain);
        }
    }

    #[tokio::test]
    async fn a_body_within_the_limits_is_read() {
        let fits = answer("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfour").await;
        assert!(fits.starts_with("HTTP/1.1 200") && fits.ends_with("four"), "{fits}");
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_given_up() {
        let late = answer("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nfo").await;
        assert!(late.starts_with("HTTP/1.1 408") && late.contains("request.timeout"), "{late}");
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_refused_announced_or_not() {
        for request in [
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nfiver",
            "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfiver\r\n0\r\n\r\n",
        ] {
            let large = answer(request).await;
            assert!(large.starts_with("HTTP/1.1 413") && large.contains("body.too_large"), "{large}");
        }
    }
}
