//! Asking the app whose session a credential is.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use tidewire_core::Result;

use super::Failure;
use crate::fetch::Target;

/// The largest answer in bytes.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Where the app answers whose session a credential is.
pub(super) struct Endpoint(Target);

impl Endpoint {
    /// Reads the catalog's URL. Code `config.invalid`.
    pub(super) fn new(url: &str) -> Result<Self> {
        Target::new("auth.session.introspect", url).map(Self)
    }

    /// Asks with one header more and answers the body of a 200.
    pub(super) async fn get(&self, name: HeaderName, value: HeaderValue) -> Result<Bytes, Failure> {
        let (status, body) = self.0.get(Some((name, value)), MAX_ANSWER_BYTES).await.map_err(Failure::unchecked)?;
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                Err(Failure::invalid(format!("the app answered {status}")))
            }
            status => Err(Failure::unchecked(format!("expected status 200, 401, 403 or 404, got {status}"))),
        }
    }
}
