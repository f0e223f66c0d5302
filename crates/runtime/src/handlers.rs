//! Everything that runs jobs in this process: the handlers, what they share, and what stands around them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use tidewire_core::Result;

use crate::extract::States;
use crate::handler::{EventHandler, Handler, JobHandler, OfEvent, OfJob};
use crate::layer::{Layer, Middleware};

/// Whether a handler's arguments can be made.
type Check = fn(&States) -> Result<()>;

/// Handlers by job type, with their states and layers.
#[derive(Clone, Default)]
pub struct Handlers {
    by_kind: BTreeMap<Arc<str>, (Arc<dyn Handler>, Check)>,
    states: Arc<States>,
    layers: Vec<Arc<dyn Layer>>,
}

impl Handlers {
    /// Adds the handler of a job type; a later one replaces an earlier one. It gets the job's data as `J`; data of another shape fails
    /// the job.
    pub fn on_job<J, Args, H>(&mut self, kind: impl Into<Arc<str>>, handler: H)
    where
        J: DeserializeOwned + 'static,
        Args: 'static,
        H: JobHandler<J, Args>,
    {
        self.by_kind.insert(kind.into(), (Arc::new(OfJob::new(handler)), H::check));
    }

    /// Adds a durable handler of events, by the job type that stands for it.
    pub fn on_event<Args, H>(&mut self, kind: impl Into<Arc<str>>, handler: H)
    where
        Args: 'static,
        H: EventHandler<Args>,
    {
        self.by_kind.insert(kind.into(), (Arc::new(OfEvent::new(handler)), H::check));
    }

    /// Adds a value that handlers take as [`State<T>`](crate::State); a later one of the same type replaces an earlier one.
    pub fn state<T: Send + Sync + 'static>(&mut self, value: T) {
        Arc::make_mut(&mut self.states).add(value);
    }

    /// Adds middleware inside of what was added before.
    pub fn layer(&mut self, layer: impl Middleware) {
        self.layers.push(Arc::new(layer));
    }

    /// Whether every handler can be called. Code `handler.missing_state`.
    pub fn check(&self) -> Result<()> {
        self.by_kind.values().try_for_each(|(_, check)| check(&self.states))
    }

    /// The types that have handlers.
    pub fn kinds(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_kind.keys()
    }

    pub(crate) fn of(&self, kind: &str) -> Option<&dyn Handler> {
        self.by_kind.get(kind).map(|(handler, _)| &**handler)
    }

    pub(crate) fn layer_at(&self, index: usize) -> Option<&dyn Layer> {
        self.layers.get(index).map(|layer| &**layer)
    }

    pub(crate) fn states(&self) -> &Arc<States> {
        &self.states
    }
}
