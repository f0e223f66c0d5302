//! Where a credential comes from, and who checks it.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE};
use serde_json::{Value, json};
use tidewire_core::catalog::{Auth, Catalog, CredentialSource, Join};
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, TenantId, Timestamp};

/// A credential as it was found: the first source of the catalog that has one.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// Where it was found, so that a cookie can be checked as a cookie and a token as a token.
    pub source: &'a CredentialSource,
    /// The token, or the value of the cookie. Never empty.
    pub value: &'a str,
}

/// Checks credentials. Implemented by the server, which knows keys and sessions.
pub trait Authenticate: Send + Sync {
    /// Who this credential stands for; `None` means that no source had one. Asked at each CONNECT, also of clients that come back, and
    /// at each `auth` message. An answer that takes longer than 15 s counts as [`Refusal::Unchecked`].
    fn authenticate<'a>(
        &'a self,
        credential: Option<Credential<'a>>,
    ) -> Pin<Box<dyn Future<Output = Result<Principal, Refusal>> + Send + 'a>>;

    /// Whether the credential behind `principal`, which was good once, has been revoked meanwhile. Asked often, so it must be quick:
    /// after each CONNECT, and of every live socket by [`Gateway::end_revoked`](crate::Gateway::end_revoked).
    fn is_revoked(&self, _principal: &Principal) -> bool {
        false
    }
}

/// Where a client is, for lists and for limits per address. The server puts it into the extensions of a request; it alone knows
/// which proxy's word to take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// Why a credential was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// It is wrong or has expired; the text says what, and is shown to the client.
    Invalid(String),
    /// It could not be checked now.
    Unchecked,
}

impl Refusal {
    /// The sentence that the client's `connect_error` carries.
    pub fn message(&self) -> &'static str {
        match self {
            Self::Missing => "Authentication token required",
            Self::Invalid(_) => "Invalid token",
            Self::Unchecked => "Authentication failed",
        }
    }

    /// The stable code in its `data`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "auth.required",
            Self::Invalid(_) => "auth.invalid",
            Self::Unchecked => "auth.unavailable",
        }
    }

    /// The `data` of the error.
    pub(crate) fn data(&self) -> String {
        match self {
            Self::Invalid(detail) if !detail.is_empty() => json!({ "code": self.code(), "detail": detail }),
            Self::Invalid(_) | Self::Missing | Self::Unchecked => json!({ "code": self.code() }),
        }
        .to_string()
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let detail = match &refusal {
            Refusal::Invalid(detail) if !detail.is_empty() => format!("{}: {detail}", refusal.message()),
            Refusal::Invalid(_) | Refusal::Missing | Refusal::Unchecked => refusal.message().to_owned(),
        };
        let kind = if refusal == Refusal::Unchecked { Kind::Unavailable } else { Kind::Unauthenticated };
        Self::new(kind, refusal.code(), detail)
    }
}

/// What is kept of the HTTP request that opened a session: only what a later CONNECT can need.
#[derive(Debug, Default)]
pub(crate) struct Handshake {
    /// Credentials beside `auth.token`, by the index of their source.
    credentials: Box<[(usize, Box<str>)]>,
    /// The tenant that a visitor without a login names in the query.
    tenant: Option<Box<str>>,
    pub(crate) address: Option<IpAddr>,
}

impl Handshake {
    /// Looks through a request. `cookies` is false for pages of other sites that are only let in by `"*"`.
    pub(crate) fn read(catalog: &Catalog, headers: &HeaderMap, query: &[(String, String)], cookies: bool) -> Self {
        let in_query = |name: &str| query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let find = |source: &CredentialSource| -> Option<Box<str>> {
            let value = match source {
                CredentialSource::AuthToken => None,
                CredentialSource::Authorization => bearer(headers.get(AUTHORIZATION)?.to_str().ok()?),
                CredentialSource::Query(name) => in_query(name),
                CredentialSource::Cookie(name) if cookies => cookie(headers, name),
                CredentialSource::Cookie(_) => None,
                CredentialSource::Header(name) => headers.get(name.as_str())?.to_str().ok().map(str::trim),
            };
            value.filter(|value| !value.is_empty()).map(Into::into)
        };
        let found = catalog.auth.sources.iter().enumerate();
        let found = found.filter_map(|(index, source)| find(source).map(|value| (index, value)));
        Self { credentials: found.collect(), tenant: in_query(&catalog.app.tenant).map(Into::into), address: None }
    }

    /// The same, of a client at this address.
    pub(crate) fn at(self, address: Option<ClientAddress>) -> Self {
        Self { address: address.map(|ClientAddress(address)| address), ..self }
    }

    /// The first credential in the catalog's order, `auth` being the payload of CONNECT. A token that is not text is there and wrong.
    pub(crate) fn credential<'a>(
        &'a self,
        auth: &'a Auth,
        payload: &'a Value,
    ) -> Result<Option<Credential<'a>>, Refusal> {
        for (index, source) in auth.sources.iter().enumerate() {
            let value = if matches!(source, CredentialSource::AuthToken) {
                match &payload["token"] {
                    Value::Null => None,
                    Value::String(token) => Some(token.as_str()).filter(|token| !token.is_empty()),
                    Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                        return Err(Refusal::Invalid("auth.token: expected text".to_owned()));
                    }
                }
            } else {
                self.credentials.iter().find(|(at, _)| *at == index).map(|(_, value)| &**value)
            };
            if let Some(value) = value {
                return Ok(Some(Credential { source, value }));
            }
        }
        Ok(None)
    }

    /// A visitor without a login, where the catalog has rooms for such: of the tenant that `auth` or the query names.
    pub(crate) fn visitor(&self, catalog: &Catalog, payload: &Value) -> Option<Principal> {
        if !catalog.rooms.iter().any(|room| room.join == Join::Public) {
            return None;
        }
        let named = payload[&*catalog.app.tenant].as_str().or(self.tenant.as_deref())?;
        let tenant = TenantId::new(named).ok()?;
        let claims = Arc::new(json!({ "id": null, "tenant": tenant, "roles": [] }));
        Some(Principal { tenant, user: None, roles: Arc::new([]), claims, expires: None, recheck: None })
    }
}

/// Whether a credential has ended at `now`.
pub(crate) fn has_ended(principal: &Principal, now: Timestamp) -> bool {
    principal.expires.is_some_and(|expires| expires <= now)
}

/// The token of an `Authorization` header. Another scheme than `Bearer` is for somebody else, as for a proxy that has let it pass.
fn bearer(header: &str) -> Option<&str> {
    let mut words = header.split_ascii_whitespace();
    words.next().filter(|scheme| scheme.eq_ignore_ascii_case("bearer"))?;
    words.next()
}

/// The value of a cookie, percent-encoding left as it is: the one who checks it knows how it was written.
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(COOKIE)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_and_bearer_tokens_are_found_among_others() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=1; session=s%3Aabc ; b=2".parse().expect("header"));
        assert_eq!(cookie(&headers, "session"), Some("s%3Aabc"));
        assert_eq!(cookie(&headers, "sess"), None);
        assert_eq!(bearer("Bearer  x.y.z"), Some("x.y.z"));
        assert_eq!(bearer("bearer x"), Some("x"));
        assert_eq!((bearer("Bearer"), bearer("Basic dXNlcjpwYXNz")), (None, None));
    }

    #[test]
    fn any_header_gives_no_more_than_stands_in_it() {
        let pieces = ["session", "sess", "=", ";", " ", "\"", "\t", "Bearer", "x.y.z", ",", "%3B", "é"];
        let soon = std::time::Duration::from_millis(300);
        bolero::check!().with_test_time(soon).with_max_len(40).for_each(|choices: &[u8]| {
            let text: String = choices.iter().map(|choice| pieces[usize::from(*choice) % pieces.len()]).collect();
            if let Some(token) = bearer(&text) {
                assert!(text.contains(token) && !token.is_empty() && !token.contains([' ', '\t']));
            }
            let Ok(header) = http::HeaderValue::from_bytes(text.as_bytes()) else { return };
            let headers = HeaderMap::from_iter([(COOKIE, header)]);
            if let Some(value) = cookie(&headers, "session") {
                assert!(text.contains(&format!("={value}")) || text.contains("=\""), "{text:?}: {value:?}");
                assert!(!value.contains(';') && !value.starts_with('"') && !value.ends_with('"'));
            }
        });
    }
}
