//! Unique keys, who waits for whom, and flows, on the writer's connection.

use rusqlite::{Row, params};
use tidewire_core::job::{Job, State};
use tidewire_core::store::Parent;
use tidewire_core::{Id, Result, Timestamp};

use super::columns::{IdColumn, Micros, conversion, optional_id, parse, state, text};
use super::rows::SqliteRows;
use crate::rows::{Bonds, Edge, FlowNumber, FlowRow, Member, NameId, Seq, Taken};

/// The jobs that a job waited for behind a number, and how they ended; [`parent`] reads them.
pub(super) const PARENTS: &str = "SELECT e.id, e.ref, n.name, e.state, e.result, e.error, e.parent FROM edges e JOIN names n ON n.id = e.type \
     WHERE e.child = ?1 AND e.parent > ?2 AND e.state IS NOT NULL ORDER BY e.parent LIMIT ?3";

pub(super) fn parent(row: &Row<'_>) -> rusqlite::Result<(Seq, Parent)> {
    let parent = Parent {
        id: optional_id(row, 0)?.ok_or_else(|| conversion("an edge without the id of its job"))?,
        reference: text(row, 1)?,
        kind: row.get_ref(2)?.as_str()?.into(),
        state: state(row, 3)?,
        result: row.get_ref(4)?.as_str_or_null()?.map(parse).transpose()?,
        error: text(row, 5)?,
    };
    Ok((row.get(6)?, parent))
}

impl Bonds for SqliteRows {
    fn unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<Option<Taken>> {
        let sql = "SELECT job, id, until, state FROM uniques WHERE tenant = ?1 AND type = ?2 AND key = ?3";
        self.one(sql, params![tenant, kind, key], |row| {
            Ok(Taken {
                seq: row.get(0)?,
                id: optional_id(row, 1)?.ok_or_else(|| conversion("a unique key without the id of its job"))?,
                until: row.get::<_, Option<Micros>>(2)?.map(|until| until.0),
                ended: row.get::<_, Option<u8>>(3)?.and_then(State::from_number),
            })
        })
    }

    fn put_unique(&mut self, tenant: NameId, kind: NameId, key: &str, taken: &Taken) -> Result<()> {
        let sql = "INSERT OR REPLACE INTO uniques (tenant, type, key, job, id, until, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
        let Taken { seq, id, until, ended } = taken;
        let ended = ended.map(|state| state as u8);
        self.run(sql, params![tenant, kind, key, seq, IdColumn(id), until.map(Micros), ended]).map(drop)
    }

    fn delete_unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<()> {
        let sql = "DELETE FROM uniques WHERE tenant = ?1 AND type = ?2 AND key = ?3";
        self.run(sql, params![tenant, kind, key]).map(drop)
    }

    fn add_edge(&mut self, edge: Edge) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO edges (child, parent, ignores_failure) VALUES (?1, ?2, ?3)";
        self.run(sql, params![edge.child, edge.parent, edge.ignores_failure]).map(drop)
    }

    fn dependents(&mut self, parent: Seq) -> Result<Vec<Edge>> {
        let sql = "SELECT child, ignores_failure FROM edges WHERE parent = ?1 AND state IS NULL ORDER BY child";
        self.all(sql, [parent], |row| Ok(Edge { child: row.get(0)?, parent, ignores_failure: row.get(1)? }))
    }

    fn waited_for(&mut self, child: Seq) -> Result<Vec<Seq>> {
        self.all("SELECT parent FROM edges WHERE child = ?1 AND state IS NULL", [child], |row| row.get(0))
    }

    fn end_edges(&mut self, parent: Seq, outcome: &Job) -> Result<()> {
        let reference = outcome.rare.as_ref().and_then(|rare| rare.reference.as_deref());
        self.run(
            "UPDATE edges SET id = ?2, ref = ?3, type = (SELECT type FROM jobs WHERE seq = ?1), state = ?4, result = ?5, error = ?6 \
             WHERE parent = ?1 AND state IS NULL",
            params![
                parent,
                IdColumn(&outcome.id),
                reference,
                outcome.state as u8,
                outcome.result.as_ref().map(tidewire_core::Json::get),
                outcome.error.as_deref().filter(|_| outcome.state != State::Completed),
            ],
        )
        .map(drop)
    }

    fn parents_of(&mut self, child: Seq) -> Result<Vec<Seq>> {
        self.all("SELECT parent FROM edges WHERE child = ?1 ORDER BY parent", [child], |row| row.get(0))
    }

    fn children_of(&mut self, parent: Seq) -> Result<Vec<Seq>> {
        self.all("SELECT child FROM edges WHERE parent = ?1 ORDER BY child", [parent], |row| row.get(0))
    }

    fn reopen_edge(&mut self, child: Seq, parent: Seq) -> Result<()> {
        let sql = "UPDATE edges SET id = NULL, ref = NULL, type = NULL, state = NULL, result = NULL, error = NULL \
             WHERE child = ?1 AND parent = ?2";
        self.run(sql, params![child, parent]).map(drop)
    }

    fn parents(&mut self, child: Seq, limit: usize) -> Result<Vec<Parent>> {
        self.all(PARENTS, params![child, Seq::MIN, limit.cast_signed()], |row| parent(row).map(|(_, parent)| parent))
    }

    fn flow(&mut self, tenant: NameId, id: &Id) -> Result<Option<FlowRow>> {
        let sql = "SELECT number, unfinished, failed, undoing, finished_at FROM flows WHERE tenant = ?1 AND id = ?2";
        self.one(sql, params![tenant, IdColumn(id)], |row| {
            Ok(FlowRow {
                number: row.get(0)?,
                unfinished: row.get(1)?,
                failed: row.get(2)?,
                undoing: row.get(3)?,
                finished_at: row.get::<_, Option<Micros>>(4)?.map(|at| at.0),
            })
        })
    }

    fn add_flow(&mut self, tenant: NameId, id: &Id, name: Option<&str>, at: Timestamp) -> Result<FlowRow> {
        let sql = "INSERT INTO flows (tenant, id, name, created_at) VALUES (?1, ?2, ?3, ?4)";
        self.run(sql, params![tenant, IdColumn(id), name, Micros(at)])?;
        let number = self.connection.last_insert_rowid();
        Ok(FlowRow { number, unfinished: 0, failed: 0, undoing: false, finished_at: None })
    }

    fn update_flow(&mut self, flow: &FlowRow) -> Result<()> {
        let sql = "UPDATE flows SET unfinished = ?2, failed = ?3, undoing = ?4, finished_at = ?5 WHERE number = ?1";
        let finished_at = flow.finished_at.map(Micros);
        self.run(sql, params![flow.number, flow.unfinished, flow.failed, flow.undoing, finished_at]).map(drop)
    }

    fn add_member(&mut self, flow: FlowNumber, member: &Member) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO flow_jobs (flow, seq, id, ref, type, compensates) \
             VALUES (?1, ?2, ?3, ?4, (SELECT id FROM names WHERE name = ?5), ?6)";
        let compensates = member.compensates.as_ref().map(IdColumn);
        let values =
            params![flow, member.seq, IdColumn(&member.id), member.reference.as_deref(), &*member.kind, compensates];
        self.run(sql, values).map(drop)
    }

    fn end_member(&mut self, flow: FlowNumber, seq: Seq, state: State, at: Timestamp) -> Result<()> {
        let sql = "UPDATE flow_jobs SET state = ?3, finished_at = ?4 WHERE flow = ?1 AND seq = ?2";
        self.run(sql, params![flow, seq, state as u8, Micros(at)]).map(drop)
    }

    fn reopen_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()> {
        let sql = "UPDATE flow_jobs SET state = NULL, finished_at = NULL WHERE flow = ?1 AND seq = ?2";
        self.run(sql, params![flow, seq]).map(drop)
    }

    fn delete_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()> {
        self.run("DELETE FROM flow_jobs WHERE flow = ?1 AND seq = ?2", params![flow, seq]).map(drop)
    }

    fn members(&mut self, flow: FlowNumber) -> Result<Vec<Member>> {
        let sql = "SELECT f.seq, f.id, f.ref, n.name, f.compensates, f.state, f.finished_at FROM flow_jobs f \
             JOIN names n ON n.id = f.type WHERE f.flow = ?1 ORDER BY f.seq";
        self.all(sql, [flow], member)
    }
}

/// Reads `seq, id, ref, type, compensates, state, finished_at`.
pub(super) fn member(row: &Row<'_>) -> rusqlite::Result<Member> {
    Ok(Member {
        seq: row.get(0)?,
        id: optional_id(row, 1)?.ok_or_else(|| conversion("a member of a flow without an id"))?,
        reference: text(row, 2)?,
        kind: row.get_ref(3)?.as_str()?.into(),
        compensates: optional_id(row, 4)?,
        ended: match row.get::<_, Option<Micros>>(6)? {
            Some(at) => Some((state(row, 5)?, at.0)),
            None => None,
        },
    })
}
