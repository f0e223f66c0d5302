//! The tenant: the owner of every event, job, room, key and row.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The name of a tenant: 1 to 128 bytes of `A-Z a-z 0-9 . _ : @ -`. Cheap to clone.
///
/// Nothing in Tidewire can be read or written without one, and only the credential of the caller decides which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Arc<str>);

impl TenantId {
    /// The longest name of a tenant in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Checks and makes a tenant name. Code `tenant.invalid` otherwise.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:@-".contains(&b);
        if name.is_empty() || name.len() > Self::MAX_BYTES || !name.bytes().all(allowed) {
            let shown: String = name.chars().take(40).collect();
            return Err(Error::invalid(
                "tenant.invalid",
                format!("tenant: expected 1 to 128 characters of A-Z a-z 0-9 . _ : @ -, got {shown:?}"),
            ));
        }
        Ok(Self(name.into()))
    }

    /// The owner of what belongs to the whole app and to no tenant: app-wide schedules and their jobs. No caller can name it.
    pub fn app() -> Self {
        Self("$app".into())
    }

    /// The owner of the log of all events that go to rooms which span tenants, whosever they are. No caller can name it.
    pub fn across() -> Self {
        Self("$across".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads a name that Tidewire itself stored.
    pub fn from_stored(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for TenantId {
    type Error = Error;
    fn try_from(name: String) -> Result<Self> {
        Self::new(name)
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.as_str().to_owned()
    }
}
