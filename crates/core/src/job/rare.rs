//! What few jobs have, kept apart so that all others neither carry nor store it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::State;
use crate::time::optional_duration_text;
use crate::{Id, Json, Timestamp};

/// The rare part of a job. It is stored as this JSON.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rare {
    /// Shares the queue's `perKey` and `ratePerKey` with the tenant's other jobs of this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Box<str>>,
    /// The key under which it is the only one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unique: Option<Unique>,
    /// When it is taken back if it has not begun by then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// No run begins after this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_until: Option<Timestamp>,
    /// Workers that were lost with it.
    #[serde(skip_serializing_if = "is_zero")]
    pub lost: u16,
    /// What its run last told of how far it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Json>,
    /// The flow that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flow: Option<Id>,
    /// What the flow calls it.
    #[serde(rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<Box<str>>,
    /// How many jobs it still waits for.
    #[serde(skip_serializing_if = "is_zero")]
    pub waits_for: u16,
    /// What follows for the jobs that wait for it when it is dead, failed or cancelled.
    #[serde(skip_serializing_if = "is_default")]
    pub on_failure: OnFailure,
    /// The job of the flow that it undoes; it runs only when the flow fails after that one was completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compensates: Option<Id>,
    /// Whether it comes at the end of its flow, however that ends.
    #[serde(skip_serializing_if = "is_default")]
    pub finally: bool,
    /// Whether it waits or waited for others.
    #[serde(skip_serializing_if = "is_default")]
    pub has_parents: bool,
    /// Whether others wait for it.
    #[serde(skip_serializing_if = "is_default")]
    pub has_dependents: bool,
    /// When the rate of its key lets it start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paced_until: Option<Timestamp>,
    /// Whether it has a log.
    #[serde(skip_serializing_if = "is_default")]
    pub has_log: bool,
    /// Whether it follows from the life of another job. Its own life causes nothing, so that an alert that fails raises none.
    #[serde(skip_serializing_if = "is_default")]
    pub system: bool,
}

fn is_zero(number: &u16) -> bool {
    *number == 0
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Under which key, for how long and how a job is the only one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unique {
    /// The key, unique in the tenant and job type.
    pub key: Box<str>,
    /// In which states it keeps others out.
    #[serde(rename = "while")]
    pub states: States,
    /// It also keeps others out for this long after it was enqueued, whatever its state but cancelled.
    #[serde(with = "optional_duration_text", skip_serializing_if = "Option::is_none", default)]
    pub window: Option<Duration>,
    /// What becomes of the one that comes later.
    pub on_conflict: OnConflict,
}

/// A set of states. As JSON a list of their names, or one of the words `waiting` and `unfinished`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StatesText", into = "Vec<State>")]
pub struct States(u8);

impl States {
    /// Due later, blocked or due, but not yet running.
    pub const WAITING: Self = Self::of(&[State::Scheduled, State::Pending, State::Blocked]);
    /// Everything that is not final.
    pub const UNFINISHED: Self = Self::of(&[State::Scheduled, State::Pending, State::Blocked, State::Processing]);

    const fn of(states: &[State]) -> Self {
        let mut bits = 0;
        let mut index = 0;
        while index < states.len() {
            bits |= 1 << states[index] as u8;
            index += 1;
        }
        Self(bits)
    }

    /// Whether `state` is one of them.
    pub fn contains(self, state: State) -> bool {
        self.0 & (1 << state as u8) != 0
    }
}

impl From<States> for Vec<State> {
    fn from(states: States) -> Self {
        State::ALL.into_iter().filter(|state| states.contains(*state)).collect()
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "while: expected waiting, unfinished or a list of states")]
enum StatesText {
    Word(String),
    List(Vec<State>),
}

impl TryFrom<StatesText> for States {
    type Error = String;

    fn try_from(text: StatesText) -> Result<Self, String> {
        match text {
            StatesText::List(states) if states.is_empty() => Err("while: expected at least one state".to_owned()),
            StatesText::List(states) => Ok(Self::of(&states)),
            StatesText::Word(word) => match word.as_str() {
                "waiting" => Ok(Self::WAITING),
                "unfinished" => Ok(Self::UNFINISHED),
                _ => Err(format!("while: expected waiting, unfinished or a list of states, got {word:?}")),
            },
        }
    }
}

/// What becomes of a job whose unique key is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnConflict {
    /// The one that is there stays as it is; the later one is dropped.
    #[default]
    Keep,
    /// A waiting one gets the data, priority and time of the later one. A running one stays, and the later one is dropped.
    Replace,
    /// A waiting one waits anew, until the time of the later one; its data stays. A running one stays, and the later one is dropped.
    Extend,
    /// A waiting one gets the data and the time of the later one. Behind a running one the later one waits until it has ended.
    Latest,
    /// The one that is there is cancelled. Behind a running one the later one waits until it has ended.
    Supersede,
}

/// What became of a job whose unique key was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Conflict {
    /// It was dropped; the one that is there stayed as it was.
    Kept,
    /// The one that is there has its data, priority and time now.
    Replaced,
    /// The one that is there waits until its time now.
    Extended,
    /// It was enqueued and waits until the running one has ended.
    Queued,
    /// It was enqueued in the place of the one that was there, which is cancelled.
    Superseded,
}

/// What follows for the jobs that wait for a job when it is dead, failed or cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// They are cancelled, and those that wait for them.
    #[default]
    Fail,
    /// They run all the same.
    Ignore,
    /// They are cancelled, and what the flow has completed is undone by its compensating jobs, the last completed first.
    Compensate,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rare_part_is_written_only_where_it_says_something() {
        assert_eq!(serde_json::to_string(&Rare::default()).expect("json"), "{}");
        let rare = Rare {
            unique: Some(Unique {
                key: "k".into(),
                states: States::WAITING,
                window: Some(Duration::from_secs(60)),
                on_conflict: OnConflict::Latest,
            }),
            progress: Some(Json::parse("{\"done\":3}".to_owned()).expect("json")),
            on_failure: OnFailure::Compensate,
            ..Rare::default()
        };
        let text = serde_json::to_string(&rare).expect("json");
        assert_eq!(serde_json::from_str::<Rare>(&text).expect(&text), rare);
    }

    #[test]
    fn states_are_told_by_word_or_by_name() {
        let read = |text: &str| serde_json::from_str::<States>(text);
        assert_eq!(read("\"unfinished\"").expect("word"), States::UNFINISHED);
        assert!(read("[\"completed\"]").expect("list").contains(State::Completed));
        for bad in ["\"done\"", "[]", "[\"active\"]", "7"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
