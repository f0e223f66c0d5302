//! Client bytes to messages.

use super::deflate::{COMPRESSED, inflated};
use super::{MAX_CONTROL_BYTES, Opcode, is_wire_close_code};
use crate::Error;
use bytes::{Buf, Bytes, BytesMut};

/// One whole message from a client, defragmented and unmasked.
///
/// The bytes of an unfragmented text or binary message are a slice of the read buffer they arrived in and keep that
/// buffer alive; copy what is to be held for long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Valid UTF-8: `str::from_utf8` on it cannot fail.
    Text(Bytes),
    /// Any bytes.
    Binary(Bytes),
    /// To be answered with a [`pong`](super::pong) of the same payload, at most [`MAX_CONTROL_BYTES`] long.
    Ping(Bytes),
    /// An answer to a ping, or unasked for, which is allowed.
    Pong(Bytes),
    /// The client closes: a code that may stand on the wire and a reason, or neither. Nothing after it is to be
    /// decoded.
    Close(Option<(u16, String)>),
}

/// Turns a client's bytes into [`Message`]s (RFC 6455, sections 5 to 8; RFC 7692 where it was agreed).
///
/// It holds two words and, only while a fragmented message is open, a buffer of at most twice the message limit.
/// Everything else stays in the caller's read buffer, which an idle connection may give back.
#[derive(Debug)]
pub struct Decoder {
    /// 32 bits, so that the switch beside it costs no word of its own.
    max_message: u32,
    inflates: bool,
    pub(super) open: Option<Box<Fragments>>,
}

/// A message whose last fragment has not arrived. Boxed, because nearly no connection ever has one.
#[derive(Debug)]
pub(super) struct Fragments {
    is_text: bool,
    is_compressed: bool,
    data: BytesMut,
    /// How much of `data` is known to be UTF-8, where that matters.
    checked: usize,
}

impl Fragments {
    /// Refuses text that cannot become UTF-8 any more, without waiting for its end. Each byte is looked at about once.
    fn check_text(&mut self) -> Result<(), Error> {
        if self.is_text && !self.is_compressed {
            match std::str::from_utf8(&self.data[self.checked..]) {
                Ok(_) => self.checked = self.data.len(),
                Err(error) if error.error_len().is_none() => self.checked += error.valid_up_to(),
                Err(_) => return Err(Error::utf8("the text message is not UTF-8")),
            }
        }
        Ok(())
    }
}

impl Decoder {
    /// A decoder that refuses messages of more than `max_message` payload bytes, summed over their fragments. Control
    /// frames have their own limit, [`MAX_CONTROL_BYTES`]. A limit of 4 GiB or more is taken for one byte less than that.
    pub fn new(max_message: usize) -> Self {
        Self { max_message: u32::try_from(max_message).unwrap_or(u32::MAX), inflates: false, open: None }
    }

    /// The same for a client with which `permessage-deflate` was agreed. The limit holds for what is received and for
    /// what is made of it.
    #[must_use]
    pub fn inflating(self) -> Self {
        Self { inflates: true, ..self }
    }

    /// Takes the next whole message off the front of `bytes`; `None` means that more bytes are needed. Call it until it
    /// says so, and again after each read. A frame that is not complete yet stays in `bytes`.
    ///
    /// # Errors
    /// Close code 1002 for anything against the framing rules: an unmasked frame, reserved bits or opcodes, a
    /// fragmented or oversized control frame, a misplaced continuation, a bad close payload. 1007 for text or a close
    /// reason that is not UTF-8. 1009 for a message over the limit, as soon as its header announces it. After an error
    /// the decoder must not be fed again.
    pub fn feed(&mut self, bytes: &mut BytesMut) -> Result<Option<Message>, Error> {
        loop {
            let Some(header) = Header::parse(bytes, self.inflates)? else { return Ok(None) };
            let len = self.admit(&header)?;
            if bytes.len() - header.len < len {
                return Ok(None);
            }
            bytes.advance(header.len);
            unmask(&mut bytes[..len], header.mask);
            if let Some(message) = self.take(&header, len, bytes)? {
                return Ok(Some(message));
            }
        }
    }

    /// Checks a header against what is open and how much is allowed, and returns its payload's length.
    fn admit(&self, header: &Header) -> Result<usize, Error> {
        let held = match (header.opcode, &self.open) {
            (Opcode::Close | Opcode::Ping | Opcode::Pong, _) => return Ok(header.payload_len as usize),
            (Opcode::Continuation, None) => {
                return Err(Error::protocol("a continuation frame came without a message to continue"));
            }
            (Opcode::Text | Opcode::Binary, Some(_)) => {
                return Err(Error::protocol("a new message started before the fragmented one was finished"));
            }
            (Opcode::Continuation, Some(open)) => open.data.len(),
            (Opcode::Text | Opcode::Binary, None) => 0,
        };
        match usize::try_from(header.payload_len) {
            Ok(len) if len <= self.max_message as usize - held => Ok(len),
            _ => Err(Error::too_big("the message is larger than this server accepts")),
        }
    }

    /// Consumes a payload that has wholly arrived and is unmasked; `None` when it was only a fragment.
    fn take(&mut self, header: &Header, len: usize, bytes: &mut BytesMut) -> Result<Option<Message>, Error> {
        match header.opcode {
            Opcode::Close => close(&bytes.split_to(len)).map(Some),
            // Copied, because they are tiny and must not pin a read buffer while they wait to be answered.
            Opcode::Ping => Ok(Some(Message::Ping(Bytes::copy_from_slice(&bytes.split_to(len))))),
            Opcode::Pong => Ok(Some(Message::Pong(Bytes::copy_from_slice(&bytes.split_to(len))))),
            Opcode::Text | Opcode::Binary if header.is_final => {
                let data = bytes.split_to(len).freeze();
                self.whole(header.opcode == Opcode::Text, header.is_compressed, data).map(Some)
            }
            Opcode::Text | Opcode::Binary | Opcode::Continuation => {
                let is_text = header.opcode == Opcode::Text;
                let is_compressed = header.is_compressed;
                let open = self.open.get_or_insert_with(|| {
                    Box::new(Fragments { is_text, is_compressed, data: BytesMut::new(), checked: 0 })
                });
                open.data.extend_from_slice(&bytes[..len]);
                bytes.advance(len);
                open.check_text()?;
                if !header.is_final {
                    return Ok(None);
                }
                let Some(open) = self.open.take() else { return Ok(None) };
                self.whole(open.is_text, open.is_compressed, open.data.freeze()).map(Some)
            }
        }
    }

    fn whole(&self, is_text: bool, is_compressed: bool, data: Bytes) -> Result<Message, Error> {
        let data = if is_compressed { Bytes::from(inflated(&data, self.max_message as usize)?) } else { data };
        if !is_text {
            return Ok(Message::Binary(data));
        }
        match std::str::from_utf8(&data) {
            Ok(_) => Ok(Message::Text(data)),
            Err(_) => Err(Error::utf8("the text message is not UTF-8")),
        }
    }
}

fn close(payload: &[u8]) -> Result<Message, Error> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(Message::Close(None)),
            _ => Err(Error::protocol("the close payload is one byte, too short for a code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !is_wire_close_code(code) {
        return Err(Error::protocol("the close code may not be sent in a frame"));
    }
    match std::str::from_utf8(reason) {
        Ok(reason) => Ok(Message::Close(Some((code, reason.to_owned())))),
        Err(_) => Err(Error::utf8("the close reason is not UTF-8")),
    }
}

/// A frame's header (RFC 6455, section 5.2), valid in itself.
struct Header {
    is_final: bool,
    is_compressed: bool,
    opcode: Opcode,
    mask: [u8; 4],
    /// Length in bytes of the header, mask included: 6, 8 or 14.
    len: usize,
    payload_len: u64,
}

impl Header {
    /// `None` means that the header is not complete yet. What the first two bytes give away is refused at once.
    fn parse(bytes: &[u8], inflates: bool) -> Result<Option<Self>, Error> {
        let Some((&[first, second], rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let extension = first & 0x70;
        if extension != 0 && !(inflates && extension == COMPRESSED) {
            return Err(Error::protocol("a reserved bit is set that no agreed extension uses"));
        }
        let Some(opcode) = Opcode::from_nibble(first & 0x0f) else {
            return Err(Error::protocol("the frame's opcode is reserved"));
        };
        if second & 0x80 == 0 {
            return Err(Error::protocol("a client's frame must be masked"));
        }
        let is_final = first & 0x80 != 0;
        let is_compressed = extension == COMPRESSED;
        if is_compressed && !matches!(opcode, Opcode::Text | Opcode::Binary) {
            return Err(Error::protocol("only the first frame of a message says that it is compressed"));
        }
        let short_len = second & 0x7f;
        if opcode.is_control() && !is_final {
            return Err(Error::protocol("a control frame must not be fragmented"));
        }
        if opcode.is_control() && usize::from(short_len) > MAX_CONTROL_BYTES {
            return Err(Error::protocol("a control frame carries at most 125 bytes"));
        }
        // A length in more bytes than it needs is let pass: it is harmless, and some clients write it.
        let (payload_len, rest) = match short_len {
            126 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from(u16::from_be_bytes(*len)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((len, rest)) => (u64::from_be_bytes(*len), rest),
                None => return Ok(None),
            },
            len => (u64::from(len), rest),
        };
        if payload_len >> 63 != 0 {
            return Err(Error::protocol("the top bit of a 64-bit length must be zero"));
        }
        let Some((mask, rest)) = rest.split_first_chunk() else { return Ok(None) };
        Ok(Some(Self { is_final, is_compressed, opcode, mask: *mask, len: bytes.len() - rest.len(), payload_len }))
    }
}

/// Removes a mask in place (RFC 6455, section 5.3), a word at a time, which the compiler widens further.
fn unmask(data: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = data.as_chunks_mut();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}
