//! One error for the whole of Tidewire: a stable code, what it means for the caller, and a sentence.

use std::fmt;
use std::time::Duration;

/// The result of every fallible call of the core contracts.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can do about an error. The HTTP server maps it to a status, the gateway to an ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong and will stay wrong (400).
    Invalid,
    /// No credential, or one that is not valid (401).
    Unauthenticated,
    /// The credential is valid and does not allow this (403).
    Forbidden,
    /// It does not exist, or it belongs to another tenant (404).
    NotFound,
    /// It contradicts what is stored: a version, an idempotency key, a lost lease (409).
    Conflict,
    /// A named size limit was passed (413).
    TooLarge,
    /// A rate or capacity limit was reached; trying again later can succeed (429).
    Limited,
    /// This process cannot serve it now; trying again can succeed (503).
    Unavailable,
    /// A fault of ours (500). The detail is safe to show, the source is only logged.
    Internal,
}

/// One wrong field of a request: where, and what was expected and found.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct FieldError {
    /// Dotted path from the root of the request, such as `data.amount`.
    pub path: String,
    /// What was expected and what was found.
    pub message: String,
}

/// An error with a stable code such as `event.unknown_type`. Codes never change meaning; details may be reworded.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: Kind,
    code: &'static str,
    detail: String,
    fields: Vec<FieldError>,
    retry_after: Option<Duration>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error of `kind` with a stable `code` and a sentence for people.
    pub fn new(kind: Kind, code: &'static str, detail: impl Into<String>) -> Self {
        Self(Box::new(Inner { kind, code, detail: detail.into(), fields: Vec::new(), retry_after: None, source: None }))
    }

    /// The request is wrong (400).
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, code, detail)
    }

    /// It does not exist for this tenant (404).
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, code, detail)
    }

    /// It contradicts what is stored (409).
    pub fn conflict(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, code, detail)
    }

    /// A fault of ours (500); `source` is kept for the log and not shown to callers.
    pub fn internal(detail: impl Into<String>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::new(Kind::Internal, "internal", detail).with_source(source)
    }

    /// The process is stopping or a part of it is gone (503).
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, "unavailable", detail)
    }

    /// Adds the fields that were wrong; the detail becomes the first of them when it was empty.
    #[must_use]
    pub fn with_fields(mut self, fields: Vec<FieldError>) -> Self {
        if self.0.detail.is_empty()
            && let Some(first) = fields.first()
        {
            self.0.detail = format!("{}: {}", first.path, first.message);
        }
        self.0.fields = fields;
        self
    }

    /// Says how long to wait before trying again.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Keeps the cause for the log.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What a caller can do about it.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.0.code
    }

    /// The sentence for people.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The fields that were wrong, if the error is about fields.
    pub fn fields(&self) -> &[FieldError] {
        &self.0.fields
    }

    /// How long to wait before trying again, when it is known.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// Whether the same call can succeed later without a change.
    pub fn is_retryable(&self) -> bool {
        matches!(self.0.kind, Kind::Limited | Kind::Unavailable | Kind::Internal)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.detail, self.0.code)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}
