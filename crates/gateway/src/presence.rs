//! Who is in a room: users, however many sockets each of them has.
//!
//! A user comes with the first socket and goes with the last one. A connection that breaks is given some time to come back, and until then
//! its user is not gone, so a reload or a lost network makes no noise. What changes is noted under the locks of the room's table and the
//! socket, in their order, and told after these are free, one note after the other.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewire_core::catalog::Catalog;
use tidewire_core::{Error, Json, Kind, Result, TenantId, Timestamp};

use crate::gateway::{Gateway, Shared};
use crate::hub::Tenant;

/// A user in a room.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Who.
    pub user_id: Arc<str>,
    /// Sockets that are in the room now; 0 while a lost connection may still come back.
    pub sockets: u32,
    /// When the first of them came.
    pub since: Timestamp,
    /// What the user told of itself there, the last time it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<Json>,
}

/// Some of the users in a room, in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members {
    /// Those on this page.
    pub members: Vec<Member>,
    /// How many there are in all.
    pub total: usize,
}

/// The presence of one tenant.
#[derive(Default)]
pub(crate) struct Presence {
    state: Mutex<State>,
    /// Held while notes are told, so that they go out in their order.
    telling: Mutex<()>,
}

#[derive(Default)]
struct State {
    rooms: HashMap<Arc<str>, BTreeMap<Arc<str>, Here>>,
    /// When the grace of each connection that broke ends. It is the same for all, so the first ends first.
    leaving: VecDeque<(Instant, Arc<str>, Arc<str>)>,
    notes: VecDeque<Note>,
}

struct Here {
    sockets: u32,
    since: Timestamp,
    /// When the grace of each ends that broke and is not back, in order.
    away: Vec<Instant>,
    word: Option<Word>,
}

impl Here {
    fn is_gone(&self) -> bool {
        self.sockets == 0 && self.away.is_empty()
    }

    /// Answers whether this is news. Of several sockets the latest word counts, not that of the one which came back last.
    fn tell(&mut self, word: Option<&Word>) -> bool {
        let Some(word) = word.filter(|word| self.word.as_ref().is_none_or(|known| known.at <= word.at)) else {
            return false;
        };
        let is_news = self.word.as_ref().is_none_or(|known| known.data != word.data);
        self.word = Some(word.clone());
        is_news
    }
}

/// What a user told of itself in a room, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Word {
    pub(crate) data: Json,
    pub(crate) at: Timestamp,
}

struct Note {
    name: &'static str,
    room: Arc<str>,
    user: Arc<str>,
    data: Option<Json>,
}

impl Presence {
    /// One more socket of `user` is in `room`, perhaps `back` after a break, and may tell something of the user.
    pub(crate) fn enter(&self, room: &Arc<str>, user: &Arc<str>, now: Timestamp, word: Option<&Word>, back: bool) {
        let mut state = self.state.lock();
        let users = state.rooms.entry(room.clone()).or_default();
        if let Some(here) = users.get_mut(user) {
            here.sockets += 1;
            if back && !here.away.is_empty() {
                // Which of them it is makes no difference but to the time that is left for the others.
                here.away.remove(0);
            }
            if here.tell(word) {
                state.note("presence:update", room, user, word);
            }
            return;
        }
        users.insert(user.clone(), Here { sockets: 1, since: now, away: Vec::new(), word: word.cloned() });
        state.note("presence:join", room, user, word);
    }

    /// When a word of `user` that comes now was said: not before the last one, whatever the clock says.
    pub(crate) fn time_of_word(&self, room: &str, user: &str, now: Timestamp) -> Timestamp {
        let state = self.state.lock();
        let here = state.rooms.get(room).and_then(|users| users.get(user));
        here.and_then(|here| here.word.as_ref()).map_or(now, |known| known.at.max(now))
    }

    /// A user that is in `room` tells something else of itself.
    pub(crate) fn update(&self, room: &Arc<str>, user: &Arc<str>, word: &Word) {
        let mut state = self.state.lock();
        let here = state.rooms.get_mut(room).and_then(|users| users.get_mut(user));
        if here.is_some_and(|here| here.tell(Some(word))) {
            state.note("presence:update", room, user, Some(word));
        }
    }

    /// One socket less, which may be back until `gone_at`. The user is gone when nobody is there and nobody may come back.
    pub(crate) fn leave(&self, room: &Arc<str>, user: &Arc<str>, gone_at: Option<Instant>) {
        let mut state = self.state.lock();
        let Some(here) = state.rooms.get_mut(room).and_then(|users| users.get_mut(user)) else { return };
        here.sockets = here.sockets.saturating_sub(1);
        here.away.extend(gone_at);
        if here.is_gone() {
            state.remove(room, user);
        } else if let Some(at) = gone_at {
            state.leaving.push_back((at, room.clone(), user.clone()));
        }
    }

    /// Lets those go whose time is over. Answers whether there is something to tell.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut state = self.state.lock();
        while state.leaving.front().is_some_and(|(at, _, _)| *at <= now)
            && let Some((at, room, user)) = state.leaving.pop_front()
        {
            let Some(here) = state.rooms.get_mut(&room).and_then(|users| users.get_mut(&user)) else { continue };
            here.away.retain(|other| *other > at);
            if here.is_gone() {
                state.remove(&room, &user);
            }
        }
        !state.notes.is_empty()
    }

    /// At most `limit` users whose ids come after `after`.
    pub(crate) fn members(&self, room: &str, after: Option<&str>, limit: usize) -> Members {
        let state = self.state.lock();
        let Some(users) = state.rooms.get(room) else { return Members { members: Vec::new(), total: 0 } };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let page = users.range::<str, _>((from, Bound::Unbounded)).take(limit);
        let member = |(user, here): (&Arc<str>, &Here)| Member {
            user_id: user.clone(),
            sockets: here.sockets,
            since: here.since,
            data: here.word.as_ref().map(|word| word.data.clone()),
        };
        Members { members: page.map(member).collect(), total: users.len() }
    }
}

impl State {
    fn remove(&mut self, room: &Arc<str>, user: &Arc<str>) {
        let Some(users) = self.rooms.get_mut(room) else { return };
        users.remove(user);
        if users.is_empty() {
            self.rooms.remove(room);
        }
        self.note("presence:leave", room, user, None);
    }

    fn note(&mut self, name: &'static str, room: &Arc<str>, user: &Arc<str>, word: Option<&Word>) {
        let data = word.map(|word| word.data.clone());
        self.notes.push_back(Note { name, room: room.clone(), user: user.clone(), data });
    }
}

/// Tells the rooms what has been noted. Not to be called with a lock of a room table, a socket or an outbox held.
pub(crate) fn tell(shared: &Shared, tenant: &Tenant) {
    // Whoever noted something comes here afterwards, so what is noted from now on is not forgotten.
    if tenant.presence.state.lock().notes.is_empty() {
        return;
    }
    let _telling = tenant.presence.telling.lock();
    loop {
        let Some(note) = tenant.presence.state.lock().notes.pop_front() else { return };
        let mut data = json!({ "room": &*note.room, "userId": &*note.user });
        if let Some(told) = &note.data {
            data["data"] = json!(told);
        }
        let data = data.to_string();
        let members = tenant.rooms.read().members(&note.room).to_vec();
        let mut frames = Vec::new();
        for socket in members.iter().filter(|socket| socket.user.is_some()) {
            socket.notify(note.name, &data, &mut frames);
        }
        shared.stats.presence_changes.up();
    }
}

/// Whether the room called `name` is told who is in it. Code `presence.off` when it is not.
pub(crate) fn require(catalog: &Catalog, name: &str) -> Result<()> {
    if catalog.room(name).is_some_and(|room| room.presence) {
        return Ok(());
    }
    Err(Error::invalid("presence.off", "the catalog does not say `presence = true` for this room"))
}

/// The most bytes that a user tells of itself in one room.
const MAX_MEMBER_DATA: usize = 1_024;

/// What a user tells of itself in a room at this time, checked; nothing for `null`. Codes `message.invalid_data`, `data.too_large`.
pub(crate) fn word(catalog: &Catalog, room: &str, data: &Value, at: Timestamp) -> Result<Option<Word>> {
    if data.is_null() {
        return Ok(None);
    }
    let Some(shape) = catalog.room(room).and_then(|declared| declared.member_data.as_ref()) else {
        let detail = "data: the catalog says nothing of data in the presence of this room";
        return Err(Error::invalid("message.invalid_data", detail));
    };
    let mut errors = Vec::new();
    shape.validate(data, "data", &mut errors);
    if !errors.is_empty() {
        return Err(Error::invalid("message.invalid_data", "").with_fields(errors));
    }
    let data = Json::from_serialize(data)?;
    if data.get().len() > MAX_MEMBER_DATA {
        let detail = format!("data: expected at most {MAX_MEMBER_DATA} bytes of JSON");
        return Err(Error::new(Kind::TooLarge, "data.too_large", detail));
    }
    Ok(Some(Word { data, at }))
}

impl Gateway {
    /// At most `limit` users in a room of a tenant, those whose ids come after `after`. Code `presence.off`.
    pub fn presence(&self, tenant: &TenantId, room: &str, after: Option<&str>, limit: usize) -> Result<Members> {
        require(&self.shared().catalog, room)?;
        let none = || Members { members: Vec::new(), total: 0 };
        Ok(self.shared().hub.find(tenant).map_or_else(none, |tenant| tenant.presence.members(room, after, limit)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn notes(presence: &Presence) -> Vec<(&'static str, String)> {
        presence.state.lock().notes.drain(..).map(|note| (note.name, note.user.to_string())).collect()
    }

    #[test]
    fn a_user_comes_once_and_goes_once_and_a_reconnect_makes_no_noise() {
        let (presence, room, ann): (_, Arc<str>, Arc<str>) = (Presence::default(), "r".into(), "ann".into());
        let (now, grace) = (Instant::now(), Duration::from_secs(5));
        let enter = |back| presence.enter(&room, &ann, Timestamp::from_millis(1), None, back);
        enter(false);
        enter(false);
        assert_eq!(notes(&presence), [("presence:join", "ann".to_owned())]);
        presence.leave(&room, &ann, None);
        presence.leave(&room, &ann, Some(now + grace));
        assert_eq!(presence.members("r", None, 9).members[0].sockets, 0);
        enter(true);
        presence.leave(&room, &ann, Some(now + grace * 2));
        assert!(!presence.sweep(now + grace), "the first break was mended");
        assert!(presence.sweep(now + grace * 2));
        assert_eq!(notes(&presence), [("presence:leave", "ann".to_owned())]);
        assert_eq!(presence.members("r", None, 9).total, 0);
    }

    #[test]
    fn a_tab_that_may_come_back_keeps_the_user_there_whatever_the_others_do() {
        let (presence, room, ann): (_, Arc<str>, Arc<str>) = (Presence::default(), "r".into(), "ann".into());
        let (now, grace) = (Instant::now(), Duration::from_secs(5));
        let enter = |back| presence.enter(&room, &ann, Timestamp::from_millis(1), None, back);
        let later = |seconds| now + Duration::from_secs(seconds);
        enter(false);
        enter(false);
        presence.leave(&room, &ann, Some(now + grace));
        // A new tab is not the one that broke.
        enter(false);
        presence.leave(&room, &ann, None);
        presence.leave(&room, &ann, None);
        assert_eq!(presence.members("r", None, 9).members[0].sockets, 0, "one may still come back");
        enter(true);
        presence.leave(&room, &ann, Some(later(7)));
        enter(false);
        presence.leave(&room, &ann, Some(later(8)));
        presence.sweep(later(7));
        assert_eq!(notes(&presence), [("presence:join", "ann".to_owned())]);
        presence.sweep(later(8));
        assert_eq!(notes(&presence), [("presence:leave", "ann".to_owned())]);
        assert!(presence.state.lock().leaving.is_empty());
    }

    #[test]
    fn a_list_goes_on_after_the_last_of_a_page() {
        let (presence, room): (_, Arc<str>) = (Presence::default(), "r".into());
        ["c", "a", "b"]
            .into_iter()
            .for_each(|user| presence.enter(&room, &user.into(), Timestamp::from_millis(1), None, false));
        let page = |after| {
            let page = presence.members("r", after, 2);
            (page.members.iter().map(|member| member.user_id.to_string()).collect::<Vec<_>>().concat(), page.total)
        };
        assert_eq!((page(None), page(Some("b"))), (("ab".to_owned(), 3), ("c".to_owned(), 3)));
    }
}
