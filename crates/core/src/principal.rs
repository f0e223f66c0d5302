//! Who is at the other end of a socket or a request, as the credential says.

use std::sync::Arc;

use crate::{TenantId, Timestamp};

/// A verified end user (or an anonymous visitor) of one tenant.
#[derive(Clone, Debug)]
pub struct Principal {
    /// The tenant that the credential names. Never taken from anything the client sends beside it.
    pub tenant: TenantId,
    /// The user's id; absent for visitors without a login.
    pub user: Option<Arc<str>>,
    /// The user's roles.
    pub roles: Arc<[String]>,
    /// What expressions see as `user`: `id`, `tenant`, `roles` and every claim of the credential.
    pub claims: Arc<serde_json::Value>,
    /// When the credential ends.
    pub expires: Option<Timestamp>,
    /// When to ask again whether it is still good, for credentials that only somebody else can judge.
    pub recheck: Option<Timestamp>,
}
