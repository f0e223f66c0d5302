//! Pages of the logs.

use std::sync::Arc;

use tidewire_core::TenantId;
use tidewire_core::event::{Event, Position};
use tidewire_core::store::LogQuery;

use super::Tables;

/// The events of a tenant's log, or of the one across tenants, that match.
pub(super) fn page(tables: &Tables, tenant: &TenantId, query: &LogQuery) -> Vec<Arc<Event>> {
    let up_to = query.up_to.unwrap_or(Position(u64::MAX));
    if query.after >= up_to {
        return Vec::new();
    }
    let wanted = |event: &&Arc<Event>| {
        query.kind.as_ref().is_none_or(|kind| **kind == *event.kind)
            && query.stream.as_ref().is_none_or(|stream| event.stream.as_deref() == Some(stream))
            && query.user.as_ref().is_none_or(|user| event.user_id.as_deref() == Some(user))
            && query.from.is_none_or(|from| event.time >= from)
            && query.to.is_none_or(|to| event.time < to)
    };
    let limit = query.limit.clamp(1, LogQuery::MAX) as usize;
    let mut bytes = 0;
    let fits = |event: &&Arc<Event>| {
        let before = bytes;
        bytes += event.data.get().len();
        before < LogQuery::MAX_BYTES
    };
    if *tenant == TenantId::across() {
        let from = tables.across.partition_point(|event| event.position <= query.after);
        let until = tables.across.partition_point(|event| event.position <= up_to);
        return tables.across[from..until].iter().filter(wanted).take(limit).take_while(fits).cloned().collect();
    }
    let Some(tenant) = tables.tenant(tenant) else { return Vec::new() };
    let range = tables.events.range((tenant, query.after.next())..=(tenant, up_to)).map(|(_, event)| event);
    range.filter(wanted).take(limit).take_while(fits).cloned().collect()
}
