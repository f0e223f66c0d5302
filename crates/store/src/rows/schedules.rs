//! Schedules that were made at run time, and how far those of the catalog have got.

use std::sync::Arc;

use tidewire_core::schedule::{Reached, Spec, Stored};
use tidewire_core::store::Page;
use tidewire_core::{Error, Id, Result, TenantId, Timestamp};

use super::NameId;

/// A row of `schedules`, but for its key.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) revision: u64,
    /// The [`Spec`] as JSON. Firing does not read it.
    pub(crate) spec: Arc<str>,
    pub(crate) paused: bool,
    pub(crate) error: Option<Box<str>>,
    /// The next slot.
    pub(crate) slot: Option<Timestamp>,
    /// When the next slot is looked at: its time, or later when it waits for the job of the slot before.
    pub(crate) next_at: Option<Timestamp>,
    pub(crate) last: Option<Timestamp>,
    pub(crate) last_job: Option<Id>,
    pub(crate) runs: u64,
    pub(crate) created_at: Timestamp,
}

/// The key of a row: the tenant, the schedule's own key, and the user or nothing.
pub(crate) type Place = (NameId, String, String);

/// The part of [`Rows`](super::Rows) that is about schedules.
pub(crate) trait Schedules {
    /// One schedule; no user is the empty text.
    fn schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<Option<Row>>;
    /// How many a tenant has.
    fn schedule_count(&mut self, tenant: NameId) -> Result<u64>;
    fn put_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &Row) -> Result<()>;
    /// Writes what a slot changes: slot, time, last, job and runs.
    fn advance_schedule(&mut self, tenant: NameId, key: &str, user: &str, row: &Row) -> Result<()>;
    fn delete_schedule(&mut self, tenant: NameId, key: &str, user: &str) -> Result<()>;
    /// How far a schedule of the catalog has got.
    fn slot(&mut self, tenant: NameId, key: &str) -> Result<Option<Reached>>;
    fn put_slot(&mut self, tenant: NameId, key: &str, reached: &Reached) -> Result<()>;
    /// All of a tenant.
    fn slots(&mut self, tenant: NameId) -> Result<Vec<(Arc<str>, Reached)>>;
}

/// A row as the rest of Tidewire sees it. Nothing, and a line in the log, when its time can no longer be read: a zone may leave the
/// database of zones. Such a schedule does not fire, and the others go on.
pub(crate) fn stored(tenant: TenantId, key: &str, user: &str, row: Row) -> Option<Stored> {
    let spec: Spec = match serde_json::from_str(&row.spec) {
        Ok(spec) => spec,
        Err(error) => {
            tracing::error!(%tenant, key, user, %error, "a schedule cannot be read; put it again");
            return None;
        }
    };
    Some(Stored {
        tenant,
        key: key.into(),
        user_id: (!user.is_empty()).then(|| user.into()),
        spec,
        paused: row.paused,
        error: row.error,
        revision: row.revision,
        runs: row.runs,
        last: row.last,
        last_job: row.last_job,
        is_waiting: row.slot != row.next_at,
        next: row.slot,
        created_at: row.created_at,
    })
}

/// A page of at most `limit` of the `rows` in the order of their places, of which one more was read.
pub(crate) fn stored_page(rows: Vec<(Place, TenantId, Row)>, limit: u32) -> Page<Stored> {
    let limit = limit as usize;
    let next_cursor = (rows.len() > limit).then(|| rows.get(limit - 1).map(|(place, ..)| cursor(place))).flatten();
    let items = rows.into_iter().take(limit);
    let items = items.filter_map(|((_, key, user), tenant, row)| stored(tenant, &key, &user, row)).collect();
    Page { items, next_cursor }
}

fn cursor((tenant, key, user): &Place) -> String {
    format!("{tenant}.{}.{key}{user}", key.len())
}

/// The place where the page before ended. Code `cursor.invalid`.
pub(crate) fn after(cursor: Option<&str>) -> Result<Option<Place>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let place = || {
        let mut parts = cursor.splitn(3, '.');
        let (tenant, length, rest) = (parts.next()?, parts.next()?, parts.next()?);
        let (key, user) = rest.split_at_checked(length.parse().ok()?)?;
        Some((tenant.parse().ok()?, key.to_owned(), user.to_owned()))
    };
    place()
        .map(Some)
        .ok_or_else(|| Error::invalid("cursor.invalid", "cursor: expected a nextCursor of an earlier page"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written() {
        for place in [(1, "a".to_owned(), String::new()), (20, "a.b".to_owned(), "u.1é".to_owned())] {
            assert_eq!(after(Some(&cursor(&place))).expect("read"), Some(place));
        }
        assert_eq!(after(None).expect("none"), None);
        for bad in ["", "1", "1.2", "x.1.a", "1.9.a", "1.-1.a"] {
            assert_eq!(after(Some(bad)).expect_err(bad).code(), "cursor.invalid");
        }
    }
}
