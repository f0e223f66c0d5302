//! When a schedule fires.
//!
//! A cron pattern whose hour is given (`30 2 * * *`, `*/15 9-17 * * *`) names wall-clock times, and each of them fires exactly once a day:
//! one that the clock skips fires at the first instant after the gap, one that the clock repeats fires the first time. A pattern
//! whose hour has a `*` (`*/5 * * * *`, `0 * * * *`, `0 */2 * * *`) is an interval and follows real time: it fires whenever the clock
//! shows a matching time, so twice in a repeated hour and not at all in a skipped one.
//!
//! The pattern itself is searched by `croner` on zone-less times; what a switch of the clock means is decided here, because croner counts
//! only patterns with one single time of day as wall-clock times (`0 9,17 * * *` would fire twice in a repeated hour).

mod stored;

use std::str::FromStr;
use std::time::Duration;

use croner::Cron as Pattern;
use croner::parser::{CronParser, Seconds, Year};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use serde::{Deserialize, Serialize};

pub use stored::{Reached, Spec, Stored};

use crate::suggest::suggest;
use crate::{Error, Result, Timestamp};

/// When a schedule fires. As JSON `{"cron":"0 8 * * *","timezone":"Europe/Berlin"}`, `{"every":"15m"}` or `{"at":"2026-01-31T08:00:00Z"}`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Timing {
    /// By a cron pattern in a time zone.
    Cron(Box<Cron>),
    /// At every multiple of this duration since 1970-01-01T00:00:00Z, so that all nodes and restarts agree. At least a second.
    Every(Duration),
    /// Once.
    Once(Timestamp),
}

/// A cron pattern in a time zone.
#[derive(Clone, Debug)]
pub struct Cron {
    expr: String,
    zone: String,
    pattern: Pattern,
    tz: TimeZone,
    interval: bool,
}

impl PartialEq for Cron {
    fn eq(&self, other: &Self) -> bool {
        self.expr == other.expr && self.zone == other.zone
    }
}

/// What happens to slots that passed while nothing ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// They are lost.
    Skip,
    /// The last one fires, the others are lost. The default.
    #[default]
    Last,
    /// Each of them fires.
    All,
}

/// What happens to a slot when the job of the slot before is unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlap {
    /// Its job runs beside the other.
    Allow,
    /// The slot is lost. The default.
    #[default]
    Skip,
    /// Its job runs after the other.
    Queue,
}

/// The next slot is looked for at most this far ahead: over a century year without its leap day.
const HORIZON: Duration = Duration::from_secs(9 * 366 * 86_400);

impl Timing {
    /// A cron pattern of 5 fields (minute, hour, day of month, month, day of week) or 6 (seconds first), with names, `L`, `W` and `#`, in
    /// an IANA zone. When both days are restricted either may match, as cron has always done.
    ///
    /// Codes `schedule.invalid_cron`, `schedule.unknown_zone` and, when it does not fire within five years, `schedule.never_fires`.
    pub fn cron(expr: &str, zone: &str) -> Result<Self> {
        let fields: Vec<&str> = expr.split_ascii_whitespace().collect();
        if !matches!(fields.len(), 5 | 6) || expr.len() > 256 {
            let found = fields.len();
            return Err(Error::invalid(
                "schedule.invalid_cron",
                format!(
                    "expected 5 cron fields (minute hour day month weekday) or 6 (seconds first), got {found} in {expr:?}"
                ),
            ));
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).year(Year::Disallowed).build();
        let pattern = parser.parse(expr).map_err(|error| {
            Error::invalid("schedule.invalid_cron", format!("not a cron pattern: {expr:?}")).with_source(error)
        })?;
        let hour = fields[fields.len() - 4];
        let cron = Cron {
            expr: expr.to_owned(),
            zone: zone.to_owned(),
            pattern,
            tz: zone_named(zone)?,
            interval: hour.contains(['*', '?']),
        };
        // Without a year field a pattern repeats with the calendar, so a fixed stretch with a leap day tells as much as the present.
        let probe = jiff::civil::date(2024, 1, 1).at(0, 0, 0, 0);
        match cron.next_civil(probe, false) {
            Some(first) if first.year() < 2029 => Ok(Self::Cron(Box::new(cron))),
            Some(_) | None => {
                Err(Error::invalid("schedule.never_fires", format!("{expr:?} does not fire within five years")))
            }
        }
    }

    /// An interval. Code `schedule.invalid_interval` below a second.
    pub fn every(interval: Duration) -> Result<Self> {
        if interval < Duration::from_secs(1) {
            return Err(Error::invalid("schedule.invalid_interval", "every: expected at least 1s"));
        }
        Ok(Self::Every(interval))
    }

    /// The first time it fires strictly after `after`; `None` when it never fires again.
    pub fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron(cron) => cron.next_after(after),
            Self::Every(interval) => {
                let interval = i64::try_from(interval.as_micros()).ok()?.max(1_000_000);
                let slot = after.as_micros().div_euclid(interval) + 1;
                slot.checked_mul(interval).map(Timestamp::from_micros)
            }
            Self::Once(at) => (*at > after).then_some(*at),
        }
    }
}

impl Cron {
    /// The pattern as it was written.
    pub fn expr(&self) -> &str {
        &self.expr
    }

    /// The name of the time zone.
    pub fn zone(&self) -> &str {
        &self.zone
    }

    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let limit = (after + HORIZON).to_jiff();
        let after = after.to_jiff();
        let next =
            if self.interval { self.next_in_real_time(after, limit) } else { self.next_on_the_wall(after, limit) };
        next.map(Timestamp::from_jiff)
    }

    /// Each stretch between two switches has one offset, in which the wall clock and real time run alike.
    fn next_in_real_time(&self, after: jiff::Timestamp, limit: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let (mut start, mut inclusive) = (after, false);
        loop {
            let offset = self.tz.to_offset(start);
            let found = self.next_civil(offset.to_datetime(start), inclusive)?;
            let found = offset.to_timestamp(found).ok()?;
            match self.tz.following(start).next() {
                Some(switch) if found >= switch.timestamp() => (start, inclusive) = (switch.timestamp(), true),
                Some(_) | None => return (found <= limit).then_some(found),
            }
            if start > limit {
                return None;
            }
        }
    }

    /// Every wall time stands for one instant, and later wall times never for earlier instants; so the answer is the first matching wall
    /// time, from what the clock shows at `after` on, whose instant is later than `after`. In the second pass of a repeated hour
    /// the search walks over the times that fired in the first.
    fn next_on_the_wall(&self, after: jiff::Timestamp, limit: jiff::Timestamp) -> Option<jiff::Timestamp> {
        let mut wall = self.tz.to_datetime(after);
        loop {
            wall = self.next_civil(wall, false)?;
            let instant = self.instant_of(wall)?;
            if instant > after {
                return (instant <= limit).then_some(instant);
            }
        }
    }

    /// The first instant at which the clock shows `wall` or has just jumped over it.
    fn instant_of(&self, wall: DateTime) -> Option<jiff::Timestamp> {
        match self.tz.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } | AmbiguousOffset::Fold { before: offset, .. } => {
                offset.to_timestamp(wall).ok()
            }
            AmbiguousOffset::Gap { after, .. } => {
                // Read with the offset that is not valid yet, a skipped time lies just before the switch.
                let before_the_switch = after.to_timestamp(wall).ok()?;
                self.tz.following(before_the_switch).next().map(|switch| switch.timestamp())
            }
        }
    }

    fn next_civil(&self, from: DateTime, inclusive: bool) -> Option<DateTime> {
        self.pattern.find_next_occurrence(&from, inclusive).ok()
    }
}

/// The time zone of an IANA name. Code `schedule.unknown_zone` otherwise.
pub fn zone_named(zone: &str) -> Result<TimeZone> {
    TimeZone::get(zone).map_err(|error| {
        let known: Vec<String> = jiff::tz::db().available().map(|name| name.as_str().to_owned()).collect();
        let hint = suggest(zone, known.iter().map(String::as_str));
        let hint = hint.map_or(String::new(), |hint| format!("; did you mean {hint:?}?"));
        let detail = format!("expected an IANA time zone such as \"Europe/Berlin\", got {zone:?}{hint}");
        Error::invalid("schedule.unknown_zone", detail).with_source(error)
    })
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    cron: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    every: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<String>,
}

impl From<Timing> for Written {
    fn from(timing: Timing) -> Self {
        let nothing = Self { cron: None, timezone: None, every: None, at: None };
        match timing {
            Timing::Cron(cron) => Self { cron: Some(cron.expr), timezone: Some(cron.zone), ..nothing },
            Timing::Every(interval) => Self { every: Some(crate::time::format_duration(interval)), ..nothing },
            Timing::Once(at) => Self { at: Some(at.to_string()), ..nothing },
        }
    }
}

impl TryFrom<Written> for Timing {
    type Error = Error;

    fn try_from(written: Written) -> Result<Self> {
        match written {
            Written { cron: Some(expr), timezone, every: None, at: None } => {
                Self::cron(&expr, timezone.as_deref().unwrap_or("UTC"))
            }
            Written { cron: None, timezone: None, every: Some(interval), at: None } => {
                Self::every(crate::time::parse_duration(&interval)?)
            }
            Written { cron: None, timezone: None, every: None, at: Some(at) } => {
                Timestamp::from_str(&at).map(Self::Once)
            }
            _ => Err(Error::invalid(
                "schedule.invalid",
                "expected one of {\"cron\", \"timezone\"?}, {\"every\"} or {\"at\"}",
            )),
        }
    }
}

#[cfg(test)]
mod tests;
