//! How far a user has dealt with a tenant's log, by a name: for at-least-once processing over sessions, devices and restarts.
//!
//! All cursors of a user are one document in the store, because so they can be counted. It is read when it is needed and written when a
//! cursor moves. Calls for one user are dealt with one after the other, so a cursor never goes back, however many tabs move it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use parking_lot::Mutex;
use serde_json::Value;
use tidewire_core::event::{Epoch, Offset, Position};
use tidewire_core::{Error, Kind, Result, TenantId};

use crate::gateway::Shared;

/// The name of the cursor that has no other.
pub(crate) const USUAL: &str = "acked";
/// The code for one more than these.
pub(crate) const TOO_MANY: &str = "limit.cursors";
/// The most cursors of one user.
const MOST: usize = 32;
/// The longest name in bytes.
const MAX_NAME: usize = 64;
/// How long a user's cursors are kept after one of them was last moved.
const KEPT: Duration = Duration::from_secs(400 * 24 * 3600);

/// The cursors that are in use.
#[derive(Default)]
pub(crate) struct Cursors(Mutex<HashMap<Owner, Arc<OfUser>>>);

/// The tenant and the user.
type Owner = (TenantId, Arc<str>);

/// The cursors of one user as the store has them; `None` while that is not known.
type OfUser = tokio::sync::Mutex<Option<Named>>;

/// Offsets by the names of the cursors.
type Named = BTreeMap<String, String>;

impl Cursors {
    fn of(&self, tenant: &TenantId, user: &Arc<str>) -> Arc<OfUser> {
        self.0.lock().entry((tenant.clone(), user.clone())).or_default().clone()
    }

    /// Forgets what nobody uses; the store has it.
    pub(crate) fn tidy(&self) {
        let mut users = self.0.lock();
        users.retain(|_, cursors| Arc::strong_count(cursors) > 1);
        users.shrink_to_fit();
    }
}

/// The name of a cursor: `None` when there is none. Code `message.invalid_data`.
pub(crate) fn name<'a>(field: &str, value: &'a Value) -> Result<Option<&'a str>> {
    let fits = |name: &&str| {
        (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
    };
    match value {
        Value::Null => Ok(None),
        value => value.as_str().filter(fits).map(Some).ok_or_else(|| {
            let detail = format!("{field}: expected the name of a cursor, 1 to {MAX_NAME} of A-Z a-z 0-9 . _ : -");
            Error::invalid("message.invalid_data", detail)
        }),
    }
}

/// Where a cursor is, if the user has it. It may be of another incarnation of the log.
pub(crate) async fn find(shared: &Shared, tenant: &TenantId, user: &Arc<str>, name: &str) -> Result<Option<Offset>> {
    let cursors = shared.cursors.of(tenant, user);
    let mut cursors = cursors.lock().await;
    Ok(offset(load(shared, tenant, user, &mut cursors).await?, name))
}

/// Moves a cursor to `position`, or makes it, and answers where it is then: never before where it was in this log. It is durable, in the
/// sense of the store, when this answers. Codes `limit.cursors`, `store.busy`, `unavailable`.
pub(crate) async fn advance(
    shared: &Shared,
    tenant: &TenantId,
    user: &Arc<str>,
    name: &str,
    position: Position,
) -> Result<Position> {
    let epoch = shared.store.epoch();
    let cursors = shared.cursors.of(tenant, user);
    let mut cursors = cursors.lock().await;
    let known = load(shared, tenant, user, &mut cursors).await?;
    match offset(known, name) {
        Some(at) if at.epoch == *epoch && at.position >= position => return Ok(at.position),
        Some(_) => {}
        None if known.len() >= MOST => {
            let detail = format!("a user has at most {MOST} cursors; forget one first");
            return Err(Error::new(Kind::Limited, TOO_MANY, detail));
        }
        None => {}
    }
    let mut next = known.clone();
    next.insert(name.to_owned(), Offset { epoch: Epoch::clone(epoch), position, across: None }.to_string());
    keep(shared, tenant, user, &mut cursors, next).await?;
    Ok(position)
}

/// Forgets a cursor. Answers whether there was one. Codes `store.busy`, `unavailable`.
pub(crate) async fn forget(shared: &Shared, tenant: &TenantId, user: &Arc<str>, name: &str) -> Result<bool> {
    let cursors = shared.cursors.of(tenant, user);
    let mut cursors = cursors.lock().await;
    let mut next = load(shared, tenant, user, &mut cursors).await?.clone();
    if next.remove(name).is_none() {
        return Ok(false);
    }
    keep(shared, tenant, user, &mut cursors, next).await?;
    Ok(true)
}

fn offset(cursors: &Named, name: &str) -> Option<Offset> {
    cursors.get(name)?.parse().ok()
}

async fn load<'a>(shared: &Shared, tenant: &TenantId, user: &str, cursors: &'a mut Option<Named>) -> Result<&'a Named> {
    let read = match cursors.take() {
        Some(known) => known,
        None => match shared.store.session(tenant, &document(user)).await? {
            None => Named::new(),
            Some(text) => serde_json::from_str(&text)
                .map_err(|error| Error::internal("the cursors that are kept cannot be read", error))?,
        },
    };
    Ok(cursors.insert(read))
}

async fn keep(shared: &Shared, tenant: &TenantId, user: &str, cursors: &mut Option<Named>, next: Named) -> Result<()> {
    // Whatever becomes of the write: nobody may be told of more than the store is known to have.
    *cursors = None;
    let text = crate::encode::json(&next);
    shared.store.put_session(tenant, &document(user), text, shared.clock.now() + KEPT).await?;
    *cursors = Some(next);
    Ok(())
}

/// What a user's cursors are kept under. A session's id has no dot, and a user's name may be as long as it likes.
fn document(user: &str) -> String {
    format!("cursors.{}", URL_SAFE_NO_PAD.encode(digest(&SHA256, user.as_bytes())))
}
