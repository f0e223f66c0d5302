use super::{Decoder, MAX_CONTROL_BYTES, Message, binary, close, header_len, payload, ping, pong, text};
use crate::Error;
use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// A client's frame, written from the RFC's picture and byte by byte, so that it shares nothing with the decoder.
fn client(first: u8, data: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut frame = vec![first];
    match data.len() {
        len @ 0..=125 => frame.push(0x80 | len as u8),
        len @ 126..=65535 => frame.extend([0x80 | 126, (len >> 8) as u8, len as u8]),
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(data.iter().enumerate().map(|(index, byte)| byte ^ mask[index % 4]));
    frame
}

fn decode_all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Message>, Error> {
    let mut bytes = BytesMut::from(bytes);
    let mut messages = Vec::new();
    while let Some(message) = decoder.feed(&mut bytes)? {
        messages.push(message);
    }
    assert!(bytes.is_empty(), "whole frames leave nothing behind");
    Ok(messages)
}

fn decode(frames: &[Vec<u8>]) -> Result<Vec<Message>, Error> {
    decode_all(&mut Decoder::new(1000), &frames.concat())
}

fn refusal(frames: &[Vec<u8>]) -> u16 {
    decode(frames).expect_err("these frames are to be refused").close_code
}

#[test]
fn the_rfc_examples_read_as_the_rfc_says() {
    let hello = Message::Text(Bytes::from_static(b"Hello"));
    // Section 5.7: a single-frame masked text message, and the masked ping.
    let single = vec![0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(decode(&[single]), Ok(vec![hello.clone()]));
    assert_eq!(decode(&[client(0x01, b"Hel", MASK), client(0x80, b"lo", MASK)]), Ok(vec![hello]));
    assert_eq!(decode(&[client(0x89, b"Hello", MASK)]), Ok(vec![Message::Ping(Bytes::from_static(b"Hello"))]));
}

#[test]
fn server_frames_read_as_the_rfc_says() {
    assert_eq!(&text(b"Hello")[..], b"\x81\x05Hello");
    assert_eq!(&ping(b"Hello")[..], b"\x89\x05Hello");
    assert_eq!(&pong(b"")[..], b"\x8a\x00");
    assert_eq!(&close(1000, "bye")[..], b"\x88\x05\x03\xe8bye");
    assert_eq!(&binary(&[7; 256])[..4], b"\x82\x7e\x01\x00");
    assert_eq!(&binary(&[7; 65536])[..10], b"\x82\x7f\0\0\0\0\0\x01\0\0");
    for len in [0, 125, 126, 65535, 65536] {
        let data = vec![b'x'; len];
        let frame = text(&data);
        assert_eq!(payload(&frame), data);
        assert_eq!(header_len(&frame) + len, frame.len());
    }
}

#[test]
fn a_long_close_reason_is_cut_between_characters() {
    let frame = close(4000, &"é".repeat(80));
    assert_eq!(payload(&frame).len(), 2 + 122);
    assert!(std::str::from_utf8(&payload(&frame)[2..]).is_ok());
}

#[test]
#[should_panic(expected = "at most 125 bytes")]
fn a_ping_longer_than_a_control_frame_is_the_callers_bug() {
    let _ = ping(&[0; MAX_CONTROL_BYTES + 1]);
}

#[test]
fn control_frames_may_stand_between_fragments() {
    let frames =
        [client(0x02, b"a", MASK), client(0x89, b"p", MASK), client(0x00, b"", MASK), client(0x80, b"b", MASK)];
    let expected = vec![Message::Ping(Bytes::from_static(b"p")), Message::Binary(Bytes::from_static(b"ab"))];
    assert_eq!(decode(&frames), Ok(expected));
}

#[test]
fn framing_violations_are_1002() {
    let mut unmasked = client(0x81, b"hi", MASK);
    unmasked[1] &= 0x7f;
    assert_eq!(refusal(&[unmasked]), 1002);
    for reserved in [0x10, 0x20, 0x40] {
        assert_eq!(refusal(&[client(0x81 | reserved, b"hi", MASK)]), 1002);
    }
    for opcode in [0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf] {
        assert_eq!(refusal(&[client(0x80 | opcode, b"hi", MASK)]), 1002);
    }
    for control in [0x8, 0x9, 0xa] {
        assert_eq!(refusal(&[client(control, b"", MASK)]), 1002, "fragmented");
        assert_eq!(refusal(&[client(0x80 | control, &[b'x'; 126], MASK)]), 1002, "too long");
    }
    assert_eq!(refusal(&[client(0x80, b"hi", MASK)]), 1002, "nothing to continue");
    assert_eq!(refusal(&[client(0x00, b"hi", MASK)]), 1002, "nothing to continue");
    assert_eq!(refusal(&[client(0x01, b"a", MASK), client(0x81, b"b", MASK)]), 1002, "not finished");
    assert_eq!(refusal(&[client(0x01, b"a", MASK), client(0x02, b"b", MASK)]), 1002, "not finished");
    assert_eq!(refusal(&[vec![0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0]]), 1002, "top bit of the length");
}

#[test]
fn a_continuation_after_a_finished_message_is_refused() {
    let frames = [client(0x01, b"a", MASK), client(0x80, b"b", MASK), client(0x80, b"c", MASK)];
    assert_eq!(refusal(&frames), 1002);
}

#[test]
fn text_that_is_not_utf8_is_1007() {
    assert_eq!(refusal(&[client(0x81, b"\xff", MASK)]), 1007);
    assert_eq!(refusal(&[client(0x81, b"\xed\xa0\x80", MASK)]), 1007, "a surrogate");
    assert_eq!(refusal(&[client(0x01, b"\xce", MASK), client(0x80, b"x", MASK)]), 1007);
    // A character may be torn apart by fragmentation.
    let torn = [client(0x01, b"\xce", MASK), client(0x80, b"\xba", MASK)];
    assert_eq!(decode(&torn), Ok(vec![Message::Text(Bytes::from_static("κ".as_bytes()))]));
    assert_eq!(decode(&[client(0x82, b"\xff", MASK)]), Ok(vec![Message::Binary(Bytes::from_static(b"\xff"))]));
}

#[test]
fn close_payloads_are_checked() {
    let with = |code: u16, reason: &[u8]| client(0x88, &[&code.to_be_bytes(), reason].concat(), MASK);
    assert_eq!(decode(&[client(0x88, b"", MASK)]), Ok(vec![Message::Close(None)]));
    assert_eq!(decode(&[with(1001, b"away")]), Ok(vec![Message::Close(Some((1001, "away".to_owned())))]));
    assert_eq!(refusal(&[client(0x88, b"\x03", MASK)]), 1002);
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535] {
        assert_eq!(refusal(&[with(code, b"")]), 1002, "{code}");
    }
    for code in [1000, 1003, 1007, 1014, 3000, 4999] {
        assert!(decode(&[with(code, b"")]).is_ok(), "{code}");
    }
    assert_eq!(refusal(&[with(1000, b"\xff")]), 1007);
}

#[test]
fn a_message_over_the_limit_is_refused_from_its_header() {
    assert!(decode(&[client(0x82, &[0; 1000], MASK)]).is_ok());
    let header = client(0x82, &[0; 1001], MASK)[..8].to_vec();
    assert_eq!(refusal(&[header]), 1009);
    let huge = vec![0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];
    assert_eq!(refusal(&[huge]), 1009);
    let second = client(0x80, &[0; 401], MASK)[..8].to_vec();
    assert_eq!(refusal(&[client(0x02, &[0; 600], MASK), second]), 1009, "the sum counts");
    // A ping is not a message, and is let through when the message before it has used up the limit.
    let frames = [client(0x02, &[0; 1000], MASK), client(0x89, b"x", MASK), client(0x80, b"", MASK)];
    assert_eq!(decode(&frames).map(|messages| messages.len()), Ok(2));
}

#[test]
fn violations_are_seen_before_the_payload_arrives() {
    let mut decoder = Decoder::new(1000);
    assert!(decoder.feed(&mut BytesMut::from(&[0x81][..])).unwrap().is_none());
    assert_eq!(decoder.feed(&mut BytesMut::from(&[0x81, 0x05][..])).unwrap_err().close_code, 1002);
    assert_eq!(Decoder::new(1000).feed(&mut BytesMut::from(&[0x89, 0xfe][..])).unwrap_err().close_code, 1002);
}

#[test]
fn an_idle_decoder_is_two_words_and_owns_nothing() {
    assert_eq!(size_of::<Decoder>(), 2 * size_of::<usize>());
    let mut decoder = Decoder::new(1000);
    let frames = [client(0x01, b"a", MASK), client(0x80, b"b", MASK)].concat();
    assert_eq!(decode_all(&mut decoder, &frames).unwrap().len(), 1);
    assert!(decoder.open.is_none());
}

#[test]
fn an_unfragmented_message_is_not_copied() {
    let mut bytes = BytesMut::from(&client(0x82, &[1; 500], MASK)[..]);
    let place = bytes[8..].as_ptr();
    let Ok(Some(Message::Binary(data))) = Decoder::new(1000).feed(&mut bytes) else { panic!("a binary message") };
    assert_eq!(data.as_ptr(), place);
}

proptest! {
    #[test]
    fn any_bytes_decode_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), max in 0usize..200) {
        let mut decoder = Decoder::new(max);
        let mut bytes = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decoder.feed(&mut bytes) {}
    }

    /// Random bytes seldom pass the header checks, so these are frames that nearly fit together.
    #[test]
    fn any_frames_decode_without_panic(
        frames in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..140), any::<[u8; 4]>()), 0..8),
    ) {
        let frames: Vec<u8> = frames.iter().flat_map(|(first, data, mask)| client(first & 0x8f, data, *mask)).collect();
        let mut bytes = BytesMut::from(&frames[..]);
        let mut decoder = Decoder::new(200);
        while let Ok(Some(_)) = decoder.feed(&mut bytes) {}
    }

    #[test]
    fn messages_survive_any_fragmentation_mask_and_chunking(
        messages in prop::collection::vec((any::<String>(), any::<bool>(), any::<[u8; 4]>(), 1usize..40, any::<bool>()), 1..6),
        chunk in 1usize..50,
    ) {
        let (mut bytes, mut expected) = (Vec::new(), Vec::new());
        for (data, is_text, mask, fragment, with_ping) in &messages {
            let mut parts: Vec<&[u8]> = data.as_bytes().chunks(*fragment).collect();
            if parts.is_empty() {
                parts.push(b"");
            }
            for (index, part) in parts.iter().enumerate() {
                let opcode = if index > 0 { 0 } else if *is_text { 1 } else { 2 };
                let is_final = if index + 1 == parts.len() { 0x80 } else { 0 };
                bytes.extend(client(opcode | is_final, part, *mask));
                if *with_ping && index == 0 {
                    bytes.extend(client(0x89, b"ping", *mask));
                }
            }
            let ping = with_ping.then(|| Message::Ping(Bytes::from_static(b"ping")));
            let data = Bytes::from(data.clone());
            let message = if *is_text { Message::Text(data) } else { Message::Binary(data) };
            expected.extend(if parts.len() > 1 { [ping, Some(message)] } else { [Some(message), ping] }.into_iter().flatten());
        }
        let (mut decoder, mut buffer, mut got) = (Decoder::new(10_000), BytesMut::new(), Vec::new());
        for chunk in bytes.chunks(chunk) {
            buffer.extend_from_slice(chunk);
            while let Some(message) = decoder.feed(&mut buffer).unwrap() {
                got.push(message);
            }
        }
        prop_assert_eq!(got, expected);
        prop_assert!(buffer.is_empty());
    }
}
