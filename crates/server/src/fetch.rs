//! One GET at somebody else's endpoint, over HTTP/1.1 (RFC 9112), plain or over TLS.
//!
//! Redirects are not followed and a connection is used once: these are rare, small questions, and each of them ends with its answer.
//! Certificates are checked against the roots of the system; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tidewire_core::{Error, Result};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// What is asked, and how it is reached.
pub(crate) struct Target {
    /// A name or an address, IPv6 without its brackets.
    host: String,
    port: u16,
    /// The name that the certificate must have; absent for plain HTTP.
    tls: Option<ServerName<'static>>,
    authority: HeaderValue,
    /// Path and query.
    path: Uri,
}

impl Target {
    /// Reads the URL of a setting. Code `config.invalid`; the detail begins with `setting`.
    pub(crate) fn new(setting: &str, url: &str) -> Result<Self> {
        let wrong = |what: &str| Error::invalid("config.invalid", format!("{setting}: {what}"));
        let not_a_url = || wrong("expected a URL such as http://127.0.0.1:3000/path or https://login.example.com/path");
        let uri: Uri = url.parse().map_err(|_| not_a_url())?;
        let is_secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            Some(_) | None => return Err(not_a_url()),
        };
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
        let name = || ServerName::try_from(host.to_owned()).map_err(|_| not_a_url());
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            port: port.unwrap_or(if is_secure { 443 } else { 80 }),
            tls: is_secure.then(name).transpose()?,
            host: host.to_owned(),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| not_a_url())?,
            path: path.parse().map_err(|_| not_a_url())?,
        })
    }

    /// Asks, with one header more if there is one, and answers the status and a body of at most `most` bytes. The error is one line for
    /// the log.
    pub(crate) async fn get(
        &self,
        header: Option<(HeaderName, HeaderValue)>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port))
            .await
            .map_err(|error| format!("the server cannot be reached: {error}"))?;
        let Some(name) = &self.tls else { return self.exchange(stream, header, most).await };
        let stream = TlsConnector::from(tls()?)
            .connect(name.clone(), stream)
            .await
            .map_err(|error| format!("no TLS connection: {error}"))?;
        self.exchange(stream, header, most).await
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send,
        header: Option<(HeaderName, HeaderValue)>,
        most: usize,
    ) -> Result<(StatusCode, Bytes), String> {
        let broken = |error: hyper::Error| format!("the exchange broke off: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.authority.clone());
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("tidewire/", env!("CARGO_PKG_VERSION"))));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        headers.extend(header);
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = axum::body::to_bytes(Body::new(response.into_body()), most);
            Ok((status, body.await.map_err(|error| format!("expected at most {most} bytes: {error}"))?))
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

/// One configuration for all connections, because reading the system's roots takes a while. What goes wrong is tried again.
fn tls() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let why = found.errors.first().map_or_else(|| "none was found".to_owned(), ToString::to_string);
        return Err(format!("the system has no root certificates: {why}"));
    }
    let provider = Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = Arc::new(builder.with_root_certificates(roots).with_no_client_auth());
    Ok(CONFIG.get_or_init(|| config).clone())
}
