//! Server frames: one unmasked, unfragmented frame per message.

use super::{Opcode, is_wire_close_code};
use bytes::Bytes;

/// The largest payload of a ping, pong or close frame in bytes (RFC 6455, section 5.5).
pub const MAX_CONTROL_BYTES: usize = 125;

/// A text message. The payload must be UTF-8, which is the caller's promise: browsers drop the connection otherwise.
pub fn text(payload: &[u8]) -> Bytes {
    debug_assert!(std::str::from_utf8(payload).is_ok(), "a text frame carries UTF-8");
    frame(Opcode::Text as u8, payload)
}

/// A binary message.
pub fn binary(payload: &[u8]) -> Bytes {
    frame(Opcode::Binary as u8, payload)
}

/// A ping. The peer answers with a pong that repeats the payload.
///
/// # Panics
/// If the payload is longer than [`MAX_CONTROL_BYTES`].
pub fn ping(payload: &[u8]) -> Bytes {
    control(Opcode::Ping, payload)
}

/// A pong, the answer to [`Message::Ping`](super::Message::Ping), whose payload always fits.
///
/// # Panics
/// If the payload is longer than [`MAX_CONTROL_BYTES`].
pub fn pong(payload: &[u8]) -> Bytes {
    control(Opcode::Pong, payload)
}

/// A close frame with a code that may be sent (1000 to 1003, 1007 to 1014, 3000 to 4999). A reason longer than 123
/// bytes is cut at a character boundary.
pub fn close(code: u16, reason: &str) -> Bytes {
    debug_assert!(is_wire_close_code(code), "{code} must not be sent in a close frame");
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_BYTES - 2)];
    let mut payload = Vec::with_capacity(2 + reason.len());
    payload.extend_from_slice(&code.to_be_bytes());
    payload.extend_from_slice(reason.as_bytes());
    control(Opcode::Close, &payload)
}

/// How many bytes stand before the payload of a frame made by this module: 2, 4 or 10.
///
/// # Panics
/// If `frame` is shorter than two bytes, which none of this module's is.
pub fn header_len(frame: &[u8]) -> usize {
    match frame[1] & 0x7f {
        126 => 4,
        127 => 10,
        _ => 2,
    }
}

/// The payload of a frame made by this module, so that a frame built for WebSocket also serves HTTP polling without a
/// copy.
///
/// # Panics
/// If `frame` was not made by this module.
pub fn payload(frame: &[u8]) -> &[u8] {
    &frame[header_len(frame)..]
}

/// The frames in `all`, in which they stand one behind the other, as a packet and its binary attachments do.
///
/// # Panics
/// The iterator does, if `all` is not made of whole frames of this module.
pub fn frames(mut all: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if all.is_empty() {
            return None;
        }
        let len = match all[1] & 0x7f {
            126 => usize::from(u16::from_be_bytes([all[2], all[3]])),
            127 => {
                let len = all[2..].first_chunk().map_or(0, |len| u64::from_be_bytes(*len));
                usize::try_from(len).unwrap_or(usize::MAX)
            }
            len => usize::from(len),
        };
        let (frame, rest) = all.split_at(header_len(all) + len);
        all = rest;
        Some(frame)
    })
}

/// Whether a frame made by this module is a binary message, a text message, or (`None`) a control frame.
pub(crate) fn is_binary(frame: &[u8]) -> Option<bool> {
    match Opcode::from_nibble(frame[0] & 0x0f)? {
        Opcode::Text => Some(false),
        Opcode::Binary => Some(true),
        Opcode::Continuation | Opcode::Close | Opcode::Ping | Opcode::Pong => None,
    }
}

fn control(opcode: Opcode, payload: &[u8]) -> Bytes {
    assert!(payload.len() <= MAX_CONTROL_BYTES, "a control frame carries at most {MAX_CONTROL_BYTES} bytes");
    frame(opcode as u8, payload)
}

/// A final frame. `kind` is the opcode, with the bit of an extension where one is in use.
pub(super) fn frame(kind: u8, payload: &[u8]) -> Bytes {
    let mut frame = Vec::with_capacity(payload.len() + if payload.len() < 126 { 2 } else { 10 });
    frame.push(0x80 | kind);
    if payload.len() < 126 {
        frame.push(payload.len() as u8);
    } else if let Ok(short) = u16::try_from(payload.len()) {
        frame.push(126);
        frame.extend_from_slice(&short.to_be_bytes());
    } else {
        frame.push(127);
        frame.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    }
    frame.extend_from_slice(payload);
    Bytes::from(frame)
}
