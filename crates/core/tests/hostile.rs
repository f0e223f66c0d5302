//! Every text from outside that this crate reads, made up by bolero: pieces of the grammar in any order, and plain noise.
//!
//! What must hold: no panic, an answer within a moment, and what was read is written and read again as the same. `CONTRIBUTING.md` says
//! how to run them for longer and guided by coverage.

#![allow(clippy::disallowed_methods, reason = "the time that an answer takes is tested, and no clock of the program")]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidewire_core::catalog::Pattern;
use tidewire_core::event::Offset;
use tidewire_core::expr::Expr;
use tidewire_core::limit::Rate;
use tidewire_core::room::RoomTemplate;
use tidewire_core::schedule::Timing;
use tidewire_core::time::{format_duration, parse_duration};
use tidewire_core::{TenantId, Timestamp};

/// How long each target runs under `cargo test`; `BOLERO_RANDOM_TEST_TIME_MS` says otherwise.
const A_WHILE: Duration = Duration::from_millis(400);

/// A slow machine with other work; what goes wrong here takes minutes.
const A_MOMENT: Duration = Duration::from_secs(5);

/// A piece for each byte, as a lottery.
fn soup(choices: &[u8], pieces: &[&str]) -> String {
    choices.iter().map(|choice| pieces[usize::from(*choice) % pieces.len()]).collect()
}

/// Runs `check` on soups of `pieces` and on noise. A macro, because bolero names a target by the function it stands in.
macro_rules! texts {
    ($most:expr, $pieces:expr, $check:expr) => {
        bolero::check!().with_test_time(A_WHILE).with_max_len($most).for_each(|choices: &[u8]| {
            let check: fn(&str) = $check;
            let begin = Instant::now();
            check(&soup(choices, &$pieces));
            check(&String::from_utf8_lossy(choices));
            assert!(begin.elapsed() < A_MOMENT, "{:?}", begin.elapsed());
        })
    };
}

#[test]
fn offsets_and_tenants() {
    texts!(
        12,
        ["e1", "k3j9", ".", "1", "42", "0", "18446744073709551615", "18446744073709551616", "-", "+", "E", " ", "é"],
        |text| {
            if let Ok(offset) = text.parse::<Offset>() {
                assert_eq!(offset.to_string().parse::<Offset>().ok().as_ref(), Some(&offset), "{text:?}");
                assert!(offset.epoch.as_str().len() <= 32);
            }
            if let Ok(tenant) = TenantId::new(text) {
                assert_eq!(tenant.as_str(), text);
            }
        }
    );
}

#[test]
fn room_templates_and_rooms() {
    texts!(40, ["{", "}", "{a}", "{b}", "{0}", "a", "b", ":", "::", "-", "|", "é", "\n"], |text| {
        // The first part is the template, the rest a room.
        let (source, room) = text.split_once('|').unwrap_or((text, ""));
        let Ok(template) = RoomTemplate::parse(source) else { return };
        assert_eq!(template.source(), source);
        assert!(template.same_shape(&template));
        let Some(values) = template.match_room(room) else { return assert!(!template.matches(room)) };
        assert!(template.matches(room));
        let find = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
        assert_eq!(template.render(find).as_deref(), Ok(room), "{source:?} {values:?}");
    });
}

#[test]
fn patterns_of_types() {
    texts!(20, ["*", "ticket", ".", ":", "a", "", "é"], |text| {
        let Some(pattern) = Pattern::parse(text) else { return };
        assert!(pattern.matches(&text.replace('*', "")));
        assert_eq!(text.ends_with('*'), pattern.matches(&format!("{}x", text.replace('*', ""))));
    });
}

#[test]
fn conditions() {
    let pieces = [
        "'a' in user.roles",
        "user.id == data.id",
        "data.n < 2",
        "user.roles.exists(r, r == 'a')",
        "has(data.n)",
        "size(user.roles) + 1",
        "string(data.n)",
        "true",
        "null",
        "-1",
        "9223372036854775807",
        "b'x'",
        "'''",
        "\\u0041",
        "user",
        "data.none",
        " in ",
        " && ",
        " || ",
        " == ",
        " ? ",
        " : ",
        "!",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".all(r, ",
        "//",
        "é",
    ];
    texts!(9, pieces, |text| {
        let Ok(expr) = Expr::compile(text, &["user", "data"]) else { return };
        assert_eq!(expr.source(), text);
        let (user, data): (Value, Value) = (json!({ "id": "a", "roles": ["a", "b"] }), json!({ "n": 1, "id": "a" }));
        let vars = [("user", &user), ("data", &data)];
        assert_eq!(expr.eval(&vars).ok(), expr.eval(&vars).ok(), "twice the same");
        assert!(expr.roles_mentioned().len() <= text.len());
        drop(expr.fields_of("user"));
    });
}

#[test]
fn conditions_as_deep_as_their_length_allows() {
    for (open, close) in [
        ("(", ")"),
        ("[", "]"),
        ("!", ""),
        ("-", ""),
        ("{1:", "}"),
        ("1+(", ")"),
        ("true?", ":1"),
        ("[1].all(x,", ")"),
        ("user[", "]"),
    ] {
        let deep = Expr::MAX_BYTES / (open.len() + close.len()) - 1;
        let source = format!("{}1{}", open.repeat(deep), close.repeat(deep));
        let begin = Instant::now();
        drop(Expr::compile(&source, &["user"]).map(|expr| expr.eval(&[("user", &json!({}))])));
        assert!(begin.elapsed() < A_MOMENT, "{open}: {:?}", begin.elapsed());
    }
}

#[test]
fn cron_patterns() {
    let pieces = [
        "* ",
        "0 ",
        "*/5 ",
        "30 ",
        "2 ",
        "1-5 ",
        "1,15 ",
        "9-17/2 ",
        "31 ",
        "L ",
        "15W ",
        "LW ",
        "MON ",
        "sun#2 ",
        "FEB ",
        "5L ",
        "? ",
        "60 ",
        "1",
        "/",
        "-",
        ",",
        "#",
        "W",
        "+",
        "99999999999",
        "@daily",
    ];
    texts!(8, pieces, |text| {
        let Ok(timing) = Timing::cron(text, "Europe/Berlin") else { return };
        // Summer time ends a little later.
        let mut at = "2026-10-24T12:00:00Z".parse::<Timestamp>().expect("a time");
        for _ in 0..3 {
            let Some(next) = timing.next_after(at) else { return };
            assert!(next > at, "{text:?}");
            at = next;
        }
        let written = serde_json::to_string(&timing).expect("json");
        assert_eq!(serde_json::from_str::<Timing>(&written).ok(), Some(timing));
    });
}

#[test]
fn durations_rates_and_times() {
    let pieces = [
        "1",
        "0",
        "9",
        ".",
        "5",
        "e",
        "-",
        "+",
        "ms",
        "s",
        "m",
        "h",
        "d",
        "/",
        " ",
        "inf",
        "NaN",
        "2026-01-31T08:00:00Z",
        "315360000",
        "T",
        ":",
        "Z",
    ];
    texts!(8, pieces, |text| {
        if let Ok(duration) = parse_duration(text) {
            assert!(duration <= Duration::from_secs(10 * 366 * 86_400));
            assert_eq!(parse_duration(&format_duration(duration)).ok(), Some(duration), "{text:?}");
        }
        if let Ok(rate) = text.parse::<Rate>() {
            assert!(rate.amount > 0 && !rate.per.is_zero());
            assert_eq!(rate.to_string().parse::<Rate>().ok(), Some(rate), "{text:?}");
        }
        if let Ok(time) = text.parse::<Timestamp>() {
            assert_eq!(time.to_string().parse::<Timestamp>().ok(), Some(time), "{text:?}");
        }
    });
}
