//! Configuration: one TOML file, overlaid by the environment. Unknown keys are errors.
//!
//! Every key has an environment form: `TIDEWIRE_` and the path in upper case with `__` between levels, so `auth.jwt.secret` is
//! `TIDEWIRE_AUTH__JWT__SECRET` and `http.maxBodyBytes` is `TIDEWIRE_HTTP__MAX_BODY_BYTES`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use tidewire_core::limit::Rate;
use tidewire_core::time::duration_text;
use tidewire_core::{Error, Kind, Result, TenantId};

/// Everything that is configured. Defaults suit a single machine.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen. Default `127.0.0.1:7400`.
    pub listen: Option<SocketAddr>,
    /// The data directory. Default `./.tidewire`.
    pub data: Option<PathBuf>,
    /// `sqlite:FILE` (default: `tidewire.db` in the data directory) or `memory:`.
    pub store: Option<String>,
    /// Credentials of end users and of the administrator.
    pub auth: Auth,
    /// API keys.
    pub keys: Vec<Key>,
    /// Limits of the HTTP API.
    pub http: Http,
    /// Limits of the sockets.
    pub realtime: Realtime,
    /// How sockets speak.
    pub sockets: Sockets,
    /// What monitoring sees.
    pub metrics: Metrics,
    /// Which tenants exist; absent means any.
    pub tenants: Option<Vec<TenantId>>,
}

/// `[auth]`
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Auth {
    /// An API key for all tenants with every scope; also `TIDEWIRE_ADMIN_KEY`. At least 16 characters.
    pub admin_key: Option<String>,
    /// How tokens of end users are verified.
    pub jwt: Jwt,
}

/// `[auth.jwt]`
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Jwt {
    /// The secret of HS256, HS384 and HS512. At least 32 bytes. Also signs tokens of `POST /v1/tokens`.
    pub secret: Option<String>,
    /// A PEM file with the public key of RS256, ES256 or `EdDSA`.
    pub public_key_file: Option<PathBuf>,
    /// The URL of the login's key set (JWKS), instead of a file.
    pub jwks: Option<String>,
    /// How soon after one exchange the key set may be fetched again. Default 60 s.
    #[serde(with = "duration_text")]
    pub jwks_refresh: Duration,
}

impl Default for Jwt {
    fn default() -> Self {
        Self { secret: None, public_key_file: None, jwks: None, jwks_refresh: Duration::from_secs(60) }
    }
}

/// `[[keys]]`: an API key.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    /// The key itself. At least 16 characters.
    pub key: String,
    /// The tenant that it is bound to, or `*` for all.
    pub tenant: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
}

/// What an API key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Publish events and commits.
    Publish,
    /// Enqueue jobs.
    Enqueue,
    /// Lease and settle jobs.
    Work,
    /// Read everything of its tenant.
    Read,
    /// Everything.
    Admin,
}

/// `[http]`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Http {
    /// The largest request body in bytes. Default 8 MiB.
    pub max_body_bytes: usize,
    /// How long a stop waits for requests and jobs. Default 20 s.
    #[serde(with = "duration_text")]
    pub drain: Duration,
    /// Addresses of the proxies before this server, whose `X-Forwarded-For` says where a client is. Default none.
    pub trusted_proxies: Vec<IpAddr>,
}

impl Default for Http {
    fn default() -> Self {
        Self { max_body_bytes: 8 * 1024 * 1024, drain: Duration::from_secs(20), trusted_proxies: Vec::new() }
    }
}

/// `[realtime]`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Realtime {
    /// Time between heartbeats. Default 25 s.
    #[serde(with = "duration_text")]
    pub ping_interval: Duration,
    /// How long a heartbeat may stay unanswered. Default 20 s.
    #[serde(with = "duration_text")]
    pub ping_timeout: Duration,
    /// The largest inbound message in bytes. Default 1,000,000.
    pub max_message_bytes: usize,
    /// The most bytes that wait for one slow connection. Default 1 MiB.
    pub max_backlog_bytes: usize,
    /// The most connections of this process. Default 200,000.
    pub max_connections: usize,
    /// The most connections of one user. Default 100.
    pub max_per_user: usize,
    /// The most sockets of one tenant, visitors included. Default 100,000.
    pub max_per_tenant: usize,
    /// The most sockets of visitors without a login at one address; a /64 of IPv6 counts as one. Default 1,000.
    pub max_per_address: usize,
    /// How many credentials from one address may be refused before none is looked at for a while. Default 1,200/min.
    pub refused_per_address: Rate,
    /// How many messages one user may send over all sockets. Default ten times the catalog's `rate.messages` of a connection.
    pub messages_per_user: Option<Rate>,
    /// How many messages all clients of one tenant may send. Default 20,000/s.
    pub messages_per_tenant: Rate,
    /// How long a slow client may stay behind without taking anything before it is closed. Default 30 s.
    #[serde(with = "duration_text")]
    pub max_stall: Duration,
    /// How long the answer to a publisher is held back at most while the sockets of its tenant are far behind. Default 250 ms.
    #[serde(with = "duration_text")]
    pub max_publish_hold: Duration,
    /// Over how long a stop spreads the closing of connections. Default 2 s.
    #[serde(with = "duration_text")]
    pub drain: Duration,
    /// How long a user whose last connection broke still counts as present. Default 5 s.
    #[serde(with = "duration_text")]
    pub presence_grace: Duration,
    /// Origins that browsers may connect from; `FRONTEND_URL` adds one. Same-origin pages need none.
    pub allowed_origins: Vec<String>,
}

impl Default for Realtime {
    fn default() -> Self {
        Self {
            ping_interval: Duration::from_secs(25),
            ping_timeout: Duration::from_secs(20),
            max_message_bytes: 1_000_000,
            max_backlog_bytes: 1024 * 1024,
            max_connections: 200_000,
            max_per_user: 100,
            max_per_tenant: 100_000,
            max_per_address: 1_000,
            refused_per_address: Rate { amount: 1_200, per: Duration::from_secs(60) },
            messages_per_user: None,
            messages_per_tenant: Rate { amount: 20_000, per: Duration::from_secs(1) },
            max_stall: Duration::from_secs(30),
            max_publish_hold: Duration::from_millis(250),
            drain: Duration::from_secs(2),
            presence_grace: Duration::from_secs(5),
            allowed_origins: Vec::new(),
        }
    }
}

/// `[metrics]`
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Metrics {
    /// Whether `GET /metrics` answers without an API key. Default false.
    pub public: bool,
    /// How many tenants have metrics of their own: those with the most deliveries. Default 20.
    pub max_tenants: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { public: false, max_tenants: 20 }
    }
}

/// `[sockets]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sockets {
    /// The parser of all clients. Default `json`.
    pub parser: Parser,
    /// Whether large messages are compressed for clients that offer `permessage-deflate`. Default false.
    pub compression: bool,
}

/// How Socket.IO packets are encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Parser {
    /// The client library's own.
    #[default]
    Json,
    /// For clients with `socket.io-msgpack-parser`.
    Msgpack,
}

// Secrets stay out of every log by not being printable.
impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("tenant", &self.tenant).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

/// Every key that the environment can set, by path.
const KEYS: [&str; 32] = [
    "listen",
    "data",
    "store",
    "auth.adminKey",
    "auth.jwt.secret",
    "auth.jwt.publicKeyFile",
    "auth.jwt.jwks",
    "auth.jwt.jwksRefresh",
    "http.maxBodyBytes",
    "http.drain",
    "http.trustedProxies",
    "realtime.pingInterval",
    "realtime.pingTimeout",
    "realtime.maxMessageBytes",
    "realtime.maxBacklogBytes",
    "realtime.maxConnections",
    "realtime.maxPerUser",
    "realtime.maxPerTenant",
    "realtime.maxPerAddress",
    "realtime.refusedPerAddress",
    "realtime.messagesPerUser",
    "realtime.messagesPerTenant",
    "realtime.maxStall",
    "realtime.maxPublishHold",
    "realtime.drain",
    "realtime.presenceGrace",
    "realtime.allowedOrigins",
    "sockets.parser",
    "sockets.compression",
    "metrics.public",
    "metrics.maxTenants",
    "tenants",
];

/// Variables that are read elsewhere: the log filter, and what the project's tests and tools use.
const OTHER_VARIABLES: [&str; 5] = ["LOG", "LOG_FORMAT", "BIN", "URL", "KEY"];

impl Config {
    /// Reads `file`, if there is one, and overlays `environment`. Code `config.invalid`; the detail names the file or variable.
    pub fn load(file: Option<(&str, &str)>, environment: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let mut table = match file {
            Some((_, text)) => text.parse::<toml::Table>().map_err(|error| {
                // The error's own text shows the line, and the line may hold a secret.
                let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
                invalid(file, &format!("line {line}: {}", error.message()))
            })?,
            None => toml::Table::new(),
        };
        let mut frontend = None;
        let mut given: Vec<(String, &str, toml::Value)> = Vec::new();
        for (name, value) in environment {
            match name.strip_prefix("TIDEWIRE_") {
                Some("ADMIN_KEY") => given.push((name, "auth.adminKey", toml::Value::String(value))),
                Some(path) => match KEYS.iter().find(|key| environment_form(key) == path) {
                    Some(key) => given.push((name, key, environment_value(key, value))),
                    None if OTHER_VARIABLES.contains(&path) => {}
                    None => check_unknown(path)?,
                },
                None if name == "FRONTEND_URL" => frontend = Some(value),
                None => {}
            }
        }
        for (name, key, value) in given {
            // Alone first, so that an error names the variable.
            let mut alone = toml::Table::new();
            set(&mut alone, key, value.clone());
            let read: Result<Self, toml::de::Error> = toml::Value::Table(alone).try_into();
            read.map_err(|error| invalid(Some((&name, "")), error.message()))?;
            set(&mut table, key, value);
        }
        let mut config: Self =
            toml::Value::Table(table).try_into().map_err(|error: toml::de::Error| invalid(file, error.message()))?;
        if let Some(origin) = frontend.filter(|origin| !config.realtime.allowed_origins.contains(origin)) {
            config.realtime.allowed_origins.push(origin.trim_end_matches('/').to_owned());
        }
        config.validate()?;
        Ok(config)
    }

    fn validate(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::new(Kind::Invalid, "config.invalid", what));
        let keys = self
            .keys
            .iter()
            .map(|key| ("keys.key", &key.key))
            .chain(self.auth.admin_key.iter().map(|key| ("auth.adminKey (TIDEWIRE_ADMIN_KEY)", key)));
        for (name, key) in keys {
            if key.len() < 16 {
                return wrong(format!("{name}: expected at least 16 characters, got {}", key.len()));
            }
        }
        let mut seen: Vec<&str> = self.auth.admin_key.as_deref().into_iter().collect();
        for key in &self.keys {
            if seen.contains(&&*key.key) {
                return wrong(format!(
                    "keys.key: the key of tenant {:?} is given twice; each key is one caller",
                    key.tenant
                ));
            }
            seen.push(&key.key);
            if key.tenant != "*" && TenantId::new(&key.tenant).is_err() {
                return wrong(format!("keys.tenant: expected a tenant or \"*\", got {:?}", key.tenant));
            }
            if key.scopes.is_empty() {
                return wrong("keys.scopes: expected at least one of publish, enqueue, work, read, admin".to_owned());
            }
        }
        let amounts = [
            ("http.maxBodyBytes", self.http.max_body_bytes),
            ("realtime.maxMessageBytes", self.realtime.max_message_bytes),
            ("realtime.maxBacklogBytes", self.realtime.max_backlog_bytes),
            ("realtime.maxConnections", self.realtime.max_connections),
            ("realtime.maxPerUser", self.realtime.max_per_user),
            ("realtime.maxPerTenant", self.realtime.max_per_tenant),
            ("realtime.maxPerAddress", self.realtime.max_per_address),
        ];
        if let Some((name, _)) = amounts.into_iter().find(|(_, amount)| *amount == 0) {
            return wrong(format!("{name}: expected at least 1, got 0"));
        }
        let times = [
            ("realtime.pingInterval", self.realtime.ping_interval),
            ("realtime.pingTimeout", self.realtime.ping_timeout),
        ];
        if let Some((name, _)) = times.into_iter().find(|(_, time)| *time < SHORTEST_PING) {
            return wrong(format!("{name}: expected at least 100ms"));
        }
        let is_origin = |origin: &&String| *origin == "*" || is_origin(origin);
        if let Some(origin) = self.realtime.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return wrong(format!(
                "realtime.allowedOrigins (FRONTEND_URL): expected such as https://app.example.com, got {origin:?}"
            ));
        }
        if self.auth.jwt.jwks.is_some() && self.auth.jwt.public_key_file.is_some() {
            return wrong("auth.jwt: expected jwks or publicKeyFile, got both".to_owned());
        }
        match &self.auth.jwt.secret {
            Some(secret) if secret.len() < 32 => wrong(format!(
                "auth.jwt.secret (TIDEWIRE_AUTH__JWT__SECRET): expected at least 32 bytes, got {}",
                secret.len()
            )),
            Some(_) | None => Ok(()),
        }
    }
}

/// The shortest time between heartbeats.
const SHORTEST_PING: Duration = Duration::from_millis(100);

/// Whether a text is an origin (RFC 6454): scheme, host, perhaps a port, and no path.
fn is_origin(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    host.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']))
}

/// `http.maxBodyBytes` -> `HTTP__MAX_BODY_BYTES`
fn environment_form(key: &str) -> String {
    let mut form = String::with_capacity(key.len() + 8);
    for c in key.chars() {
        match c {
            '.' => form.push_str("__"),
            c if c.is_ascii_uppercase() => form.extend(['_', c]),
            c => form.push(c.to_ascii_uppercase()),
        }
    }
    form
}

fn environment_value(key: &str, value: String) -> toml::Value {
    if ["tenants", "realtime.allowedOrigins", "http.trustedProxies"].contains(&key) {
        let items = value.split(',').map(|item| toml::Value::String(item.trim().to_owned()));
        return toml::Value::Array(items.collect());
    }
    if ["sockets.compression", "metrics.public"].contains(&key)
        && let Ok(switch) = value.parse()
    {
        return toml::Value::Boolean(switch);
    }
    // Keys whose value is a number are the ones named after an amount.
    match value.parse::<i64>() {
        Ok(number) if key.contains("max") => toml::Value::Integer(number),
        Ok(_) | Err(_) => toml::Value::String(value),
    }
}

fn set(table: &mut toml::Table, path: &str, value: toml::Value) {
    match path.split_once('.') {
        None => {
            table.insert(path.to_owned(), value);
        }
        Some((head, rest)) => {
            let inner = table.entry(head).or_insert_with(|| toml::Value::Table(toml::Table::new()));
            if let toml::Value::Table(inner) = inner {
                set(inner, rest, value);
            }
        }
    }
}

fn invalid(file: Option<(&str, &str)>, what: &str) -> Error {
    let place = file.map_or("the environment", |(name, _)| name);
    Error::new(Kind::Invalid, "config.invalid", format!("{place}: {what}"))
}

/// Refuses a variable that was meant as a setting: one with `__`, or with a name that is nearly one. `path` is what follows the
/// prefix. Others belong to somebody else: Kubernetes gives every pod `TIDEWIRE_PORT` and more beside a service called tidewire.
fn check_unknown(path: &str) -> Result<()> {
    let mut forms: Vec<String> = KEYS.iter().map(|key| environment_form(key)).collect();
    forms.push("ADMIN_KEY".to_owned());
    // The prefix is left out, because slips are allowed by length.
    let near = tidewire_core::suggest::suggest(path, forms.iter().map(String::as_str));
    if near.is_none() && !path.contains("__") {
        return Ok(());
    }
    let mut detail = format!("TIDEWIRE_{path}: there is no such setting");
    if let Some(near) = near {
        detail.push_str(&format!("; did you mean TIDEWIRE_{near}?"));
    }
    Err(Error::new(Kind::Invalid, "config.invalid", detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, environment: &[(&str, &str)]) -> Result<Config> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(("tidewire.toml", file)), environment)
    }

    #[test]
    fn the_environment_overlays_the_file() {
        let secret = "s".repeat(32);
        let config = load(
            "listen = \"127.0.0.1:1\"\n[http]\nmaxBodyBytes = 10",
            &[
                ("TIDEWIRE_LISTEN", "127.0.0.1:2"),
                ("TIDEWIRE_HTTP__MAX_BODY_BYTES", "20"),
                ("TIDEWIRE_AUTH__JWT__SECRET", &secret),
                ("TIDEWIRE_ADMIN_KEY", "0123456789abcdef"),
                ("TIDEWIRE_SOCKETS__PARSER", "msgpack"),
                ("TIDEWIRE_SOCKETS__COMPRESSION", "true"),
                ("FRONTEND_URL", "http://localhost:3000/"),
            ],
        )
        .expect("config");
        assert_eq!(config.listen.expect("listen").port(), 2);
        assert_eq!(config.http.max_body_bytes, 20);
        assert_eq!((config.sockets.parser, config.sockets.compression), (Parser::Msgpack, true));
        assert_eq!(config.auth.jwt.secret.as_deref(), Some(&*secret));
        assert_eq!(config.realtime.allowed_origins, ["http://localhost:3000"]);
    }

    #[test]
    fn unknown_keys_and_weak_secrets_are_errors_that_name_the_place() {
        for (file, environment, expected) in [
            ("lisen = \"x\"", vec![], "lisen"),
            ("", vec![("TIDEWIRE_AUTH__JWT__SECRT", "x")], "did you mean TIDEWIRE_AUTH__JWT__SECRET?"),
            ("", vec![("TIDEWIRE_LISTN", "127.0.0.1:1")], "did you mean TIDEWIRE_LISTEN?"),
            ("", vec![("TIDEWIRE_ADMIN_KY", "x")], "did you mean TIDEWIRE_ADMIN_KEY?"),
            ("", vec![("TIDEWIRE_SOMETHING__ELSE", "x")], "TIDEWIRE_SOMETHING__ELSE"),
            ("", vec![("TIDEWIRE_AUTH__JWT__SECRET", "short")], "TIDEWIRE_AUTH__JWT__SECRET"),
            ("", vec![("TIDEWIRE_ADMIN_KEY", "short")], "TIDEWIRE_ADMIN_KEY"),
            ("[[keys]]\nkey = \"0123456789abcdef\"\ntenant = \"*\"\nscopes = [\"root\"]", vec![], "root"),
            ("[[keys]]\nkey = \"0123456789abcdef\"\ntenant = \"a b\"\nscopes = [\"read\"]", vec![], "keys.tenant"),
            (
                "[[keys]]\nkey = \"0123456789abcdef\"\ntenant = \"a\"\nscopes = [\"read\"]",
                vec![("TIDEWIRE_ADMIN_KEY", "0123456789abcdef")],
                "given twice",
            ),
            ("", vec![("TIDEWIRE_LISTEN", "nope")], "TIDEWIRE_LISTEN"),
            ("", vec![("TIDEWIRE_REALTIME__MAX_CONNECTIONS", "0")], "realtime.maxConnections"),
            ("", vec![("TIDEWIRE_REALTIME__PING_INTERVAL", "0s")], "realtime.pingInterval"),
            ("", vec![("FRONTEND_URL", "notaurl")], "FRONTEND_URL"),
            ("[sockets]\nparser = \"xml\"", vec![], "xml"),
            ("", vec![("TIDEWIRE_SOCKETS__COMPRESSION", "yes")], "TIDEWIRE_SOCKETS__COMPRESSION"),
            ("[auth.jwt]\nsecret = \"supersecret", vec![], "line 2"),
        ] {
            let error = load(file, &environment).expect_err(expected);
            assert_eq!(error.code(), "config.invalid");
            assert!(!error.detail().contains("supersecret"), "{} shows a secret", error.detail());
            assert!(error.detail().contains(expected), "{} should name {expected}", error.detail());
        }
    }

    #[test]
    fn the_links_of_a_kubernetes_service_are_not_settings() {
        let links = [
            ("TIDEWIRE_SERVICE_HOST", "10.0.0.11"),
            ("TIDEWIRE_SERVICE_PORT", "7400"),
            ("TIDEWIRE_SERVICE_PORT_HTTP", "7400"),
            ("TIDEWIRE_PORT", "tcp://10.0.0.11:7400"),
            ("TIDEWIRE_PORT_7400_TCP", "tcp://10.0.0.11:7400"),
            ("TIDEWIRE_PORT_7400_TCP_PROTO", "tcp"),
            ("TIDEWIRE_PORT_7400_TCP_PORT", "7400"),
            ("TIDEWIRE_PORT_7400_TCP_ADDR", "10.0.0.11"),
        ];
        assert_eq!(load("", &links).expect("config").listen, None);
    }

    #[test]
    fn secrets_cannot_be_printed() {
        let config = load("", &[("TIDEWIRE_ADMIN_KEY", "a-very-secret-admin-key")]).expect("config");
        assert!(!format!("{config:?}").contains("a-very-secret"));
    }
}
