//! One client of a program: it keeps what the stock client keeps, and checks all that comes against the ledger.

use std::collections::{BTreeSet, VecDeque};

use serde_json::{Value, json};
use tidewire_core::Timestamp;

use crate::line::{Line, Way};
use crate::oracle::{HISTORY, HISTORY_SECONDS, Kind, Ledger, Logged, Once, Standing, TENANTS};
use crate::world::World;

pub(crate) struct Client {
    pub(crate) home: usize,
    pub(crate) user: &'static str,
    pub(crate) roles: Vec<&'static str>,
    line: Option<Line>,
    /// Transports that the client has given up and the server may still take for open, with the session each was of.
    ghosts: Vec<(String, Line)>,
    pub(crate) session: Option<Session>,
    /// The `pid`s of sessions that this client left for good.
    pub(crate) left: Vec<String>,
    once: Once,
    next_ack: u64,
    pub(crate) told: Told,
}

/// How often something happened, so that a test which meets nothing does not pass.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    pub(crate) recovered: u64,
    pub(crate) missed: u64,
    pub(crate) lost: u64,
    pub(crate) events: u64,
    pub(crate) refused: u64,
}

/// What a client knows of its session.
pub(crate) struct Session {
    sid: String,
    pub(crate) pid: String,
    joined: u64,
    offset: String,
    /// When it began.
    since: Timestamp,
    pub(crate) ledger: Ledger,
    /// The same of the log across tenants, and where it was when the session began.
    across: Ledger,
    joined_across: Option<u64>,
}

/// What a client shows of the session it had.
#[derive(Clone, Debug)]
pub(crate) enum Shown {
    Nothing,
    /// Its own `pid`, with its offset or without.
    Own {
        offset: bool,
    },
    /// A `pid` that is not its own, or a session that it has left.
    Other(String),
    /// Its own, with an offset of another log.
    OtherLog,
}

impl Client {
    pub(crate) fn new(home: usize, user: &'static str, roles: Vec<&'static str>) -> Self {
        Self {
            home,
            user,
            roles,
            line: None,
            ghosts: Vec::new(),
            session: None,
            left: Vec::new(),
            once: Once::new(),
            next_ack: 0,
            told: Told::default(),
        }
    }

    pub(crate) fn is_online(&self) -> bool {
        self.line.is_some()
    }

    fn log<'w>(&self, world: &'w World) -> &'w [Logged] {
        &world.logs[self.session.as_ref().expect("a session").ledger.standing().tenant]
    }

    /// Connects, and checks the answer up to `connected` and `continuity:lost`. With a token of before, it has to be refused.
    pub(crate) async fn connect(&mut self, world: &World, way: Way, shown: Shown, stale: bool) {
        // The client has given up the transport it had; the server does not know that yet.
        let sid = self.session.as_ref().map(|session| session.sid.clone());
        self.ghosts.extend(sid.zip(self.line.take()));
        let mut auth = json!({ "token": world.token(self.home, self.user, &self.roles, stale) });
        let had = self.session.as_ref();
        let offset = had.map(|session| session.offset.clone());
        let (pid, offset) = match (&shown, had) {
            (Shown::Nothing, _) | (_, None) => (None, None),
            (Shown::Own { offset: true }, Some(had)) => (Some(had.pid.clone()), offset),
            (Shown::Own { offset: false }, Some(had)) => (Some(had.pid.clone()), None),
            (Shown::Other(pid), Some(_)) => (Some(pid.clone()), offset),
            (Shown::OtherLog, Some(had)) => (Some(had.pid.clone()), Some("another.5".to_owned())),
        };
        if let Some(pid) = pid {
            auth["pid"] = json!(pid);
        }
        if let Some(offset) = &offset {
            auth["offset"] = json!(offset);
        }
        let mut line = Line::open(world, way).await;
        line.send(&format!("40{auth}")).await;
        let answer = line.packet().await.expect("an answer to CONNECT");
        if answer.starts_with("44") {
            assert!(stale, "refused: {answer}");
            self.told.refused += 1;
            line.close().await;
            return;
        }
        assert!(answer.starts_with("40"), "unexpected {answer}");
        assert!(!stale, "a revoked credential was let in");
        if let Way::Upgrade { amid } = way {
            line = line.upgrade(world, amid).await;
        }
        let answer: Value = serde_json::from_str(&answer[2..]).expect("json");
        let text = |name: &str| answer[name].as_str().expect("text").to_owned();
        let (sid, pid) = (text("sid"), text("pid"));
        // What was missed comes first. A line that breaks in the middle of it brings the rest the next time.
        let mut early = VecDeque::new();
        let connected = loop {
            let event = event(&line.packet().await.expect("connected"));
            if event[0] == "connected" {
                break event;
            }
            early.push_back(event);
        };
        let hello = connected[1].clone();
        assert_eq!((&hello["socketId"], &hello["userId"]), (&json!(sid), &json!(self.user)));
        self.line = Some(line);
        if hello["recovered"] == true {
            self.resume(world, &shown, &sid, &pid, &connected);
            self.told.missed += early.len() as u64;
            for event in early {
                self.take(world, &event);
            }
            self.take(world, &connected);
            self.end_ghosts().await;
            return;
        }
        assert!(early.is_empty(), "a new session begins with events: {early:?}");
        self.check_loss(world, &shown);
        let tenant = TENANTS.iter().position(|tenant| hello["tenant"] == *tenant).expect("a tenant");
        let position = hello["position"].as_u64().expect("a position");
        if let Some(before) = self.session.take() {
            assert_ne!(sid, before.sid, "a new session has a new id");
        }
        let standing = Standing::new(tenant, self.user, &self.roles);
        assert_eq!(rooms(&hello), standing.rooms);
        self.session = Some(Session::new(world, sid, pid, position, &connected, standing));
        self.ghosts.clear();
        self.take(world, &connected);
        if let Some(offset) = offset {
            let told = event(&self.packet().await.expect("continuity:lost"));
            let expected = json!({ "position": position, "offset": offset });
            assert_eq!((&told[0], &told[1]), (&json!("continuity:lost"), &expected));
            self.take(world, &told);
            self.told.lost += 1;
        }
    }

    /// The session goes on: with its rooms and filters by today's roles, and from the offset that was shown.
    fn resume(&mut self, world: &World, shown: &Shown, sid: &str, pid: &str, connected: &Value) {
        let hello = &connected[1];
        let had = self.session.as_mut().expect("nobody recovers a session that it did not have");
        let (after, after_across) = match shown {
            Shown::Own { offset: true } => (had.ledger.last, had.across.last),
            Shown::Own { offset: false } => (had.joined, had.joined_across.unwrap_or(had.across.last)),
            Shown::Nothing | Shown::Other(_) | Shown::OtherLog => panic!("recovered with {shown:?}"),
        };
        assert_eq!(sid, had.sid, "a recovered session has its id");
        assert_eq!(hello["tenant"], TENANTS[had.ledger.standing().tenant]);
        let mut standing = had.ledger.standing().with_roles(&self.roles);
        let rooms = rooms(hello);
        let may: BTreeSet<String> =
            standing.lost.iter().filter(|room| standing.may_join(room)).chain(&standing.rooms).cloned().collect();
        assert!(rooms.is_superset(&standing.rooms) && rooms.is_subset(&may), "{rooms:?}, expected {standing:?}");
        standing.lost.retain(|room| !rooms.contains(room));
        standing.rooms = rooms;
        assert_eq!(pid, had.pid, "the stock client knows by the same pid that it has recovered");
        let position = hello["position"].as_u64().expect("a position");
        let (_, across) = places(connected);
        had.across.resume(after_across, across.unwrap_or(world.across(0).len() as u64), standing.clone());
        had.ledger.resume(after, position, standing);
        assert!(position <= world.head(had.ledger.standing().tenant));
        self.told.recovered += 1;
    }

    /// Whether the session could be refused: something of it is older than what the catalog calls history, or it was not shown.
    fn check_loss(&self, world: &World, shown: &Shown) {
        let (Shown::Own { offset }, Some(had)) = (shown, &self.session) else { return };
        let standing = had.ledger.standing();
        let is_within = |log: &[Logged], after: u64| {
            let oldest = log.get(after as usize).map_or(world.now(), |event| event.time);
            log.len() as u64 - after <= HISTORY && world.now().since(oldest).as_secs() <= HISTORY_SECONDS
        };
        let (after, after_across) = match offset {
            true => (had.ledger.last, places(&json!([had.offset])).1),
            false => (had.joined, had.joined_across),
        };
        let is_across = standing.with_roles(&self.roles).rooms.contains("global");
        let after_across = after_across.filter(|_| is_across);
        let log = self.log(world);
        let within =
            is_within(log, after) && after_across.is_none_or(|after| is_within(&world.across(standing.tenant), after));
        let age = |time: Timestamp| world.now().since(time).as_secs();
        // The last sign of the client is so old that what it asked for may have been forgotten.
        let sign = log.get((after as usize).wrapping_sub(1)).map_or(had.since, |event| event.time.max(had.since));
        assert!(
            !within || age(sign) > HISTORY_SECONDS,
            "continuity was lost within history, after {after} of {}: {shown:?}, {:?}, {standing:?}",
            had.offset,
            self.roles,
        );
    }

    /// Transports whose session is somewhere else now have been closed by the server.
    async fn end_ghosts(&mut self) {
        let sid = self.session.as_ref().map(|session| session.sid.clone());
        for (of, mut ghost) in self.ghosts.drain(..) {
            while Some(&of) == sid.as_ref() && ghost.packet().await.is_some() {}
        }
    }

    async fn packet(&mut self) -> Option<String> {
        let packet = self.line.as_mut()?.packet().await;
        if packet.is_none() {
            self.line = None;
        }
        packet
    }

    /// Takes an event as the stock client does, and checks it.
    fn take(&mut self, world: &World, event: &Value) {
        let session = self.session.as_mut().expect("a session");
        let (position, number) = places(event);
        session.offset = event.as_array().and_then(|event| event.last()?.as_str()).expect("an offset").to_owned();
        let tenant = session.ledger.standing().tenant;
        let (log, across) = (&world.logs[tenant], world.across(tenant));
        let name = event[0].as_str().expect("a name");
        if ["connected", "continuity:kept", "continuity:lost", "auth:revoked", "tenant:switched"].contains(&name) {
            session.ledger.settle(log, position);
            number.into_iter().for_each(|number| session.across.settle(&across, number));
            return;
        }
        self.told.events += 1;
        let n = event[1]["n"].as_u64().expect("a number");
        let (of, published) = &world.all[n as usize - 1];
        if *of != tenant {
            let number = number.unwrap_or_else(|| panic!("of another tenant: {event}"));
            assert!(published.kind.is_across(), "of another tenant: {event}");
            session.ledger.settle(log, position);
            return session.across.take(&across, number, name, &event[1]);
        }
        number.into_iter().for_each(|number| session.across.settle(&across, number));
        if published.kind == Kind::Typing {
            assert!(self.once.insert(n), "twice: {event}");
            assert_eq!(name, published.kind.name());
            session.ledger.check_shown(published, 0, &event[1]);
            session.ledger.settle(log, position);
        } else {
            session.ledger.take(log, position, name, &event[1]);
        }
    }

    /// Reads until everything that this client must have by now is there.
    pub(crate) async fn read(&mut self, world: &World) {
        let owed = |session: &Session| {
            let tenant = session.ledger.standing().tenant;
            session.ledger.owed(&world.logs[tenant]).is_some() || session.across.owed(&world.across(tenant)).is_some()
        };
        while self.is_online() && self.session.as_ref().is_some_and(owed) {
            match self.packet().await {
                Some(packet) => self.take(world, &event(&packet)),
                None => return,
            }
        }
    }

    /// Reads what is there until the server ends the transport.
    pub(crate) async fn read_to_the_end(&mut self, world: &World) {
        while let Some(packet) = self.packet().await {
            self.take(world, &event(&packet));
        }
    }

    /// Sends a message; answers its acknowledgement, or nothing when the transport ended. What comes before it is taken.
    pub(crate) async fn ask(&mut self, world: &World, name: &str, argument: &Value) -> Option<Value> {
        let id = self.next_ack;
        self.next_ack += 1;
        self.line.as_mut()?.send(&format!("42{id}{}", json!([name, argument]))).await;
        loop {
            let packet = self.packet().await?;
            match packet.strip_prefix(&format!("43{id}")) {
                Some(body) => return Some(serde_json::from_str::<Value>(body).expect("json")[0].take()),
                None => self.take(world, &event(&packet)),
            }
        }
    }

    /// Sends a message that changes what the client is to get.
    pub(crate) async fn change(&mut self, world: &World, name: &str, argument: &Value, next: Standing) {
        let session = self.session.as_mut().expect("a session");
        let head = world.head(session.ledger.standing().tenant);
        let before = session.ledger.standing().clone();
        session.across.change(world.across(0).len() as u64, next.clone());
        session.ledger.change(head, next);
        let Some(answer) = self.ask(world, name, argument).await else { return };
        if answer["ok"] != true {
            assert_eq!(answer["error"]["code"], "room.forbidden", "{name} {argument}: {answer}");
            panic!("{name} {argument} was refused to {before:?}");
        }
    }

    /// Moves to the other tenant, as a new session there.
    pub(crate) async fn switch(&mut self, world: &World) {
        let session = self.session.as_ref().expect("a session");
        let to = 1 - session.ledger.standing().tenant;
        let id = self.next_ack;
        self.next_ack += 1;
        let Some(line) = self.line.as_mut() else { return };
        line.send(&format!("42{id}{}", json!(["switch", TENANTS[to]]))).await;
        let hello = loop {
            let Some(packet) = self.packet().await else { return };
            let event = event(&packet);
            if event[0] == "tenant:switched" {
                break event;
            }
            self.take(world, &event);
        };
        let answer = self.packet().await.expect("a CONNECT");
        let answer: Value = serde_json::from_str(answer.strip_prefix("40").expect("a CONNECT")).expect("json");
        let session = self.session.take().expect("a session");
        self.left.push(session.pid);
        let mut standing = Standing::new(to, self.user, &self.roles);
        standing.types.clone_from(&session.ledger.standing().types);
        assert_eq!(rooms(&hello[1]), standing.rooms);
        let joined = hello[1]["position"].as_u64().expect("a position");
        let text = |name: &str| answer[name].as_str().expect("text").to_owned();
        self.session = Some(Session::new(world, text("sid"), text("pid"), joined, &hello, standing));
        self.take(world, &hello);
        loop {
            let packet = self.packet().await.expect("an acknowledgement");
            if packet.starts_with(&format!("43{id}")) {
                return;
            }
            self.take(world, &event(&packet));
        }
    }

    /// Leaves for good, by a DISCONNECT.
    pub(crate) async fn leave(&mut self) {
        let Some(mut line) = self.line.take() else { return };
        line.send("41").await;
        line.end().await;
        self.left.extend(self.session.take().map(|session| session.pid));
    }

    /// Loses its transport. What it had not read is gone.
    pub(crate) async fn lose(&mut self, orderly: bool, amid_poll: bool) {
        let Some(mut line) = self.line.take() else { return };
        if orderly { line.close().await } else { line.cut(amid_poll).await }
    }

    /// The process is gone, and with it every transport.
    pub(crate) fn lose_all(&mut self) {
        self.line = None;
        self.ghosts.clear();
    }
}

impl Session {
    /// One that begins with this event.
    fn new(world: &World, sid: String, pid: String, joined: u64, first: &Value, standing: Standing) -> Self {
        let (_, joined_across) = places(first);
        let across = Ledger::new(joined_across.unwrap_or_default(), standing.clone());
        let (ledger, offset, since) = (Ledger::new(joined, standing), String::new(), world.now());
        Self { sid, pid, joined, offset, since, ledger, across, joined_across }
    }
}

/// The place in the log of the tenant that the offset of an event says, and that in the log across tenants.
fn places(event: &Value) -> (u64, Option<u64>) {
    let offset = event.as_array().and_then(|event| event.last()?.as_str()).expect("an offset");
    let (_, places) = offset.rsplit_once('.').expect("a position");
    let (own, across) = places.split_once('+').map_or((places, None), |(own, across)| (own, Some(across)));
    (own.parse().expect("a position"), across.map(|across| across.parse().expect("a number")))
}

fn event(packet: &str) -> Value {
    let body = packet.strip_prefix("42").unwrap_or_else(|| panic!("expected an event, got {packet}"));
    serde_json::from_str(body).expect("json")
}

fn rooms(hello: &Value) -> BTreeSet<String> {
    let rooms = hello["rooms"].as_array().expect("rooms").iter();
    rooms.map(|room| room.as_str().expect("a room").to_owned()).collect()
}
