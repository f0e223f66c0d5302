//! What waits to be written to one client, bounded in bytes.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::latency::Stamp;
use crate::session::Closing;
use crate::stats::Counters;

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
    /// It did not fit. Of a logged event nothing is lost yet: the caller parks the socket.
    Full,
    /// The transport is closed or closing.
    Ended,
}

/// The queue between whoever has something for a client and the one task that writes to it.
#[derive(Debug, Default)]
pub(crate) struct Outbox(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Frame>,
    /// Bytes in `frames` and in the hands of the writer.
    bytes: usize,
    /// The writer, when it waits.
    waker: Option<Waker>,
    /// The writer cannot write: it waits for the end only, and new frames do not wake it.
    blocked: bool,
    /// A waiting poll is to be ended with a noop.
    nudged: bool,
    /// The frames are the WebSocket's: polls get nothing but a noop.
    moved: bool,
    ended: Option<Closing>,
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
        let limit = if frame.class == Class::Control { limit.saturating_mul(2) } else { limit };
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
        queue.frames.push_back(frame);
        let waker = if queue.blocked { None } else { queue.waker.take() };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        Pushed::Queued
    }

    /// Ends the queue: nothing more is taken in, and the writer is told. The first reason stays.
    pub(crate) fn end(&self, closing: Closing) {
        let mut queue = self.0.lock();
        queue.ended.get_or_insert(closing);
        if closing.drops_backlog() {
            queue.frames = VecDeque::new();
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

    /// The WebSocket writer's side: swaps the waiting frames into the empty `into`. `Ready(Some)` when the queue has ended, after its
    /// frames were taken; `Ready(None)` when there are frames; otherwise the writer will be woken.
    pub(crate) fn poll_swap(&self, cx: &Context<'_>, into: &mut VecDeque<Frame>) -> Poll<Option<Closing>> {
        debug_assert!(into.is_empty(), "the writer has written everything before it asks for more");
        let mut queue = self.0.lock();
        if !queue.frames.is_empty() {
            // The writer's own memory goes to the queue, which nearly always fills again before the writer is done.
            std::mem::swap(&mut queue.frames, into);
            return Poll::Ready(None);
        }
        if let Some(closing) = queue.ended {
            return Poll::Ready(Some(closing));
        }
        // From here on the client may be idle for hours.
        queue.frames = VecDeque::new();
        queue.wait(cx, false);
        drop(queue);
        *into = VecDeque::new();
        Poll::Pending
    }

    /// The same for a writer that cannot write now: ready only when the queue has ended, because then it need not wait any longer.
    pub(crate) fn poll_ended(&self, cx: &Context<'_>) -> Poll<Closing> {
        let mut queue = self.0.lock();
        if let Some(closing) = queue.ended {
            return Poll::Ready(closing);
        }
        queue.wait(cx, true);
        Poll::Pending
    }

    /// The writer has written so many bytes of what it took.
    pub(crate) fn written(&self, bytes: usize) {
        let mut queue = self.0.lock();
        queue.bytes = queue.bytes.saturating_sub(bytes);
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
        queue.wait(cx, false);
        Poll::Pending
    }

    /// How many bytes wait, those in the writer's hands included.
    pub(crate) fn bytes(&self) -> usize {
        self.0.lock().bytes
    }
}

impl Queue {
    fn wait(&mut self, cx: &Context<'_>, blocked: bool) {
        self.blocked = blocked;
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

    #[test]
    fn one_frame_always_fits_and_bytes_count_until_written() {
        let outbox = Outbox::default();
        assert_eq!(push(&outbox, frame(Class::Logged, 500), 100), Pushed::Queued);
        let mut writing = VecDeque::new();
        let cx = Context::from_waker(Waker::noop());
        assert!(matches!(outbox.poll_swap(&cx, &mut writing), Poll::Ready(None)));
        assert_eq!(push(&outbox, frame(Class::Logged, 1), 100), Pushed::Full, "still in the writer's hands");
        outbox.written(500);
        assert_eq!(push(&outbox, frame(Class::Logged, 1), 100), Pushed::Queued);
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
