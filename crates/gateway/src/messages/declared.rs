//! Messages that the catalog declares: join, leave, reply, publish.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tidewire_core::catalog::{Catalog, Message, Profile, Publication};
use tidewire_core::commit::{NewEvent, ParamValue, Request};
use tidewire_core::id::Ids;
use tidewire_core::principal::Principal;
use tidewire_core::room::RoomTemplate;
use tidewire_core::{Error, Kind, Result};

use super::{Outcome, builtin, fields};
use crate::socket::{Change, Socket};

/// Checks a declared message and does what it says: publish, then rooms and the reply. All that can refuse the rooms, their write to the
/// store included, comes before the publish: a client that is told of an error has published nothing.
///
/// Codes: `message.unknown`, `message.invalid_data`, `message.refused` (none of its conditions holds), `room.forbidden`, `limit.rooms`,
/// `store.busy`, `unavailable`, and those of a publish.
pub(super) async fn handle(socket: &Arc<Socket>, name: &str, args: &[Value]) -> Outcome {
    let shared = socket.shared();
    let Some(message) = shared.catalog.messages.get(name) else { return Err(unknown(&shared.catalog, name)) };
    check(message, args)?;
    let principal = socket.principal();
    let data = if message.data.is_some() { args.first().unwrap_or(&Value::Null) } else { &Value::Null };
    // Who sends it comes from the credential; a payload cannot claim to be somebody else.
    let mut scope = json!({ "data": data, "args": args, "user": &*principal.claims });
    let mut outcome = Map::new();
    let mut events = Vec::new();
    for publication in &message.publish {
        // The id is chosen here, so that the data of an event can name it.
        let (id, time) = (shared.ids.next(), shared.clock.now());
        scope["event"] = json!({ "id": id, "type": publication.event, "time": time });
        let user_id = principal.user.as_deref().map(str::to_owned);
        events.extend(publish(publication, &scope).map(|event| NewEvent { id: Some(id), user_id, ..event }));
    }
    if events.is_empty() && !message.publish.is_empty() && message.join.is_none() && message.leave.is_none() {
        let detail = format!("nothing that {name:?} publishes applies to this data and this user");
        return Err(Error::new(Kind::Forbidden, "message.refused", detail));
    }
    let room_of = |room: &RoomTemplate| render(&shared.catalog, &principal, room, &scope);
    let (join, leave) =
        (message.join.as_ref().map(room_of).transpose()?, message.leave.as_ref().map(room_of).transpose()?);
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
    if !events.is_empty() {
        let request = Request { events, ..Request::default() };
        let published = shared.publish.publish(&socket.tenant.id, principal.user.as_deref(), request).await;
        if published.is_err() && rooms.take().is_some() {
            // The store has been told of rooms that are not entered or left now.
            drop(socket.keep().await);
        }
        outcome.extend(fields([("events", json!(published?.events))]));
    }
    if let Some((changing, change)) = rooms {
        changing.make(change)?;
        outcome.extend(fields([("room", json!(leave.or(join)))]));
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
    Ok(outcome)
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

fn publish(publication: &Publication, scope: &Value) -> Option<NewEvent> {
    let holds = publication.when.as_ref().is_none_or(|when| {
        let variables = ["data", "args", "user"].map(|name| (name, &scope[name]));
        when.eval(&variables).unwrap_or(false)
    });
    if !holds {
        return None;
    }
    let param = |(name, template): (&String, &tidewire_core::template::Template)| {
        let value = match template.render(scope) {
            Value::String(text) => ParamValue::Text(text),
            Value::Number(number) => ParamValue::Number(number.as_i64()?),
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
        };
        Some((name.clone(), value))
    };
    let params: BTreeMap<_, _> = publication.params.iter().filter_map(param).collect();
    Some(NewEvent { params, ..NewEvent::new(&*publication.event, publication.data.render(scope)) })
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
