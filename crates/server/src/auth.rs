//! Who a caller is: API keys for programs, tokens for end users.

mod jwks;

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde_json::{Map, Value, json};
use tidewire_core::catalog::{Catalog, Jwt};
use tidewire_core::principal::Principal;
use tidewire_core::{Error, Kind, Result, TenantId, Timestamp};

use self::jwks::{Jwks, Missing};
use crate::config::{Config, Scope};

/// A verified API key.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The tenant that the key is bound to; absent for all tenants.
    pub tenant: Option<TenantId>,
    scopes: Arc<[Scope]>,
}

impl Caller {
    /// Refuses callers without `scope`. Code `auth.forbidden`.
    pub fn require(&self, scope: Scope) -> Result<()> {
        if self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin) {
            return Ok(());
        }
        let word = format!("{scope:?}").to_lowercase();
        Err(Error::new(Kind::Forbidden, "auth.forbidden", format!("this API key lacks the scope {word:?}")))
    }

    /// Refuses callers that are bound to one tenant. Code `auth.forbidden`.
    pub fn require_all_tenants(&self) -> Result<()> {
        match &self.tenant {
            None => Ok(()),
            Some(_) => Err(Error::new(Kind::Forbidden, "auth.forbidden", "this needs an API key for all tenants")),
        }
    }

    /// The tenant to act for: the key's own, or the one that is named. Codes `tenant.required`, `tenant.unknown`.
    pub fn tenant(&self, named: Option<&TenantId>, known: Option<&[TenantId]>) -> Result<TenantId> {
        let tenant = match (&self.tenant, named) {
            (Some(own), None) => own,
            (Some(own), Some(named)) if own == named => own,
            (None, Some(named)) => named,
            (Some(_), Some(named)) => return Err(unknown_tenant(named)),
            (None, None) => {
                let detail = "tenant: this API key serves all tenants, so the request must name one";
                return Err(Error::invalid("tenant.required", detail));
            }
        };
        if known.is_some_and(|known| !known.contains(tenant)) {
            return Err(unknown_tenant(tenant));
        }
        Ok(tenant.clone())
    }

    /// The tenant to look at: as [`Caller::tenant`], but nothing, which means all of them, when a key for all tenants names none.
    /// Code `tenant.unknown`.
    pub fn tenant_or_all(&self, named: Option<&TenantId>, known: Option<&[TenantId]>) -> Result<Option<TenantId>> {
        if self.tenant.is_none() && named.is_none() {
            return Ok(None);
        }
        self.tenant(named, known).map(Some)
    }
}

fn unknown_tenant(tenant: &TenantId) -> Error {
    Error::not_found(
        "tenant.unknown",
        format!("there is no tenant {tenant:?} for this API key", tenant = tenant.as_str()),
    )
}

/// The configured API keys, as digests.
pub struct ApiKeys(Vec<([u8; 32], Caller)>);

impl ApiKeys {
    /// The keys of a configuration.
    pub fn new(config: &Config) -> Result<Self> {
        let mut keys = Vec::new();
        if let Some(key) = &config.auth.admin_key {
            keys.push((sha256(key), Caller { tenant: None, scopes: [Scope::Admin].into() }));
        }
        for key in &config.keys {
            let tenant = if key.tenant == "*" { None } else { Some(TenantId::new(&key.tenant)?) };
            keys.push((sha256(&key.key), Caller { tenant, scopes: key.scopes.clone().into() }));
        }
        Ok(Self(keys))
    }

    /// Whether there is no key at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The caller with this `Authorization` header. Codes `auth.required`, `auth.invalid`.
    pub fn verify(&self, authorization: Option<&str>) -> Result<Caller> {
        let refused = |code, detail: &str| Error::new(Kind::Unauthenticated, code, detail);
        let header = authorization
            .ok_or_else(|| refused("auth.required", "an API key is required: `Authorization: Bearer KEY`"))?;
        let key = header
            .split_once(' ')
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim())
            .ok_or_else(|| refused("auth.invalid", "expected `Authorization: Bearer KEY`"))?;
        let presented = sha256(key);
        // Every key is compared, each in constant time, so that timing tells nothing about any of them.
        let mut found = None;
        for (known, caller) in &self.0 {
            if verify_slices_are_equal(known, &presented).is_ok() {
                found = Some(caller);
            }
        }
        found.cloned().ok_or_else(|| refused("auth.invalid", "this API key is not known"))
    }
}

fn sha256(text: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, text.as_bytes()).as_ref());
    bytes
}

/// From when until when a token is good.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Its `iat`: revocations go by it.
    pub from: Timestamp,
    /// Its `exp`, cut to a whole second.
    pub until: Timestamp,
}

/// Verifies and mints the tokens of end users (JWT, RFC 7519).
pub struct Tokens {
    keys: Vec<(Algorithm, DecodingKey)>,
    /// Algorithms whose keys come from the login.
    fetched: Vec<Algorithm>,
    jwks: Option<Jwks>,
    signing: Option<EncodingKey>,
    validation: Validation,
    user: String,
    tenant: String,
    roles: String,
}

impl Tokens {
    /// A verifier for the catalog's claims with the configured keys. Nothing when the catalog uses no JWT.
    ///
    /// Code `config.invalid` when a key is missing or unreadable; the detail says which.
    pub fn new(catalog: &Catalog, config: &Config) -> Result<Option<Self>> {
        let plain;
        let jwt = match &catalog.auth.jwt {
            Some(jwt) => jwt,
            // A secret is configured for tokens, so they are taken, with the claims that a catalog has by default.
            None if config.auth.jwt.secret.is_some() && catalog.auth.introspect.is_none() => {
                plain = default_jwt(catalog);
                &plain
            }
            None => return Ok(None),
        };
        let wrong = |what: String| Error::new(Kind::Invalid, "config.invalid", what);
        let pem = match &config.auth.jwt.public_key_file {
            Some(path) => Some(
                std::fs::read(path)
                    .map_err(|error| wrong(format!("auth.jwt.publicKeyFile: {}: {error}", path.display())))?,
            ),
            None => None,
        };
        let jwks = match &config.auth.jwt.jwks {
            Some(url) => Some(Jwks::new(url, config.auth.jwt.jwks_refresh)?),
            None => None,
        };
        let (mut keys, mut fetched) = (Vec::new(), Vec::new());
        for name in &jwt.algorithms {
            let algorithm: Algorithm =
                name.parse().map_err(|_| wrong(format!("auth.jwt.algorithms: {name:?} is not supported")))?;
            let key = match (algorithm, &config.auth.jwt.secret, &pem) {
                (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512, Some(secret), _) => {
                    DecodingKey::from_secret(secret.as_bytes())
                }
                (Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512, None, _) => {
                    let detail = "auth.jwt.secret is not set; give TIDEWIRE_AUTH__JWT__SECRET, at least 32 bytes";
                    return Err(wrong(detail.to_owned()));
                }
                _ if jwks.is_some() => {
                    fetched.push(algorithm);
                    continue;
                }
                (_, _, Some(pem)) => public_key(algorithm, pem)
                    .map_err(|error| wrong(format!("auth.jwt.publicKeyFile: not a PEM key for {name}: {error}")))?,
                (_, _, None) => {
                    let detail =
                        format!("neither auth.jwt.jwks nor auth.jwt.publicKeyFile is set, and {name} needs one");
                    return Err(wrong(detail));
                }
            };
            keys.push((algorithm, key));
        }
        let validation = validation(jwt);
        let signing = config.auth.jwt.secret.as_ref().filter(|_| jwt.algorithms.iter().any(|name| name == "HS256"));
        Ok(Some(Self {
            keys,
            fetched,
            jwks,
            signing: signing.map(|secret| EncodingKey::from_secret(secret.as_bytes())),
            validation,
            user: jwt.user_claim.clone(),
            tenant: jwt.tenant_claim.clone(),
            roles: jwt.roles_claim.clone(),
        }))
    }

    /// Fetches the login's keys, where there are such, so that the first client need not wait. What fails is tried again with it.
    pub async fn warm_up(&self) {
        if let Some(jwks) = &self.jwks {
            jwks.refresh().await;
        }
    }

    /// The user that a token names.
    pub async fn verify(&self, token: &str) -> Result<Principal, Refused> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| Refused::Invalid(error.to_string()))?;
        if has_critical(token) {
            // RFC 7515, section 4.1.11: what is critical and not understood must not be ignored, and nothing of it is understood here.
            return Err(Refused::Invalid("the header has `crit`".to_owned()));
        }
        let keys = match (&self.jwks, self.keys.iter().find(|(algorithm, _)| *algorithm == header.alg)) {
            (_, Some((_, key))) => vec![key.clone()],
            (Some(jwks), None) if self.fetched.contains(&header.alg) => {
                jwks.find(header.kid.as_deref(), header.alg).await.map_err(|missing| match missing {
                    Missing::Unknown => Refused::Invalid("no key of the login has this kid and algorithm".to_owned()),
                    Missing::Unchecked => Refused::Unchecked,
                })?
            }
            (_, None) => return Err(Refused::Invalid(format!("algorithm {:?} is not accepted", header.alg))),
        };
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut outcome = Err("there is no key".to_owned());
        for key in &keys {
            outcome = decode::<Map<String, Value>>(token, key, &validation).map_err(|error| error.to_string());
            if outcome.is_ok() {
                break;
            }
        }
        self.principal(outcome.map_err(Refused::Invalid)?.claims).map_err(Refused::Invalid)
    }

    /// The user that verified claims name.
    fn principal(&self, claims: Map<String, Value>) -> Result<Principal, String> {
        let tenant = text(claims.get(&self.tenant)).ok_or_else(|| format!("the claim {:?} is missing", self.tenant))?;
        let tenant = TenantId::new(tenant).map_err(|error| error.detail().to_owned())?;
        let user = text(claims.get(&self.user)).ok_or_else(|| format!("the claim {:?} is missing", self.user))?;
        let roles: Vec<String> = match claims.get(&self.roles) {
            Some(Value::Array(roles)) => roles.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            Some(Value::String(role)) => vec![role.clone()],
            _ => Vec::new(),
        };
        // RFC 7519, section 2: a NumericDate may have a fraction. A socket lives as long as its token would be taken again.
        let leeway = Duration::from_secs(self.validation.leeway);
        let expires = claims
            .get("exp")
            .and_then(Value::as_f64)
            .map(|seconds| Timestamp::from_micros((seconds * 1e6) as i64) + leeway);
        let mut seen = claims;
        seen.insert("id".to_owned(), json!(user));
        seen.insert("tenant".to_owned(), json!(tenant));
        seen.insert("roles".to_owned(), json!(roles));
        Ok(Principal {
            tenant,
            user: Some(user.into()),
            roles: roles.into(),
            claims: Arc::new(Value::Object(seen)),
            expires,
            recheck: None,
        })
    }

    /// A token for a user, signed with the configured secret. Code `token.no_secret` when there is none.
    pub fn mint(
        &self,
        tenant: &TenantId,
        user: &str,
        roles: &[String],
        claims: Map<String, Value>,
        life: Life,
    ) -> Result<String> {
        let signing = self.signing.as_ref().ok_or_else(|| {
            Error::invalid(
                "token.no_secret",
                "tokens can only be minted where the catalog accepts HS256 and a secret is set",
            )
        })?;
        let mut claims = claims;
        claims.insert(self.user.clone(), json!(user));
        claims.insert(self.tenant.clone(), json!(tenant));
        claims.insert(self.roles.clone(), json!(roles));
        claims.insert("exp".to_owned(), json!(life.until.as_millis() / 1000));
        // With its fraction, so that a token of the same second as a revocation is on the right side of it.
        claims.insert("iat".to_owned(), json!(life.from.as_micros() as f64 / 1e6));
        for (claim, required) in [("iss", &self.validation.iss), ("aud", &self.validation.aud)] {
            if let Some(value) = required.as_ref().and_then(|values| values.iter().next()) {
                claims.insert(claim.to_owned(), json!(value));
            }
        }
        encode(&Header::new(Algorithm::HS256), &claims, signing)
            .map_err(|error| Error::internal("a token could not be signed", error))
    }
}

/// Why a token names no user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The text says what is wrong with the token. It is meant for the log, not for the client.
    Invalid(String),
    /// The login could not be asked for its keys.
    Unchecked,
}

/// Whether the header of a token has `crit`. What cannot be read is said to, because it cannot be said not to.
fn has_critical(token: &str) -> bool {
    use base64::Engine;
    let header = token.split('.').next().unwrap_or_default();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header);
    let header = header.ok().and_then(|header| serde_json::from_slice::<Map<String, Value>>(&header).ok());
    header.is_none_or(|header| header.contains_key("crit"))
}

fn default_jwt(catalog: &Catalog) -> Jwt {
    Jwt {
        algorithms: vec!["HS256".to_owned()],
        issuer: None,
        audience: None,
        leeway: Duration::from_secs(30),
        user_claim: "sub".to_owned(),
        tenant_claim: catalog.app.tenant.to_string(),
        roles_claim: "roles".to_owned(),
        tenants_claim: "tenants".to_owned(),
    }
}

/// What every token must fulfil. A claim that is checked must also be there.
fn validation(jwt: &Jwt) -> Validation {
    let mut validation = Validation::default();
    let mut required = vec!["exp"];
    validation.leeway = jwt.leeway.as_secs();
    validation.validate_nbf = true;
    match &jwt.audience {
        Some(audience) => {
            required.push("aud");
            validation.set_audience(&[audience]);
        }
        None => validation.validate_aud = false,
    }
    if let Some(issuer) = &jwt.issuer {
        required.push("iss");
        validation.set_issuer(&[issuer]);
    }
    validation.set_required_spec_claims(&required);
    validation
}

/// A claim, or a field of a session, as text; numbers are written out, so that numeric ids work.
pub(crate) fn text(claim: Option<&Value>) -> Option<String> {
    match claim? {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(_) | Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn public_key(algorithm: Algorithm, pem: &[u8]) -> jsonwebtoken::errors::Result<DecodingKey> {
    match algorithm {
        Algorithm::ES256 | Algorithm::ES384 => DecodingKey::from_ec_pem(pem),
        Algorithm::EdDSA => DecodingKey::from_ed_pem(pem),
        _ => DecodingKey::from_rsa_pem(pem),
    }
}

/// A new secret of 256 random bits as text.
pub fn random_secret() -> Result<String> {
    use base64::Engine;
    let mut bytes = [0; 32];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| Error::internal("the system gave no randomness", "aws-lc-rs"))?;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "[app]\nname = \"shop\"\ntenant = \"shopId\"\n[auth]\nsources = [\"auth.token\"]\n[auth.jwt]\nleeway = \"30s\"\n";

    fn tokens() -> Tokens {
        let catalog = tidewire_core::catalog::parse(APP).expect("a catalog");
        let mut config = Config::default();
        config.auth.jwt.secret = Some("s".repeat(32));
        Tokens::new(&catalog, &config).expect("keys").expect("tokens")
    }

    fn signed(tokens: &Tokens, exp: Value) -> String {
        let claims = json!({ "sub": "u-1", "shopId": "a", "exp": exp });
        encode(&Header::new(Algorithm::HS256), &claims, tokens.signing.as_ref().expect("a key")).expect("a token")
    }

    #[tokio::test]
    async fn a_user_is_known_as_long_as_the_token_is_taken() {
        let tokens = tokens();
        let now = jsonwebtoken::get_current_timestamp();
        // The second is what `time.time()` of Python gives.
        for (exp, millis) in [(json!(now + 60), 60_000), (json!(now as f64 + 60.5), 60_500), (json!(now - 10), -10_000)]
        {
            let expires = tokens.verify(&signed(&tokens, exp)).await.expect("a user").expires.expect("an end");
            assert_eq!(expires.as_millis(), now as i64 * 1000 + millis + 30_000);
        }
        assert!(tokens.verify(&signed(&tokens, json!(now - 40))).await.is_err());
    }

    #[tokio::test]
    async fn a_token_with_a_critical_header_is_refused() {
        use base64::Engine;
        let (tokens, base64) = (tokens(), base64::engine::general_purpose::URL_SAFE_NO_PAD);
        let claims = base64.encode(json!({ "sub": "u-1", "shopId": "a", "exp": 9_999_999_999_u64 }).to_string());
        let sign = |header: &str| {
            let signed = format!("{}.{claims}", base64.encode(header));
            let key = tokens.signing.as_ref().expect("a key");
            let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), key, Algorithm::HS256).expect("signed");
            format!("{signed}.{signature}")
        };
        assert!(tokens.verify(&sign(r#"{"alg":"HS256"}"#)).await.is_ok());
        let refused = tokens.verify(&sign(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#)).await;
        assert_eq!(refused.expect_err("refused"), Refused::Invalid("the header has `crit`".to_owned()));
    }

    #[test]
    fn only_a_key_for_all_tenants_may_look_at_all_of_them() {
        let [a, b] = ["a", "b"].map(|name| TenantId::new(name).expect("a tenant"));
        let caller = |tenant| Caller { tenant, scopes: [Scope::Read].into() };
        assert_eq!(caller(None).tenant_or_all(None, None).expect("all"), None);
        assert_eq!(caller(None).tenant_or_all(Some(&b), None).expect("one"), Some(b.clone()));
        assert_eq!(caller(Some(a.clone())).tenant_or_all(None, None).expect("its own"), Some(a.clone()));
        let own = caller(Some(a.clone()));
        assert_eq!(own.tenant_or_all(Some(&b), None).expect_err("another").code(), "tenant.unknown");
        assert_eq!(caller(None).tenant_or_all(Some(&b), Some(&[a])).expect_err("none").code(), "tenant.unknown");
    }
}
