//! Every decoder against bytes that somebody made up: whole samples, bent at random, for a second each.
//!
//! What must hold: no panic, nothing larger than its bound, and an error that fits a close frame. A failure prints its seed; run it again with
//! `TIDEWIRE_FUZZ_SEED=<seed> cargo test -p tidewire-wire --test hostile`. `TIDEWIRE_FUZZ_SECONDS` lets it search for longer.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use tidewire_wire::Error;
use tidewire_wire::engine::{self, PollPacket};
use tidewire_wire::socket::{self, Assembler, MAX_ATTACHMENTS, Packet, msgpack};
use tidewire_wire::websocket::{self, Decoder, Message};

/// A small generator with a known seed (`SplitMix64`).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.roll() % end.max(1) as u64) as usize
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        (0..self.below(most + 1)).map(|_| self.roll() as u8).collect()
    }

    /// A sample, whole or bent: bytes changed, taken out, put in, repeated, cut off, or another sample behind it.
    fn bend(&mut self, samples: &[Vec<u8>]) -> Vec<u8> {
        let mut data = samples[self.below(samples.len())].clone();
        for _ in 0..self.below(5) {
            let at = self.below(data.len());
            match self.below(8) {
                0 if !data.is_empty() => data[at] = self.roll() as u8,
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

/// Says with which seed a run failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TIDEWIRE_FUZZ_SEED={} makes this fail", self.0);
        }
    }
}

/// Runs `round` again and again, each time with a seed of its own.
fn for_a_while(mut round: impl FnMut(&mut Dice)) {
    let given = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = given("TIDEWIRE_FUZZ_SEED") {
        return round(&mut Dice(seed));
    }
    let until = Instant::now() + Duration::from_secs(given("TIDEWIRE_FUZZ_SECONDS").unwrap_or(1));
    let mut seeds = Dice(std::process::id().into());
    seeds.0 ^= std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
    while Instant::now() < until {
        let seed = Seed(seeds.roll());
        round(&mut Dice(seed.0));
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
        websocket::binary(&[0; 70_000]),
        websocket::ping(b"x"),
        websocket::pong(b""),
        websocket::close(1000, "bye"),
    ];
    let compressed = plain.iter().filter_map(|frame| websocket::compress(frame, 0));
    let samples: Vec<_> =
        plain.iter().cloned().chain(compressed).map(|frame| masked(&frame, [1, 0xfe, 0x80, 0x33])).collect();
    assert!(samples.len() > plain.len(), "some are compressed");
    for_a_while(|dice| {
        let stream: Vec<u8> = (0..3).flat_map(|_| dice.bend(&samples)).collect();
        let mut decoder = Decoder::new(MOST);
        if dice.below(2) == 0 {
            decoder = decoder.inflating();
        }
        let mut input = BytesMut::new();
        // As the network would: in pieces of any size.
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(1 + dice.below(rest.len()));
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
    for_a_while(|dice| {
        let data = dice.bend(&samples);
        let plain = websocket::binary(&data);
        let frame = websocket::compress(&plain, 0).unwrap_or(plain);
        let mut input = BytesMut::from(&masked(&frame, [9, 8, 7, 6])[..]);
        let read = Decoder::new(data.len()).inflating().feed(&mut input);
        assert_eq!(read, Ok(Some(Message::Binary(data.into()))));
    });
}

#[test]
fn engine_packets_and_payloads() {
    let samples: Vec<Vec<u8>> =
        ["4hello", "2probe", "3", "1", "4a\u{1e}bAQIDBA==\u{1e}4ü", "b", "6\u{1e}6", "42[\"x\",{}]"]
            .map(Into::into)
            .into();
    for_a_while(|dice| {
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
    ]
    .map(Into::into)
    .into();
    for_a_while(|dice| {
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
                let frames = socket::frames(&socket::event(event.namespace(), event.name(), &args, None));
                assert!((1..=1 + MAX_ATTACHMENTS as usize).contains(&websocket::frames(&frames).count()));
            }
            Packet::Ack(ack) => drop(ack.args()),
            Packet::Connect { auth, .. } => assert!(auth.is_none_or(|auth| auth.starts_with('{'))),
            Packet::Disconnect { .. } => {}
        }
    });
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
    for_a_while(|dice| {
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
                for (before, after) in args.iter().zip(again.args()) {
                    let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("valid JSON");
                    assert_eq!(value(before.get()), value(after.get()));
                }
            }
            Packet::Ack(ack) => assert!(ack.payload().len() <= 8 * bent.len() && ack.args().len() <= bent.len()),
            Packet::Connect { auth, .. } => assert!(auth.is_none_or(|auth| auth.len() <= 8 * bent.len())),
            Packet::Disconnect { .. } => {}
        }
    });
}
