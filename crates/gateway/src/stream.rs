//! Server-sent events: a tenant's log followed over one long HTTP answer (WHATWG HTML, section 9.2).
//!
//! A stream is a session with one socket, as over a WebSocket, whose frames are written as server-sent events. So what it may see, how
//! it is parked when its client is slow, limits, expiry, revocation and drain are those of sockets. What it does not have is a way in:
//! rooms and types are named in the query, and the last event's id takes the place of a `pid`.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body::{Body, Frame};
use serde_json::{Value, json};
use tidewire_core::catalog::{Catalog, CredentialSource, Pattern};
use tidewire_core::event::{Offset, Position};
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, Result, TenantId};
use tokio_util::sync::CancellationToken;

use crate::auth::{ClientAddress, Handshake};
use crate::cast::{At, Form};
use crate::connect;
use crate::gateway::{Gateway, Shared};
use crate::http::{Answer, Origin, parse_query, preflight_of};
use crate::hub::Tenant;
use crate::messages::builtin;
use crate::outbox::Taken;
use crate::policy::{self, Allowed};
use crate::recovery::{self, Saved};
use crate::registry;
use crate::session::{Closing, Opening, Session, random, random_id};
use crate::socket::{Beginning, Since, Socket, Wanted};

/// The time between two signs of life, if pings are not more frequent.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How long a client has to take what still waits when its stream ends.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// The most bytes that are handed to the connection at once, if there is more than one event.
const CHUNK: usize = 16 * 1024;
/// The most rooms in a query.
const MAX_ROOMS: usize = 100;
/// After how many milliseconds a client comes back: from this many to three times as many, drawn for each stream, so that the clients
/// of a server that was killed do not come all at once.
const RETRY_MS: u16 = 1_000;

/// Who follows the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reader {
    /// A program that may read all of this tenant's log.
    Tenant(TenantId),
    /// An end user, or a visitor, by the credential in the request.
    EndUser,
}

/// Ends the connection under a stream whose client takes nothing. The server puts one into the extensions of each request; where it does
/// not, such a connection stays until the system gives it up, with what the HTTP server had buffered for it.
#[derive(Clone, Debug, Default)]
pub struct Hangup(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    within: OnceLock<Duration>,
    asked: CancellationToken,
}

impl Hangup {
    /// Waits until the connection is to end, and answers how much longer it may take to write what it has.
    pub async fn asked(&self) -> Duration {
        self.0.asked.cancelled().await;
        self.0.within.get().copied().unwrap_or_default()
    }

    fn ask(&self, within: Duration) {
        let _ = self.0.within.set(within);
        self.0.asked.cancel();
    }
}

/// What a session knows that is a stream.
pub(crate) struct Streaming {
    /// It gets the events as they are logged, not what a user would see of them.
    pub(crate) whole_log: bool,
    /// Known as soon as the answer has begun: before, there is an error to be answered.
    hangup: OnceLock<Hangup>,
}

impl Streaming {
    pub(crate) fn hang_up(&self, closing: Closing) {
        if let Some(hangup) = self.hangup.get() {
            hangup.ask(if closing.drops_backlog() { Duration::ZERO } else { LAST_WORDS });
        }
    }
}

/// The time between two signs of life of a session.
pub(crate) fn heartbeat(shared: &Shared, streams: bool) -> Duration {
    let interval = shared.options.ping_interval;
    if streams { interval.min(HEARTBEAT) } else { interval }
}

impl Session {
    /// The time between two signs of life.
    pub(crate) fn heartbeat(&self) -> Duration {
        heartbeat(&self.shared, self.streaming.is_some())
    }

    /// How events are written for this client.
    pub(crate) fn form(&self) -> Form {
        match &self.streaming {
            Some(streaming) if streaming.whole_log => Form::Log,
            Some(_) => Form::Stream,
            None if self.is_compressed() => Form::Compressed,
            None => Form::Packets,
        }
    }
}

/// The body of an answer that does not end by itself. Dropping it closes the session.
pub struct EventStream(Arc<Session>);

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").finish_non_exhaustive()
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let session = &self.0;
        loop {
            match ready!(session.outbox.poll_take(cx, CHUNK)) {
                Taken::Frames(frames) => {
                    let mut written = session.shared.stats.latency.written();
                    frames.iter().for_each(|frame| written.add(frame.since));
                    drop(written);
                    session.taken();
                    let bytes = frames.into_iter().map(|frame| frame.bytes).collect();
                    return Poll::Ready(Some(Ok(Frame::data(joined(bytes)))));
                }
                Taken::Noop => {}
                Taken::Ended(_) => return Poll::Ready(None),
            }
        }
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.0.close(Closing::Lost);
    }
}

/// One event goes out as the bytes that all share; several small ones are put together.
fn joined(mut frames: Vec<Bytes>) -> Bytes {
    if frames.len() == 1 {
        return frames.pop().unwrap_or_default();
    }
    let mut all = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| all.extend_from_slice(frame));
    all.freeze()
}

impl Gateway {
    /// Answers a request for server-sent events.
    ///
    /// The query may have `types` and, for end users, `rooms`, each a list with commas and each any number of times; `tenant`; and
    /// `lastEventId` or `after`, where the header `Last-Event-ID` is not sent. Codes: `request.invalid`, `event.unknown_type`,
    /// `offset.invalid`, `origin.forbidden`, `auth.required`, `auth.invalid`, `auth.unavailable`, `auth.revoked`, `tenant.unknown`,
    /// `room.forbidden`, `limit.connects`, `limit.credentials`, `limit.connections`, `limit.tenant`, `unavailable`.
    pub async fn follow(&self, request: &Parts, reader: Reader) -> Result<Response<EventStream>> {
        let shared = self.shared();
        let origin = Origin::of(&shared.options.allowed_origins, &request.headers);
        if origin == Origin::Foreign {
            let detail = "pages of this origin may not connect; it is not in realtime.allowedOrigins";
            return Err(Error::new(Kind::Forbidden, "origin.forbidden", detail));
        }
        let query = request.uri.query().unwrap_or_default();
        let parameters = query.split('&').filter(|pair| !pair.is_empty()).count();
        let query = parse_query(query);
        if query.len() < parameters {
            let detail = "query: expected at most 64 parameters, each UTF-8 after percent-decoding";
            return Err(Error::invalid("request.invalid", detail));
        }
        let asked = Query::read(&shared.catalog, &query, &request.headers, &reader)?;
        let address = request.extensions.get::<ClientAddress>().copied();
        let handshake =
            Handshake::read(&shared.catalog, &request.headers, &query, origin != Origin::Anyone).at(address);
        let streaming = Streaming { whole_log: reader != Reader::EndUser, hangup: OnceLock::new() };
        let busy = || Error::unavailable("too many connections, or the server is stopping; try again soon");
        let session = shared.open(handshake, Opening::Stream(streaming));
        let session = session.map_err(|refused| {
            shared.stats.by.transports.up(refused.reason());
            busy().with_retry_after(Duration::from_secs(1))
        })?;
        // From here on whatever ends this call closes the session.
        let body = EventStream(session.clone());
        let auth = asked.auth(&shared.catalog, &request.headers);
        let principal = who(&session, &asked, &auth, reader).await?;
        join(&session, asked, &auth, principal).await?;
        if let (Some(streaming), Some(hangup)) = (&session.streaming, request.extensions.get::<Hangup>()) {
            let _ = streaming.hangup.set(hangup.clone());
        }
        let mut answer = Response::new(body);
        let headers = answer.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
        // Nothing else is asked on this connection, so it can be ended without harm to others.
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(answer)
    }

    /// Says in an answer, whatever it is, whether the page that asked may read it: the same for streams as for sockets.
    pub fn mark_origin(&self, asked: &HeaderMap, answer: &mut HeaderMap) {
        Origin::of(&self.shared().options.allowed_origins, asked).mark(answer);
    }

    /// The answer to a page that asks before it follows the log; `None` when it is about to do anything else.
    pub fn follow_preflight(&self, headers: &HeaderMap) -> Option<Answer> {
        headers.get(ACCESS_CONTROL_REQUEST_METHOD).filter(|method| *method == "GET")?;
        let mut answer = preflight_of(headers, "GET");
        self.mark_origin(headers, answer.headers_mut());
        Some(answer)
    }
}

/// What a request asks for.
struct Query {
    tenant: Option<String>,
    types: Option<Vec<Pattern>>,
    rooms: Vec<String>,
    start: Option<Start>,
}

/// From where.
enum Start {
    Offset(Offset),
    /// In the log as it is now.
    After(Position),
}

impl Query {
    fn read(catalog: &Catalog, query: &[(String, String)], headers: &HeaderMap, reader: &Reader) -> Result<Self> {
        let wrong = |detail: String| Err(Error::invalid("request.invalid", format!("query: {detail}")));
        let (mut types, mut rooms): (Vec<Pattern>, Vec<String>) = Default::default();
        let (mut tenant, mut last, mut after, mut all_types) = (None, None, None, true);
        for (name, value) in query {
            let values = || value.split(',').map(str::trim).filter(|value| !value.is_empty());
            match name.as_str() {
                "types" => {
                    all_types = false;
                    for text in values() {
                        let Some(pattern) = Pattern::parse(text) else {
                            return wrong(format!(
                                "types: expected types or patterns such as \"ticket.*\", got {text:?}"
                            ));
                        };
                        types.push(pattern);
                    }
                }
                "rooms" if *reader == Reader::EndUser => rooms.extend(values().map(str::to_owned)),
                "tenant" => tenant = Some(value.clone()),
                name if name == &*catalog.app.tenant && *reader == Reader::EndUser => tenant = Some(value.clone()),
                "lastEventId" => last = Some(value.as_str()),
                "after" => match value.parse() {
                    Ok(position) => after = Some(Position(position)),
                    Err(_) => return wrong(format!("after: expected a position, got {value:?}")),
                },
                name if catalog.auth.sources.iter().any(|source| is_query(source, name)) => {}
                name => {
                    let known = "tenant, types, rooms (for end users), after, lastEventId";
                    return wrong(format!("a stream has no {name:?}; it takes {known}"));
                }
            }
        }
        let declared = |pattern: &&Pattern| !catalog.events.keys().any(|name| pattern.matches(name));
        match (all_types, types.iter().find(declared)) {
            (false, _) if types.is_empty() => return wrong("types: expected at least one".to_owned()),
            // The log may have types that the catalog no longer has.
            (_, Some(unknown)) if *reader == Reader::EndUser => {
                return Err(builtin::unknown_type(catalog, "types", unknown));
            }
            (..) => {}
        }
        if rooms.len() > MAX_ROOMS {
            return wrong(format!("rooms: expected at most {MAX_ROOMS}"));
        }
        // A client that comes back does so with the address it began with, so what the header says is newer.
        let header = match headers.get("last-event-id").map(HeaderValue::to_str) {
            None => None,
            Some(Ok(text)) => Some(text),
            Some(Err(_)) => Some("…"),
        };
        let said = header.filter(|text| !text.is_empty()).or(last.filter(|text| !text.is_empty()));
        let start = match (said, after) {
            (Some(text), _) => Some(Start::Offset(text.parse().map_err(|_| {
                let shown: String = text.chars().take(80).collect();
                let detail = format!("Last-Event-ID: expected the id of an event of this server, got {shown:?}");
                Error::invalid("offset.invalid", detail)
            })?)),
            (None, after) => after.map(Start::After),
        };
        Ok(Self { tenant, types: (!all_types).then_some(types), rooms, start })
    }

    /// What a socket would say when it connects. A stream has no such payload; the `Authorization` header stands for its token.
    fn auth(&self, catalog: &Catalog, headers: &HeaderMap) -> Value {
        let bearer = headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok()).and_then(|header| {
            let (scheme, token) = header.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        json!({ "token": bearer, &*catalog.app.tenant: self.tenant })
    }
}

fn is_query(source: &CredentialSource, name: &str) -> bool {
    matches!(source, CredentialSource::Query(known) if known == name)
}

async fn who(session: &Session, asked: &Query, auth: &Value, reader: Reader) -> Result<Principal> {
    let shared = &session.shared;
    let principal = match reader {
        Reader::Tenant(tenant) => {
            let claims = Arc::new(json!({ "id": null, "tenant": tenant, "roles": [] }));
            return Ok(Principal { tenant, user: None, roles: Arc::new([]), claims, expires: None, recheck: None });
        }
        Reader::EndUser => {
            connect::may_show(session)?;
            let identified = connect::identify(session, &shared.catalog.realtime.namespaces[0], auth).await;
            identified.inspect_err(|refusal| {
                shared.stats.unauthenticated.up();
                shared.stats.by.connects.up(refusal.code());
            })?
        }
    };
    match &asked.tenant {
        Some(named) if *named != principal.tenant.as_str() => {
            let shown: String = named.chars().take(80).collect();
            Err(Error::not_found("tenant.unknown", format!("there is no tenant {shown:?} for this user")))
        }
        Some(_) | None => Ok(principal),
    }
}

/// Joins the session's one socket, as a CONNECT would.
async fn join(session: &Arc<Session>, asked: Query, auth: &Value, principal: Principal) -> Result<()> {
    let shared = &session.shared;
    let Query { types, rooms: named, start, tenant: _ } = asked;
    let whole_log = session.streaming.as_ref().is_some_and(|streaming| streaming.whole_log);
    let most = shared.options.max_subscriptions;
    if types.as_ref().is_some_and(|types| types.len() > most) {
        return Err(Error::invalid("request.invalid", format!("query: types: expected at most {most}")));
    }
    let mut rooms = Vec::new();
    if !whole_log {
        for name in &named {
            policy::may_join(&shared.catalog, &principal, name).ok_or_else(|| builtin::refused(name))?;
        }
        let wanted =
            Saved { rooms: named.iter().map(|name| (name.as_str().into(), Since::EVER)).collect(), ..Saved::default() };
        (rooms, _) = connect::allowed_rooms(shared, &principal, wanted);
    }
    let tenant = shared.enter(&principal.tenant).await?;
    let (after, lost) = match start {
        None => (None, None),
        Some(start) => match resume(shared, &tenant, &start, &rooms, whole_log).await? {
            Some(after) => (Some(after), None),
            None => (None, Some(start)),
        },
    };
    connect::admit(session, &tenant, &principal).map_err(|crowded| {
        shared.stats.refused.up();
        shared.stats.by.connects.up(crowded.code());
        connect::too_many(shared, &crowded)
    })?;
    shared.stats.sockets.up();
    let credential = connect::kept_credential(&principal, auth);
    let (sid, left) = (random_id(), Vec::new());
    let beginning = Beginning {
        sid,
        namespace: 0,
        principal: principal.clone(),
        types: types.map(|types| types.into_iter().map(Wanted::ever).collect()),
        left,
        acked: None,
        kept: false,
        credential,
    };
    let socket = Socket::new(session.clone(), tenant.clone(), beginning);
    tenant.directory.lock().sockets.insert(socket.sid.clone(), socket.clone());
    if !session.add_socket(&socket) {
        socket.detach(Closing::Lost);
        return Err(Error::unavailable("the connection is closed"));
    }
    session.push_frame(format!("retry: {}\n\n", RETRY_MS + u16::from_be_bytes(random()) % (2 * RETRY_MS)).into());
    let names: Vec<String> = rooms.iter().map(|room| room.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let hello = |now: At, recovered| connect::hello(&socket, &names, now.position, Some(recovered)).to_string();
    match after {
        Some(after) => {
            socket.attach(rooms, Some(after), |now| {
                socket.emit_first("connected", &hello(now, true));
            });
            shared.stats.recovered.up();
            shared.stats.by.returned.up("recovered");
            // It is parked: what it missed follows, as fast as it is taken.
            session.drained();
        }
        None => {
            let lost = lost.map(|lost| match lost {
                Start::Offset(offset) => offset,
                Start::After(position) => Offset { epoch: shared.store.epoch().clone(), position, across: None },
            });
            socket.attach(rooms, None, |now| {
                socket.emit_first("connected", &hello(now, false));
                // Before any event that the client did not miss.
                if let Some(lost) = lost {
                    let told = json!({ "position": now.position, "offset": lost.to_string() });
                    socket.emit_first("continuity:lost", &told.to_string());
                }
            });
        }
    }
    if principal.expires.is_some() || principal.recheck.is_some() {
        shared.wheel.plan(session, Duration::ZERO);
    }
    // Revoked while it was being let in, as at a CONNECT.
    if shared.auth.is_revoked(&principal) {
        registry::put_out(&socket);
    }
    tracing::debug!(tenant = %tenant.id, user = principal.user.as_deref(), socket = %socket.sid, whole_log, "stream opened");
    Ok(())
}

/// From where to go on; `None` when not everything after it can be given.
async fn resume(
    shared: &Shared,
    tenant: &Tenant,
    start: &Start,
    rooms: &[Allowed],
    whole_log: bool,
) -> Result<Option<At>> {
    let after = match start {
        Start::After(position) => At { position: *position, across: None },
        Start::Offset(Offset { epoch, position, across }) if epoch == shared.store.epoch() => {
            At { position: *position, across: *across }
        }
        Start::Offset(_) => {
            shared.lose(&shared.stats.lost_epoch, "epoch");
            return Ok(None);
        }
    };
    let lost = match whole_log {
        true => recovery::beyond_log(shared, tenant, after.position, None).await?,
        false => recovery::beyond_history(shared, tenant, after.position).await?,
    };
    if let Some(reason) = lost {
        shared.lose(&shared.stats.lost_history, reason);
        return Ok(None);
    }
    Ok((!recovery::is_lost_across(shared, rooms, after).await?).then_some(after))
}

#[cfg(test)]
mod tests {
    use tidewire_core::catalog::parse;

    use super::*;

    const CATALOG: &str = r#"
[app]
name = "streams"
tenant = "portId"

[auth]
sources = ["query.token"]

[rooms]
"port:{portId}" = { join = "auto" }

[events."ticket.opened"]
rooms = ["port:{portId}"]
data = { portId = "string" }
"#;

    #[test]
    fn any_query_and_any_last_event_id_ask_for_what_there_is_or_are_refused() {
        let catalog = parse(CATALOG).expect("a catalog");
        let pieces = [
            "types=",
            "rooms=",
            "after=",
            "tenant=",
            "portId=",
            "lastEventId=",
            "token=",
            "ticket.opened",
            "ticket.*",
            "*",
            ",",
            "&",
            "a",
            "e1.4",
            "e1.18446744073709551615",
            "7",
            "18446744073709551616",
            "-1",
            "%2C",
            "%",
            " ",
            "=",
            "é",
            "|",
        ];
        let soon = Duration::from_millis(300);
        bolero::check!().with_test_time(soon).with_max_len(16).for_each(|choices: &[u8]| {
            let text: String = choices.iter().map(|choice| pieces[usize::from(*choice) % pieces.len()]).collect();
            let (query, last) = text.split_once('|').unwrap_or((&text, ""));
            let mut headers = HeaderMap::new();
            if let Ok(last) = HeaderValue::from_bytes(last.as_bytes()) {
                headers.insert("last-event-id", last);
            }
            for reader in [Reader::EndUser, Reader::Tenant(TenantId::app())] {
                let Ok(asked) = Query::read(&catalog, &parse_query(query), &headers, &reader) else { continue };
                assert!(asked.rooms.len() <= MAX_ROOMS && asked.types.is_none_or(|types| !types.is_empty()));
                if let Some(Start::Offset(offset)) = asked.start {
                    let said = format!("{query}{last}");
                    assert!(said.contains(offset.epoch.as_str()), "{said:?}: {offset}");
                }
            }
        });
    }
}
