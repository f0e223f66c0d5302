use super::{Open, Packet, PacketType, PollPacket, TransportError, parse_polling, polling_join};
use crate::websocket;
use bytes::Bytes;
use proptest::prelude::*;

fn joined(packets: &[PollPacket<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    polling_join(packets.iter().copied(), &mut out);
    out
}

#[test]
fn a_text_packet_is_a_digit_and_its_data() {
    assert_eq!(Packet::parse("4hello"), Ok(Packet::Text(PacketType::Message, "hello")));
    assert_eq!(Packet::parse("2probe"), Ok(Packet::Text(PacketType::Ping, super::PROBE)));
    assert_eq!(Packet::parse("4€"), Ok(Packet::Text(PacketType::Message, "€")));
    for digit in ["0", "1", "2", "3", "4", "5", "6"] {
        let Ok(Packet::Text(kind, "")) = Packet::parse(digit) else { panic!("{digit} is a packet without data") };
        assert_eq!(kind.as_str(), digit);
    }
}

#[test]
fn malformed_packets_are_refused() {
    for text in ["", "7", "9x", "a", "bAQID", " 4", "€", "\u{1e}", "-1"] {
        assert_eq!(Packet::parse(text).expect_err(text).code, "wire.engine");
    }
}

#[test]
fn a_polling_body_is_read_packet_by_packet() {
    // The example of the protocol document.
    let packets = parse_polling("4hello\u{1e}2\u{1e}4world\u{1e}bAQIDBA==\u{1e}b", 5).unwrap();
    let expected = [
        Packet::Text(PacketType::Message, "hello"),
        Packet::Text(PacketType::Ping, ""),
        Packet::Text(PacketType::Message, "world"),
        Packet::Binary(Bytes::from_static(&[1, 2, 3, 4])),
        Packet::Binary(Bytes::new()),
    ];
    assert_eq!(packets, expected);
}

#[test]
fn malformed_polling_bodies_are_refused_whole() {
    let bodies = [
        "",
        "abc",
        "\u{1e}",
        "4a\u{1e}",
        "\u{1e}4a",
        "4a\u{1e}\u{1e}4b",
        "bAQ",
        "bAQ=",
        "b!!!!",
        "bAQID\n",
        "4a\u{1e}x",
        "b_-8=",
    ];
    for body in bodies {
        assert_eq!(parse_polling(body, 10).expect_err(body).code, "wire.engine");
    }
}

#[test]
fn a_polling_body_has_a_bounded_number_of_packets() {
    assert_eq!(parse_polling("2\u{1e}2\u{1e}2", 3).unwrap().len(), 3);
    assert_eq!(parse_polling("2\u{1e}2\u{1e}2", 2).unwrap_err().code, "wire.too_many");
}

#[test]
fn packets_are_joined_by_the_separator() {
    assert_eq!(joined(&[]), b"");
    let packets = [PollPacket::Text(b"4a"), PollPacket::Binary(&[1, 2, 3, 4]), PollPacket::Text(b"6")];
    assert_eq!(joined(&packets), b"4a\x1ebAQIDBA==\x1e6");
}

#[test]
fn a_websocket_frame_also_serves_polling() {
    let (text, binary) = (websocket::text(&[b'4'; 200]), websocket::binary(b"xyz"));
    let (ping, close) = (websocket::ping(b""), websocket::close(1000, ""));
    let all = [&text[..], &binary, &ping, &binary, &close].concat();
    let expected = [PollPacket::Text(&[b'4'; 200]), PollPacket::Binary(b"xyz"), PollPacket::Binary(b"xyz")];
    assert_eq!(PollPacket::from_frames(&all).collect::<Vec<_>>(), expected);
    assert_eq!(PollPacket::from_frames(&[]).count(), 0);
}

#[test]
fn the_opening_packet_has_exactly_five_keys() {
    let open = Open {
        sid: "abc",
        upgrades: &["websocket"],
        ping_interval_ms: 25_000,
        ping_timeout_ms: 20_000,
        max_payload: 1_000_000,
    };
    let expected =
        r#"0{"sid":"abc","upgrades":["websocket"],"pingInterval":25000,"pingTimeout":20000,"maxPayload":1000000}"#;
    assert_eq!(open.encode(), expected);
    let none = Open { upgrades: &[], ..open };
    assert!(none.encode().contains(r#""upgrades":[],"#));
}

#[test]
fn refusals_are_the_reference_servers() {
    let all = [
        (TransportError::UnknownTransport, r#"{"code":0,"message":"Transport unknown"}"#, 400),
        (TransportError::UnknownSid, r#"{"code":1,"message":"Session ID unknown"}"#, 400),
        (TransportError::BadHandshakeMethod, r#"{"code":2,"message":"Bad handshake method"}"#, 400),
        (TransportError::BadRequest, r#"{"code":3,"message":"Bad request"}"#, 400),
        (TransportError::Forbidden, r#"{"code":4,"message":"Forbidden"}"#, 403),
        (TransportError::UnsupportedProtocol, r#"{"code":5,"message":"Unsupported protocol version"}"#, 400),
    ];
    for (error, json, status) in all {
        assert_eq!((error.json().as_str(), error.status()), (json, status));
    }
}

proptest! {
    #[test]
    fn any_text_decodes_without_panic(text in any::<String>(), max in 0usize..5) {
        let _ = Packet::parse(&text);
        let _ = parse_polling(&text, max);
    }

    #[test]
    fn any_body_of_plausible_characters_decodes_without_panic(body in "[0-7bA/=\u{1e}€]{0,40}") {
        let _ = parse_polling(&body, 10);
    }

    #[test]
    fn what_is_joined_is_read_back(
        packets in prop::collection::vec(prop_oneof![
            "[0-6][^\u{1e}]{0,20}".prop_map(Ok),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Err),
        ], 1..6),
    ) {
        let out = joined(&packets.iter().map(|packet| match packet {
            Ok(text) => PollPacket::Text(text.as_bytes()),
            Err(data) => PollPacket::Binary(data),
        }).collect::<Vec<_>>());
        let body = String::from_utf8(out).unwrap();
        let read = parse_polling(&body, packets.len()).unwrap();
        prop_assert_eq!(read.len(), packets.len());
        for (read, sent) in read.iter().zip(&packets) {
            match (read, sent) {
                (Packet::Text(kind, data), Ok(text)) => prop_assert_eq!(&format!("{}{data}", kind.as_str()), text),
                (Packet::Binary(read), Err(data)) => prop_assert_eq!(&read[..], &data[..]),
                (Packet::Text(..), Err(_)) | (Packet::Binary(_), Ok(_)) => prop_assert!(false, "another kind came back"),
            }
        }
    }
}
