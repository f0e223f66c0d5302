use super::super::Packet;
use super::{MAX_DEPTH, ack, connect, connect_error, decode, event};
use crate::websocket;
use proptest::prelude::*;

/// What `socket.emit("hi", undefined, new Date(0), Buffer.from("ab"), -1, 1.5)` of the stock client with `socket.io-msgpack-parser` 3.0.2
/// puts on the wire: a map of type, data, options and nsp.
const EMITTED: &[u8] =
    b"\x84\xa4type\x02\xa4data\x96\xa2hi\xd4\0\0\xd7\0\0\0\0\0\0\0\0\0\xc4\x02ab\xff\xcb\x3f\xf8\0\0\0\0\0\0\
    \xa7options\x81\xa8compress\xc3\xa3nsp\xa1/";

fn code(data: &[u8]) -> &'static str {
    match decode(data) {
        Err(error) => error.code,
        Ok(packet) => panic!("{data:x?} should be refused, not read as {packet:?}"),
    }
}

#[test]
fn what_the_client_library_writes_is_read() {
    let Ok(Packet::Event(event)) = decode(EMITTED) else { panic!("an event") };
    assert_eq!((event.namespace(), event.id(), event.name(), event.attachments()), ("/", None, "hi", 0));
    assert_eq!(event.payload(), r#"["hi",null,"1970-01-01T00:00:00.000Z",{"$binary":"YWI="},-1,1.5]"#);
    let connect = decode(b"\x83\xa4type\0\xa3nsp\xa6/admin\xa4data\x82\xa5token\xa1x\xa1u\xd4\0\0");
    assert_eq!(connect, Ok(Packet::Connect { nsp: "/admin", auth: Some(r#"{"token":"x"}"#.into()) }));
    let bare = decode(b"\x83\xa4type\0\xa4data\xd4\0\0\xa3nsp\xa1/");
    assert_eq!(bare, Ok(Packet::Connect { nsp: "/", auth: None }));
    assert_eq!(decode(b"\x82\xa4type\x01\xa3nsp\xa1/"), Ok(Packet::Disconnect { nsp: "/" }));
    let Ok(Packet::Ack(ack)) = decode(b"\x84\xa4type\x03\xa2id\xcc\xff\xa3nsp\xa1/\xa4data\x90") else { panic!("ack") };
    assert_eq!((ack.id(), ack.payload()), (255, "[]"));
}

#[test]
fn dates_are_written_as_javascript_has_them() {
    for (millis, expected) in [
        (1_709_210_096_789_i64, "\"2024-02-29T12:34:56.789Z\""),
        (-1, "\"1969-12-31T23:59:59.999Z\""),
        (951_782_400_000, "\"2000-02-29T00:00:00.000Z\""),
        (253_402_300_800_000, "\"+010000-01-01T00:00:00.000Z\""),
        (-62_198_755_200_000, "\"-000001-01-01T00:00:00.000Z\""),
        (8_640_000_000_000_000, "\"+275760-09-13T00:00:00.000Z\""),
        (8_640_000_000_000_001, "null"),
        (i64::MIN, "null"),
    ] {
        let packet = [b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1d\xd7\0", &millis.to_be_bytes()[..]].concat();
        let Ok(Packet::Event(event)) = decode(&packet) else { panic!("an event") };
        assert_eq!(event.args()[0].get(), expected, "{millis}");
    }
}

#[test]
fn malformed_packets_are_refused() {
    for whole in [
        &b""[..],
        b"\x90",
        b"\xa1x",
        b"\xdf\xff\xff\xff\xff",
        b"\x82\xa4type\x01\xa3nsp\xa1/\0",
        b"\x82\xa4type\x01\xa4type\x01",
        b"\x82\x01\x01\xa3nsp\xa1/",
        b"\x82\xa4type\xff\xa3nsp\xa1/",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\xdd\xff\xff\xff\xff",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1a\xc6\xff\xff\xff\xff",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1a\xc1",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1a\xd4\x01\0",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1a\x81\x01\x01",
    ] {
        assert_eq!(code(whole), "wire.msgpack", "{whole:x?}");
    }
    for packet in [
        &b"\x80"[..],
        b"\x81\xa4type\x01",
        b"\x81\xa3nsp\xa1/",
        b"\x82\xa4type\x05\xa3nsp\xa1/",
        b"\x82\xa4type\x04\xa3nsp\xa1/",
        b"\x82\xa4type\x01\xa3nsp\xa1x",
        b"\x82\xa4type\x01\xa3nsp\xa3/,a",
        b"\x82\xa4type\x01\xa3nsp\xa3/\x1ea",
        b"\x83\xa4type\0\xa3nsp\xa1/\xa4data\x90",
        b"\x83\xa4type\x01\xa3nsp\xa1/\xa4data\x80",
        b"\x82\xa4type\x02\xa3nsp\xa1/",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x80",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x90",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xc0",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xa7connect",
        b"\x83\xa4type\x03\xa3nsp\xa1/\xa4data\x90",
        b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x91\xc4\x01a",
    ] {
        assert_eq!(code(packet), "wire.socket", "{packet:x?}");
    }
    assert_eq!(code(b"\x82\xa4type\x01\xa3nsp\xa2/\xff"), "wire.utf8");
}

#[test]
fn nesting_is_bounded() {
    let nested = |levels: usize| {
        let arrays = vec![0x91; levels];
        [b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1a", &arrays[..], b"\xc0"].concat()
    };
    assert!(decode(&nested(MAX_DEPTH - 1)).is_ok());
    assert_eq!(code(&nested(MAX_DEPTH)), "wire.too_many");
    assert_eq!(code(&nested(1_000_000)), "wire.too_many");
}

#[test]
fn packets_are_written_as_the_parser_reads_them() {
    let payload = |frame: &[u8]| {
        assert_eq!(frame[0], 0x82, "a binary message");
        websocket::payload(frame).to_vec()
    };
    assert_eq!(payload(&connect("/", "s", None)), b"\x83\xa4type\0\xa3nsp\xa1/\xa4data\x81\xa3sid\xa1s");
    let with_pid = payload(&connect("/", "s", Some("p")));
    assert_eq!(with_pid, b"\x83\xa4type\0\xa3nsp\xa1/\xa4data\x82\xa3sid\xa1s\xa3pid\xa1p");
    let refused = payload(&connect_error("/x", "no", Some(r#"{"code":-200}"#)));
    let expected = b"\x83\xa4type\x04\xa3nsp\xa2/x\xa4data\x82\xa7message\xa2no\xa4data\x81\xa4code\xd3\xff\xff\xff\xff\xff\xff\xff\x38";
    assert_eq!(refused, expected);
    let event = payload(&event("/", "e", &[r#"{"b":{"$binary":"YWI="},"f":[1.5,true,null,-32]}"#], Some("o.1")));
    let expected = b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x93\xa1e\x82\xa1b\xc4\x02ab\xa1f\x94\xcb\x3f\xf8\0\0\0\0\0\0\xc3\xc0\xe0\xa3o.1";
    assert_eq!(event, expected);
    let ack = payload(&ack("/", 70_000, &[r#"{"$binary":"?"}"#]));
    assert_eq!(ack, b"\x84\xa4type\x03\xa3nsp\xa1/\xa2id\xce\0\x01\x11\x70\xa4data\x91\x81\xa7$binary\xa1?");
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<u64>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
        "[a-z]{30,300}".prop_map(Into::into),
        proptest::collection::vec(any::<u8>(), 0..400).prop_map(|data| {
            use base64::Engine;
            serde_json::json!({ "$binary": base64::engine::general_purpose::STANDARD.encode(data) })
        }),
    ];
    leaf.prop_recursive(4, 64, 20, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..20).prop_map(Into::into),
            proptest::collection::btree_map("[a-z\\$\"]{0,8}", inner, 0..20)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(name in "[a-z]{1,40}", args in proptest::collection::vec(json(), 0..20), id in any::<u64>()) {
        let texts: Vec<String> = args.iter().map(ToString::to_string).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let frame = event("/a", &name, &texts, None);
        let Ok(Packet::Event(event)) = decode(websocket::payload(&frame)) else { panic!("an event") };
        prop_assert_eq!((event.namespace(), event.name()), ("/a", &*name));
        let read: Vec<serde_json::Value> = event.args().iter().map(|arg| serde_json::from_str(arg.get()).unwrap()).collect();
        prop_assert_eq!(&read, &args);
        let frame = ack("/", id, &texts);
        let Ok(Packet::Ack(ack)) = decode(websocket::payload(&frame)) else { panic!("an acknowledgement") };
        prop_assert_eq!((ack.id(), ack.args().len()), (id, args.len()));
    }
}
