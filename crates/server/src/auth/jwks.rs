//! Public keys from a login's JWKS endpoint (RFC 7517): fetched, cached, and fetched again when a key is not known.
//!
//! Invariants:
//!
//! - Verifying a token that a known key signed asks nobody. One exchange runs at a time.
//! - After an exchange that worked, the next one begins `refresh` later at the earliest, whatever clients send.
//! - A set that was fetched replaces the one before, so a key that the login withdrew is gone with the next exchange, and at the
//!   latest some time after [`STALE`]. Until an exchange works, the keys that are there go on.
//! - A key is used only with an algorithm that its own `kty`, `crv`, `alg`, `use` and `key_ops` allow and that the catalog lists.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::StatusCode;
use jsonwebtoken::{Algorithm, DecodingKey};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::Value;
use tidewire_core::Result;

use crate::fetch::Target;

/// The most bytes of a key set.
const MAX_BYTES: usize = 256 * 1024;

/// The most keys of a set that are looked at.
const MAX_KEYS: usize = 100;

/// How long an exchange may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// After how long a set is fetched again even though every key is known.
const STALE: Duration = Duration::from_secs(10 * 60);

/// How soon an exchange that failed is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// The smallest RSA modulus in bytes (RFC 7518, section 3.3).
const MIN_RSA_BYTES: usize = 256;

/// The keys of one endpoint. Cheap to clone.
#[derive(Clone)]
pub(super) struct Jwks(Arc<Shared>);

struct Shared {
    target: Target,
    refresh: Duration,
    state: RwLock<State>,
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    keys: Vec<Key>,
    /// When a set was fetched last.
    fetched: Option<Instant>,
    /// When the last exchange ended that failed, if none has worked since.
    failed: Option<Instant>,
}

struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

/// Why there is no key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// The login has no such key.
    Unknown,
    /// The login could not be asked.
    Unchecked,
}

impl Jwks {
    /// The keys at `url`. Nothing is fetched yet. Code `config.invalid`.
    pub(super) fn new(url: &str, refresh: Duration) -> Result<Self> {
        Ok(Self(Arc::new(Shared {
            target: Target::new("auth.jwt.jwks", url)?,
            refresh,
            state: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
        })))
    }

    /// The keys with which a token of this `kid` and algorithm may be signed; without a `kid`, all that allow the algorithm.
    pub(super) async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Vec<DecodingKey>, Missing> {
        let found = self.known(kid, algorithm);
        if !found.is_empty() {
            if self.0.state.read().fetched.is_some_and(|fetched| fetched.elapsed() > STALE.max(self.0.refresh)) {
                let jwks = self.clone();
                // Ends with its exchange, after 5 s at the latest.
                tokio::spawn(async move { jwks.refresh().await });
            }
            return Ok(found);
        }
        let is_fresh = self.refresh().await;
        let found = self.known(kid, algorithm);
        match found.is_empty() {
            false => Ok(found),
            true if is_fresh => Err(Missing::Unknown),
            true => Err(Missing::Unchecked),
        }
    }

    fn known(&self, kid: Option<&str>, algorithm: Algorithm) -> Vec<DecodingKey> {
        let state = self.0.state.read();
        let fits =
            |key: &&Key| kid.is_none_or(|kid| key.kid.as_deref() == Some(kid)) && key.algorithms.contains(&algorithm);
        state.keys.iter().filter(fits).map(|key| key.key.clone()).collect()
    }

    /// Fetches the set, unless that was done lately. Answers whether what is known now is what the login says.
    pub(super) async fn refresh(&self) -> bool {
        let _fetching = self.0.fetching.lock().await;
        {
            let state = self.0.state.read();
            if state.failed.is_some_and(|failed| failed.elapsed() < AGAIN) {
                return false;
            }
            if state.failed.is_none() && state.fetched.is_some_and(|fetched| fetched.elapsed() < self.0.refresh) {
                return true;
            }
        }
        let exchange = tokio::time::timeout(DEADLINE, self.fetch()).await;
        let answer = exchange.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")));
        let mut state = self.0.state.write();
        match answer {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "the key set was fetched");
                *state = State { keys, fetched: Some(Instant::now()), failed: None };
                true
            }
            Err(reason) => {
                if state.failed.replace(Instant::now()).is_none() {
                    tracing::warn!(reason, "auth.jwt.jwks: the key set could not be fetched");
                }
                false
            }
        }
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let (status, body) = self.0.target.get(None, MAX_BYTES).await?;
        if status != StatusCode::OK {
            return Err(format!("expected status 200, got {status}"));
        }
        keys(&body)
    }
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// One key of a set (RFC 7517, section 4; RFC 7518, section 6; RFC 8037, section 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The keys of a set that can verify a signature. Others are passed over, as RFC 7517, section 5, asks.
fn keys(body: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set =
        serde_json::from_slice(body).map_err(|error| format!("expected a JSON object with keys: {error}"))?;
    let read = |value: Value| serde_json::from_value(value).ok().and_then(key);
    Ok(set.keys.into_iter().take(MAX_KEYS).filter_map(read).collect())
}

fn key(jwk: Jwk) -> Option<Key> {
    let for_signatures = jwk.usage.as_deref().is_none_or(|usage| usage == "sig");
    let for_verifying = jwk.key_ops.as_ref().is_none_or(|ops| ops.iter().any(|op| op == "verify"));
    if !for_signatures || !for_verifying {
        return None;
    }
    let (mut algorithms, key) = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
        ("RSA", _) => {
            let (n, e) = (jwk.n?, jwk.e?);
            if URL_SAFE_NO_PAD.decode(&n).ok()?.len() < MIN_RSA_BYTES {
                return None;
            }
            let all = [
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ];
            (all.to_vec(), DecodingKey::from_rsa_components(&n, &e).ok()?)
        }
        ("EC", Some("P-256")) => (vec![Algorithm::ES256], DecodingKey::from_ec_components(&jwk.x?, &jwk.y?).ok()?),
        ("EC", Some("P-384")) => (vec![Algorithm::ES384], DecodingKey::from_ec_components(&jwk.x?, &jwk.y?).ok()?),
        ("OKP", Some("Ed25519")) => (vec![Algorithm::EdDSA], DecodingKey::from_ed_components(&jwk.x?).ok()?),
        // `oct` above all: a secret has no business in a public set.
        _ => return None,
    };
    if let Some(alg) = &jwk.alg {
        let only: Algorithm = alg.parse().ok()?;
        algorithms.retain(|algorithm| *algorithm == only);
    }
    (!algorithms.is_empty()).then_some(Key { kid: jwk.kid, algorithms, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: &str = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4";
    const Y: &str = "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM";

    fn algorithms(jwk: &Value) -> Vec<Algorithm> {
        let set = serde_json::json!({ "keys": [jwk] });
        keys(set.to_string().as_bytes()).expect("a set").into_iter().flat_map(|key| key.algorithms).collect()
    }

    #[test]
    fn a_key_is_good_only_for_what_it_says_it_is() {
        let ec = |more: Value| {
            let mut key = serde_json::json!({ "kty": "EC", "crv": "P-256", "kid": "1", "x": X, "y": Y });
            key.as_object_mut().expect("an object").extend(more.as_object().expect("fields").clone());
            key
        };
        let json = |text: &str| serde_json::from_str::<Value>(text).expect("json");
        assert_eq!(algorithms(&ec(json("{}"))), [Algorithm::ES256]);
        assert_eq!(algorithms(&ec(json(r#"{"use":"sig","alg":"ES256","key_ops":["verify"]}"#))), [Algorithm::ES256]);
        for other in [
            r#"{"use":"enc"}"#,
            r#"{"alg":"RS256"}"#,
            r#"{"alg":"HS256"}"#,
            r#"{"alg":"none"}"#,
            r#"{"key_ops":["encrypt"]}"#,
            r#"{"crv":"secp256k1"}"#,
            r#"{"kty":"oct","k":"c2VjcmV0"}"#,
            r#"{"x":null}"#,
        ] {
            assert_eq!(algorithms(&ec(json(other))), [], "{other}");
        }
        let short = URL_SAFE_NO_PAD.encode([0xff; 128]);
        assert_eq!(algorithms(&serde_json::json!({ "kty": "RSA", "n": short, "e": "AQAB" })), []);
        let long = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let rsa = serde_json::json!({ "kty": "RSA", "n": long, "e": "AQAB", "alg": "PS256" });
        assert_eq!(algorithms(&rsa), [Algorithm::PS256]);
    }

    #[test]
    fn any_set_gives_keys_only_for_public_algorithms() {
        let long = URL_SAFE_NO_PAD.encode([0xff; 256]);
        let fields: [(&str, Vec<String>); 9] = [
            ("kty", ["RSA", "EC", "OKP", "oct"].map(str::to_owned).to_vec()),
            ("crv", ["P-256", "P-384", "Ed25519", "secp256k1"].map(str::to_owned).to_vec()),
            ("alg", ["RS256", "PS512", "ES256", "ES384", "EdDSA", "HS256", "none"].map(str::to_owned).to_vec()),
            ("use", ["sig", "enc"].map(str::to_owned).to_vec()),
            ("kid", ["", "1"].map(str::to_owned).to_vec()),
            ("n", vec![long, "AQAB".to_owned(), "%".to_owned()]),
            ("e", ["AQAB", "", "="].map(str::to_owned).to_vec()),
            ("x", vec![X.to_owned(), "AQAB".to_owned(), format!("{X}{X}")]),
            ("y", vec![Y.to_owned(), String::new()]),
        ];
        bolero::check!().with_test_time(Duration::from_millis(300)).with_max_len(120).for_each(|choices: &[u8]| {
            // A key for every nine choices; each says one field, which may be missing or of another kind.
            let mut set: Vec<Value> = Vec::new();
            for choices in choices.chunks(fields.len()) {
                let mut key = serde_json::Map::new();
                for ((name, values), choice) in fields.iter().zip(choices) {
                    match values.get(usize::from(*choice) % (values.len() + 2)) {
                        Some(value) => key.insert((*name).to_owned(), value.as_str().into()),
                        None if choice % 16 == 0 => key.insert((*name).to_owned(), (*choice).into()),
                        None => None,
                    };
                }
                set.push(key.into());
            }
            let all = set.len();
            let found = keys(serde_json::json!({ "keys": set }).to_string().as_bytes()).expect("a set");
            assert!(found.len() <= all.min(MAX_KEYS));
            for key in found {
                assert!(!key.algorithms.is_empty());
                let secret = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
                assert!(!key.algorithms.iter().any(|algorithm| secret.contains(algorithm)));
            }
            // And what is no set at all.
            drop(keys(choices));
        });
    }

    #[test]
    fn one_bad_key_does_not_spoil_the_set() {
        let set = format!(r#"{{"keys":[7,{{"kty":"EC"}},{{"kty":"EC","crv":"P-256","x":"{X}","y":"{Y}"}}]}}"#);
        assert_eq!(keys(set.as_bytes()).expect("a set").len(), 1);
        assert!(keys(b"[]").is_err());
    }
}
