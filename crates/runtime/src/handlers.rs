//! The handlers of this process, of jobs, events and clients' messages; what they share, and what stands around runs of jobs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tidewire_core::commit::Request;
use tidewire_core::principal::Sender;
use tidewire_core::store::{Answer, Store};
use tidewire_core::{Json, Result};

use crate::extract::States;
use crate::handler::{EventHandler, Handler, JobHandler, MessageHandler, OfEvent, OfJob};
use crate::layer::{Layer, Middleware};
use crate::message::{Answers, MessageContext, OfMessage, within};

/// Whether a handler's arguments can be made.
type Check = fn(&States) -> Result<()>;

/// Handlers by job type and by message, with their states and layers.
#[derive(Clone, Default)]
pub struct Handlers {
    by_kind: BTreeMap<Arc<str>, (Arc<dyn Handler>, Check)>,
    by_message: BTreeMap<Arc<str>, (Arc<dyn Answers>, Check)>,
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

    /// Adds the handler of a message of clients; a later one replaces an earlier one. It gets the message's data as `D`.
    pub fn on_message<D, Args, H>(&mut self, name: impl Into<Arc<str>>, handler: H)
    where
        D: DeserializeOwned + 'static,
        Args: 'static,
        H: MessageHandler<D, Args>,
    {
        self.by_message.insert(name.into(), (Arc::new(OfMessage::new(handler)), H::check));
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
        let jobs = self.by_kind.values().map(|(_, check)| check);
        let messages = self.by_message.values().map(|(_, check)| check);
        jobs.chain(messages).try_for_each(|check| check(&self.states))
    }

    /// The messages that have handlers.
    pub fn messages(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_message.keys()
    }

    /// Calls the handler of a message within `limit`, and gives its answer with what it staged; `None` when it has no handler.
    ///
    /// Codes: `message.invalid_data` when the data is of another shape than the handler takes, `message.timed_out`, `internal` when it
    /// panicked or could not be called, `data.too_large` for an answer over 256 KiB, and those that the handler answers.
    pub fn answer(
        &self,
        message: &str,
        data: &Value,
        sender: &Sender,
        store: &Arc<dyn Store>,
        limit: Duration,
    ) -> Option<Answer<'static, (Json, Request)>> {
        let (handler, _) = self.by_message.get(message)?;
        let (handler, data) = (handler.clone(), data.clone());
        let cx = MessageContext::new(message, sender.clone(), store.clone(), self.states.clone());
        let own = cx.clone();
        let work = async move { handler.answer(data, &own)?.await };
        Some(Box::pin(async move { within(limit, &cx, work).await }))
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
