//! Coming back: the token by which a client proves which session it had, what is kept of it, and reading up what it missed.
//!
//! A `pid` needs no memory: it says which socket id was given out at which position and when, and is signed for its namespace, tenant,
//! user and incarnation of the log. So it holds over a restart, and a connect writes nothing. Only what a client asked for beyond its own
//! rooms is kept in the store.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidewire_core::event::{Event, Offset, Position};
use tidewire_core::principal::Principal;
use tidewire_core::store::{LogQuery, Store};
use tidewire_core::{Result, TenantId, Timestamp};

use crate::cast::At;
use crate::gateway::Shared;
use crate::hub::{Tenant, Turn};
use crate::policy::Allowed;
use crate::presence::Word;
use crate::session::Closing;
use crate::socket::{Joining, Replayed, Since, Socket};

/// How many events one read of the log asks for. With the largest data this is 16 MiB at once, with usual data 20 KiB.
const PAGE: u32 = 64;

/// What a client asked for beyond what it gets by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Each with from where on it gets what is for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rooms: Vec<(Box<str>, Since)>,
    /// Rooms of its own that it left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) left: Vec<Box<str>>,
    /// What the user told of itself, by the room.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) data: Vec<(Box<str>, Word)>,
    /// Each with that, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) types: Option<Vec<(String, Since)>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) acked: Option<Position>,
    /// The client left on purpose: the session does not come back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ended: bool,
}

impl Saved {
    pub(crate) fn ended() -> Self {
        Self { ended: true, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn to_text(&self) -> String {
        crate::encode::json(self)
    }
}

/// What is known of a session that closed a moment ago.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parting {
    pub(crate) saved: Saved,
    /// The last offset that was sent to the client.
    pub(crate) told: At,
    /// How far the logs had been read for the client: beyond `told` nothing was for it up to here, with the [`rights`] that it had.
    pub(crate) reached: At,
    pub(crate) rights: u64,
}

impl Parting {
    /// From where on a client has missed something that shows this offset: who has all that it was sent has missed nothing up to where
    /// the log had been read for it.
    fn lift(&self, shown: At, rights: u64) -> At {
        if self.rights != rights {
            return shown;
        }
        let lift = |shown, told, reached| if shown < told { shown } else { reached };
        let Self { told, reached, .. } = self;
        let across = shown.across.map(|shown| {
            let known = told.across.zip(reached.across);
            known.map_or(shown, |(told, reached)| lift(shown, told, shown.max(reached)))
        });
        At { position: lift(shown.position, told.position, shown.position.max(reached.position)), across }
    }
}

/// Sessions that closed a moment ago, for clients that are back before the store has written what is kept of them.
#[derive(Default)]
pub(crate) struct Recent(Mutex<HashMap<Arc<str>, (Parting, Instant)>>);

impl Recent {
    /// Of those who have only what a client gets by itself; the others find room for as many more.
    const MOST: usize = 20_000;
    const KEPT: Duration = Duration::from_secs(60);

    pub(crate) fn put(&self, sid: &Arc<str>, parting: Parting) {
        let mut recent = self.0.lock();
        // What is known of this session from before is outdated now, whether there is room for the new or not.
        recent.remove(sid);
        let most = if parting.saved.is_empty() { Self::MOST } else { 2 * Self::MOST };
        if recent.len() < most {
            recent.insert(sid.clone(), (parting, Instant::now()));
        }
    }

    fn find(&self, sid: &str) -> Option<Parting> {
        self.0.lock().get(sid).map(|(parting, _)| parting.clone())
    }

    pub(crate) fn tidy(&self) {
        self.0.lock().retain(|_, (_, since)| since.elapsed() < Self::KEPT);
    }
}

/// Signs and checks `pid`s.
pub(crate) struct Signer(hmac::Key);

/// Whose a `pid` is.
pub(crate) struct Owner<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) tenant: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) epoch: &'a str,
}

impl<'a> Owner<'a> {
    pub(crate) fn new(namespace: &'a str, principal: &'a Principal, store: &'a dyn Store) -> Self {
        Self {
            namespace,
            tenant: principal.tenant.as_str(),
            user: principal.user.as_deref(),
            epoch: store.epoch().as_str(),
        }
    }
}

/// What a `pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    pub(crate) sid: Arc<str>,
    /// Where the session began.
    pub(crate) joined_at: At,
    /// When it began.
    pub(crate) began: Timestamp,
}

/// The length of a socket id in bytes.
const SID: usize = 20;
/// The length of what a `pid` says: the id, the position, that across tenants or the largest number, and the milliseconds.
const SAID: usize = SID + 8 + 8 + 8;
const TAG: usize = 32;

impl Signer {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    pub(crate) fn sign(&self, claimed: &Claimed, owner: &Owner<'_>) -> String {
        let mut token = Vec::with_capacity(SAID + TAG);
        token.extend_from_slice(claimed.sid.as_bytes());
        let At { position, across } = claimed.joined_at;
        token.extend_from_slice(&position.0.to_be_bytes());
        token.extend_from_slice(&across.map_or(u64::MAX, |across| across.0).to_be_bytes());
        token.extend_from_slice(&claimed.began.as_millis().to_be_bytes());
        let tag = hmac::sign(&self.0, &Self::signed(&token, owner));
        token.extend_from_slice(tag.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// What a `pid` says, if it was signed for this owner.
    pub(crate) fn check(&self, pid: &str, owner: &Owner<'_>) -> Option<Claimed> {
        let token = URL_SAFE_NO_PAD.decode(pid).ok().filter(|token| token.len() == SAID + TAG)?;
        let (said, tag) = token.split_at(SAID);
        hmac::verify(&self.0, &Self::signed(said, owner), tag).ok()?;
        let (sid, numbers) = said.split_first_chunk::<SID>()?;
        let (position, numbers) = numbers.split_first_chunk::<8>()?;
        let (across, millis) = numbers.split_first_chunk::<8>()?;
        let across = Some(u64::from_be_bytes(*across)).filter(|across| *across < u64::MAX).map(Position);
        Some(Claimed {
            sid: std::str::from_utf8(sid).ok()?.into(),
            joined_at: At { position: Position(u64::from_be_bytes(*position)), across },
            began: Timestamp::from_millis(i64::from_be_bytes(millis.try_into().ok()?)),
        })
    }

    /// Every part with its length, so that no two owners give the same text.
    fn signed(token: &[u8], owner: &Owner<'_>) -> Vec<u8> {
        let user = owner.user.map(str::as_bytes);
        let parts =
            [Some(owner.namespace.as_bytes()), Some(owner.tenant.as_bytes()), user, Some(owner.epoch.as_bytes())];
        let mut text = token.to_vec();
        for part in parts {
            let len = part.map_or(u64::MAX, |part| part.len() as u64);
            text.extend_from_slice(&len.to_be_bytes());
            text.extend_from_slice(part.unwrap_or_default());
        }
        text
    }
}

/// What a client comes back to: the same session, and every event after `after`.
pub(crate) struct Back {
    pub(crate) claimed: Claimed,
    pub(crate) saved: Saved,
    pub(crate) after: At,
    pub(crate) turn: Turn,
}

/// What a credential lets its user see, as a number for this process: all that it says but when it was made and ends.
pub(crate) fn rights(shared: &Shared, principal: &Principal) -> u64 {
    let of_time = |name: &str| matches!(name, "exp" | "iat" | "nbf" | "jti");
    let claims = principal.claims.as_object().into_iter().flatten().filter(|(name, _)| !of_time(name));
    shared.hasher.hash_one(claims.map(|(name, value)| (name.as_str(), value.to_string())).collect::<Vec<_>>())
}

/// Decides whether everything that the client missed can be given to it; `None` is a new session. The old half of its connection, if it is
/// still there, is closed.
pub(crate) async fn claim(
    shared: &Arc<Shared>,
    tenant: &Arc<Tenant>,
    owner: &Owner<'_>,
    principal: &Principal,
    pid: &str,
    offset: Option<&str>,
) -> Result<Option<Back>, Closing> {
    let Some(claimed) = shared.signer.check(pid, owner) else {
        // A token of another incarnation cannot be told from a forged one; the offset says which it is.
        let other = offset.and_then(|offset| offset.parse::<Offset>().ok());
        match other.is_some_and(|offset| offset.epoch != *shared.store.epoch()) {
            true => shared.lose(&shared.stats.lost_epoch, "epoch"),
            false => shared.lose(&shared.stats.lost_identity, "foreign"),
        }
        return Ok(None);
    };
    let after = match offset.map(str::parse::<Offset>) {
        None => claimed.joined_at,
        Some(Ok(Offset { epoch, position, across })) if epoch == *shared.store.epoch() => At { position, across },
        Some(_) => {
            shared.lose(&shared.stats.lost_epoch, "epoch");
            return Ok(None);
        }
    };
    // Of two at once the second one tries again: it cannot know yet what becomes of the first.
    let Some(turn) = Turn::take(tenant, &claimed.sid) else { return Err(Closing::Unavailable) };
    let half_open = tenant.directory.lock().sockets.get(&claimed.sid).cloned();
    let parting = match half_open {
        Some(old) => {
            // First, so that nothing of it changes afterwards. It may be closing already, elsewhere.
            old.session.close(Closing::Replaced);
            old.detach(Closing::Replaced);
            old.parting()
        }
        None => None,
    };
    let parting = parting.or_else(|| shared.recent.find(&claimed.sid));
    let (kept, after) = match parting {
        Some(parting) => {
            let after = parting.lift(after, rights(shared, principal));
            (Some(parting.saved), after)
        }
        None => {
            let kept = shared.store.session(&tenant.id, &claimed.sid).await.map_err(|error| unavailable(&error))?;
            // What cannot be read was not written by this version: then nothing is known about its rooms.
            (kept.map(|text| serde_json::from_str(&text).unwrap_or_else(|_| Saved::ended())), after)
        }
    };
    let saved = match kept {
        Some(saved) => saved,
        None if may_be_forgotten(shared, tenant, claimed.began, after.position).await? => {
            shared.lose(&shared.stats.lost_history, "expired");
            return Ok(None);
        }
        None => Saved::default(),
    };
    if saved.ended {
        shared.lose(&shared.stats.lost_identity, "ended");
        return Ok(None);
    }
    // With acknowledgements, what was received but not dealt with comes again.
    let position = after.position;
    let position = saved.acked.map_or(position, |acked| position.min(acked.max(claimed.joined_at.position)));
    let after = At { position, ..after };
    if let Some(reason) = beyond_history(shared, tenant, position).await.map_err(|error| unavailable(&error))? {
        shared.lose(&shared.stats.lost_history, reason);
        return Ok(None);
    }
    Ok(Some(Back { claimed, saved, after, turn }))
}

/// Whether something of rooms that span tenants cannot be given to a client that goes on from here.
pub(crate) async fn is_lost_across(shared: &Shared, rooms: &[Allowed], after: At) -> Result<bool> {
    let Some(across) = after.across.filter(|_| rooms.iter().any(|room| room.app)) else { return Ok(false) };
    let lost = beyond_history(shared, &shared.hub.across, across).await?;
    if let Some(reason) = lost {
        shared.lose(&shared.stats.lost_history, reason);
    }
    Ok(lost.is_some())
}

/// Ends a session for good: nobody comes back to it from now on, nor after a crash. Codes `store.busy`, `unavailable`.
pub(crate) async fn end(shared: &Shared, tenant: &TenantId, sid: &Arc<str>) -> Result<()> {
    shared.recent.put(sid, Parting { saved: Saved::ended(), ..Parting::default() });
    shared.store.put_session(tenant, sid, Saved::ended().to_text(), shared.kept_until()).await
}

/// Why not every event after this position is in what the catalog calls history, in the words of the counters: the log ends before it, so it
/// is of another incarnation; there were more since than are kept, or older ones. Nothing when all are there.
pub(crate) async fn beyond_history(shared: &Shared, tenant: &Tenant, after: Position) -> Result<Option<&'static str>> {
    let realtime = &shared.catalog.realtime;
    if tenant.begun().0.saturating_sub(after.0) > u64::from(realtime.history_count) {
        return Ok(Some("trimmed"));
    }
    beyond_log(shared, tenant, after, Some(shared.clock.now() - realtime.history_age)).await
}

/// The same of what the log still has, with none of it older than `oldest`.
pub(crate) async fn beyond_log(
    shared: &Shared,
    tenant: &Tenant,
    after: Position,
    oldest: Option<Timestamp>,
) -> Result<Option<&'static str>> {
    // What a client has may be on its way to others still.
    let head = tenant.begun();
    if after >= head {
        return Ok((after > head).then_some("epoch"));
    }
    let query = LogQuery { after, limit: 1, ..LogQuery::default() };
    let first = shared.store.read(&tenant.id, query).await?;
    let is_young = |event: &Event| oldest.is_none_or(|oldest| event.time >= oldest);
    Ok(match first.first() {
        Some(event) if event.position == after.next() && is_young(event) => None,
        Some(event) if event.position == after.next() => Some("expired"),
        Some(_) | None => Some("trimmed"),
    })
}

/// Whether the client may have asked for something that nobody knows any more: that is kept for as long as history after the last sign of
/// the client at least.
async fn may_be_forgotten(
    shared: &Shared,
    tenant: &Tenant,
    began: Timestamp,
    after: Position,
) -> Result<bool, Closing> {
    let oldest = shared.clock.now() - shared.catalog.realtime.history_age;
    let Some(before) = after.0.checked_sub(1).filter(|_| began < oldest) else { return Ok(began < oldest) };
    // The client was there when this event had been written.
    let query = LogQuery { after: Position(before), limit: 1, ..LogQuery::default() };
    let last = shared.store.read(&tenant.id, query).await.map_err(|error| unavailable(&error))?;
    Ok(!last.first().is_some_and(|event| event.position == after && event.time >= oldest))
}

/// Reads a parked socket up to date and puts it on the live feed, or leaves it parked when the client has to take something first.
///
/// From the moment the socket holds, every event is either held or at most at the position read after that moment, and then it is in
/// the log. So nothing is missed between the two, and the positions tell what is in both.
pub(crate) async fn catch_up(socket: &Arc<Socket>) -> Result<(), Closing> {
    loop {
        let Some(At { position, across }) = socket.hold() else { return Ok(()) };
        let Some(position) = read_up(socket, &socket.tenant, position).await? else { return Ok(()) };
        let across = match across {
            None => None,
            Some(across) => match read_up(socket, &socket.shared().hub.across, across).await? {
                None => return Ok(()),
                up_to => up_to,
            },
        };
        match socket.go_live(At { position, across }) {
            Joining::Live | Joining::Full => return Ok(()),
            Joining::Overflowed => {}
        }
    }
}

/// Gives a socket that holds what a log has after `at`. Answers up to where it was read; nothing when the client has to take something
/// first, then the socket is parked.
async fn read_up(socket: &Arc<Socket>, log: &Tenant, mut at: Position) -> Result<Option<Position>, Closing> {
    let shared = socket.shared();
    let target = log.begun();
    while at < target {
        let query = LogQuery { after: at, up_to: Some(target), limit: PAGE, ..LogQuery::default() };
        let page = shared.store.read(&log.id, query).await.map_err(|error| unavailable(&error))?;
        if page.first().is_none_or(|event| event.position != at.next()) {
            // The log has been trimmed beyond this socket: there is no whole any more.
            return Err(Closing::TooSlow);
        }
        for event in page {
            if socket.replay(&event) == Replayed::Full {
                socket.wait_for_room();
                return Ok(None);
            }
            at = event.position;
        }
    }
    Ok(Some(at.max(target)))
}

pub(crate) fn unavailable(error: &tidewire_core::Error) -> Closing {
    tracing::warn!(%error, "the store did not answer; the transport is closed so that the client tries again");
    Closing::Unavailable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_is_good_only_for_its_owner() {
        let signer = Signer::new(&[7; 32]);
        let owner = || Owner { namespace: "/", tenant: "a", user: Some("u"), epoch: "e1" };
        let claimed = Claimed {
            sid: "abcdefghijabcdefghij".into(),
            joined_at: At { position: Position(42), across: Some(Position(7)) },
            began: Timestamp::from_millis(1_700_000_000_000),
        };
        let pid = signer.sign(&claimed, &owner());
        assert_eq!(signer.check(&pid, &owner()).expect("own pid"), claimed);
        for other in [
            Owner { namespace: "/ws", ..owner() },
            Owner { tenant: "b", ..owner() },
            Owner { user: Some("v"), ..owner() },
            Owner { user: None, ..owner() },
            Owner { epoch: "e2", ..owner() },
            Owner { tenant: "au", user: Some(""), ..owner() },
        ] {
            assert!(signer.check(&pid, &other).is_none());
        }
        assert!(Signer::new(&[8; 32]).check(&pid, &owner()).is_none());
        for bad in ["", "x", "ä", &pid[1..], &format!("{pid}A")] {
            assert!(signer.check(bad, &owner()).is_none());
        }
    }

    #[test]
    fn a_pid_that_was_changed_is_no_pid() {
        let (signer, owner) = (Signer::new(&[7; 32]), Owner { namespace: "/", tenant: "a", user: None, epoch: "e1" });
        let soon = std::time::Duration::from_millis(300);
        let check = bolero::check!().with_test_time(soon).with_type::<(u64, u32, Vec<(u8, u8)>, Vec<u8>)>();
        check.for_each(|(position, millis, changes, noise)| {
            let joined_at = At { position: Position(*position), across: None };
            let began = Timestamp::from_millis(i64::from(*millis));
            let claimed = Claimed { sid: "abcdefghijabcdefghij".into(), joined_at, began };
            let pid = signer.sign(&claimed, &owner);
            let mut changed = pid.clone().into_bytes();
            for (at, byte) in changes {
                let at = usize::from(*at) % changed.len();
                changed[at] = *byte;
            }
            let changed = String::from_utf8_lossy(&changed);
            assert_eq!(signer.check(&changed, &owner), (changed == pid).then_some(claimed), "{changed}");
            assert_eq!(signer.check(&String::from_utf8_lossy(noise), &owner), None);
        });
    }
}
