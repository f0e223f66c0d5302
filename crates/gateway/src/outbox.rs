//! What waits to be written to one client, bounded in bytes.
//!
//! Over a bare TCP connection, events are written by the [`Writers`](crate::relay::writers::Writers), which take turns between tenants.
//! All else, and all over other transports, is written by the one task that waits for the queue. A write is one call for all frames that
//! wait, made with the queue locked: so there is one at a time, and the order is that of the queue.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::latency::{Latency, Stamp};
use crate::session::Closing;
use crate::stats::Counters;

/// The most frames in one write.
const MAX_SLICES: usize = 64;

/// What may happen to a frame that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// An answer or a packet of the protocol: never dropped, the transport is closed instead.
    Control,
    /// A copy of a logged event: the socket is parked and reads it from the log later.
    Logged,
    /// A copy of an event that may be dropped.
    Ephemeral,
}

/// A whole WebSocket frame, shared by everyone who gets it, or a packet's frame and those of its attachments, which must not be parted.
/// Polling uses their payloads.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) class: Class,
    /// Which state this is a value of: of two that wait only the later one matters.
    pub(crate) key: Option<NonZeroU64>,
    /// When the store told of the event in it.
    pub(crate) since: Stamp,
}

impl Frame {
    pub(crate) fn control(bytes: Bytes) -> Self {
        Self { bytes, class: Class::Control, key: None, since: Stamp::NONE }
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pushed {
    Queued,
    /// The same, and the caller is to give the session to the writers.
    Due,
    /// It did not fit. Of a logged event nothing is lost yet: the caller parks the socket.
    Full,
    /// The transport is closed or closing.
    Ended,
}

/// The queue between whoever has something for a client and who writes to it.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes in `frames`.
    bytes: usize,
    /// The task, when it waits.
    waker: Option<Waker>,
    /// The connection that the writers may write to.
    direct: Option<Arc<TcpStream>>,
    /// The writers have it on their list.
    due: bool,
    /// The connection takes nothing now: the task waits until it does, and new frames wake nobody.
    blocked: bool,
    /// The first frame is written in part. It has to be finished before anything else, and cannot be taken back.
    split: bool,
    /// A waiting poll is to be ended with a noop.
    nudged: bool,
    /// The frames are the WebSocket's: polls get nothing but a noop.
    moved: bool,
    ended: Option<Closing>,
}

/// How a write by the writers went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// All there was, or as much as the connection takes; or it was not for them.
    Enough,
    /// There is more for another turn.
    More,
    /// The connection is broken.
    Broken,
}

/// What a poll is answered with.
#[derive(Debug)]
pub(crate) enum Taken {
    Frames(Vec<Frame>),
    Noop,
    Ended(Closing),
}

impl Outbox {
    /// Queues a frame within `limit` bytes. One frame always fits into an empty queue, so that nothing is too large to be sent at all.
    /// A waiting frame of the same key gives way to it. What had to be dropped for it is counted.
    pub(crate) fn push(&self, frame: Frame, limit: usize, stats: &Counters) -> Pushed {
        let mut queue = self.0.lock();
        if queue.ended.is_some() {
            return Pushed::Ended;
        }
        // Whatever becomes of the newer value: the older one is outdated, and if the newer has to be read from the log, it comes later.
        if let Some(key) = frame.key
            && queue.remove(key)
        {
            stats.conflated.up();
        }
        let len = frame.bytes.len();
        // One frame of any size may wait, and does not keep answers out.
        let first = queue.frames.front().map_or(0, |first| first.bytes.len());
        let limit = if frame.class == Class::Control {
            limit.saturating_mul(2).max(limit.saturating_add(first))
        } else {
            limit
        };
        if queue.bytes > 0 && queue.bytes + len > limit {
            if frame.class == Class::Ephemeral {
                stats.drop_copies("backlog", 1);
                return Pushed::Full;
            }
            stats.drop_copies("backlog", queue.drop_ephemeral());
            if queue.bytes > 0 && queue.bytes + len > limit {
                return Pushed::Full;
            }
        }
        queue.bytes += len;
        let is_answer = frame.class == Class::Control;
        queue.frames.push_back(frame);
        if queue.blocked || (queue.due && !is_answer) {
            return Pushed::Queued;
        }
        if queue.direct.is_some() && !is_answer {
            queue.due = true;
            return Pushed::Due;
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Pushed::Queued
    }

    /// From now on the writers write events to this connection.
    pub(crate) fn attach(&self, connection: Arc<TcpStream>) {
        self.0.lock().direct = Some(connection);
    }

    /// The connection is its task's alone again, for good.
    pub(crate) fn detach(&self) {
        self.0.lock().direct = None;
    }

    /// The writers' side: one write of what waits. What the connection does not take waits for the task.
    pub(crate) fn write(&self, latency: &Latency) -> Wrote {
        let mut queue = self.0.lock();
        queue.due = false;
        if queue.blocked || queue.frames.is_empty() {
            return Wrote::Enough;
        }
        let Some(connection) = queue.direct.take() else { return Wrote::Enough };
        let wrote = queue.write(latency, |slices| match connection.try_write_vectored(slices) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            wrote => Poll::Ready(wrote),
        });
        queue.direct = Some(connection);
        match wrote {
            Poll::Ready(Err(_)) => Wrote::Broken,
            Poll::Ready(Ok(())) if queue.frames.is_empty() => {
                queue.frames = VecDeque::new();
                Wrote::Enough
            }
            Poll::Ready(Ok(())) => {
                queue.due = true;
                Wrote::More
            }
            Poll::Pending => {
                queue.blocked = true;
                let waker = queue.waker.take();
                drop(queue);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Wrote::Enough
            }
        }
    }

    /// Ends the queue: nothing more is taken in, and the writer is told. The first reason stays.
    pub(crate) fn end(&self, closing: Closing) {
        let mut queue = self.0.lock();
        queue.ended.get_or_insert(closing);
        if closing.drops_backlog() {
            queue.frames = VecDeque::new();
            queue.bytes = 0;
        }
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends a poll that waits, or the next one.
    pub(crate) fn nudge(&self) {
        self.end_poll(|queue| queue.nudged = true);
    }

    /// The next poll waits as usual: it knows by itself how long it may.
    pub(crate) fn forget_nudge(&self) {
        self.0.lock().nudged = false;
    }

    /// From now on the WebSocket's task takes the frames. A poll that was left open must not take any from it.
    pub(crate) fn hand_over(&self) {
        self.end_poll(|queue| queue.moved = true);
    }

    fn end_poll(&self, mark: impl FnOnce(&mut Queue)) {
        let mut queue = self.0.lock();
        mark(&mut queue);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The WebSocket task's side: writes all there is with `write`. Ready only at the end: the queue has ended and everything is written,
    /// or nothing more can be, which is [`Closing::Lost`]. Otherwise the task is woken when there is something to do.
    pub(crate) fn poll_write(
        &self,
        cx: &mut Context<'_>,
        latency: &Latency,
        mut write: impl FnMut(&mut Context<'_>, &[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<Closing>> {
        let mut queue = self.0.lock();
        queue.blocked = false;
        while !queue.frames.is_empty() {
            match queue.write(latency, |slices| write(cx, slices)) {
                Poll::Ready(done) => done?,
                Poll::Pending => {
                    queue.blocked = true;
                    break;
                }
            }
        }
        if let Some(closing) = queue.ended {
            // In the middle of a frame that the client does not take, a close frame would only be read as a part of it.
            let lost = queue.split || !queue.frames.is_empty();
            return Poll::Ready(Ok(if lost { Closing::Lost } else { closing }));
        }
        if queue.frames.is_empty() {
            // From here on the client may be idle for hours.
            queue.frames = VecDeque::new();
        }
        queue.wait(cx);
        Poll::Pending
    }

    /// The polling side: everything that waits, up to `limit` bytes but at least one frame.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, limit: usize) -> Poll<Taken> {
        let mut queue = self.0.lock();
        if queue.moved {
            return Poll::Ready(Taken::Noop);
        }
        if !queue.frames.is_empty() {
            queue.nudged = false;
            return Poll::Ready(Taken::Frames(queue.take(limit)));
        }
        if let Some(closing) = queue.ended {
            return Poll::Ready(Taken::Ended(closing));
        }
        if std::mem::take(&mut queue.nudged) {
            return Poll::Ready(Taken::Noop);
        }
        queue.wait(cx);
        Poll::Pending
    }

    /// Whether more than `limit` bytes wait for a connection that takes nothing. The task is woken when it does again.
    pub(crate) fn is_stuck(&self, limit: usize) -> bool {
        let queue = self.0.lock();
        queue.blocked && queue.bytes > limit
    }

    /// How many bytes wait.
    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

impl Queue {
    /// One call of `write` with what waits, and lets go of what it took. Not for an empty queue.
    fn write(
        &mut self,
        latency: &Latency,
        write: impl FnOnce(&[IoSlice<'_>]) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slice, frame) in slices.iter_mut().zip(&self.frames) {
            *slice = IoSlice::new(&frame.bytes);
            count += 1;
        }
        let mut written = ready!(write(&slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.bytes -= written;
        self.split = false;
        let mut whole = latency.written();
        while let Some(frame) = self.frames.front_mut().filter(|_| written > 0) {
            if frame.bytes.len() > written {
                frame.bytes.advance(written);
                // Neither dropped for lack of room nor replaced from now on.
                (frame.class, frame.key) = (Class::Control, None);
                self.split = true;
                break;
            }
            written -= frame.bytes.len();
            whole.add(frame.since);
            self.frames.pop_front();
        }
        Poll::Ready(Ok(()))
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if self.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.waker = Some(cx.waker().clone());
        }
    }

    /// Removes the frame with this key; there is at most one.
    fn remove(&mut self, key: NonZeroU64) -> bool {
        let Some(at) = self.frames.iter().position(|frame| frame.key == Some(key)) else { return false };
        self.bytes -= self.frames.remove(at).map_or(0, |frame| frame.bytes.len());
        true
    }

    fn drop_ephemeral(&mut self) -> u64 {
        let (mut freed, before) = (0, self.frames.len());
        self.frames.retain(|frame| {
            let keep = frame.class != Class::Ephemeral;
            freed += if keep { 0 } else { frame.bytes.len() };
            keep
        });
        self.bytes -= freed;
        (before - self.frames.len()) as u64
    }

    fn take(&mut self, limit: usize) -> Vec<Frame> {
        let mut taken = Vec::with_capacity(self.frames.len());
        let mut bytes = 0;
        while let Some(frame) = self.frames.front() {
            if bytes > 0 && bytes + frame.bytes.len() > limit {
                break;
            }
            bytes += frame.bytes.len();
            taken.extend(self.frames.pop_front());
        }
        self.bytes -= bytes;
        if self.frames.is_empty() {
            self.frames = VecDeque::new();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(class: Class, len: usize) -> Frame {
        Frame { bytes: Bytes::from(vec![0; len]), class, key: None, since: Stamp::NONE }
    }

    fn push(outbox: &Outbox, frame: Frame, limit: usize) -> Pushed {
        outbox.push(frame, limit, &Counters::default())
    }

    #[test]
    fn a_full_queue_drops_what_may_be_dropped_before_it_refuses() {
        let outbox = Outbox::default();
        assert_eq!(push(&outbox, frame(Class::Logged, 60), 100), Pushed::Queued);
        assert_eq!(push(&outbox, frame(Class::Ephemeral, 30), 100), Pushed::Queued);
        assert_eq!(push(&outbox, frame(Class::Ephemeral, 30), 100), Pushed::Full);
        assert_eq!(push(&outbox, frame(Class::Logged, 40), 100), Pushed::Queued, "the ephemeral one made room");
        assert_eq!(outbox.bytes(), 100);
        assert_eq!(push(&outbox, frame(Class::Logged, 1), 100), Pushed::Full);
        assert_eq!(push(&outbox, frame(Class::Control, 100), 100), Pushed::Queued);
        assert_eq!(push(&outbox, frame(Class::Control, 1), 100), Pushed::Full);
    }

    #[test]
    fn a_newer_value_takes_the_place_of_the_one_that_waits() {
        let outbox = Outbox::default();
        let value = |key, len| Frame { key: NonZeroU64::new(key), ..frame(Class::Logged, len) };
        for (key, len) in [(1, 40), (2, 30), (1, 20), (0, 10), (0, 10)] {
            assert_eq!(push(&outbox, value(key, len), 100), Pushed::Queued);
        }
        assert_eq!(outbox.bytes(), 70);
        let Poll::Ready(Taken::Frames(frames)) = outbox.poll_take(&Context::from_waker(Waker::noop()), 1000) else {
            panic!("frames")
        };
        assert_eq!(
            frames.iter().map(|frame| frame.bytes.len()).collect::<Vec<_>>(),
            [30, 20, 10, 10],
            "the newer one stands where it came"
        );
    }

    /// Writes as much as `most` bytes, then takes nothing. Answers what was written beside how it ended.
    fn write(outbox: &Outbox, most: usize) -> (usize, Option<Closing>) {
        let mut written = 0;
        let ended = outbox.poll_write(&mut Context::from_waker(Waker::noop()), &Latency::default(), |_, slices| {
            let len = slices.iter().map(|slice| slice.len()).sum::<usize>().min(most - written);
            written += len;
            if len == 0 { Poll::Pending } else { Poll::Ready(Ok(len)) }
        });
        match ended {
            Poll::Pending => (written, None),
            Poll::Ready(closing) => (written, Some(closing.expect("no error"))),
        }
    }

    #[test]
    fn one_frame_always_fits_and_bytes_count_until_written() {
        let outbox = Outbox::default();
        assert_eq!(push(&outbox, frame(Class::Logged, 500), 100), Pushed::Queued);
        assert_eq!(write(&outbox, 300), (300, None));
        assert_eq!(outbox.bytes(), 200);
        assert!(outbox.is_stuck(199) && !outbox.is_stuck(200));
        assert_eq!(push(&outbox, frame(Class::Logged, 1), 100), Pushed::Full, "the rest of it still waits");
        assert_eq!(write(&outbox, 1_000), (200, None));
        assert_eq!(push(&outbox, frame(Class::Logged, 500), 100), Pushed::Queued);
        assert!(!outbox.is_stuck(100), "it can be written, and whoever writes it need not tell the task");
    }

    #[test]
    fn a_frame_that_is_written_in_part_is_neither_dropped_nor_replaced() {
        let outbox = Outbox::default();
        let value = |class| Frame { key: NonZeroU64::new(7), ..frame(class, 100) };
        for (limit, rest) in [(150, 70), (1_000, 170)] {
            assert_eq!(push(&outbox, value(Class::Ephemeral), limit), Pushed::Queued);
            assert_eq!(write(&outbox, 30), (30, None));
            // A newer value of the same state, for which there is room or not.
            push(&outbox, value(Class::Logged), limit);
            assert_eq!(write(&outbox, 1_000), (rest, None));
        }
    }

    #[test]
    fn no_close_frame_follows_half_of_another_frame() {
        // One drops what waits, the other does not.
        for closing in [Closing::Replaced, Closing::Expired] {
            let outbox = Outbox::default();
            push(&outbox, frame(Class::Logged, 100), 150);
            assert_eq!(write(&outbox, 30), (30, None));
            outbox.end(closing);
            assert_eq!(write(&outbox, 0).1, Some(Closing::Lost), "{closing:?}");
        }
        let outbox = Outbox::default();
        push(&outbox, frame(Class::Logged, 100), 150);
        outbox.end(Closing::Expired);
        assert_eq!(write(&outbox, 1_000), (100, Some(Closing::Expired)));
    }

    #[test]
    fn an_answer_to_a_poll_is_bounded_but_never_empty() {
        let outbox = Outbox::default();
        for len in [80, 30, 30] {
            push(&outbox, frame(Class::Logged, len), 1000);
        }
        let cx = Context::from_waker(Waker::noop());
        for expected in [1, 2] {
            let Poll::Ready(Taken::Frames(frames)) = outbox.poll_take(&cx, 70) else { panic!("frames") };
            assert_eq!(frames.len(), expected);
        }
        assert!(outbox.poll_take(&cx, 70).is_pending());
        outbox.nudge();
        assert!(matches!(outbox.poll_take(&cx, 70), Poll::Ready(Taken::Noop)));
    }
}
