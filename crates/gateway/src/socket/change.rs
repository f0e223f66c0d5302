//! What a client changes of its socket: written first, made then, acknowledged last.
//!
//! So who comes back after a kill has all that it was told it has, and a change that the store refuses is not made: no event is missed
//! for it. Who is killed between the two comes back with a change that it was not told of.

use std::sync::Arc;

use tidewire_core::catalog::Pattern;
use tidewire_core::event::Position;
use tidewire_core::store::Answer;
use tidewire_core::{Error, Kind, Result};
use tokio::sync::MutexGuard;

use super::{Since, Socket, State, Wanted};
use crate::policy::Allowed;
use crate::recovery::{Parting, Saved};
use crate::session::Closing;

/// What is to be different.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) join: Vec<Allowed>,
    pub(crate) leave: Vec<String>,
    /// All types from now on.
    pub(crate) types: Option<Vec<Wanted>>,
    pub(crate) acked: Option<Position>,
}

/// The turn to change a socket. Until it ends nobody else changes where the socket is, nor whose it is: what is judged in a turn holds in it.
pub(crate) struct Changing<'a> {
    socket: &'a Arc<Socket>,
    _turn: MutexGuard<'a, ()>,
    /// The store was given what the socket is not yet, or not any more.
    is_ahead: bool,
    /// What it was given.
    written: Option<Saved>,
}

impl Socket {
    /// Waits for the turn to change this socket.
    pub(crate) async fn changing(self: &Arc<Self>) -> Changing<'_> {
        Changing { socket: self, _turn: self.changing.lock().await, is_ahead: false, written: None }
    }

    /// Writes what has changed, and waits until it is durable in the sense of the store. Codes `store.busy`, `unavailable`.
    pub(crate) async fn keep(self: &Arc<Self>) -> Result<()> {
        self.changing().await.change(Change::default()).await
    }

    /// The types without some of them; nothing before the first `subscribe`, when it gets all.
    pub(crate) fn without_types(&self, remove: &[Pattern]) -> Option<Vec<Wanted>> {
        let types = self.state.lock().types.clone()?;
        let (gone, mut types): (Vec<_>, Vec<_>) =
            types.into_iter().partition(|wanted| remove.contains(&wanted.pattern));
        for wanted in &mut types {
            // What is still wanted by another pattern, and was by this one before, is not missed for it.
            let before = gone.iter().filter(|gone| gone.pattern.overlaps(&wanted.pattern)).map(|gone| gone.from);
            wanted.from = before.fold(wanted.from, Since::min);
        }
        Some(types)
    }

    /// The types with some more. Code `limit.subscriptions`.
    pub(crate) fn with_types(&self, add: Vec<Pattern>) -> Result<Vec<Wanted>> {
        let most = self.shared().options.max_subscriptions;
        let types = self.state.lock().types.clone();
        // The first ones are what is left of all.
        let from = if types.is_some() { self.now() } else { Since::EVER };
        let mut types = types.unwrap_or_default();
        for pattern in add {
            if !types.iter().any(|wanted| wanted.pattern == pattern) {
                types.push(Wanted { pattern, from });
            }
        }
        if types.len() > most {
            let detail = format!("a socket may be subscribed to at most {most} types or patterns");
            return Err(Error::new(Kind::Limited, "limit.subscriptions", detail));
        }
        Ok(types)
    }

    /// Remembers what the client has dealt with. The first time it is durable when this answers; later ones are written by the next look
    /// at the socket or with the next change, as one write per event would be too many: an older one only repeats more.
    pub(crate) async fn acknowledge(self: &Arc<Self>, position: Position) -> Result<()> {
        {
            let mut state = self.state.lock();
            if let Some(before) = state.acked {
                state.changed |= position > before;
                state.acked = Some(position.max(before));
                return Ok(());
            }
        }
        let first = Change { acked: Some(position), ..Change::default() };
        self.changing().await.change(first).await
    }

    /// Hands over what is to be kept of a socket that ends. Nobody waits for it: what was acknowledged has been written, and a process
    /// that ends in good order closes the store last.
    pub(super) fn write_last(&self, state: &mut State, parting: Parting, closing: Closing) {
        let (shared, saved) = (self.shared(), &parting.saved);
        if closing == Closing::Left {
            drop(shared.store.put_session(&self.tenant.id, &self.sid, saved.to_text(), shared.kept_until()));
        } else {
            drop(self.write(state, saved));
        }
        // Nobody comes back to a stream by its id.
        if self.session.streaming.is_none() {
            shared.recent.put(&self.sid, parting);
        }
    }

    /// Hands over what is to be kept, if there is more than a client gets by itself.
    pub(super) fn write(&self, state: &mut State, saved: &Saved) -> Option<Answer<'_, ()>> {
        state.changed = false;
        // A stream says at each start what it wants. And a socket that never had more than its own rooms is never written; one that had
        // may have to be written empty.
        if self.session.streaming.is_some() || (state.saved.is_none() && saved.is_empty()) {
            return None;
        }
        let shared = self.shared();
        state.saved = Some(shared.clock.now());
        Some(shared.store.put_session(&self.tenant.id, &self.sid, saved.to_text(), shared.kept_until()))
    }
}

impl Changing<'_> {
    /// Makes a change durable and makes it. Codes `limit.rooms`, `data.too_large`, `store.busy`, `unavailable`; nothing is changed then.
    pub(crate) async fn change(mut self, change: Change) -> Result<()> {
        self.keep(&change).await?;
        self.make(change)
    }

    /// Writes what the socket will be, and waits until it is durable in the sense of the store. If the change is not made after all, what
    /// is so is written by the next look at the socket. Codes as for [`Changing::change`].
    pub(crate) async fn keep(&mut self, change: &Change) -> Result<()> {
        let written = {
            let mut state = self.socket.state.lock();
            let now = state.to_save();
            let next = state.after(now.clone(), change, self.socket.shared().options.max_rooms_per_socket)?;
            // A closed socket has written its last, and its client may be somewhere else by now.
            if state.closed || (next == now && !state.changed) {
                return Ok(());
            }
            self.is_ahead = true;
            self.written = Some(next.clone());
            self.socket.write(&mut state, &next)
        };
        match written {
            Some(answer) => answer.await,
            None => Ok(()),
        }
    }

    /// Makes the change that was kept.
    pub(crate) fn make(mut self, change: Change) -> Result<()> {
        for room in change.join {
            self.socket.join(room)?;
        }
        for room in &change.leave {
            self.socket.leave(room);
        }
        let mut state = self.socket.state.lock();
        if let Some(types) = change.types {
            state.since = types.iter().map(|wanted| wanted.from).fold(state.since, Since::max);
            state.types = Some(types);
        }
        state.acked = state.acked.max(change.acked);
        // It may have acknowledged more while this was written.
        state.changed = self.written.take().map_or(state.changed, |written| written != state.to_save());
        self.is_ahead = false;
        Ok(())
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        if self.is_ahead {
            self.socket.state.lock().changed = true;
        }
    }
}

impl State {
    /// What is to be kept of the socket when `change` has been made of it. Codes `limit.rooms`, `data.too_large`.
    fn after(&self, mut saved: Saved, change: &Change, most: usize) -> Result<Saved> {
        let mut joined: Vec<&Allowed> = Vec::new();
        for room in &change.join {
            let name = &*room.name;
            if let Some(data) = &room.data {
                self.has_room_for(name, data)?;
                saved.data.retain(|(of, _)| **of != *name);
                saved.data.push((name.into(), data.clone()));
            }
            if self.is_in(name) || joined.iter().any(|known| known.name == room.name) {
                continue;
            }
            saved.left.retain(|left| **left != *name);
            if !room.auto || room.from != Since::EVER {
                saved.rooms.push((name.into(), room.from));
            }
            joined.push(room);
        }
        let asked = joined.iter().filter(|room| !room.auto).count();
        if self.rooms.len() + asked > most.max(self.rooms.len()) {
            let detail = format!("a socket may be in at most {most} rooms; leave one first");
            return Err(Error::new(Kind::Limited, "limit.rooms", detail));
        }
        for name in &change.leave {
            let was_own = self.rooms.iter().find(|room| *room.name == **name).map(|room| room.auto);
            let is_own = was_own.or_else(|| joined.iter().find(|room| room.name == *name).map(|room| room.auto));
            if is_own == Some(true) && !saved.left.iter().any(|left| **left == **name) {
                saved.left.push(name.as_str().into());
            }
            saved.rooms.retain(|(room, _)| **room != **name);
            saved.data.retain(|(of, _)| **of != **name);
        }
        if let Some(types) = &change.types {
            saved.types = Some(types.iter().map(Wanted::saved).collect());
        }
        saved.acked = saved.acked.max(change.acked);
        Ok(saved)
    }
}
