use super::{connection, frame, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A frame as servers send them.
fn server_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x80 | opcode];
    match payload.len() {
        short @ ..126 => bytes.push(short as u8),
        medium => {
            bytes.push(126);
            bytes.extend_from_slice(&(medium as u16).to_be_bytes());
        }
    }
    bytes.extend_from_slice(payload);
    bytes
}

/// The next message of a client, unmasked. The tests' messages are short and come one at a time.
async fn client_message(stream: &mut TcpStream) -> String {
    let mut header = [0; 6];
    stream.read_exact(&mut header).await.unwrap();
    assert_eq!(header[1] & 0x80, 0x80, "clients mask their frames");
    let mut payload = vec![0; usize::from(header[1] & 0x7f)];
    stream.read_exact(&mut payload).await.unwrap();
    payload.iter_mut().zip(header[2..].iter().cycle()).for_each(|(byte, key)| *byte ^= key);
    String::from_utf8(payload).unwrap()
}

/// A fleet of one in the namespace `/ws`, and the server's end of its connection just after the CONNECT packet was answered
/// with `answer`.
async fn one(answer: &'static str) -> (Result<Fleet>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut request).await.unwrap();
        }
        assert!(request.starts_with(b"GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"));
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        let mut bytes =
            format!("HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: {accept}\r\n\r\n").into_bytes();
        bytes.extend(server_frame(frame::TEXT, b"0{\"sid\":\"a\"}"));
        stream.write_all(&bytes).await.unwrap();
        assert_eq!(client_message(&mut stream).await, r#"40/ws,{"token":"berth \"7\""}"#);
        let mut bytes = server_frame(frame::TEXT, answer.as_bytes());
        bytes.extend(server_frame(frame::TEXT, br#"42/ws,["connected",{"socketId":"b"}]"#));
        stream.write_all(&bytes).await.unwrap();
        stream
    });
    let fleet = Fleet::connect(addr, "/socket.io/", "/ws", 1, |_| "berth \"7\"".to_owned(), 1).await;
    (fleet, server.await.unwrap())
}

const ACCEPTED: &str = r#"40/ws,{"sid":"b"}"#;
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn events_are_counted_however_the_bytes_are_cut() {
    let (fleet, mut server) = one(ACCEPTED).await;
    let fleet = fleet.unwrap();
    let long = format!(r#"42/ws,["moved",{{"note":"{}"}}]"#, "x".repeat(3000));
    let mut bytes = server_frame(frame::TEXT, br#"42/ws,["moved",{}]"#);
    bytes.extend(server_frame(frame::TEXT, long.as_bytes()));
    bytes.extend(server_frame(frame::TEXT, br#"451-/ws,["photo",{"_placeholder":true,"num":0}]"#));
    bytes.extend(server_frame(frame::BINARY, &[7; 10]));
    bytes.extend(server_frame(frame::TEXT, b"43/ws,1[]"));
    server.set_nodelay(true).unwrap();
    for piece in bytes.chunks(2) {
        server.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    server.write_all(&bytes).await.unwrap();
    fleet.wait_received(6, PATIENCE).await.unwrap();
    assert_eq!(fleet.received(), 6);
    assert_eq!((fleet.lost(), fleet.size()), (0, 1));
    fleet.close().await;
}

#[tokio::test]
async fn heartbeats_of_both_protocols_are_answered() {
    let (fleet, mut server) = one(ACCEPTED).await;
    let fleet = fleet.unwrap();
    server.write_all(&server_frame(frame::TEXT, b"2")).await.unwrap();
    assert_eq!(client_message(&mut server).await, "3");
    server.write_all(&server_frame(frame::PING, b"are you there")).await.unwrap();
    assert_eq!(client_message(&mut server).await, "are you there");
    fleet.close().await;
}

#[tokio::test]
async fn the_time_of_sending_becomes_a_latency() {
    let (fleet, mut server) = one(ACCEPTED).await;
    let fleet = fleet.unwrap();
    fleet.measure_latency();
    let sent = now_micros() - 5_000;
    for event in [format!(r#"42/ws,["moved",{{"t":{sent},"berth":7}},"e.1"]"#), r#"42/ws,["untimed",{}]"#.to_owned()] {
        server.write_all(&server_frame(frame::TEXT, event.as_bytes())).await.unwrap();
    }
    fleet.wait_received(2, PATIENCE).await.unwrap();
    let latency = fleet.take_latency();
    assert_eq!(latency.count(), 1);
    assert!(
        latency.quantile(1.0) >= Duration::from_millis(5) && latency.quantile(1.0) < PATIENCE,
        "{:?}",
        latency.quantile(1.0)
    );
    assert_eq!(fleet.take_latency().count(), 0);
}

#[tokio::test]
async fn who_stops_reading_stays_connected_and_gets_nothing() {
    let (fleet, mut server) = one(ACCEPTED).await;
    let fleet = fleet.unwrap();
    let event = server_frame(frame::TEXT, br#"42/ws,["moved",{}]"#);
    server.write_all(&event).await.unwrap();
    fleet.wait_received(1, PATIENCE).await.unwrap();
    fleet.stop_reading();
    server.write_all(&event).await.unwrap();
    assert!(fleet.wait_received(2, Duration::from_millis(20)).await.is_err());
    assert_eq!((fleet.received(), fleet.lost()), (1, 0));
}

/// Accepts one connection, answers the handshake and then the CONNECT packet, which it returns, with `frames`.
async fn accept(listener: &TcpListener, frames: &[&str]) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_buf(&mut request).await.unwrap();
    }
    let head = "HTTP/1.1 101 Switching Protocols\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.write_all(&[head.as_bytes(), &server_frame(frame::TEXT, b"0{}")].concat()).await.unwrap();
    let connect = client_message(&mut stream).await;
    for text in frames {
        stream.write_all(&server_frame(frame::TEXT, text.as_bytes())).await.unwrap();
    }
    (connect, stream)
}

#[tokio::test]
async fn a_client_that_comes_back_names_its_session_and_counts_what_it_missed() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let memories = [Arc::<Memory>::default()];
    let connect = || Fleet::remembering(addr, "/socket.io/", "/", 1, |_| String::new(), 1, Some(&memories));
    let first =
        [r#"40{"sid":"a","pid":"p"}"#, r#"42["connected",{"recovered":false},"e.4"]"#, r#"42["moved",{},"e.5"]"#];
    let ((_, stream), fleet) = tokio::join!(accept(&listener, &first), connect());
    fleet.unwrap().wait_received(1, PATIENCE).await.unwrap();
    drop(stream);
    let second = [
        r#"42["moved",{},"e.6"]"#,
        r#"42["moved",{},"e.7"]"#,
        r#"40{"sid":"a","pid":"p"}"#,
        r#"42["connected",{"recovered":true},"e.7"]"#,
        r#"42["moved",{},"e.8"]"#,
    ];
    let ((connect, _stream), fleet) = tokio::join!(accept(&listener, &second), connect());
    assert_eq!(connect, r#"40{"offset":"e.5","pid":"p"}"#);
    fleet.unwrap().wait_received(3, PATIENCE).await.unwrap();
    assert_eq!((memories[0].position(), memories[0].faults(), memories[0].recovered()), (8, 0, 1));
}

#[tokio::test]
async fn a_refused_client_fails_the_fleet_with_the_servers_reason() {
    let (fleet, _server) = one(r#"44/ws,{"message":"Invalid token"}"#).await;
    let error = format!("{:#}", fleet.err().unwrap());
    assert!(error.contains("Invalid token"), "{error}");
}

#[tokio::test]
async fn a_lost_connection_ends_the_wait_with_its_reason() {
    let (fleet, mut server) = one(ACCEPTED).await;
    let fleet = fleet.unwrap();
    let mut bytes = server_frame(frame::TEXT, br#"42/ws,["moved",{}]"#);
    bytes.extend(server_frame(frame::CLOSE, &[0x03, 0xe9, b'b', b'y', b'e']));
    let wait = fleet.wait_received(2, PATIENCE);
    let (waited, wrote) = tokio::join!(wait, server.write_all(&bytes));
    wrote.unwrap();
    let error = waited.unwrap_err().to_string();
    assert!(error.contains("received 1") && error.contains("1001 bye"), "{error}");
    assert_eq!(fleet.lost(), 1);
}

#[tokio::test]
async fn a_wait_for_what_never_comes_ends_at_its_deadline() {
    let (fleet, _server) = one(ACCEPTED).await;
    let error = fleet.unwrap().wait_received(1, Duration::from_millis(20)).await.unwrap_err().to_string();
    assert!(error.contains("expected 1 events within 20ms, received 0"), "{error}");
}

#[test]
fn large_fleets_on_loopback_use_more_than_one_source() {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 7400));
    assert_eq!(source_of(loopback, 24_999), None);
    assert_eq!(source_of(loopback, 25_000), Some(Ipv4Addr::new(127, 0, 0, 2)));
    assert_eq!(source_of(loopback, 75_000), Some(Ipv4Addr::new(127, 0, 0, 4)));
    assert_eq!(source_of(SocketAddr::from(([10, 0, 0, 1], 7400)), 75_000), None);
}

#[test]
fn frames_that_no_server_may_send_are_refused() {
    let mut masked = Vec::new();
    frame::encode(frame::TEXT, b"x", &mut masked);
    assert!(frame::decode(&masked).is_err());
    assert!(frame::decode(&[0xc1, 0]).is_err(), "compressed");
    assert!(frame::decode(&[0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0]).is_err(), "a terabyte");
    assert_eq!(frame::decode(&[0x81]).unwrap(), None);
}

#[tokio::test]
async fn a_client_binds_its_source_and_shows_what_is_no_websocket_server() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let tally = one(ACCEPTED).await.0.unwrap().tally.clone();
    let source = Ipv4Addr::new(127, 0, 0, 2);
    let server = async {
        let (mut stream, client) = listener.accept().await.unwrap();
        assert_eq!(client.ip(), source);
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\nno such page").await.unwrap();
        stream
    };
    let (_stream, opened) = tokio::join!(server, connection::open(addr, Some(source), "/socket.io/", "", None, tally));
    let error = format!("{:#}", opened.err().unwrap());
    assert!(error.contains("404") && error.contains("no such page"), "{error}");
}
