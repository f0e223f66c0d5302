//! From events to finished frames.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use tidewire_core::catalog::Profile;
use tidewire_core::event::Position;
use tidewire_core::{Id, Json, Timestamp};

use crate::cast::Body;
use crate::parser::Parser;

/// How long to wait, in milliseconds and never too short.
pub(crate) fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// An event as the envelope profile and `history` show it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Envelope<'a> {
    id: &'a Id,
    #[serde(rename = "type")]
    kind: &'a str,
    time: Timestamp,
    data: &'a Json,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<u64>,
}

/// The envelope of an event; a redacted one says neither whom it concerns nor what it belongs to.
pub(crate) fn envelope<'a>(body: Body<'a>, data: &'a Json, redacted: bool) -> Envelope<'a> {
    Envelope {
        id: body.id,
        kind: body.kind,
        time: body.time,
        data,
        user_id: body.user_id.filter(|_| !redacted),
        correlation_id: body.correlation_id.filter(|_| !redacted),
        position: body.position,
        version: body.version.filter(|_| !redacted),
    }
}

/// The data with nothing but these top-level fields. Data that is no object has no fields.
pub(crate) fn redact(data: &Json, fields: &[String]) -> Json {
    let Ok(object) = serde_json::from_str::<BTreeMap<String, &RawValue>>(data.get()) else {
        return Json::empty_object();
    };
    let kept: BTreeMap<&str, &RawValue> =
        fields.iter().filter_map(|field| object.get(field).map(|value| (field.as_str(), *value))).collect();
    Json::from_serialize(&kept).unwrap_or_else(|_| Json::empty_object())
}

/// The frames of an event, whole or with only `fields` of its data.
pub(crate) fn event(
    parser: Parser,
    namespace: &str,
    profile: Profile,
    body: Body<'_>,
    fields: Option<&[String]>,
    offset: &str,
) -> Bytes {
    let redacted = fields.map(|fields| redact(body.data, fields));
    let data = redacted.as_ref().unwrap_or(body.data);
    match profile {
        Profile::Named => parser.event(namespace, body.kind, &[data.get()], Some(offset)),
        Profile::Envelope => {
            let envelope = json(&envelope(body, data, fields.is_some()));
            parser.event(namespace, "event", &[&envelope], Some(offset))
        }
    }
}

/// The same as a server-sent event.
pub(crate) fn streamed(profile: Profile, body: Body<'_>, fields: Option<&[String]>, offset: &str) -> Bytes {
    let redacted = fields.map(|fields| redact(body.data, fields));
    let data = redacted.as_ref().unwrap_or(body.data);
    match profile {
        Profile::Named => stream_event(offset, body.kind, data.get()),
        Profile::Envelope => stream_event(offset, body.kind, &json(&envelope(body, data, fields.is_some()))),
    }
}

/// One server-sent event (WHATWG HTML, section 9.2). JSON keeps the line ends between its parts, so its lines become lines of `data`.
pub(crate) fn stream_event(offset: &str, name: &str, data: &str) -> Bytes {
    let mut out = String::with_capacity(offset.len() + name.len() + data.len() + 24);
    out.extend(["id: ", offset, "\nevent: "]);
    // A line end in a name would begin another field.
    out.extend(name.chars().filter(|c| !matches!(c, '\n' | '\r')));
    out.push('\n');
    for line in data.split(['\n', '\r']).filter(|line| !line.is_empty()) {
        out.extend(["data: ", line, "\n"]);
    }
    out.push('\n');
    out.into()
}

/// A sign of life in a stream. It has no data, so the client is told of nothing, but remembers how far it is.
pub(crate) fn stream_beat(offset: &str) -> Bytes {
    format!(": still here\nid: {offset}\n\n").into()
}

/// The JSON text of what always has one.
pub(crate) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests {
    use tidewire_wire::websocket;

    use super::*;

    #[test]
    fn a_view_has_only_its_fields() {
        let data = Json::parse(r#"{"a":1,"b":{"x":2},"c":"geheim"}"#.to_owned()).expect("json");
        assert_eq!(redact(&data, &["b".to_owned(), "z".to_owned()]).get(), r#"{"b":{"x":2}}"#);
        assert_eq!(redact(&Json::parse("[1]".to_owned()).expect("json"), &["a".to_owned()]).get(), "{}");
    }

    #[test]
    fn a_streamed_event_keeps_its_lines_apart() {
        let text = stream_event("e.7", "x:y\nid: e.9", "{\r\n \"a\":\n1}");
        assert_eq!(&text[..], b"id: e.7\nevent: x:yid: e.9\ndata: {\ndata:  \"a\":\ndata: 1}\n\n");
        assert_eq!(&stream_beat("e.7")[..], b": still here\nid: e.7\n\n");
    }

    #[test]
    fn an_event_is_one_finished_frame_in_each_profile() {
        let (id, data) = (Id::parse("e1").expect("id"), Json::parse(r#"{"a":1}"#.to_owned()).expect("json"));
        let time = Timestamp::from_millis(0);
        let position = Some(Position(7));
        let body = Body {
            id: &id,
            kind: "x:y",
            time,
            data: &data,
            user_id: Some("u"),
            correlation_id: None,
            position,
            version: None,
        };
        let named = event(Parser::Json, "/", Profile::Named, body, None, "e.7");
        assert_eq!(websocket::payload(&named), br#"42["x:y",{"a":1},"e.7"]"#);
        let envelope = event(Parser::Json, "/ws", Profile::Envelope, body, None, "e.7");
        let expected = r#"42/ws,["event",{"id":"e1","type":"x:y","time":"1970-01-01T00:00:00Z","data":{"a":1},"userId":"u","position":7},"e.7"]"#;
        assert_eq!(websocket::payload(&envelope), expected.as_bytes());
        let redacted = event(Parser::Json, "/", Profile::Envelope, body, Some(&[]), "e.7");
        assert!(!String::from_utf8_lossy(&redacted).contains("userId"));
    }
}
