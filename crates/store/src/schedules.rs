//! Schedules: putting them, and firing their slots, each at most once ever.

use std::time::Duration;

use tidewire_core::commit::{Commit, Enqueue, ScheduleWrite, Scheduled};
use tidewire_core::schedule::{Overlap, Reached, Spec};
use tidewire_core::store::{Fire, Fired, Planned};
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use crate::rows::{NameId, Rows, ScheduleRow};
use crate::writer::{Outcome, Writer};

/// How soon, and how late, a slot that waits for the job before it is looked at again.
const LOOK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Of how many tenants it is remembered how many schedules they have. Beyond that all are counted anew.
const MOST_COUNTS: usize = 65_536;

impl<R: Rows> Writer<R> {
    /// Whether the schedules of a commit can be put. Codes `schedule.in_the_past`, `schedule.never_fires`, `schedule.too_many`.
    pub(crate) fn check_schedules(&mut self, tenant: NameId, commit: &Commit) -> Outcome<()> {
        let (mut more, mut fewer) = (0, 0);
        for write in &commit.schedules {
            if let ScheduleWrite::Put { spec, paused, .. } = write {
                let (key, user) = write.target();
                let old = self.rows.schedule(tenant, key, user.unwrap_or_default())?;
                more += u64::from(old.is_none());
                if let Err(refused) = replace(old.as_ref(), spec, *paused, self.now) {
                    return Ok(Err(refused));
                }
            } else if let ScheduleWrite::Delete { .. } = write {
                let (key, user) = write.target();
                fewer += u64::from(self.rows.schedule(tenant, key, user.unwrap_or_default())?.is_some());
            }
        }
        let Some(most) = commit.most_schedules.map(u64::from).filter(|_| more > fewer) else { return Ok(Ok(())) };
        let count = self.count_schedules(tenant)?;
        if count + more - fewer > most {
            let detail = format!("this tenant has {count} schedules and may have {most}; delete some before");
            return Ok(Err(Error::conflict("schedule.too_many", detail)));
        }
        Ok(Ok(()))
    }

    /// How many schedules a tenant has. Counted once, then kept as they change.
    fn count_schedules(&mut self, tenant: NameId) -> Result<u64> {
        if let Some(count) = self.schedule_counts.get(&tenant) {
            return Ok(*count);
        }
        if self.schedule_counts.len() >= MOST_COUNTS {
            self.schedule_counts.clear();
        }
        let count = self.rows.schedule_count(tenant)?;
        self.schedule_counts.insert(tenant, count);
        Ok(count)
    }

    /// Does to a schedule what was checked.
    pub(crate) fn write_schedule(&mut self, tenant: NameId, write: ScheduleWrite) -> Result<Scheduled> {
        let (key, user) = write.target();
        let (key, user_id) = (key.clone(), user.map(Into::into));
        let user = user.unwrap_or_default();
        let next = match &write {
            ScheduleWrite::Delete { .. } => {
                if let Some(count) = self.schedule_counts.get_mut(&tenant)
                    && self.rows.schedule(tenant, &key, user)?.is_some()
                {
                    *count -= 1;
                }
                self.rows.delete_schedule(tenant, &key, user)?;
                None
            }
            ScheduleWrite::Put { spec, paused, .. } => {
                let old = self.rows.schedule(tenant, &key, user)?;
                let row = replace(old.as_ref(), spec, *paused, self.now)?;
                if let Some(count) = self.schedule_counts.get_mut(&tenant).filter(|_| old.is_none()) {
                    *count += 1;
                }
                if old.is_none_or(|old| old.revision != row.revision) {
                    self.rows.put_schedule(tenant, &key, user, &row)?;
                    self.scheduled = row.next_at.into_iter().chain(self.scheduled).min();
                }
                row.slot
            }
            ScheduleWrite::Suspend { revision, why, .. } => match self.rows.schedule(tenant, &key, user)? {
                Some(row) if row.revision == *revision => {
                    let row = ScheduleRow {
                        revision: row.revision + 1,
                        paused: true,
                        error: Some(why.clone()),
                        slot: None,
                        next_at: None,
                        ..row
                    };
                    self.rows.put_schedule(tenant, &key, user, &row)?;
                    None
                }
                Some(row) => row.slot,
                None => None,
            },
        };
        Ok(Scheduled { key, user_id, next })
    }

    /// Fires a slot of a schedule, at most once ever.
    pub(crate) fn fire(&mut self, fire: Fire) -> Outcome<Fired> {
        // The job of the slot before may be one of this same turn.
        self.write_fresh()?;
        let tenant = self.names.tenant(&mut self.rows, &fire.tenant)?;
        if let Some(planned) = &fire.stored {
            let planned = planned.clone();
            return self.fire_stored(tenant, fire, &planned).map(Ok);
        }
        let reached = self.rows.slot(tenant, &fire.key)?;
        if reached.as_ref().is_some_and(|reached| reached.last >= fire.slot) {
            return Ok(Ok(Fired::Stale));
        }
        let (last_job, runs) = reached.map(|reached| (reached.last_job, reached.runs)).unwrap_or_default();
        if fire.limit.is_some_and(|limit| runs >= limit) {
            return Ok(Ok(Fired::Ended));
        }
        let app = self.names.tenant(&mut self.rows, &TenantId::app())?;
        let is_paused = self.rows.schedule(app, &fire.key, "")?.is_some_and(|row| row.paused);
        let job = fire.job.filter(|_| !is_paused);
        let fired = self.run_slot(tenant, &fire.tenant, fire.overlap, last_job.as_ref(), job)?;
        if fired != Fired::Waiting {
            let (last_job, runs) =
                if let Fired::Enqueued(id) = &fired { (Some(id.clone()), runs + 1) } else { (last_job, runs) };
            self.rows.put_slot(tenant, &fire.key, &Reached { last: fire.slot, last_job, runs })?;
        }
        Ok(Ok(fired))
    }

    fn fire_stored(&mut self, tenant: NameId, fire: Fire, planned: &Planned) -> Result<Fired> {
        let (user, limit) = (planned.user_id.as_deref().unwrap_or_default(), fire.limit);
        let Some(mut row) = self.rows.schedule(tenant, &fire.key, user)? else { return Ok(Fired::Stale) };
        let is_due = row.slot.is_some_and(|slot| slot <= fire.slot) && row.last.is_none_or(|last| last < fire.slot);
        if row.revision != planned.revision || !is_due {
            return Ok(Fired::Stale);
        }
        let fired = self.run_slot(tenant, &fire.tenant, fire.overlap, row.last_job.as_ref(), fire.job)?;
        if fired == Fired::Waiting {
            let (soonest, latest) = LOOK_AGAIN;
            let again = self.now + (self.now.since(fire.slot) / 8).clamp(soonest, latest);
            (row.slot, row.next_at) = (Some(fire.slot), Some(again));
        } else {
            if let Fired::Enqueued(id) = &fired {
                row.runs += 1;
                row.last_job = Some(id.clone());
            }
            row.last = Some(fire.slot);
            let is_used_up = limit.is_some_and(|limit| row.runs >= limit);
            row.slot = planned.next.filter(|next| *next > fire.slot && !is_used_up);
            row.next_at = row.slot;
        }
        self.rows.advance_schedule(tenant, &fire.key, user, &row)?;
        Ok(fired)
    }

    /// Enqueues the job of a slot unless the job of the slot before is in its way.
    fn run_slot(
        &mut self,
        tenant: NameId,
        name: &TenantId,
        overlap: Overlap,
        last_job: Option<&Id>,
        job: Option<Enqueue>,
    ) -> Result<Fired> {
        let Some(job) = job else { return Ok(Fired::Skipped) };
        let is_unfinished = match last_job {
            Some(id) if overlap != Overlap::Allow => match self.find_job(tenant, id)? {
                Some(seq) => self.job_row(seq)?.is_some_and(|row| !row.job.state.is_final()),
                None => false,
            },
            _ => false,
        };
        match overlap {
            Overlap::Queue if is_unfinished => Ok(Fired::Waiting),
            Overlap::Skip if is_unfinished => Ok(Fired::Overlapped),
            Overlap::Allow | Overlap::Queue | Overlap::Skip => Ok(Fired::Enqueued(self.enqueue(tenant, name, job)?.id)),
        }
    }
}

/// What a schedule is when `spec` has been put over what was there. The same again changes nothing, not even the revision. Runs are
/// counted anew when the timing is another one; slots that were passed while it was paused are gone.
fn replace(old: Option<&ScheduleRow>, spec: &Spec, paused: bool, now: Timestamp) -> Result<ScheduleRow> {
    let text = serde_json::to_string(spec).map_err(|error| Error::internal("a schedule cannot be written", error))?;
    if let Some(old) = old
        && (&*old.spec, old.paused) == (text.as_str(), paused)
    {
        return Ok(old.clone());
    }
    let old_spec: Option<Spec> = old.and_then(|old| serde_json::from_str(&old.spec).ok());
    let has_same_timing = old_spec.as_ref().is_some_and(|old| old.timing == spec.timing);
    let has_same_slots = old_spec.as_ref().is_some_and(|old| old.has_slots_of(spec));
    let last = old.and_then(|old| old.last);
    // A clock that was set back must not fire a slot again.
    let first = spec.next_after(last.map_or(now, |last| last.max(now)));
    if first.is_none() && !has_same_slots {
        return Err(match spec.timing {
            tidewire_core::schedule::Timing::Once(at) => {
                let detail =
                    format!("at: expected a time in the future and within start and end, got {at}; it is {now}");
                Error::invalid("schedule.in_the_past", detail)
            }
            _ => Error::invalid("schedule.never_fires", "it has no slot between now, its start and its end"),
        });
    }
    let runs = old.filter(|_| has_same_timing).map_or(0, |old| old.runs);
    let kept = old.filter(|old| has_same_slots && old.slot.is_some()).map(|old| (old.slot, old.next_at));
    let (slot, next_at) = if paused || spec.is_used_up(runs) { (None, None) } else { kept.unwrap_or((first, first)) };
    Ok(ScheduleRow {
        revision: old.map_or(1, |old| old.revision + 1),
        spec: text.into(),
        paused,
        error: None,
        slot,
        next_at,
        last,
        last_job: old.and_then(|old| old.last_job.clone()),
        runs,
        created_at: old.map_or(now, |old| old.created_at),
    })
}
