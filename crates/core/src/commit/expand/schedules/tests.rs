use std::time::Duration;

use super::super::Expander;
use super::*;
use crate::catalog::parse;
use crate::commit::{Delay, Request};
use crate::id::UuidV7;
use crate::schedule::{Missed, Overlap};
use crate::time::ManualClock;
use crate::{TenantId, Timestamp};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

const CATALOG: &str = r#"
[app]
schedules = 7
name = "shop"
tenant = "shopId"
timezone = "Europe/Rome"

[queues.mail]

[jobs.digest]
queue = "mail"
data = { userId = "string", kind = "string?" }

[jobs.plain]
queue = "mail"

[schedules.digest]
job = "digest"
per = "user"
missed = "all"
overlap = "queue"
data = { kind = "short" }

[schedules.nightly]
job = "plain"
cron = "0 3 * * *"
"#;

fn expand(schedules: Vec<NewSchedule>) -> Result<Vec<ScheduleWrite>> {
    let ids = Arc::new(UuidV7::new(Arc::new(ManualClock::new(NOW)), 7));
    let expander = Expander::new(Arc::new(parse(CATALOG).expect("the catalog")), Vec::new(), ids);
    let request = Request { schedules, ..Request::default() };
    let tenant = TenantId::new("rome").expect("tenant");
    let commit = expander.expand(&tenant, request, &Origin::default(), NOW)?.commit;
    assert_eq!(commit.most_schedules, Some(7), "the catalog says how many");
    Ok(commit.schedules)
}

fn put(schedule: NewSchedule) -> Spec {
    match expand(vec![schedule]).expect("expanded").remove(0) {
        ScheduleWrite::Put { spec, .. } => *spec,
        other => panic!("not put: {other:?}"),
    }
}

fn digest_of(user: &str) -> NewSchedule {
    NewSchedule {
        key: "digest".to_owned(),
        user_id: Some(user.to_owned()),
        cron: Some("0 8 * * *".to_owned()),
        ..NewSchedule::default()
    }
}

fn hourly(key: &str) -> NewSchedule {
    NewSchedule { every: Some(Delay(Duration::from_secs(3_600))), ..NewSchedule::new(key, "plain") }
}

#[test]
fn a_users_schedule_takes_the_rest_from_the_catalog() {
    let spec = put(digest_of("ada"));
    assert_eq!((&*spec.job, spec.missed, spec.overlap), ("digest", Missed::All, Overlap::Queue));
    assert_eq!(spec.data.get(), r#"{"kind":"short","userId":"ada"}"#);
    assert_eq!(spec.timing, Timing::cron("0 8 * * *", "Europe/Rome").expect("cron"), "in the app's zone");
    let own = NewSchedule {
        data: Some(serde_json::json!({ "userId": "bob" }).into()),
        overlap: Some(Overlap::Allow),
        timezone: Some("UTC".to_owned()),
        ..digest_of("ada")
    };
    let spec = put(own);
    assert_eq!((spec.overlap, spec.data.get()), (Overlap::Allow, r#"{"userId":"bob"}"#));
    assert_eq!(spec.timing, Timing::cron("0 8 * * *", "UTC").expect("cron"));
}

#[test]
fn a_user_is_added_only_where_the_job_declares_one() {
    let of_user = NewSchedule { user_id: Some("ada".to_owned()), ..hourly("k") };
    assert_eq!(put(of_user).data.get(), "{}");
    let spec = put(hourly("k"));
    assert_eq!((spec.missed, spec.overlap, spec.limit), (Missed::Last, Overlap::Skip, None));
}

#[test]
fn each_is_named_once_in_a_commit() {
    let code = |schedules| expand(schedules).map(|_| ()).expect_err("refused").code();
    assert_eq!(code(vec![hourly("k"), NewSchedule::delete("k")]), "schedule.invalid_option");
    assert_eq!(code(vec![digest_of("ada"), digest_of("ada")]), "schedule.invalid_option");
    assert_eq!(expand(vec![digest_of("ada"), digest_of("bob"), hourly("k")]).expect("expanded").len(), 3);
}

#[test]
fn a_delete_says_nothing_else() {
    let delete = NewSchedule { user_id: Some("ada".to_owned()), ..NewSchedule::delete("digest") };
    let writes = expand(vec![delete.clone()]).expect("expanded");
    assert!(matches!(&writes[0], ScheduleWrite::Delete { user_id: Some(user), .. } if &**user == "ada"));
    let more = NewSchedule { paused: true, ..delete };
    assert_eq!(expand(vec![more]).expect_err("refused").code(), "schedule.invalid_option");
}

#[test]
fn nonsense_is_refused_and_says_where() {
    let nobody = NewSchedule { user_id: None, ..digest_of("ada") };
    let empty = NewSchedule { user_id: Some(String::new()), ..hourly("k") };
    let twice = NewSchedule { at: Some(NOW), ..hourly("k") };
    let backwards = NewSchedule { start: Some(NOW), end: Some(NOW - Duration::from_secs(1)), ..hourly("k") };
    let cases = [
        (nobody, "schedule.invalid_option", "userId"),
        (empty, "schedule.invalid_option", "userId"),
        (twice, "schedule.invalid_option", "cron"),
        (backwards, "schedule.invalid_option", "end"),
        (NewSchedule { limit: Some(0), ..hourly("k") }, "schedule.invalid_option", "limit"),
        (NewSchedule { limit: Some(u64::MAX), ..hourly("k") }, "schedule.invalid_option", "limit"),
        (NewSchedule { job: None, ..hourly("k") }, "schedule.invalid_option", "job"),
        (NewSchedule { job: Some("plian".to_owned()), ..hourly("k") }, "job.unknown_type", "job"),
        (NewSchedule { timezone: Some("Mars".to_owned()), ..digest_of("ada") }, "schedule.unknown_zone", "timezone"),
        (NewSchedule { cron: Some("0 0 31 2 *".to_owned()), ..digest_of("ada") }, "schedule.never_fires", "cron"),
        (hourly(""), "schedule.invalid_option", "key"),
        (hourly("é"), "schedule.invalid_option", "key"),
        (hourly(&"x".repeat(129)), "schedule.invalid_option", "key"),
    ];
    for (schedule, code, field) in cases {
        let error = expand(vec![schedule]).expect_err(code);
        assert_eq!((error.code(), error.fields()[0].path.as_str()), (code, field), "{error}");
    }
    assert_eq!(expand(vec![hourly("nightly")]).expect_err("taken").code(), "schedule.declared");
}
