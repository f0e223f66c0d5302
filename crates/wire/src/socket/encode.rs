//! What the server sends. Each function returns the text of one Engine.IO message packet, the digit `4` included.
//!
//! Arguments that are called raw JSON must each be one JSON text. That is checked in debug builds only, because the
//! caller has serialised them itself and a fan-out pays for each byte looked at.

use crate::json::Quoted;
use serde_json::value::RawValue;

/// The answer to a client that may join: the socket's id in this namespace and, where recovery is on, the private
/// session id by which the client comes back.
///
/// The sid must not be the Engine.IO session's: other clients may learn it. Without `pid` the payload has no other key,
/// which the official suite insists on.
pub fn connect(nsp: &str, sid: &str, pid: Option<&str>) -> String {
    let (sid, pid) = (Quoted::new(sid), pid.map(Quoted::new));
    let capacity =
        head_len(nsp) + r#"{"sid":}"#.len() + sid.len() + pid.as_ref().map_or(0, |pid| r#","pid":"#.len() + pid.len());
    let mut out = begin('0', nsp, capacity);
    out.push_str("{\"sid\":");
    sid.push_to(&mut out);
    if let Some(pid) = &pid {
        out.push_str(",\"pid\":");
        pid.push_to(&mut out);
    }
    out.push('}');
    finish(out, capacity)
}

/// The answer to a client that may not join. `data` is raw JSON and arrives as the `data` of the client's error.
///
/// The stock client does not try again by itself after this, unlike after a lost transport.
pub fn connect_error(nsp: &str, message: &str, data: Option<&str>) -> String {
    let message = Quoted::new(message);
    let capacity = head_len(nsp)
        + r#"{"message":}"#.len()
        + message.len()
        + data.map_or(0, |data| r#","data":"#.len() + data.len());
    let mut out = begin('4', nsp, capacity);
    out.push_str("{\"message\":");
    message.push_to(&mut out);
    if let Some(data) = data {
        out.push_str(",\"data\":");
        push_raw(&mut out, data);
    }
    out.push('}');
    finish(out, capacity)
}

/// Puts the client out of a namespace. The stock client does not reconnect after it; to move clients elsewhere, close
/// their transports instead.
pub fn disconnect(nsp: &str) -> String {
    let capacity = head_len(nsp);
    finish(begin('1', nsp, capacity), capacity)
}

/// An event: its name, its arguments as raw JSON and, where recovery is on, its offset as one more string argument.
///
/// A client that was given a `pid` takes the last argument of *any* event for its offset if that is a string. So on
/// such a connection every event needs an offset, or a last argument that is no string.
///
/// This is the fan-out's path: one allocation of exactly the needed size, unless the name or the offset needs escapes.
pub fn event(nsp: &str, name: &str, args: &[&str], offset: Option<&str>) -> String {
    let (name, offset) = (Quoted::new(name), offset.map(Quoted::new));
    let capacity = head_len(nsp)
        + "[]".len()
        + name.len()
        + args.iter().map(|arg| 1 + arg.len()).sum::<usize>()
        + offset.as_ref().map_or(0, |offset| 1 + offset.len());
    let mut out = begin('2', nsp, capacity);
    out.push('[');
    name.push_to(&mut out);
    for arg in args {
        out.push(',');
        push_raw(&mut out, arg);
    }
    if let Some(offset) = &offset {
        out.push(',');
        offset.push_to(&mut out);
    }
    out.push(']');
    finish(out, capacity)
}

/// The answer to an event that carried `id`; the arguments are raw JSON.
pub fn ack(nsp: &str, id: u64, args: &[&str]) -> String {
    let id = id.to_string();
    let commas = args.len().saturating_sub(1);
    let capacity = head_len(nsp) + id.len() + "[]".len() + commas + args.iter().map(|arg| arg.len()).sum::<usize>();
    let mut out = begin('3', nsp, capacity);
    out.push_str(&id);
    out.push('[');
    for (index, arg) in args.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        push_raw(&mut out, arg);
    }
    out.push(']');
    finish(out, capacity)
}

/// The length of what [`begin`] writes: two digits and, unless it is the default, the namespace and its comma.
fn head_len(nsp: &str) -> usize {
    if nsp == "/" { 2 } else { 2 + nsp.len() + 1 }
}

fn begin(kind: char, nsp: &str, capacity: usize) -> String {
    debug_assert!(nsp.starts_with('/') && !nsp.contains(','), "a namespace starts with / and has no comma: {nsp}");
    let mut out = String::with_capacity(capacity);
    out.push('4');
    out.push(kind);
    if nsp != "/" {
        out.push_str(nsp);
        out.push(',');
    }
    out
}

fn push_raw(out: &mut String, json: &str) {
    debug_assert!(serde_json::from_str::<&RawValue>(json).is_ok(), "an argument must be one JSON text: {json}");
    out.push_str(json);
}

fn finish(out: String, capacity: usize) -> String {
    debug_assert_eq!(out.len(), capacity, "the reserved length is exact");
    out
}
