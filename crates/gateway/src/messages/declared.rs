//! Messages that the catalog declares: join, leave, reply, publish, enqueue.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tidewire_core::catalog::{Catalog, Message, Profile};
use tidewire_core::commit::{NewEvent, NewJob, Request, publication, rule_job};
use tidewire_core::id::Ids;
use tidewire_core::principal::{Principal, Sender};
use tidewire_core::room::RoomTemplate;
use tidewire_core::store::Answer;
use tidewire_core::{Error, Json, Kind, Result};

use super::{Outcome, builtin, fields};
use crate::gateway::Handled;
use crate::policy;
use crate::relay;
use crate::socket::{Change, Socket};

/// Checks a declared message and does what it says: the app's handler first, then publish and enqueue with what it staged, then rooms and
/// the reply. All that can refuse the rooms, their write to the store included, comes before the commit: a client that is told of an
/// error has stored nothing.
///
/// Codes: `message.unknown`, `message.invalid_data`, `message.refused` (none of its conditions holds), `room.forbidden`, `limit.rooms`,
/// `store.busy`, `unavailable`, those of a commit, and those of the handler.
pub(super) async fn handle(socket: &Arc<Socket>, name: &str, args: &[Value]) -> Outcome {
    let shared = socket.shared();
    let Some(message) = shared.catalog.messages.get(name) else { return Err(unknown(&shared.catalog, name)) };
    check(message, args)?;
    let principal = socket.principal();
    let data = if message.data.is_some() { args.first().unwrap_or(&Value::Null) } else { &Value::Null };
    // Who sends it comes from the credential; a payload cannot claim to be somebody else.
    let mut scope = json!({ "data": data, "args": args, "user": &*principal.claims });
    let mut outcome = Map::new();
    let mut request = request(socket, message, &principal, &mut scope);
    let declares = !message.publish.is_empty() || !message.enqueue.is_empty();
    if declares && request.is_empty() && message.join.is_none() && message.leave.is_none() {
        let detail = format!("nothing that {name:?} publishes or enqueues applies to this data and this user");
        return Err(Error::new(Kind::Forbidden, "message.refused", detail));
    }
    let room_of = |room: &RoomTemplate| render(&shared.catalog, &principal, room, &scope);
    let (join, leave) =
        (message.join.as_ref().map(room_of).transpose()?, message.leave.as_ref().map(room_of).transpose()?);
    // Before the handler is called, and asked again when the room is entered: the rights may change meanwhile.
    if let Some(room) = join.as_ref().filter(|room| policy::may_join(&shared.catalog, &principal, room).is_none()) {
        return Err(builtin::refused(room));
    }
    if let Some(answer) = call(socket, name, &taken(message, args), &principal) {
        let (result, staged) = answer.await?;
        // Over polling a handler outlives its session, and who was put out meanwhile does nothing more.
        if socket.session.transport(|_| ()).is_none() {
            return Err(Error::unavailable(
                "the connection ended before the message was answered; nothing of it is stored",
            ));
        }
        // The rights may have changed meanwhile; what is declared is asked again.
        let principal = socket.principal();
        scope["user"] = Value::clone(&principal.claims);
        request = self::request(socket, message, &principal, &mut scope);
        request.events.extend(staged.events);
        request.jobs.extend(staged.jobs);
        if result != Json::null() {
            outcome.extend(fields([("result", result.to_value()?)]));
        }
    }
    let mut rooms = match join.is_some() || leave.is_some() {
        true => {
            let mut changing = socket.changing().await;
            let join = join.iter().map(|room| builtin::allowed(socket, room, &Value::Null)).collect::<Result<_>>()?;
            let change = Change { join, leave: leave.iter().cloned().collect(), ..Change::default() };
            changing.keep(&change).await?;
            Some((changing, change))
        }
        false => None,
    };
    if !request.is_empty() {
        let committed = shared.publish.publish(&socket.tenant.id, principal.user.as_deref(), request).await;
        if committed.is_err() && rooms.take().is_some() {
            // The store has been told of rooms that are not entered or left now.
            drop(socket.keep().await);
        }
        let committed = committed?;
        if !committed.events.is_empty() {
            outcome.extend(fields([("events", json!(committed.events))]));
        }
        if !committed.jobs.is_empty() {
            outcome.extend(fields([("jobs", json!(committed.jobs))]));
        }
    }
    let has_published = outcome.contains_key("events");
    if let Some((changing, change)) = rooms {
        changing.make(change)?;
        outcome.extend(fields([("room", json!(join.or(leave)))]));
    }
    if let Some((event, template)) = &message.reply {
        let data = template.render(&scope);
        match shared.catalog.realtime.profile {
            Profile::Named => socket.emit(event, &data.to_string()),
            Profile::Envelope => {
                let envelope = json!({ "type": event, "time": shared.clock.now(), "data": data });
                socket.emit("event", &envelope.to_string());
            }
        }
    }
    if has_published {
        relay::hold(shared, &socket.tenant.id).await;
    }
    Ok(outcome)
}

/// What the declaration publishes and enqueues for this data and this user.
fn request(socket: &Socket, message: &Message, principal: &Principal, scope: &mut Value) -> Request {
    let shared = socket.shared();
    let user_id = principal.user.as_deref().map(str::to_owned);
    let mut request = Request::default();
    for declared in &message.publish {
        // The id is chosen here, so that the data of an event can name it.
        let (id, time) = (shared.ids.next(), shared.clock.now());
        scope["event"] = json!({ "id": id, "type": declared.event, "time": time });
        let event = publication(declared, scope);
        request.events.extend(event.map(|event| NewEvent { id: Some(id), user_id: user_id.clone(), ..event }));
    }
    let jobs = message.enqueue.iter().filter_map(|declared| rule_job(declared, &*scope));
    request.jobs.extend(jobs.map(|job| NewJob { user_id: user_id.clone(), ..job }));
    request
}

/// The answer of the app's handler, if it has one.
fn call<'a>(socket: &'a Socket, name: &str, data: &Value, principal: &Principal) -> Option<Answer<'a, Handled>> {
    let sender = Sender {
        tenant: socket.tenant.id.clone(),
        user: principal.user.clone()?,
        roles: principal.roles.clone(),
        socket: socket.sid.clone(),
    };
    socket.shared().publish.handle(name, data, &sender)
}

/// What a handler gets: the data, or the declared arguments as a list in which those that were left out are null. Nothing else, as
/// nothing else was checked.
fn taken<'a>(message: &Message, args: &'a [Value]) -> Cow<'a, Value> {
    if message.data.is_some() {
        return args.first().map_or(Cow::Owned(Value::Null), Cow::Borrowed);
    }
    if message.args.is_empty() {
        return Cow::Owned(Value::Null);
    }
    let declared = (0..message.args.len()).map(|index| args.get(index).cloned().unwrap_or_default());
    Cow::Owned(declared.collect())
}

fn check(message: &Message, args: &[Value]) -> Result<()> {
    let mut errors = Vec::new();
    for (index, schema) in message.args.iter().enumerate() {
        match args.get(index) {
            None | Some(Value::Null) if schema.is_optional() => {}
            value => schema.validate(value.unwrap_or(&Value::Null), &format!("args[{index}]"), &mut errors),
        }
    }
    if let Some(schema) = &message.data {
        schema.validate(args.first().unwrap_or(&Value::Null), "data", &mut errors);
    }
    if errors.is_empty() { Ok(()) } else { Err(Error::invalid("message.invalid_data", "").with_fields(errors)) }
}

/// The room of a template with `{0}` for arguments and `{field}` for fields of the data. The tenant and the user are the socket's own.
fn render(catalog: &Catalog, principal: &Principal, room: &RoomTemplate, scope: &Value) -> Result<String> {
    let text = |value: &Value| match value {
        Value::String(text) => Some(Cow::Owned(text.clone())),
        Value::Number(number) => Some(Cow::Owned(number.to_string())),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let lookup = |name: &str| {
        if name == &*catalog.app.tenant {
            return Some(Cow::Owned(principal.tenant.as_str().to_owned()));
        }
        match name.parse::<usize>() {
            Ok(index) => text(&scope["args"][index]),
            Err(_) => text(&scope["data"][name]).or_else(|| {
                principal.user.as_deref().filter(|_| name == "userId").map(|user| Cow::Owned(user.to_owned()))
            }),
        }
    };
    room.render(lookup).map_err(|missing| Error::invalid("message.invalid_data", format!("{room}: {missing}")))
}

fn unknown(catalog: &Catalog, name: &str) -> Error {
    let shown: String = name.chars().take(80).collect();
    let mut detail = format!("no message of this app is called {shown:?}");
    let builtin =
        ["subscribe", "unsubscribe", "join", "leave", "history", "auth", "switch", "ack", "presence", "unread"];
    let known = catalog.messages.keys().map(|known| &**known).chain(builtin);
    if let Some(close) = tidewire_core::suggest::suggest(name, known) {
        detail.push_str(&format!("; did you mean {close:?}?"));
    }
    Error::invalid("message.unknown", detail)
}
