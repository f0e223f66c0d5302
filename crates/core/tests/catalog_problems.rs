//! Every mistake in a catalog is reported with its file, line and key, and with the name that was probably meant.

use std::fs;
use std::path::Path;

use tidewire_core::catalog::{Catalog, Join, Keep, LoadError, Profile, lint, load, parse};
use tidewire_core::commit::{Priority, rule_job};
use tidewire_core::retry::Backoff;

const APP: &str = "[app]\nname = \"demo\"\ntenant = \"portId\"\n";

/// A catalog with `rest` behind an app section of three lines, so that `rest` begins in line 4.
fn with_app(rest: &str) -> Result<Catalog, LoadError> {
    parse(&format!("{APP}{rest}"))
}

fn problems(rest: &str) -> Vec<String> {
    with_app(rest).expect_err(rest).to_string().lines().map(str::to_owned).collect()
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("folder");
    for (name, text) in files {
        fs::write(dir.path().join(name), text).expect("file");
    }
    dir
}

/// What `load` says about these files, without the folder.
fn load_problems(files: &[(&str, &str)]) -> Vec<String> {
    let dir = folder(files);
    let error = load(dir.path()).expect_err("problems").to_string();
    error.lines().map(|line| line.replace(&format!("{}/", dir.path().display()), "")).collect()
}

#[test]
fn defaults_are_those_of_the_model() {
    let catalog = with_app("[queues.q]\n[jobs.j]\nqueue = \"q\"\n[events.e]\n").expect("catalog");
    assert_eq!((&*catalog.app.tenant, catalog.app.timezone.as_str()), ("portId", "UTC"));
    assert_eq!(catalog.realtime.namespaces, ["/"]);
    assert_eq!(catalog.realtime.profile, Profile::Named);
    assert_eq!(catalog.realtime.history_count, 1_000);
    assert_eq!(catalog.realtime.message_rate.to_string(), "50/1s");
    let queue = &catalog.queues["q"];
    assert_eq!((queue.concurrency, queue.attempts, queue.priority), (10, 3, 3));
    assert_eq!((queue.timeout.as_secs(), queue.keep_completed), (60, Keep::Count(1_000)));
    assert_eq!(queue.backoff, Backoff::default());
    let job = catalog.job("j").expect("job");
    assert_eq!((job.attempts, job.priority, job.delay), (3, 3, None));
    assert!(catalog.event("e").expect("event").data.is_none());
    assert_eq!((catalog.suggest_event("ee"), catalog.suggest_job("k")), (Some("e"), Some("j")));
}

#[test]
fn jobs_take_what_they_do_not_say_from_their_queue() {
    let catalog = with_app(
        "[queues.q]\nattempts = 7\npriority = 2\ntimeout = \"5m\"\ndelays = [\"1s\", \"10s\"]\nkeep = { failed = \"24h\" }\n\
         [jobs.a]\nqueue = \"q\"\n[jobs.b]\nqueue = \"q\"\nattempts = 1\npriority = 5\ndelay = \"1m\"\nbackoff = { kind = \"fixed\", base = \"3s\" }\n",
    )
    .expect("catalog");
    let (a, b) = (&catalog.jobs["a"], &catalog.jobs["b"]);
    assert_eq!((a.attempts, a.priority, a.timeout.as_secs()), (7, 2, 300));
    assert!(matches!(&a.backoff, Backoff::Delays { delays } if delays.len() == 2));
    assert_eq!((b.attempts, b.priority, b.delay.map(|delay| delay.as_secs())), (1, 5, Some(60)));
    assert!(matches!(b.backoff, Backoff::Fixed { .. }));
}

#[test]
fn rooms_keep_their_order_and_messages_their_parts() {
    let catalog = with_app(
        r#"[rooms]
"z:{portId}" = { join = "auto" }
"a:{id}" = { join = "request", when = "params.id != ''" }
[events.told]
reply = true
[events.said]
rooms = ["a:{id}", "z:{portId}"]
[messages.say]
args = ["string", "integer?"]
join = "a:{0}"
reply = { event = "told", data = { id = "{0}", note = "no. {{ args.1 }}" } }
publish = [{ type = "said", data = { by = "{{ user.id }}" }, params = { id = "{0}" }, when = "size(args) == 2" }]
enqueue = [{ job = "tell", data = { text = "{0}" }, delay = "5s", priority = 1, when = "size(args) == 2" }]
[queues.q]
[jobs.tell]
queue = "q"
"#,
    )
    .expect("catalog");
    assert_eq!(catalog.rooms.iter().map(|room| room.template.source()).collect::<Vec<_>>(), ["z:{portId}", "a:{id}"]);
    assert_eq!(catalog.rooms[0].join, Join::Auto);
    let message = &catalog.messages["say"];
    let scope = serde_json::json!({ "args": ["x", 4], "user": { "id": "u" }, "data": {} });
    let (event, data) = message.reply.as_ref().expect("reply");
    assert_eq!((&**event, data.render(&scope)), ("told", serde_json::json!({ "id": "x", "note": "no. 4" })));
    assert_eq!(message.publish[0].data.render(&scope), serde_json::json!({ "by": "u" }));
    assert_eq!(message.publish[0].params["id"].render(&scope), "x");
    let job = rule_job(&message.enqueue[0], &scope).expect("a job");
    assert_eq!((&*job.kind, job.data.get(), job.priority), ("tell", r#"{"text":"x"}"#, Some(Priority(1))));
    assert!(job.delay.is_some());
    assert!(rule_job(&message.enqueue[0], &serde_json::json!({ "args": ["x"] })).is_none());
    assert!(message.args[1].is_optional());
}

#[test]
fn unknown_keys_are_reported_with_the_line_and_the_key_that_was_meant() {
    assert_eq!(
        problems("[events.\"a:b\"]\nromms = []\n[evnts.x]\n[queues.q]\nconcurency = 1\nkeep = { done = 4 }\n"),
        [
            "app.toml:5: events.\"a:b\".romms: unknown key; did you mean \"rooms\"?",
            "app.toml:6: evnts: unknown key; did you mean \"events\"?",
            "app.toml:8: queues.q.concurency: unknown key; did you mean \"concurrency\"?",
            "app.toml:9: queues.q.keep.done: unknown key, expected one of completed, cancelled, failed, dead",
        ]
    );
}

#[test]
fn unknown_names_are_reported_with_the_name_that_was_meant() {
    assert_eq!(
        problems(
            r#"[auth]
roles = ["admin"]
[rooms]
"port:{portId}" = { join = "auto", when = "'admn' in user.roles" }
[events.made]
rooms = ["prt:{portId}", "port:{id}"]
data = { id = "string" }
views = [{ room = "port:{portId}", fields = ["idd"] }]
[events.told]
reply = true
[queues.email]
[jobs.send]
queue = "emial"
run = "mail"
[schedules.daily]
job = "snd"
every = "1h"
[messages.say]
reply = { event = "tol" }
join = "port:{0}"
publish = [{ type = "told" }]
enqueue = [{ job = "sned", data = { x = "{{ event.id }}" }, when = "'admn' in user.roles" }]
[[rules]]
on = "mad"
enqueue = { job = "sendd" }
[[rules]]
on = "told"
publish = { type = "mdae" }
[[rules]]
on = "lead.*"
enqueue = { job = "send", data = { x = "{{ date.x }}" } }
"#
        ),
        [
            "app.toml:7: rooms.\"port:{portId}\".when: unknown role \"admn\"; did you mean \"admin\"?",
            "app.toml:9: events.made.rooms: \"prt:{portId}\" has the shape of no declared room; did you mean \"port:{portId}\"?",
            "app.toml:11: events.made.views[0].fields: \"idd\" is not in the event's data; did you mean \"id\"?",
            "app.toml:16: jobs.send.queue: unknown queue \"emial\"; did you mean \"email\"?",
            "app.toml:17: jobs.send.run: unknown built-in worker \"mail\"; did you mean \"email\"?",
            "app.toml:19: schedules.daily.job: unknown job \"snd\"; did you mean \"send\"?",
            "app.toml:22: messages.say.reply.event: unknown event \"tol\"; did you mean \"told\"?",
            "app.toml:23: messages.say.join: {0} has no value in this message; expected {0} for a positional argument or the name of a field of data",
            "app.toml:24: messages.say.publish[0].type: \"told\" is a reply to the socket that asked and cannot be published",
            "app.toml:25: messages.say.enqueue[0].job: unknown job \"sned\"; did you mean \"send\"?",
            "app.toml:25: messages.say.enqueue[0].data: unknown name \"event\" in {{ event.id }}; expected one of data, args, user",
            "app.toml:25: messages.say.enqueue[0].when: unknown role \"admn\"; did you mean \"admin\"?",
            "app.toml:27: rules[0].on: unknown event \"mad\"; did you mean \"made\"?",
            "app.toml:28: rules[0].enqueue.job: unknown job \"sendd\"; did you mean \"send\"?",
            "app.toml:30: rules[1].on: \"told\" is a reply to the socket that asked and is never published",
            "app.toml:31: rules[1].publish.type: unknown event \"mdae\"; did you mean \"made\"?",
            "app.toml:33: rules[2].on: \"lead.*\" is no event that can be published",
            "app.toml:34: rules[2].enqueue.data: unknown name \"date\" in {{ date.x }}; expected one of data, params, tenant, event",
        ]
    );
}

#[test]
fn bad_values_are_reported_with_what_was_expected() {
    for (rest, expected) in [
        ("[queues.q]\nconcurrency = 0\n", "5: queues.q.concurrency: expected a number from 1 to 100000, got 0"),
        ("[queues.q]\npriority = 7\n", "5: queues.q.priority: expected a number from 1 to 5, got 7"),
        ("[queues.q]\nattempts = 0\n", "5: queues.q.attempts: expected a number from 1 to 1000, got 0"),
        ("[queues.q]\nattempts = \"3\"\n", "5: queues.q.attempts: expected an integer, got a text"),
        ("[queues.q]\ntimeout = \"0s\"\n", "5: queues.q.timeout: expected a duration longer than 0s"),
        (
            "[queues.q]\nrate = \"fast\"\n",
            "5: queues.q.rate: expected a rate such as \"10/s\" or \"100/5m\", got \"fast\"",
        ),
        ("[queues.q]\ndelays = []\n", "5: queues.q.delays: delays: expected 1 to 100, got 0"),
        (
            "[queues.q]\nbackoff = { kind = \"fixd\", base = \"1s\" }\n",
            "5: queues.q.backoff.kind: expected one of exponential, fixed, got \"fixd\"; did you mean \"fixed\"?",
        ),
        (
            "[queues.q]\nbackoff = { kind = \"fixed\", base = \"1s\", jitter = 2 }\n",
            "5: queues.q.backoff: jitter: expected a share from 0 to 1 or a duration, got 2",
        ),
        (
            "[queues.q]\nkeep = { dead = true }\n",
            "5: queues.q.keep.dead: expected a count such as 100 or an age such as \"24h\"",
        ),
        (
            "[queues.q]\nkeep = { cancelled = 1, failed = 2 }\n",
            "5: queues.q.keep.failed: is another name of cancelled, which is there, too; dead letters are kept by dead",
        ),
        (
            "[queues.\"a b\"]\n",
            "4: queues.\"a b\": expected a name of 1 to 128 bytes without spaces, control characters or *",
        ),
        ("[jobs.j]\n", "4: jobs.j.queue: missing"),
        ("[events.disconnect]\n", "4: events.disconnect: this name belongs to Socket.IO itself"),
        ("[messages.subscribe]\n", "4: messages.subscribe: this message is built in and cannot be declared"),
        (
            "[events.e]\nschema = \"schemas/e.json\"\n",
            "5: events.e.schema: schema files are not supported; describe the fields with data = { field = \"string\" }",
        ),
        (
            "[events.e]\ndata = { a = \"strng\" }\n",
            "5: events.e.data: a: unknown type \"strng\", expected one of string, integer, number, boolean, uuid, datetime, object, array, any; did you mean \"string\"?",
        ),
        (
            "[events.e]\nvisible = \"usr.id == 'x'\"\n",
            "5: events.e.visible: unknown variable \"usr\", expected one of user, data; did you mean \"user\"?",
        ),
        (
            "[events.e]\nephemeral = true\nstream = \"x-{id}\"\n",
            "6: events.e.stream: an ephemeral event is not logged and has no version; leave stream out",
        ),
        (
            "[rooms]\n\"a:{x}\" = { join = \"auto\" }\n\"a:{y}\" = { join = \"auto\" }\n",
            "6: rooms.\"a:{y}\": makes the same rooms as \"a:{x}\"",
        ),
        ("[rooms]\n\"a:{x}\" = { }\n", "5: rooms.\"a:{x}\".join: missing"),
        (
            "[rooms]\n\"a:{x\" = { join = \"auto\" }\n",
            "5: rooms.\"a:{x\": expected {name} in \"a:{x\", found a single brace",
        ),
        (
            "[auth]\nsources = [\"body\"]\n",
            "5: auth.sources: expected auth.token, authorization, query.NAME, cookie:NAME or header:NAME, got \"body\"",
        ),
        (
            "[auth.jwt]\nalgorithms = [\"HS265\"]\n",
            "5: auth.jwt.algorithms: unknown algorithm \"HS265\", expected one of HS256, HS384, HS512, RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, EdDSA; did you mean \"HS256\"?",
        ),
        (
            "[realtime]\nnamespaces = [\"ws\"]\n",
            "5: realtime.namespaces: expected at least one namespace, each beginning with /",
        ),
        ("[caches.c]\n", "4: caches.c.ttl: missing"),
        ("[[rules]]\non = \"*\"\n", "5: rules[0].on: \"*\" is no event that can be published"),
    ] {
        let found = problems(rest);
        assert!(found.contains(&format!("app.toml:{expected}")), "expected {expected}\nfound {found:#?}");
    }
}

#[test]
fn flows_of_rules_are_checked_as_a_whole() {
    let flow = |flow: &str| {
        let head =
            "[events.e]\n[queues.q]\n[jobs.j]\nqueue = \"q\"\ndata = { id = \"string\" }\n[[rules]]\non = \"e\"\n";
        with_app(&format!("{head}[rules.flow]\n{flow}\n"))
    };
    let catalog =
        flow("jobs = [{ ref = \"a\", job = \"j\", data = { id = \"x\" } }, { job = \"j\", after = [\"a\"] }]");
    let found: Vec<String> = lint(&catalog.expect("catalog")).iter().map(ToString::to_string).collect();
    assert!(found.iter().any(|found| found.contains("rule 0 on \"e\": the job \"j\" needs data.id")), "{found:#?}");
    for (toml, expected) in [
        ("", "11: rules[0].flow.jobs: expected at least one job"),
        ("jobs = []", "12: rules[0].flow.jobs: expected at least one job"),
        ("jobs = [{ job = \"k\" }]", "12: rules[0].flow.jobs[0].job: unknown job \"k\"; did you mean \"j\"?"),
        (
            "jobs = [{ ref = \"one\", job = \"j\" }, { job = \"j\", after = [\"on\"] }]",
            "12: rules[0].flow.jobs[1].after: unknown ref \"on\"; did you mean \"one\"?",
        ),
        (
            "jobs = [{ ref = \"a\", job = \"j\" }, { ref = \"a\", job = \"j\" }]",
            "12: rules[0].flow.jobs[1].ref: another job of the flow has the ref \"a\"",
        ),
        (
            "jobs = [{ ref = \"a\", job = \"j\", after = [\"b\"] }, { ref = \"b\", job = \"j\", after = [\"a\"] }]",
            "12: rules[0].flow.jobs: these jobs wait for each other: a after b after a",
        ),
        (
            "jobs = [{ job = \"j\", when = \"true\" }]",
            "12: rules[0].flow.jobs[0].when: a job of a flow has no condition of its own; give one to the flow",
        ),
        (
            "jobs = [{ job = \"j\", onFailure = \"stop\" }]",
            "12: rules[0].flow.jobs[0].onFailure: expected one of fail, ignore, compensate, got \"stop\"",
        ),
        (
            "jobs = [{ job = \"j\" }]\nthen = { job = \"j\", after = [\"a\"] }",
            "13: rules[0].flow.then.after: unknown key, expected one of job, data, when, delay, priority",
        ),
    ] {
        let found = flow(toml).expect_err(toml).to_string();
        assert!(found.contains(&format!("app.toml:{expected}")), "expected {expected}\nfound {found}");
    }
}

#[test]
fn a_ref_that_no_commit_takes_is_a_mistake_in_the_catalog() {
    let head = "[events.e]\n[queues.q]\n[jobs.j]\nqueue = \"q\"\n[[rules]]\non = \"e\"\n[rules.flow]\n";
    let with_ref = |bytes| with_app(&format!("{head}jobs = [{{ ref = \"{}\", job = \"j\" }}]\n", "r".repeat(bytes)));
    assert!(with_ref(256).is_ok());
    let found = with_ref(257).expect_err("too long").to_string();
    assert_eq!(found, "app.toml:11: rules[0].flow.jobs[0].ref: expected at most 256 bytes");
}

#[test]
fn schedules_say_when_they_fire() {
    let schedule = |when: &str| {
        let found = with_app(&format!("[queues.q]\n[jobs.j]\nqueue = \"q\"\n[schedules.s]\njob = \"j\"\n{when}\n"));
        found.map(|catalog| catalog.schedules["s"].timing.clone()).map_err(|error| error.to_string())
    };
    assert_eq!(schedule("per = \"user\""), Ok(None));
    let daily = schedule("cron = \"0 8 * * *\"\ntimezone = \"Europe/Berlin\"").expect("cron").expect("timing");
    assert_eq!(serde_json::to_string(&daily).expect("json"), r#"{"cron":"0 8 * * *","timezone":"Europe/Berlin"}"#);
    let once = schedule("at = \"2026-05-01T02:00:00Z\"\nper = \"tenant\"").expect("at").expect("timing");
    assert_eq!(serde_json::to_string(&once).expect("json"), r#"{"at":"2026-05-01T02:00:00Z"}"#);
    for (when, expected) in [
        ("", "app.toml:7: schedules.s: expected one of cron, every, at or per = \"user\""),
        (
            "every = \"1h\"\ncron = \"0 8 * * *\"",
            "app.toml:10: schedules.s.cron: expected only one of cron, every, at and per = \"user\"",
        ),
        ("every = \"1h\"\ntimezone = \"UTC\"", "app.toml:10: schedules.s.timezone: only a cron has a time zone"),
        ("per = \"user\"\nlimit = 3", "app.toml:10: schedules.s.limit: with per = \"user\" each user says so"),
        (
            "every = \"1h\"\nlimit = 0",
            "app.toml:10: schedules.s.limit: expected a number from 1 to 9223372036854775807, got 0",
        ),
        (
            "every = \"1h\"\nstart = \"2026-05-02T00:00:00Z\"\nend = \"2026-05-01T00:00:00Z\"",
            "app.toml:11: schedules.s.end: expected no earlier time than start",
        ),
        (
            "every = \"1h\"\nper = \"tenant\"\noverlap = \"queue\"",
            "app.toml:11: schedules.s.overlap: expected allow or skip; with per = \"tenant\" a slot waits for nobody",
        ),
        ("every = \"10ms\"", "app.toml:9: schedules.s.every: every: expected at least 1s"),
        ("cron = \"0 0 31 2 *\"", "app.toml:9: schedules.s.cron: \"0 0 31 2 *\" does not fire within five years"),
    ] {
        assert_eq!(schedule(when), Err(expected.to_owned()));
    }
}

#[test]
fn included_files_are_merged_and_duplicates_refused() {
    let dir = folder(&[
        (
            "app.toml",
            "include = [\"more.toml\"]\n[app]\nname = \"demo\"\n[queues.a]\n[[rules]]\non = \"e\"\nenqueue = { job = \"j\" }\n",
        ),
        (
            "more.toml",
            "[queues.b]\n[events.e]\n[jobs.j]\nqueue = \"b\"\n[[rules]]\non = \"e\"\nenqueue = { job = \"j\" }\n",
        ),
    ]);
    let catalog = load(dir.path()).expect("catalog");
    assert_eq!(catalog.queues.keys().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(catalog.rules.len(), 2);

    let twice = load_problems(&[
        ("app.toml", "include = [\"more.toml\"]\n[app]\nname = \"demo\"\n[queues.a]\n"),
        ("more.toml", "include = []\n\n[queues.\"a\"]\n[app]\nname = \"other\"\n"),
    ]);
    assert_eq!(
        twice,
        [
            "more.toml:1: include: only app.toml can include files",
            "more.toml:3: queues.a: already declared at app.toml:4",
            "more.toml:5: app.name: already declared at app.toml:3",
        ]
    );
}

#[test]
fn includes_stay_in_the_folder_and_are_bounded() {
    for bad in ["../x.toml", "/etc/x.toml", "a/b.toml", "x.json", ".hidden.toml", "..toml"] {
        let found = load_problems(&[("app.toml", &format!("include = [\"{bad}\"]\n{APP}"))]);
        assert_eq!(
            found,
            [format!("app.toml:1: include: expected the name of a .toml file in the same folder, got {bad:?}")]
        );
    }
    let app = format!("include = [\"b.toml\", \"b.toml\", \"gone.toml\"]\n{APP}");
    let large = "#".repeat(1024 * 1024 + 1);
    let found = load_problems(&[("app.toml", &app), ("b.toml", &large)]);
    assert_eq!(found.len(), 3, "{found:#?}");
    assert_eq!(found[0], "app.toml:1: include: \"b.toml\" is included twice");
    assert_eq!(found[1], "b.toml: expected a file of at most 1 MiB");
    assert!(found[2].starts_with("gone.toml: cannot be read: "));
    assert!(
        load(Path::new("/nowhere")).expect_err("gone").to_string().starts_with("/nowhere/app.toml: cannot be read: ")
    );
}

#[test]
fn errors_of_toml_are_reported_in_all_files_at_once() {
    let found = load_problems(&[
        ("app.toml", "include = [\"b.toml\"]\n[app]\nname = \n"),
        ("b.toml", "[queues.a]\n[queues.a]\n\nx = = 1\n"),
    ]);
    assert!(found.iter().any(|line| line.starts_with("app.toml:3: ")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("b.toml:2: ")), "{found:#?}");
    assert!(found.iter().any(|line| line.starts_with("b.toml:4: ")), "{found:#?}");
}

#[test]
fn hostile_files_end_in_an_error() {
    for text in [
        "",
        "\u{0}",
        "[[[[[[",
        "a=1\n".repeat(10_000).as_str(),
        &"[a.".repeat(10_000),
        &format!("x = {}", "[".repeat(50_000)),
    ] {
        let error = parse(text).expect_err("nonsense");
        assert!((1..=200).contains(&error.problems.len()));
    }
    let many: String = (0..10_001).map(|index| format!("[queues.q{index}]\n")).collect();
    assert_eq!(problems(&many), ["app.toml:4: queues: expected at most 10000 entries, got 10001"]);
}

#[test]
fn the_linter_finds_what_is_legal_but_probably_wrong() {
    let catalog = with_app(
        r#"[auth]
roles = ["admin", "ghost"]
[rooms]
"port:{portId}" = { join = "auto", when = "'admin' in user.roles" }
"lonely:{id}" = { join = "public" }
"asked:{id}" = { join = "request" }
[events.heard]
rooms = ["port:{portId}"]
data = { id = "string", other = "string?" }
conflate = "{id}"
[events.unheard]
[queues.empty]
[queues.q]
[jobs.j]
queue = "q"
data = { id = "string" }
[jobs.k]
queue = "q"
[jobs.alarm]
queue = "q"
[jobs.m]
queue = "q"
data = { id = "string", name = "string" }
[events.answer]
reply = true
data = { id = "string", n = "integer", at = "string?" }
[messages.idle]
[messages.say]
data = { n = "integer" }
reply = { event = "answer", data = { n = "one", at = "{data.n} o'clock, {{ data.m }}" } }
publish = [{ type = "heard", data = { id = 1, other = "x" } }]
[messages.ask]
data = { id = "string?" }
enqueue = [{ job = "m", data = { id = "{{ data.id }}", text = "{{ data.di }}" }, when = "'admin' in user.roles" }]
[schedules.s]
job = "j"
every = "1h"
[alerts]
enqueue = { job = "alarm", data = {} }
[[rules]]
on = "heard"
enqueue = { job = "j", data = { name = "{{ data.idd }}" } }
[[rules]]
on = "heard"
enqueue = { job = "j", data = { id = "{{ data.other }}" } }
[[rules]]
on = "heard"
when = "has(data.other)"
enqueue = { job = "j", data = { id = "{{ data.other }}" } }
"#,
    )
    .expect("catalog");
    let findings: Vec<String> = lint(&catalog).iter().map(ToString::to_string).collect();
    assert_eq!(
        findings,
        [
            "warning: event \"unheard\": declared but never heard, it has neither rooms nor a rule",
            "warning: message \"ask\": data.id is optional, but the job \"m\" needs data.id",
            "warning: message \"ask\": the job \"m\" needs data.name",
            "warning: message \"ask\": {{ data.di }} is not in the message's data; did you mean \"id\"?",
            "warning: message \"say\": data.id: expected string, got 1, but the event \"heard\" needs it",
            "warning: message \"say\": data.n: expected integer, got \"one\", but the event \"answer\" needs it",
            "warning: message \"say\": the event \"answer\" needs data.id",
            "warning: message \"say\": {{ data.m }} is not in the message's data; did you mean \"n\"?",
            "warning: queue \"empty\": no job waits in it",
            "warning: room \"lonely:{id}\": no event is delivered to it",
            "warning: rule 0 on \"heard\": the job \"j\" needs data.id",
            "warning: rule 0 on \"heard\": {{ data.idd }} is not in the event's data; did you mean \"id\"?",
            "warning: rule 1 on \"heard\": data.other is optional, but the job \"j\" needs data.id",
            "warning: schedule \"s\": data.id: expected string, got nothing, but the job \"j\" needs it",
            "note: job \"k\": no rule, message, schedule or alert enqueues it, so the app has to",
            "note: message \"idle\": has none of join, leave, reply, publish and enqueue, so only a handler in Rust can answer it",
            "note: message \"say\": the event \"answer\" gets \"{data.n}\" as it stands; what is to be filled in has two, as {{ data.id }}",
            "note: role \"ghost\": declared but no expression asks for it",
        ]
    );
}

#[test]
fn presence_is_a_flag_or_says_what_members_tell() {
    let rooms = |presence: &str| format!("[rooms.\"desk:{{deskId}}\"]\njoin = \"request\"\npresence = {presence}\n");
    for (presence, expected) in
        [("false", (false, false)), ("true", (true, false)), ("{ data = { name = \"string\" } }", (true, true))]
    {
        let catalog = with_app(&rooms(presence)).expect(presence);
        assert_eq!((catalog.rooms[0].presence, catalog.rooms[0].member_data.is_some()), expected, "{presence}");
    }
    for (presence, expected) in [
        ("\"yes\"", "presence: expected true or false"),
        ("{}", "presence.data: "),
        ("{ data = \"string\" }", "presence.data: expected a table of fields"),
        ("{ data = { name = \"text\" } }", "presence.data: name: "),
        ("{ data = { name = \"string\" }, date = 1 }", "presence.date: "),
    ] {
        let found = problems(&rooms(presence));
        assert!(found.len() == 1 && found[0].contains(expected), "{presence}: {found:?}");
    }
}
