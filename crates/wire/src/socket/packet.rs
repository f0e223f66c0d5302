//! What a client sends.

use crate::Error;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// The most binary attachments one packet may announce, as in the reference server since CVE-2026-33151.
pub const MAX_ATTACHMENTS: u32 = 10;

/// The longest namespace in bytes, its leading `/` included.
pub const MAX_NAMESPACE_BYTES: usize = 256;

/// Names that the client library uses for itself; the reference server closes over an event called so.
pub(super) const RESERVED: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// One packet from a client, borrowed from the message it came in. `CONNECT_ERROR` is the server's alone, so it has no
/// variant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// Asks to join a namespace.
    Connect {
        /// The namespace, `/` when none was given.
        nsp: &'a str,
        /// The credentials as the text of a JSON object, or nothing.
        auth: Option<Cow<'a, str>>,
    },
    /// Leaves a namespace.
    Disconnect {
        /// The namespace, `/` when none was given.
        nsp: &'a str,
    },
    /// Something happened; with an id, the client waits for an acknowledgement.
    Event(Event<'a>),
    /// The client acknowledges an event of the server's.
    Ack(Ack<'a>),
}

/// An event, valid by construction: its payload is a JSON array that starts with a name.
///
/// JSON is checked for its grammar only. Turning an argument into a value can still fail, by a lone surrogate, a number
/// out of range or deep nesting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    nsp: Cow<'a, str>,
    id: Option<u64>,
    name: Cow<'a, str>,
    payload: Cow<'a, str>,
    attachments: u32,
}

/// An acknowledgement, valid by construction: its payload is a JSON array. The same holds for it as for an [`Event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack<'a> {
    nsp: Cow<'a, str>,
    id: u64,
    payload: Cow<'a, str>,
    attachments: u32,
}

impl Event<'_> {
    /// The namespace, `/` when none was given.
    pub fn namespace(&self) -> &str {
        &self.nsp
    }

    /// The number to acknowledge, if the client waits for that.
    pub fn id(&self) -> Option<u64> {
        self.id
    }

    /// The event's name; a numeric name is its digits as sent. Never one of the client library's reserved names.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The JSON array as sent, name included.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// What follows the name, each as its JSON text. The list is built at each call and takes 16 bytes per argument.
    pub fn args(&self) -> Vec<&RawValue> {
        let mut args = elements(&self.payload);
        args.remove(0);
        args
    }

    /// How many binary messages are still to follow, at most [`MAX_ATTACHMENTS`]; 0 once an
    /// [`Assembler`](super::Assembler) has put them in.
    pub fn attachments(&self) -> u32 {
        self.attachments
    }

    /// An event that needs no assembling. `payload` must be a JSON array that starts with `name`.
    pub(super) fn whole(nsp: &str, id: Option<u64>, name: String, payload: String) -> Self {
        let (nsp, name, payload) = (Cow::Owned(nsp.to_owned()), Cow::Owned(name), Cow::Owned(payload));
        Self { nsp, id, name, payload, attachments: 0 }
    }

    /// The same event, borrowing nothing.
    pub fn into_owned(self) -> Event<'static> {
        Event {
            nsp: Cow::Owned(self.nsp.into_owned()),
            id: self.id,
            name: Cow::Owned(self.name.into_owned()),
            payload: Cow::Owned(self.payload.into_owned()),
            attachments: self.attachments,
        }
    }

    /// The event with its placeholders replaced: the assembler's last step. `payload` must still be an array with this
    /// name.
    pub(super) fn complete(self, payload: String) -> Self {
        Self { payload: Cow::Owned(payload), attachments: 0, ..self }
    }
}

impl Ack<'_> {
    /// The namespace, `/` when none was given.
    pub fn namespace(&self) -> &str {
        &self.nsp
    }

    /// The number of the event that is acknowledged. Whether the server waits for it is the session's to know.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The JSON array as sent.
    pub fn payload(&self) -> &str {
        &self.payload
    }

    /// The answer's arguments, each as its JSON text. The list is built at each call and takes 16 bytes per argument.
    pub fn args(&self) -> Vec<&RawValue> {
        elements(&self.payload)
    }

    /// How many binary messages are still to follow, at most [`MAX_ATTACHMENTS`]; 0 once an
    /// [`Assembler`](super::Assembler) has put them in.
    pub fn attachments(&self) -> u32 {
        self.attachments
    }

    /// An acknowledgement that needs no assembling. `payload` must be a JSON array.
    pub(super) fn whole(nsp: &str, id: u64, payload: String) -> Self {
        Self { nsp: Cow::Owned(nsp.to_owned()), id, payload: Cow::Owned(payload), attachments: 0 }
    }

    /// The same acknowledgement, borrowing nothing.
    pub fn into_owned(self) -> Ack<'static> {
        Ack {
            nsp: Cow::Owned(self.nsp.into_owned()),
            id: self.id,
            payload: Cow::Owned(self.payload.into_owned()),
            attachments: self.attachments,
        }
    }

    /// The acknowledgement with its placeholders replaced: the assembler's last step. `payload` must still be an array.
    pub(super) fn complete(self, payload: String) -> Self {
        Self { payload: Cow::Owned(payload), attachments: 0, ..self }
    }
}

impl<'a> Packet<'a> {
    /// Reads what follows the digit of an Engine.IO message packet.
    ///
    /// Stricter than the reference server: `CONNECT` and `DISCONNECT` carry no id, an event or acknowledgement has a
    /// payload, a namespace has at most [`MAX_NAMESPACE_BYTES`] and no control characters.
    ///
    /// # Errors
    /// `wire.socket` for anything a client may not send; `wire.too_many` for more than [`MAX_ATTACHMENTS`].
    pub fn decode(text: &'a str) -> Result<Self, Error> {
        let Some(&kind) = text.as_bytes().first() else { return Err(Error::socket("the packet is empty")) };
        if !(b'0'..=b'6').contains(&kind) {
            return Err(Error::socket("the packet does not start with a type digit 0 to 6"));
        }
        let (attachments, rest) = match kind {
            b'5' | b'6' => take_attachments(&text[1..])?,
            _ => (0, &text[1..]),
        };
        let (nsp, rest) = take_namespace(rest)?;
        match kind {
            b'0' => {
                let auth = if rest.is_empty() {
                    None
                } else {
                    Some(json(rest, '{').ok_or(Error::socket("the payload of CONNECT must be a JSON object"))?)
                };
                Ok(Self::Connect { nsp, auth: auth.map(Cow::Borrowed) })
            }
            b'1' if rest.is_empty() => Ok(Self::Disconnect { nsp }),
            b'1' => Err(Error::socket("DISCONNECT carries no payload")),
            b'2' | b'5' => {
                let (id, rest) = take_id(rest)?;
                let payload = json(rest, '[').ok_or(Error::socket("the payload of EVENT must be a JSON array"))?;
                let name = event_name(payload)?;
                Ok(Self::Event(Event { nsp: nsp.into(), id, name, payload: payload.into(), attachments }))
            }
            b'3' | b'6' => {
                let (id, rest) = take_id(rest)?;
                let id = id.ok_or(Error::socket("ACK must name the id that it answers"))?;
                let payload = json(rest, '[').ok_or(Error::socket("the payload of ACK must be a JSON array"))?;
                Ok(Self::Ack(Ack { nsp: nsp.into(), id, payload: payload.into(), attachments }))
            }
            _ => Err(Error::socket("CONNECT_ERROR is sent by servers only")),
        }
    }

    /// How many binary messages are still to follow; 0 for packets that cannot have any.
    pub fn attachments(&self) -> u32 {
        match self {
            Self::Connect { .. } | Self::Disconnect { .. } => 0,
            Self::Event(event) => event.attachments,
            Self::Ack(ack) => ack.attachments,
        }
    }
}

fn take_attachments(text: &str) -> Result<(u32, &str), Error> {
    let expected = "a binary packet must say how many attachments follow, as in 51-";
    let (count, rest) = text.split_once('-').ok_or(Error::socket(expected))?;
    if count.is_empty() || !count.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Error::socket(expected));
    }
    // A count too large for the type is too many in any case.
    match count.parse() {
        Ok(0) => Err(Error::socket(expected)),
        Ok(count) if count <= MAX_ATTACHMENTS => Ok((count, rest)),
        _ => Err(Error::too_many("the packet announces more than 10 attachments")),
    }
}

fn take_namespace(text: &str) -> Result<(&str, &str), Error> {
    if !text.starts_with('/') {
        return Ok(("/", text));
    }
    // Without a payload the comma may be missing: `0/admin`.
    let (nsp, rest) = text.split_once(',').unwrap_or((text, ""));
    check_namespace(nsp)?;
    Ok((nsp, rest))
}

/// Refuses namespaces that are too long or unprintable.
pub(super) fn check_namespace(nsp: &str) -> Result<(), Error> {
    if nsp.len() > MAX_NAMESPACE_BYTES {
        return Err(Error::socket("the namespace is longer than 256 bytes"));
    }
    // It is echoed outside of JSON, where a control character could be taken for polling's packet separator.
    if nsp.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Error::socket("the namespace contains a control character"));
    }
    Ok(())
}

fn take_id(text: &str) -> Result<(Option<u64>, &str), Error> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits == 0 {
        return Ok((None, text));
    }
    match text[..digits].parse() {
        Ok(id) => Ok((Some(id), &text[digits..])),
        Err(_) => Err(Error::socket("the acknowledgement id does not fit 64 bits")),
    }
}

/// The text of one JSON value that starts with `open`, without the white space around it; `None` if it is anything
/// else. Nesting costs no stack here.
fn json(text: &str, open: char) -> Option<&str> {
    let value = serde_json::from_str::<&RawValue>(text).ok()?.get();
    value.starts_with(open).then_some(value)
}

/// The first element of a valid JSON array, if it may name an event. Only that element is read.
pub(super) fn event_name(payload: &str) -> Result<Cow<'_, str>, Error> {
    let expected = "an event's payload must start with its name, a string or a number";
    let first = serde_json::Deserializer::from_str(&payload[1..]).into_iter::<&RawValue>().next();
    let Some(Ok(first)) = first else { return Err(Error::socket(expected)) };
    let first = first.get();
    let name = match first.as_bytes()[0] {
        b'-' | b'0'..=b'9' => return Ok(Cow::Borrowed(first)),
        b'"' if !first.contains('\\') => Cow::Borrowed(&first[1..first.len() - 1]),
        // Escapes are undone before the name is compared, or `"\u0063onnect"` would slip through.
        b'"' => Cow::Owned(serde_json::from_str(first).map_err(|_| Error::socket(expected))?),
        _ => return Err(Error::socket(expected)),
    };
    if RESERVED.contains(&&*name) {
        return Err(Error::socket("the event's name is reserved by the client library"));
    }
    Ok(name)
}

fn elements(payload: &str) -> Vec<&RawValue> {
    serde_json::from_str(payload).expect("the payload was checked to be a JSON array when it was decoded")
}
