//! Resolving what sockets see: the app, its users, rooms, events and messages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::load::{named_entries, report_name};
use super::raw::{Node, Place, Table};
use super::rules::rule_job;
use super::work::Jobs;
use super::{App, Auth, CredentialSource, EventType, Join, Jwt, Message, Profile, Publication, Realtime, Room, View};
use crate::expr::Expr;
use crate::limit::Rate;
use crate::room::RoomTemplate;
use crate::schedule::zone_named;
use crate::schema::Schema;
use crate::suggest::suggest;
use crate::template::Template;

/// Events of Socket.IO itself, which no app can emit.
const RESERVED_EVENTS: [&str; 6] =
    ["connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"];

/// Events that the server sends of its own.
const OWN_EVENTS: [&str; 12] = [
    "connected",
    "continuity:kept",
    "continuity:lost",
    "auth:expiring",
    "auth:revoked",
    "roles:changed",
    "tenant:switched",
    "limit:exceeded",
    "presence:join",
    "presence:leave",
    "presence:update",
    "presence:reset",
];

/// Messages that every app understands.
const BUILT_IN_MESSAGES: [&str; 10] =
    ["subscribe", "unsubscribe", "join", "leave", "history", "auth", "switch", "ack", "presence", "unread"];

const ALGORITHMS: [&str; 12] =
    ["HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];

/// How long after its last check a live socket's session is checked again.
const RECHECK: Duration = Duration::from_secs(30);

/// Events by name.
pub(super) type Events = HashMap<Arc<str>, Arc<EventType>>;

pub(super) fn app(top: &Table<'_>) -> App {
    top.require("app");
    let Some(table) = top.table("app") else {
        return App {
            name: "".into(),
            tenant: "tenant".into(),
            timezone: "UTC".to_owned(),
            schedules: App::SCHEDULES,
            description: String::new(),
        };
    };
    let tenant = table.text("tenant").unwrap_or("tenant");
    if tenant.is_empty() || !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        table.wrong("tenant", format!("expected a name of letters, digits and _, got {tenant:?}"));
    }
    let timezone = table.parsed("timezone", |zone| zone_named(zone).map(|_| zone.to_owned()));
    let app = App {
        name: table.required_text("name").unwrap_or_default().into(),
        tenant: tenant.into(),
        timezone: timezone.unwrap_or_else(|| "UTC".to_owned()),
        schedules: table.integer("schedules", 0..=10_000_000).unwrap_or(App::SCHEDULES),
        description: table.description(),
    };
    table.finish();
    app
}

pub(super) fn auth(top: &Table<'_>, app: &App) -> Auth {
    let defaults = || vec![CredentialSource::AuthToken, CredentialSource::Authorization];
    let Some(table) = top.table("auth") else {
        return Auth { sources: defaults(), roles: Vec::new(), jwt: None, introspect: None, recheck: RECHECK };
    };
    let sources = table.texts("sources").map(|sources| {
        let source = |(place, text): (Place, &str)| {
            let source = credential_source(text);
            if source.is_none() {
                let expected = "expected auth.token, authorization, query.NAME, cookie:NAME or header:NAME";
                table.report.note(place, "auth.sources", format!("{expected}, got {text:?}"));
            }
            source
        };
        sources.into_iter().filter_map(source).collect()
    });
    let mut recheck = RECHECK;
    let introspect = table.table("session").and_then(|session| {
        let url = session.required_text("introspect");
        if url.is_some_and(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
            session.wrong("introspect", "expected a URL that begins with http:// or https://");
        }
        if let Some(every) = session.duration("recheck") {
            if every < Duration::from_secs(1) {
                session.wrong("recheck", "expected at least 1s");
            }
            recheck = every;
        }
        session.finish();
        url.map(str::to_owned)
    });
    let auth = Auth {
        sources: sources.unwrap_or_else(defaults),
        roles: table.strings("roles").unwrap_or_default(),
        jwt: table.table("jwt").map(|table| jwt(table, app)),
        introspect,
        recheck,
    };
    table.finish();
    auth
}

fn credential_source(text: &str) -> Option<CredentialSource> {
    let name = |prefix| text.strip_prefix(prefix).filter(|name| !name.is_empty()).map(str::to_owned);
    match text {
        "auth.token" => Some(CredentialSource::AuthToken),
        "authorization" => Some(CredentialSource::Authorization),
        _ => name("query.")
            .map(CredentialSource::Query)
            .or_else(|| name("cookie:").map(CredentialSource::Cookie))
            .or_else(|| name("header:").map(CredentialSource::Header)),
    }
}

fn jwt(table: Table<'_>, app: &App) -> Jwt {
    let algorithms = table.texts("algorithms");
    for (place, name) in algorithms.iter().flatten() {
        if !ALGORITHMS.contains(name) {
            let hint = suggest(name, ALGORITHMS.into_iter());
            let message = format!("unknown algorithm {name:?}, expected one of {}", ALGORITHMS.join(", "));
            table.report.note_with_suggestion(*place, "auth.jwt.algorithms", message, hint);
        }
    }
    let algorithms: Option<Vec<_>> =
        algorithms.map(|names| names.into_iter().map(|(_, name)| name.to_owned()).collect());
    if algorithms.as_ref().is_some_and(Vec::is_empty) {
        table.wrong("algorithms", "expected at least one");
    }
    let claims = table.table("claims");
    let claim = |key, default: &str| claims.as_ref().and_then(|claims| claims.text(key)).unwrap_or(default).to_owned();
    let jwt = Jwt {
        algorithms: algorithms.unwrap_or_else(|| vec!["HS256".to_owned()]),
        issuer: table.text("issuer").map(str::to_owned),
        audience: table.text("audience").map(str::to_owned),
        leeway: table.duration("leeway").unwrap_or(Duration::from_secs(30)),
        user_claim: claim("user", "sub"),
        tenant_claim: claim("tenant", &app.tenant),
        roles_claim: claim("roles", "roles"),
        tenants_claim: claim("tenants", "tenants"),
    };
    claims.into_iter().for_each(Table::finish);
    table.finish();
    jwt
}

pub(super) fn realtime(top: &Table<'_>) -> Realtime {
    let mut realtime = Realtime {
        namespaces: vec!["/".to_owned()],
        profile: Profile::Named,
        history_count: 1_000,
        history_age: Duration::from_secs(24 * 3_600),
        message_rate: Rate { amount: 50, per: Duration::from_secs(1) },
        connect_rate: Rate { amount: 10, per: Duration::from_secs(1) },
    };
    let Some(table) = top.table("realtime") else {
        return realtime;
    };
    if let Some(namespaces) = table.strings("namespaces") {
        if namespaces.is_empty() || namespaces.iter().any(|name| !name.starts_with('/')) {
            table.wrong("namespaces", "expected at least one namespace, each beginning with /");
        }
        realtime.namespaces = namespaces;
    }
    if let Some(profile) = table.one_of("profile", &[("named", Profile::Named), ("envelope", Profile::Envelope)]) {
        realtime.profile = profile;
    }
    if let Some(history) = table.table("history") {
        realtime.history_count = history.integer("count", 0..=1_000_000).unwrap_or(realtime.history_count);
        realtime.history_age = history.duration("age").unwrap_or(realtime.history_age);
        history.finish();
    }
    if let Some(rate) = table.table("rate") {
        realtime.message_rate = rate.parsed("messages", str::parse).unwrap_or(realtime.message_rate);
        realtime.connect_rate = rate.parsed("connects", str::parse).unwrap_or(realtime.connect_rate);
        rate.finish();
    }
    table.finish();
    realtime
}

pub(super) fn rooms(top: &Table<'_>, auth: &Auth) -> Vec<Room> {
    let mut rooms: Vec<Room> = Vec::new();
    for (name, table) in named_entries(top, "rooms") {
        let join = [("auto", Join::Auto), ("request", Join::Request), ("public", Join::Public)];
        let (join, app_wide) =
            (table.one_of("join", &join), table.one_of("scope", &[("app", true), ("tenant", false)]));
        table.require("join");
        let (presence, member_data) = presence(&table);
        if presence && app_wide == Some(true) {
            table.wrong("presence", "a room that spans tenants tells nobody who is in it; leave presence out");
        }
        let when = condition(&table, "when", &["user", "params"], auth);
        let description = table.description();
        match RoomTemplate::parse(name) {
            Err(error) => report_name(&table, error.detail()),
            Ok(template) => {
                if let Some(same) = rooms.iter().find(|room| room.template.same_shape(&template)) {
                    report_name(&table, format!("makes the same rooms as {:?}", same.template.source()));
                }
                let (join, crosses_tenants) = (join.unwrap_or(Join::Request), app_wide.unwrap_or(false));
                rooms.push(Room { template, join, crosses_tenants, when, presence, member_data, description });
            }
        }
        table.finish();
    }
    rooms
}

/// `presence = true`, or a table when members tell something of themselves.
fn presence(table: &Table<'_>) -> (bool, Option<Schema>) {
    if !table.item("presence").is_some_and(|item| matches!(item.value, Node::Table(_))) {
        return (table.flag("presence"), None);
    }
    let Some(presence) = table.table("presence") else { return (true, None) };
    let data = schema(&presence, "data");
    presence.require("data");
    presence.finish();
    (true, data)
}

/// A condition over `vars`. A role that it mentions is one of the declared ones, when roles are declared.
pub(super) fn condition(table: &Table<'_>, key: &'static str, vars: &[&str], auth: &Auth) -> Option<Expr> {
    let expr = table.parsed(key, |source| Expr::compile(source, vars))?;
    if !auth.roles.is_empty() {
        for role in expr.roles_mentioned() {
            if !auth.roles.iter().any(|known| known == role) {
                table.unknown(key, "role", role, auth.roles.iter().map(String::as_str));
            }
        }
    }
    Some(expr)
}

/// A template of a room, which has the shape of a declared one or is one of its rooms.
fn room_template(
    table: &Table<'_>,
    key: &'static str,
    place: Place,
    text: &str,
    rooms: &[Room],
) -> Option<RoomTemplate> {
    let template = match RoomTemplate::parse(text) {
        Ok(template) => template,
        Err(error) => {
            table.report.note(place, &format!("{}.{key}", table.key), error.detail());
            return None;
        }
    };
    let is_one_of = |room: &Room| {
        room.template.same_shape(&template) || (template.params().next().is_none() && room.template.matches(text))
    };
    if !rooms.iter().any(is_one_of) {
        let message = format!("{text:?} has the shape of no declared room");
        let hint = suggest(text, rooms.iter().map(|room| room.template.source()));
        table.report.note_with_suggestion(place, &format!("{}.{key}", table.key), message, hint);
    }
    Some(template)
}

/// The shape of some data in the shorthand.
pub(super) fn schema(table: &Table<'_>, key: &'static str) -> Option<Schema> {
    let item = table.item(key)?;
    if !matches!(item.value, Node::Table(_)) {
        table.wrong(key, "expected a table of fields, such as { id = \"string\" }");
        return None;
    }
    Schema::parse(&item.value.to_json()).map_err(|error| table.wrong(key, error)).ok()
}

pub(super) fn events(top: &Table<'_>, auth: &Auth, rooms: &[Room]) -> Events {
    let mut events = Events::new();
    for (name, table) in named_entries(top, "events") {
        if RESERVED_EVENTS.contains(&name) {
            report_name(&table, "this name belongs to Socket.IO itself");
        }
        if OWN_EVENTS.contains(&name) {
            report_name(&table, "the server itself sends events of this name");
        }
        let listed = table.texts("rooms").unwrap_or_default();
        let template = |(place, text)| room_template(&table, "rooms", place, text, rooms);
        let schema_file = table.place_of("schema") != table.place;
        let event = EventType {
            name: name.into(),
            rooms: listed.into_iter().filter_map(template).collect(),
            data: schema(&table, "data"),
            ephemeral: table.flag("ephemeral"),
            reply: table.flag("reply"),
            visible: condition(&table, "visible", &["user", "data"], auth),
            stream: table.parsed("stream", RoomTemplate::parse),
            conflate: table.parsed("conflate", RoomTemplate::parse),
            views: table.tables("views").into_iter().filter_map(|view| self::view(view, &table, rooms)).collect(),
            description: table.description(),
        };
        if schema_file {
            table.item("schema");
            table.wrong(
                "schema",
                "schema files are not supported; describe the fields with data = { field = \"string\" }",
            );
        }
        if event.reply && !event.rooms.is_empty() {
            table.wrong("rooms", "a reply goes only to the socket that asked; leave rooms out");
        }
        if event.ephemeral && event.stream.is_some() {
            table.wrong("stream", "an ephemeral event is not logged and has no version; leave stream out");
        }
        table.finish();
        events.insert(event.name.clone(), Arc::new(event));
    }
    events
}

fn view(table: Table<'_>, event: &Table<'_>, rooms: &[Room]) -> Option<View> {
    let place = table.place_of("room");
    let room = table.required_text("room").and_then(|text| room_template(&table, "room", place, text, rooms));
    let fields = table.texts("fields");
    table.require("fields");
    // The event's schema is read from the tree again, so that a view can be checked before the event is whole.
    let declared = event.all().iter().find(|(key, _)| key == "data").and_then(|(_, item)| match &item.value {
        Node::Table(fields) => Some(fields),
        _ => None,
    });
    for (place, field) in fields.iter().flatten() {
        if let Some(declared) = declared
            && !declared.iter().any(|(name, _)| name == field)
        {
            let hint = suggest(field, declared.iter().map(|(name, _)| name.as_str()));
            let message = format!("{field:?} is not in the event's data");
            table.report.note_with_suggestion(*place, &format!("{}.fields", table.key), message, hint);
        }
    }
    let view = View {
        room: room?,
        fields: fields.unwrap_or_default().into_iter().map(|(_, field)| field.to_owned()).collect(),
    };
    table.finish();
    Some(view)
}

pub(super) fn messages(
    top: &Table<'_>,
    auth: &Auth,
    rooms: &[Room],
    events: &Events,
    jobs: &Jobs,
) -> HashMap<Arc<str>, Message> {
    let mut messages = HashMap::new();
    for (name, table) in named_entries(top, "messages") {
        if BUILT_IN_MESSAGES.contains(&name) || RESERVED_EVENTS.contains(&name) {
            report_name(&table, "this message is built in and cannot be declared");
        }
        let data = schema(&table, "data");
        let arg = |(place, text): (Place, &str)| {
            let problem = |error| table.report.note(place, &format!("{}.args", table.key), error);
            Schema::parse(&Value::from(text)).map_err(problem).ok()
        };
        let args: Vec<Schema> = table.texts("args").unwrap_or_default().into_iter().filter_map(arg).collect();
        if data.is_some() && !args.is_empty() {
            table.wrong("data", "a message has either positional args or one data object");
        }
        let room = |key| {
            let text = table.text(key)?;
            let template = room_template(&table, key, table.place_of(key), text, rooms)?;
            check_params(&table, key, &template, args.len(), data.as_ref());
            Some(template)
        };
        let (join, leave) = (room("join"), room("leave"));
        let reply = table.table("reply").and_then(|reply| self::reply(reply, events));
        let publications = table.tables("publish").into_iter();
        let roots = Roots { templates: &["data", "args", "user", "event"], conditions: &["data", "args", "user"] };
        let publish = publications.filter_map(|table| publication(table, &roots, auth, events)).collect();
        // No event causes the job, so there is none that its data could name.
        let roots = Roots { templates: roots.conditions, ..roots };
        let enqueued = table.tables("enqueue").into_iter();
        let enqueue = enqueued.filter_map(|table| rule_job(table, &roots, auth, jobs)).collect();
        let message = Message { args, data, join, leave, reply, publish, enqueue, description: table.description() };
        messages.insert(name.into(), message);
        table.finish();
    }
    messages
}

/// A message fills a room's holes from its own arguments and from nothing else.
fn check_params(table: &Table<'_>, key: &str, template: &RoomTemplate, args: usize, data: Option<&Schema>) {
    for param in template.params() {
        let known = match param.parse::<usize>() {
            Ok(index) => index < args,
            Err(_) => data.is_some_and(|data| data.fields().any(|field| field == param)),
        };
        if !known {
            let expected = "expected {0} for a positional argument or the name of a field of data";
            table.wrong(key, format!("{{{param}}} has no value in this message; {expected}"));
        }
    }
}

fn reply(table: Table<'_>, events: &Events) -> Option<(Arc<str>, Template)> {
    let event = table.required_text("event");
    let event = event.and_then(|name| match events.get_key_value(name) {
        Some((name, _)) => Some(name.clone()),
        None => {
            table.unknown("event", "event", name, events.keys().map(|name| &**name));
            None
        }
    });
    let data = template(&table, "data", &["data", "args", "user"]);
    table.finish();
    Some((event?, data?))
}

/// What templates and conditions of a publication can see.
pub(super) struct Roots<'a> {
    pub(super) templates: &'a [&'a str],
    pub(super) conditions: &'a [&'a str],
}

/// An event that a message or a rule publishes.
pub(super) fn publication(table: Table<'_>, roots: &Roots<'_>, auth: &Auth, events: &Events) -> Option<Publication> {
    let event = table.required_text("type").and_then(|name| match events.get_key_value(name) {
        Some((_, event)) if event.reply => {
            table.wrong("type", format!("{name:?} is a reply to the socket that asked and cannot be published"));
            None
        }
        Some((name, _)) => Some(name.clone()),
        None => {
            table.unknown("type", "event", name, events.keys().map(|name| &**name));
            None
        }
    });
    let params = table.table("params");
    let param = |(name, item): &(String, super::raw::Item)| {
        let parsed = Template::parse(positional(item.value.to_json()), roots.templates);
        let problem =
            |error: crate::Error| table.report.note(item.place, &format!("{}.params", table.key), error.detail());
        Some((name.clone(), parsed.map_err(problem).ok()?))
    };
    let params: BTreeMap<_, _> = params.iter().flat_map(|params| params.all()).filter_map(param).collect();
    let data = template(&table, "data", roots.templates);
    let when = condition(&table, "when", roots.conditions, auth);
    table.finish();
    Some(Publication { event: event?, data: data?, params, when })
}

/// The template of some data, an empty object when absent.
pub(super) fn template(table: &Table<'_>, key: &'static str, roots: &[&str]) -> Option<Template> {
    let value = match table.item(key) {
        None => Value::Object(serde_json::Map::new()),
        Some(item) => item.value.to_json(),
    };
    if !value.is_object() {
        table.wrong(key, "expected a table");
        return None;
    }
    Template::parse(positional(value), roots).map_err(|error| table.wrong(key, error.detail())).ok()
}

/// `"{0}"`, as room templates write a positional argument, is short for `"{{ args.0 }}"`.
fn positional(value: Value) -> Value {
    match value {
        Value::String(text) => {
            let index = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
            match index {
                Some(index) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => {
                    Value::String(format!("{{{{ args.{index} }}}}"))
                }
                Some(_) | None => Value::String(text),
            }
        }
        Value::Array(items) => items.into_iter().map(positional).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, positional(value))).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => value,
    }
}
