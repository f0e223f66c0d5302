//! What a client sees: connecting, rooms, messages, isolation.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::{Value, json};
use support::Server;
use support::client::{Polling, Socket, http};
use tidewire_core::event::Offset;
use tidewire_gateway::{Options, Whom};

#[tokio::test]
async fn a_websocket_connects_and_gets_the_events_of_its_rooms() {
    let server = Server::start().await;
    let (mut socket, connected) = Socket::connect(server.address, "p1/ann/sales").await;
    assert_eq!(connected["socketId"], socket.sid);
    assert_eq!(connected["userId"], "ann");
    assert_eq!(connected["tenant"], "p1");
    assert_eq!(connected["rooms"], json!(["port:p1", "user:ann"]));
    assert_eq!(connected["roles"], json!(["sales"]));
    assert_eq!((&connected["position"], &connected["recovered"]), (&json!(0), &json!(false)));
    assert_eq!(socket.offset.as_deref(), Some("e1.0+0"));

    server.publish("p1", "berth:statusChanged", json!({ "berthId": "b1", "newStatus": "sold" })).await;
    let event = socket.event().await;
    assert_eq!(event, json!(["berth:statusChanged", { "berthId": "b1", "newStatus": "sold" }, "e1.1+0"]));
}

#[tokio::test]
async fn a_connection_that_is_not_bare_tcp_works_through_an_adapter() {
    let server = Server::start().await;
    let address = server.wrapped().await;
    let (mut socket, _) = Socket::connect(address, "p1/ann/").await;
    let text = "x".repeat(100_000);
    for n in 0..20 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "text": text })).await;
    }
    for n in 0..20 {
        assert_eq!(socket.expect("lead:created").await["n"], n);
    }
    assert_eq!(socket.ask("say", &[json!({ "text": text })]).await["ok"], true);
    server.gateway.drain(Duration::ZERO).await;
    assert_eq!(socket.closed().await.expect("closed").0, 1012);
}

#[tokio::test]
async fn every_refusal_has_its_message_and_code() {
    let server = Server::start().await;
    for (auth, message, code) in [
        (json!({}), "Authentication token required", "auth.required"),
        (json!({ "token": "" }), "Authentication token required", "auth.required"),
        (json!({ "token": 7 }), "Invalid token", "auth.invalid"),
        (json!({ "token": "nonsense" }), "Invalid token", "auth.invalid"),
        (json!({ "token": "p1/ann//0" }), "Invalid token", "auth.invalid"),
        (json!({ "token": "outage" }), "Authentication failed", "auth.unavailable"),
    ] {
        let error = Socket::open(server.address).await.join("/", auth.clone()).await.map(|_| ()).expect_err("refused");
        assert_eq!((&error["message"], &error["data"]["code"]), (&json!(message), &json!(code)), "{auth}");
    }
    let error = Socket::open(server.address).await.join("/nowhere", json!({})).await.map(|_| ()).expect_err("refused");
    assert_eq!(error, json!({ "message": "Invalid namespace" }));
}

#[tokio::test]
async fn the_first_credential_present_decides_and_a_bad_one_never_falls_through() {
    let server = Server::start().await;
    let both = "Authorization: Bearer p1/header/\r\nCookie: x=1; session=p1/cookie/\r\n";
    let open = |query: &'static str, headers: &'static str| async move {
        Socket::open_with(server.address, query, headers).await.expect("open")
    };
    let (_, connected) =
        open("&token=p1/query/", both).await.join("/", json!({ "token": "p1/auth/" })).await.expect("in");
    assert_eq!(connected["userId"], "auth");
    let (_, connected) = open("&token=p1/query/", both).await.join("/", json!({})).await.expect("in");
    assert_eq!(connected["userId"], "header");
    let (_, connected) =
        open("&token=p1%2Fquery%2F", "Cookie: session=p1/cookie/\r\n").await.join("/", json!({})).await.expect("in");
    assert_eq!(connected["userId"], "query");
    let (_, connected) = open("", "Cookie: session=p1/cookie/\r\n").await.join("/", json!({})).await.expect("in");
    assert_eq!(connected["userId"], "cookie");
    let error = open("", both).await.join("/", json!({ "token": "bad" })).await.map(|_| ()).expect_err("refused");
    assert_eq!(error["message"], "Invalid token");
}

#[tokio::test]
async fn two_tenants_with_equal_names_everywhere_hear_nothing_of_each_other() {
    let server = Server::start().await;
    let (mut one, _) = Socket::connect(server.address, "p1/ann/admin").await;
    let (mut two, _) = Socket::connect(server.address, "p2/ann/admin").await;
    for socket in [&mut one, &mut two] {
        assert_eq!(socket.ask("join", &[json!("berth:b1")]).await["ok"], true);
    }
    let refused = one.ask("join", &[json!("port:p2")]).await;
    assert_eq!((&refused["ok"], &refused["error"]["code"]), (&json!(false), &json!("room.forbidden")));
    for tenant in ["p1", "p2"] {
        server.publish(tenant, "berth:noted", json!({ "berthId": "b1", "text": tenant })).await;
    }
    assert_eq!(one.expect("berth:noted").await["text"], "p1");
    assert_eq!(two.expect("berth:noted").await["text"], "p2");
    assert_eq!(one.offset.as_deref(), Some("e1.1+0"));
    // Nothing else is on its way: the next thing each hears is the answer to its own question.
    for socket in [&mut one, &mut two] {
        let history = socket.ask("history", &[json!({})]).await;
        assert_eq!(history["events"].as_array().map(Vec::len), Some(1));
        assert_eq!(socket.early, Vec::<Value>::new());
    }
}

#[tokio::test]
async fn of_several_templates_that_make_a_room_the_one_that_says_most_of_it_decides() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    let (mut boss, _) = Socket::connect(server.address, "p1/boss/admin").await;
    // It looks like a berth, and begins like a room that one is in by itself.
    for (room, may_ann) in
        [("berth:b1:crew", false), ("berth:b1", true), ("port:p1:desk:7", true), ("port:p2:desk:7", false)]
    {
        for (socket, may) in [(&mut ann, may_ann), (&mut boss, !room.contains("p2"))] {
            let answer = socket.ask("join", &[json!(room)]).await;
            assert_eq!(answer["ok"], may, "{room}: {answer}");
        }
    }
    assert_eq!(ann.ask("watch", &[json!("b1:crew")]).await["error"]["code"], "room.forbidden");
    // `{userId}` is the user.
    assert_eq!(ann.ask("join", &[json!("inbox:boss")]).await["error"]["code"], "room.forbidden");
    assert_eq!(ann.ask("join", &[json!("inbox:ann")]).await["ok"], true);
}

#[tokio::test]
async fn rooms_that_one_is_in_by_itself_do_not_count_as_asked_for() {
    let server = Server::with(Options { max_rooms_per_socket: 3, ..Options::default() }).await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    assert_eq!(ann.ask("join", &[json!("berth:b1")]).await["ok"], true);
    assert_eq!(ann.ask("join", &[json!("berth:b2")]).await["error"]["code"], "limit.rooms");
    let token = "p1/ann/admin/cross";
    let renewed = ann.ask("auth", &[json!({ "token": token })]).await;
    let all = json!(["port:p1", "user:ann", "berth:b1", "global"]);
    assert_eq!((&renewed["ok"], &renewed["rooms"]), (&json!(true), &all));
    let (_, connected) = ann.reconnect(server.address, token).await;
    assert_eq!((&connected["recovered"], connected["rooms"].as_array().map(Vec::len)), (&json!(true), Some(4)));
}

#[tokio::test]
async fn an_answer_of_history_has_no_more_bytes_than_may_wait() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    let text = "x".repeat(100_000);
    for n in 0..12 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n, "text": text })).await;
        ann.expect("lead:created").await;
    }
    let numbers = |answer: &Value| -> Vec<u64> {
        let events = answer["events"].as_array().expect("events").iter();
        events.map(|event| event["data"]["n"].as_u64().expect("a number")).collect()
    };
    let latest = ann.ask("history", &[json!({})]).await;
    assert_eq!((numbers(&latest), &latest["complete"]), ((7..12).collect(), &json!(false)));
    let (mut found, mut after) = (Vec::new(), json!(0));
    loop {
        let page = ann.ask("history", &[json!({ "after": after })]).await;
        assert!(numbers(&page).len() <= 6);
        found.extend(numbers(&page));
        after = page["position"].clone();
        if page["complete"] == true {
            break;
        }
    }
    assert_eq!(found, (0..12).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_event_for_two_rooms_of_a_socket_arrives_once() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    socket.ask("join", &[json!({ "room": "berth:b1" })]).await;
    for status in ["held", "sold"] {
        server.publish("p1", "berth:statusChanged", json!({ "berthId": "b1", "newStatus": status })).await;
    }
    assert_eq!(socket.expect("berth:statusChanged").await["newStatus"], "held");
    assert_eq!(socket.expect("berth:statusChanged").await["newStatus"], "sold");
}

#[tokio::test]
async fn a_large_room_keeps_exactly_those_who_are_in_it() {
    let server = Server::with(Options { max_per_user: 200, ..Options::default() }).await;
    let mut sockets = Vec::new();
    for n in 0..100 {
        let (mut socket, _) = Socket::connect(server.address, &format!("p1/user{n}/")).await;
        socket.ask("join", &[json!("berth:b1")]).await;
        sockets.push(socket);
    }
    for (n, socket) in sockets.iter_mut().enumerate() {
        if n % 3 != 1 {
            socket.ask("leave", &[json!("berth:b1")]).await;
        }
    }
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "still here" })).await;
    server.publish("p1", "user:typing", json!({ "n": 1 })).await;
    for (n, socket) in sockets.iter_mut().enumerate() {
        let first = socket.event().await;
        assert_eq!(first[0], if n % 3 == 1 { "berth:noted" } else { "user:typing" }, "{n}");
    }
}

#[tokio::test]
async fn an_event_is_seen_only_by_whom_its_condition_lets_see_it() {
    let server = Server::start().await;
    let (mut admin, _) = Socket::connect(server.address, "p1/boss/admin").await;
    let (mut agent, _) = Socket::connect(server.address, "p1/ann/sales").await;
    let (mut other, _) = Socket::connect(server.address, "p1/bob/sales").await;
    for who in ["bob", "ann"] {
        server.publish("p1", "lead:created", json!({ "agentId": who })).await;
    }
    assert_eq!(admin.expect("lead:created").await["agentId"], "bob");
    assert_eq!(admin.expect("lead:created").await["agentId"], "ann");
    assert_eq!(agent.expect("lead:created").await["agentId"], "ann");
    assert_eq!(other.expect("lead:created").await["agentId"], "bob");
    let history = other.ask("history", &[json!({ "after": 0 })]).await;
    assert_eq!(history["events"].as_array().map(Vec::len), Some(1));
    assert_eq!((&history["complete"], &history["position"]), (&json!(true), &json!(2)));
}

#[tokio::test]
async fn a_condition_over_roles_is_asked_of_each_set_of_roles() {
    let server = Server::start().await;
    let mut sockets = Vec::new();
    for token in ["p1/ann/sales", "p1/boss/admin", "p1/bob/sales", "p1/eve/", "p1/tom/sales,admin"] {
        sockets.push(Socket::connect(server.address, token).await.0);
    }
    for price in [500, 50] {
        server.publish("p1", "lead:priced", json!({ "price": price })).await;
    }
    // Whoever may not see an event gets this one in its place.
    server.publish("p1", "user:typing", json!({ "n": 1 })).await;
    for (socket, expected) in sockets.iter_mut().zip([&[50][..], &[500, 50], &[50], &[], &[500, 50]]) {
        for price in expected {
            assert_eq!(socket.expect("lead:priced").await["price"], *price);
        }
        socket.expect("user:typing").await;
    }
}

#[tokio::test]
async fn a_visitor_gets_the_redacted_copy_and_may_do_nothing_else() {
    let server = Server::start().await;
    let visitor = Socket::open(server.address).await.join("/", json!({ "portId": "p1" })).await.expect("let in");
    let (mut visitor, connected) = visitor;
    assert_eq!((&connected["userId"], &connected["rooms"]), (&Value::Null, &json!(["map:p1"])));
    let (mut user, _) = Socket::connect(server.address, "p1/ann/").await;
    user.ask("join", &[json!("map:p1")]).await;
    let data = json!({ "berthId": "b1", "newStatus": "sold", "secret": "to Bob" });
    server.publish("p1", "berth:statusChanged", data.clone()).await;
    assert_eq!(visitor.expect("berth:statusChanged").await, json!({ "berthId": "b1", "newStatus": "sold" }));
    assert_eq!(user.expect("berth:statusChanged").await, data, "the whole event for who is in a whole room too");
    for (message, code) in [("history", "auth.required"), ("say", "auth.required")] {
        assert_eq!(visitor.ask(message, &[json!({})]).await["error"]["code"], code);
    }
    for room in ["berth:b1", "port:p1", "map:p2", "user:ann"] {
        assert_eq!(visitor.ask("join", &[json!(room)]).await["error"]["code"], "room.forbidden", "{room}");
    }
    assert_eq!(visitor.ask("leave", &[json!("map:p1")]).await["left"], true);
}

#[tokio::test]
async fn a_room_across_tenants_is_heard_with_an_offset_of_ones_own() {
    let server = Server::start().await;
    server.publish("p2", "berth:noted", json!({ "berthId": "x", "text": "y" })).await;
    let (mut cross, connected) = Socket::connect(server.address, "p1/root/admin/cross").await;
    assert_eq!(connected["rooms"], json!(["port:p1", "user:root", "global"]));
    server.publish("p2", "system:alert", json!({ "text": "fire" })).await;
    assert_eq!(cross.expect("system:alert").await["text"], "fire");
    let offset: Offset = cross.offset.as_deref().and_then(|offset| offset.parse().ok()).expect("an offset");
    assert_eq!(offset.position.0, 0, "the position in p1, not that in p2");
    assert!(offset.across.is_some(), "and how far it is with what spans tenants");
}

#[tokio::test]
async fn subscribed_types_and_patterns_are_all_that_comes() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let answer = socket.ask("subscribe", &[json!({ "eventTypes": ["lead:*"], "rooms": ["berth:b1"] })]).await;
    assert_eq!((&answer["ok"], &answer["eventTypes"]), (&json!(true), &json!(["lead:*"])));
    assert_eq!(answer["rooms"], json!(["port:p1", "user:ann", "berth:b1"]));
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "hidden" })).await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    socket.expect("lead:created").await;
    socket.ask("subscribe", &[json!({ "eventTypes": ["berth:noted"] })]).await;
    socket.ask("unsubscribe", &[json!({ "eventTypes": ["lead:*"] })]).await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    server.publish("p1", "berth:noted", json!({ "berthId": "b1", "text": "seen" })).await;
    assert_eq!(socket.expect("berth:noted").await["text"], "seen");
    let unknown = socket.ask("subscribe", &[json!({ "eventTypes": ["berth:notd"] })]).await;
    assert_eq!(unknown["error"]["code"], "event.unknown_type");
    assert!(unknown["error"]["message"].as_str().is_some_and(|text| text.contains("berth:noted")), "{unknown}");
    let refused = socket.ask("subscribe", &[json!({ "eventTypes": ["said"], "rooms": ["vault:b1"] })]).await;
    assert_eq!(refused["error"]["code"], "room.forbidden");
}

#[tokio::test]
async fn declared_messages_publish_join_and_reply_in_the_name_of_the_socket() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    let (mut bob, _) = Socket::connect(server.address, "p1/bob/").await;
    let answer = ann.ask("say", &[json!({ "text": "hi", "from": "boss" })]).await;
    assert_eq!((&answer["ok"], &answer["events"][0]["position"]), (&json!(true), &json!(1)));
    let said = bob.expect("said").await;
    assert_eq!((&said["from"], &said["text"], &said["id"]), (&json!("ann"), &json!("hi"), &answer["events"][0]["id"]));
    assert_eq!(ann.ask("say", &[json!({ "text": "hi", "quietly": true })]).await["error"]["code"], "message.refused");
    let invalid = ann.ask("say", &[json!({ "text": 7 })]).await;
    assert_eq!(invalid["error"]["code"], "message.invalid_data");
    assert_eq!(invalid["error"]["errors"][0]["path"], "data.text");
    assert_eq!(ann.ask("sing", &[]).await["error"]["code"], "message.unknown");
    ann.early.clear();
    let answer = ann.ask("watch", &[json!("b7")]).await;
    assert_eq!(answer["room"], "berth:b7");
    assert_eq!(ann.early[0][1], json!({ "text": "b7" }));
    assert_eq!(ann.ask("switch", &[json!({ "tenant": "p2" })]).await["error"]["code"], "switch.forbidden");
}

#[tokio::test]
async fn a_declared_message_whose_room_is_refused_publishes_nothing() {
    let server = Server::with(Options { max_rooms_per_socket: 3, ..Options::default() }).await;
    let enter = |berth: &str| [json!({ "berthId": berth, "text": "here" })];
    let (mut bob, _) = Socket::connect(server.address, "p1/bob/").await;
    assert_eq!(bob.ask("enter", &enter("b1")).await["error"]["code"], "room.forbidden");
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/admin").await;
    let answer = ann.ask("enter", &enter("b1")).await;
    assert_eq!((&answer["room"], &answer["events"][0]["position"]), (&json!("vault:b1"), &json!(1)));
    assert_eq!(ann.ask("enter", &enter("b2")).await["error"]["code"], "limit.rooms");
    assert_eq!(ann.ask("enter", &enter("b1")).await["events"][0]["position"], 2);
    let history = ann.ask("history", &[json!({ "after": 0 })]).await;
    assert_eq!((history["events"].as_array().map(Vec::len), &history["position"]), (Some(2), &json!(2)));
}

#[tokio::test]
async fn a_declared_message_that_cannot_be_published_enters_no_room_nor_after_a_crash() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/admin").await;
    let answer = ann.ask("enter", &[json!({ "berthId": "b1" })]).await;
    assert_eq!(answer["error"]["code"], "event.invalid_data");
    server.publish("p1", "vault:opened", json!({ "berthId": "b1" })).await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    ann.expect("lead:created").await;
    let server = server.crash_and_restart().await;
    let (_, connected) = ann.reconnect(server.address, "p1/ann/admin").await;
    assert_eq!((&connected["recovered"], &connected["rooms"]), (&json!(true), &json!(["port:p1", "user:ann"])));
}

#[tokio::test]
async fn history_from_a_room_with_a_view_has_only_the_fields_of_the_view() {
    let server = Server::start().await;
    let data = json!({ "berthId": "b1", "newStatus": "sold", "secret": "to Bob" });
    server.publish("p1", "berth:statusChanged", data.clone()).await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    let all = ann.ask("history", &[]).await;
    assert_eq!(all["events"][0]["data"], data);
    ann.ask("leave", &[json!("port:p1")]).await;
    ann.ask("join", &[json!("map:p1")]).await;
    for question in [json!({}), json!({ "after": 0 })] {
        let history = ann.ask("history", &[question]).await;
        assert_eq!(history["events"][0]["data"], json!({ "berthId": "b1", "newStatus": "sold" }));
        assert!(!history.to_string().contains("Bob"), "{history}");
    }
    // The position of what it may not see is all it learns.
    ann.ask("leave", &[json!("map:p1")]).await;
    assert_eq!(ann.ask("history", &[]).await["events"], json!([]));
}

#[tokio::test]
async fn ephemeral_events_reach_who_is_there_and_keep_the_offset() {
    let server = Server::start().await;
    server.publish("p1", "lead:created", json!({ "agentId": "x" })).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.publish("p1", "user:typing", json!({ "n": 1 })).await;
    assert_eq!(socket.event().await, json!(["user:typing", { "n": 1 }, "e1.1+0"]));
}

#[tokio::test]
async fn namespaces_share_a_transport_and_have_sockets_of_their_own() {
    let server = Server::start().await;
    let auth = json!({ "token": "p1/ann/" });
    let (socket, _) = Socket::open(server.address).await.join("/", auth.clone()).await.expect("in");
    let first = socket.sid.clone();
    let (mut socket, _) = socket.join("/ws", auth).await.expect("in");
    assert_ne!(first, socket.sid);
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    let mut packets = [socket.packet().await.expect("one"), socket.packet().await.expect("two")];
    packets.sort();
    assert!(packets[0].starts_with("42/ws,[") && packets[1].starts_with("42["), "{packets:?}");
    assert_eq!(server.gateway.stats().sockets, 2);
    socket.send("41/ws,").await;
    socket.send("42[\"x\"]").await;
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    assert!(socket.packet().await.expect("one").starts_with("42["));
}

#[tokio::test]
async fn malformed_packets_end_their_transport_and_no_other() {
    let server = Server::start().await;
    let (mut healthy, _) = Socket::connect(server.address, "p1/ann/").await;
    for packet in [
        "4",
        "9",
        "2",
        "49",
        "42{}",
        "42[]",
        "42[\"connect\"]",
        "40[]",
        "44{}",
        "42/ws,[\"x\"]",
        "41/ws,",
        "43/ws,1[]",
        "b4aGk=",
        "",
    ] {
        let (mut socket, _) = Socket::connect(server.address, "p1/eve/").await;
        socket.send(packet).await;
        let (code, _) = socket.closed().await.unwrap_or_else(|| panic!("a close frame after {packet:?}"));
        assert_eq!(code, 1002, "{packet:?}");
    }
    let (mut socket, _) = Socket::connect(server.address, "p1/eve/").await;
    socket.send_raw(&[0x81, 0x01, b'3']).await;
    assert_eq!(socket.closed().await.expect("closed").0, 1002, "an unmasked frame");
    let (mut socket, _) = Socket::connect(server.address, "p1/eve/").await;
    socket.send_raw(&[0x81, 0xff, 0, 0, 0, 0, 0, 0x0f, 0x42, 0x41, 1, 2, 3, 4]).await;
    assert_eq!(socket.closed().await.expect("closed").0, 1009, "too large, said before it came");
    server.publish("p1", "lead:created", json!({ "agentId": "ann" })).await;
    healthy.expect("lead:created").await;
}

#[tokio::test]
async fn binary_attachments_are_put_into_their_message() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    ann.send(r#"451-0["say",{"text":"x","file":{"_placeholder":true,"num":0}}]"#).await;
    ann.send_frame(2, b"hello").await;
    let mut packets = [ann.packet().await.expect("one"), ann.packet().await.expect("two")];
    packets.sort();
    assert!(packets[0].starts_with("42[\"said\"") && packets[1].starts_with("430[{"), "{packets:?}");
    ann.send_frame(2, b"unannounced").await;
    assert_eq!(ann.closed().await.expect("closed").0, 1002);
}

#[tokio::test]
async fn messages_over_the_rate_are_refused_and_a_flood_ends_the_transport() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let mut refused = 0;
    for _ in 0..80 {
        let answer = socket.ask("leave", &[json!("berth:x")]).await;
        if answer["ok"] == false {
            assert_eq!(answer["error"]["code"], "limit.messages");
            refused += 1;
        }
    }
    assert!(refused > 0);
    assert_eq!(socket.early[0][0], "limit:exceeded");
    for _ in 0..1_000 {
        socket.emit("leave", &[json!("berth:x")]).await;
    }
    assert_eq!(socket.closed().await.expect("closed"), (1008, "over the rate".to_owned()));
}

#[tokio::test]
async fn a_credential_is_renewed_and_ends() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/admin/3600").await;
    socket.ask("join", &[json!("vault:b1")]).await;
    let other = socket.ask("auth", &[json!({ "token": "p2/ann/" })]).await;
    assert_eq!(other["error"]["code"], "auth.other_user");
    let answer = socket.ask("auth", &[json!({ "token": "p1/ann/sales/2" })]).await;
    assert_eq!((&answer["roles"], &answer["rooms"]), (&json!(["sales"]), &json!(["port:p1", "user:ann"])));
    let expiring = match socket.early.pop() {
        Some(event) => event[1].clone(),
        None => socket.expect("auth:expiring").await,
    };
    assert!(expiring["seconds"].as_u64().is_some_and(|seconds| seconds <= 2), "{expiring}");
    assert_eq!(socket.closed().await.expect("closed"), (1008, "the credential has expired".to_owned()));
}

#[tokio::test]
async fn sockets_per_user_are_limited() {
    let server = Server::with(Options { max_per_user: 2, ..Options::default() }).await;
    let (first, _) = Socket::connect(server.address, "p1/ann/").await;
    let _second = Socket::connect(server.address, "p1/ann/").await;
    let auth = || json!({ "token": "p1/ann/" });
    let error = Socket::open(server.address).await.join("/", auth()).await.map(|_| ()).expect_err("refused");
    assert_eq!(error["data"]["code"], "limit.connections");
    let _other = Socket::connect(server.address, "p2/ann/").await;
    drop(first);
    loop {
        if Socket::open(server.address).await.join("/", auth()).await.is_ok() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_administrator_sees_sockets_and_disconnects_them() {
    let server = Server::start().await;
    let (mut ann, _) = Socket::connect(server.address, "p1/ann/").await;
    let (mut bob, _) = Socket::connect(server.address, "p1/bob/").await;
    let tenant = tidewire_core::TenantId::new("p1").expect("tenant");
    let all = Whom { tenant: Some(tenant.clone()), ..Whom::default() };
    let mut users: Vec<_> = server
        .gateway
        .connections(&all, None, 10)
        .expect("a page")
        .items
        .into_iter()
        .filter_map(|info| info.user_id)
        .collect();
    users.sort();
    assert_eq!(users, ["ann", "bob"]);
    let rooms = server.gateway.rooms(Some(&tenant), None, 10).items;
    let rooms: Vec<_> = rooms.iter().map(|room| (room.room.as_str(), room.members)).collect();
    assert_eq!(rooms, [("port:p1", 2), ("user:ann", 1), ("user:bob", 1)]);
    assert_eq!(server.gateway.disconnect(&Whom { user: Some("ann".to_owned()), ..all }), 1);
    assert_eq!(ann.closed().await.expect("closed").0, 1008);
    server.publish("p1", "user:typing", json!({ "n": 1 })).await;
    bob.expect("user:typing").await;
    assert_eq!(server.gateway.rooms(Some(&tenant), None, 10).items.len(), 2);
}

#[tokio::test]
async fn draining_closes_transports_and_refuses_new_ones() {
    let server = Server::start().await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    let poll = Polling::open(server.address, "").await;
    let waiting = tokio::spawn(async move { poll.get().await });
    while server.gateway.stats().connections < 2 {
        tokio::task::yield_now().await;
    }
    server.gateway.drain(Duration::from_millis(20)).await;
    assert_eq!(socket.closed().await.expect("closed").0, 1012);
    assert!(matches!(waiting.await.expect("answered"), answer if answer.body == "1" || answer.status == 400));
    assert_eq!(Socket::open_with(server.address, "", "").await.map(|_| ()), Err(503));
    assert_eq!(http(server.address, "GET", "EIO=4&transport=polling", "", "").await.status, 503);
    assert_eq!(server.gateway.stats().connections, 0);
}

#[tokio::test]
async fn a_transport_without_a_connect_or_without_pongs_is_closed() {
    let options = Options {
        connect_timeout: Duration::from_millis(200),
        ping_interval: Duration::from_millis(300),
        ping_timeout: Duration::from_millis(200),
        ..Options::default()
    };
    let server = Server::with(options).await;
    let mut idle = Socket::open(server.address).await;
    let (mut silent, _) = Socket::connect(server.address, "p1/ann/").await;
    assert_eq!(idle.closed().await.expect("closed").0, 1008);
    assert_eq!(silent.any_packet().await.as_deref(), Some("2"));
    silent.send("3").await;
    assert_eq!(silent.any_packet().await.as_deref(), Some("2"), "a pong keeps it");
    assert_eq!(silent.closed().await.expect("closed"), (1001, "no pong in time".to_owned()));
    assert_eq!(server.gateway.stats().closed_silent, 1);
}

#[tokio::test]
async fn who_sends_is_not_taken_for_silent() {
    let ping_timeout = Duration::from_secs(1);
    let ping_interval = Duration::from_millis(100);
    let server = Server::with(Options { ping_interval, ping_timeout, ..Options::default() }).await;
    let (mut busy, _) = Socket::connect(server.address, "p1/ann/").await;
    // Its pong is behind messages for two and a half times as long as a pong may take.
    let mut ticks = tokio::time::interval(ping_timeout / 4);
    for _ in 0..10 {
        ticks.tick().await;
        busy.emit("leave", &[json!("berth:x")]).await;
    }
    assert_eq!(busy.any_packet().await.as_deref(), Some("2"));
    busy.send("3").await;
    assert_eq!(busy.any_packet().await.as_deref(), Some("2"), "the next one, as after any pong");
    assert_eq!(busy.closed().await.expect("closed"), (1001, "no pong in time".to_owned()), "and then nothing came");
}

#[tokio::test]
async fn what_the_queue_to_the_relay_cannot_take_is_read_from_the_log() {
    let server = Server::with(Options { max_relay_events: 3, ..Options::default() }).await;
    let (mut socket, _) = Socket::connect(server.address, "p1/ann/").await;
    server.store.mute.store(true, Ordering::SeqCst);
    for n in 0..5 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }
    server.store.mute.store(false, Ordering::SeqCst);
    for n in 5..40 {
        server.publish("p1", "lead:created", json!({ "agentId": "ann", "n": n })).await;
    }
    for n in 0..40 {
        assert_eq!(socket.expect("lead:created").await["n"], n);
    }
    assert_eq!(socket.offset.as_deref(), Some("e1.40+0"));
}
