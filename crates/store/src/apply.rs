//! Applying a commit: checks first, then writes that cannot be refused.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tidewire_core::commit::{Append, Appended, Caused, Commit, Committed, IDEMPOTENCY_TTL};
use tidewire_core::event::{Event, Position};
use tidewire_core::job::State;
use tidewire_core::{Error, Id, Result, TenantId};

use crate::answer::Work;
use crate::bonds::Tie;
use crate::rows::{JobRow, NameId, Rows, Seq};
use crate::writer::{Outcome, Writer, panicked};

/// When a commit that is answered was written.
enum Written {
    Now,
    /// One of its keys was seen before.
    Before,
}

impl<R: Rows> Writer<R> {
    /// Writes all of a commit or nothing.
    pub(crate) fn commit(&mut self, commit: Commit) -> Outcome<Committed> {
        Ok(self.write_unknown(commit)?.map(|(committed, _)| committed))
    }

    /// Writes all of a commit or nothing, and says which: nothing when it is refused, or when one of its keys was seen before.
    fn write_unknown(&mut self, commit: Commit) -> Outcome<(Committed, Written)> {
        let tenant = self.names.tenant(&mut self.rows, &commit.tenant)?;
        if let Some(answer) = self.known(tenant, &commit)? {
            return Ok(answer.map(|committed| (committed, Written::Before)));
        }
        if let Err(refused) = self.check(tenant, &commit)? {
            return Ok(Err(refused));
        }
        Ok(Ok((self.write(tenant, commit)?, Written::Now)))
    }

    /// Runs a caller's own writes and the commit that they lead to, or neither. A commit whose key was seen before writes nothing, so
    /// the caller's writes, which were done with it the first time, are undone and the answer is that of a repetition.
    pub(crate) fn commit_with(&mut self, work: Work<R>) -> Outcome<Committed> {
        self.rows.savepoint()?;
        // A panic in the caller's code is the caller's alone: what it wrote is undone below like that of a refused one.
        let worked = catch_unwind(AssertUnwindSafe(|| work(&mut self.rows)));
        let outcome =
            match worked.unwrap_or_else(|panic| Err(panicked("the caller's part of the commit panicked", &*panic))) {
                Ok(commit) => self.write_unknown(commit)?,
                Err(refused) => Err(refused),
            };
        if matches!(outcome, Ok((_, Written::Now))) {
            self.rows.release_savepoint()?;
        } else {
            self.rows.undo_savepoint()?;
            // Names that were first used inside are gone with it.
            self.names.clear();
            self.schedule_counts.clear();
        }
        Ok(outcome.map(|(committed, _)| committed))
    }

    /// The answer that needs no write, because the key was seen before.
    pub(crate) fn known(&mut self, tenant: NameId, commit: &Commit) -> Result<Option<Result<Committed>>> {
        if let Some(idempotency) = &commit.idempotency
            && let Some((digest, answer, until)) = self.rows.idempotent(tenant, &idempotency.key)?
            && until > self.now
        {
            if digest != idempotency.digest {
                let detail = "this Idempotency-Key was used with another request body".to_owned();
                return Ok(Some(Err(Error::conflict("idempotency.key_reused", detail))));
            }
            let answer = serde_json::from_str(&answer)
                .map_err(|error| Error::internal("a kept idempotent answer cannot be read", error));
            return Ok(Some(answer.map(|answer| Committed { replayed: true, ..answer })));
        }
        if let Some((key, _)) = &commit.dedup
            && self.rows.dedup_until(tenant, key)?.is_some_and(|until| until > self.now)
        {
            return Ok(Some(Ok(Committed { deduplicated: true, ..Committed::default() })));
        }
        Ok(None)
    }

    /// Whether a commit can be written. What passes is written whole.
    fn check(&mut self, tenant: NameId, commit: &Commit) -> Outcome<()> {
        match self.check_versions(tenant, commit)? {
            Ok(()) => {}
            refused => return Ok(refused),
        }
        match self.check_jobs(tenant, commit)? {
            Ok(()) => self.check_schedules(tenant, commit),
            refused => Ok(refused),
        }
    }

    fn check_versions(&mut self, tenant: NameId, commit: &Commit) -> Outcome<()> {
        if commit.events.iter().all(|event| event.expected_version.is_none()) {
            return Ok(Ok(()));
        }
        let mut versions: HashMap<&str, u64> = HashMap::new();
        let mut given: HashSet<&Id> = HashSet::new();
        // Counts the events that will be written, and only those: the same that `write` passes over are passed over here.
        let mut repeated: HashSet<usize> = HashSet::new();
        for (index, event) in commit.events.iter().enumerate() {
            if event.root.is_some_and(|root| repeated.contains(&root)) {
                continue;
            }
            if event.given_id && (!given.insert(&event.id) || self.rows.event_by_id(tenant, &event.id)?.is_some()) {
                repeated.insert(index);
                continue;
            }
            let Some(stream) = event.stream.as_deref() else { continue };
            let version = match versions.get(stream) {
                Some(version) => *version,
                None => self.rows.stream_version(tenant, stream)?,
            };
            if let Some(expected) = event.expected_version
                && expected != version
            {
                let detail = format!("stream {stream:?} is at version {version}, expected {expected}");
                return Ok(Err(Error::conflict("event.version_conflict", detail)));
            }
            versions.insert(stream, version + 1);
        }
        Ok(Ok(()))
    }

    /// Writes a checked commit.
    pub(crate) fn write(&mut self, tenant: NameId, commit: Commit) -> Result<Committed> {
        let mut committed = Committed::default();
        let mut repeated: HashSet<usize> = HashSet::new();
        for (index, event) in commit.events.into_iter().enumerate() {
            if event.root.is_some_and(|root| repeated.contains(&root)) {
                continue;
            }
            let known = if event.given_id { self.rows.event_by_id(tenant, &event.id)? } else { None };
            let appended = match known {
                Some(known) => {
                    repeated.insert(index);
                    appended(&known, true)
                }
                None => self.append(tenant, &commit.tenant, event)?,
            };
            let list = if index < commit.asked_events { &mut committed.events } else { &mut committed.caused.events };
            list.push(appended);
        }
        let has_ties = !commit.flows.is_empty() || commit.jobs.iter().any(|job| !job.after.is_empty());
        let is_repeated = |root: Option<usize>| root.is_some_and(|root| repeated.contains(&root));
        let mut ties = Vec::new();
        for (index, job) in commit.jobs.into_iter().enumerate() {
            if is_repeated(job.root) {
                continue;
            }
            let flow = job.rare.as_ref().and_then(|rare| rare.flow.clone());
            let tie = has_ties.then(|| (job.id.clone(), job.after.clone()));
            let enqueued = self.enqueue(tenant, &commit.tenant, job)?;
            if let Some((asked, after)) = tie {
                let (id, state) = (enqueued.id.clone(), enqueued.state);
                ties.push(Tie { asked, id, is_new: !enqueued.deduplicated, state, after, flow });
            }
            let list = if index < commit.asked_jobs { &mut committed.jobs } else { &mut committed.caused.jobs };
            list.push(enqueued);
        }
        if has_ties {
            let mut begun = commit.flows;
            for (index, flow) in begun.iter().enumerate() {
                if index < commit.asked_flows {
                    committed.flow = Some(flow.id.clone());
                } else if !is_repeated(flow.root) {
                    committed.caused.flows.push(flow.id.clone());
                }
            }
            begun.retain(|flow| !is_repeated(flow.root));
            self.tie_all(tenant, &begun, &ties)?;
            let caused = committed.caused.jobs.iter_mut();
            for enqueued in committed.jobs.iter_mut().chain(caused).filter(|job| job.state == State::Blocked) {
                if let Some(seq) = self.find_job(tenant, &enqueued.id)?
                    && let Some(row) = self.job_row(seq)?
                {
                    enqueued.state = row.job.state;
                }
            }
        }
        for write in commit.schedules {
            let scheduled = self.write_schedule(tenant, write)?;
            committed.schedules.push(scheduled);
        }
        if let Some((key, ttl)) = commit.dedup {
            self.rows.put_dedup(tenant, &key, self.now + ttl)?;
        }
        if let Some(idempotency) = commit.idempotency {
            let answer = serde_json::to_string(&committed)
                .map_err(|error| Error::internal("an idempotent answer cannot be written", error))?;
            let until = self.now + IDEMPOTENCY_TTL;
            self.rows.put_idempotent(tenant, &idempotency.key, &idempotency.digest, &answer, until)?;
        }
        Ok(committed)
    }

    fn append(&mut self, tenant: NameId, name: &TenantId, event: Append) -> Result<Appended> {
        let head = match self.heads.get(&tenant) {
            Some(head) => *head,
            None => self.rows.head(tenant)?,
        };
        let position = head.next();
        let version = match &event.stream {
            Some(stream) => Some(self.rows.stream_version(tenant, stream)? + 1),
            None => None,
        };
        self.last_event = self.last_event.max(self.now);
        let is_across = event.across;
        let event = Arc::new(Event {
            tenant: name.clone(),
            position,
            origin: None,
            id: event.id,
            kind: event.kind,
            time: self.last_event,
            data: event.data,
            rooms: event.rooms,
            user_id: event.user_id,
            correlation_id: event.correlation_id,
            causation_id: event.causation_id,
            stream: event.stream,
            version,
        });
        let kind = self.names.other(&mut self.rows, &event.kind)?;
        self.rows.add_event(tenant, kind, &event)?;
        self.move_head(tenant, position);
        let answer = appended(&event, false);
        self.events.push(event.clone());
        if is_across {
            self.across = self.across.next();
            let across = Arc::new(Event::clone(&event).across(self.across));
            self.rows.add_across(tenant, &across)?;
            self.events.push(across);
        }
        Ok(answer)
    }

    fn move_head(&mut self, tenant: NameId, position: Position) {
        self.heads.insert(tenant, position);
        if !self.moved.contains(&tenant) {
            self.moved.push(tenant);
        }
    }

    /// A job by id, written or not.
    pub(crate) fn find_job(&mut self, tenant: NameId, id: &Id) -> Result<Option<Seq>> {
        match self.fresh_ids.get(&(tenant, id.clone())) {
            Some(seq) => Ok(Some(*seq)),
            None => self.rows.job_seq(tenant, id),
        }
    }

    /// A job of this turn that is not written yet.
    pub(crate) fn fresh_row(&mut self, seq: Seq) -> Option<&mut JobRow> {
        let first = self.fresh.first()?.seq;
        self.fresh.get_mut(usize::try_from(seq - first).ok()?)
    }

    /// A job, written or not.
    pub(crate) fn job_row(&mut self, seq: Seq) -> Result<Option<JobRow>> {
        match self.fresh_row(seq) {
            Some(row) => Ok(Some(row.clone())),
            None => self.rows.job(seq),
        }
    }

    /// Writes the jobs of this turn, in the state they have reached.
    pub(crate) fn write_fresh(&mut self) -> Result<()> {
        for row in self.fresh.drain(..) {
            self.rows.add_job(&row)?;
            self.recent.put(row);
        }
        self.fresh_ids.clear();
        Ok(())
    }

    /// Whether effects could be written: the checks of [`Writer::commit`] alone.
    pub(crate) fn check_effects(&mut self, tenant: NameId, effects: &Commit) -> Outcome<()> {
        match self.known(tenant, effects)? {
            Some(known) => Ok(known.map(drop)),
            None => self.check(tenant, effects),
        }
    }

    /// Writes effects that were checked.
    pub(crate) fn write_effects(&mut self, tenant: NameId, effects: Option<Commit>) -> Result<Committed> {
        match effects {
            Some(effects) => match self.known(tenant, &effects)? {
                Some(known) => known,
                None => self.write(tenant, effects),
            },
            None => Ok(Committed { caused: Caused::default(), ..Committed::default() }),
        }
    }
}

fn appended(event: &Event, deduplicated: bool) -> Appended {
    Appended {
        id: event.id.clone(),
        kind: event.kind.clone(),
        position: Some(event.position),
        time: event.time,
        version: event.version,
        deduplicated,
    }
}
