//! What one client makes of the bytes it reads: counted events, and heartbeats to answer.

use super::{Memory, Tally, frame, now_micros};
use crate::report::Histogram;
use std::sync::{Arc, MutexGuard, PoisonError, atomic::Ordering};

/// A rest of this many bytes keeps its allocation for the next read; a larger one gives it back.
const KEPT_REST_BYTES: usize = 1024;

/// The reading half of a client without its socket. Empty between reads unless a frame arrived in part.
pub(super) struct Inbox {
    rest: Vec<u8>,
    /// Where `"t":` was found last: the same place in the next event, as long as the events look alike.
    time_at: usize,
    memory: Option<Arc<Memory>>,
}

/// What one read amounted to, added to the fleet's counters at once.
struct Batch<'a> {
    received: u64,
    /// The clock at this read and where to record, while latencies are measured.
    timing: Option<(u64, MutexGuard<'a, Histogram>)>,
}

impl Inbox {
    /// With bytes that were read but not used during the handshake.
    pub(super) fn new(rest: Vec<u8>, memory: Option<Arc<Memory>>) -> Self {
        Self { rest, time_at: 0, memory }
    }

    /// Takes what was read, counts all events that are complete by now and appends due answers to `replies`.
    ///
    /// # Errors
    /// Why the connection is over: the server said so or broke the protocol.
    pub(super) fn take(&mut self, read: &[u8], tally: &Tally, replies: &mut Vec<u8>) -> Result<(), String> {
        let timing = tally
            .timed
            .load(Ordering::Relaxed)
            .then(|| (now_micros(), tally.latency.lock().unwrap_or_else(PoisonError::into_inner)));
        let mut batch = Batch { received: 0, timing };
        let result = if self.rest.is_empty() {
            let (used, result) = self.count(read, tally, &mut batch, replies);
            self.rest.extend_from_slice(&read[used..]);
            result
        } else {
            self.rest.extend_from_slice(read);
            let mut rest = std::mem::take(&mut self.rest);
            let (used, result) = self.count(&rest, tally, &mut batch, replies);
            rest.drain(..used);
            if rest.is_empty() && rest.capacity() > KEPT_REST_BYTES {
                rest = Vec::new();
            }
            self.rest = rest;
            result
        };
        batch.add_to(tally);
        result
    }

    /// Counts the complete frames in `bytes` and returns how many bytes they take.
    fn count(
        &mut self,
        bytes: &[u8],
        tally: &Tally,
        batch: &mut Batch<'_>,
        replies: &mut Vec<u8>,
    ) -> (usize, Result<(), String>) {
        let mut used = 0;
        loop {
            let frame = match frame::decode(&bytes[used..]) {
                Ok(Some(frame)) => frame,
                Ok(None) => return (used, Ok(())),
                Err(broken) => return (used, Err(broken.to_owned())),
            };
            used += frame.len;
            match frame.opcode {
                frame::TEXT => {
                    if let Err(over) = self.packet(frame.payload, tally, batch, replies) {
                        return (used, Err(over));
                    }
                }
                // Attachments and later fragments belong to an event that its first frame has counted.
                frame::BINARY | frame::CONTINUATION | frame::PONG => {}
                frame::PING => frame::encode(frame::PONG, frame.payload, replies),
                frame::CLOSE => return (used, Err(close_reason(frame.payload))),
                other => return (used, Err(format!("the server sent a WebSocket frame with opcode {other}"))),
            }
        }
    }

    /// One Engine.IO packet: its first byte is the Engine.IO type, its second the Socket.IO type of a message.
    fn packet(
        &mut self,
        packet: &[u8],
        tally: &Tally,
        batch: &mut Batch<'_>,
        replies: &mut Vec<u8>,
    ) -> Result<(), String> {
        match packet {
            [b'4', b'2' | b'5', ..] => {
                let is_greeting = packet.starts_with(&tally.packets.greeting);
                if let Some(memory) = &self.memory {
                    memory.note(packet, is_greeting);
                }
                if is_greeting {
                    return Ok(());
                }
                batch.received += 1;
                if let Some((now, latency)) = &mut batch.timing
                    && let Some(sent) = self.sent_at(packet)
                {
                    latency.record_ns(now.saturating_sub(sent).saturating_mul(1000));
                }
                Ok(())
            }
            [b'2', data @ ..] => {
                let mut pong = Vec::with_capacity(packet.len());
                pong.push(b'3');
                pong.extend_from_slice(data);
                frame::encode(frame::TEXT, &pong, replies);
                Ok(())
            }
            [b'1', ..] => Err("the server closed the Engine.IO session".to_owned()),
            _ if packet.starts_with(&tally.packets.disconnect) => {
                Err(format!("the server disconnected the socket from {}", tally.packets.namespace))
            }
            _ => Ok(()),
        }
    }

    /// The number after the first `"t":` of the packet.
    fn sent_at(&mut self, packet: &[u8]) -> Option<u64> {
        const KEY: &[u8] = b"\"t\":";
        let at_same_place = packet.get(self.time_at..).is_some_and(|tail| tail.starts_with(KEY));
        if !at_same_place {
            self.time_at = packet.windows(KEY.len()).position(|window| window == KEY)?;
        }
        let number = &packet[self.time_at + KEY.len()..];
        let digits = number.iter().take_while(|byte| byte.is_ascii_digit()).count();
        std::str::from_utf8(&number[..digits]).ok()?.parse().ok()
    }
}

impl Batch<'_> {
    fn add_to(self, tally: &Tally) {
        // The latencies are in the histogram before the count tells the waiting side to look.
        drop(self.timing);
        if self.received > 0 {
            let before = tally.received.fetch_add(self.received, Ordering::SeqCst);
            let wanted = tally.wanted.load(Ordering::SeqCst);
            if before < wanted && wanted <= before + self.received {
                tally.changed.notify_one();
            }
        }
    }
}

/// A close frame holds a code and a text, or nothing (RFC 6455, section 5.5.1).
fn close_reason(payload: &[u8]) -> String {
    match payload {
        [high, low, text @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            format!("the server closed the WebSocket with code {code} {}", String::from_utf8_lossy(text))
        }
        _ => "the server closed the WebSocket without a code".to_owned(),
    }
}
