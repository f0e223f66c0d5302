//! Several packets in one HTTP body.

use super::Packet;
use crate::{Error, websocket};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;

/// The record separator (U+001E) between the packets of a polling body. It cannot occur inside a Socket.IO packet,
/// because JSON escapes control characters.
pub const SEPARATOR: char = '\x1e';

/// Reads the body of a polling POST: text packets borrow from it, binary ones are decoded from base64.
///
/// # Errors
/// If the body or one of its packets is empty, a packet has no valid type, a binary packet is not padded standard
/// base64, or there are more than `max_packets`. One bad packet refuses the whole body.
pub fn parse_polling(body: &str, max_packets: usize) -> Result<Vec<Packet<'_>>, Error> {
    let mut packets = Vec::new();
    for text in body.split(SEPARATOR) {
        if packets.len() == max_packets {
            return Err(Error::too_many("the polling body holds more packets than this server accepts"));
        }
        packets.push(match text.strip_prefix('b') {
            Some(base64) => match STANDARD.decode(base64) {
                Ok(data) => Packet::Binary(Bytes::from(data)),
                Err(_) => return Err(Error::engine("a binary packet is not padded base64")),
            },
            None => Packet::parse(text)?,
        });
    }
    Ok(packets)
}

/// A packet on its way into a polling answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PollPacket<'a> {
    /// A whole text packet, type digit included. It must be UTF-8 and free of [`SEPARATOR`].
    Text(&'a [u8]),
    /// The data of a binary packet, not yet in base64.
    Binary(&'a [u8]),
}

impl<'a> PollPacket<'a> {
    /// The packets inside frames that [`websocket::text`] or [`websocket::binary`] made, which stand one behind the other
    /// in `frames`, without copying them. Control frames are left out: polling has no use for them.
    ///
    /// # Panics
    /// The iterator does, if `frames` was not made by that module.
    pub fn from_frames(frames: &'a [u8]) -> impl Iterator<Item = Self> {
        websocket::frames(frames).filter_map(|frame| {
            let payload = websocket::payload(frame);
            websocket::is_binary(frame).map(|binary| if binary { Self::Binary(payload) } else { Self::Text(payload) })
        })
    }
}

/// Appends packets to `out` as one polling body. How many go into one answer is the caller's limit to set.
///
/// `out` is normally empty: what stands in it already is not separated from the first packet.
pub fn polling_join<'a>(packets: impl Iterator<Item = PollPacket<'a>>, out: &mut Vec<u8>) {
    for (index, packet) in packets.enumerate() {
        if index > 0 {
            out.push(SEPARATOR as u8);
        }
        match packet {
            PollPacket::Text(text) => {
                debug_assert!(!text.contains(&(SEPARATOR as u8)), "a separator inside a packet would split it");
                out.extend_from_slice(text);
            }
            PollPacket::Binary(data) => {
                // Written in place: the base64 length is known, so nothing is built beside the body.
                out.push(b'b');
                let start = out.len();
                let reserved = data.len().div_ceil(3) * 4;
                out.resize(start + reserved, 0);
                let written =
                    STANDARD.encode_slice(data, &mut out[start..]).expect("padded base64 has exactly this length");
                debug_assert_eq!(written, reserved);
            }
        }
    }
}
