//! `history` and `unread`: what happened lately, as far as this user may see it.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::{Event, Position};
use tidewire_core::store::LogQuery;
use tidewire_core::{Error, Result, Timestamp};

use super::builtin::{patterns_of, position};
use super::{Outcome, fields};
use crate::cast::Body;
use crate::cursors;
use crate::encode;
use crate::socket::Socket;

/// The most events that one call returns.
const MOST: usize = 200;
/// What a call returns that does not say.
const USUAL: usize = 100;
/// So many bytes of data fill an answer, so that it is no more than what else may wait for a client.
const MOST_BYTES: usize = 512 * 1024;
/// How many events of the log are looked at in one call; a filter that matches less gets the rest with the next one.
const MOST_READ: u64 = 5_000;
/// The most events that are counted as unread.
const MOST_UNREAD: usize = 1_000;
/// How many are read at once.
const PAGE: u32 = 250;

/// `{after?, limit?, types?}` -> `{events, complete, position}`.
///
/// With `after`: what came after that position, oldest first, to be called again with `position` until `complete`. Without: the latest.
/// `complete` is false when something is missing: more is to come, or `after` lies before what the history reaches back to.
pub(super) async fn history(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let limit = match &args["limit"] {
        Value::Null => USUAL,
        limit => match limit.as_u64() {
            Some(limit) if limit >= 1 => (limit as usize).min(MOST),
            Some(_) | None => return Err(Error::invalid("message.invalid_data", "limit: expected 1 to 200")),
        },
    };
    let after = position(socket, &args["after"])?;
    let types = patterns_of(args, "types")?;
    let realtime = &socket.shared().catalog.realtime;
    let (head, reached) = (socket.tenant.head(), socket.reached());
    let floor = Position(head.0.saturating_sub(u64::from(realtime.history_count)));
    let oldest = socket.shared().clock.now() - realtime.history_age;
    let reader = Reader { socket, head, reached, oldest, types };
    let (events, read_to, reached) = match after {
        Some(after) => {
            let (events, read_to) = reader.forward(after.max(floor).min(head), limit).await?;
            let whole = read_to >= head && after >= floor && reader.has_all_after(after).await?;
            (events, read_to, whole)
        }
        None => {
            let from = floor.max(Position(head.0.saturating_sub(MOST_READ)));
            let (events, whole) = reader.latest(from, limit).await?;
            (events, head, whole && from == floor)
        }
    };
    let events = events.iter().filter_map(|event| reader.show(event)).collect();
    Ok(fields([("events", Value::Array(events)), ("complete", json!(reached)), ("position", json!(read_to))]))
}

/// `{cursor?, types?}` -> `{cursor, position, unread, more}`: how many events after the cursor this socket's user may see in its rooms.
///
/// At most 1,000 are counted, and 5,000 events of the log looked at. `more` is true when there may be others: beyond these bounds, or
/// before what the history reaches back to. A user without such a cursor has dealt with nothing. Code `history.other_epoch`.
pub(super) async fn unread(socket: &Arc<Socket>, args: &Value) -> Outcome {
    let shared = socket.shared();
    let name = cursors::name("cursor", &args["cursor"])?.unwrap_or(cursors::USUAL);
    let types = patterns_of(args, "types")?;
    let user =
        socket.user.as_ref().ok_or_else(|| Error::internal("a visitor has no cursor", "visitors get no further"))?;
    let cursor = cursors::find(shared, &socket.tenant.id, user, name).await?;
    if cursor.as_ref().is_some_and(|cursor| cursor.epoch != *shared.store.epoch()) {
        return Err(Error::conflict(
            "history.other_epoch",
            "the cursor is of another incarnation of the log; move it anew",
        ));
    }
    let after = cursor.map_or(Position(0), |cursor| cursor.position);
    let head = socket.tenant.head();
    let floor = Position(head.0.saturating_sub(u64::from(shared.catalog.realtime.history_count)));
    let oldest = shared.clock.now() - shared.catalog.realtime.history_age;
    let reader = Reader { socket, head, reached: head, oldest, types };
    let (events, read_to) = reader.forward(after.max(floor).min(head), MOST_UNREAD).await?;
    let whole = read_to >= head && after >= floor && reader.has_all_after(after).await?;
    let counted = [("cursor", json!(name)), ("position", json!(after)), ("unread", json!(events.len()))];
    Ok(fields(counted).into_iter().chain(fields([("more", json!(!whole))])).collect())
}

struct Reader<'a> {
    socket: &'a Arc<Socket>,
    head: Position,
    /// What is beyond and on its way to the socket is not shown: it comes by itself.
    reached: Position,
    oldest: Timestamp,
    types: Option<Vec<Pattern>>,
}

impl Reader<'_> {
    /// Up to `limit` visible events after `after`, and how far the log has been read for them.
    async fn forward(&self, after: Position, limit: usize) -> Result<(Vec<Arc<Event>>, Position)> {
        let (mut found, mut at, mut bytes) = (Vec::new(), after, 0);
        while at < self.head && at.0 - after.0 < MOST_READ {
            let page = self.page(at).await?;
            if page.is_empty() {
                at = self.head;
            }
            for event in page {
                at = event.position;
                if self.is_shown(&event) {
                    bytes += event.data.get().len();
                    found.push(event);
                }
                if found.len() >= limit || bytes >= self.most_bytes() {
                    return Ok((found, at));
                }
            }
        }
        Ok((found, at))
    }

    /// The last `limit` visible events after `after`, and whether these are all.
    async fn latest(&self, after: Position, limit: usize) -> Result<(Vec<Arc<Event>>, bool)> {
        let (mut found, mut at, mut all, mut bytes) = (VecDeque::<Arc<Event>>::new(), after, true, 0);
        while at < self.head {
            let page = self.page(at).await?;
            at = page.last().map_or(self.head, |event| event.position);
            for event in page.into_iter().filter(|event| self.is_shown(event)) {
                bytes += event.data.get().len();
                found.push_back(event);
                while found.len() > limit || (found.len() > 1 && bytes > self.most_bytes()) {
                    bytes -= found.pop_front().map_or(0, |event| event.data.get().len());
                    all = false;
                }
            }
        }
        Ok((found.into(), all))
    }

    fn most_bytes(&self) -> usize {
        MOST_BYTES.min(self.socket.shared().options.max_backlog / 2)
    }

    async fn page(&self, after: Position) -> Result<Vec<Arc<Event>>> {
        let query = LogQuery { after, up_to: Some(self.head), limit: PAGE, ..LogQuery::default() };
        self.socket.shared().store.read(&self.socket.tenant.id, query).await
    }

    fn is_shown(&self, event: &Arc<Event>) -> bool {
        let asked_for =
            self.types.as_ref().is_none_or(|types| types.iter().any(|pattern| pattern.matches(&event.kind)));
        let comes = event.position > self.reached && self.socket.awaits(event);
        asked_for && event.time >= self.oldest && !comes && self.socket.sees(event).is_some()
    }

    /// Whether nothing after this position is too old to be shown.
    async fn has_all_after(&self, after: Position) -> Result<bool> {
        if after >= self.head {
            return Ok(true);
        }
        let query = LogQuery { after, limit: 1, ..LogQuery::default() };
        let first = self.socket.shared().store.read(&self.socket.tenant.id, query).await?;
        Ok(first.first().is_some_and(|event| event.position == after.next() && event.time >= self.oldest))
    }

    fn show(&self, event: &Arc<Event>) -> Option<Value> {
        let target = self.socket.sees(event)?;
        let body = Body::logged(event);
        let route = self.socket.shared().routes.get(&event.kind)?;
        let fields = target.view.map(|view| &route.declared.views[usize::from(view)].fields);
        let redacted = fields.map(|fields| encode::redact(body.data, fields));
        let data = redacted.as_ref().unwrap_or(body.data);
        serde_json::to_value(encode::envelope(body, data, target.view.is_some())).ok()
    }
}
