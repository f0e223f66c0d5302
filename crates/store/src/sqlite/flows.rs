//! Flows and parents as operators and workers see them.

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};
use tidewire_core::store::{Flow, FlowJob, FlowQuery, Page, Parent};
use tidewire_core::{Id, Result, TenantId};

use super::bonds::{PARENTS, member, parent};
use super::columns::{IdColumn, Micros, conversion, fault, optional_id, state, text};
use super::operate::job_seq;
use crate::rows::{FlowNumber, FlowRow, Seq, flow_page, numbered_page, read_cursor, shown_flow};

/// What [`numbered`] reads.
const FLOW_COLUMNS: &str =
    "SELECT f.number, f.unfinished, f.failed, f.undoing, f.finished_at, f.id, f.name, f.created_at FROM flows f";

fn numbered(row: &Row<'_>) -> rusqlite::Result<(FlowNumber, Flow)> {
    let number = row.get(0)?;
    let flow = FlowRow {
        number,
        unfinished: row.get(1)?,
        failed: row.get(2)?,
        undoing: row.get(3)?,
        finished_at: row.get::<_, Option<Micros>>(4)?.map(|at| at.0),
    };
    let id = optional_id(row, 5)?.ok_or_else(|| conversion("a flow without an id"))?;
    Ok((number, shown_flow(&flow, id, text(row, 6)?, row.get::<_, Micros>(7)?.0)))
}

/// A page of the jobs that a job waited for.
pub(super) fn parents(
    connection: &Connection,
    tenant: &TenantId,
    id: &Id,
    after: Seq,
    limit: usize,
) -> Result<Option<Page<Parent>>> {
    let Some(child) = job_seq(connection, tenant, id)? else { return Ok(None) };
    let mut statement = connection.prepare_cached(PARENTS).map_err(fault)?;
    let parents = statement.query_map(params![child, after, limit.cast_signed() + 1], parent);
    let parents = parents.and_then(Iterator::collect).map_err(fault)?;
    Ok(Some(numbered_page(parents, limit)))
}

/// A page of flows, newest first. The index has a tenant's in their order.
pub(super) fn flows(connection: &Connection, query: &FlowQuery) -> Result<Page<Flow>> {
    let before = read_cursor(query.cursor.as_deref(), FlowNumber::MAX)?;
    let sql = format!(
        "{FLOW_COLUMNS} WHERE f.tenant = (SELECT id FROM tenants WHERE name = ?1) AND f.number < ?2 ORDER BY f.number DESC"
    );
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let rows = statement.query_map(params![query.tenant.as_str(), before], numbered).map_err(fault)?;
    flow_page(rows, query).map_err(fault)
}

/// A flow with its jobs. A job that has been forgotten since is still known by how it ended.
pub(super) fn flow(connection: &Connection, tenant: &TenantId, id: &Id) -> Result<Option<Flow>> {
    let sql = format!("{FLOW_COLUMNS} WHERE f.tenant = (SELECT id FROM tenants WHERE name = ?1) AND f.id = ?2");
    let mut statement = connection.prepare_cached(&sql).map_err(fault)?;
    let head = statement.query_row(params![tenant.as_str(), IdColumn(id)], numbered);
    let Some((number, flow)) = head.optional().map_err(fault)? else { return Ok(None) };

    let sql = "SELECT coalesce(m.state, j.state, 7), count(*) FROM flow_jobs m LEFT JOIN jobs j ON j.seq = m.seq \
         WHERE m.flow = ?1 GROUP BY 1";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let counts = statement.query_map([number], |row| Ok((state(row, 0)?, row.get::<_, i64>(1)?.unsigned_abs())));
    let counts = counts.and_then(Iterator::collect).map_err(fault)?;

    let sql = "SELECT m.seq, m.id, m.ref, n.name, m.compensates, m.state, m.finished_at, coalesce(m.state, j.state, 7) \
         FROM flow_jobs m JOIN names n ON n.id = m.type LEFT JOIN jobs j ON j.seq = m.seq \
         WHERE m.flow = ?1 ORDER BY m.seq LIMIT ?2";
    let mut statement = connection.prepare_cached(sql).map_err(fault)?;
    let members =
        statement.query_map(params![number, Flow::MOST_JOBS.cast_signed()], |row| Ok((member(row)?, state(row, 7)?)));
    let members: Vec<_> = members.and_then(Iterator::collect).map_err(fault)?;
    let ids: HashMap<Seq, Id> = members.iter().map(|(member, _)| (member.seq, member.id.clone())).collect();
    let mut statement =
        connection.prepare_cached("SELECT parent FROM edges WHERE child = ?1 ORDER BY parent").map_err(fault)?;
    let mut jobs = Vec::with_capacity(members.len());
    for (member, state) in members {
        let parents = statement.query_map([member.seq], |row| row.get::<_, Seq>(0)).and_then(Iterator::collect);
        let parents: Vec<Seq> = parents.map_err(fault)?;
        jobs.push(FlowJob {
            id: member.id,
            reference: member.reference,
            kind: member.kind,
            state,
            after: parents.iter().filter_map(|parent| ids.get(parent).cloned()).collect(),
            compensates: member.compensates,
            finished_at: member.ended.map(|(_, at)| at),
        });
    }
    Ok(Some(Flow { counts, jobs, ..flow }))
}
