//! CONNECT: a transport joins a namespace. Credential, limits, recovery, rooms, and then the first packets.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::Position;
use tidewire_core::principal::Principal;

use crate::auth::{Refusal, has_ended};
use crate::echo;
use crate::gateway::Shared;
use crate::hub::{Crowded, Tenant};
use crate::policy::{self, Allowed};
use crate::recovery::{self, Owner, Return, Saved};
use crate::session::{Closing, Session, random_id};
use crate::socket::{Beginning, Socket};

/// How long a credential may take to be checked.
const AUTH_TIMEOUT: Duration = Duration::from_secs(15);

/// Answers a CONNECT with the socket or with a refusal; `Err` closes the transport, so that the client tries again by itself.
pub(crate) async fn connect(session: &Arc<Session>, nsp: &str, auth: Option<&str>) -> Result<(), Closing> {
    let shared = &session.shared;
    let Some(namespace) = shared.catalog.realtime.namespaces.iter().position(|known| known == nsp) else {
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
    let principal = match authenticate(session, &auth).await {
        Ok(principal) => principal,
        Err(refusal) => {
            shared.stats.unauthenticated.up();
            session.refuse(nsp, refusal.message(), Some(&refusal.data()));
            return Ok(());
        }
    };
    let tenant = shared.hub.enter(&principal.tenant);
    tenant.open(&*shared.store).await.map_err(|error| recovery::unavailable(&error))?;
    let offset = auth["offset"].as_str();
    let owner = Owner::new(nsp, &principal, &*shared.store);
    let returned = match auth["pid"].as_str().filter(|_| shared.options.recovery) {
        Some(pid) => recovery::claim(shared, &tenant, &owner, pid, offset).await?,
        None => Return::New,
    };
    if let Err(crowded) = admit(shared, &tenant, &principal) {
        shared.stats.refused.up();
        let (message, data) = match crowded {
            Crowded::Sockets => ("Too many connections", json!({ "code": "limit.connections" })),
            Crowded::Rate { until } => {
                let wait = until.since(shared.clock.now()).as_millis() as u64;
                ("Too many connections", json!({ "code": "limit.connects", "retryAfter": wait }))
            }
        };
        session.refuse(nsp, message, Some(&data.to_string()));
        return Ok(());
    }
    shared.stats.sockets.up();
    let namespace = u8::try_from(namespace).unwrap_or(u8::MAX);
    let (sid, saved, back) = match returned {
        Return::Whole { sid, saved, after, joined_at } => (sid, saved, Some((after, joined_at))),
        Return::New => (random_id(), Saved::default(), None),
    };
    let (rooms, saved) = allowed_rooms(shared, &principal, saved);
    let types = saved.types.map(|types| types.iter().filter_map(|text| Pattern::parse(text)).collect());
    let (left, acked) = (saved.left, saved.acked);
    let beginning = Beginning { sid, namespace, principal: principal.clone(), types, left, acked };
    let socket = Socket::new(session.clone(), tenant.clone(), beginning);
    let before = tenant.directory.lock().sockets.insert(socket.sid.clone(), socket.clone());
    if let Some(before) = before {
        // Two transports came back with the same token at once; the later one is the client's.
        before.session.close(Closing::Replaced);
    }
    if !session.add_socket(&socket) {
        socket.detach(Closing::Lost);
        return Ok(());
    }
    let accept = |joined_at: Position| {
        let pid = shared.signer.sign(&socket.sid, joined_at, &owner);
        let pid = shared.options.recovery.then_some(pid.as_str());
        session.push_frame(shared.options.parser.connect(nsp, &socket.sid, pid))
    };
    match back {
        Some((after, joined_at)) => {
            // What was missed goes first, then the answer: so the protocol has it.
            socket.attach(rooms, Some(after), |_| ());
            recovery::catch_up(&socket).await?;
            session.close_if_full(accept(joined_at));
            let names: Vec<_> = socket.rooms();
            let names: Vec<&str> = names.iter().map(|name| &**name).collect();
            socket.emit("connected", &hello(&socket, &principal, &names, tenant.delivered(), true));
            shared.stats.recovered.up();
            // Still parked when there is more than fits at once.
            session.drained();
        }
        None => {
            let names: Vec<String> = rooms.iter().map(|room| room.name.clone()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let mut joined_at = Position(0);
            socket.attach(rooms, None, |position| {
                joined_at = position;
                accept(position);
                if shared.options.echo.is_some() {
                    session.push_frame(echo::greet(&socket, &auth));
                    return;
                }
                socket.emit_at("connected", &hello(&socket, &principal, &names, position, false), position);
            });
            if let Some(offset) = offset {
                socket.emit("continuity:lost", &json!({ "position": joined_at, "offset": offset }).to_string());
            }
        }
    }
    if principal.expires.is_some() {
        // The credential may end before the wheel would look at this session.
        shared.wheel.plan(session, Duration::ZERO);
    }
    let user = principal.user.as_deref().unwrap_or("visitor");
    tracing::debug!(tenant = %tenant.id, user, socket = %socket.sid, recovered = back.is_some(), "socket connected");
    Ok(())
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

fn admit(shared: &Shared, tenant: &Tenant, principal: &Principal) -> Result<(), Crowded> {
    let Some(user) = &principal.user else { return Ok(()) };
    let rate = shared.catalog.realtime.connect_rate;
    tenant.directory.lock().admit(user, shared.options.max_per_user, rate, shared.clock.now())
}

/// Its own rooms without those it left, and the ones it had asked for that it may still be in.
fn allowed_rooms(shared: &Shared, principal: &Principal, saved: Saved) -> (Vec<Allowed>, Saved) {
    let mut rooms = policy::auto_rooms(&shared.catalog, principal);
    rooms.retain(|room| !saved.left.iter().any(|left| **left == *room.name));
    for name in &saved.rooms {
        if let Some(room) = policy::may_join(&shared.catalog, principal, name)
            && !rooms.iter().any(|known| known.name == room.name)
        {
            rooms.push(room);
        }
    }
    rooms.truncate(shared.options.max_rooms_per_socket);
    (rooms, saved)
}

/// The data of `connected`.
fn hello(socket: &Socket, principal: &Principal, rooms: &[&str], position: Position, recovered: bool) -> String {
    json!({
        "socketId": &*socket.sid,
        "userId": principal.user.as_deref(),
        "tenant": principal.tenant,
        "rooms": rooms,
        "roles": &*principal.roles,
        "position": position,
        "recovered": recovered,
    })
    .to_string()
}
