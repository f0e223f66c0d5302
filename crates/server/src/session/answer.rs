//! What the app says about a session, as a principal.

use std::sync::Arc;

use serde_json::{Map, Number, Value, json};
use tidewire_core::catalog::Catalog;
use tidewire_core::principal::Principal;
use tidewire_core::{Result, TenantId, Timestamp};

use super::Failure;
use crate::auth::text;

/// Numbers from here on are milliseconds, below it seconds: as seconds it is beyond the year 9999, as milliseconds in 1978.
const FIRST_MILLIS: f64 = 2.54e11;

/// What the catalog calls the fields of an answer.
pub(super) struct Names {
    user: String,
    tenant: String,
    roles: String,
}

impl Names {
    /// The claims of `[auth.jwt]`, which sessions and tokens share, or its defaults.
    pub(super) fn new(catalog: &Catalog) -> Self {
        match &catalog.auth.jwt {
            Some(jwt) => {
                Self { user: jwt.user_claim.clone(), tenant: jwt.tenant_claim.clone(), roles: jwt.roles_claim.clone() }
            }
            None => Self { user: "sub".to_owned(), tenant: catalog.app.tenant.to_string(), roles: "roles".to_owned() },
        }
    }
}

/// Reads the body of a 200.
///
/// Fields count at the top level, under `user` and under `session`; of two of one name the one under `user` wins, then the one at the
/// top. The `id` of a `session` names the session, so it is nobody's user id but the claim `sid`; its `userId` is one, and its
/// `createdAt` or `iat` is the claim `iat`. All fields become claims but `token`,
/// which is the credential again.
pub(super) fn read(body: &[u8], names: &Names, now: Timestamp) -> Result<Principal, Failure> {
    let answer = match serde_json::from_slice(body) {
        Ok(Value::Object(answer)) => answer,
        Ok(Value::Null) => return Err(Failure::invalid("the app knows no such session")),
        Ok(Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {
            return Err(Failure::unchecked("expected a JSON object or null"));
        }
        Err(error) => return Err(Failure::unchecked(format!("expected JSON: {error}"))),
    };
    // RFC 7662, section 2.2: how standard introspection says no.
    if answer.get("active") == Some(&Value::Bool(false)) {
        return Err(Failure::invalid("the app says that the session is not active"));
    }
    let Parts { claims, nested, expires } = Parts::of(answer)?;
    if expires.is_some_and(|expires| expires <= now) {
        return Err(Failure::invalid("the session has expired"));
    }
    let ids = if nested { [&*names.user, "id", "userId"] } else { [&*names.user, "userId", "id"] };
    let user = ids.into_iter().find_map(|name| text(claims.get(name)));
    let user = user.ok_or_else(|| Failure::invalid("the answer names no user"))?;
    let tenant = if names.tenant == names.user { Some(user.clone()) } else { text(claims.get(&names.tenant)) };
    let Some(tenant) = tenant else {
        // The session is good and the app's answer is not what the catalog says, which only its operator can mend.
        tracing::warn!(field = names.tenant, "the app's session endpoint names a user without the field of the tenant");
        return Err(Failure::invalid(format!("the answer lacks {:?}", names.tenant)));
    };
    let tenant = TenantId::new(tenant).map_err(|error| Failure::invalid(error.detail()))?;
    let roles =
        [&*names.roles, "roles", "role"].into_iter().find_map(|name| roles(claims.get(name))).unwrap_or_default();
    let mut claims = claims;
    claims.insert(names.user.clone(), json!(user));
    claims.insert(names.tenant.clone(), json!(tenant));
    claims.insert("id".to_owned(), json!(user));
    claims.insert("tenant".to_owned(), json!(tenant));
    claims.insert("roles".to_owned(), json!(roles));
    Ok(Principal {
        tenant,
        user: Some(user.into()),
        roles: roles.into(),
        claims: Arc::new(Value::Object(claims)),
        expires,
        recheck: None,
    })
}

/// An answer with its levels laid into one.
struct Parts {
    claims: Map<String, Value>,
    /// Whether there is an object of the user, whose `id` then is the user's for certain.
    nested: bool,
    expires: Option<Timestamp>,
}

impl Parts {
    fn of(mut top: Map<String, Value>) -> Result<Self, Failure> {
        let mut session = match top.remove("session") {
            Some(Value::Object(session)) => session,
            // Text here is most likely the token.
            Some(_) | None => Map::new(),
        };
        let user = match top.remove("user") {
            Some(Value::Object(user)) => Some(user),
            Some(Value::Null) => return Err(Failure::invalid("the answer names no user")),
            Some(other) => {
                top.insert("user".to_owned(), other);
                None
            }
            None => None,
        };
        let mut expires = None;
        for part in [Some(&session), Some(&top), user.as_ref()].into_iter().flatten() {
            for name in ["expiresAt", "exp"] {
                let Some(value) = part.get(name).filter(|value| !value.is_null()) else { continue };
                let end = time(value)
                    .ok_or_else(|| Failure::invalid(format!("{name}: expected an RFC 3339 time or a Unix time")))?;
                expires = Some(expires.map_or(end, |earliest: Timestamp| earliest.min(end)));
            }
        }
        // What a revocation goes by: which session it is, and since when. Only the session itself can say so.
        let id = session.remove("id");
        let issued = session.get("createdAt").or_else(|| session.get("iat")).or_else(|| top.get("iat")).and_then(time);
        if user.is_some() {
            top.remove("id");
        }
        let nested = user.is_some();
        let mut claims = session;
        claims.extend(top);
        claims.extend(user.into_iter().flatten());
        claims.remove("token");
        if let Some(id) = text(id.as_ref()) {
            claims.insert("sid".to_owned(), json!(id));
        }
        match issued {
            Some(issued) => claims.insert("iat".to_owned(), json!(issued.as_micros() as f64 / 1e6)),
            None => claims.remove("iat"),
        };
        Ok(Self { claims, nested, expires })
    }
}

/// A list of roles, or one text of them with commas between, as Better Auth keeps several in `role`.
fn roles(field: Option<&Value>) -> Option<Vec<String>> {
    match field? {
        Value::Array(roles) => Some(roles.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
        Value::String(roles) => {
            Some(roles.split(',').map(str::trim).filter(|role| !role.is_empty()).map(str::to_owned).collect())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => None,
    }
}

/// A moment as JavaScript writes one (`toISOString`), or as a Unix time in seconds or milliseconds.
fn time(value: &Value) -> Option<Timestamp> {
    match value {
        // The last days of 9999, which are beyond what the time zone library counts, are written for never.
        Value::String(text) if text.starts_with("9999-12-3") => Some(Timestamp::from_micros(i64::MAX)),
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => {
            let number = Number::as_f64(number)?;
            let micros = if number < FIRST_MILLIS { number * 1e6 } else { number * 1e3 };
            Some(Timestamp::from_micros(micros as i64))
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A JSON value in which the names that count turn up at all levels and with values of all kinds.
    fn any(choices: &mut &[u8], depth: usize) -> Value {
        const NAMES: [&str; 12] =
            ["user", "session", "sub", "id", "userId", "orgId", "roles", "role", "exp", "expiresAt", "iat", "active"];
        let choice = choices.split_off_first().copied().unwrap_or_default();
        match choice % 10 {
            0..=3 if depth < 3 => {
                let names = (0..choice / 10 % 6).map(|_| choices.split_off_first().copied().unwrap_or_default());
                let names: Vec<&str> = names.map(|name| NAMES[usize::from(name) % NAMES.len()]).collect();
                names.into_iter().map(|name| (name.to_owned(), any(choices, depth + 1))).collect::<Map<_, _>>().into()
            }
            4 if depth < 3 => (0..choice / 10 % 4).map(|_| any(choices, depth + 1)).collect::<Vec<_>>().into(),
            5 => json!(-1.0e300 * f64::from(choice)),
            6 => json!(u64::MAX / u64::from(choice + 1)),
            7 => json!(["2999-01-31T08:00:00Z", "-009999-01-01T00:00:00Z", "a,b", "", "$app"][usize::from(choice) % 5]),
            8 => Value::Null,
            9 => json!(choice > 128),
            _ => json!("acme"),
        }
    }

    #[test]
    fn any_answer_names_a_whole_user_or_nobody() {
        let names = Names { user: "sub".to_owned(), tenant: "orgId".to_owned(), roles: "roles".to_owned() };
        let now = Timestamp::from_millis(1_700_000_000_000);
        bolero::check!().with_test_time(Duration::from_millis(300)).with_max_len(60).for_each(|choices: &[u8]| {
            let answer = any(&mut &*choices, 0);
            for body in [answer.to_string().as_bytes(), choices] {
                let Ok(principal) = read(body, &names, now) else { continue };
                let user = principal.user.as_deref().expect("a session has a user");
                assert!(!user.is_empty() && principal.expires.is_none_or(|expires| expires > now));
                assert_eq!(principal.claims["sub"], user);
                assert_eq!(principal.claims["orgId"], principal.tenant.as_str());
                assert_eq!(principal.claims["roles"], json!(principal.roles));
                assert!(TenantId::new(principal.tenant.as_str()).is_ok(), "no tenant of the system's own");
            }
        });
    }
}
