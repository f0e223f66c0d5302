//! What a handler may ask for beside its job: the arguments that implement [`FromContext`].

use std::any::{Any, TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidewire_core::event::Event;
use tidewire_core::store::{LogQuery, Store};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use crate::context::JobContext;
use crate::handler::{HandlerError, final_error};
#[cfg(doc)]
use crate::message::MessageContext;

/// The values that handlers share, one of each type.
#[derive(Clone, Default)]
pub struct States(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl States {
    /// Adds a value; a later one of the same type replaces an earlier one.
    pub fn add<T: Send + Sync + 'static>(&mut self, value: T) {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
    }

    /// The value of a type. Code `handler.missing_state` when there is none.
    pub fn get<T: Send + Sync + 'static>(&self) -> Result<Arc<T>> {
        let value = self.0.get(&TypeId::of::<T>()).cloned().and_then(|value| value.downcast().ok());
        value.ok_or_else(|| {
            let name = type_name::<T>();
            let detail = format!("a handler takes State<{name}>, and no .state(…) of the builder gives a {name}");
            Error::invalid("handler.missing_state", detail)
        })
    }
}

impl fmt::Debug for States {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "States({})", self.0.len())
    }
}

/// What a handler is called for: a run of a job ([`JobContext`]), or a message of a client ([`MessageContext`]).
pub trait Context: Clone + Send + 'static {
    /// Whose it is.
    fn tenant(&self) -> &TenantId;

    /// What handlers share.
    fn states(&self) -> &States;

    /// Where things are kept.
    fn store(&self) -> &Arc<dyn Store>;
}

/// An argument of a handler, made from what it is called for: `C` is [`JobContext`] for jobs and events, and [`MessageContext`] for
/// messages of clients.
///
/// ```
/// use tidewire_runtime::{FromContext, HandlerError, JobContext};
///
/// /// The part of an order's id before the dash.
/// struct Region(String);
///
/// impl FromContext for Region {
///     fn from_context(cx: &JobContext) -> Result<Self, HandlerError> {
///         Ok(Self(cx.job().id.to_string().split('-').next().unwrap_or_default().to_owned()))
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "a handler cannot take `{Self}` as an argument",
    label = "does not implement `FromContext`",
    note = "after the job a handler takes `JobContext`, `State<T>`, `Tenant`, `Attempt`, `Events`, `Heard<T>`, or what implements `FromContext`",
    note = "after its data a handler of a message takes `MessageContext`, `State<T>`, `Tenant`, `Events`, or what implements `FromContext<MessageContext>`",
    note = "a value that handlers share is taken as `State<{Self}>` and given to the builder by `.state(…)`"
)]
pub trait FromContext<C = JobContext>: Sized + Send + 'static {
    /// The argument for one run. An error is the run's: a job is retried, or failed, without the handler being called; a message is
    /// answered `internal`.
    fn from_context(cx: &C) -> Result<Self, HandlerError>;

    /// Whether it can be made at all, asked once when the app is built. The error is that of the build.
    fn check(states: &States) -> Result<()> {
        let _ = states;
        Ok(())
    }
}

impl<C: Context> FromContext<C> for C {
    fn from_context(cx: &C) -> Result<Self, HandlerError> {
        Ok(cx.clone())
    }
}

/// A value that was given to the builder by `.state(…)`, shared by all runs. A missing one is an error of the build.
pub struct State<T>(pub Arc<T>);

impl<C: Context, T: Send + Sync + 'static> FromContext<C> for State<T> {
    fn from_context(cx: &C) -> Result<Self, HandlerError> {
        Ok(Self(cx.states().get()?))
    }

    fn check(states: &States) -> Result<()> {
        states.get::<T>().map(drop)
    }
}

impl<T> Deref for State<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Clone for State<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Whose job or message it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant(pub TenantId);

impl<C: Context> FromContext<C> for Tenant {
    fn from_context(cx: &C) -> Result<Self, HandlerError> {
        Ok(Self(cx.tenant().clone()))
    }
}

impl Deref for Tenant {
    type Target = TenantId;
    fn deref(&self) -> &TenantId {
        &self.0
    }
}

/// Which run this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// 1 is the first.
    pub number: u16,
    /// Runs that the job may have.
    pub of: u16,
}

impl Attempt {
    /// Whether a retry would be a death.
    pub fn is_last(self) -> bool {
        self.number >= self.of
    }
}

impl FromContext for Attempt {
    fn from_context(cx: &JobContext) -> Result<Self, HandlerError> {
        Ok(Self { number: cx.job().attempt, of: cx.job().attempts })
    }
}

/// The log of the tenant whose job or message it is.
#[derive(Clone)]
pub struct Events {
    store: Arc<dyn Store>,
    tenant: TenantId,
}

impl Events {
    /// Events that match `query`, ascending by position.
    pub async fn read(&self, query: LogQuery) -> Result<Vec<Arc<Event>>> {
        self.store.read(&self.tenant, query).await
    }
}

impl<C: Context> FromContext<C> for Events {
    fn from_context(cx: &C) -> Result<Self, HandlerError> {
        Ok(Self { store: cx.store().clone(), tenant: cx.tenant().clone() })
    }
}

/// The event that a durable handler hears, its data as `T`. Data of another shape fails the job.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Heard<T> {
    /// Its id.
    pub id: Id,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: Arc<str>,
    /// When it was committed.
    pub time: Timestamp,
    /// The user it concerns.
    #[serde(default)]
    pub user_id: Option<String>,
    /// What it says.
    pub data: T,
}

impl<T: DeserializeOwned + Send + 'static> FromContext for Heard<T> {
    fn from_context(cx: &JobContext) -> Result<Self, HandlerError> {
        cx.data().map_err(|error| final_error(error.detail()))
    }
}
