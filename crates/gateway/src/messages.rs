//! What a client may send: the built-in messages, and those that the catalog declares.
//!
//! Every message may wait for an acknowledgement, `{ok: true, …}` or `{ok: false, error: {code, message}}`. A message without one is dealt with all
//! the same. Messages of one connection are dealt with one after the other.

pub(crate) mod builtin;
mod declared;
mod history;

use std::sync::Arc;

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use tidewire_core::limit::Rate;
use tidewire_core::{Error, Kind, Result, Timestamp};
use tidewire_wire::socket::Event;

use crate::echo;
use crate::encode;
use crate::hub::Over;
use crate::session::Closing;
use crate::socket::Socket;

/// What a message came to: the fields of its acknowledgement beside `ok`.
type Outcome = Result<Map<String, Value>>;

/// Deals with one message. `Err` closes the transport.
pub(crate) async fn receive(socket: &Arc<Socket>, event: &Event<'_>) -> Result<(), Closing> {
    let stats = &socket.shared().stats;
    stats.messages_in.up();
    socket.tenant.counts.messages_in.up();
    if socket.shared().options.echo.is_some() {
        echo::receive(socket, event);
        return Ok(());
    }
    if let Err((over, rate, until)) = admit(socket) {
        stats.messages_limited.up();
        socket.tenant.counts.messages_limited.up();
        let wait = until.since(socket.shared().clock.now());
        match socket.session.count_refused(over, rate) {
            Ok(true) => {
                let wait = encode::millis(wait);
                let told = json!({ "limit": over.word(), "rate": rate.to_string(), "retryAfter": wait });
                socket.emit("limit:exceeded", &told.to_string());
            }
            Ok(false) => {}
            Err(closing) => {
                stats.by.messages.up(over.code());
                return Err(closing);
            }
        }
        let error = Error::new(Kind::Limited, over.code(), "too many messages; send fewer per second");
        answer(socket, event.id(), Err(error.with_retry_after(wait)));
        return Ok(());
    }
    let outcome = match arguments(&event.args()) {
        Ok(args) => handle(socket, event.name(), &args).await,
        Err(error) => Err(error),
    };
    answer(socket, event.id(), outcome);
    Ok(())
}

/// Counts a message against the rates of its connection, its user and its tenant. One that is refused by the first does not count for the
/// others, so a client that floods uses up nothing of what its neighbours may send.
fn admit(socket: &Socket) -> Result<(), (Over, Rate, Timestamp)> {
    let shared = socket.shared();
    let now = shared.clock.now();
    socket.session.admit_message(now)?;
    let options = &shared.options;
    let per_user = options.messages_per_user.unwrap_or_else(|| {
        let own = shared.catalog.realtime.message_rate;
        Rate { amount: own.amount.saturating_mul(10), ..own }
    });
    let mut directory = socket.tenant.directory.lock();
    directory.admit_message(socket.user.as_ref(), per_user, options.messages_per_tenant, now)
}

async fn handle(socket: &Arc<Socket>, name: &str, args: &[Value]) -> Outcome {
    let first = args.first().unwrap_or(&Value::Null);
    let for_visitors = matches!(name, "join" | "leave" | "join room" | "leave room" | "subscribe" | "unsubscribe");
    if socket.user.is_none() && !for_visitors {
        return Err(Error::new(Kind::Unauthenticated, "auth.required", "log in to send this message"));
    }
    match name {
        "subscribe" => builtin::subscribe(socket, first).await,
        "unsubscribe" => builtin::unsubscribe(socket, first).await,
        "join" | "join room" => builtin::join(socket, first).await,
        "leave" | "leave room" => builtin::leave(socket, first).await,
        "history" => history::history(socket, first).await,
        "auth" => builtin::renew(socket, first).await,
        "ack" => builtin::acknowledge(socket, first).await,
        "unread" => history::unread(socket, first).await,
        "presence" => builtin::presence(socket, first),
        "switch" => builtin::switch(socket, first).await,
        _ => declared::handle(socket, name, args).await,
    }
}

/// The arguments as values. Code `message.unreadable` for what is JSON by its grammar but too deep or no text.
fn arguments(args: &[&RawValue]) -> Result<Vec<Value>> {
    let read = |arg: &&RawValue| serde_json::from_str(arg.get());
    args.iter().map(read).collect::<Result<_, _>>().map_err(|error: serde_json::Error| {
        Error::invalid("message.unreadable", format!("the message cannot be read: {error}"))
    })
}

fn answer(socket: &Socket, id: Option<u64>, outcome: Outcome) {
    let body = match outcome {
        Ok(mut fields) => {
            fields.insert("ok".to_owned(), Value::Bool(true));
            Value::Object(fields)
        }
        Err(error) => {
            socket.shared().stats.by.messages.up(error.code());
            if matches!(error.kind(), Kind::Internal | Kind::Unavailable) {
                tracing::warn!(tenant = %socket.tenant.id, %error, "a client's message failed");
            }
            let mut told = json!({ "code": error.code(), "message": error.detail() });
            if !error.fields().is_empty() {
                told["errors"] = json!(error.fields());
            }
            if let Some(after) = error.retry_after() {
                told["retryAfter"] = json!(encode::millis(after));
            }
            json!({ "ok": false, "error": told })
        }
    };
    if let Some(id) = id {
        socket.ack(id, &body.to_string());
    }
}

/// The fields of an acknowledgement.
fn fields<const N: usize>(fields: [(&str, Value); N]) -> Map<String, Value> {
    fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
