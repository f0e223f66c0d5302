//! A socketioxide server as its documentation sets one up, for comparison under the same load.
//!
//! ```text
//! tidewire-bench-socketioxide PORT EMIT_PORT
//! ```
//!
//! Both ports do what those of the Node.js peer do (see `../socketio/server.mjs`). One thread, because the bench gives a server one core;
//! mimalloc and thin link-time optimisation, as Tidewire has them.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use axum::serve::ListenerExt;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use socketioxide::SocketIo;
use socketioxide::extract::{SocketRef, TryData};
use tokio::net::{TcpListener, TcpStream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Far above any sensible load; it keeps a mistyped number from freezing the process.
const MAX_COUNT: usize = 100_000;
const MAX_SIZE: usize = 1_000_000;

/// What a client sends with CONNECT: the rooms it joins, separated by commas.
#[derive(Deserialize)]
struct Auth {
    token: String,
}

#[derive(Deserialize)]
struct Emit {
    /// Who gets the events; several names, separated by commas, get one after the other.
    room: String,
    #[serde(default = "one")]
    count: usize,
    #[serde(default = "usual_size")]
    size: usize,
    t: Option<u64>,
}

fn one() -> usize {
    1
}

fn usual_size() -> usize {
    300
}

#[derive(Serialize)]
struct Data {
    t: u64,
    pad: String,
}

impl Data {
    fn of_size(size: usize, t: u64) -> Self {
        let bare = json!({ "t": t, "pad": "" }).to_string().len();
        Self { t, pad: "x".repeat(size.saturating_sub(bare)) }
    }
}

async fn connected(socket: SocketRef, auth: TryData<Auth>) {
    let rooms: Vec<String> = match auth.0 {
        Ok(auth) => auth.token.split(',').filter(|room| !room.is_empty()).map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    };
    socket.join(rooms.clone());
    // Tidewire greets its sockets as well, so both sides pay for it when connects are measured.
    if let Err(error) = socket.emit("connected", &json!({ "socketId": socket.id, "rooms": rooms })) {
        eprintln!("a greeting was not sent: {error}");
    }
}

async fn emit(State(io): State<SocketIo>, Query(emit): Query<Emit>) -> Result<String, (StatusCode, String)> {
    if emit.count > MAX_COUNT || emit.size > MAX_SIZE {
        return Err((StatusCode::BAD_REQUEST, format!("at most {MAX_COUNT} events of {MAX_SIZE} bytes")));
    }
    let failed = |what: String| (StatusCode::INTERNAL_SERVER_ERROR, what);
    let mut emitted = 0;
    for room in emit.room.split(',') {
        for _ in 0..emit.count {
            let data = Data::of_size(emit.size, emit.t.unwrap_or_else(now_micros));
            io.to(room.to_owned()).emit("bench", &data).await.map_err(|error| failed(error.to_string()))?;
            emitted += 1;
        }
    }
    let answer: Value = json!({ "emitted": emitted });
    Ok(answer.to_string())
}

fn now_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ports: Vec<u16> = std::env::args().skip(1).filter_map(|port| port.parse().ok()).collect();
    let [port, emit_port] = ports[..] else { return Err("usage: tidewire-bench-socketioxide PORT EMIT_PORT".into()) };
    // Small packets would wait for the acknowledgement of the one before, which neither of the others lets happen.
    let at_once = |stream: &mut TcpStream| drop(stream.set_nodelay(true));
    let (layer, io) = SocketIo::new_layer();
    io.ns("/", connected);
    let sockets = TcpListener::bind(("127.0.0.1", port)).await?.tap_io(at_once);
    // The emit port opens last: whoever waits for it finds both.
    let emitter = TcpListener::bind(("127.0.0.1", emit_port)).await?.tap_io(at_once);
    tokio::spawn(async move { axum::serve(emitter, Router::new().route("/emit", post(emit)).with_state(io)).await });
    axum::serve(sockets, Router::new().layer(layer)).await?;
    Ok(())
}
