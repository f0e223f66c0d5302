//! One GET at the app's endpoint, over HTTP/1.1 (RFC 9112).

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tidewire_core::{Error, Result};
use tokio::net::TcpStream;

use super::Failure;

/// The largest answer in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where the app answers whose session a credential is.
pub(super) struct Endpoint {
    /// A name or an address, IPv6 without its brackets.
    host: String,
    port: u16,
    authority: HeaderValue,
    /// Path and query.
    path: Uri,
}

impl Endpoint {
    /// Reads the catalog's URL. Code `config.invalid`.
    pub(super) fn new(url: &str) -> Result<Self> {
        let wrong = |what: &str| Error::invalid("config.invalid", format!("auth.session.introspect: {what}"));
        let not_a_url = || wrong("expected a URL such as http://127.0.0.1:3000/api/auth/get-session");
        let uri: Uri = url.parse().map_err(|_| not_a_url())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                return Err(wrong(
                    "https is not supported; give an http:// URL of this machine or of a private network",
                ));
            }
            Some(_) | None => return Err(not_a_url()),
        }
        let authority = uri.authority().ok_or_else(not_a_url)?;
        if authority.as_str().contains('@') {
            return Err(wrong("a user name or password in the URL is not supported"));
        }
        let host = authority.host().trim_matches(['[', ']']);
        let port = authority.port_u16();
        // A port that is no number is not the same as none.
        if host.is_empty() || (port.is_none() && authority.as_str() != authority.host()) {
            return Err(not_a_url());
        }
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            host: host.to_owned(),
            port: port.unwrap_or(80),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| not_a_url())?,
            path: path.parse().map_err(|_| not_a_url())?,
        })
    }

    /// Asks with one header more and answers the body of a 200. The connection is used once and closes with the exchange.
    pub(super) async fn get(&self, name: HeaderName, value: HeaderValue) -> Result<Bytes, Failure> {
        let broken = |error: hyper::Error| Failure::unchecked(format!("the exchange broke off: {error}"));
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| Failure::unchecked(format!("the app cannot be reached: {error}")))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tidewire/", env!("CARGO_PKG_VERSION"))));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.insert(name, value);
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            match response.status() {
                StatusCode::OK => {}
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                    return Err(Failure::invalid(format!("the app answered {}", response.status())));
                }
                status => {
                    return Err(Failure::unchecked(format!("expected status 200, 401, 403 or 404, got {status}")));
                }
            }
            axum::body::to_bytes(Body::new(response.into_body()), MAX_ANSWER_BYTES)
                .await
                .map_err(|error| Failure::unchecked(format!("expected at most {MAX_ANSWER_BYTES} bytes: {error}")))
        };
        let mut exchange = std::pin::pin!(exchange);
        // The connection is driven here and not by a task of its own, so that both end together. It may end first, with the rest of
        // the answer already read.
        tokio::select! {
            answer = exchange.as_mut() => answer,
            _ = connection => exchange.await,
        }
    }
}
