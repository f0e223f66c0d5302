use super::{Assembler, Event, MAX_NAMESPACE_BYTES, Packet, ack, connect, connect_error, disconnect, event};
use proptest::prelude::*;

fn decoded(text: &str) -> Event<'_> {
    match Packet::decode(text) {
        Ok(Packet::Event(event)) => event,
        other => panic!("{text} should be an event, not {other:?}"),
    }
}

fn raw<'a>(args: &[&'a serde_json::value::RawValue]) -> Vec<&'a str> {
    args.iter().map(|arg| arg.get()).collect()
}

fn refused(text: &str, code: &str) {
    match Packet::decode(text) {
        Err(error) => assert_eq!(error.code, code, "{text}"),
        Ok(packet) => panic!("{text} should be refused, not read as {packet:?}"),
    }
}

#[test]
fn connect_carries_an_object_or_nothing() {
    assert_eq!(Packet::decode("0"), Ok(Packet::Connect { nsp: "/", auth: None }));
    assert_eq!(Packet::decode("0/admin"), Ok(Packet::Connect { nsp: "/admin", auth: None }));
    assert_eq!(Packet::decode("0/admin,"), Ok(Packet::Connect { nsp: "/admin", auth: None }));
    assert_eq!(Packet::decode(r#"0{"t":1}"#), Ok(Packet::Connect { nsp: "/", auth: Some(r#"{"t":1}"#.into()) }));
    assert_eq!(Packet::decode("0/admin, {} "), Ok(Packet::Connect { nsp: "/admin", auth: Some("{}".into()) }));
    for text in ["0[]", "0null", "0\"x\"", "01{}", "05", "0{", "0{}{}", "0/a,1", "0{\"a\":\"\u{1}\"}"] {
        refused(text, "wire.socket");
    }
}

#[test]
fn disconnect_carries_nothing() {
    assert_eq!(Packet::decode("1"), Ok(Packet::Disconnect { nsp: "/" }));
    assert_eq!(Packet::decode("1/admin,"), Ok(Packet::Disconnect { nsp: "/admin" }));
    for text in ["1{}", "1/admin,{}", "12", "1 "] {
        refused(text, "wire.socket");
    }
}

#[test]
fn an_event_is_a_name_and_arguments() {
    let event = decoded(r#"2["foo"]"#);
    assert_eq!((event.namespace(), event.id(), event.name(), event.attachments()), ("/", None, "foo", 0));
    assert!(event.args().is_empty());
    let text = r#"2/admin,12["a\"b", {"x":[1, 2]} ,"é",null]"#;
    let event = decoded(text);
    assert_eq!((event.namespace(), event.id(), event.name()), ("/admin", Some(12), "a\"b"));
    assert_eq!(raw(&event.args()), [r#"{"x":[1, 2]}"#, r#""é""#, "null"]);
    assert_eq!(event.payload(), &text[10..]);
    assert_eq!(decoded("2[42,1]").name(), "42");
    assert_eq!(decoded("2 [ -1.5e3 ] ").name(), "-1.5e3");
    assert_eq!(decoded(r#"2["",1]"#).name(), "");
    assert_eq!(decoded(r#"218446744073709551615["a"]"#).id(), Some(u64::MAX));
}

#[test]
fn malformed_events_are_refused() {
    let texts = [
        "2",
        "2[]",
        "2{}",
        "2[null]",
        "2[true]",
        "2[[]]",
        "2[{}]",
        "2\"a\"",
        "2[\"a\"",
        "2[\"a\",]",
        "2[\"a\"]]",
        "2[\"a\"] x",
        "2-1[\"a\"]",
        "2x[\"a\"]",
        "2/admin",
        "2/admin[\"a\"]",
        "218446744073709551616[\"a\"]",
        "2[01]",
        "2[\"\\ud800\"]",
        "2[\"\\x\"]",
        "2[\"a\u{1e}\"]",
        "2[\"a\",NaN]",
        "21-[\"a\"]",
    ];
    for text in texts {
        refused(text, "wire.socket");
    }
}

#[test]
fn reserved_names_are_refused_even_in_disguise() {
    for name in
        ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener", "\\u0063onnect"]
    {
        refused(&format!("2[\"{name}\"]"), "wire.socket");
    }
    assert_eq!(decoded(r#"2["connected"]"#).name(), "connected");
}

#[test]
fn an_acknowledgement_names_its_id() {
    let Ok(Packet::Ack(ack)) = Packet::decode("3/admin,7[true,\"x\"]") else { panic!("an acknowledgement") };
    assert_eq!((ack.namespace(), ack.id(), ack.payload(), ack.attachments()), ("/admin", 7, "[true,\"x\"]", 0));
    assert_eq!(raw(&ack.args()), ["true", "\"x\""]);
    let Ok(Packet::Ack(ack)) = Packet::decode("30[]") else { panic!("an acknowledgement") };
    assert!(ack.args().is_empty());
    for text in ["3", "3[]", "37", "37{}", "37[", "3-7[]"] {
        refused(text, "wire.socket");
    }
}

#[test]
fn what_no_client_sends_is_refused() {
    for text in ["", "4{\"message\":\"no\"}", "4", "7", "a", "€", " 2[\"a\"]"] {
        refused(text, "wire.socket");
    }
}

#[test]
fn namespaces_are_bounded_and_printable() {
    let longest = format!("/{}", "n".repeat(MAX_NAMESPACE_BYTES - 1));
    assert_eq!(Packet::decode(&format!("0{longest},")), Ok(Packet::Connect { nsp: &longest, auth: None }));
    refused(&format!("0{longest}n,"), "wire.socket");
    refused("0/a\u{1e}4,", "wire.socket");
    refused("0/a\n,", "wire.socket");
}

#[test]
fn attachments_are_announced_and_bounded() {
    let event = decoded(r#"51-/admin,3["f",{"_placeholder":true,"num":0}]"#);
    assert_eq!((event.namespace(), event.id(), event.attachments()), ("/admin", Some(3), 1));
    assert_eq!(decoded(r#"510-["f"]"#).attachments(), 10);
    for text in [r#"511-["f"]"#, r#"54294967297-["f"]"#, r#"699999999999999999999-1[]"#] {
        refused(text, "wire.too_many");
    }
    for text in [
        "50-[\"f\"]",
        "600-1[]",
        "5[\"f\"]",
        "5-[\"f\"]",
        "5x-[\"f\"]",
        "51",
        "5+1-[\"f\"]",
        "5/a-b,1-[\"f\"]",
        "61-[]",
    ] {
        refused(text, "wire.socket");
    }
}

#[test]
fn deep_nesting_costs_no_stack() {
    let deep = format!("2[\"a\",{}{}]", "[".repeat(500_000), "]".repeat(500_000));
    assert_eq!(decoded(&deep).args().len(), 1);
}

#[test]
fn packets_are_written_as_the_protocol_says() {
    assert_eq!(connect("/", "s1", None), r#"40{"sid":"s1"}"#);
    assert_eq!(connect("/admin", "s1", Some("p1")), r#"40/admin,{"sid":"s1","pid":"p1"}"#);
    assert_eq!(connect_error("/", "Invalid token", None), r#"44{"message":"Invalid token"}"#);
    let error = connect_error("/ws", "No \"x\"", Some(r#"{"code":"auth"}"#));
    assert_eq!(error, r#"44/ws,{"message":"No \"x\"","data":{"code":"auth"}}"#);
    assert_eq!(disconnect("/"), "41");
    assert_eq!(disconnect("/admin"), "41/admin,");
    assert_eq!(event("/", "a", &[], None), r#"42["a"]"#);
    assert_eq!(event("/ws", "a:b", &["{\"x\":1}", "2"], Some("e.7")), r#"42/ws,["a:b",{"x":1},2,"e.7"]"#);
    assert_eq!(event("/", "q\"\n", &["1"], Some("\\")), "42[\"q\\\"\\n\",1,\"\\\\\"]");
    assert_eq!(ack("/", 0, &[]), "430[]");
    assert_eq!(ack("/admin", 12, &["true", "\"x\""]), r#"43/admin,12[true,"x"]"#);
}

#[test]
fn encoders_reserve_exactly() {
    let texts = [
        event("/ws", "lead.created", &["{\"leadId\":1}", "[]"], Some("1.42")),
        event("/", "é\"", &["1"], None),
        ack("/", 7, &["1", "2"]),
        connect("/ws", "sid", Some("pid")),
        connect_error("/", "no", Some("{}")),
        disconnect("/ws"),
    ];
    for text in texts {
        assert_eq!(text.capacity(), text.len(), "{text}");
    }
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "must be one JSON text")]
fn an_argument_that_is_not_json_is_the_callers_bug() {
    let _ = event("/", "a", &["1,2"], None);
}

#[test]
fn a_packet_without_attachments_passes_the_assembler() {
    let mut assembler = Assembler::new(100);
    let packet = Packet::decode("2[\"a\"]").unwrap();
    assert_eq!(assembler.text(packet.clone()), Ok(Some(packet)));
    assert!(!assembler.is_waiting());
    assert_eq!(size_of::<Assembler>(), 2 * size_of::<usize>());
}

#[test]
fn attachments_take_the_place_of_their_placeholders() {
    let text = r#"52-/a,7["f",{"b": {"num":1, "_placeholder" : true},"s":"{\"_placeholder\":true}"},[{"_placeholder":true,"num":0}], {} ]"#;
    let mut assembler = Assembler::new(1000);
    assert_eq!(assembler.text(Packet::decode(text).unwrap()), Ok(None));
    assert!(assembler.is_waiting());
    assert_eq!(assembler.binary(b"\x01"), Ok(None));
    let Ok(Some(Packet::Event(event))) = assembler.binary(b"") else { panic!("a whole event") };
    assert!(!assembler.is_waiting());
    assert_eq!((event.namespace(), event.id(), event.name(), event.attachments()), ("/a", Some(7), "f", 0));
    let expected = r#"["f",{"b": {"$binary":""},"s":"{\"_placeholder\":true}"},[{"$binary":"AQ=="}], {} ]"#;
    assert_eq!(event.payload(), expected);
}

#[test]
fn brackets_and_quotes_in_strings_do_not_mislead_the_assembler() {
    let strings = r#""{","_placeholder","}","\"{","_placeholder","}\\""#;
    let text = format!(r#"51-["f",{strings},{{"s":"}}{{\"","_placeholder":true,"a":[[]],"num":0}}]"#);
    let mut assembler = Assembler::new(1000);
    assert_eq!(assembler.text(Packet::decode(&text).unwrap()), Ok(None));
    let Ok(Some(Packet::Event(event))) = assembler.binary(b"abc") else { panic!("a whole event") };
    assert_eq!(event.payload(), format!(r#"["f",{strings},{{"$binary":"YWJj"}}]"#));
}

#[test]
fn a_binary_acknowledgement_is_assembled_too() {
    let mut assembler = Assembler::new(1000);
    let packet = Packet::decode(r#"61-9[{"_placeholder":true,"num":0}]"#).unwrap();
    assert_eq!(assembler.text(packet), Ok(None));
    let Ok(Some(Packet::Ack(ack))) = assembler.binary(b"abc") else { panic!("a whole acknowledgement") };
    assert_eq!((ack.id(), ack.payload()), (9, r#"[{"$binary":"YWJj"}]"#));
}

#[test]
fn texts_and_attachments_may_not_be_mixed_up() {
    let mut assembler = Assembler::new(1000);
    assert_eq!(assembler.binary(b"x").unwrap_err().code, "wire.socket");
    let packet = Packet::decode(r#"51-["f",{"_placeholder":true,"num":0}]"#).unwrap();
    assert_eq!(assembler.text(packet.clone()), Ok(None));
    assert_eq!(assembler.text(packet).unwrap_err().code, "wire.socket");
    assert_eq!(assembler.text(Packet::Disconnect { nsp: "/" }).unwrap_err().code, "wire.socket");
}

#[test]
fn each_attachment_is_used_exactly_once() {
    let payloads = [
        r#"51-["f"]"#,
        r#"51-["f",{"_placeholder":true,"num":1}]"#,
        r#"51-["f",{"_placeholder":true,"num":-1}]"#,
        r#"51-["f",{"_placeholder":true,"num":"0"}]"#,
        r#"51-["f",{"_placeholder":true}]"#,
        r#"51-["f",{"_placeholder":false,"num":0}]"#,
        r#"51-["f",{"_placeholder":true,"num":0},{"_placeholder":true,"num":0}]"#,
    ];
    for text in payloads {
        let mut assembler = Assembler::new(1000);
        assert_eq!(assembler.text(Packet::decode(text).unwrap()), Ok(None));
        assert_eq!(assembler.binary(b"x").expect_err(text).code, "wire.socket");
    }
}

#[test]
fn a_packet_and_its_attachments_are_bounded_together() {
    let packet = Packet::decode(r#"51-["f",{"_placeholder":true,"num":0}]"#).unwrap();
    let text_len = 36;
    assert_eq!(Assembler::new(text_len - 2).text(packet.clone()).map(|_| ()).unwrap_err().code, "wire.too_big");
    let mut assembler = Assembler::new(text_len + 10);
    assert_eq!(assembler.text(packet.clone()), Ok(None));
    assert_eq!(assembler.binary(&[0; 12]).unwrap_err().code, "wire.too_big");
    let mut assembler = Assembler::new(text_len + 10);
    assert_eq!(assembler.text(packet), Ok(None));
    assert!(assembler.binary(&[0; 10]).unwrap().is_some());
}

proptest! {
    #[test]
    fn any_text_decodes_without_panic(text in any::<String>()) {
        let _ = Packet::decode(&text);
    }

    #[test]
    fn any_plausible_packet_decodes_and_gives_its_arguments(
        text in r#"[0-7]([0-9]{1,2}-)?(/[a-z]{0,3},?)?[0-9]{0,2}[\[{]?("[a-z\\u0-9]{0,7}"|[0-9]|[\[\]{}:,"])*[\]}]?"#,
    ) {
        match Packet::decode(&text) {
            Ok(Packet::Event(event)) => prop_assert!(event.args().len() < text.len()),
            Ok(Packet::Ack(ack)) => prop_assert!(ack.args().len() < text.len()),
            Ok(Packet::Connect { .. } | Packet::Disconnect { .. }) | Err(_) => {}
        }
    }

    #[test]
    fn what_is_written_is_read_back(
        nsp in "(/|/[a-z0-9/]{1,10})",
        name in any::<String>(),
        args in prop::collection::vec(any::<String>(), 0..4),
        offset in prop::option::of(any::<String>()),
        id in any::<u64>(),
    ) {
        prop_assume!(!super::packet::RESERVED.contains(&name.as_str()));
        let json: Vec<String> = args.iter().map(|arg| serde_json::to_string(arg).unwrap()).collect();
        let json: Vec<&str> = json.iter().map(String::as_str).collect();
        let text = event(&nsp, &name, &json, offset.as_deref());
        let event = decoded(&text[1..]);
        prop_assert_eq!((event.namespace(), event.name(), event.id()), (nsp.as_str(), name.as_str(), None));
        let read: Vec<String> = event.args().iter().map(|arg| serde_json::from_str(arg.get()).unwrap()).collect();
        prop_assert_eq!(read, args.iter().cloned().chain(offset).collect::<Vec<_>>());

        let text = ack(&nsp, id, &json);
        let Ok(Packet::Ack(ack)) = Packet::decode(&text[1..]) else { panic!("an acknowledgement") };
        prop_assert_eq!((ack.namespace(), ack.id()), (nsp.as_str(), id));
        prop_assert_eq!(raw(&ack.args()), json);
    }

    #[test]
    fn any_attachments_come_out_as_they_went_in(
        attachments in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..=10),
        noise in any::<String>(),
    ) {
        let noise = serde_json::to_string(&noise).unwrap();
        let mut text = format!("5{}-[\"f\"", attachments.len());
        for number in 0..attachments.len() {
            text.push_str(&format!(",[{noise},{{{noise}:{{\"_placeholder\":true,\"num\":{number}}}}}]"));
        }
        text.push(']');
        let mut assembler = Assembler::new(100_000);
        prop_assert_eq!(assembler.text(Packet::decode(&text).unwrap()), Ok(None));
        let mut last = None;
        for data in &attachments {
            prop_assert!(last.is_none());
            last = assembler.binary(data).unwrap();
        }
        let Some(Packet::Event(event)) = last else { panic!("a whole event") };
        let args = event.args();
        prop_assert_eq!(args.len(), attachments.len());
        for (arg, data) in args.iter().zip(&attachments) {
            use base64::Engine;
            let base64 = base64::engine::general_purpose::STANDARD.encode(data);
            prop_assert_eq!(arg.get(), format!("[{noise},{{{noise}:{{\"$binary\":\"{base64}\"}}}}]"));
        }
    }
}

/// The payloads of the frames, and whether each is binary.
fn unframed(frames: &[u8]) -> Vec<(bool, Vec<u8>)> {
    crate::websocket::frames(frames)
        .map(|frame| (frame[0] == 0x82, crate::websocket::payload(frame).to_vec()))
        .collect()
}

#[test]
fn binary_data_leaves_as_attachments() {
    let text =
        event("/a", "f", &[r#"{"x":{"$binary":"YWI="},"y":[{ "$binary" : "" }]}"#, r#""\"$binary\"""#], Some("o"));
    let expected =
        r#"452-/a,["f",{"x":{"_placeholder":true,"num":0},"y":[{"_placeholder":true,"num":1}]},"\"$binary\"","o"]"#;
    let frames = super::frames(&text);
    let expected = [(false, expected.as_bytes().to_vec()), (true, b"ab".to_vec()), (true, Vec::new())];
    assert_eq!(unframed(&frames), expected);
    let frames = super::frames(&ack("/", 7, &[r#"{"$binary":"/w=="}"#]));
    let expected = br#"461-7[{"_placeholder":true,"num":0}]"#.to_vec();
    assert_eq!(unframed(&frames), [(false, expected), (true, vec![0xff])]);
}

#[test]
fn bytes_beside_what_a_client_takes_for_their_place_stay_json() {
    let bytes = r#"{"$binary":"YWI="}"#;
    for arg in [
        r#"{"_placeholder":true,"num":7}"#,
        r#"[{"a":{"num":0,"_placeholder": true}}]"#,
        r#"{"\u005fplaceholder":true,"num":7}"#,
        r#"{"_placehol\u0064er":true}"#,
        r#"["\u00ff\ud800"]"#,
    ] {
        let text = event("/", "f", &[bytes, arg], None);
        assert_eq!(unframed(&super::frames(&text)), [(false, text.into_bytes())], "{arg}");
    }
    for arg in [r#"{"_placeholder":false}"#, r#""_placeholder""#, r#"{"a":"\u00fc"}"#] {
        assert_eq!(unframed(&super::frames(&event("/", "f", &[bytes, arg], None))).len(), 2, "{arg}");
    }
}

#[test]
fn what_only_looks_like_binary_data_stays_json() {
    let eleven = format!("[{}]", [r#"{"$binary":""}"#; 11].join(","));
    for arg in [
        r#"{"$binary":"not base64"}"#,
        r#"{"$binary":1}"#,
        r#"{"$binary":"YWI=","more":1}"#,
        r#"{"more":1,"$binary":"YWI="}"#,
        r#"["$binary","YWI="]"#,
        r#"{"x":"$binary"}"#,
        r#"{"$binary":{"$binary":1}}"#,
        &eleven,
    ] {
        let text = event("/", "f", &[arg], None);
        assert_eq!(unframed(&super::frames(&text)), [(false, text.into_bytes())]);
    }
}

proptest! {
    #[test]
    fn attachments_come_back_as_they_were(data in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 1..10)) {
        use base64::Engine;
        let encode = |data: &Vec<u8>| format!(r#"{{"$binary":"{}"}}"#, base64::engine::general_purpose::STANDARD.encode(data));
        let arg = format!("[{}]", data.iter().map(encode).collect::<Vec<_>>().join(","));
        let frames = unframed(&super::frames(&event("/", "f", &[&arg], None)));
        let text = std::str::from_utf8(&frames[0].1[1..]).unwrap();
        let mut assembler = Assembler::new(10_000);
        prop_assert_eq!(assembler.text(Packet::decode(text).unwrap()), Ok(None));
        let mut whole = None;
        for (_, attachment) in &frames[1..] {
            whole = assembler.binary(attachment).unwrap();
        }
        let Some(Packet::Event(event)) = whole else { panic!("a whole event") };
        prop_assert_eq!(event.args()[0].get(), arg);
    }
}
