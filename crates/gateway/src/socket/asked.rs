//! What a socket asked for, rooms and types, and from where on.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::Position;

use crate::cast::Place;
use crate::presence::Word;

/// From where on events are for a socket: those up to here are not, however late they are read. In the log of its tenant, and in that
/// across tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Since(pub(super) Position, pub(super) Position);

impl Since {
    pub(crate) const EVER: Self = Self(Position(0), Position(0));

    pub(super) fn is_before(self, place: Place) -> bool {
        match place {
            Place::Own(position) => self.0 < position,
            Place::Across(position) => self.1 < position,
            Place::Nowhere => true,
        }
    }

    pub(super) fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0), self.1.min(other.1))
    }

    pub(super) fn max(self, other: Self) -> Self {
        Self(self.0.max(other.0), self.1.max(other.1))
    }
}

/// Event types that a socket is subscribed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(super) pattern: Pattern,
    pub(super) from: Since,
}

impl Wanted {
    /// Since ever.
    pub(crate) fn ever(pattern: Pattern) -> Self {
        Self { pattern, from: Since::EVER }
    }

    pub(super) fn saved(&self) -> (String, Since) {
        let text = match &self.pattern {
            Pattern::Exact(name) => (**name).to_owned(),
            Pattern::Prefix(prefix) => format!("{prefix}*"),
        };
        (text, self.from)
    }

    /// What was kept.
    pub(crate) fn restored((text, from): &(String, Since)) -> Option<Self> {
        Some(Self { pattern: Pattern::parse(text)?, from: *from })
    }
}

/// A room that a socket is in.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    pub(super) name: Arc<str>,
    pub(super) from: Since,
    pub(super) app: bool,
    pub(super) auto: bool,
    pub(super) presence: bool,
    /// What the user tells of itself there.
    pub(super) data: Option<Word>,
}

impl Joined {
    /// It is in there by itself, and since ever.
    pub(super) fn is_given(&self) -> bool {
        self.auto && self.from == Since::EVER
    }
}
