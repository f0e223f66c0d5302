//! From a raw request to typed values: the caller, the body, the query.

use aws_lc_rs::digest::{Context, SHA256};
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http::Request;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tidewire_core::commit::Idempotency;
use tidewire_core::{Error, Kind, Result, TenantId};

use super::{Api, Shared};
use crate::auth::Caller;
use crate::problem::Problem;

impl FromRequestParts<Shared> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Shared) -> Result<Self, Problem> {
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        Ok(api.keys.verify(authorization)?)
    }
}

/// The query string as `T`. Code `request.invalid`.
pub(super) struct Query<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _api: &Shared) -> Result<Self, Problem> {
        axum::extract::Query::try_from_uri(&parts.uri).map(|query| Self(query.0)).map_err(|error| {
            let error: &dyn std::error::Error = &error;
            let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
            Error::invalid("request.invalid", format!("query: {detail}")).into()
        })
    }
}

/// A request of which the caller and the headers are known and the body is read within the limit.
pub(super) struct Call {
    pub(super) caller: Caller,
    pub(super) body: Bytes,
    headers: HeaderMap,
    path: String,
}

impl Call {
    /// Verifies the caller, then reads the body. Codes of [`crate::auth::ApiKeys::verify`], and `body.too_large`.
    pub(super) async fn read(api: &Api, request: Request<Body>) -> Result<Self> {
        let (parts, body) = request.into_parts();
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let caller = api.keys.verify(authorization)?;
        let limit = api.max_body_bytes;
        let too_large =
            || Error::new(Kind::TooLarge, "body.too_large", format!("the body may have at most {limit} bytes"));
        let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > limit as u64) {
            return Err(too_large());
        }
        let body = axum::body::to_bytes(body, limit).await.map_err(|error| {
            let error: &dyn std::error::Error = &error;
            match error.source() {
                Some(cause) if cause.to_string().contains("length limit") => too_large(),
                _ => Error::invalid("request.invalid", format!("the body could not be read: {error}")),
            }
        })?;
        Ok(Self { caller, body, headers: parts.headers, path: parts.uri.path().to_owned() })
    }

    /// The body as `T`. Codes `json.invalid`, `request.invalid`.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T> {
        json(&self.body)
    }

    /// The body as one `T` or an array of them.
    pub(super) fn one_or_many<T: DeserializeOwned>(&self) -> Result<Vec<T>> {
        match self.body.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(b'[') => self.json(),
            _ => self.json().map(|one| vec![one]),
        }
    }

    /// The `Idempotency-Key`, with a digest of what was asked. Code `idempotency.invalid_key`.
    pub(super) fn idempotency(&self) -> Result<Option<Idempotency>> {
        let Some(key) = self.headers.get("idempotency-key") else { return Ok(None) };
        let key = key
            .to_str()
            .map_err(|_| Error::invalid("idempotency.invalid_key", "Idempotency-Key: expected printable ASCII"))?;
        let mut digest = Context::new(&SHA256);
        digest.update(self.path.as_bytes());
        digest.update(&[0]);
        digest.update(&self.body);
        Idempotency::new(key.to_owned(), digest.finish().as_ref().to_vec()).map(Some)
    }
}

/// JSON as `T`: text that is no JSON is `json.invalid`, JSON of another shape is `request.invalid`.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T> {
    serde_json::from_slice(body).map_err(|error| {
        // A wrong type can be met before the end of a text that is no JSON at all.
        let is_json = || serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        if error.is_data() && is_json() {
            Error::invalid("request.invalid", error.to_string())
        } else {
            Error::invalid("json.invalid", format!("the body is not valid JSON: {error}"))
        }
    })
}

/// How many items a page may have: what was asked for, within 1 to `most`. Code `request.invalid`.
pub(super) fn page_limit(asked: Option<u32>, default: u32, most: u32) -> Result<u32> {
    match asked {
        None => Ok(default),
        Some(limit) if (1..=most).contains(&limit) => Ok(limit),
        Some(limit) => Err(Error::invalid("request.invalid", format!("limit: expected 1 to {most}, got {limit}"))),
    }
}

/// A tenant in a query string.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tenant {
    pub(super) tenant: Option<TenantId>,
}
