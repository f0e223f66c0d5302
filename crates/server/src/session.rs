//! Sessions of end users, checked at the app's own endpoint.
//!
//! An app that keeps sessions itself (Better Auth, for one) gives its clients a cookie or an opaque token that only the app can read.
//! `[auth.session] introspect` in the catalog names the URL at which the app says whose session it is. [`Sessions`] asks there with the
//! client's credential and reads the answer: 200 with a JSON object is a user, 200 with `null` and 401, 403 and 404 are a refusal, and
//! everything else means that the credential could not be checked.
//!
//! Invariants:
//!
//! - A credential is sent to that URL and nowhere else: redirects are not followed. It is not logged, and what is kept is its SHA-256.
//! - At most one exchange per credential and 64 in all run at once. An exchange, its wait for a place included, ends after 2 s.
//! - A session that the app has ended is refused 10 s later at the latest. A live socket is asked about again as the catalog's `recheck`
//!   says.

mod answer;
mod endpoint;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, COOKIE};
use http::{HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tidewire_core::catalog::{Catalog, CredentialSource};
use tidewire_core::principal::Principal;
use tidewire_core::time::Clock;
use tidewire_core::{Result, Timestamp};
use tidewire_gateway::{Credential, Refusal};
use tokio::sync::{OnceCell, Semaphore};

use answer::Names;
use endpoint::Endpoint;

/// How long an exchange may take, from the wait for a place to the last byte of the answer.
const DEADLINE: Duration = Duration::from_secs(2);

/// The most exchanges at once. More wait for a place.
const MAX_EXCHANGES: usize = 64;

/// The longest header that is sent to the app, in bytes. Node.js takes 16 KiB for all headers of a request.
const MAX_CREDENTIAL_BYTES: usize = 8 * 1024;

/// How long a user is known after the app has named one.
const POSITIVE: Duration = Duration::from_secs(10);

/// How long a refusal is known. Short, because a client may come before its session does.
const NEGATIVE: Duration = Duration::from_secs(2);

/// The most answers that are kept. Then the oldest one goes.
const MAX_ANSWERS: usize = 10_000;

/// The SHA-256 of the header with which a credential is sent.
type Key = [u8; 32];

type Verdict = Result<Principal, Refusal>;

/// Checks session tokens and cookies at the app's own endpoint.
pub struct Sessions {
    endpoint: Endpoint,
    names: Names,
    clock: Arc<dyn Clock>,
    deadline: Duration,
    /// How long after an answer a live socket is asked about again.
    recheck: Duration,
    /// How long an answer is good for others with the same credential.
    known_for: Duration,
    exchanges: Semaphore,
    known: Mutex<Known>,
    /// Whether the last exchange failed, so that an app that is down is one line in the log and not one per client.
    failing: AtomicBool,
}

impl Sessions {
    /// A checker for the catalog's endpoint and claims. Nothing when the catalog names no endpoint.
    ///
    /// The claims are those of `[auth.jwt]`, or its defaults where the catalog has none. Code `config.invalid` when the URL is not one
    /// that can be asked.
    pub fn new(catalog: &Catalog, clock: Arc<dyn Clock>) -> Result<Option<Self>> {
        let Some(url) = &catalog.auth.introspect else { return Ok(None) };
        Ok(Some(Self {
            endpoint: Endpoint::new(url)?,
            names: Names::new(catalog),
            clock,
            deadline: DEADLINE,
            recheck: catalog.auth.recheck,
            known_for: POSITIVE.min(catalog.auth.recheck),
            exchanges: Semaphore::new(MAX_EXCHANGES),
            known: Mutex::new(Known::default()),
            failing: AtomicBool::new(false),
        }))
    }

    /// The user whose session this is: as the app said up to 10 s ago, or as it says now.
    ///
    /// A cookie is sent as `Cookie: NAME=VALUE`, anything else as `Authorization: Bearer VALUE`. [`Refusal::Invalid`] when the app does
    /// not know the session, when it has ended or when the answer lacks the user or the tenant; [`Refusal::Unchecked`] when there was
    /// no usable answer within 2 s. May be dropped at any time: others who wait for the same answer still get one.
    pub async fn verify(&self, credential: Credential<'_>) -> Result<Principal, Refusal> {
        // What cannot be in a header cannot be the credential of anybody.
        let Some((name, value)) = header(credential) else { return Err(Refusal::Invalid(String::new())) };
        let key = key(&name, &value);
        let found = self.known.lock().find(key, self.clock.now());
        let cell = match found {
            Found::Verdict(verdict) => return verdict,
            Found::Flight(cell) => cell,
        };
        let flight = Seat { sessions: self, key, cell };
        flight.cell.get_or_init(|| self.ask(key, name, value)).await.clone()
    }

    /// Asks the app and keeps the answer.
    async fn ask(&self, key: Key, name: HeaderName, value: HeaderValue) -> Verdict {
        let exchange = async {
            let place = self.exchanges.acquire().await.map_err(|_| Failure::unchecked("the server is stopping"))?;
            let body = self.endpoint.get(name, value).await?;
            drop(place);
            let principal = answer::read(&body, &self.names, self.clock.now())?;
            Ok(Principal { recheck: Some(self.clock.now() + self.recheck), ..principal })
        };
        let late = |_| Err(Failure::unchecked(format!("no answer within {:?}", self.deadline)));
        let answer = tokio::time::timeout(self.deadline, exchange).await.unwrap_or_else(late);
        let verdict = answer.map_err(|failure| {
            self.log(&failure);
            failure.refusal
        });
        if !matches!(verdict, Err(Refusal::Unchecked)) && self.failing.swap(false, Ordering::Relaxed) {
            tracing::info!("the app's session endpoint answers again");
        }
        // In one step: whoever comes later finds either this exchange or its answer.
        self.known.lock().land(key, &verdict, self.clock.now(), self.known_for);
        verdict
    }

    fn log(&self, failure: &Failure) {
        let reason = &failure.reason;
        if failure.refusal != Refusal::Unchecked {
            tracing::debug!(reason, "a session was refused");
        } else if self.failing.swap(true, Ordering::Relaxed) {
            tracing::debug!(reason, "a session could not be checked");
        } else {
            tracing::warn!(reason, "sessions cannot be checked at the app's endpoint");
        }
    }
}

/// Whether a credential is to be read as a JWT and not as a session: three base64url parts, the first of them a JSON object (RFC 7515,
/// section 7.1). Says nothing about its signature.
pub fn is_jwt(credential: &str) -> bool {
    let mut parts = credential.split('.');
    let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_base64url = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    is_base64url(payload)
        && is_base64url(signature)
        && URL_SAFE_NO_PAD
            .decode(header)
            .is_ok_and(|header| serde_json::from_slice::<Map<String, Value>>(&header).is_ok())
}

/// How a credential is sent to the app. Nothing when it cannot be, or is too long.
fn header(credential: Credential<'_>) -> Option<(HeaderName, HeaderValue)> {
    let (name, text) = match credential.source {
        CredentialSource::Cookie(name) => (COOKIE, format!("{name}={}", credential.value)),
        CredentialSource::AuthToken
        | CredentialSource::Authorization
        | CredentialSource::Query(_)
        | CredentialSource::Header(_) => (AUTHORIZATION, format!("Bearer {}", credential.value)),
    };
    if text.len() > MAX_CREDENTIAL_BYTES {
        return None;
    }
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

fn key(name: &HeaderName, value: &HeaderValue) -> Key {
    let mut context = Context::new(&SHA256);
    context.update(name.as_str().as_bytes());
    context.update(b": ");
    context.update(value.as_bytes());
    let mut key = Key::default();
    key.copy_from_slice(context.finish().as_ref());
    key
}

/// Why there is no user. The reason is for the log and never holds a credential.
#[derive(Debug)]
struct Failure {
    refusal: Refusal,
    reason: String,
}

impl Failure {
    fn invalid(reason: impl Into<String>) -> Self {
        Self { refusal: Refusal::Invalid(String::new()), reason: reason.into() }
    }

    fn unchecked(reason: impl Into<String>) -> Self {
        Self { refusal: Refusal::Unchecked, reason: reason.into() }
    }
}

/// What the app has said and what it is being asked.
#[derive(Default)]
struct Known {
    answers: HashMap<Key, Answer>,
    /// The keys of `answers`, each once, the one that came first in front.
    order: VecDeque<Key>,
    /// Bounded by the clients that wait, each of whom has a seat.
    flights: HashMap<Key, Flight>,
}

struct Answer {
    verdict: Verdict,
    from: Timestamp,
    until: Timestamp,
}

impl Answer {
    /// An answer from the future is from before the clock was set back, and nobody knows how old it is.
    fn is_fresh(&self, now: Timestamp) -> bool {
        self.from <= now && now < self.until
    }
}

/// An exchange, or one that is about to begin, and how many wait for it.
struct Flight {
    cell: Arc<OnceCell<Verdict>>,
    seats: usize,
}

enum Found {
    Verdict(Verdict),
    Flight(Arc<OnceCell<Verdict>>),
}

impl Known {
    fn find(&mut self, key: Key, now: Timestamp) -> Found {
        if let Some(answer) = self.answers.get(&key).filter(|answer| answer.is_fresh(now)) {
            return Found::Verdict(answer.verdict.clone());
        }
        let flight = self.flights.entry(key).or_insert_with(|| Flight { cell: Arc::default(), seats: 0 });
        flight.seats += 1;
        Found::Flight(flight.cell.clone())
    }

    /// Ends the exchange of `key`. What could not be checked is not kept, so that the next one asks again.
    fn land(&mut self, key: Key, verdict: &Verdict, now: Timestamp, known_for: Duration) {
        self.flights.remove(&key);
        let until = match verdict {
            Ok(principal) => principal.expires.map_or(now + known_for, |expires| expires.min(now + known_for)),
            Err(Refusal::Invalid(_) | Refusal::Missing) => now + NEGATIVE,
            Err(Refusal::Unchecked) => return,
        };
        if self.answers.insert(key, Answer { verdict: verdict.clone(), from: now, until }).is_none() {
            self.order.push_back(key);
        }
        while let Some(oldest) = self.order.front()
            && (self.order.len() > MAX_ANSWERS || self.answers.get(oldest).is_none_or(|answer| !answer.is_fresh(now)))
        {
            self.answers.remove(oldest);
            self.order.pop_front();
        }
    }
}

/// A place among those who wait for an exchange. The last one to leave takes away an exchange that nobody finished.
struct Seat<'a> {
    sessions: &'a Sessions,
    key: Key,
    cell: Arc<OnceCell<Verdict>>,
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut known = self.sessions.known.lock();
        let Some(flight) = known.flights.get_mut(&self.key) else { return };
        // A later exchange for the same credential is not this one's to count.
        if Arc::ptr_eq(&flight.cell, &self.cell) {
            flight.seats -= 1;
            if flight.seats == 0 {
                known.flights.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests;
