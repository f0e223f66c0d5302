//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tidewire_core::{Error, Kind};

/// An error as an HTTP answer.
pub struct Problem {
    error: Error,
    /// Instead of the status that the error's kind stands for.
    status: Option<StatusCode>,
}

impl Problem {
    /// An error with a status of its own.
    pub(crate) fn with_status(error: Error, status: StatusCode) -> Self {
        Self { error, status: Some(status) }
    }

    fn status(&self) -> StatusCode {
        if let Some(status) = self.status {
            return status;
        }
        match self.error.kind() {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Unauthenticated => StatusCode::UNAUTHORIZED,
            Kind::Forbidden => StatusCode::FORBIDDEN,
            Kind::NotFound => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::Limited => StatusCode::TOO_MANY_REQUESTS,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { error, status: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let error = &self.error;
        if status.is_server_error() {
            tracing::error!(%error, "a request failed");
        }
        let mut body = json!({
            "type": "about:blank",
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "code": error.code(),
            "detail": error.detail(),
        });
        if !error.fields().is_empty() {
            body["errors"] = json!(error.fields());
        }
        let json = HeaderValue::from_static("application/problem+json");
        let mut response = (status, [(header::CONTENT_TYPE, json)], body.to_string()).into_response();
        if let Some(after) = error.retry_after() {
            let seconds = after.as_secs_f64().ceil() as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
