//! CONNECT: a transport joins a namespace. Credential, limits, recovery, rooms, and then the first packets.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::{Offset, Position};
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, TenantId};

use crate::auth::{Refusal, has_ended};
use crate::cast::At;
use crate::cursors;
use crate::echo;
use crate::encode;
use crate::gateway::Shared;
use crate::hub::{Crowded, Tenant};
use crate::policy::{self, Allowed};
use crate::presence;
use crate::recovery::{self, Back, Claimed, Owner, Saved};
use crate::registry;
use crate::session::{Closing, Session, random_id};
use crate::socket::{Beginning, Change, Socket, Wanted};
use crate::tenancy;

/// How long a credential may take to be checked.
const AUTH_TIMEOUT: Duration = Duration::from_secs(15);

/// The most characters of an offset.
const MAX_OFFSET: usize = 100;

/// When somebody may have left whose place is wanted.
const ANOTHER_TRY: Duration = Duration::from_secs(5);

/// Answers a CONNECT with the socket or with a refusal; `Err` closes the transport, so that the client tries again by itself.
pub(crate) async fn connect(session: &Arc<Session>, nsp: &str, auth: Option<&str>) -> Result<(), Closing> {
    let shared = &session.shared;
    let Some(namespace) = shared.catalog.realtime.namespaces.iter().position(|known| known == nsp) else {
        shared.stats.by.connects.up("namespace.unknown");
        session.refuse(nsp, "Invalid namespace", None);
        return Ok(());
    };
    if session.socket(nsp).is_some() {
        return Err(Closing::Malformed(1002, "the namespace was joined already"));
    }
    let auth: Value = match auth.map(serde_json::from_str) {
        None => Value::Null,
        Some(Ok(auth)) => auth,
        Some(Err(_)) => return Err(Closing::Malformed(1007, "the payload of CONNECT cannot be read")),
    };
    if let Err(error) = may_show(session) {
        session.refuse(nsp, "Too many refused credentials", Some(&limited(&error)));
        return Ok(());
    }
    let principal = match identify(session, nsp, &auth).await {
        Ok(principal) => principal,
        Err(refusal) => {
            shared.stats.unauthenticated.up();
            shared.stats.by.connects.up(refusal.code());
            session.refuse(nsp, refusal.message(), Some(&refusal.data()));
            return Ok(());
        }
    };
    let tenant = shared.enter(&principal.tenant).await.map_err(|error| recovery::unavailable(&error))?;
    let cursor = match cursors::name("auth.after", &auth["after"]) {
        Ok(name) => name.zip(principal.user.as_ref()),
        Err(error) => {
            session.refuse(
                nsp,
                "Invalid cursor",
                Some(&json!({ "code": error.code(), "detail": error.detail() }).to_string()),
            );
            return Ok(());
        }
    };
    let offset = auth["offset"].as_str();
    let owner = Owner::new(nsp, &principal, &*shared.store);
    let mut back = match auth["pid"].as_str().filter(|_| shared.options.recovery) {
        Some(pid) => recovery::claim(shared, &tenant, &owner, &principal, pid, offset).await?,
        None => None,
    };
    if let Some(found) = &mut back {
        let (rooms, _) = allowed_rooms(shared, &principal, found.saved.clone());
        let is_lost = recovery::is_lost_across(shared, &rooms, found.after).await;
        if is_lost.map_err(|error| recovery::unavailable(&error))? {
            back = None;
        }
    }
    // As it is told again: what is longer is no offset.
    let offset = offset.map(|offset| offset.chars().take(MAX_OFFSET).collect::<String>());
    // What a session knows of itself is newer than what its user has told of all of them.
    let cursor = cursor.filter(|_| back.is_none());
    let acked = match cursor {
        None => Acked::NotAsked,
        Some((name, user)) => match reach(shared, &tenant, user, name).await {
            Ok(acked) => acked,
            Err(error) if error.code() == cursors::TOO_MANY => {
                shared.stats.by.connects.up(error.code());
                let data = json!({ "code": error.code(), "detail": error.detail() });
                session.refuse(nsp, "Too many cursors", Some(&data.to_string()));
                return Ok(());
            }
            Err(error) => return Err(recovery::unavailable(&error)),
        },
    };
    // From here to the new socket nothing is waited for: who is counted and then given up would be counted for ever.
    if let Err(crowded) = admit(session, &tenant, &principal) {
        shared.stats.refused.up();
        shared.stats.by.connects.up(crowded.code());
        let mut data = json!({ "code": crowded.code() });
        if let Crowded::Rate { until } = crowded {
            data["retryAfter"] = json!(encode::millis(until.since(shared.clock.now())));
        }
        session.refuse(nsp, "Too many connections", Some(&data.to_string()));
        return Ok(());
    }
    shared.stats.sockets.up();
    let namespace = u8::try_from(namespace).unwrap_or(u8::MAX);
    let (claimed, saved, back, turn) = match back {
        Some(Back { claimed, saved, after, turn }) => (claimed, saved, Some(after), Some(turn)),
        None => {
            let began = shared.clock.now();
            (Claimed { sid: random_id(), joined_at: At::default(), began }, Saved::default(), None, None)
        }
    };
    let sid = claimed.sid.clone();
    let kept = !saved.is_empty();
    let (rooms, saved) = allowed_rooms(shared, &principal, saved);
    let types = saved.types.map(|types| types.iter().filter_map(Wanted::restored).collect());
    let (left, own_acked) = (saved.left, saved.acked);
    let credential = kept_credential(&principal, &auth);
    let beginning =
        Beginning { sid, namespace, principal: principal.clone(), types, left, acked: own_acked, kept, credential };
    let socket = Socket::new(session.clone(), tenant.clone(), beginning);
    tenant.directory.lock().sockets.insert(socket.sid.clone(), socket.clone());
    drop(turn);
    if !session.add_socket(&socket) {
        socket.detach(Closing::Lost);
        return Ok(());
    }
    let accept = |joined_at: At| {
        let pid = shared.signer.sign(&Claimed { joined_at, ..claimed.clone() }, &owner);
        let pid = shared.options.recovery.then_some(pid.as_str());
        session.push_frame(shared.options.parser.connect(nsp, &socket.sid, pid))
    };
    match (back, &acked) {
        (Some(after), _) => {
            socket.attach(rooms, Some(after), |_| {
                // Before what was missed: the client keeps events that come before the answer without their offsets, so a line that
                // breaks between the two would bring them again.
                accept(claimed.joined_at);
            });
            recovery::catch_up(&socket).await?;
            let names: Vec<_> = socket.rooms();
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            let hello = hello(&socket, &names, socket.reached(), Some(true));
            socket.emit("connected", &hello.to_string());
            if claimed.began < shared.since {
                // Who was there in the process before and does not come back is not told of by anybody.
                for room in socket.rooms_with_presence() {
                    socket.emit("presence:reset", &json!({ "room": &*room }).to_string());
                }
            }
            shared.stats.recovered.up();
            shared.stats.by.returned.up("recovered");
            // Still parked when there is more than fits at once.
            session.drained();
        }
        (None, &(Acked::At(after) | Acked::New(after))) => {
            let names: Vec<String> = rooms.iter().map(|room| room.name.clone()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            // A cursor is a place in the log of its tenant.
            let begins_across = matches!(acked, Acked::At(_)).then(|| rooms.iter().filter(|room| room.app));
            let missed: Vec<_> = begins_across.into_iter().flatten().map(|room| room.name.clone()).collect();
            socket.attach(rooms, Some(At { position: after, across: None }), |now| {
                // A new session, so the answer goes first. Nothing after the cursor has been sent, and so its `pid` says.
                accept(At { position: after, ..now });
                let mut hello = hello(&socket, &names, now.position, Some(false));
                hello["acked"] = json!(after);
                socket.emit_first("connected", &hello.to_string());
                if !missed.is_empty() {
                    let lost = json!({ "position": after, "offset": offset, "rooms": missed });
                    socket.emit_first("continuity:lost", &lost.to_string());
                }
            });
            session.drained();
        }
        (None, acked) => {
            let names: Vec<String> = rooms.iter().map(|room| room.name.clone()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            socket.attach(rooms, None, |now| {
                accept(now);
                if shared.options.echo.is_some() {
                    session.push_frame(echo::greet(&socket, &auth));
                    return;
                }
                let mut hello = hello(&socket, &names, now.position, Some(false));
                if let Acked::Lost(lost) = acked {
                    hello["acked"] = json!(lost.position);
                }
                socket.emit_first("connected", &hello.to_string());
                let lost = match acked {
                    Acked::Lost(lost) => Some(lost.to_string()),
                    Acked::NotAsked | Acked::At(_) | Acked::New(_) => offset,
                };
                // Before any event that the client did not miss.
                if lost.is_some() {
                    let lost = json!({ "position": now.position, "offset": lost });
                    socket.emit_first("continuity:lost", &lost.to_string());
                }
            });
        }
    }
    if principal.expires.is_some() || principal.recheck.is_some() {
        // The credential may end before the wheel would look at this session.
        shared.wheel.plan(session, Duration::ZERO);
    }
    // Revoked while it was being let in: whoever revokes looks through the directory after the revocation holds, so one of the two sees
    // the other.
    if shared.auth.is_revoked(&principal) {
        registry::put_out(&socket);
    }
    let user = principal.user.as_deref().unwrap_or("visitor");
    tracing::debug!(tenant = %tenant.id, user, socket = %socket.sid, recovered = back.is_some(), "socket connected");
    Ok(())
}

/// Where a new session begins that asked to begin at a cursor of its user.
enum Acked {
    NotAsked,
    At(Position),
    /// At the cursor that it begins with this session.
    New(Position),
    /// Not everything after it can be given.
    Lost(Offset),
}

/// Looks for a cursor; one that is not there yet begins here, so that nothing is missed before its first `ack`.
async fn reach(shared: &Shared, tenant: &Tenant, user: &Arc<str>, name: &str) -> Result<Acked, Error> {
    let Some(at) = cursors::find(shared, &tenant.id, user, name).await? else {
        return cursors::advance(shared, &tenant.id, user, name, tenant.delivered()).await.map(Acked::New);
    };
    if at.epoch != *shared.store.epoch() {
        shared.lose(&shared.stats.lost_epoch, "epoch");
        return Ok(Acked::Lost(at));
    }
    Ok(match recovery::beyond_history(shared, tenant, at.position).await? {
        None => Acked::At(at.position),
        Some(reason) => {
            shared.lose(&shared.stats.lost_history, reason);
            Acked::Lost(at)
        }
    })
}

/// Whether a credential of this client is looked at: not when too many from its address have been refused. Code `limit.credentials`.
pub(crate) fn may_show(session: &Session) -> Result<(), Error> {
    let shared = &session.shared;
    let now = shared.clock.now();
    shared.refusals.admit(session.handshake.address, shared.options.refused_per_address, now).map_err(|until| {
        shared.stats.refused.up();
        shared.stats.by.connects.up("limit.credentials");
        let detail =
            "too many credentials from this address have been refused; wait, and log in again before you connect";
        Error::new(Kind::Limited, "limit.credentials", detail).with_retry_after(until.since(now))
    })
}

/// The data of a refusal that ends by itself.
fn limited(error: &Error) -> String {
    let after = error.retry_after().map(encode::millis);
    json!({ "code": error.code(), "detail": error.detail(), "retryAfter": after }).to_string()
}

/// Who is asking, in the tenant that it enters. What is wrong with a credential counts for its address.
pub(crate) async fn identify(session: &Session, nsp: &str, auth: &Value) -> Result<Principal, Refusal> {
    let shared = &session.shared;
    let identified = enter(session, nsp, auth).await;
    // An app that does not answer is nothing that its clients have done.
    if matches!(identified, Err(Refusal::Missing | Refusal::Invalid(_))) {
        shared.refusals.count(session.handshake.address, shared.options.refused_per_address, shared.clock.now());
    }
    identified
}

async fn enter(session: &Session, nsp: &str, auth: &Value) -> Result<Principal, Refusal> {
    let shared = &session.shared;
    let principal = choose_tenant(shared, nsp, auth, authenticate(session, auth).await?);
    // The credential was judged in its home. What was revoked in another tenant of its user is known there alone.
    if shared.auth.is_revoked(&principal) {
        return Err(Refusal::Invalid("it has been revoked".to_owned()));
    }
    Ok(principal)
}

/// Who is asking: by the first credential there is, or a visitor where the catalog has rooms for such.
pub(crate) async fn authenticate(session: &Session, auth: &Value) -> Result<Principal, Refusal> {
    let shared = &session.shared;
    let credential = session.handshake.credential(&shared.catalog.auth, auth)?;
    let answer = tokio::time::timeout(AUTH_TIMEOUT, shared.auth.authenticate(credential)).await;
    let principal = match answer.unwrap_or(Err(Refusal::Unchecked)) {
        Err(Refusal::Missing) if credential.is_none() => {
            let visitor = session.handshake.visitor(&shared.catalog, auth).ok_or(Refusal::Missing)?;
            match &shared.options.tenants {
                Some(known) if !known.contains(&visitor.tenant) => return Err(Refusal::Missing),
                Some(_) | None => visitor,
            }
        }
        other => other?,
    };
    if has_ended(&principal, shared.clock.now()) {
        return Err(Refusal::Invalid("it has expired".to_owned()));
    }
    Ok(principal)
}

pub(crate) fn admit(session: &Session, tenant: &Tenant, principal: &Principal) -> Result<(), Crowded> {
    let shared = &session.shared;
    if tenant.directory.lock().sockets.len() >= shared.options.max_per_tenant {
        return Err(Crowded::Tenant);
    }
    let Some(user) = &principal.user else {
        let is_admitted = shared.visitors.admit(session.handshake.address, shared.options.max_per_address);
        return if is_admitted { Ok(()) } else { Err(Crowded::Address) };
    };
    let rate = shared.catalog.realtime.connect_rate;
    tenant.directory.lock().admit(user, shared.options.max_per_user, rate, shared.clock.now())
}

/// What a client is told that may not have one more socket.
pub(crate) fn too_many(shared: &Shared, crowded: &Crowded) -> Error {
    let (detail, after) = match crowded {
        Crowded::Rate { until } => ("this user connects too often", until.since(shared.clock.now())),
        Crowded::Sockets => ("this user has as many connections as it may", ANOTHER_TRY),
        Crowded::Tenant => ("the tenant has as many connections as it may", ANOTHER_TRY),
        Crowded::Address => ("as many visitors without a login as may are connected from this address", ANOTHER_TRY),
    };
    Error::new(Kind::Limited, crowded.code(), detail).with_retry_after(after)
}

/// Its own rooms without those it left, and the ones it had asked for that it may still be in.
pub(crate) fn allowed_rooms(shared: &Shared, principal: &Principal, saved: Saved) -> (Vec<Allowed>, Saved) {
    let mut rooms = policy::auto_rooms(&shared.catalog, principal);
    rooms.retain(|room| !saved.left.iter().any(|left| **left == *room.name));
    for (name, from) in &saved.rooms {
        let Some(room) = policy::may_join(&shared.catalog, principal, name) else { continue };
        match rooms.iter_mut().find(|known| known.name == room.name) {
            Some(known) => known.from = *from,
            None => rooms.push(Allowed { from: *from, ..room }),
        }
    }
    let own = rooms.iter().filter(|room| room.auto).count();
    rooms.truncate(shared.options.max_rooms_per_socket.saturating_add(own));
    for (name, word) in &saved.data {
        // By the catalog of today, which may have another shape for it.
        if let Some(room) = rooms.iter_mut().find(|room| *room.name == **name)
            && let Ok(data) = word.data.to_value()
        {
            room.data = presence::word(&shared.catalog, name, &data, word.at).unwrap_or(None);
        }
    }
    (rooms, saved)
}

/// The data of `connected`, and without `recovered` that of `tenant:switched`.
pub(crate) fn hello(socket: &Socket, rooms: &[&str], position: Position, recovered: Option<bool>) -> Value {
    let principal = socket.principal();
    let mut hello = json!({
        "socketId": &*socket.sid,
        "userId": principal.user.as_deref(),
        "tenant": principal.tenant,
        "rooms": rooms,
        "eventTypes": socket.types(),
        "roles": &*principal.roles,
        "position": position,
    });
    if let Some(recovered) = recovered {
        hello["recovered"] = json!(recovered);
    }
    let tenants = tenancy::tenants(&socket.shared().catalog, &principal);
    if tenants.len() > 1 {
        hello["tenants"] = json!(tenants);
    }
    hello
}

/// In which of its tenants a client joins: where the session is that it comes back to, else the one that it names, else its home.
fn choose_tenant(shared: &Shared, nsp: &str, auth: &Value, principal: Principal) -> Principal {
    let catalog = &shared.catalog;
    let tenants = tenancy::tenants(catalog, &principal);
    let named = auth[&*catalog.app.tenant].as_str();
    let is_back = |tenant: &&TenantId| {
        let owner = Owner { tenant: tenant.as_str(), ..Owner::new(nsp, &principal, &*shared.store) };
        auth["pid"].as_str().is_some_and(|pid| shared.signer.check(pid, &owner).is_some())
    };
    if tenants.len() == 1 {
        return principal;
    }
    let chosen = tenants.iter().find(is_back).or_else(|| tenants.iter().find(|tenant| Some(tenant.as_str()) == named));
    let chosen = chosen.filter(|tenant| exists(shared, tenant));
    chosen.and_then(|tenant| tenancy::enter(catalog, &principal, tenant)).unwrap_or(principal)
}

fn exists(shared: &Shared, tenant: &TenantId) -> bool {
    shared.options.tenants.as_ref().is_none_or(|known| known.contains(tenant))
}

/// The token with which the credential is checked again; only kept where that will be.
pub(crate) fn kept_credential(principal: &Principal, auth: &Value) -> Option<Box<str>> {
    principal.recheck.and_then(|_| auth["token"].as_str()).map(Into::into)
}

/// Moves a socket into another tenant of its user.
///
/// For the client it is a new session: it gets `tenant:switched`, whose offset is of the new tenant's log, and then a new CONNECT with
/// a new id and `pid`. Its old session is ended for good, and durably so, before either of them goes out: an old `pid` with an offset
/// of the new log would name events that nobody missed. Codes `switch.forbidden`, `limit.connections`, `limit.connects`, `unavailable`.
pub(crate) async fn switch(socket: &Arc<Socket>, to: &str) -> Result<Arc<Socket>, Error> {
    let (shared, session) = (socket.shared(), &socket.session);
    let forbidden = || {
        let shown: String = to.chars().take(80).collect();
        let detail = format!("this user may not switch to the tenant {shown:?}");
        Error::new(Kind::Forbidden, "switch.forbidden", detail)
    };
    let old = socket.principal();
    let principal = TenantId::new(to).ok().filter(|tenant| exists(shared, tenant));
    let principal =
        principal.and_then(|tenant| tenancy::enter(&shared.catalog, &old, &tenant)).ok_or_else(forbidden)?;
    if principal.tenant == old.tenant {
        return Ok(socket.clone());
    }
    if shared.auth.is_revoked(&principal) {
        return Err(forbidden());
    }
    let tenant = shared.enter(&principal.tenant).await?;
    admit(session, &tenant, &principal).map_err(|crowded| too_many(shared, &crowded))?;
    shared.stats.sockets.up();
    let nsp = socket.namespace_name();
    // Positions are those of the tenant it leaves.
    let types =
        socket.types().map(|types| types.iter().filter_map(|text| Pattern::parse(text)).map(Wanted::ever).collect());
    let beginning = Beginning {
        sid: random_id(),
        namespace: socket.namespace,
        principal: principal.clone(),
        types,
        left: Vec::new(),
        acked: None,
        kept: false,
        credential: socket.credential(),
    };
    let next = Socket::new(session.clone(), tenant.clone(), beginning);
    drop(session.remove_socket(nsp));
    socket.detach(Closing::Left);
    let ended = recovery::end(shared, &socket.tenant.id, &socket.sid).await;
    // The types that it brings along, too: the client may come back by the new `pid` as soon as it has it.
    let kept = match ended {
        Ok(()) => next.keep().await,
        Err(error) => Err(error),
    };
    if let Err(error) = kept {
        next.detach(Closing::Lost);
        session.close(Closing::Unavailable);
        return Err(error);
    }
    tenant.directory.lock().sockets.insert(next.sid.clone(), next.clone());
    if !session.add_socket(&next) {
        next.detach(Closing::Lost);
        return Err(Error::unavailable("the connection is closed"));
    }
    let rooms = policy::auto_rooms(&shared.catalog, &principal);
    let names: Vec<String> = rooms.iter().map(|room| room.name.clone()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let owner = Owner::new(nsp, &principal, &*shared.store);
    next.attach(rooms, None, |now| {
        next.emit_first("tenant:switched", &hello(&next, &names, now.position, None).to_string());
        let claimed = Claimed { sid: next.sid.clone(), joined_at: now, began: next.since };
        let pid = shared.signer.sign(&claimed, &owner);
        let pid = shared.options.recovery.then_some(pid.as_str());
        session.push_frame(shared.options.parser.connect(nsp, &next.sid, pid));
    });
    if shared.auth.is_revoked(&principal) {
        registry::put_out(&next);
    }
    tracing::info!(from = %old.tenant, to = %principal.tenant, user = principal.user.as_deref(), "a socket switched tenants");
    Ok(next)
}

/// Checks the credential of a live socket again, and lets what it says now count: rooms that it no longer allows are left, others are
/// joined, and the client is told. Nothing changes when it cannot be checked.
pub(crate) async fn recheck(socket: Arc<Socket>) {
    let shared = socket.shared();
    let auth = json!({ "token": socket.credential() });
    match authenticate(&socket.session, &auth).await {
        Ok(principal) => match tenancy::enter(&shared.catalog, &principal, &socket.tenant.id) {
            Some(principal) if principal.user == socket.user => {
                let before = socket.standing();
                if let Err(error) = adopt(&socket, principal, None).await {
                    tracing::debug!(%error, "not every room could be joined after a check");
                }
                let after = socket.standing();
                if after != before {
                    let (roles, rooms) = after;
                    socket.emit("roles:changed", &json!({ "roles": roles, "rooms": rooms }).to_string());
                }
            }
            Some(_) | None => return registry::put_out(&socket),
        },
        Err(Refusal::Unchecked) => socket.put_off_check(shared.clock.now() + AUTH_TIMEOUT),
        Err(Refusal::Missing | Refusal::Invalid(_)) => return registry::put_out(&socket),
    }
    shared.wheel.plan(&socket.session, Duration::ZERO);
}

/// Lets a checked credential of the same user and tenant take the place of the one before; `token` when the client sent a new one.
pub(crate) async fn adopt(socket: &Arc<Socket>, principal: Principal, token: Option<&Value>) -> Result<(), Error> {
    let catalog = &socket.shared().catalog;
    let changing = socket.changing().await;
    let auto = policy::auto_rooms(catalog, &principal);
    let judge = principal.clone();
    if let Some(auth) = token {
        socket.keep_credential(kept_credential(&principal, auth));
    }
    let is_new = token.is_some();
    let outcome =
        socket.renew(principal.clone(), auto, is_new, |room| policy::may_join(catalog, &judge, room).is_some());
    // Whoever comes back is judged by the credential of then, so the new one counts whether this is kept now or by the next look.
    drop(changing.change(Change::default()).await);
    // Revoked while it was being taken over, as at a CONNECT.
    if socket.shared().auth.is_revoked(&principal) {
        registry::put_out(socket);
    }
    outcome
}
