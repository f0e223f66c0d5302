//! Credentials that are no longer good, although they have not ended.
//!
//! A revocation names a user, a session or one token, or nobody, which means a whole tenant, and a time: what was issued before it is
//! refused. When a credential was issued is its claim `iat`; one that does not say so counts as issued before. The session is the claim
//! `sid`, the token the claim `jti` (RFC 7519).
//!
//! Invariants:
//!
//! - All revocations are in memory, so that asking costs a few look-ups; there are at most `PER_SHARD` times `SHARDS` of them.
//! - They are kept in the store, in documents that are written whole, and read back at the start: a restart forgets none.
//! - A revocation holds from the moment it is made, before it is durable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidewire_core::principal::Principal;
use tidewire_core::store::Store;
use tidewire_core::time::Clock;
use tidewire_core::{Error, Kind, Result, TenantId, Timestamp};

/// In how many documents they are kept. A tenant's are all in one.
const SHARDS: usize = 64;

/// The most revocations in one document.
const PER_SHARD: usize = 2_000;

/// How long one is kept unless it says otherwise: as long as the longest token that `POST /v1/tokens` signs.
pub const DEFAULT_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// The longest that one is kept.
pub const LONGEST_TTL: Duration = Duration::from_secs(400 * 24 * 3600);

/// Whose credentials are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// Everybody's.
    Everybody,
    /// One user's.
    User(String),
    /// Those of one session: the claim `sid`, or the `id` of the `session` that the app's endpoint tells.
    Session(String),
    /// One token: the claim `jti`.
    Token(String),
}

/// The tenant, or all of them, and whose.
type Key = (Option<TenantId>, Subject);

/// Until when a revocation is kept, and what it refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Revoked {
    before: Timestamp,
    until: Timestamp,
}

/// How one stands in the store.
#[derive(Serialize, Deserialize)]
struct Entry {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    tenant: Option<TenantId>,
    subject: Subject,
    before: Timestamp,
    until: Timestamp,
}

/// All revocations of an app.
pub struct Revocations {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    known: RwLock<HashMap<Key, Revoked>>,
    /// Held while a document is written, so that an older one never replaces a newer.
    writing: tokio::sync::Mutex<()>,
}

impl Revocations {
    /// Reads what is kept.
    pub async fn open(store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Result<Self> {
        let mut known = HashMap::new();
        for shard in 0..SHARDS {
            let Some(text) = store.session(&TenantId::app(), &document(shard)).await? else { continue };
            let entries: Vec<Entry> = serde_json::from_str(&text)
                .map_err(|error| Error::internal("the revocations that are kept cannot be read", error))?;
            known.extend(
                entries
                    .into_iter()
                    .map(|entry| ((entry.tenant, entry.subject), Revoked { before: entry.before, until: entry.until })),
            );
        }
        Ok(Self { store, clock, known: RwLock::new(known), writing: tokio::sync::Mutex::default() })
    }

    /// Refuses from now on what was issued before `before`, for `ttl`. Of two for the same the later time counts, and it is kept as long
    /// as either asked for.
    ///
    /// `refused` is called as soon as the revocation holds; the answer comes when it is durable as well, in the sense of the store.
    /// Codes `limit.revocations` when there is no room for more, `unavailable` when the store did not keep it; it still holds until a
    /// restart then.
    pub async fn revoke(
        &self,
        tenant: Option<TenantId>,
        subject: Subject,
        before: Timestamp,
        ttl: Duration,
        refused: impl FnOnce(),
    ) -> Result<Timestamp> {
        let _writing = self.writing.lock().await;
        let now = self.clock.now();
        let shard = shard_of(tenant.as_ref());
        let key = (tenant, subject);
        let (until, entries) = {
            let mut known = self.known.write();
            known.retain(|_, revoked| revoked.until > now);
            let found = known.get(&key).copied();
            if found.is_none()
                && known.keys().filter(|(tenant, _)| shard_of(tenant.as_ref()) == shard).count() >= PER_SHARD
            {
                let detail = format!("{PER_SHARD} revocations are kept already; revoke the tenant as a whole");
                return Err(Error::new(Kind::Limited, "limit.revocations", detail));
            }
            let before = found.map_or(before, |found| found.before.max(before));
            let until = found.map_or(now + ttl, |found| found.until.max(now + ttl));
            known.insert(key, Revoked { before, until });
            let of_shard = known.iter().filter(|((tenant, _), _)| shard_of(tenant.as_ref()) == shard);
            let entries: Vec<Entry> = of_shard
                .map(|((tenant, subject), revoked)| Entry {
                    tenant: tenant.clone(),
                    subject: subject.clone(),
                    before: revoked.before,
                    until: revoked.until,
                })
                .collect();
            (until, entries)
        };
        refused();
        let last = entries.iter().map(|entry| entry.until).max().unwrap_or(until);
        let text = serde_json::to_string(&entries).map_err(|error| Error::internal("revocations as JSON", error))?;
        let kept = self.store.put_session(&TenantId::app(), &document(shard), text, last).await;
        kept.map_err(|error| {
            tracing::warn!(%error, "a revocation was not kept");
            Error::unavailable("the revocation holds now, but the store has not kept it; try again")
        })?;
        Ok(until)
    }

    /// Whether the credential behind `principal` was revoked.
    pub fn is_revoked(&self, principal: &Principal) -> bool {
        let known = self.known.read();
        if known.is_empty() {
            return false;
        }
        let claim = |name: &str| crate::auth::text(principal.claims.get(name));
        let user = principal.user.as_deref().map(|user| Subject::User(user.to_owned()));
        // A visitor shows no credential that could be revoked.
        let Some(user) = user else { return false };
        let subjects = [
            Some(Subject::Everybody),
            Some(user),
            claim("sid").map(Subject::Session),
            claim("jti").map(Subject::Token),
        ];
        // A user who has switched stands in one tenant with the credential of another: either can be meant.
        let home = claim("homeTenant").and_then(|tenant| TenantId::new(tenant).ok());
        let issued = principal.claims.get("iat").and_then(Value::as_f64);
        let issued = issued.map(|seconds| Timestamp::from_micros((seconds * 1e6).round() as i64));
        let now = self.clock.now();
        let is_hit = |tenant: Option<TenantId>, subject: &Subject| {
            let revoked = known.get(&(tenant, subject.clone()));
            revoked.is_some_and(|revoked| revoked.until > now && issued.is_none_or(|issued| issued < revoked.before))
        };
        let tenants = [Some(None), Some(Some(principal.tenant.clone())), home.map(Some)];
        tenants
            .into_iter()
            .flatten()
            .any(|tenant| subjects.iter().flatten().any(|subject| is_hit(tenant.clone(), subject)))
    }
}

fn document(shard: usize) -> String {
    format!("revocations.{shard}")
}

/// FNV-1a: it must give the same number in every build, because documents are found by it.
fn shard_of(tenant: Option<&TenantId>) -> usize {
    let text = tenant.map_or("", TenantId::as_str);
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash % SHARDS as u64) as usize
}
