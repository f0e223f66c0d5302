//! Every decoder against bytes that somebody made up: whole samples, bent by choices that bolero makes, and its own bytes as they are.
//!
//! What must hold: no panic, nothing larger than its bound, an error that fits a close frame, and what was read is written and read again
//! as the same. `CONTRIBUTING.md` says how to run them for longer and guided by coverage.

use std::time::Duration;

use bytes::BytesMut;
use tidewire_wire::Error;
use tidewire_wire::engine::{self, PollPacket};
use tidewire_wire::socket::{self, Assembler, MAX_ATTACHMENTS, Packet, msgpack};
use tidewire_wire::websocket::{self, Decoder, Message};

/// How long each target runs under `cargo test`; `BOLERO_RANDOM_TEST_TIME_MS` says otherwise.
const A_WHILE: Duration = Duration::from_millis(500);

/// Choices, read from the input of a target. After its end they are all 0: a fuzzer that makes the input longer chooses more.
struct Dice<'a>(&'a [u8]);

impl Dice<'_> {
    fn roll(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or_default()
    }

    fn below(&mut self, end: usize) -> usize {
        let wide = if end > 256 { usize::from(self.roll()) << 8 } else { 0 };
        (wide | usize::from(self.roll())) % end.max(1)
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.roll()).collect()
    }

    /// A sample, whole or bent: bytes changed, taken out, put in, repeated, cut off, or another sample behind it. Or what is left of the
    /// input, in place of a sample.
    fn bend(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        let Some(sample) = samples.get(self.below(samples.len() + 1)) else {
            return std::mem::take(&mut self.0).to_vec();
        };
        let mut data = sample.clone();
        for _ in 0..self.below(5) {
            let at = self.below(data.len());
            match self.below(8) {
                0 if !data.is_empty() => data[at] = self.roll(),
                1 if !data.is_empty() => data[at] ^= 1 << self.below(8),
                2 if !data.is_empty() => drop(data.remove(at)),
                3 => data.insert(at, [0, 0x1e, b'"', b'{', b'[', b'-', b'9', 0x7f, 0x80, 0xff][self.below(10)]),
                4 => data.truncate(at),
                5 => {
                    let part = data[at..].to_vec();
                    data.extend(part);
                }
                6 => data.extend_from_slice(&samples[self.below(samples.len())]),
                _ => {
                    let noise = self.bytes(20);
                    data.splice(at..at, noise);
                }
            }
        }
        data
    }
}

fn fits_a_close_frame(error: &Error) {
    assert!(error.reason.len() <= 123 && error.code.starts_with("wire."), "{error:?}");
    assert!(matches!(error.close_code, 1002 | 1007 | 1008 | 1009), "{error:?}");
}

const MOST: usize = 4_000;

/// A server's frame as a client would send it: masked.
fn masked(frame: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let head = websocket::header_len(frame);
    let mut out = frame[..head].to_vec();
    out[1] |= 0x80;
    out.extend(mask);
    out.extend(frame[head..].iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
    out
}

#[test]
fn websocket_frames_and_compressed_messages() {
    let plain = [
        websocket::text(b"hello"),
        websocket::text("κόσμε".repeat(40).as_bytes()),
        websocket::binary(&[7; 3_000]),
        websocket::binary(&[0; 5_000]),
        websocket::ping(b"x"),
        websocket::pong(b""),
        websocket::close(1000, "bye"),
    ];
    let compressed = plain.iter().filter_map(|frame| websocket::compress(frame, 0));
    let samples: Vec<_> =
        plain.iter().cloned().chain(compressed).map(|frame| masked(&frame, [1, 0xfe, 0x80, 0x33])).collect();
    assert!(samples.len() > plain.len(), "some are compressed");
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let dice = &mut Dice(choices);
        let stream: Vec<u8> = (0..3).flat_map(|_| dice.bend(&samples)).collect();
        let mut decoder = Decoder::new(MOST);
        if dice.below(2) == 0 {
            decoder = decoder.inflating();
        }
        let mut input = BytesMut::new();
        // As the network would: in pieces of any size.
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len() - dice.below(rest.len()));
            rest = more;
            input.extend_from_slice(piece);
            loop {
                match decoder.feed(&mut input) {
                    Ok(None) => break,
                    Ok(Some(Message::Text(data))) => {
                        assert!(data.len() <= MOST && std::str::from_utf8(&data).is_ok());
                    }
                    Ok(Some(Message::Binary(data))) => assert!(data.len() <= MOST),
                    Ok(Some(Message::Ping(data) | Message::Pong(data))) => assert!(data.len() <= 125),
                    Ok(Some(Message::Close(_))) => return,
                    Err(error) => return fits_a_close_frame(&error),
                }
            }
        }
    });
}

#[test]
fn what_is_compressed_is_read_back() {
    let samples: Vec<Vec<u8>> = vec![vec![b'a'; 900], (0..=255).collect(), br#"{"itemId":"a","amount":1}"#.repeat(40)];
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let dice = &mut Dice(choices);
        let data = dice.bend(&samples);
        let plain = websocket::binary(&data);
        let frame = websocket::compress(&plain, 0).unwrap_or(plain);
        let mut input = BytesMut::from(&masked(&frame, [9, 8, 7, 6])[..]);
        let read = Decoder::new(data.len()).inflating().feed(&mut input);
        assert_eq!(read, Ok(Some(Message::Binary(data.into()))));
    });
}

#[test]
fn offers_of_compression() {
    let samples: Vec<Vec<u8>> = [
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_max_window_bits=15; client_max_window_bits=\"9\", permessage-deflate",
        "x-webkit-deflate-frame, permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    ]
    .map(Into::into)
    .into();
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let offers = Dice(choices).bend(&samples);
        let offers = String::from_utf8_lossy(&offers);
        if let Some(answer) = websocket::accept_deflate(&offers) {
            assert!(answer.starts_with("permessage-deflate; server_no_context_takeover"));
            assert!(offers.contains("permessage-deflate"));
            assert!(!answer.contains("server_max_window_bits") || offers.contains("server_max_window_bits"));
        }
    });
}

#[test]
fn engine_packets_and_payloads() {
    let samples: Vec<Vec<u8>> =
        ["4hello", "2probe", "3", "1", "4a\u{1e}bAQIDBA==\u{1e}4ü", "b", "6\u{1e}6", "42[\"x\",{}]"]
            .map(Into::into)
            .into();
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let dice = &mut Dice(choices);
        let bent = dice.bend(&samples);
        let text = String::from_utf8_lossy(&bent);
        if let Err(error) = engine::Packet::parse(&text) {
            fits_a_close_frame(&error);
        }
        match engine::parse_polling(&text, 5) {
            Err(error) => fits_a_close_frame(&error),
            Ok(packets) => {
                assert!(packets.len() <= 5);
                let written = |packet: &engine::Packet<'_>| match packet {
                    engine::Packet::Binary(data) => (None, data.to_vec()),
                    engine::Packet::Text(kind, data) => (Some(kind.as_str()), data.as_bytes().to_vec()),
                };
                let texts: Vec<_> = packets.iter().map(written).collect();
                let texts: Vec<_> = texts
                    .iter()
                    .map(|(kind, data)| (kind.is_none(), [kind.unwrap_or_default().as_bytes(), data].concat()))
                    .collect();
                let again = texts.iter().map(|(is_binary, data)| match is_binary {
                    true => PollPacket::Binary(data),
                    false => PollPacket::Text(data),
                });
                let mut out = Vec::new();
                engine::polling_join(again, &mut out);
                assert_eq!(out, text.as_bytes(), "what was read is written as it was");
            }
        }
    });
}

#[test]
fn socket_packets_and_their_attachments() {
    let samples: Vec<Vec<u8>> = [
        "0",
        r#"0/admin,{"token":"x"}"#,
        "1/admin,",
        r#"2/a,12["message",{"a":[1,2.5e3,null]},"\u00e9"]"#,
        r#"37[true,{"x":"y"}]"#,
        r#"52-["f",{"_placeholder":true,"num":0},[{"num":1,"_placeholder":true}]]"#,
        r#"61-/a,5[{"_placeholder":true,"num":0}]"#,
        r#"2["s","{\"_placeholder\":true}"]"#,
        r#"2["b",{"$binary":"AQID"},"\"$binary\""]"#,
        r#"2["b",{"$binary":"AQID"},{"_placeholder":true,"num":7}]"#,
        r#"39[{"$binary":"AQID"},{"\u005fplaceholder":true,"num":0}]"#,
    ]
    .map(Into::into)
    .into();
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let dice = &mut Dice(choices);
        let bent = dice.bend(&samples);
        let text = String::from_utf8_lossy(&bent);
        let packet = match Packet::decode(&text) {
            Ok(packet) => packet,
            Err(error) => return fits_a_close_frame(&error),
        };
        let announced = packet.attachments();
        assert!(announced <= MAX_ATTACHMENTS);
        let mut assembler = Assembler::new(MOST);
        let mut whole = match assembler.text(packet) {
            Ok(whole) => whole,
            Err(error) => return fits_a_close_frame(&error),
        };
        for _ in 0..announced {
            let attachment = dice.bytes(600);
            match assembler.binary(&attachment) {
                Ok(packet) => whole = packet,
                Err(error) => return fits_a_close_frame(&error),
            }
        }
        match whole.expect("all attachments have come") {
            Packet::Event(event) => {
                // Base64 adds a third; the rest takes no more room than its placeholder.
                assert!(event.payload().len() <= text.len() + MOST * 4 / 3 + 4 * MAX_ATTACHMENTS as usize);
                let args = event.args();
                let args: Vec<&str> = args.iter().map(|arg| arg.get()).collect();
                // And out again, as an echo would send it.
                let Packet::Event(again) = read_back(&socket::event(event.namespace(), event.name(), &args, None))
                else {
                    panic!("an event")
                };
                assert_eq!((again.namespace(), again.name()), (event.namespace(), event.name()));
                assert_same(&args, &again.args());
            }
            Packet::Ack(ack) => {
                let args = ack.args();
                let args: Vec<&str> = args.iter().map(|arg| arg.get()).collect();
                let Packet::Ack(again) = read_back(&socket::ack(ack.namespace(), ack.id(), &args)) else {
                    panic!("an acknowledgement")
                };
                assert_eq!((again.namespace(), again.id()), (ack.namespace(), ack.id()));
                assert_same(&args, &again.args());
            }
            Packet::Connect { auth, .. } => assert!(auth.is_none_or(|auth| auth.starts_with('{'))),
            Packet::Disconnect { nsp } => {
                let text = socket::disconnect(nsp);
                assert_eq!(Packet::decode(&text[1..]), Ok(Packet::Disconnect { nsp }));
            }
        }
    });
}

/// What a client makes of a packet that this side sends, attachments and all.
fn read_back(packet: &str) -> Packet<'static> {
    let frames = socket::frames(packet);
    let mut frames = websocket::frames(&frames).map(websocket::payload);
    let text = std::str::from_utf8(&frames.next().expect("a frame")[1..]).expect("text").to_owned();
    let mut assembler = Assembler::new(usize::MAX);
    let packet = Packet::decode(&text).expect("what is written can be read");
    let mut whole = assembler.text(packet).expect("a packet").map(|packet| match packet {
        Packet::Event(event) => Packet::Event(event.into_owned()),
        Packet::Ack(ack) => Packet::Ack(ack.into_owned()),
        Packet::Connect { .. } | Packet::Disconnect { .. } => panic!("an event or acknowledgement"),
    });
    for attachment in frames {
        whole = assembler.binary(attachment).expect("every attachment has its place");
    }
    whole.expect("all attachments have come")
}

/// Both are the same values, whatever their text.
fn assert_same(before: &[&str], after: &[&serde_json::value::RawValue]) {
    assert_eq!(before.len(), after.len());
    for (before, after) in before.iter().zip(after) {
        // What JSON's grammar allows and nobody can read, such as a lone surrogate, is passed on as its text.
        match serde_json::from_str::<serde_json::Value>(before) {
            Ok(value) => assert_eq!(Some(value), serde_json::from_str(after.get()).ok(), "{before}"),
            Err(_) => assert_eq!(*before, after.get()),
        }
    }
}

#[test]
fn messagepack() {
    let args = [r#"{"a":[1,-2,2.5,null,true],"b":{"$binary":"AQID"}}"#, r#""text""#, "70000", "-70000"];
    let frames = [
        msgpack::event("/", "message", &args, Some("e.1")),
        msgpack::ack("/admin", 300, &args),
        msgpack::connect("/", "sid", Some("pid")),
    ];
    let mut samples: Vec<Vec<u8>> = frames.iter().map(|frame| websocket::payload(frame).to_vec()).collect();
    samples.push(b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x93\xa1d\xd7\0\0\0\x01\x8d\xf0\0\0\0\xd4\0\0".to_vec());
    samples.push([&b"\x83\xa4type\x02\xa3nsp\xa1/\xa4data\x92\xa1d"[..], &[0x91; 99], b"\xc0"].concat());
    bolero::check!().with_test_time(A_WHILE).for_each(|choices: &[u8]| {
        let dice = &mut Dice(choices);
        let bent = dice.bend(&samples);
        let packet = match msgpack::decode(&bent) {
            Ok(packet) => packet,
            Err(error) => return fits_a_close_frame(&error),
        };
        match packet {
            Packet::Event(event) => {
                assert!(event.payload().len() <= 8 * bent.len(), "{} of {}", event.payload().len(), bent.len());
                let args = event.args();
                let texts: Vec<&str> = args.iter().map(|arg| arg.get()).collect();
                let frame = msgpack::event(event.namespace(), event.name(), &texts, None);
                let again = msgpack::decode(websocket::payload(&frame)).expect("what is written can be read");
                let Packet::Event(again) = again else { panic!("an event") };
                assert_eq!((again.namespace(), again.name()), (event.namespace(), event.name()));
                assert_same(&texts, &again.args());
            }
            Packet::Ack(ack) => {
                assert!(ack.payload().len() <= 8 * bent.len() && ack.args().len() <= bent.len());
                let args = ack.args();
                let texts: Vec<&str> = args.iter().map(|arg| arg.get()).collect();
                let frame = msgpack::ack(ack.namespace(), ack.id(), &texts);
                let again = msgpack::decode(websocket::payload(&frame)).expect("what is written can be read");
                let Packet::Ack(again) = again else { panic!("an acknowledgement") };
                assert_eq!((again.namespace(), again.id()), (ack.namespace(), ack.id()));
                assert_same(&texts, &again.args());
            }
            Packet::Connect { auth, .. } => assert!(auth.is_none_or(|auth| auth.len() <= 8 * bent.len())),
            Packet::Disconnect { .. } => {}
        }
    });
}
