//! The one way in: a request is expanded, committed, and its ephemeral events are handed to who is there.

use std::sync::{Arc, OnceLock};

use tidewire_core::commit::{Commit, Committed, Expander, Expansion, Idempotency, Origin, Request, appended_ephemeral};
use tidewire_core::event::Ephemeral;
use tidewire_core::store::Store;
use tidewire_core::time::Clock;
use tidewire_core::{Result, TenantId};

/// Delivers events that are not logged.
pub trait Broadcast: Send + Sync {
    /// Hands `events` to the sockets that are there. Must not block.
    fn broadcast(&self, events: &[Ephemeral]);
}

/// Turns requests into commits. One per app, shared by everything that publishes.
pub struct Publisher {
    expander: Arc<Expander>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    broadcast: OnceLock<Arc<dyn Broadcast>>,
}

impl Publisher {
    /// A publisher over `store`.
    pub fn new(expander: Arc<Expander>, store: Arc<dyn Store>, clock: Arc<dyn Clock>) -> Self {
        Self { expander, store, clock, broadcast: OnceLock::new() }
    }

    /// Says who delivers ephemeral events. Only the first call counts; before it they go nowhere.
    pub fn broadcast_to(&self, broadcast: Arc<dyn Broadcast>) {
        drop(self.broadcast.set(broadcast));
    }

    /// The store that is published to.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What requests are expanded by.
    pub fn expander(&self) -> &Arc<Expander> {
        &self.expander
    }

    /// The clock.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Commits a request from outside, all or nothing. Errors are those of [`Expander::expand`] and of the store.
    pub async fn commit(
        &self,
        tenant: &TenantId,
        request: Request,
        idempotency: Option<Idempotency>,
    ) -> Result<Committed> {
        let mut expansion = self.expand(tenant, request, &Origin::default())?;
        expansion.commit.idempotency = idempotency;
        let Expansion { commit, ephemeral } = expansion;
        let committed = if commit.is_empty() { Committed::default() } else { self.store.commit(commit).await? };
        Ok(self.with_ephemeral(committed, &ephemeral))
    }

    /// Expands a request without committing it.
    pub fn expand(&self, tenant: &TenantId, request: Request, origin: &Origin) -> Result<Expansion> {
        self.expander.expand(tenant, request, origin, self.clock.now())
    }

    /// Hands events that are not logged to who is there.
    pub(crate) fn broadcast(&self, ephemeral: &[Ephemeral]) {
        if let Some(broadcast) = self.broadcast.get().filter(|_| !ephemeral.is_empty()) {
            broadcast.broadcast(ephemeral);
        }
    }

    /// Delivers the ephemeral part of an expansion whose commit is durable, and adds it to the answer.
    pub fn with_ephemeral(&self, mut committed: Committed, ephemeral: &[Ephemeral]) -> Committed {
        if !ephemeral.is_empty() && !committed.deduplicated {
            if !committed.replayed {
                self.broadcast(ephemeral);
            }
            committed.events.extend(ephemeral.iter().map(appended_ephemeral));
        }
        committed
    }

    /// Expands what a job's handler staged. Nothing when it staged nothing.
    pub(crate) fn effects(
        &self,
        tenant: &TenantId,
        request: Request,
        origin: &Origin,
    ) -> Result<(Option<Commit>, Vec<Ephemeral>)> {
        if request.is_empty() {
            return Ok((None, Vec::new()));
        }
        let Expansion { commit, ephemeral } = self.expand(tenant, request, origin)?;
        Ok(((!commit.is_empty()).then_some(commit), ephemeral))
    }
}
