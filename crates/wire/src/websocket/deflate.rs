//! Compressed messages: the extension `permessage-deflate` of RFC 7692, with no context kept between messages.
//!
//! Both sides forget their window after each message (`server_no_context_takeover`, `client_no_context_takeover`). So a
//! message is compressed once for everybody who gets it, and a connection owns no memory for compression: the working
//! memory belongs to the thread.

use super::frame::{frame, is_binary};
use super::{Opcode, frames, payload};
use crate::Error;
use bytes::{Bytes, BytesMut};
use miniz_oxide::deflate::core::CompressorOxide;
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_IGNORE_ADLER32, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use miniz_oxide::{DataFormat, MZFlush};
use std::cell::RefCell;

/// The bit of a frame's first byte that says its message is compressed (RFC 7692, section 6).
pub(super) const COMPRESSED: u8 = 0x40;

/// What ends every flushed block and is left out on the wire (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// zlib's own default: the best ratio that does not cost a multiple of the time.
const LEVEL: u8 = 6;

thread_local! {
    static DEFLATE: RefCell<Option<Box<CompressorOxide>>> = const { RefCell::new(None) };
    static INFLATE: RefCell<Option<Box<DecompressorOxide>>> = const { RefCell::new(None) };
}

/// What to answer to the offers of a `Sec-WebSocket-Extensions` header, or `None` when none of them suits.
///
/// An offer is declined when it has a parameter that RFC 7692 does not know or gives one twice or with a wrong value,
/// and when it wants a window smaller than 32 KiB from this side, which the compressor cannot promise.
pub fn accept_deflate(offers: &str) -> Option<&'static str> {
    offers.split(',').find_map(|offer| {
        let mut parts = offer.split(';').map(str::trim);
        if parts.next() != Some("permessage-deflate") {
            return None;
        }
        let mut seen: Vec<&str> = Vec::new();
        let mut answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
        for part in parts {
            let (name, value) = match part.split_once('=') {
                Some((name, value)) => (name.trim(), Some(value.trim().trim_matches('"'))),
                None => (part, None),
            };
            let fits = match (name, value) {
                ("server_no_context_takeover" | "client_no_context_takeover" | "client_max_window_bits", None) => true,
                ("client_max_window_bits", Some(bits)) => is_window(bits),
                ("server_max_window_bits", Some("15")) => {
                    // A client that names a size wants it confirmed (section 7.1.2.1).
                    answer = "permessage-deflate; server_no_context_takeover; client_no_context_takeover; server_max_window_bits=15";
                    true
                }
                _ => false,
            };
            if !fits || seen.contains(&name) {
                return None;
            }
            seen.push(name);
        }
        Some(answer)
    })
}

fn is_window(bits: &str) -> bool {
    matches!(bits, "8" | "9" | "10" | "11" | "12" | "13" | "14" | "15")
}

/// The same whole frames with every text and binary message of at least `min` bytes compressed; `None` when that makes
/// nothing smaller. For clients with which the extension was agreed, and only for them.
///
/// # Panics
/// If `all` is not made of frames of this module.
pub fn compress(all: &[u8], min: usize) -> Option<Bytes> {
    let mut out = BytesMut::new();
    let mut smaller = false;
    for plain in frames(all) {
        let compressed = if payload(plain).len() < min { None } else { compress_one(plain) };
        smaller |= compressed.is_some();
        out.extend_from_slice(compressed.as_deref().unwrap_or(plain));
    }
    smaller.then(|| out.freeze())
}

fn compress_one(plain: &[u8]) -> Option<Bytes> {
    let opcode = if is_binary(plain)? { Opcode::Binary } else { Opcode::Text };
    let data = payload(plain);
    let compressed = deflated(data)?;
    (compressed.len() < data.len()).then(|| frame(COMPRESSED | opcode as u8, &compressed))
}

/// `None` if the compressor did not take all in one go, which it does with this much room.
fn deflated(data: &[u8]) -> Option<Vec<u8>> {
    DEFLATE.with_borrow_mut(|state| {
        let state = state.get_or_insert_with(|| {
            let mut state = Box::<CompressorOxide>::default();
            state.set_format_and_level(DataFormat::Raw, LEVEL);
            state
        });
        state.reset();
        // A compressor that has to wait for room forgets the flush it was asked for, and with it the last bytes.
        let mut out = vec![0; data.len() + data.len() / 8 + 256];
        let done = deflate(state, data, &mut out, MZFlush::Sync);
        out.truncate(done.bytes_written);
        if done.bytes_consumed < data.len() || !out.ends_with(&TAIL) {
            return None;
        }
        out.truncate(out.len() - TAIL.len());
        Some(out)
    })
}

/// The message that a client compressed. Never more than `max` bytes are made of it.
pub(super) fn inflated(data: &[u8], max: usize) -> Result<Vec<u8>, Error> {
    const FLAGS: u32 = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF | TINFL_FLAG_IGNORE_ADLER32;
    INFLATE.with_borrow_mut(|state| {
        let state = state.get_or_insert_default();
        state.init();
        // One byte over the limit is enough to see that it is exceeded.
        let most = max.saturating_add(1);
        let mut out = vec![0; data.len().saturating_mul(4).clamp(256, 64 * 1024).min(most)];
        let mut len = 0;
        for mut part in [data, &TAIL] {
            loop {
                let (status, consumed, written) = decompress(state, part, &mut out, len, FLAGS);
                part = &part[consumed..];
                len += written;
                if len > max {
                    return Err(Error::too_big("the message is larger than this server accepts"));
                }
                match status {
                    TINFLStatus::NeedsMoreInput => break,
                    // A client may end a block for good and begin another one (section 7.2.3.4).
                    TINFLStatus::Done if part.is_empty() => break,
                    TINFLStatus::Done => state.init(),
                    TINFLStatus::HasMoreOutput => {
                        let larger = out.len().saturating_mul(2).min(most);
                        out.resize(larger, 0);
                    }
                    _ => return Err(Error::deflate("the compressed message cannot be read")),
                }
            }
        }
        out.truncate(len);
        Ok(out)
    })
}

#[cfg(test)]
mod tests;
