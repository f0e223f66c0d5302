//! Events as they are logged, and the place of an event in its tenant's log.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Error, Id, Json, Result, TenantId, Timestamp};

/// The place of an event in its tenant's log: 1, 2, 3 … without gaps. 0 stands before the first event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub u64);

impl Position {
    /// The next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The identity of a log's incarnation. It changes when a store is created or restored, so that a position from an older
/// incarnation is never mistaken for one of this log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(Arc<str>);

impl Epoch {
    /// An epoch from its text: 1 to 32 of `a-z 0-9`.
    pub fn new(text: &str) -> Result<Self> {
        if text.is_empty() || text.len() > 32 || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(Error::invalid("epoch.invalid", "epoch: expected 1 to 32 of a-z 0-9"));
        }
        Ok(Self(text.into()))
    }

    /// A new epoch from 64 random bits.
    pub fn from_random(random: u64) -> Self {
        Self(format!("{random:013x}").into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What a client remembers: `epoch.position`, the last event it has seen, or `epoch.position+number` where rooms span tenants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offset {
    /// The incarnation of the log.
    pub epoch: Epoch,
    /// The place in it.
    pub position: Position,
    /// The place in the log of what goes to rooms that span tenants, of a client that is in one.
    pub across: Option<Position>,
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch.as_str(), self.position)?;
        self.across.map_or(Ok(()), |number| write!(f, "+{number}"))
    }
}

impl FromStr for Offset {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::invalid("offset.invalid", "offset: expected EPOCH.POSITION");
        let (epoch, position) = text.split_once('.').ok_or_else(wrong)?;
        let (position, across) = match position.split_once('+') {
            Some((position, number)) => (position, Some(Position(number.parse().map_err(|_| wrong())?))),
            None => (position, None),
        };
        let position = Position(position.parse().map_err(|_| wrong())?);
        Ok(Self { epoch: Epoch::new(epoch).map_err(|_| wrong())?, position, across })
    }
}

/// An event in its tenant's log. Immutable; shared between the log's readers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Whose log it is in.
    pub tenant: TenantId,
    /// Its place in that log.
    pub position: Position,
    /// In the log of [`TenantId::across`]: the tenant that it is of and its place there.
    #[serde(skip)]
    pub origin: Option<(TenantId, Position)>,
    /// Its id, unique in the tenant.
    pub id: Id,
    /// Its type, as the catalog spells it.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// When it was committed. Never decreases along the positions of a log.
    pub time: Timestamp,
    /// What it says.
    pub data: Json,
    /// The rooms it was resolved to when it was committed, without the tenant.
    #[serde(skip)]
    pub rooms: Arc<[Box<str>]>,
    /// The user it concerns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_id: Option<Box<str>>,
    /// What the caller groups it with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<Box<str>>,
    /// The event or job that caused it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub causation_id: Option<Box<str>>,
    /// The aggregate stream it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stream: Option<Box<str>>,
    /// Its version in that stream: 1, 2, 3 …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl Event {
    /// The same as it stands in the log of [`TenantId::across`].
    pub fn across(self, number: Position) -> Self {
        let Self { tenant, position, .. } = self;
        Self { tenant: TenantId::across(), position: number, origin: Some((tenant, position)), ..self }
    }
}

/// An event that the catalog marks `ephemeral`: delivered to who is there, never logged.
#[derive(Clone, Debug)]
pub struct Ephemeral {
    /// Whose rooms it goes to.
    pub tenant: TenantId,
    /// Its id.
    pub id: Id,
    /// Its type.
    pub kind: Arc<str>,
    /// When it was published.
    pub time: Timestamp,
    /// What it says.
    pub data: Json,
    /// The rooms.
    pub rooms: Arc<[Box<str>]>,
    /// The user it concerns.
    pub user_id: Option<Box<str>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_reads_as_written() {
        let offset: Offset = "k3j9.42".parse().expect("offset");
        assert_eq!((offset.epoch.as_str(), offset.position), ("k3j9", Position(42)));
        assert_eq!((offset.across, offset.to_string()), (None, "k3j9.42".to_owned()));
        let offset: Offset = "k3j9.42+7".parse().expect("offset");
        assert_eq!(
            (offset.position, offset.across, offset.to_string()),
            (Position(42), Some(Position(7)), "k3j9.42+7".to_owned())
        );
        for bad in ["", "42", ".42", "k3.", "k3.-1", "K3.1", "some text", "k3.1.2", "k3.1+", "k3.1+x", "k3.1+2+3"] {
            assert!(bad.parse::<Offset>().is_err(), "{bad}");
        }
    }
}
