//! The HTTP side: which request is which, who may ask, and the answers.

use std::fmt::Display;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS, CACHE_CONTROL, CONTENT_TYPE,
    HOST, ORIGIN, RETRY_AFTER, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use tidewire_wire::engine::TransportError;

use crate::auth::{ClientAddress, Handshake};
use crate::gateway::{Gateway, Shared};
use crate::{polling, websocket};

/// The answer to every request.
pub(crate) type Answer = Response<Full<Bytes>>;

impl Gateway {
    /// Answers a request under [`Options::path`](crate::Options::path): handshakes, polls, posts, preflights and WebSocket upgrades.
    ///
    /// An upgrade continues after the 101 on a task of the gateway's own. It is cheapest when the server runs hyper's HTTP/1 directly on a
    /// `TokioIo<TcpStream>`; over anything else (TLS, a wrapping server) it works through an adapter.
    pub async fn handle<B>(&self, request: Request<B>) -> Answer
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Display,
    {
        let shared = self.shared();
        let origin = Origin::of(&shared.options.allowed_origins, request.headers());
        let answer = route(shared, request, &origin).await;
        if let Err(refused) = &answer {
            shared.stats.by.transports.up(refused.reason());
        }
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(Refused::Transport(error)) => {
                let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
                plain(status, "application/json", error.json())
            }
            Err(Refused::Busy) => {
                later(r#"{"code":"limit.process","message":"this server has as many connections as it may"}"#)
            }
            Err(Refused::Draining) => later(r#"{"code":"unavailable","message":"this server is stopping"}"#),
            Err(Refused::Status(status)) => plain(status, "text/plain", status.canonical_reason().unwrap_or_default()),
        };
        origin.mark(answer.headers_mut());
        answer
    }
}

/// Why a request is not served.
pub(crate) enum Refused {
    Transport(TransportError),
    /// Too many connections.
    Busy,
    /// This process is stopping.
    Draining,
    Status(StatusCode),
}

impl From<TransportError> for Refused {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

async fn route<B>(shared: &Arc<Shared>, request: Request<B>, origin: &Origin) -> Result<Answer, Refused>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Display,
{
    let path = request.uri().path();
    if path != shared.options.path && path != shared.options.path.trim_end_matches('/') {
        return Err(Refused::Status(StatusCode::NOT_FOUND));
    }
    if request.method() == Method::OPTIONS {
        return Ok(preflight(request.headers()));
    }
    // The order of these is the reference server's, so that a client sees the same refusal for the same mistake.
    let query = parse_query(request.uri().query().unwrap_or_default());
    let get = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let websocket = match get("transport") {
        Some("polling") => false,
        Some("websocket") => true,
        Some(_) | None => return Err(TransportError::UnknownTransport.into()),
    };
    if *origin == Origin::Foreign {
        return Err(TransportError::Forbidden.into());
    }
    let session = match get("sid").filter(|sid| !sid.is_empty()) {
        Some(sid) => {
            let session = shared.session(sid).filter(|session| !session.end_if_silent());
            if session.is_none()
                && !websocket
                && request.method() == Method::GET
                && let Some(answer) = shared.partings.answer(sid)
            {
                return Ok(answer);
            }
            Some(session.ok_or(TransportError::UnknownSid)?)
        }
        None if request.method() != Method::GET => return Err(TransportError::BadHandshakeMethod.into()),
        None if get("EIO") != Some("4") => return Err(TransportError::UnsupportedProtocol.into()),
        None => None,
    };
    let address = request.extensions().get::<ClientAddress>().copied();
    let handshake =
        || Handshake::read(&shared.catalog, request.headers(), &query, *origin != Origin::Anyone).at(address);
    match (websocket, session) {
        (true, session) => {
            let handshake = handshake();
            websocket::open(shared, request, session, handshake)
        }
        (false, None) => polling::open(shared, handshake()),
        (false, Some(session)) => match *request.method() {
            Method::GET => polling::get(&session).await,
            Method::POST => polling::post(&session, request).await,
            _ => Err(TransportError::BadRequest.into()),
        },
    }
}

/// What the `Origin` header says about the page that asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// None (not a browser), or the server's own.
    Own,
    /// An allowed one.
    Named(HeaderValue),
    /// Any one, because `"*"` is allowed. Cookies of such a request are not looked at.
    Anyone,
    /// None of these.
    Foreign,
}

impl Origin {
    pub(crate) fn of(allowed: &[String], headers: &HeaderMap) -> Self {
        let Some(header) = headers.get(ORIGIN) else { return Self::Own };
        let Ok(origin) = header.to_str() else { return Self::Foreign };
        if allowed.iter().any(|allowed| allowed.trim_end_matches('/').eq_ignore_ascii_case(origin)) {
            return Self::Named(header.clone());
        }
        // The scheme is not compared: behind a proxy that ends TLS the server does not know its own.
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        if let (Some((_, authority)), Some(host)) = (origin.split_once("://"), host)
            && authority.eq_ignore_ascii_case(host)
        {
            return Self::Own;
        }
        if allowed.iter().any(|allowed| allowed == "*") { Self::Anyone } else { Self::Foreign }
    }

    pub(crate) fn mark(&self, headers: &mut HeaderMap) {
        match self {
            Self::Own | Self::Foreign => {}
            Self::Named(origin) => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
                headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            }
            Self::Anyone => {
                headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
            }
        }
        headers.append(VARY, HeaderValue::from_static("Origin"));
    }
}

fn preflight(headers: &HeaderMap) -> Answer {
    preflight_of(headers, "GET,POST")
}

pub(crate) fn preflight_of(headers: &HeaderMap, methods: &'static str) -> Answer {
    let mut answer = plain(StatusCode::NO_CONTENT, "text/plain", "");
    let asked = headers.get(ACCESS_CONTROL_REQUEST_HEADERS).cloned();
    let out = answer.headers_mut();
    out.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
    out.insert(ACCESS_CONTROL_ALLOW_HEADERS, asked.unwrap_or(HeaderValue::from_static("content-type,authorization")));
    out.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    answer
}

/// A refusal that need not last.
fn later(body: &'static str) -> Answer {
    let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, "application/json", body);
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    answer
}

pub(crate) fn plain(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// The parameters of a query, percent-decoded. What is not UTF-8 after decoding is left out; at most 64 are read.
pub(crate) fn parse_query(query: &str) -> Vec<(String, String)> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((decode(key)?, decode(value)?))
    };
    query.split('&').filter(|pair| !pair.is_empty()).take(64).filter_map(pair).collect()
}

fn decode(text: &str) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
                (high * 16 + low) as u8
            }
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_bad_parts_are_left_out() {
        let query = parse_query("EIO=4&transport=polling&x=a%20b+c&bad=%zz&worse=%ff&flag");
        let pairs: Vec<_> = query.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("EIO", "4"), ("transport", "polling"), ("x", "a b c"), ("flag", "")]);
    }

    #[test]
    fn any_query_is_read_within_its_bounds() {
        let pieces = ["a", "=", "&", "%", "4", "1", "%e2%82%ac", "%2", "+", "é", "transport=polling", "&sid=x&", "\0"];
        let soon = std::time::Duration::from_millis(300);
        bolero::check!().with_test_time(soon).with_max_len(200).for_each(|choices: &[u8]| {
            let query: String = choices.iter().map(|choice| pieces[usize::from(*choice) % pieces.len()]).collect();
            let pairs = parse_query(&query);
            let bytes: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
            assert!(pairs.len() <= 64 && bytes <= query.len());
            let escaped = |text: &str| text.bytes().map(|byte| format!("%{byte:02X}")).collect::<String>();
            let written = pairs.iter().map(|(key, value)| format!("{}={}", escaped(key), escaped(value)));
            assert_eq!(parse_query(&written.collect::<Vec<_>>().join("&")), pairs);
        });
    }

    #[test]
    fn only_named_origins_get_in_with_credentials() {
        let headers = |origin: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("tide.example:7400"));
            headers.insert(ORIGIN, origin.parse().expect("header"));
            headers
        };
        let named = ["https://app.example".to_owned()];
        assert!(matches!(Origin::of(&named, &headers("https://app.example")), Origin::Named(_)));
        assert_eq!(Origin::of(&named, &headers("https://app.example.evil")), Origin::Foreign);
        assert_eq!(Origin::of(&named, &headers("null")), Origin::Foreign);
        assert_eq!(Origin::of(&named, &headers("https://tide.example:7400")), Origin::Own);
        assert_eq!(Origin::of(&named, &HeaderMap::new()), Origin::Own);
        assert_eq!(Origin::of(&["*".to_owned()], &headers("https://app.example")), Origin::Anyone);
    }
}
