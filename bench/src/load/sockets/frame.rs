//! WebSocket frames (RFC 6455, section 5): what a server sends, read in place, and what a client sends, masked.

use std::sync::atomic::{AtomicU32, Ordering};

/// A frame larger than this is taken for a broken stream.
const MAX_PAYLOAD_BYTES: usize = 64 * 1024 * 1024;

/// The continuation of a fragmented message.
pub(super) const CONTINUATION: u8 = 0x0;
/// A text message.
pub(super) const TEXT: u8 = 0x1;
/// A binary message.
pub(super) const BINARY: u8 = 0x2;
/// The end of the connection.
pub(super) const CLOSE: u8 = 0x8;
/// To be answered by a pong.
pub(super) const PING: u8 = 0x9;
/// The answer to a ping.
pub(super) const PONG: u8 = 0xa;

/// One frame of the server.
#[derive(Debug, PartialEq)]
pub(super) struct Frame<'a> {
    /// One of this module's constants, or something that is not valid.
    pub(super) opcode: u8,
    /// Not masked, because servers do not mask.
    pub(super) payload: &'a [u8],
    /// Bytes of the whole frame.
    pub(super) len: usize,
}

/// The frame at the beginning of `bytes`; `None` while it is incomplete.
///
/// # Errors
/// If the frame is masked, compressed (no extension was asked for) or larger than 64 MiB.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<Frame<'_>>, &'static str> {
    let &[first, second, ref rest @ ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Err("the server sent a masked or compressed WebSocket frame");
    }
    let (header, length) = match second {
        126 => match rest.first_chunk::<2>() {
            Some(length) => (4, u64::from(u16::from_be_bytes(*length))),
            None => return Ok(None),
        },
        127 => match rest.first_chunk::<8>() {
            Some(length) => (10, u64::from_be_bytes(*length)),
            None => return Ok(None),
        },
        short => (2, u64::from(short)),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_PAYLOAD_BYTES {
        return Err("the server sent a WebSocket frame of more than 64 MiB");
    }
    Ok(bytes.get(header..header + length).map(|payload| Frame { opcode: first & 0x0f, payload, len: header + length }))
}

/// Appends a final, masked frame to `out`. Keys differ from frame to frame but are not secret: no browser and no proxy
/// is in between.
pub(super) fn encode(opcode: u8, payload: &[u8], out: &mut Vec<u8>) {
    static KEYS: AtomicU32 = AtomicU32::new(0x9e37_79b9);
    let key = KEYS.fetch_add(0x9e37_79b9, Ordering::Relaxed).to_be_bytes();
    out.push(0x80 | opcode);
    match payload.len() {
        short @ ..126 => out.push(0x80 | short as u8),
        medium @ 126..=0xffff => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&key);
    out.extend(payload.iter().zip(key.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Appends a text frame as a server sends it, for what was read already and is to be read again.
pub(super) fn encode_unmasked(payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x80 | TEXT);
    match payload.len() {
        short @ ..126 => out.push(short as u8),
        medium @ 126..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(medium as u16).to_be_bytes());
        }
        long => {
            out.push(127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}
