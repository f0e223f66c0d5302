//! Engine.IO over HTTP polling: one GET that waits, one POST at a time.

use std::collections::HashMap;
use std::fmt::Display;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use parking_lot::Mutex;
use tidewire_wire::engine::{self, Packet, PacketType, PollPacket, TransportError};

use crate::auth::Handshake;
use crate::gateway::Shared;
use crate::http::{Answer, Refused, plain};
use crate::outbox::Taken;
use crate::session::{Closing, Opening, Probe, Session, Step, Transport};

/// The most packets in one POST. The body's size is the real bound; this one keeps tiny packets from costing more than it.
const MAX_PACKETS: usize = 10_000;
/// The most bytes in one answer to a GET, if there is more than one packet.
const MAX_ANSWER: usize = 1024 * 1024;
/// How long a poll may still wait while a WebSocket has answered the probe and the client wants to move. As long a poll that overtook the
/// packet of the move, which comes on another connection, is taken for one that came after it.
const PROBE_WAIT: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=UTF-8";

/// Sessions that their clients closed, until the last poll of each has been answered.
///
/// A client's poll and the POST that closes its session come on two connections, so the close may be seen first. The poll was sent to a
/// session that was open, and is answered as one that was waiting: with a noop. It is one answer for each close, whichever came first.
#[derive(Default)]
pub(crate) struct Partings(Mutex<HashMap<Arc<str>, Instant>>);

impl Partings {
    /// With more, a poll that comes too late is told that its session is unknown.
    const MOST: usize = 10_000;
    const KEPT: Duration = Duration::from_secs(5);

    fn put(&self, session: &Arc<str>) {
        let mut partings = self.0.lock();
        if partings.len() < Self::MOST {
            partings.insert(session.clone(), Instant::now());
        }
    }

    /// The answer to a poll of a session that its client has closed, if that is still owed.
    pub(crate) fn answer(&self, session: &str) -> Option<Answer> {
        let since = self.0.lock().remove(session)?;
        (since.elapsed() < Self::KEPT).then(|| plain(StatusCode::OK, TEXT, PacketType::Noop.as_str()))
    }

    pub(crate) fn tidy(&self) {
        let mut partings = self.0.lock();
        partings.retain(|_, since| since.elapsed() < Self::KEPT);
        partings.shrink_to_fit();
    }
}

/// Opens a session.
pub(crate) fn open(shared: &Arc<Shared>, handshake: Handshake) -> Result<Answer, Refused> {
    let session = shared.open(handshake, Opening::Polling)?;
    Ok(plain(StatusCode::OK, TEXT, session.open_packet(false)))
}

/// Waits for packets. A second GET at the same time ends the session: two readers would share one stream.
pub(crate) async fn get(session: &Arc<Session>) -> Result<Answer, Refused> {
    let begin = |transport: &mut Transport| match transport {
        Transport::Polling(polling) if polling.getting => Begin::Twice,
        Transport::Polling(polling) => {
            polling.getting = true;
            Begin::Wait(polling.probe)
        }
        Transport::WebSocket | Transport::Stream => Begin::Moved,
    };
    let Some(begun) = session.transport(begin) else {
        return session.shared.partings.answer(&session.id).ok_or(TransportError::UnknownSid.into());
    };
    let probe = match begun {
        Begin::Wait(probe) => probe,
        Begin::Twice => {
            // The first one is answered with a close packet by the end of the session.
            session.close(Closing::Malformed(1002, "two polls at once"));
            return Err(TransportError::BadRequest.into());
        }
        Begin::Moved => return Err(TransportError::BadRequest.into()),
    };
    session.shared.stats.polls.up();
    let mut getting = Getting { session, answered: false };
    if probe == Probe::Answered {
        session.outbox.forget_nudge();
    }
    let taken = poll_fn(|cx| session.outbox.poll_take(cx, MAX_ANSWER));
    let taken = match probe {
        Probe::Answered => tokio::time::timeout(PROBE_WAIT, taken).await.unwrap_or(Taken::Noop),
        Probe::None | Probe::Opened => taken.await,
    };
    getting.answered = true;
    drop(getting);
    // A client that waits for its poll before it moves is not meant: this one has sent both.
    let moved = || session.transport(|transport| *transport == Transport::WebSocket) == Some(true);
    if matches!(taken, Taken::Noop) && probe == Probe::Answered && moved() {
        return Err(TransportError::BadRequest.into());
    }
    let body = match taken {
        Taken::Frames(frames) => {
            let mut body = Vec::with_capacity(frames.iter().map(|frame| frame.bytes.len()).sum());
            engine::polling_join(frames.iter().flat_map(|frame| PollPacket::from_frames(&frame.bytes)), &mut body);
            let mut written = session.shared.stats.latency.written();
            frames.iter().for_each(|frame| written.add(frame.since));
            drop(written);
            session.drained();
            body
        }
        Taken::Noop => PacketType::Noop.as_str().as_bytes().to_vec(),
        Taken::Ended(Closing::Client) => {
            session.shared.partings.answer(&session.id);
            PacketType::Noop.as_str().as_bytes().to_vec()
        }
        Taken::Ended(_) => PacketType::Close.as_str().as_bytes().to_vec(),
    };
    Ok(plain(StatusCode::OK, TEXT, body))
}

/// What a GET finds.
enum Begin {
    Wait(Probe),
    Twice,
    /// The session is on a WebSocket.
    Moved,
}

/// A GET in flight. When the client gives it up before it is answered, the session ends: what was taken for it would be lost.
struct Getting<'a> {
    session: &'a Arc<Session>,
    answered: bool,
}

impl Drop for Getting<'_> {
    fn drop(&mut self) {
        self.session.shared.stats.polls.down();
        if !self.answered {
            return self.session.close(Closing::Lost);
        }
        self.session.transport(|transport| {
            if let Transport::Polling(polling) = transport {
                polling.getting = false;
            }
        });
    }
}

/// Takes packets. They are dealt with when the answer leaves; that is the client's signal to send more.
pub(crate) async fn post<B>(session: &Arc<Session>, request: Request<B>) -> Result<Answer, Refused>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Display,
{
    let begin = |transport: &mut Transport| match transport {
        Transport::Polling(polling) => Some(!std::mem::replace(&mut polling.posting, true)),
        Transport::WebSocket | Transport::Stream => None,
    };
    match session.transport(begin).ok_or(TransportError::UnknownSid)? {
        Some(true) => {}
        Some(false) => {
            session.close(Closing::Malformed(1002, "two posts at once"));
            return Err(TransportError::BadRequest.into());
        }
        None => return Err(TransportError::BadRequest.into()),
    }
    let posting = Posting(session.clone());
    let kind = request.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.starts_with("application/octet-stream") {
        session.close(Closing::Malformed(1002, "binary bodies are of an older revision"));
        return Err(TransportError::BadRequest.into());
    }
    let most = session.shared.options.max_message;
    // What such a body said is lost, and the client library ends the session on its side as well.
    let too_large = || {
        session.close(Closing::Malformed(1009, "the body is larger than this server accepts"));
        Refused::Status(StatusCode::PAYLOAD_TOO_LARGE)
    };
    if http_body::Body::size_hint(request.body()).lower() > most as u64 {
        return Err(too_large());
    }
    let body =
        match Limited::new(Box::pin(request.into_body().map_err(|error| error.to_string())), most).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<http_body_util::LengthLimitError>() => return Err(too_large()),
            Err(_) => {
                session.close(Closing::Lost);
                return Err(TransportError::BadRequest.into());
            }
        };
    // On a task of its own, so that a client which gives up does not stop a message half way.
    let work = session.shared.tracker.spawn(receive(posting, body));
    match work.await {
        Ok(Ok(())) => Ok(plain(StatusCode::OK, "text/html", "ok")),
        Ok(Err(Closing::Client)) => {
            // Before the end, so that a poll finds either the session or this.
            session.shared.partings.put(&session.id);
            session.close(Closing::Client);
            Ok(plain(StatusCode::OK, "text/html", "ok"))
        }
        Ok(Err(closing)) => {
            session.close(closing);
            Err(TransportError::BadRequest.into())
        }
        Err(_) => {
            session.close(Closing::Unavailable);
            Err(Refused::Status(StatusCode::INTERNAL_SERVER_ERROR))
        }
    }
}

async fn receive(posting: Posting, body: Bytes) -> Result<(), Closing> {
    let session = &posting.0;
    let text = std::str::from_utf8(&body).map_err(|_| Closing::Malformed(1007, "the body is not UTF-8"))?;
    // The whole body is checked before its first packet counts.
    engine::parse_polling(text, MAX_PACKETS).map_err(Closing::malformed)?;
    for packet in text.split(engine::SEPARATOR) {
        // Nothing more counts after the session has ended.
        if session.transport(|_| ()).is_none() {
            return Ok(());
        }
        let step = match engine::parse_polling(packet, 1).map_err(Closing::malformed)?.pop() {
            Some(Packet::Binary(data)) => session.binary(data)?,
            Some(Packet::Text(..)) => session.text(body.slice_ref(packet.as_bytes()))?,
            None => Step::Done,
        };
        if let Step::Later(work) = step {
            work.await?;
        }
    }
    Ok(())
}

/// A POST in flight, until its last packet has been dealt with.
struct Posting(Arc<Session>);

impl Drop for Posting {
    fn drop(&mut self) {
        self.0.transport(|transport| {
            if let Transport::Polling(polling) = transport {
                polling.posting = false;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_owes_one_answer_and_closes_without_end_are_not_all_remembered() {
        let partings = Partings::default();
        for n in 0..Partings::MOST + 1 {
            partings.put(&n.to_string().into());
        }
        assert!(partings.answer("7").is_some());
        assert!(partings.answer("7").is_none(), "once");
        assert!(partings.answer(&Partings::MOST.to_string()).is_none(), "one too many");
    }
}
