//! One message of a client as the app's handler sees it, and the handler within its time.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidewire_core::commit::{MAX_DATA_BYTES, NewEvent, NewJob, Request};
use tidewire_core::principal::Sender;
use tidewire_core::store::Store;
use tidewire_core::time::format_duration;
use tidewire_core::{Error, Json, Kind, Result, TenantId};
use tokio::task::JoinSet;

use crate::extract::{Context, States};
use crate::handler::MessageHandler;
use crate::run::panic_text;

/// How long a handler of a message may take, unless the builder says otherwise. Nothing else that its connection sends is looked at
/// meanwhile, a pong included, so it is well below the time that a pong may take.
pub const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// A message of a client: who sent it, and where its effects are staged. Cheap to clone; all clones are of the same message.
///
/// What a handler stages is committed in one commit, together with what the catalog publishes and enqueues for the message, after the
/// handler has answered and before its answer is told. If it answers an error, nothing is committed.
#[derive(Clone)]
pub struct MessageContext(Arc<Received>);

struct Received {
    name: Box<str>,
    sender: Sender,
    store: Arc<dyn Store>,
    states: Arc<States>,
    staged: Mutex<Request>,
}

impl MessageContext {
    pub(crate) fn new(name: &str, sender: Sender, store: Arc<dyn Store>, states: Arc<States>) -> Self {
        Self(Arc::new(Received { name: name.into(), sender, store, states, staged: Mutex::default() }))
    }

    /// The message's name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The tenant that the socket is in; everything staged belongs to it.
    pub fn tenant(&self) -> &TenantId {
        &self.0.sender.tenant
    }

    /// The user, by the credential of the socket.
    pub fn user(&self) -> &str {
        &self.0.sender.user
    }

    /// The user's roles in this tenant.
    pub fn roles(&self) -> &[String] {
        &self.0.sender.roles
    }

    /// The socket's id, as its client knows it.
    pub fn socket(&self) -> &str {
        &self.0.sender.socket
    }

    /// Stages an event. It is about the sender unless it names a user.
    pub fn publish(&self, event: NewEvent) {
        self.0.staged.lock().events.push(event);
    }

    /// Stages a job. It works for the sender unless it names a user.
    pub fn enqueue(&self, job: NewJob) {
        self.0.staged.lock().jobs.push(job);
    }
}

impl Context for MessageContext {
    fn tenant(&self) -> &TenantId {
        self.tenant()
    }

    fn states(&self) -> &States {
        &self.0.states
    }

    fn store(&self) -> &Arc<dyn Store> {
        &self.0.store
    }
}

/// The work on a message. Dropping it ends it.
pub type Answering = Pin<Box<dyn Future<Output = Result<Json>> + Send>>;

/// Answers the messages of one name.
pub(crate) trait Answers: Send + Sync {
    fn answer(&self, data: Value, cx: &MessageContext) -> Result<Answering>;
}

/// A [`MessageHandler`] that reads the message's data.
pub(crate) struct OfMessage<D, Args, H> {
    handler: H,
    takes: PhantomData<fn(D, Args)>,
}

impl<D, Args, H> OfMessage<D, Args, H> {
    pub(crate) fn new(handler: H) -> Self {
        Self { handler, takes: PhantomData }
    }
}

impl<D: DeserializeOwned, Args, H: MessageHandler<D, Args>> Answers for OfMessage<D, Args, H> {
    fn answer(&self, data: Value, cx: &MessageContext) -> Result<Answering> {
        let data = serde_json::from_value::<D>(data).map_err(|error| {
            Error::invalid(
                "message.invalid_data",
                format!("the message does not have the shape that its handler takes: {error}"),
            )
        })?;
        self.handler.begin(data, cx).map_err(|error| {
            let detail = format!("the handler of {:?} could not be called", cx.name());
            Error::internal(detail, error.message())
        })
    }
}

/// What a handler answered, as the client gets it.
pub(crate) fn told(answer: &impl Serialize) -> Result<Json> {
    let answer = Json::from_serialize(answer)
        .map_err(|error| Error::internal("the answer to this message cannot be written as JSON", error))?;
    match answer.get().len() {
        0..=MAX_DATA_BYTES => Ok(answer),
        size => {
            let detail = format!("the answer to this message has {size} bytes, more than {MAX_DATA_BYTES}");
            Err(Error::new(Kind::TooLarge, "data.too_large", detail))
        }
    }
}

/// Waits for a handler up to `limit`, and gives its answer with what it staged. A handler that takes longer is dropped at its next
/// `.await`, as is one whose answer nobody waits for any more.
///
/// Codes: `message.timed_out`, `internal` when it panicked, and its own.
pub(crate) async fn within(
    limit: Duration,
    cx: &MessageContext,
    work: impl Future<Output = Result<Json>> + Send + 'static,
) -> Result<(Json, Request)> {
    // A task of its own, so that a panic ends this message and nothing else.
    let mut task = JoinSet::new();
    task.spawn(work);
    let failed = |why: String| Error::internal(format!("the handler of {:?} failed", cx.name()), why);
    let answer = match tokio::time::timeout(limit, task.join_next()).await {
        Ok(Some(Ok(answer))) => answer?,
        Ok(Some(Err(error))) => return Err(failed(panic_text(error))),
        Ok(None) => return Err(failed("it was never begun".to_owned())),
        Err(_) => {
            let limit = format_duration(limit);
            let detail =
                format!("{:?} was not answered within {limit}, and nothing of it is stored; try again", cx.name());
            return Err(Error::new(Kind::Unavailable, "message.timed_out", detail));
        }
    };
    Ok((answer, std::mem::take(&mut *cx.0.staged.lock())))
}
