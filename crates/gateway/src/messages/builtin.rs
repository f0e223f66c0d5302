//! `subscribe`, `unsubscribe`, `join`, `leave`, `auth`, `ack`, `presence` and `switch`.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tidewire_core::catalog::{Catalog, Join, Pattern};
use tidewire_core::event::{Offset, Position};
use tidewire_core::{Error, Kind, Result};

use super::{Outcome, fields};
use crate::connect;
use crate::cursors;
use crate::policy::{self, Allowed};
use crate::presence::{self, Members};
use crate::socket::{Change, Socket};
use crate::tenancy;

/// `{eventTypes?, rooms?}`: from now on only these types (and those subscribed before), and also these rooms. All or nothing.
pub(super) async fn subscribe(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let (types, rooms) = (patterns(args)?, names(args, "rooms")?);
    if types.is_none() && rooms.is_none() {
        return Err(Error::invalid("message.invalid_data", "subscribe: expected {eventTypes?: [...], rooms?: [...]}"));
    }
    for pattern in types.iter().flatten() {
        let declared = socket.shared().catalog.events.keys().any(|name| pattern.matches(name));
        if !declared {
            return Err(unknown_type(&socket.shared().catalog, "eventTypes", pattern));
        }
    }
    let changing = socket.changing().await;
    let join = rooms.iter().flatten().map(|room| allowed(socket, room, &Value::Null)).collect::<Result<_>>()?;
    let types = types.map(|add| socket.with_types(add)).transpose()?;
    changing.change(Change { join, types, ..Change::default() }).await?;
    Ok(standing(socket))
}

/// `{eventTypes?, rooms?}`: no longer these.
pub(super) async fn unsubscribe(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let (types, rooms) = (patterns(args)?, names(args, "rooms")?);
    let changing = socket.changing().await;
    let types = types.and_then(|remove| socket.without_types(&remove));
    let leave = rooms.unwrap_or_default();
    changing.change(Change { leave, types, ..Change::default() }).await?;
    Ok(standing(socket))
}

/// `room` or `{room, data?}`, where `data` is what the user tells of itself in a room with presence. In a room that it is in already, it
/// replaces what was told before.
pub(super) async fn join(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let room = room_name(args)?;
    let data = if args.is_object() { &args["data"] } else { &Value::Null };
    let changing = socket.changing().await;
    let join = vec![allowed(socket, room, data)?];
    changing.change(Change { join, ..Change::default() }).await?;
    Ok(fields([("room", json!(room))]))
}

/// A room that the socket's credential allows, as it is to be joined from now on. Codes `room.forbidden`, `message.invalid_data`, `data.too_large`.
pub(super) fn allowed(socket: &Socket, room: &str, data: &Value) -> Result<Allowed> {
    let catalog = &socket.shared().catalog;
    let allowed = policy::may_join(catalog, &socket.principal(), room).ok_or_else(|| refused(room))?;
    let now = socket.shared().clock.now();
    let at = socket.user.as_ref().map_or(now, |user| socket.tenant.presence.time_of_word(room, user, now));
    let data = presence::word(catalog, room, data, at)?;
    Ok(Allowed { data, from: socket.now(), ..allowed })
}

/// `room` or `{room}`. Leaving a room one is not in is fine.
pub(super) async fn leave(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let room = room_name(args)?;
    if socket.user.is_none() && !is_public(socket, room) {
        return Err(refused(room));
    }
    let changing = socket.changing().await;
    let was_in = socket.is_in(room);
    changing.change(Change { leave: vec![room.to_owned()], ..Change::default() }).await?;
    Ok(fields([("room", json!(room)), ("left", json!(was_in))]))
}

/// `{token}`: a renewed credential of the same user and tenant. Rooms follow today's claims and roles.
pub(super) async fn renew(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let args = match args {
        Value::String(token) => json!({ "token": token }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => args.clone(),
    };
    let token = args["token"].as_str().filter(|token| !token.is_empty());
    if token.is_none() {
        return Err(Error::invalid("message.invalid_data", "auth: expected {token: \"…\"}"));
    }
    let principal = connect::authenticate(&socket.session, &args).await?;
    let principal = tenancy::enter(&socket.shared().catalog, &principal, &socket.tenant.id);
    let Some(principal) = principal.filter(|principal| principal.user == socket.user) else {
        return Err(Error::new(
            Kind::Forbidden,
            "auth.other_user",
            "the token is of another user or tenant; connect again with it",
        ));
    };
    let expires = principal.expires;
    connect::adopt(socket, principal.clone(), Some(&args)).await?;
    // The new credential may end before the wheel would look at this session.
    socket.shared().wheel.plan(&socket.session, Duration::ZERO);
    let mut outcome = standing(socket);
    outcome.insert("roles".to_owned(), json!(&*principal.roles));
    outcome.insert("expires".to_owned(), json!(expires));
    Ok(outcome)
}

/// The most members in one answer.
const MOST_MEMBERS: usize = 500;

/// `room` or `{room, after?}`: who is in a room that this socket is in.
pub(super) fn presence(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let room = room_name(args)?;
    if !socket.is_in(room) {
        return Err(refused(room));
    }
    presence::require(&socket.shared().catalog, room)?;
    let Members { members, total } = socket.tenant.presence.members(room, args["after"].as_str(), MOST_MEMBERS);
    let complete = members.len() < MOST_MEMBERS;
    let members = ("members", json!(members));
    Ok(fields([("room", json!(room)), members, ("total", json!(total)), ("complete", json!(complete))]))
}

/// `tenant` or `{tenant}`: from now on in another tenant of this user, as a new session there.
pub(super) async fn switch(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let named = args.as_str().or_else(|| args["tenant"].as_str());
    let to = named.ok_or_else(|| Error::invalid("message.invalid_data", "switch: expected {tenant: \"…\"}"))?;
    let next = connect::switch(socket, to).await?;
    let mut outcome = standing(&next);
    let position = next.tenant.delivered();
    outcome.extend(fields([("tenant", json!(next.tenant.id)), ("position", json!(position))]));
    outcome.insert("roles".to_owned(), json!(&*next.principal().roles));
    Ok(outcome)
}

/// `position`, `{position}` or an offset: everything up to here has been dealt with. What was received after it comes again when the client comes back.
///
/// With `{position, cursor}` a cursor of the user moves instead, durably, and with `{cursor, forget: true}` it goes.
pub(super) async fn acknowledge(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let cursor = if args.is_object() { cursors::name("cursor", &args["cursor"])? } else { None };
    let (shared, tenant) = (socket.shared(), &socket.tenant.id);
    if let (Some(name), Some(user), true) = (cursor, &socket.user, args["forget"] == true) {
        let forgotten = cursors::forget(shared, tenant, user, name).await?;
        return Ok(fields([("cursor", json!(name)), ("forgotten", json!(forgotten))]));
    }
    let named = if args.is_object() { &args["position"] } else { args };
    let position = position(socket, named)?
        .ok_or_else(|| Error::invalid("message.invalid_data", "ack: expected {position: 42}"))?;
    // Nobody has dealt with what it was not sent.
    let position = position.min(socket.reached());
    if let (Some(name), Some(user)) = (cursor, &socket.user) {
        let position = cursors::advance(shared, tenant, user, name, position).await?;
        return Ok(fields([("cursor", json!(name)), ("position", json!(position))]));
    }
    socket.acknowledge(position).await?;
    Ok(fields([]))
}

/// A position as a number or as an offset of this log; `None` when there is none.
pub(super) fn position(socket: &Socket, value: &Value) -> Result<Option<Position>> {
    let wrong =
        || Error::invalid("message.invalid_data", "position: expected a whole number or an offset of this server");
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => number.as_u64().map(|number| Some(Position(number))).ok_or_else(wrong),
        Value::String(text) => {
            let offset: Offset = text.parse().map_err(|_| wrong())?;
            if offset.epoch != *socket.shared().store.epoch() {
                let detail = "the position is of another incarnation of the log; read again from the start";
                return Err(Error::conflict("history.other_epoch", detail));
            }
            Ok(Some(offset.position))
        }
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(wrong()),
    }
}

/// The types and patterns of a field, `None` when it is absent. A single text counts as a list of one.
pub(super) fn patterns_of(args: &Value, field: &str) -> Result<Option<Vec<Pattern>>> {
    let Some(texts) = names(args, field)? else { return Ok(None) };
    let parse = |text: &String| {
        Pattern::parse(text).ok_or_else(|| {
            let detail = format!("{field}: expected a type or a pattern such as \"ticket.*\", got {text:?}");
            Error::invalid("message.invalid_data", detail)
        })
    };
    texts.iter().map(parse).collect::<Result<_>>().map(Some)
}

fn patterns(args: &Value) -> Result<Option<Vec<Pattern>>> {
    patterns_of(args, "eventTypes")
}

fn names(args: &Value, field: &str) -> Result<Option<Vec<String>>> {
    let wrong = || {
        Error::invalid(
            "message.invalid_data",
            format!("{field}: expected a list of at most 100 texts of 1 to 512 bytes"),
        )
    };
    let fits = |text: &str| (1..=policy::MAX_ROOM_BYTES).contains(&text.len());
    match &args[field] {
        Value::Null => Ok(None),
        Value::Array(items) if items.len() <= 100 => {
            let text = |item: &Value| item.as_str().filter(|text| fits(text)).map(str::to_owned).ok_or_else(wrong);
            items.iter().map(text).collect::<Result<_>>().map(Some)
        }
        Value::String(_) | Value::Array(_) | Value::Bool(_) | Value::Number(_) | Value::Object(_) => Err(wrong()),
    }
}

fn room_name(args: &Value) -> Result<&str> {
    let named = args.as_str().or_else(|| args["room"].as_str());
    named.ok_or_else(|| Error::invalid("message.invalid_data", "expected the name of a room, or {room: \"…\"}"))
}

/// One answer for rooms that do not exist and rooms that are closed: a client learns nothing about others' rooms.
pub(crate) fn refused(room: &str) -> Error {
    let shown: String = room.chars().take(80).collect();
    Error::new(Kind::Forbidden, "room.forbidden", format!("this user may not join {shown:?}"))
}

/// The field `field` names a type that the catalog does not have.
pub(crate) fn unknown_type(catalog: &Catalog, field: &str, pattern: &Pattern) -> Error {
    let (Pattern::Exact(name) | Pattern::Prefix(name)) = pattern;
    let shown: String = name.chars().take(80).collect();
    let mut detail = format!("{field}: no event of this app is called {shown:?}");
    let known = catalog.events.keys().map(|known| &**known);
    if let Some(close) = tidewire_core::suggest::suggest(name, known) {
        detail.push_str(&format!("; did you mean {close:?}?"));
    }
    Error::invalid("event.unknown_type", detail)
}

fn is_public(socket: &Socket, room: &str) -> bool {
    socket.shared().catalog.room(room).is_some_and(|declared| declared.join == Join::Public)
}

/// Where the socket stands now.
fn standing(socket: &Socket) -> serde_json::Map<String, Value> {
    let rooms: Vec<_> = socket.rooms();
    let rooms: Vec<&str> = rooms.iter().map(|room| &**room).collect();
    fields([("rooms", json!(rooms)), ("eventTypes", json!(socket.types()))])
}
