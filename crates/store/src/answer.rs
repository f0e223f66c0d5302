//! What callers ask of the writer, and the answers that wait for the commit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewire_core::commit::{Commit, Committed};
use tidewire_core::job::Job;
use tidewire_core::schedule::Reached;
use tidewire_core::store::{
    Answer, Claim, Control, Fire, Fired, Follower, Leased, Lifecycle, QueueLimits, Renewed, Settle, Settled,
};
use tidewire_core::{Id, Result, TenantId, Timestamp};
use tokio::sync::oneshot;

use crate::inbox::{Inbox, closed};
use crate::lease::Token;
use crate::operate::Operation;

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// A caller's own writes in the transaction of a commit; what it answers is committed with them.
pub(crate) type Work<R> = Box<dyn FnOnce(&mut R) -> Result<Commit> + Send>;

/// A call on the writer.
pub(crate) enum Call<R> {
    Commit(Commit, Reply<Committed>),
    With(Work<R>, Reply<Committed>),
    Claim(Claim, Reply<Vec<Leased>>),
    Settle(Settle, Reply<Settled>),
    Leased {
        tenant: Option<TenantId>,
        id: Id,
        lease: Box<str>,
        reply: Reply<Job>,
    },
    Renew {
        tenant: Option<TenantId>,
        id: Id,
        lease: Box<str>,
        extend: Duration,
        reply: Reply<Renewed>,
    },
    Control {
        tenant: TenantId,
        id: Id,
        control: Control,
        reply: Reply<Job>,
    },
    Limit(BTreeMap<Arc<str>, QueueLimits>, Reply<()>),
    Observe(Arc<dyn Lifecycle>),
    Operate(Operation),
    Fire(Fire, Reply<Fired>),
    Slots(TenantId, Reply<BTreeMap<Arc<str>, Reached>>),
    PutSession {
        tenant: TenantId,
        sid: String,
        state: String,
        until: Timestamp,
        reply: Reply<()>,
    },
    DeleteSession {
        tenant: TenantId,
        sid: String,
        reply: Reply<()>,
    },
    /// A worker was given these and is no longer there.
    Release(Vec<Token>),
    Follow(Arc<dyn Follower>),
    Close(Reply<()>),
}

/// Sends a call and waits for its answer.
pub(crate) fn ask<R: Send + 'static, T: Send + 'static>(
    inbox: &Arc<Inbox<Call<R>>>,
    call: impl FnOnce(Reply<T>) -> Call<R>,
) -> Answer<'static, T> {
    let (reply, answer) = oneshot::channel();
    let sent = inbox.send(call(reply));
    Box::pin(async move {
        sent?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    })
}

/// Sends a claim and waits for its answer. When it is dropped instead, even after the writer has answered, the jobs go back.
pub(crate) fn ask_claim<R: Send + 'static>(inbox: &Arc<Inbox<Call<R>>>, claim: Claim) -> Answer<'static, Vec<Leased>> {
    let (reply, answer) = oneshot::channel();
    let sent = inbox.send(Call::Claim(claim, reply));
    let mut claiming = Claiming { inbox: inbox.clone(), answer };
    Box::pin(async move {
        sent?;
        (&mut claiming.answer).await.unwrap_or_else(|_| Err(closed()))
    })
}

/// A claim that somebody waits for.
struct Claiming<R> {
    inbox: Arc<Inbox<Call<R>>>,
    answer: oneshot::Receiver<Result<Vec<Leased>>>,
}

impl<R> Drop for Claiming<R> {
    fn drop(&mut self) {
        // From here on the writer sees that nobody waits; what it had answered before is still in the channel.
        self.answer.close();
        if let Ok(Ok(leased)) = self.answer.try_recv()
            && !leased.is_empty()
        {
            // Closed means that the leases end with the process or by themselves.
            drop(self.inbox.send(Call::Release(tokens(&leased))));
        }
    }
}

fn tokens(leased: &[Leased]) -> Vec<Token> {
    leased.iter().filter_map(|leased| Token::decode(&leased.lease)).collect()
}

/// An answer that waits for the commit.
pub(crate) enum Pending {
    Committed(Reply<Committed>, Result<Committed>),
    Leased(Reply<Vec<Leased>>, Vec<Leased>),
    Settled(Reply<Settled>, Result<Settled>),
    Renewed(Reply<Renewed>, Result<Renewed>),
    Job(Reply<Job>, Result<Job>),
    Fired(Reply<Fired>, Result<Fired>),
    Done(Reply<()>),
    /// Answers of any other shape.
    Later(Box<dyn FnOnce() + Send>),
}

impl Pending {
    /// An answer that has no shape of its own here.
    pub(crate) fn later<T: Send + 'static>(reply: Reply<T>, answer: Result<T>) -> Self {
        Self::Later(Box::new(move || drop(reply.send(answer))))
    }

    /// Answers the caller. What a caller was given and no longer waits for comes back.
    pub(crate) fn send(self) -> Option<Vec<Token>> {
        match self {
            Self::Committed(reply, answer) => drop(reply.send(answer)),
            Self::Leased(reply, leased) => {
                if let Err(Ok(unwanted)) = reply.send(Ok(leased)) {
                    return Some(tokens(&unwanted));
                }
            }
            Self::Settled(reply, answer) => drop(reply.send(answer)),
            Self::Renewed(reply, answer) => drop(reply.send(answer)),
            Self::Job(reply, answer) => drop(reply.send(answer)),
            Self::Fired(reply, answer) => drop(reply.send(answer)),
            Self::Done(reply) => drop(reply.send(Ok(()))),
            Self::Later(send) => send(),
        }
        None
    }
}
