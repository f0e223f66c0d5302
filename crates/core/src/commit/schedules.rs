//! Schedules in a commit: as a caller asks for them, as they are written, and the answer.

use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::Delay;
use crate::schedule::{Missed, Overlap, Spec};
use crate::{Json, TenantId, Timestamp};

/// A schedule to put or to delete, as a caller writes it.
///
/// Putting replaces all that was put before under the same key and user. Exactly one of `cron`, `every` and `at` says when.
/// For a key that the catalog declares with `per = "user"`, absent values are the catalog's.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NewSchedule {
    /// The tenant, where the caller names it here, or `$app`. Expansion refuses any other than the commit's.
    #[serde(default, deserialize_with = "tenant_or_app")]
    pub tenant: Option<TenantId>,
    /// Its name, 1 to 128 printable ASCII characters without spaces.
    #[serde(default)]
    pub key: String,
    /// The user it belongs to. Its jobs work for this user.
    #[serde(default)]
    pub user_id: Option<String>,
    /// The job type that each slot enqueues.
    #[serde(default)]
    pub job: Option<String>,
    /// The data of the job. Default `{}`; a user's schedule adds `userId` where the job declares it.
    #[serde(default)]
    pub data: Option<Json>,
    /// A cron pattern.
    #[serde(default)]
    pub cron: Option<String>,
    /// The IANA zone of `cron`; default: the app's.
    #[serde(default)]
    pub timezone: Option<String>,
    /// Or an interval of at least a second.
    #[serde(default)]
    pub every: Option<Delay>,
    /// Or one time, in the future.
    #[serde(default)]
    pub at: Option<Timestamp>,
    /// What happens to slots that passed while nothing ran. Default `last`.
    #[serde(default)]
    pub missed: Option<Missed>,
    /// What happens when the job of the slot before is unfinished. Default `skip`.
    #[serde(default)]
    pub overlap: Option<Overlap>,
    /// No slot is earlier.
    #[serde(default)]
    pub start: Option<Timestamp>,
    /// No slot is later.
    #[serde(default)]
    pub end: Option<Timestamp>,
    /// It ends with so many runs, at least 1.
    #[serde(default)]
    pub limit: Option<u64>,
    /// Whether it fires nothing until it is put without this.
    #[serde(default)]
    pub paused: bool,
    /// Deletes it. Then only the key and the user are given.
    #[serde(default)]
    pub delete: bool,
}

fn tenant_or_app<'de, D: Deserializer<'de>>(input: D) -> Result<Option<TenantId>, D::Error> {
    let named: Option<String> = Option::deserialize(input)?;
    let tenant =
        |name: String| if name == TenantId::app().as_str() { Ok(TenantId::app()) } else { TenantId::new(name) };
    named.map(tenant).transpose().map_err(D::Error::custom)
}

impl NewSchedule {
    /// A schedule called `key` that enqueues `job`. It still needs its time.
    pub fn new(key: impl Into<String>, job: impl Into<String>) -> Self {
        Self { key: key.into(), job: Some(job.into()), ..Self::default() }
    }

    /// Deletes the schedule called `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self { key: key.into(), delete: true, ..Self::default() }
    }
}

/// What is done to a schedule, checked.
#[derive(Clone, Debug)]
pub enum ScheduleWrite {
    /// It is put, whether it is new or not.
    Put {
        /// Its name.
        key: Arc<str>,
        /// The user it belongs to.
        user_id: Option<Box<str>>,
        /// What it does and when.
        spec: Box<Spec>,
        /// Whether it fires nothing.
        paused: bool,
    },
    /// It is deleted, if it is there.
    Delete {
        /// Its name.
        key: Arc<str>,
        /// The user it belongs to.
        user_id: Option<Box<str>>,
    },
    /// It is paused because it cannot fire, unless somebody has changed it meanwhile.
    Suspend {
        /// Its name.
        key: Arc<str>,
        /// The user it belongs to.
        user_id: Option<Box<str>>,
        /// The revision that cannot fire.
        revision: u64,
        /// Why, for people.
        why: Box<str>,
    },
}

impl ScheduleWrite {
    /// Which schedule it is about.
    pub fn target(&self) -> (&Arc<str>, Option<&str>) {
        match self {
            Self::Put { key, user_id, .. } | Self::Delete { key, user_id } | Self::Suspend { key, user_id, .. } => {
                (key, user_id.as_deref())
            }
        }
    }
}

/// A schedule as it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Scheduled {
    /// Its name.
    pub key: Arc<str>,
    /// The user it belongs to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<Box<str>>,
    /// Its next slot; absent when it is paused, has ended or is deleted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub next: Option<Timestamp>,
}
