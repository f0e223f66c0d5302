//! Binary data on its way out: the reverse of what an [`Assembler`](super::Assembler) does.

use super::MAX_ATTACHMENTS;
use crate::websocket;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use serde_json::Value;

/// The frames of an event or acknowledgement, given as the text that [`event`](super::event) or [`ack`](super::ack) made.
///
/// Each `{"$binary":"<padded base64>"}` in it leaves as a binary attachment, so that the client gets bytes where the sender
/// put bytes; the frames of the attachments follow at once. An object with more keys, or whose value is not base64, stays
/// what it is. So does all of a packet with more than [`MAX_ATTACHMENTS`], which the client would refuse, and of one with an
/// object that the client would take for the place of an attachment.
pub fn frames(packet: &str) -> Bytes {
    // Nearly no packet has any, and that is seen in one pass.
    let Some((text, attachments)) = detach(packet) else { return websocket::text(packet.as_bytes()) };
    let mut out = BytesMut::from(&websocket::text(text.as_bytes())[..]);
    for attachment in attachments {
        out.extend_from_slice(&websocket::binary(&attachment));
    }
    out.freeze()
}

/// A packet with placeholders, announcing its attachments; `None` when there are none.
fn detach(packet: &str) -> Option<(String, Vec<Vec<u8>>)> {
    const KEY: &str = "\"$binary\"";
    let mut body = String::new();
    let mut attachments: Vec<Vec<u8>> = Vec::new();
    let mut copied = 0;
    let mut from = 0;
    // In a string these quotes would be escaped, so what is found is a whole string: a key, or a value.
    while let Some(at) = packet[from..].find(KEY).map(|at| from + at) {
        from = at + KEY.len();
        let before = packet[copied..at].trim_end();
        let Some((data, end)) = binary_value(&packet[from..]).filter(|_| before.ends_with('{')) else { continue };
        if attachments.len() == MAX_ATTACHMENTS as usize {
            return None;
        }
        let number = attachments.len();
        body.push_str(&before[..before.len() - 1]);
        body.push_str(&format!("{{\"_placeholder\":true,\"num\":{number}}}"));
        attachments.push(data);
        from += end;
        copied = from;
    }
    if attachments.is_empty() || has_placeholder(packet) {
        return None;
    }
    body.push_str(&packet[copied..]);
    // `42…` becomes `451-…`, `43…` becomes `461-…`.
    let kind = if body.starts_with("43") { '6' } else { '5' };
    Some((format!("4{kind}{}-{}", attachments.len(), &body[2..]), attachments))
}

/// Whether a client would look for an attachment where the sender only put such an object. A wrong number in it would end the client's
/// connection, and again when it comes back for the same event.
fn has_placeholder(packet: &str) -> bool {
    fn is_in(value: &Value) -> bool {
        match value {
            Value::Array(values) => values.iter().any(is_in),
            Value::Object(fields) => {
                fields.get("_placeholder") == Some(&Value::Bool(true)) || fields.values().any(is_in)
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
        }
    }
    // The name may be written with escapes, all of them of this kind.
    if !packet.contains("_placeholder") && !packet.contains("\\u00") {
        return false;
    }
    let payload = packet.find('[').map_or("", |at| &packet[at..]);
    // What cannot be read here may be readable for the client.
    serde_json::from_str(payload).map_or(true, |value: Value| is_in(&value))
}

/// Reads `: "<base64>" }`. Answers the bytes and where the object ends.
fn binary_value(text: &str) -> Option<(Vec<u8>, usize)> {
    let rest = text.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (base64, rest) = rest.split_once('"')?;
    let rest = rest.trim_start().strip_prefix('}')?;
    Some((STANDARD.decode(base64).ok()?, text.len() - rest.len()))
}

/// The bytes that a JSON value stands for, if it is the object that binary data is kept as.
pub(super) fn binary_of(value: &serde_json::Map<String, serde_json::Value>) -> Option<Vec<u8>> {
    let base64 = value.get("$binary").filter(|_| value.len() == 1)?.as_str()?;
    STANDARD.decode(base64).ok()
}
