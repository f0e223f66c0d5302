//! Unique keys, who waits for whom, and flows, in maps.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use tidewire_core::job::{Job, State};
use tidewire_core::store::{Flow, Parent};
use tidewire_core::{Id, Result, Timestamp};

use super::MemoryRows;
use crate::rows::{Bonds, Edge, FlowNumber, FlowRow, Member, NameId, Seq, Taken, shown_flow};

/// The tables of this part.
#[derive(Default)]
pub(super) struct BondTables {
    pub(super) uniques: HashMap<(NameId, NameId, String), Taken>,
    /// By child and parent: whether the failure of the parent is ignored, and how it ended.
    edges: BTreeMap<(Seq, Seq), (bool, Option<Parent>)>,
    /// By parent and child: the edges whose parent has not ended.
    open: BTreeSet<(Seq, Seq)>,
    /// By parent and child: all edges.
    children: BTreeSet<(Seq, Seq)>,
    pub(super) flows: Vec<FlowEntry>,
}

/// A flow; its number is its place in the list, from 1 on.
pub(super) struct FlowEntry {
    pub(super) tenant: NameId,
    pub(super) id: Id,
    pub(super) name: Option<Box<str>>,
    pub(super) created_at: Timestamp,
    pub(super) row: FlowRow,
    pub(super) members: BTreeMap<Seq, Member>,
}

impl FlowEntry {
    pub(super) fn shown(&self) -> Flow {
        shown_flow(&self.row, self.id.clone(), self.name.clone(), self.created_at)
    }
}

impl BondTables {
    pub(super) fn flow(&self, tenant: NameId, id: &Id) -> Option<&FlowEntry> {
        self.flows.iter().find(|flow| flow.tenant == tenant && flow.id == *id)
    }

    fn entry(&mut self, number: FlowNumber) -> Option<&mut FlowEntry> {
        self.flows.get_mut(usize::try_from(number - 1).ok()?)
    }

    /// Forgets for whom a job waited.
    pub(super) fn forget_edges(&mut self, child: Seq) {
        let parents: Vec<Seq> = self.before(child).collect();
        for parent in parents {
            self.edges.remove(&(child, parent));
            self.open.remove(&(parent, child));
            self.children.remove(&(parent, child));
        }
    }

    /// The jobs that `child` waited for and how they ended.
    pub(super) fn ended_parents(&self, child: Seq) -> impl Iterator<Item = (Seq, &Parent)> {
        let edges = self.edges.range((child, Seq::MIN)..=(child, Seq::MAX));
        edges.filter_map(|((_, parent), (_, ended))| Some((*parent, ended.as_ref()?)))
    }

    /// The jobs that `child` waits or waited for.
    pub(super) fn before(&self, child: Seq) -> impl Iterator<Item = Seq> + '_ {
        self.edges.range((child, Seq::MIN)..=(child, Seq::MAX)).map(|((_, parent), _)| *parent)
    }
}

impl Bonds for MemoryRows {
    fn unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<Option<Taken>> {
        Ok(self.tables().bonds.uniques.get(&(tenant, kind, key.to_owned())).cloned())
    }

    fn put_unique(&mut self, tenant: NameId, kind: NameId, key: &str, taken: &Taken) -> Result<()> {
        self.tables().bonds.uniques.insert((tenant, kind, key.to_owned()), taken.clone());
        Ok(())
    }

    fn delete_unique(&mut self, tenant: NameId, kind: NameId, key: &str) -> Result<()> {
        self.tables().bonds.uniques.remove(&(tenant, kind, key.to_owned()));
        Ok(())
    }

    fn add_edge(&mut self, edge: Edge) -> Result<()> {
        let bonds = &mut self.tables().bonds;
        let (_, ended) = bonds.edges.entry((edge.child, edge.parent)).or_insert((edge.ignores_failure, None));
        bonds.children.insert((edge.parent, edge.child));
        if ended.is_none() {
            bonds.open.insert((edge.parent, edge.child));
        }
        Ok(())
    }

    fn dependents(&mut self, parent: Seq) -> Result<Vec<Edge>> {
        let BondTables { open, edges, .. } = &self.tables().bonds;
        let edge = |(_, child): &(Seq, Seq)| {
            let (ignores_failure, _) = edges.get(&(*child, parent))?;
            Some(Edge { child: *child, parent, ignores_failure: *ignores_failure })
        };
        Ok(open.range((parent, Seq::MIN)..=(parent, Seq::MAX)).filter_map(edge).collect())
    }

    fn waited_for(&mut self, child: Seq) -> Result<Vec<Seq>> {
        let edges = self.tables().bonds.edges.range((child, Seq::MIN)..=(child, Seq::MAX));
        Ok(edges.filter(|(_, (_, ended))| ended.is_none()).map(|((_, parent), _)| *parent).collect())
    }

    fn end_edges(&mut self, parent: Seq, outcome: &Job) -> Result<()> {
        let ended = Parent {
            id: outcome.id.clone(),
            reference: outcome.rare.as_ref().and_then(|rare| rare.reference.clone()),
            kind: outcome.kind.clone(),
            state: outcome.state,
            result: outcome.result.clone(),
            error: outcome.error.clone().filter(|_| outcome.state != State::Completed),
        };
        let BondTables { open, edges, .. } = &mut self.tables().bonds;
        for (_, child) in open.extract_if((parent, Seq::MIN)..=(parent, Seq::MAX), |_| true) {
            if let Some((_, end)) = edges.get_mut(&(child, parent)) {
                *end = Some(ended.clone());
            }
        }
        Ok(())
    }

    fn parents_of(&mut self, child: Seq) -> Result<Vec<Seq>> {
        Ok(self.tables().bonds.before(child).collect())
    }

    fn children_of(&mut self, parent: Seq) -> Result<Vec<Seq>> {
        let children = self.tables().bonds.children.range((parent, Seq::MIN)..=(parent, Seq::MAX));
        Ok(children.map(|(_, child)| *child).collect())
    }

    fn reopen_edge(&mut self, child: Seq, parent: Seq) -> Result<()> {
        let bonds = &mut self.tables().bonds;
        if let Some((_, ended)) = bonds.edges.get_mut(&(child, parent)) {
            *ended = None;
            bonds.open.insert((parent, child));
        }
        Ok(())
    }

    fn parents(&mut self, child: Seq, limit: usize) -> Result<Vec<Parent>> {
        Ok(self.tables().bonds.ended_parents(child).map(|(_, ended)| ended.clone()).take(limit).collect())
    }

    fn flow(&mut self, tenant: NameId, id: &Id) -> Result<Option<FlowRow>> {
        Ok(self.tables().bonds.flow(tenant, id).map(|flow| flow.row.clone()))
    }

    fn add_flow(&mut self, tenant: NameId, id: &Id, name: Option<&str>, at: Timestamp) -> Result<FlowRow> {
        let flows = &mut self.tables().bonds.flows;
        let number = FlowNumber::try_from(flows.len() + 1).unwrap_or(FlowNumber::MAX);
        let row = FlowRow { number, unfinished: 0, failed: 0, undoing: false, finished_at: None };
        let (id, name) = (id.clone(), name.map(Into::into));
        flows.push(FlowEntry { tenant, id, name, created_at: at, row: row.clone(), members: BTreeMap::new() });
        Ok(row)
    }

    fn update_flow(&mut self, flow: &FlowRow) -> Result<()> {
        if let Some(entry) = self.tables().bonds.entry(flow.number) {
            entry.row = flow.clone();
        }
        Ok(())
    }

    fn add_member(&mut self, flow: FlowNumber, member: &Member) -> Result<()> {
        if let Some(entry) = self.tables().bonds.entry(flow) {
            entry.members.entry(member.seq).or_insert_with(|| member.clone());
        }
        Ok(())
    }

    fn end_member(&mut self, flow: FlowNumber, seq: Seq, state: State, at: Timestamp) -> Result<()> {
        if let Some(member) = self.tables().bonds.entry(flow).and_then(|entry| entry.members.get_mut(&seq)) {
            member.ended = Some((state, at));
        }
        Ok(())
    }

    fn reopen_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()> {
        if let Some(member) = self.tables().bonds.entry(flow).and_then(|entry| entry.members.get_mut(&seq)) {
            member.ended = None;
        }
        Ok(())
    }

    fn delete_member(&mut self, flow: FlowNumber, seq: Seq) -> Result<()> {
        if let Some(entry) = self.tables().bonds.entry(flow) {
            entry.members.remove(&seq);
        }
        Ok(())
    }

    fn members(&mut self, flow: FlowNumber) -> Result<Vec<Member>> {
        Ok(self.tables().bonds.entry(flow).map(|entry| entry.members.values().cloned().collect()).unwrap_or_default())
    }
}
