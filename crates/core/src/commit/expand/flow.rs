//! Jobs that wait for jobs: references, flows and what follows them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::jobs::option;
use super::{Origin, Place, Run, check_texts};
use crate::commit::{After, Enqueue, FlowHead, MAX_AFTER, NewFlow, NewJob};
use crate::job::{OnConflict, OnFailure, Rare, State};
use crate::{Error, Id, Result};

/// `compensate` and `onFailure` are about the other jobs of a flow.
pub(super) fn needs_flow(at: Place) -> Error {
    option(at, "compensate and onFailure belong to a job that is asked for in a flow or that others wait for")
}

/// The ids of jobs that are there already.
pub(super) fn ids(after: &[String], at: Place) -> Result<Vec<After>> {
    check_count(after, at)?;
    let id = |name: &String| Id::parse(name).map(|id| After { id, ignores_failure: false });
    after.iter().map(id).collect()
}

fn check_count(after: &[String], at: Place) -> Result<()> {
    if after.len() > MAX_AFTER {
        return Err(option(at, &format!("after: expected at most {MAX_AFTER} jobs, got {}", after.len())));
    }
    Ok(())
}

/// What a job is to the flow.
struct Member {
    at: Place,
    after: Vec<String>,
    compensate: Option<Box<NewJob>>,
}

impl Run<'_> {
    /// Expands jobs that are asked for together, with their references and their flow, which `root` has caused if it is there. Answers
    /// how many jobs there are by then, but for those that the flow adds by itself.
    pub(super) fn tied_jobs(
        &mut self,
        jobs: Vec<NewJob>,
        flow: Option<NewFlow>,
        place: impl Fn(usize) -> Place,
        origin: &Origin,
        root: Option<usize>,
    ) -> Result<usize> {
        let first = self.jobs.len();
        let mut members: Vec<Member> = Vec::new();
        for (index, mut job) in jobs.into_iter().enumerate() {
            let at = place(index);
            if flow.is_none() && (job.compensate.is_some() || job.on_failure == Some(OnFailure::Compensate)) {
                return Err(option(at, "compensate: only a job of a flow can be undone"));
            }
            members.push(Member { at, after: std::mem::take(&mut job.after), compensate: job.compensate.take() });
            self.room_left()?;
            self.same_tenant(job.tenant.as_ref(), at)?;
            let job = self.expander.enqueue(job, at, origin, self.now)?;
            self.jobs.push(job);
        }
        let asked = self.jobs.len();
        self.resolve(first, &members)?;
        let Some(flow) = flow else { return Ok(asked) };
        if asked == first {
            return Err(Error::invalid("job.invalid_option", "flow: expected at least one job"));
        }
        let own_place = |list| Place { list, index: 0, alone: true, is_caused: place(0).is_caused };
        check_texts(own_place("flow"), [("name", &flow.name)])?;
        let head = FlowHead {
            given_id: flow.id.is_some(),
            id: flow.id.unwrap_or_else(|| self.expander.ids.next()),
            name: flow.name.map(Into::into),
            root,
        };
        for (index, member) in members.into_iter().enumerate() {
            if let Some(job) = member.compensate {
                let undone = self.jobs[first + index].id.clone();
                self.follower(*job, member.at, origin, Vec::new(), |rare| {
                    rare.compensates = Some(undone);
                    // It is not known when it will be needed, so it does not expire meanwhile; and it is needed whoever has its key.
                    (rare.expires_at, rare.unique) = (None, None);
                })?;
            }
        }
        for (name, job, finally) in [("then", flow.then, false), ("finally", flow.finally, true)] {
            if let Some(job) = job {
                let after = |job: &Enqueue| After { id: job.id.clone(), ignores_failure: finally || is_ignored(job) };
                let after = self.jobs[first..asked].iter().map(after).collect();
                self.follower(*job, own_place(name), origin, after, |rare| rare.finally = finally)?;
            }
        }
        for job in &mut self.jobs[first..] {
            job.rare.get_or_insert_default().flow = Some(head.id.clone());
            job.root = root;
        }
        self.flows.push(head);
        Ok(asked)
    }

    /// A job that the flow itself adds.
    fn follower(
        &mut self,
        job: NewJob,
        at: Place,
        origin: &Origin,
        after: Vec<After>,
        mark: impl FnOnce(&mut Rare),
    ) -> Result<()> {
        if !job.after.is_empty() || job.compensate.is_some() || job.on_failure.is_some() {
            return Err(option(at, "what a flow adds by itself has no after, compensate or onFailure"));
        }
        self.room_left()?;
        self.same_tenant(job.tenant.as_ref(), at)?;
        let mut job = self.expander.enqueue(job, at, origin, self.now)?;
        mark(job.rare.get_or_insert_default());
        self.jobs.push(Enqueue { after, ..job });
        Ok(())
    }

    /// Turns what the jobs from `first` on name in `after` into ids. Codes `flow.duplicate_ref`, `flow.cycle`.
    fn resolve(&mut self, first: usize, members: &[Member]) -> Result<()> {
        let mut by_reference: HashMap<Box<str>, usize> = HashMap::new();
        for (index, job) in self.jobs[first..].iter().enumerate() {
            let Some(reference) = job.rare.as_ref().and_then(|rare| rare.reference.clone()) else { continue };
            if let Some(before) = by_reference.insert(reference.clone(), index) {
                let detail = format!("{}: jobs[{before}] has the ref {reference:?}, too", members[index].at.path());
                return Err(Error::invalid("flow.duplicate_ref", detail));
            }
        }
        if members.iter().all(|member| member.after.is_empty()) {
            return Ok(());
        }
        let given = self.jobs[first..].iter().enumerate().filter(|(_, job)| job.given_id);
        let by_id: HashMap<Id, usize> = given.map(|(index, job)| (job.id.clone(), index)).collect();
        let mut before: Vec<Vec<usize>> = Vec::with_capacity(members.len());
        for (index, member) in members.iter().enumerate() {
            check_count(&member.after, member.at)?;
            let (mut after, mut inside) = (Vec::with_capacity(member.after.len()), Vec::new());
            for name in &member.after {
                let id = Id::parse(name);
                let of = by_reference.get(name.as_str()).or_else(|| by_id.get(id.as_ref().ok()?));
                let (id, ignores_failure) = match of {
                    Some(of) => {
                        inside.push(*of);
                        let waited_for = &self.jobs[first + of];
                        (waited_for.id.clone(), is_ignored(waited_for))
                    }
                    None => (id?, false),
                };
                after.push(After { id, ignores_failure });
            }
            self.jobs[first + index].after = after;
            before.push(inside);
        }
        let circle = cycle(&before).or_else(|| cycle(&merged(&self.jobs[first..], before)));
        match circle {
            None => Ok(()),
            Some(cycle) => {
                let name = |index: &usize| {
                    let job = &self.jobs[first + index];
                    let reference = job.rare.as_ref().and_then(|rare| rare.reference.as_deref());
                    reference.map_or_else(|| job.id.to_string(), str::to_owned)
                };
                let path: Vec<String> = cycle.iter().chain(cycle.first()).map(name).collect();
                let detail = format!("these jobs wait for each other: {}", path.join(" after "));
                Err(Error::invalid("flow.cycle", detail))
            }
        }
    }
}

/// Whether those that wait for a job run however it ends.
fn is_ignored(job: &Enqueue) -> bool {
    job.rare.as_ref().is_some_and(|rare| rare.on_failure == OnFailure::Ignore)
}

/// Who waits for whom when those of one unique key have become one: it stands for all of them and waits only for what the first waits
/// for. Without this, two of a key of which one waits, through a third, for the other would wait for ever.
fn merged(jobs: &[Enqueue], mut before: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let mut first: HashMap<(&str, &str), usize> = HashMap::new();
    let mut stands_for: Vec<usize> = (0..before.len()).collect();
    for (index, job) in jobs.iter().enumerate().take(before.len()) {
        let Some(unique) = job.rare.as_ref().and_then(|rare| rare.unique.as_ref()) else { continue };
        // One that waits is blocked. Whoever supersedes it takes its place and does not become one with it.
        let merges = unique.on_conflict != OnConflict::Supersede && unique.states.contains(State::Blocked);
        match first.entry((&job.kind, &unique.key)) {
            Entry::Occupied(known) if merges => stands_for[index] = *known.get(),
            Entry::Occupied(mut known) => drop(known.insert(index)),
            Entry::Vacant(vacant) => drop(vacant.insert(index)),
        }
    }
    for (index, after) in before.iter_mut().enumerate() {
        if stands_for[index] != index {
            after.clear();
        }
        after.iter_mut().for_each(|parent| *parent = stands_for[*parent]);
        // A job never waits for itself.
        after.retain(|parent| *parent != index);
    }
    before
}

/// Some jobs that wait for each other in a circle. `before[n]` are the jobs that job n waits for.
pub(crate) fn cycle(before: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut waits: Vec<usize> = before.iter().map(Vec::len).collect();
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); before.len()];
    for (index, jobs) in before.iter().enumerate() {
        for job in jobs {
            dependents[*job].push(index);
        }
    }
    let mut free: Vec<usize> = (0..before.len()).filter(|index| waits[*index] == 0).collect();
    while let Some(index) = free.pop() {
        for dependent in &dependents[index] {
            waits[*dependent] -= 1;
            if waits[*dependent] == 0 {
                free.push(*dependent);
            }
        }
    }
    // Whoever is left waits for somebody who is left, so walking on comes back to where it has been.
    let mut path = vec![waits.iter().position(|waits| *waits > 0)?];
    loop {
        let next = *before[*path.last()?].iter().find(|job| waits[**job] > 0)?;
        if let Some(begin) = path.iter().position(|index| *index == next) {
            return Some(path.split_off(begin));
        }
        path.push(next);
    }
}
