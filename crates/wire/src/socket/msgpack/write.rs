//! Packets to MessagePack, each as one finished binary frame.

use super::super::attachments::binary_of;
use crate::websocket;
use bytes::Bytes;
use serde_json::Value;

/// The answer to a client that may join; see [`connect`](super::super::connect).
pub fn connect(nsp: &str, sid: &str, pid: Option<&str>) -> Bytes {
    let mut out = begin(0, nsp, 3);
    text(&mut out, "data");
    map(&mut out, 1 + usize::from(pid.is_some()));
    text(&mut out, "sid");
    text(&mut out, sid);
    if let Some(pid) = pid {
        text(&mut out, "pid");
        text(&mut out, pid);
    }
    websocket::binary(&out)
}

/// The answer to a client that may not join; see [`connect_error`](super::super::connect_error).
pub fn connect_error(nsp: &str, message: &str, data: Option<&str>) -> Bytes {
    let mut out = begin(4, nsp, 3);
    text(&mut out, "data");
    map(&mut out, 1 + usize::from(data.is_some()));
    text(&mut out, "message");
    text(&mut out, message);
    if let Some(data) = data {
        text(&mut out, "data");
        json(&mut out, data);
    }
    websocket::binary(&out)
}

/// An event; see [`event`](super::super::event). An argument that cannot be read as a JSON value leaves as nil.
pub fn event(nsp: &str, name: &str, args: &[&str], offset: Option<&str>) -> Bytes {
    let mut out = begin(2, nsp, 3);
    text(&mut out, "data");
    array(&mut out, 1 + args.len() + usize::from(offset.is_some()));
    text(&mut out, name);
    args.iter().for_each(|arg| json(&mut out, arg));
    if let Some(offset) = offset {
        text(&mut out, offset);
    }
    websocket::binary(&out)
}

/// The answer to an event that carried `id`; see [`ack`](super::super::ack).
pub fn ack(nsp: &str, id: u64, args: &[&str]) -> Bytes {
    let mut out = begin(3, nsp, 4);
    text(&mut out, "id");
    unsigned(&mut out, id);
    text(&mut out, "data");
    array(&mut out, args.len());
    args.iter().for_each(|arg| json(&mut out, arg));
    websocket::binary(&out)
}

fn begin(kind: u8, nsp: &str, keys: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    map(&mut out, keys);
    text(&mut out, "type");
    unsigned(&mut out, kind.into());
    text(&mut out, "nsp");
    text(&mut out, nsp);
    out
}

fn json(out: &mut Vec<u8>, text: &str) {
    value(out, &serde_json::from_str(text).unwrap_or_default());
}

fn value(out: &mut Vec<u8>, json: &Value) {
    match json {
        Value::Null => out.push(0xc0),
        Value::Bool(false) => out.push(0xc2),
        Value::Bool(true) => out.push(0xc3),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => unsigned(out, number),
            (None, Some(number)) => negative(out, number),
            (None, None) => {
                out.push(0xcb);
                out.extend(number.as_f64().unwrap_or(f64::NAN).to_be_bytes());
            }
        },
        Value::String(string) => text(out, string),
        Value::Array(items) => {
            array(out, items.len());
            items.iter().for_each(|item| value(out, item));
        }
        Value::Object(fields) => match binary_of(fields) {
            Some(data) => {
                sized(out, None, [0xc4, 0xc5, 0xc6], data.len());
                out.extend(data);
            }
            None => {
                map(out, fields.len());
                for (name, field) in fields {
                    text(out, name);
                    value(out, field);
                }
            }
        },
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    sized(out, Some((0xa0, 31)), [0xd9, 0xda, 0xdb], text.len());
    out.extend_from_slice(text.as_bytes());
}

fn array(out: &mut Vec<u8>, len: usize) {
    counted(out, 0x90, [0xdc, 0xdd], len);
}

fn map(out: &mut Vec<u8>, len: usize) {
    counted(out, 0x80, [0xde, 0xdf], len);
}

/// The head of text or bytes: short form if there is one, then lengths of 1, 2 and 4 bytes.
fn sized(out: &mut Vec<u8>, short: Option<(u8, usize)>, [one, two, four]: [u8; 3], len: usize) {
    match (short, u8::try_from(len), u16::try_from(len)) {
        (Some((first, most)), _, _) if len <= most => out.push(first | len as u8),
        (_, Ok(len), _) => out.extend([one, len]),
        (_, _, Ok(len)) => {
            out.push(two);
            out.extend(len.to_be_bytes());
        }
        (_, Err(_), Err(_)) => {
            out.push(four);
            out.extend(within_32_bits(len).to_be_bytes());
        }
    }
}

/// The head of an array or a map.
fn counted(out: &mut Vec<u8>, short: u8, [two, four]: [u8; 2], len: usize) {
    match u16::try_from(len) {
        Ok(len) if len < 16 => out.push(short | len as u8),
        Ok(len) => {
            out.push(two);
            out.extend(len.to_be_bytes());
        }
        Err(_) => {
            out.push(four);
            out.extend(within_32_bits(len).to_be_bytes());
        }
    }
}

fn within_32_bits(len: usize) -> u32 {
    u32::try_from(len).expect("nothing of 4 GiB is ever sent: messages and backlogs are bounded far below")
}

fn unsigned(out: &mut Vec<u8>, number: u64) {
    match (u8::try_from(number), u16::try_from(number), u32::try_from(number)) {
        (Ok(number), _, _) if number < 0x80 => out.push(number),
        (Ok(number), _, _) => out.extend([0xcc, number]),
        (_, Ok(number), _) => {
            out.push(0xcd);
            out.extend(number.to_be_bytes());
        }
        (_, _, Ok(number)) => {
            out.push(0xce);
            out.extend(number.to_be_bytes());
        }
        (Err(_), Err(_), Err(_)) => {
            out.push(0xcf);
            out.extend(number.to_be_bytes());
        }
    }
}

fn negative(out: &mut Vec<u8>, number: i64) {
    match i8::try_from(number) {
        Ok(number) if number >= -32 => out.extend(number.to_be_bytes()),
        Ok(_) | Err(_) => {
            out.push(0xd3);
            out.extend(number.to_be_bytes());
        }
    }
}
