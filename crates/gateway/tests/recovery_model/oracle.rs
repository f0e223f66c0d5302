//! What a client must get, may get and must not get: the log, and what the client was when its part of the log came by.

use std::collections::{BTreeSet, HashSet};
use std::fmt;

use serde_json::{Value, json};
use tidewire_core::Timestamp;

/// Two tenants, in which everything has equal ids.
pub(crate) const TENANTS: [&str; 2] = ["p1", "p2"];
pub(crate) const USERS: [&str; 2] = ["ann", "bob"];
pub(crate) const BERTHS: [&str; 2] = ["b1", "b2"];

/// How many events, and for how long, the catalog lets clients reach back.
pub(crate) const HISTORY: u64 = 12;
pub(crate) const HISTORY_SECONDS: u64 = 3_600;

/// The event types of app.toml.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Said,
    Lead,
    Pinged,
    Told,
    Noted,
    Moved,
    Level,
    Opened,
    Typing,
    Alert,
    Closed,
}

/// How an event stands to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whose {
    /// It is in the log of the client's tenant.
    Own,
    /// It is of another tenant, in the log across tenants.
    Others,
    /// It is in that log, too, and the client has it by the other one.
    OwnAgain,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Said,
        Self::Lead,
        Self::Pinged,
        Self::Told,
        Self::Noted,
        Self::Moved,
        Self::Level,
        Self::Opened,
        Self::Typing,
        Self::Alert,
        Self::Closed,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Said => "said",
            Self::Lead => "lead:created",
            Self::Pinged => "user:pinged",
            Self::Told => "staff:told",
            Self::Noted => "berth:noted",
            Self::Moved => "berth:moved",
            Self::Level => "berth:level",
            Self::Opened => "vault:opened",
            Self::Typing => "user:typing",
            Self::Alert => "system:alert",
            Self::Closed => "port:closed",
        }
    }

    /// Whether a room of it spans tenants.
    pub(crate) fn is_across(self) -> bool {
        matches!(self, Self::Alert | Self::Closed)
    }
}

/// An event as it was published. In `time`, when it was written.
#[derive(Clone)]
pub(crate) struct Logged {
    pub(crate) kind: Kind,
    pub(crate) berth: &'static str,
    pub(crate) user: &'static str,
    /// Unique in a program.
    pub(crate) number: u64,
    pub(crate) time: Timestamp,
    pub(crate) whose: Whose,
}

impl fmt::Debug for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, berth, user, number, .. } = self;
        write!(f, "{kind:?}-{number}({berth},{user})")
    }
}

impl Logged {
    pub(crate) fn data(&self) -> Value {
        let (n, berth) = (self.number, self.berth);
        match self.kind {
            Kind::Lead => json!({ "n": n, "agentId": self.user }),
            Kind::Noted | Kind::Level | Kind::Opened => json!({ "n": n, "berthId": berth }),
            Kind::Moved => json!({ "n": n, "berthId": berth, "secret": "of the staff" }),
            // The last text of an event is not always its offset.
            Kind::Typing => json!({ "n": n, "text": "p1.7" }),
            Kind::Said | Kind::Pinged | Kind::Told | Kind::Alert | Kind::Closed => json!({ "n": n }),
        }
    }

    /// What a client with this standing is shown of the event; nothing if it may not see it.
    pub(crate) fn shown(&self, to: &Standing) -> Option<Value> {
        if !to.types.as_ref().is_none_or(|types| types.iter().any(|pattern| matches(pattern, self.kind.name()))) {
            return None;
        }
        let port = format!("port:{}", TENANTS[to.tenant]);
        let within = |room: &str| to.rooms.contains(room);
        let seen = match self.kind {
            Kind::Said | Kind::Level | Kind::Typing => within(&port),
            Kind::Lead => within(&port) && (to.is("admin") || to.user == self.user),
            Kind::Pinged => within(&format!("user:{}", self.user)),
            Kind::Told => within(&format!("staff:{}", TENANTS[to.tenant])),
            Kind::Noted => within(&format!("berth:{}", self.berth)),
            Kind::Opened => within(&format!("vault:{}", self.berth)),
            Kind::Alert => within("global"),
            Kind::Closed => within("global") || (self.whose == Whose::Own && within(&port)),
            Kind::Moved => {
                let whole = within(&port) || within(&format!("berth:{}", self.berth));
                if to.is("staff") && !whole && within(&format!("map:{}", TENANTS[to.tenant])) {
                    return Some(json!({ "n": self.number, "berthId": self.berth }));
                }
                to.is("staff") && whole
            }
        };
        seen.then(|| self.data())
    }
}

pub(crate) fn matches(pattern: &str, kind: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == kind, |prefix| kind.starts_with(prefix))
}

/// Where a client is and what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) tenant: usize,
    pub(crate) user: &'static str,
    pub(crate) roles: Vec<&'static str>,
    pub(crate) rooms: BTreeSet<String>,
    /// Its own rooms that it left.
    pub(crate) left: BTreeSet<String>,
    /// Rooms that it had asked for and that its roles no longer allow: it may be in them again later.
    pub(crate) lost: BTreeSet<String>,
    pub(crate) types: Option<BTreeSet<String>>,
}

impl Standing {
    /// A session that has just begun.
    pub(crate) fn new(tenant: usize, user: &'static str, roles: &[&'static str]) -> Self {
        let mut standing = Self {
            tenant,
            user,
            roles: roles.to_vec(),
            rooms: BTreeSet::new(),
            left: BTreeSet::new(),
            lost: BTreeSet::new(),
            types: None,
        };
        standing.rooms = standing.own_rooms();
        standing
    }

    pub(crate) fn is(&self, role: &str) -> bool {
        self.roles.contains(&role)
    }

    /// The rooms that it is in without asking.
    pub(crate) fn own_rooms(&self) -> BTreeSet<String> {
        let mut rooms = vec![format!("port:{}", TENANTS[self.tenant]), format!("user:{}", self.user)];
        if self.is("staff") {
            rooms.push(format!("staff:{}", TENANTS[self.tenant]));
        }
        if self.is("admin") {
            rooms.push("global".to_owned());
        }
        rooms.into_iter().collect()
    }

    pub(crate) fn may_join(&self, room: &str) -> bool {
        let shared = format!("map:{}", TENANTS[self.tenant]);
        let asked = room.starts_with("berth:") || room == shared || (room.starts_with("vault:") && self.is("admin"));
        asked || self.own_rooms().contains(room)
    }

    pub(crate) fn join(&mut self, room: &str) {
        self.rooms.insert(room.to_owned());
        self.left.remove(room);
    }

    pub(crate) fn leave(&mut self, room: &str) {
        self.lost.remove(room);
        if self.rooms.remove(room) && self.own_rooms().contains(room) {
            self.left.insert(room.to_owned());
        }
    }

    /// The same session with the roles of today.
    pub(crate) fn with_roles(&self, roles: &[&'static str]) -> Self {
        let was_own = self.own_rooms();
        let mut next = Self { roles: roles.to_vec(), ..self.clone() };
        let asked: Vec<String> = self.rooms.difference(&was_own).cloned().collect();
        next.rooms = next.own_rooms().difference(&self.left).cloned().collect();
        for room in asked {
            let target = if next.may_join(&room) { &mut next.rooms } else { &mut next.lost };
            target.insert(room);
        }
        next
    }
}

/// What a client of one session was from which position on, and how far it has been told of the log.
#[derive(Debug)]
pub(crate) struct Ledger {
    standings: Vec<(u64, Standing)>,
    /// Everything up to here is settled: the client has it or was not to have it.
    pub(crate) last: u64,
}

impl Ledger {
    pub(crate) fn new(last: u64, standing: Standing) -> Self {
        Self { standings: vec![(0, standing)], last }
    }

    /// The client came back when the log ended at `head`, and was given everything after `last`. What came before by the roles of then
    /// and is for it by those of today, it has to be given; what only these allow, it may be.
    pub(crate) fn resume(&mut self, last: u64, head: u64, standing: Standing) {
        self.change(head, standing);
        self.last = last;
    }

    pub(crate) fn standing(&self) -> &Standing {
        &self.standings.last().expect("there is always one").1
    }

    /// It asked for a change when the log ended at `head`.
    pub(crate) fn change(&mut self, head: u64, standing: Standing) {
        self.standings.push((head, standing));
    }

    /// What it may have been when the event at `position` came to it: live at once, or later from the log.
    fn possible(&self, position: u64) -> &[(u64, Standing)] {
        let from = self.standings.iter().rposition(|(since, _)| *since < position).unwrap_or(0);
        &self.standings[from..]
    }

    /// Whether the client has to be given the event at `position`, with the log as it is.
    pub(crate) fn must(&self, log: &[Logged], position: u64) -> bool {
        let event = &log[position as usize - 1];
        if event.whose == Whose::OwnAgain || self.possible(position).iter().any(|(_, to)| event.shown(to).is_none()) {
            return false;
        }
        // Of a state only the last value that came has to arrive.
        let newer = |later: &Logged, at: u64| {
            later.kind == Kind::Level
                && later.berth == event.berth
                && self.possible(at).iter().any(|(_, to)| later.shown(to).is_some())
        };
        event.kind != Kind::Level || !log.iter().zip(1..).skip(position as usize).any(|(later, at)| newer(later, at))
    }

    /// Everything up to `position` was given to the client, says the server by an offset.
    pub(crate) fn settle(&mut self, log: &[Logged], position: u64) {
        assert!(position <= log.len() as u64, "an offset of the future: {position} of {}", log.len());
        assert!(position >= self.last, "the offset went back from {} to {position}", self.last);
        if let Some(missing) = (self.last + 1..=position).find(|at| self.must(log, *at)) {
            panic!("a gap: {missing} {:?} did not come before offset {position}", log[missing as usize - 1]);
        }
        self.last = position;
    }

    /// An event of the log came, with its own position for an offset.
    pub(crate) fn take(&mut self, log: &[Logged], position: u64, kind: &str, data: &Value) {
        assert!(position > self.last, "{position} {kind} came twice or late: {} was settled", self.last);
        self.settle(log, position - 1);
        let event = log.get(position as usize - 1).unwrap_or_else(|| panic!("{position} was not published"));
        assert_eq!(kind, event.kind.name(), "at {position}");
        self.check_shown(event, position, data);
        self.last = position;
    }

    /// The client was shown what it may see, and not more of it.
    pub(crate) fn check_shown(&self, event: &Logged, position: u64, data: &Value) {
        let shown = self.possible(position).iter().any(|(_, to)| event.shown(to).as_ref() == Some(data));
        assert!(shown, "not for this client, whole or at all: {position} {event:?} as {data} to {:?}", self.standing());
    }

    /// The first event that the client still has to be given.
    pub(crate) fn owed(&self, log: &[Logged]) -> Option<u64> {
        (self.last + 1..=log.len() as u64).find(|at| self.must(log, *at))
    }
}

/// Numbers of events that came beside the log, each of which may come once.
pub(crate) type Once = HashSet<u64>;
