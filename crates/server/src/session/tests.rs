//! Sessions against a stand-in for the app: a real HTTP server on a local port.

use std::collections::VecDeque;

use axum::Router;
use axum::extract::State;
use http::header::LOCATION;
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tidewire_core::catalog;
use tidewire_core::time::ManualClock;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

/// Longer than any test takes on a busy machine.
const LONG: Duration = Duration::from_secs(30);

/// What the app was asked and what it is to answer.
struct Script {
    answers: Mutex<VecDeque<(u16, String)>>,
    /// `cookie` and `authorization` of each request.
    asked: Mutex<Vec<[Option<String>; 2]>>,
    gate: Semaphore,
    open: Mutex<(usize, usize)>,
}

/// The app, and the sessions that ask it.
struct World {
    script: Arc<Script>,
    sessions: Arc<Sessions>,
    clock: Arc<ManualClock>,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn session(State(script): State<Arc<Script>>, headers: HeaderMap) -> (StatusCode, HeaderMap, String) {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    script.asked.lock().push([text(COOKIE), text(AUTHORIZATION)]);
    let now = script.open.lock().0 + 1;
    let most = script.open.lock().1.max(now);
    *script.open.lock() = (now, most);
    script.gate.acquire().await.expect("gate").forget();
    script.open.lock().0 -= 1;
    // The last answer stays.
    let mut answers = script.answers.lock();
    let (status, body) =
        if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() }.expect("answer");
    let mut more = HeaderMap::new();
    if status == 302 {
        more.insert(LOCATION, "/session".parse().expect("location"));
    }
    (StatusCode::from_u16(status).expect("status"), more, body)
}

impl World {
    async fn new<const N: usize>(answers: [(u16, Value); N]) -> Self {
        let answers = answers.map(|(status, body)| (status, body.to_string()));
        Self::with_texts(answers.into()).await
    }

    async fn with_texts(answers: VecDeque<(u16, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let url = format!("http://{}/session?fresh=1", listener.local_addr().expect("address"));
        let script = Arc::new(Script {
            answers: Mutex::new(answers),
            asked: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            open: Mutex::default(),
        });
        let router = Router::new().route("/session", axum::routing::get(session)).with_state(script.clone());
        let stop = CancellationToken::new();
        tokio::spawn(crate::serve::serve(100, listener, router, stop.clone(), Duration::ZERO));
        let clock = Arc::new(ManualClock::new("2026-01-31T08:00:00Z".parse().expect("time")));
        let mut sessions = sessions_at(&url, clock.clone()).expect("sessions");
        sessions.deadline = LONG;
        Self { script, sessions: Arc::new(sessions), clock, stop }
    }

    async fn token(&self, value: &str) -> Verdict {
        self.sessions.verify(Credential { source: &CredentialSource::AuthToken, value }).await
    }

    fn asked(&self) -> usize {
        self.script.asked.lock().len()
    }

    /// Asks with these tokens at once, each in a task of its own.
    fn spawn(&self, tokens: impl Iterator<Item = String>) -> JoinSet<Verdict> {
        let mut all = JoinSet::new();
        for token in tokens {
            let sessions = self.sessions.clone();
            all.spawn(async move {
                sessions.verify(Credential { source: &CredentialSource::AuthToken, value: &token }).await
            });
        }
        all
    }

    fn seats(&self) -> usize {
        self.sessions.known.lock().flights.values().map(|flight| flight.seats).sum()
    }
}

fn sessions_at(url: &str, clock: Arc<ManualClock>) -> Result<Sessions> {
    let catalog = format!(
        "[app]\nname = \"shop\"\ntenant = \"orgId\"\n[auth.jwt]\nalgorithms = [\"HS256\"]\n\
         claims = {{ user = \"sub\", tenant = \"orgId\", roles = \"roles\" }}\n\
         [auth.session]\nintrospect = \"{url}\"\n"
    );
    let catalog = catalog::parse(&catalog).expect("catalog");
    Ok(Sessions::new(&catalog, clock)?.expect("an endpoint is set"))
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, wait).await.expect(what);
}

fn invalid() -> Refusal {
    Refusal::Invalid(String::new())
}

/// What Better Auth answers, with a field of the app.
fn better_auth() -> Value {
    json!({
        "session": { "id": "s-1", "userId": "ann", "token": "secret", "expiresAt": "2026-02-07T08:00:00.000Z" },
        "user": { "id": "ann", "name": "Ann", "role": "admin,sales", "orgId": "dock-1" },
    })
}

#[tokio::test]
async fn a_cookie_is_sent_as_a_cookie_and_anything_else_as_a_bearer_token() {
    let world = World::new([(200, better_auth())]).await;
    let cookie = CredentialSource::Cookie("better-auth.session_token".to_owned());
    let (query, header) = (CredentialSource::Query("token".to_owned()), CredentialSource::Header("x-token".to_owned()));
    for source in [&cookie, &CredentialSource::AuthToken, &query, &header, &CredentialSource::Authorization] {
        let principal = world.sessions.verify(Credential { source, value: "abc.d%2F" }).await.expect("principal");
        assert_eq!(principal.user.as_deref(), Some("ann"));
    }
    let cookie = Some("better-auth.session_token=abc.d%2F".to_owned());
    let bearer = Some("Bearer abc.d%2F".to_owned());
    assert_eq!(*world.script.asked.lock(), [[cookie, None], [None, bearer]], "four ways to send one token are one");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_without_asking() {
    let world = World::new([(200, better_auth())]).await;
    for value in ["a\r\nx-admin: 1", "a\nb", "a\0", &"a".repeat(MAX_CREDENTIAL_BYTES)] {
        assert_eq!(world.token(value).await.expect_err("refused"), invalid());
    }
    assert_eq!(world.asked(), 0);
}

#[tokio::test]
async fn the_status_and_the_body_decide() {
    let large = json!({ "sub": "ann", "orgId": "dock-1", "more": "x".repeat(64 * 1024) }).to_string();
    let user = json!({ "sub": "ann", "orgId": "dock-1" }).to_string();
    for (status, body, refusal) in [
        (200, "null", invalid()),
        (200, "{}", invalid()),
        (200, r#"{"user":null,"session":null}"#, invalid()),
        (200, r#"{"active":false,"sub":"ann","orgId":"dock-1"}"#, invalid()),
        (200, r#"{"sub":"ann"}"#, invalid()),
        (200, r#"{"sub":"ann","orgId":"no such name"}"#, invalid()),
        (401, &user, invalid()),
        (403, &user, invalid()),
        (404, &user, invalid()),
        (200, "", Refusal::Unchecked),
        (200, "<html>", Refusal::Unchecked),
        (200, "[1]", Refusal::Unchecked),
        (200, "true", Refusal::Unchecked),
        (200, &large, Refusal::Unchecked),
        (201, &user, Refusal::Unchecked),
        (302, &user, Refusal::Unchecked),
        (429, &user, Refusal::Unchecked),
        (500, &user, Refusal::Unchecked),
    ] {
        let world = World::with_texts([(status, body.to_owned())].into()).await;
        let shown: String = body.chars().take(40).collect();
        assert_eq!(world.token("t").await.expect_err(&shown), refusal, "{status} {shown}");
        assert_eq!(world.asked(), 1, "a redirect is not followed");
    }
}

#[tokio::test]
async fn an_app_that_is_down_or_silent_leaves_it_unchecked() {
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    let credential = Credential { source: &CredentialSource::AuthToken, value: "t" };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let url = format!("http://{}/", listener.local_addr().expect("address"));
    let mut silent = sessions_at(&url, clock.clone()).expect("sessions");
    silent.deadline = Duration::from_millis(20);
    assert_eq!(silent.verify(credential).await.expect_err("no answer"), Refusal::Unchecked);
    drop(listener);
    let mut down = sessions_at(&url, clock).expect("sessions");
    down.deadline = LONG;
    assert_eq!(down.verify(credential).await.expect_err("no app"), Refusal::Unchecked);
    assert_eq!(down.known.lock().flights.len(), 0);
}

#[tokio::test]
async fn a_user_is_known_for_ten_seconds_and_a_refusal_for_two() {
    let world = World::new([(200, better_auth()), (401, json!({})), (200, better_auth())]).await;
    world.token("t").await.expect("asked");
    world.clock.advance(Duration::from_millis(9_999));
    world.token("t").await.expect("kept");
    assert_eq!(world.asked(), 1);
    world.clock.advance(Duration::from_millis(1));
    assert_eq!(world.token("t").await.expect_err("logged out"), invalid());
    world.clock.advance(Duration::from_millis(1_999));
    assert_eq!(world.token("t").await.expect_err("kept"), invalid());
    assert_eq!(world.asked(), 2);
    world.clock.advance(Duration::from_millis(1));
    world.token("t").await.expect("logged in again");
    assert_eq!(world.asked(), 3);
    world.clock.set(Timestamp::default());
    world.token("t").await.expect("asked, as the clock was set back");
    assert_eq!(world.asked(), 4);
}

#[tokio::test]
async fn what_could_not_be_checked_is_asked_again_at_once() {
    let world = World::new([(500, json!({})), (200, better_auth())]).await;
    assert_eq!(world.token("t").await.expect_err("500"), Refusal::Unchecked);
    world.token("t").await.expect("asked again");
}

#[tokio::test]
async fn a_user_is_known_no_longer_than_the_session_lasts() {
    let ending = json!({ "sub": "ann", "orgId": "dock-1", "expiresAt": "2026-01-31T08:00:03Z" });
    let world = World::new([(200, ending)]).await;
    let principal = world.token("t").await.expect("principal");
    assert_eq!(principal.expires, Some("2026-01-31T08:00:03Z".parse().expect("time")));
    world.clock.advance(Duration::from_secs(3));
    assert_eq!(world.token("t").await.expect_err("ended"), invalid());
    assert_eq!(world.asked(), 2, "it could have been renewed");
}

#[tokio::test]
async fn one_credential_is_one_exchange_however_many_ask() {
    for (status, refusal) in [(200, None), (401, Some(invalid())), (500, Some(Refusal::Unchecked))] {
        let world = World::new([(status, better_auth())]).await;
        world.script.gate.forget_permits(usize::MAX);
        let mut all = world.spawn((0..20).map(|_| "t".to_owned()));
        until("all wait", || world.seats() == 20 && world.asked() == 1).await;
        world.script.gate.add_permits(100);
        while let Some(verdict) = all.join_next().await {
            assert_eq!(verdict.expect("task").err(), refusal);
        }
        assert_eq!(world.asked(), 1);
        assert_eq!(world.sessions.known.lock().flights.len(), 0);
    }
}

#[tokio::test]
async fn who_waits_gets_an_answer_though_the_first_one_left() {
    let world = World::new([(200, better_auth())]).await;
    world.script.gate.forget_permits(usize::MAX);
    let mut first = world.spawn(["t".to_owned()].into_iter());
    until("the first asks", || world.asked() == 1).await;
    let mut second = world.spawn(["t".to_owned()].into_iter());
    until("the second waits", || world.seats() == 2).await;
    first.shutdown().await;
    until("the second asks", || world.asked() == 2).await;
    world.script.gate.add_permits(2);
    second.join_next().await.expect("one").expect("task").expect("principal");

    world.script.gate.forget_permits(usize::MAX);
    let mut alone = world.spawn(["other".to_owned()].into_iter());
    until("it asks", || world.asked() == 3).await;
    alone.shutdown().await;
    assert_eq!(world.sessions.known.lock().flights.len(), 0, "nothing is left of an exchange that nobody waits for");
}

#[tokio::test]
async fn sixty_four_ask_at_once_and_the_others_wait() {
    let world = World::new([(200, better_auth())]).await;
    world.script.gate.forget_permits(usize::MAX);
    let mut all = world.spawn((0..100).map(|n| format!("t-{n}")));
    until("the places are taken", || world.asked() == MAX_EXCHANGES && world.seats() == 100).await;
    world.script.gate.add_permits(1000);
    while let Some(verdict) = all.join_next().await {
        verdict.expect("task").expect("principal");
    }
    assert_eq!(world.asked(), 100);
    assert!(world.script.open.lock().1 <= MAX_EXCHANGES);
}

#[tokio::test]
async fn the_wait_for_a_place_counts() {
    let mut world = World::new([(200, better_auth())]).await;
    Arc::get_mut(&mut world.sessions).expect("not shared").deadline = Duration::from_millis(20);
    let places = world.sessions.exchanges.acquire_many(MAX_EXCHANGES as u32).await.expect("places");
    assert_eq!(world.token("t").await.expect_err("no place"), Refusal::Unchecked);
    assert_eq!(world.asked(), 0);
    drop(places);
}

#[test]
fn answers_are_bounded_and_the_oldest_goes_first() {
    let mut known = Known::default();
    let key = |n: usize| {
        let mut key = Key::default();
        key[..8].copy_from_slice(&n.to_le_bytes());
        key
    };
    let now = Timestamp::from_millis(1_000);
    for n in 0..=MAX_ANSWERS {
        known.land(key(n), &Err(invalid()), now, POSITIVE);
        known.land(key(n), &Err(invalid()), now, POSITIVE);
    }
    assert_eq!((known.answers.len(), known.order.len()), (MAX_ANSWERS, MAX_ANSWERS));
    assert!(!known.answers.contains_key(&key(0)) && known.answers.contains_key(&key(MAX_ANSWERS)));
    known.land(key(0), &Err(invalid()), now + NEGATIVE, POSITIVE);
    assert_eq!((known.answers.len(), known.order.len()), (1, 1), "what has ended makes room");
}

fn read(answer: &Value) -> Result<Principal, Failure> {
    let names = Names::new(&catalog::parse("[app]\nname = \"shop\"\ntenant = \"orgId\"\n").expect("catalog"));
    answer::read(answer.to_string().as_bytes(), &names, Timestamp::from_millis(1_769_846_400_000))
}

#[test]
fn the_user_is_found_where_apps_put_it() {
    for (answer, user) in [
        (json!({ "sub": "ann", "id": "x", "orgId": "o" }), "ann"),
        (json!({ "id": "ann", "orgId": "o" }), "ann"),
        (json!({ "id": 7, "orgId": "o" }), "7"),
        (json!({ "id": "a session", "userId": "ann", "orgId": "o" }), "ann"),
        (json!({ "id": "a session", "user": { "id": "ann" }, "orgId": "o" }), "ann"),
        (json!({ "session": { "id": "a session", "userId": "ann", "orgId": "o" } }), "ann"),
        (
            json!({ "session": { "id": "s", "userId": "bob", "orgId": "p" }, "user": { "id": "ann", "orgId": "o" } }),
            "ann",
        ),
    ] {
        let principal = read(&answer).expect("principal");
        assert_eq!((principal.user.as_deref(), principal.tenant.as_str()), (Some(user), "o"), "{answer}");
    }
    for answer in [
        json!({ "session": { "id": "a session", "orgId": "o" } }),
        json!({ "id": "a session", "user": { "name": "Ann" }, "orgId": "o" }),
        json!({ "id": "", "orgId": "o" }),
        json!({ "id": "ann", "tenant": "o" }),
    ] {
        assert_eq!(read(&answer).expect_err("nobody").refusal, invalid(), "{answer}");
    }
}

#[test]
fn the_other_fields_are_claims_but_never_the_token() {
    let mut answer = better_auth();
    answer["investments"] = json!(["i-1"]);
    answer["user"]["superAdmin"] = json!(true);
    let principal = read(&answer).expect("principal");
    assert_eq!(*principal.roles, ["admin", "sales"]);
    let claims = &principal.claims;
    assert_eq!(claims["id"], "ann");
    assert_eq!(claims["sub"], "ann");
    assert_eq!((&claims["tenant"], &claims["orgId"]), (&json!("dock-1"), &json!("dock-1")));
    assert_eq!(claims["roles"], json!(["admin", "sales"]));
    assert_eq!((&claims["investments"], &claims["superAdmin"]), (&json!(["i-1"]), &json!(true)));
    assert!(!claims.to_string().contains("secret"));
}

#[test]
fn the_user_can_be_the_tenant() {
    let catalog = "[app]\nname = \"crm\"\ntenant = \"userId\"\n[auth.jwt]\nalgorithms = [\"HS256\"]\n\
                   claims = { user = \"sub\", tenant = \"sub\" }\n";
    let names = Names::new(&catalog::parse(catalog).expect("catalog"));
    let principal = answer::read(br#"{"user":{"id":"ann"}}"#, &names, Timestamp::default()).expect("principal");
    assert_eq!(principal.tenant.as_str(), "ann");
}

#[test]
fn the_earliest_end_counts_however_it_is_written() {
    let end = Some("2026-01-31T09:00:00Z".parse().expect("time"));
    for fields in [
        json!({ "expiresAt": "2026-01-31T09:00:00.000Z" }),
        json!({ "expiresAt": 1_769_850_000_000_u64 }),
        json!({ "exp": 1_769_850_000, "expiresAt": null }),
        json!({ "exp": 1_769_850_000, "session": { "expiresAt": "2026-02-07T08:00:00Z" } }),
        json!({ "exp": 1_999_999_999, "session": { "expiresAt": "2026-01-31T09:00:00Z" } }),
    ] {
        let mut answer = fields.clone();
        answer["user"] = json!({ "id": "ann", "orgId": "o" });
        assert_eq!(read(&answer).expect("principal").expires, end, "{fields}");
    }
    for never in [json!("9999-12-31T23:59:59.999Z"), json!(253_402_300_799_u64)] {
        let answer = json!({ "id": "ann", "orgId": "o", "expiresAt": never });
        let end = read(&answer).expect("principal").expires.expect("an end");
        assert!(end.to_string().starts_with("9999-12-3"), "{end}");
    }
    for value in [json!("tomorrow"), json!(true), json!(1_769_846_400), json!("2026-01-31T08:00:00Z"), json!(-1e300)] {
        let answer = json!({ "id": "ann", "orgId": "o", "expiresAt": value });
        assert_eq!(read(&answer).expect_err("ended or unreadable").refusal, invalid(), "{value}");
    }
}

#[test]
fn only_an_http_or_https_url_can_be_asked() {
    let clock = Arc::new(ManualClock::new(Timestamp::default()));
    for url in [
        "http://127.0.0.1:3000/api/auth/get-session",
        "http://localhost",
        "http://[::1]:3000/?a=b",
        "https://app.example/session",
        "https://[::1]",
    ] {
        assert!(sessions_at(url, clock.clone()).is_ok(), "{url}");
    }
    for url in ["http://", "https://", "http://user:pass@app/", "http://app:70000/", "http://a b/"] {
        let error = sessions_at(url, clock.clone()).err().expect(url);
        assert_eq!(error.code(), "config.invalid", "{url}");
    }
    let none = catalog::parse("[app]\nname = \"shop\"\n").expect("catalog");
    assert!(Sessions::new(&none, clock).expect("no endpoint").is_none());
}

#[test]
fn a_jwt_is_told_from_a_session() {
    // {"alg":"HS256"}
    let header = "eyJhbGciOiJIUzI1NiJ9";
    for jwt in [format!("{header}.e30.c2ln"), format!("{header}.e30."), format!("{header}.-_.x")] {
        assert!(is_jwt(&jwt), "{jwt}");
    }
    for session in [
        "session-one".to_owned(),
        "abc.def".to_owned(),
        "abc.def.ghi".to_owned(),
        "MTIz.e30.c2ln".to_owned(),
        format!("{header}.e30"),
        format!("{header}.e30.c2ln.more"),
        format!("{header}.e30.c2ln%3D"),
        String::new(),
    ] {
        assert!(!is_jwt(&session), "{session}");
    }
}
