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

/// Who sent a message: a user, as the credential of its socket says.
#[derive(Clone, Debug)]
pub struct Sender {
    /// The tenant that the socket is in.
    pub tenant: TenantId,
    /// The user's id.
    pub user: Arc<str>,
    /// The user's roles in this tenant.
    pub roles: Arc<[String]>,
    /// The socket's id, as its client knows it.
    pub socket: Arc<str>,
}
