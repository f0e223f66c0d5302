//! What operators and running jobs ask of the writer beyond dispatch: progress and logs, the same change to many jobs, queues that are
//! changed while they run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use tidewire_core::catalog::QueueSettings;
use tidewire_core::job::{MAX_LOG_BYTES, MAX_LOG_LINES, MAX_PROGRESS_BYTES, State};
use tidewire_core::store::{Bulk, Changed, Control, FlowControl, Moment, QueueLimits, QueuePace};
use tidewire_core::{Error, Id, Json, Kind, Result, TenantId, Timestamp};

use crate::answer::{Call, Pending, Reply};
use crate::claims::lease_lost;
use crate::rows::{NameId, NameKind, Rows, Seq};
use crate::writer::{Outcome, Writer};

/// A call of this kind.
pub(crate) enum Operation {
    Progress {
        tenant: Option<TenantId>,
        id: Id,
        lease: Box<str>,
        progress: Json,
        reply: Reply<()>,
    },
    Log {
        tenant: Option<TenantId>,
        id: Id,
        lease: Box<str>,
        lines: Vec<String>,
        reply: Reply<()>,
    },
    Bulk {
        seqs: Vec<Seq>,
        /// The states in which they matched; empty means any.
        states: Vec<State>,
        action: Bulk,
        reply: Reply<Changed>,
    },
    Flow {
        tenant: TenantId,
        id: Id,
        control: FlowControl,
        reply: Reply<()>,
    },
    PatchQueue {
        queue: Arc<str>,
        declared: QueueLimits,
        patch: Json,
        reply: Reply<QueueSettings>,
    },
    Oldest {
        tenant: Option<TenantId>,
        reply: Reply<BTreeMap<Arc<str>, Timestamp>>,
    },
    Pace {
        queue: Arc<str>,
        reply: Reply<QueuePace>,
    },
}

impl<R: Rows> Writer<R> {
    pub(crate) fn operate(&mut self, operation: Operation) -> Result<()> {
        let answer =
            match operation {
                Operation::Progress { tenant, id, lease, progress, reply } => {
                    Pending::later(reply, self.progress(tenant.as_ref(), &id, &lease, progress)?)
                }
                Operation::Log { tenant, id, lease, lines, reply } => {
                    Pending::later(reply, self.log(tenant.as_ref(), &id, &lease, &lines)?)
                }
                Operation::Bulk { seqs, states, action, reply } if self.bulked == self.batch => {
                    // One in each turn: the next one waits behind the calls that came meanwhile.
                    let again = Operation::Bulk { seqs, states, action, reply };
                    drop(self.inbox.send(Call::Operate(again)));
                    return Ok(());
                }
                Operation::Bulk { seqs, states, action, reply } => {
                    self.bulked = self.batch;
                    Pending::later(reply, Ok(self.bulk(seqs, &states, action)?))
                }
                Operation::Flow { tenant, id, control, reply } => {
                    Pending::later(reply, self.control_flow(&tenant, &id, control)?)
                }
                Operation::PatchQueue { queue, declared, patch, reply } => {
                    Pending::later(reply, self.patch_queue(queue, declared, &patch)?)
                }
                Operation::Oldest { tenant, reply } => {
                    let oldest = self.oldest_pending(tenant.as_ref())?;
                    drop(reply.send(Ok(oldest)));
                    return Ok(());
                }
                Operation::Pace { queue, reply } => {
                    let known = self.rows.find_name(NameKind::Other, &queue)?;
                    drop(reply.send(Ok(
                        known.map_or_else(QueuePace::default, |queue| self.metering.paces.of(queue, self.now)),
                    )));
                    return Ok(());
                }
            };
        self.answers.push(answer);
        Ok(())
    }

    fn progress(&mut self, tenant: Option<&TenantId>, id: &Id, lease: &str, progress: Json) -> Outcome<()> {
        let size = progress.get().len();
        if size > MAX_PROGRESS_BYTES {
            let detail = format!("progress: expected at most {MAX_PROGRESS_BYTES} bytes, got {size}");
            return Ok(Err(Error::new(Kind::TooLarge, "data.too_large", detail)));
        }
        let Some(seq) = self.held(tenant, id, lease) else { return Ok(Err(lease_lost(id))) };
        if let Some(row) = self.alter(seq, |row| row.job.rare_mut().progress = Some(progress.clone()))? {
            self.tell(Moment::Progress, &row.job)?;
        }
        Ok(Ok(()))
    }

    fn log(&mut self, tenant: Option<&TenantId>, id: &Id, lease: &str, lines: &[String]) -> Outcome<()> {
        let Some(seq) = self.held(tenant, id, lease) else { return Ok(Err(lease_lost(id))) };
        let Some(attempt) = self.leases.of(seq).map(|lease| lease.row.job.attempt) else {
            return Ok(Err(lease_lost(id)));
        };
        let last = &lines[lines.len().saturating_sub(MAX_LOG_LINES)..];
        for line in last {
            self.rows.add_log_line(seq, self.now, attempt, &line[..line.floor_char_boundary(MAX_LOG_BYTES)])?;
        }
        if last.is_empty() {
            return Ok(Ok(()));
        }
        self.rows.trim_log(seq, MAX_LOG_LINES)?;
        let has_log = |rare: &tidewire_core::job::Rare| rare.has_log;
        if !self.leases.of(seq).is_some_and(|lease| lease.row.job.rare.as_deref().is_some_and(has_log)) {
            self.alter(seq, |row| row.job.rare_mut().has_log = true)?;
        }
        Ok(Ok(()))
    }

    /// Changes jobs that were found a moment ago, each alone.
    fn bulk(&mut self, seqs: Vec<Seq>, states: &[State], action: Bulk) -> Result<Changed> {
        let control = match action {
            Bulk::Count => return Ok(Changed { changed: seqs.len() as u64, ..Changed::default() }),
            Bulk::Redrive => Control::Redrive,
            Bulk::Cancel => Control::Cancel,
            Bulk::Promote => Control::Promote,
            Bulk::Delete => Control::Delete,
        };
        let mut answer = Changed::default();
        let mut gone: HashMap<NameId, HashSet<Seq>> = HashMap::new();
        for seq in seqs {
            self.write_fresh()?;
            let row = self.rows.job(seq)?;
            let Some(row) = row.filter(|row| states.is_empty() || states.contains(&row.job.state)) else {
                answer.skipped += 1;
                continue;
            };
            let queue = row.keys.queue;
            match self.control_row(row, &control)? {
                Ok(_) => answer.changed += 1,
                Err(_) => answer.skipped += 1,
            }
            if action == Bulk::Delete {
                gone.entry(queue).or_default().insert(seq);
            }
        }
        for (queue, gone) in gone {
            self.unkeep(queue, &gone);
        }
        Ok(answer)
    }

    fn patch_queue(&mut self, queue: Arc<str>, declared: QueueLimits, patch: &Json) -> Outcome<QueueSettings> {
        let id = self.names.other(&mut self.rows, &queue)?;
        let kept = self.rows.queue_settings(id)?;
        let settings = match kept.as_deref().map(serde_json::from_str::<QueueSettings>).transpose() {
            Ok(settings) => settings.unwrap_or_default(),
            Err(error) => return Ok(Err(Error::internal("the kept settings of a queue cannot be read", error))),
        };
        let settings = match settings.patched(patch) {
            Ok(settings) => settings,
            Err(refused) => return Ok(Err(refused)),
        };
        let text = match serde_json::to_string(&settings) {
            Ok(text) => text,
            Err(error) => return Ok(Err(Error::internal("the settings of a queue cannot be written", error))),
        };
        let is_default = settings == QueueSettings::default();
        self.rows.put_queue_settings(id, Some(&*text).filter(|_| !is_default))?;
        self.limit_queues(BTreeMap::from([(queue, settings.over(declared))]))?;
        Ok(Ok(settings))
    }

    fn oldest_pending(&mut self, tenant: Option<&TenantId>) -> Result<BTreeMap<Arc<str>, Timestamp>> {
        let tenant = match tenant {
            Some(tenant) => Some(self.names.tenant(&mut self.rows, tenant)?),
            None => None,
        };
        let ready: Vec<NameId> = self.dispatch.ready().collect();
        let mut oldest = BTreeMap::new();
        for queue in ready {
            if let Some(due) = self.dispatch.oldest(queue, tenant)
                && let Some(name) = self.rows.name(NameKind::Other, queue)?
            {
                oldest.insert(name.into(), Timestamp::from_micros(due));
            }
        }
        Ok(oldest)
    }
}
