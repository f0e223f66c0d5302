use super::super::{Decoder, Message, binary, frames, payload, ping, text};
use super::{accept_deflate, compress, inflated};
use bytes::BytesMut;
use proptest::prelude::*;

/// A client's frame with a mask of zeros: what the server wrote, seen from the other side.
fn masked(frame: &[u8]) -> BytesMut {
    let header = super::super::header_len(frame);
    let mut out = BytesMut::from(&frame[..header]);
    out[1] |= 0x80;
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&frame[header..]);
    out
}

fn feed(decoder: Decoder, frame: &[u8]) -> Result<Option<Message>, crate::Error> {
    let mut decoder = decoder;
    decoder.feed(&mut masked(frame))
}

#[test]
fn the_rfc_examples_inflate() {
    // RFC 7692, sections 7.2.3.1 to 7.2.3.4: a compressed block, one without compression, one with BFINAL, two blocks.
    for data in [
        &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..],
        &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
        &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        &[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00],
    ] {
        assert_eq!(inflated(data, 5).as_deref(), Ok(&b"Hello"[..]), "{data:x?}");
        assert_eq!(inflated(data, 4).map_err(|error| error.code), Err("wire.too_big"), "{data:x?}");
    }
    assert_eq!(inflated(&[0], 0).as_deref(), Ok(&b""[..]), "an empty message");
    assert_eq!(inflated(&[0xff; 8], 100).map_err(|error| error.close_code), Err(1007));
}

#[test]
fn a_bomb_is_refused_at_the_limit() {
    let zeros = text(&vec![b'0'; 10_000_000]);
    let bomb = compress(&zeros, 0).expect("smaller");
    assert!(bomb.len() < 20_000, "{} bytes", bomb.len());
    let refused = feed(Decoder::new(1_000_000).inflating(), &bomb).expect_err("refused");
    assert_eq!((refused.code, refused.close_code), ("wire.too_big", 1009));
    let whole = feed(Decoder::new(10_000_000).inflating(), &bomb).expect("read");
    assert!(matches!(whole, Some(Message::Text(data)) if data.len() == 10_000_000));
}

#[test]
fn the_bit_stands_on_the_first_frame_of_a_message_and_only_where_it_was_agreed() {
    let compressed = compress(&text(&[b'a'; 2_000]), 1_000).expect("smaller");
    assert_eq!(compressed[0], 0xc1);
    assert_eq!(feed(Decoder::new(9_000), &compressed).map_err(|error| error.close_code), Err(1002));
    for first in [0xc0, 0xc8, 0xc9, 0xa1, 0x91, 0xe1] {
        let mut frame = compressed.to_vec();
        frame[0] = first;
        let refused = feed(Decoder::new(9_000).inflating(), &frame).map_err(|error| error.close_code);
        assert_eq!(refused, Err(1002), "first byte {first:x}");
    }
    // In two fragments: the first has the bit, the second has not.
    let data = payload(&compressed);
    let (one, two) = data.split_at(data.len() / 2);
    let mut fragments = BytesMut::new();
    for (first, part) in [(0x41, one), (0x80, two)] {
        fragments.extend_from_slice(&[first, 0x80 | part.len() as u8, 0, 0, 0, 0]);
        fragments.extend_from_slice(part);
    }
    let mut decoder = Decoder::new(9_000).inflating();
    let whole = decoder.feed(&mut fragments).expect("read");
    assert!(matches!(whole, Some(Message::Text(data)) if data[..] == [b'a'; 2_000]));
}

#[test]
fn text_must_be_text_after_inflating() {
    let mut compressed = compress(&binary(&[0xff; 2_000]), 1_000).expect("smaller").to_vec();
    compressed[0] = 0xc1;
    assert_eq!(feed(Decoder::new(9_000).inflating(), &compressed).map_err(|error| error.close_code), Err(1007));
}

#[test]
fn each_frame_of_a_packet_is_compressed_alone_and_only_if_it_gains() {
    let mut state = 1_u64;
    let mut noise = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    let noise: Vec<u8> = (0..1_100).map(|_| noise()).collect();
    let all = [&text(&[b'a'; 2_000])[..], &binary(b"small"), &ping(b"p"), &binary(&[7; 2_000])].concat();
    let compressed = compress(&all, 1_000).expect("smaller");
    let firsts: Vec<u8> = frames(&compressed).map(|frame| frame[0]).collect();
    assert_eq!(firsts, [0xc1, 0x82, 0x89, 0xc2]);
    assert_eq!(compress(&text(&[b'a'; 999]), 1_000), None, "too small");
    assert_eq!(compress(&binary(&noise), 1_000), None, "noise does not shrink");
}

#[test]
fn offers_are_taken_or_declined() {
    const BOTH: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";
    for offer in [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; client_max_window_bits=9; server_no_context_takeover",
        "x-webkit-deflate-frame, permessage-deflate ; client_no_context_takeover",
        "permessage-deflate; server_max_window_bits=10, permessage-deflate",
    ] {
        assert_eq!(accept_deflate(offer), Some(BOTH), "{offer}");
    }
    let confirmed = accept_deflate("permessage-deflate; server_max_window_bits=\"15\"").expect("taken");
    assert!(confirmed.ends_with("; server_max_window_bits=15"));
    for offer in [
        "",
        "permessage-bzip2",
        "permessage-deflate; server_max_window_bits=10",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=08",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; other",
    ] {
        assert_eq!(accept_deflate(offer), None, "{offer}");
    }
}

#[test]
fn every_size_is_compressed_whole() {
    let mut state = 7_u32;
    for bits in [2, 5, 7, 8] {
        // Noise of so many bits in a byte, so that it shrinks by as much and the compressor's blocks end anywhere.
        let data: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> (32 - bits)) as u8
        })
        .take(140_000)
        .collect();
        for len in (0..140_000).step_by(4_733).chain([16_384, 32_768, 65_535, 65_536, 131_072]) {
            let compressed = super::deflated(&data[..len]).expect("room enough");
            assert_eq!(inflated(&compressed, len).as_deref(), Ok(&data[..len]), "{len} bytes of {bits} bits");
        }
    }
}

proptest! {
    #[test]
    fn what_is_compressed_inflates_to_the_same(
        data in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..5_000),
        times in 1_usize..40,
    ) {
        let data = data.repeat(times);
        let frame = binary(&data);
        let compressed = compress(&frame, 0).unwrap_or(frame);
        let read = feed(Decoder::new(data.len()).inflating(), &compressed);
        prop_assert_eq!(read, Ok(Some(Message::Binary(data.into()))));
    }
}
