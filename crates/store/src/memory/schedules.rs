//! Schedules that were made at run time, and slots of those of the catalog, in maps.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use tidewire_core::schedule::{Reached, Stored};
use tidewire_core::store::{Page, ScheduleQuery};
use tidewire_core::{Result, TenantId, Timestamp};

use super::{MemoryRows, Tables};
use crate::rows::{NameId, SchedulePlace, ScheduleRow, Schedules, after, stored, stored_page};

pub(super) type ScheduleTable = BTreeMap<SchedulePlace, ScheduleRow>;

impl Schedules for MemoryRows {
    fn schedule_count(&mut self, tenant: NameId) -> Result<u64> {
        let own = (tenant, String::new(), String::new())..(tenant + 1, String::new(), String::new());
        Ok(self.tables().schedules.range(own).count() as u64)
    }

    fn schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<Option<ScheduleRow>> {
        Ok(self.tables().schedules.get(&(tenant, key.to_owned(), user.to_owned())).cloned())
    }

    fn put_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &ScheduleRow) -> Result<()> {
        self.tables().schedules.insert((tenant, key.to_owned(), user.to_owned()), row.clone());
        Ok(())
    }

    fn advance_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &ScheduleRow) -> Result<()> {
        self.put_schedule(tenant, key, user, row)
    }

    fn delete_schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<()> {
        self.tables().schedules.remove(&(tenant, key.to_owned(), user.to_owned()));
        Ok(())
    }

    fn slot(&mut self, tenant: NameId, key: &str) -> Result<Option<Reached>> {
        Ok(self.tables().slots.get(&(tenant, key.to_owned())).cloned())
    }

    fn put_slot(&mut self, tenant: NameId, key: &str, reached: &Reached) -> Result<()> {
        self.tables().slots.insert((tenant, key.to_owned()), reached.clone());
        Ok(())
    }

    fn slots(&mut self, tenant: NameId) -> Result<Vec<(Arc<str>, Reached)>> {
        let tables = self.tables();
        let own = tables.slots.iter().filter(|((of, _), _)| *of == tenant);
        Ok(own.map(|((_, key), reached)| (key.as_str().into(), reached.clone())).collect())
    }
}

impl Tables {
    pub(super) fn tenant_name(&self, tenant: NameId) -> Option<TenantId> {
        self.tenant_names.get(tenant as usize).map(|name| TenantId::from_stored(name))
    }

    /// By their numbers, which grow. One that was only asked about has a number, too, but neither an event, a job, a slot nor a schedule.
    pub(super) fn tenants_after(&self, after: Option<&TenantId>, limit: u32) -> Vec<TenantId> {
        let first = after.and_then(|after| self.tenant(after)).map_or(0, |after| after + 1);
        let with_events = self.heads.iter().filter(|(_, head)| head.0 > 0).map(|(tenant, _)| *tenant);
        let with_jobs = self.jobs.values().map(|row| row.keys.tenant);
        let with_slots = self.slots.keys().map(|(tenant, _)| *tenant);
        let with_schedules = self.schedules.keys().map(|(tenant, ..)| *tenant);
        let known: BTreeSet<NameId> =
            with_events.chain(with_jobs).chain(with_slots).chain(with_schedules).filter(|id| *id >= first).collect();
        known.into_iter().take(limit as usize).filter_map(|id| self.tenant_name(id)).collect()
    }

    pub(super) fn due_schedules(&self, now: Timestamp, limit: u32) -> Vec<Stored> {
        let due = self.schedules.iter().filter_map(|(place, row)| Some((row.next_at?, place, row)));
        let mut due: Vec<_> = due.filter(|(at, ..)| *at <= now).collect();
        due.sort_unstable_by_key(|(at, place, _)| (*at, *place));
        let due = due.into_iter().take(limit as usize);
        due.filter_map(|(_, (tenant, key, user), row)| stored(self.tenant_name(*tenant)?, key, user, row.clone()))
            .collect()
    }

    pub(super) fn next_schedule(&self) -> Option<Timestamp> {
        self.schedules.values().filter_map(|row| row.next_at).min()
    }

    pub(super) fn schedule(&self, tenant: &TenantId, key: &str, user: &str) -> Option<Stored> {
        let row = self.schedules.get(&(self.tenant(tenant)?, key.to_owned(), user.to_owned()))?;
        stored(tenant.clone(), key, user, row.clone())
    }

    pub(super) fn schedule_page(&self, query: &ScheduleQuery) -> Result<Page<Stored>> {
        let limit = query.limit.clamp(1, ScheduleQuery::MAX);
        let after = after(query.cursor.as_deref())?.map_or(Bound::Unbounded, Bound::Excluded);
        let tenant = query.tenant.as_ref().map(|tenant| self.tenant(tenant));
        let wanted = |place: &SchedulePlace| {
            tenant.is_none_or(|id| id == Some(place.0))
                && query.key.as_ref().is_none_or(|key| *key == place.1)
                && query.user_id.as_ref().is_none_or(|user| *user == place.2)
        };
        let rows = self.schedules.range((after, Bound::Unbounded)).filter(|(place, _)| wanted(place));
        let rows = rows.filter_map(|(place, row)| Some((place.clone(), self.tenant_name(place.0)?, row.clone())));
        Ok(stored_page(rows.take(limit as usize + 1).collect(), limit))
    }
}
