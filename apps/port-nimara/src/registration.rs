//! A registration on the website: find or create the client, record the interest, look for duplicates, tell the port.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidewire::rusqlite::{Connection, OptionalExtension, params};
use tidewire::{
    App, Committed, Error, FieldError, Kind, NewEvent, Problem, Rate, RateState, Request, Result, TenantId,
};

/// Registrations that the form takes in a second: it is open to everybody.
const RATE: &str = "20/s";

/// The form's desk: the app, and how much it takes.
pub(crate) struct Desk {
    app: App,
    rate: Option<Rate>,
    taken: Mutex<RateState>,
}

impl Desk {
    pub(crate) fn new(app: App) -> Self {
        Self { app, rate: RATE.parse().ok(), taken: Mutex::new(RateState::default()) }
    }

    fn take(&self) -> Result<()> {
        let now = self.app.now();
        match self.rate.map(|rate| rate.take(&mut self.taken.lock(), now)) {
            Some(Err(next)) => Err(Error::new(Kind::Limited, "registration.rate", "too many registrations; try again")
                .with_retry_after(next.since(now))),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

pub(crate) fn routes(desk: Arc<Desk>) -> Router {
    Router::new().route("/api/public/interests", post(register)).with_state(desk)
}

/// The app's own tables, beside Tidewire's in the same file.
pub(crate) async fn create_tables(app: &App) -> Result<()> {
    let create = |sql: &Connection, _: &mut Request| {
        sql.execute_batch(
            "CREATE TABLE IF NOT EXISTS nimara_clients (
               port TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, email TEXT NOT NULL, phone TEXT NOT NULL,
               name_key TEXT NOT NULL, phone_key TEXT NOT NULL,
               PRIMARY KEY (port, id), UNIQUE (port, email)
             ) WITHOUT ROWID;
             CREATE INDEX IF NOT EXISTS nimara_clients_name ON nimara_clients (port, name_key);
             CREATE INDEX IF NOT EXISTS nimara_clients_phone ON nimara_clients (port, phone_key);
             CREATE TABLE IF NOT EXISTS nimara_interests (
               port TEXT NOT NULL, id TEXT NOT NULL, client TEXT NOT NULL, berth TEXT NOT NULL, message TEXT NOT NULL,
               PRIMARY KEY (port, id)
             ) WITHOUT ROWID;",
        )
        .map_err(|error| Error::internal("the tables of Port Nimara cannot be created", error))
    };
    app.transaction(&TenantId::app(), create).await.map(drop)
}

/// What the website's form sends.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Form {
    port_id: TenantId,
    name: String,
    email: String,
    #[serde(default)]
    phone: String,
    #[serde(default)]
    berth_number: String,
    #[serde(default)]
    message: String,
}

impl Form {
    /// The name as it is compared: small letters, single spaces.
    fn name_key(&self) -> String {
        self.name.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
    }

    /// The telephone number as it is compared: its digits.
    fn phone_key(&self) -> String {
        self.phone.chars().filter(char::is_ascii_digit).collect()
    }

    /// The form with its texts trimmed, or everything that is wrong with it.
    fn check(mut self) -> Result<Self> {
        let texts = [
            ("name", &mut self.name, 1, 200),
            ("email", &mut self.email, 3, 200),
            ("phone", &mut self.phone, 0, 50),
            ("berthNumber", &mut self.berth_number, 0, 50),
            ("message", &mut self.message, 0, 2_000),
        ];
        let mut errors = Vec::new();
        for (path, text, least, most) in texts {
            *text = text.trim().to_owned();
            let length = text.chars().count();
            let is_clean = text.chars().all(|c| !c.is_control() || (path == "message" && c == '\n'));
            if length < least || length > most || !is_clean {
                let message = format!("expected {least} to {most} printable characters, got {length}");
                errors.push(FieldError { path: path.to_owned(), message });
            }
        }
        self.email.make_ascii_lowercase();
        let is_address = self.email.split_once('@').is_some_and(|(user, host)| !user.is_empty() && host.contains('.'));
        if !is_address && errors.iter().all(|error| error.path != "email") {
            let message = format!("expected an email address, got {:?}", self.email);
            errors.push(FieldError { path: "email".to_owned(), message });
        }
        if errors.is_empty() { Ok(self) } else { Err(Error::invalid("registration.invalid", "").with_fields(errors)) }
    }
}

/// Another client of the port that may be the same person.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct Duplicate {
    client_id: String,
    score: f64,
    reason: String,
}

/// What a registration came to.
struct Registered {
    client: String,
    interest: String,
    existing: bool,
    duplicate: Option<Duplicate>,
}

async fn register(State(desk): State<Arc<Desk>>, body: axum::body::Bytes) -> Result<Response, Problem> {
    desk.take()?;
    let form: Form = serde_json::from_slice(&body)
        .map_err(|error| Error::invalid("request.invalid", format!("the form cannot be read: {error}")))?;
    let form = form.check()?;
    if !crate::PORTS.iter().any(|port| port.id == form.port_id.as_str()) {
        return Err(Error::not_found("port.not_found", format!("there is no port {}", form.port_id)).into());
    }
    let port = form.port_id.clone();
    let work = move |sql: &Connection, request: &mut Request| {
        record(sql, request, &form).map_err(|error| Error::internal("the registration could not be written", error))
    };
    let (registered, committed) = desk.app.transaction(&port, work).await?;
    let answer = json!({
        "clientId": registered.client,
        "interestId": registered.interest,
        "existingClient": registered.existing,
        "duplicate": registered.duplicate,
        "committed": summary(&committed),
    });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// Writes the rows of a registration and stages what it means.
fn record(sql: &Connection, request: &mut Request, form: &Form) -> tidewire::rusqlite::Result<Registered> {
    let port = form.port_id.as_str();
    let new_id = || sql.query_row("SELECT lower(hex(randomblob(8)))", [], |row| row.get::<_, String>(0));
    let known: Option<String> = sql
        .query_row("SELECT id FROM nimara_clients WHERE port = ?1 AND email = ?2", [port, &form.email], |row| {
            row.get(0)
        })
        .optional()?;
    let existing = known.is_some();
    let client = match known {
        Some(id) => id,
        None => {
            let id = new_id()?;
            sql.execute(
                "INSERT INTO nimara_clients (port, id, name, email, phone, name_key, phone_key) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![port, id, form.name, form.email, form.phone, form.name_key(), form.phone_key()],
            )?;
            let data = json!({ "clientId": id, "clientName": form.name, "source": "website" });
            request.events.push(NewEvent::new("client:created", data));
            id
        }
    };
    let interest = new_id()?;
    sql.execute(
        "INSERT INTO nimara_interests (port, id, client, berth, message) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![port, interest, client, form.berth_number, form.message],
    )?;
    let mut data = json!({ "interestId": interest, "clientId": client, "source": "website" });
    if !form.berth_number.is_empty() {
        data["berthId"] = json!(form.berth_number);
    }
    request.events.push(NewEvent::new("interest:created", data));

    let duplicate = if existing { None } else { find_duplicate(sql, port, &client, form)? };
    if let Some(found) = &duplicate {
        let data = json!({
            "clientAId": client, "clientBId": found.client_id, "score": found.score, "reason": found.reason,
        });
        request.events.push(NewEvent::new("client:duplicateDetected", data));
    }
    let data = json!({
        "clientId": client, "interestId": interest, "clientName": form.name, "berthNumber": form.berth_number,
    });
    request.events.push(NewEvent::new("registration:new", data));
    Ok(Registered { client, interest, existing, duplicate })
}

/// A client with the same telephone number, or else with the same name.
fn find_duplicate(
    sql: &Connection,
    port: &str,
    client: &str,
    form: &Form,
) -> tidewire::rusqlite::Result<Option<Duplicate>> {
    let other = |column: &str, key: String| {
        let query = format!("SELECT id FROM nimara_clients WHERE port = ?1 AND {column} = ?2 AND id <> ?3 LIMIT 1");
        sql.prepare_cached(&query)?.query_row(params![port, key, client], |row| row.get::<_, String>(0)).optional()
    };
    if form.phone_key().len() >= 6
        && let Some(client_id) = other("phone_key", form.phone_key())?
    {
        return Ok(Some(Duplicate { client_id, score: 0.95, reason: "same telephone number".to_owned() }));
    }
    let same_name = other("name_key", form.name_key())?;
    Ok(same_name.map(|client_id| Duplicate { client_id, score: 0.8, reason: "same name".to_owned() }))
}

/// The commit as the page shows it: asked for and caused, together.
fn summary(committed: &Committed) -> Value {
    let events = committed.events.iter().chain(&committed.caused.events);
    let jobs = committed.jobs.iter().chain(&committed.caused.jobs);
    json!({
        "events": events.map(|event| json!({ "type": event.kind, "position": event.position })).collect::<Vec<_>>(),
        "jobs": jobs.collect::<Vec<_>>(),
    })
}
