//! Errors as `application/problem+json` (RFC 9457) with a stable `code`.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tidewire_core::{Error, FieldError, Kind};

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

/// What an answer says about an error, whether the error is all of it or one entry of a batch.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Content {
    code: &'static str,
    detail: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    /// In milliseconds, as on sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u64>,
}

/// What a caller is told of `error`. What is no fault of the caller goes to the log here, with its source.
pub(crate) fn content(error: &Error) -> Content {
    match error.kind() {
        Kind::Internal => tracing::error!(%error, "a request failed"),
        // What failed says so where it failed; this may be many callers, or a server that is full or stopping.
        Kind::Unavailable => tracing::debug!(%error, "a request was not served"),
        _ => {}
    }
    Content {
        code: error.code(),
        detail: error.detail().to_owned(),
        errors: error.fields().to_vec(),
        retry_after: error.retry_after().map(|after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    }
}

/// The members of RFC 9457, then ours.
#[derive(Serialize)]
struct Body {
    #[serde(rename = "type")]
    kind: &'static str,
    title: Option<&'static str>,
    status: u16,
    #[serde(flatten)]
    content: Content,
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self { error, status: None }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = Body {
            kind: "about:blank",
            title: status.canonical_reason(),
            status: status.as_u16(),
            content: content(&self.error),
        };
        let json = HeaderValue::from_static("application/problem+json");
        let mut response = (status, Json(body)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if let Some(after) = self.error.retry_after() {
            let seconds = after.as_secs_f64().ceil() as u64;
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds.max(1)));
        }
        response
    }
}
