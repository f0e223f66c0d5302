use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

fn cron(expr: &str, zone: &str) -> Timing {
    Timing::cron(expr, zone).expect(expr)
}

fn at(text: &str) -> Timestamp {
    text.parse().expect(text)
}

/// The times from `after` on, up to and with `until`.
fn fires(timing: &Timing, after: Timestamp, until: Timestamp) -> Vec<Timestamp> {
    let next = |last: &Timestamp| timing.next_after(*last);
    std::iter::successors(timing.next_after(after), next).take_while(|time| *time <= until).collect()
}

fn shown(timing: &Timing, after: &str, until: &str) -> Vec<String> {
    fires(timing, at(after), at(until)).iter().map(ToString::to_string).collect()
}

#[test]
fn a_skipped_time_fires_once_right_after_the_gap() {
    // In Berlin 02:00 to 03:00 does not exist on 2026-03-29; the switch is at 01:00 UTC.
    let (after, until) = ("2026-03-28T12:00:00Z", "2026-03-29T22:00:00Z");
    assert_eq!(shown(&cron("30 2 * * *", "Europe/Berlin"), after, until), ["2026-03-29T01:00:00Z"]);
    assert_eq!(shown(&cron("0,15,30 2 * * *", "Europe/Berlin"), after, until), ["2026-03-29T01:00:00Z"]);
    let around = shown(&cron("0 1-4 * * *", "Europe/Berlin"), after, until);
    assert_eq!(around, ["2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"]);
    // Half an hour on Lord Howe: 02:00 to 02:30 on 2026-10-04, the switch is at 15:30 UTC the day before.
    let timing = cron("15 2 * * *", "Australia/Lord_Howe");
    assert_eq!(shown(&timing, "2026-10-03T00:00:00Z", "2026-10-04T00:00:00Z"), ["2026-10-03T15:30:00Z"]);
}

#[test]
fn a_repeated_time_fires_the_first_time() {
    // In New York 01:00 to 02:00 happens twice on 2026-11-01, from 05:00 and from 06:00 UTC.
    let (after, until) = ("2026-10-31T12:00:00Z", "2026-11-01T23:00:00Z");
    assert_eq!(shown(&cron("30 1 * * *", "America/New_York"), after, until), ["2026-11-01T05:30:00Z"]);
    assert_eq!(
        shown(&cron("0 1,2 * * *", "America/New_York"), after, until),
        ["2026-11-01T05:00:00Z", "2026-11-01T07:00:00Z"]
    );
    let timing = cron("*/30 1 * * *", "America/New_York");
    assert_eq!(shown(&timing, after, until), ["2026-11-01T05:00:00Z", "2026-11-01T05:30:00Z"]);
    // Asked in the middle of the second pass.
    assert_eq!(timing.next_after(at("2026-11-01T06:10:00Z")), Some(at("2026-11-02T06:00:00Z")));
}

#[test]
fn an_interval_follows_real_time() {
    for zone in ["America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "UTC"] {
        for switch in [
            "2026-03-08T07:00:00Z",
            "2026-03-29T01:00:00Z",
            "2026-04-04T15:00:00Z",
            "2026-10-25T01:00:00Z",
            "2026-11-01T06:00:00Z",
        ] {
            let start = at(switch) - Duration::from_secs(7_200);
            let times = fires(&cron("*/5 * * * *", zone), start, start + Duration::from_secs(14_400));
            assert_eq!(times.len(), 48, "{zone} {switch}");
            assert!(times.iter().zip(1..).all(|(time, count)| time.since(start) == Duration::from_secs(count * 300)));
        }
    }
    let hourly = shown(&cron("0 * * * *", "Europe/Berlin"), "2026-10-24T23:30:00Z", "2026-10-25T02:30:00Z");
    assert_eq!(hourly, ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]);
}

#[test]
fn the_fields_of_cron() {
    let start = "2026-01-01T00:00:00Z";
    let first = |expr: &str| cron(expr, "UTC").next_after(at(start)).expect(expr).to_string();
    assert_eq!(first("30 15 10 * * *"), "2026-01-01T10:15:30Z");
    assert_eq!(first("0 0 L * *"), "2026-01-31T00:00:00Z");
    assert_eq!(first("0 0 15W 8 *"), "2026-08-14T00:00:00Z");
    assert_eq!(first("0 9 * * MON#2"), "2026-01-12T09:00:00Z");
    assert_eq!(first("0 9 * feb sun"), "2026-02-01T09:00:00Z");
    assert_eq!(first("0 0 29 2 *"), "2028-02-29T00:00:00Z");
    assert_eq!(first("0 */6 * * *"), "2026-01-01T06:00:00Z");
    // Strictly later, also by less than a second.
    assert_eq!(cron("0 6 * * *", "UTC").next_after(at("2026-01-01T06:00:00Z")), Some(at("2026-01-02T06:00:00Z")));
    assert_eq!(cron("0 6 * * *", "UTC").next_after(at("2026-01-01T05:59:59.999Z")), Some(at("2026-01-01T06:00:00Z")));
    assert_eq!(cron("* * * * * *", "UTC").next_after(at("2026-01-01T05:59:59.5Z")), Some(at("2026-01-01T06:00:00Z")));
}

#[test]
fn nonsense_is_refused() {
    let code = |expr: &str, zone: &str| Timing::cron(expr, zone).expect_err(expr).code();
    for bad in ["", "* * * *", "@daily", "60 * * * *", "* * * * * * *", "a b c d e", "*/0 * * * *", "é * * * *"] {
        assert_eq!(code(bad, "UTC"), "schedule.invalid_cron", "{bad}");
    }
    for never in ["0 0 30 2 *", "0 0 31 4,6,9,11 *"] {
        assert_eq!(code(never, "UTC"), "schedule.never_fires", "{never}");
    }
    assert_eq!(code("0 0 * * *", "Mars/Olympus"), "schedule.unknown_zone");
    let hint = Timing::cron("0 0 * * *", "Europe/Berlyn").expect_err("zone");
    assert!(hint.detail().ends_with("did you mean \"Europe/Berlin\"?"), "{hint}");
    assert_eq!(Timing::every(Duration::from_millis(999)).expect_err("short").code(), "schedule.invalid_interval");
}

#[test]
fn every_counts_from_the_epoch_and_once_is_once() {
    let every = Timing::every(Duration::from_secs(900)).expect("every");
    assert_eq!(every.next_after(at("2026-01-01T00:07:00Z")), Some(at("2026-01-01T00:15:00Z")));
    assert_eq!(every.next_after(at("2026-01-01T00:15:00Z")), Some(at("2026-01-01T00:30:00Z")));
    assert_eq!(every.next_after(at("1969-12-31T23:50:00Z")), Some(at("1970-01-01T00:00:00Z")));
    assert_eq!(every.next_after(Timestamp::from_micros(i64::MAX)), None);
    let once = Timing::Once(at("2026-01-01T00:00:00Z"));
    assert_eq!(once.next_after(at("2025-12-31T23:59:59Z")), Some(at("2026-01-01T00:00:00Z")));
    assert_eq!(once.next_after(at("2026-01-01T00:00:00Z")), None);
}

#[test]
fn it_reads_as_written() {
    for json in
        [r#"{"cron":"0 8 * * *","timezone":"Europe/Berlin"}"#, r#"{"every":"15m"}"#, r#"{"at":"2026-01-31T08:00:00Z"}"#]
    {
        let timing: Timing = serde_json::from_str(json).expect(json);
        assert_eq!(serde_json::to_string(&timing).expect("json"), json);
    }
    assert_eq!(serde_json::from_str::<Timing>(r#"{"cron":"0 8 * * *"}"#).expect("utc"), cron("0 8 * * *", "UTC"));
    for bad in [r#"{}"#, r#"{"every":"1ms"}"#, r#"{"every":"1m","at":"2026-01-31T08:00:00Z"}"#, r#"{"evry":"1m"}"#] {
        assert!(serde_json::from_str::<Timing>(bad).is_err(), "{bad}");
    }
    assert_eq!(serde_json::to_string(&Overlap::Queue).expect("json"), "\"queue\"");
}

/// Two days around each switch of 2026 in the three zones.
const WINDOWS: [(&str, &str); 6] = [
    ("America/New_York", "2026-03-07T12:00:00Z"),
    ("America/New_York", "2026-10-31T12:00:00Z"),
    ("Europe/Berlin", "2026-03-28T12:00:00Z"),
    ("Europe/Berlin", "2026-10-24T12:00:00Z"),
    ("Australia/Lord_Howe", "2026-04-04T00:00:00Z"),
    ("Australia/Lord_Howe", "2026-10-03T00:00:00Z"),
];

/// Looks at the clock on the wall every minute. A wall time fires when the clock first shows it or a later time; an interval whenever
/// the clock shows it.
fn watch_the_clock(
    zone: &str,
    start: Timestamp,
    interval: bool,
    matching: impl Fn(DateTime) -> bool,
) -> Vec<Timestamp> {
    let tz = TimeZone::get(zone).expect(zone);
    let mut fired = Vec::new();
    let mut latest = tz.to_datetime(start.to_jiff());
    for minute in 1..=(2 * 24 * 60) {
        let now = start + Duration::from_secs(60 * minute);
        let wall = tz.to_datetime(now.to_jiff());
        let mut due = interval && matching(wall);
        while !interval && latest < wall {
            latest = latest.checked_add(jiff::Span::new().minutes(1)).expect("time");
            due |= matching(latest);
        }
        if due {
            fired.push(now);
        }
    }
    fired
}

fn list(numbers: &BTreeSet<i8>) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

proptest! {
    #[test]
    fn each_wall_time_fires_once_across_both_switches(
        window in 0_usize..6,
        minutes in proptest::collection::btree_set(0_i8..60, 1..5),
        hours in proptest::collection::btree_set(0_i8..5, 1..4),
        interval: bool,
    ) {
        let (zone, start) = WINDOWS[window];
        let start = at(start);
        let hour_field = if interval { "*".to_owned() } else { list(&hours) };
        let timing = cron(&format!("{} {hour_field} * * *", list(&minutes)), zone);
        let matching = |wall: DateTime| minutes.contains(&wall.minute()) && (interval || hours.contains(&wall.hour()));
        let expected = watch_the_clock(zone, start, interval, matching);
        prop_assert_eq!(fires(&timing, start, start + Duration::from_secs(2 * 86_400)), expected);
    }
}
