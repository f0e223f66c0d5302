//! MessagePack from a client to a packet whose payload is JSON text.

use super::super::packet::{Ack, Event, Packet, check_namespace, event_name};
use crate::Error;
use crate::json::Quoted;
use base64::{Engine, engine::general_purpose::STANDARD};
use std::borrow::Cow;

/// How many arrays and maps may stand in each other.
pub const MAX_DEPTH: usize = 100;

/// The most keys of a packet's own map. The client library writes five.
const MAX_KEYS: usize = 16;

/// Reads one binary message.
///
/// The payload becomes JSON text of at most eight times the size of `data`. Bytes become `{"$binary":"<padded base64>"}`,
/// a date its ISO 8601 text, `undefined` nothing in a map and `null` elsewhere, as `JSON.stringify` has them; numbers that
/// JSON cannot say become `null`.
///
/// # Errors
/// `wire.msgpack` for what is not one whole MessagePack value or has keys that are no text; `wire.socket` for a packet that
/// a client may not send, by the same rules as [`Packet::decode`]; `wire.too_many` beyond [`MAX_DEPTH`].
pub fn decode(data: &[u8]) -> Result<Packet<'_>, Error> {
    let mut reader = Reader { rest: data };
    let keys = match reader.head()? {
        Head::Map(keys) if keys as usize <= MAX_KEYS => keys,
        _ => return Err(Error::msgpack("a packet must be a map of at most 16 keys")),
    };
    let (mut kind, mut nsp, mut id, mut payload) = (None, None, None, None);
    for _ in 0..keys {
        let key = reader.text()?;
        let twice = match key {
            "type" => kind.replace(reader.number()?).is_some(),
            "nsp" => nsp.replace(reader.text()?).is_some(),
            "id" => id.replace(reader.number_or_undefined()?).is_some(),
            "data" => payload.replace(reader.json()?).is_some(),
            // The client's own notes about the packet, such as `options`.
            _ => {
                reader.json()?;
                false
            }
        };
        if twice {
            return Err(Error::msgpack("a packet names a key twice"));
        }
    }
    if !reader.rest.is_empty() {
        return Err(Error::msgpack("something follows the packet"));
    }
    let nsp = nsp.ok_or(Error::socket("a packet must name its namespace"))?;
    if !nsp.starts_with('/') || nsp.contains(',') {
        return Err(Error::socket("a namespace starts with / and has no comma"));
    }
    check_namespace(nsp)?;
    packet(kind, nsp, id.flatten(), payload.flatten())
}

fn packet(kind: Option<u64>, nsp: &str, id: Option<u64>, payload: Option<String>) -> Result<Packet<'_>, Error> {
    let array = |expected: &'static str, payload: Option<String>| {
        payload.filter(|payload| payload.starts_with('[')).ok_or(Error::socket(expected))
    };
    match kind {
        Some(0) if payload.as_ref().is_none_or(|payload| payload.starts_with('{')) => {
            Ok(Packet::Connect { nsp, auth: payload.map(Cow::Owned) })
        }
        Some(0) => Err(Error::socket("the payload of CONNECT must be an object")),
        Some(1) if payload.is_none() => Ok(Packet::Disconnect { nsp }),
        Some(1) => Err(Error::socket("DISCONNECT carries no payload")),
        Some(2) => {
            let payload = array("the payload of EVENT must be an array", payload)?;
            let name = event_name(&payload)?.into_owned();
            Ok(Packet::Event(Event::whole(nsp, id, name, payload)))
        }
        Some(3) => {
            let id = id.ok_or(Error::socket("ACK must name the id that it answers"))?;
            Ok(Packet::Ack(Ack::whole(nsp, id, array("the payload of ACK must be an array", payload)?)))
        }
        Some(4) => Err(Error::socket("CONNECT_ERROR is sent by servers only")),
        Some(_) | None => Err(Error::socket("the packet's type must be a number from 0 to 4")),
    }
}

/// The head of a value, and what follows it.
enum Head<'a> {
    Nil,
    Bool(bool),
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(&'a [u8]),
    Binary(&'a [u8]),
    Array(u32),
    Map(u32),
    Undefined,
    Date(i64),
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Error> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Error::msgpack("the packet ends too early"))?;
        self.rest = rest;
        Ok(bytes)
    }

    /// A big-endian number of `N` bytes.
    fn big<const N: usize>(&mut self) -> Result<u64, Error> {
        Ok(self.bytes(N)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    fn sized<const N: usize>(&mut self) -> Result<&'a [u8], Error> {
        let len = self.big::<N>()?;
        self.bytes(usize::try_from(len).unwrap_or(usize::MAX))
    }

    fn head(&mut self) -> Result<Head<'a>, Error> {
        let [first] = *self.bytes(1)? else { return Err(Error::msgpack("the packet ends too early")) };
        Ok(match first {
            0x00..=0x7f => Head::Unsigned(first.into()),
            0x80..=0x8f => Head::Map(u32::from(first & 0x0f)),
            0x90..=0x9f => Head::Array(u32::from(first & 0x0f)),
            0xa0..=0xbf => Head::Text(self.bytes(usize::from(first & 0x1f))?),
            0xc0 => Head::Nil,
            0xc2 => Head::Bool(false),
            0xc3 => Head::Bool(true),
            0xc4 => Head::Binary(self.sized::<1>()?),
            0xc5 => Head::Binary(self.sized::<2>()?),
            0xc6 => Head::Binary(self.sized::<4>()?),
            0xc7..=0xc9 => {
                let len = match first {
                    0xc7 => self.big::<1>()?,
                    0xc8 => self.big::<2>()?,
                    _ => self.big::<4>()?,
                };
                self.extension()?;
                Head::Binary(self.bytes(usize::try_from(len).unwrap_or(usize::MAX))?)
            }
            0xca => Head::Float(f64::from(f32::from_bits(self.big::<4>()? as u32))),
            0xcb => Head::Float(f64::from_bits(self.big::<8>()?)),
            0xcc => Head::Unsigned(self.big::<1>()?),
            0xcd => Head::Unsigned(self.big::<2>()?),
            0xce => Head::Unsigned(self.big::<4>()?),
            0xcf => Head::Unsigned(self.big::<8>()?),
            0xd0 => Head::signed(i64::from(self.big::<1>()? as i8)),
            0xd1 => Head::signed(i64::from(self.big::<2>()? as i16)),
            0xd2 => Head::signed(i64::from(self.big::<4>()? as i32)),
            0xd3 => Head::signed(self.big::<8>()? as i64),
            0xd4 => {
                self.extension()?;
                self.bytes(1)?;
                Head::Undefined
            }
            0xd7 => {
                self.extension()?;
                Head::Date(self.big::<8>()? as i64)
            }
            0xd9 => Head::Text(self.sized::<1>()?),
            0xda => Head::Text(self.sized::<2>()?),
            0xdb => Head::Text(self.sized::<4>()?),
            0xdc => Head::Array(self.big::<2>()? as u32),
            0xdd => Head::Array(self.big::<4>()? as u32),
            0xde => Head::Map(self.big::<2>()? as u32),
            0xdf => Head::Map(self.big::<4>()? as u32),
            0xe0..=0xff => Head::Negative(i64::from(first as i8)),
            0xc1 | 0xd5 | 0xd6 | 0xd8 => return Err(Error::msgpack("the packet has a value of an unknown kind")),
        })
    }

    /// The type of an extension: only the client library's own is known.
    fn extension(&mut self) -> Result<(), Error> {
        match self.bytes(1)? {
            [0] => Ok(()),
            _ => Err(Error::msgpack("the packet has an extension of an unknown type")),
        }
    }

    fn text(&mut self) -> Result<&'a str, Error> {
        match self.head()? {
            Head::Text(text) => utf8(text),
            _ => Err(Error::msgpack("a key or a namespace must be text")),
        }
    }

    fn number(&mut self) -> Result<u64, Error> {
        self.number_or_undefined()?.ok_or(Error::msgpack("a type must be a whole number"))
    }

    fn number_or_undefined(&mut self) -> Result<Option<u64>, Error> {
        match self.head()? {
            Head::Unsigned(number) => Ok(Some(number)),
            Head::Undefined => Ok(None),
            _ => Err(Error::msgpack("a type or an id must be a whole number")),
        }
    }

    /// The JSON text of the next value; `None` for `undefined`.
    fn json(&mut self) -> Result<Option<String>, Error> {
        let mut out = String::new();
        Ok(self.write_json(&mut out, 0)?.then_some(out))
    }

    /// Appends the next value as JSON; false when it is `undefined`, for which nothing is appended. Every element takes at
    /// least a byte of the input, so that an announced length alone makes nothing grow.
    fn write_json(&mut self, out: &mut String, depth: usize) -> Result<bool, Error> {
        if depth > MAX_DEPTH {
            return Err(Error::too_many("the packet is nested deeper than 100 levels"));
        }
        match self.head()? {
            Head::Undefined => return Ok(false),
            Head::Nil => out.push_str("null"),
            Head::Bool(true) => out.push_str("true"),
            Head::Bool(false) => out.push_str("false"),
            Head::Unsigned(number) => out.push_str(&number.to_string()),
            Head::Negative(number) => out.push_str(&number.to_string()),
            Head::Float(number) => out.push_str(&serde_json::Value::from(number).to_string()),
            Head::Text(text) => Quoted::new(utf8(text)?).push_to(out),
            Head::Binary(data) => {
                out.push_str("{\"$binary\":\"");
                STANDARD.encode_string(data, out);
                out.push_str("\"}");
            }
            Head::Date(millis) => write_date(millis, out),
            Head::Array(len) => {
                out.push('[');
                for index in 0..len {
                    if index > 0 {
                        out.push(',');
                    }
                    if !self.write_json(out, depth + 1)? {
                        out.push_str("null");
                    }
                }
                out.push(']');
            }
            Head::Map(len) => {
                out.push('{');
                let begin = out.len();
                for _ in 0..len {
                    let before = out.len();
                    if before > begin {
                        out.push(',');
                    }
                    Quoted::new(self.text()?).push_to(out);
                    out.push(':');
                    if !self.write_json(out, depth + 1)? {
                        out.truncate(before);
                    }
                }
                out.push('}');
            }
        }
        Ok(true)
    }
}

impl Head<'_> {
    fn signed(number: i64) -> Self {
        u64::try_from(number).map_or(Self::Negative(number), Self::Unsigned)
    }
}

fn utf8(text: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(text).map_err(|_| Error::utf8("the packet's text is not UTF-8"))
}

/// A time in milliseconds since 1970 as JavaScript's `Date.toJSON` has it.
fn write_date(millis: i64, out: &mut String) {
    // The range of JavaScript's own dates; beyond it they are invalid there too.
    const FARTHEST: i64 = 8_640_000_000_000_000;
    if !(-FARTHEST..=FARTHEST).contains(&millis) {
        return out.push_str("null");
    }
    let (days, of_day) = (millis.div_euclid(86_400_000), millis.rem_euclid(86_400_000));
    // The proleptic Gregorian calendar, counted in eras of 400 years that begin in March.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let year = match year {
        0..=9_999 => format!("{year:04}"),
        _ => format!("{year:+07}"),
    };
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1_000 % 60, of_day % 1_000);
    out.push_str(&format!("\"{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z\""));
}
