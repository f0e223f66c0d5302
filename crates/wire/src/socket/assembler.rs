//! Packets and the binary messages that belong to them.

use super::Packet;
use crate::Error;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

/// Holds a packet back until its binary attachments have arrived, then puts them into its payload as JSON.
///
/// Attachment `i` takes the place of `{"_placeholder":true,"num":i}` as `{"$binary":"<padded base64>"}`; the rest of
/// the payload stays as it was sent, byte for byte. Every attachment must be used exactly once, which the stock client
/// does, and which keeps a packet from growing beyond what was received.
///
/// One per connection, since attachments name no namespace. Idle, it holds no heap memory.
#[derive(Debug)]
pub struct Assembler {
    max_bytes: usize,
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    packet: Packet<'static>,
    /// Attachments that have arrived, in base64 already: their read buffers are free again.
    attachments: Vec<String>,
    received_bytes: usize,
}

impl Assembler {
    /// An assembler that refuses a packet whose text and attachments (as received, before base64) exceed `max_bytes`
    /// together.
    pub fn new(max_bytes: usize) -> Self {
        Self { max_bytes, waiting: None }
    }

    /// Whether binary messages are due, and nothing else.
    pub fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes a decoded packet. One without attachments comes straight back; otherwise `None`, and the binary messages
    /// are due.
    ///
    /// # Errors
    /// `wire.socket` if attachments of an earlier packet are still due; `wire.too_big` if the text alone is over the
    /// limit.
    pub fn text<'a>(&mut self, packet: Packet<'a>) -> Result<Option<Packet<'a>>, Error> {
        if self.is_waiting() {
            return Err(Error::socket("a packet came where a binary attachment was due"));
        }
        let count = packet.attachments() as usize;
        if count == 0 {
            return Ok(Some(packet));
        }
        let packet = match packet {
            Packet::Event(event) => Packet::Event(event.into_owned()),
            Packet::Ack(ack) => Packet::Ack(ack.into_owned()),
            Packet::Connect { .. } | Packet::Disconnect { .. } => unreachable!("these carry no attachments"),
        };
        let received_bytes = payload(&packet).len();
        self.check_size(received_bytes)?;
        let attachments = Vec::with_capacity(count);
        self.waiting = Some(Box::new(Waiting { packet, attachments, received_bytes }));
        Ok(None)
    }

    /// Takes a binary message. The last one that was due completes the packet.
    ///
    /// # Errors
    /// `wire.socket` if none was due, or if the finished packet's placeholders do not name each attachment exactly
    /// once; `wire.too_big` if the limit is exceeded.
    pub fn binary(&mut self, data: &[u8]) -> Result<Option<Packet<'static>>, Error> {
        let Some(mut waiting) = self.waiting.take() else {
            return Err(Error::socket("a binary message came that no packet announced"));
        };
        waiting.received_bytes = waiting.received_bytes.saturating_add(data.len());
        self.check_size(waiting.received_bytes)?;
        waiting.attachments.push(STANDARD.encode(data));
        if waiting.attachments.len() < waiting.packet.attachments() as usize {
            self.waiting = Some(waiting);
            return Ok(None);
        }
        let payload = substitute(payload(&waiting.packet), waiting.attachments)?;
        Ok(Some(match waiting.packet {
            Packet::Event(event) => Packet::Event(event.complete(payload)),
            Packet::Ack(ack) => Packet::Ack(ack.complete(payload)),
            Packet::Connect { .. } | Packet::Disconnect { .. } => unreachable!("these carry no attachments"),
        }))
    }

    fn check_size(&self, bytes: usize) -> Result<(), Error> {
        if bytes > self.max_bytes {
            return Err(Error::too_big("the packet and its attachments are larger than this server accepts"));
        }
        Ok(())
    }
}

fn payload<'a>(packet: &'a Packet<'_>) -> &'a str {
    match packet {
        Packet::Event(event) => event.payload(),
        Packet::Ack(ack) => ack.payload(),
        Packet::Connect { .. } | Packet::Disconnect { .. } => "",
    }
}

/// Replaces each placeholder in `json`, which is valid JSON, by its attachment.
///
/// A placeholder holds no other object. So it is enough to look at each span from a `{` to the next brace outside a
/// string, if that is a `}`: such spans are whole objects and do not overlap, and all of it takes one pass.
fn substitute(json: &str, attachments: Vec<String>) -> Result<String, Error> {
    let mut out = String::with_capacity(json.len() + attachments.iter().map(String::len).sum::<usize>());
    let mut unused: Vec<Option<String>> = attachments.into_iter().map(Some).collect();
    let mut copied = 0;
    let mut opened = None;
    let mut in_string = false;
    let mut escaped = false;
    for (index, byte) in json.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' => opened = Some(index),
            b'}' => {
                let Some(start) = opened.take() else { continue };
                let Some(number) = placeholder(&json[start..=index])? else { continue };
                let data = unused.get_mut(number).and_then(Option::take);
                let data = data.ok_or(Error::socket("a placeholder names an attachment that is not there"))?;
                out.push_str(&json[copied..start]);
                out.push_str("{\"$binary\":\"");
                out.push_str(&data);
                out.push_str("\"}");
                copied = index + 1;
            }
            _ => {}
        }
    }
    if unused.iter().any(Option::is_some) {
        return Err(Error::socket("an attachment has no placeholder in its packet"));
    }
    out.push_str(&json[copied..]);
    Ok(out)
}

/// The attachment that a JSON object names, if it is a placeholder. Like the reference parser this goes by
/// `_placeholder` being true, whatever else stands in the object.
fn placeholder(object: &str) -> Result<Option<usize>, Error> {
    // Nearly every object is told apart here, without being parsed.
    if !object.contains("\"_placeholder\"") {
        return Ok(None);
    }
    let invalid = || Error::socket("a placeholder must name its attachment by a number");
    let object: Value = serde_json::from_str(object).map_err(|_| invalid())?;
    if object["_placeholder"] != Value::Bool(true) {
        return Ok(None);
    }
    object["num"].as_u64().and_then(|number| usize::try_from(number).ok()).map(Some).ok_or_else(invalid)
}
