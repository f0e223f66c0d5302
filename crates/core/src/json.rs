//! A JSON text that is known to be valid and is passed on without being parsed again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, Result};

/// A valid JSON value kept as its text. Cheap to clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Json(Arc<RawValue>);

impl Json {
    /// Checks that `text` is one JSON value. Code `json.invalid` otherwise.
    pub fn parse(text: String) -> Result<Self> {
        RawValue::from_string(text)
            .map(|raw| Self(raw.into()))
            .map_err(|error| Error::invalid("json.invalid", format!("not valid JSON: {error}")))
    }

    /// The JSON of a serialisable value.
    pub fn from_serialize(value: &impl Serialize) -> Result<Self> {
        serde_json::value::to_raw_value(value)
            .map(|raw| Self(raw.into()))
            .map_err(|error| Error::invalid("json.invalid", format!("cannot be written as JSON: {error}")))
    }

    /// `{}`
    pub fn empty_object() -> Self {
        Self::from(serde_json::Value::Object(serde_json::Map::new()))
    }

    /// `null`
    pub fn null() -> Self {
        Self(RawValue::NULL.to_owned().into())
    }

    /// The text.
    pub fn get(&self) -> &str {
        self.0.get()
    }

    /// The value as a tree. Code `json.invalid` for what the grammar allows and nobody can read: half a surrogate pair, a number
    /// beyond all numbers, more than 128 levels.
    pub fn to_value(&self) -> Result<serde_json::Value> {
        serde_json::from_str(self.get())
            .map_err(|error| Error::invalid("json.invalid", format!("valid JSON that cannot be read: {error}")))
    }

    /// How many clients write a text in JSON: what is not ASCII as `\uXXXX` (RFC 8259 section 7). `None` when that changes nothing.
    pub fn in_ascii(text: &str) -> Option<String> {
        let unit = |unit: &u16| match u8::try_from(*unit) {
            Ok(byte) if byte.is_ascii() => char::from(byte).to_string(),
            Ok(_) | Err(_) => format!("\\u{unit:04x}"),
        };
        (!text.is_ascii()).then(|| text.encode_utf16().map(|code| unit(&code)).collect())
    }

    /// Reads the value as `T`.
    pub fn to<T: for<'de> Deserialize<'de>>(&self) -> Result<T> {
        serde_json::from_str(self.get())
            .map_err(|error| Error::invalid("data.invalid", format!("data does not have the expected shape: {error}")))
    }
}

impl From<serde_json::Value> for Json {
    fn from(value: serde_json::Value) -> Self {
        // A tree of JSON values always has a text: its keys are strings and it has no infinite numbers.
        Self(serde_json::value::to_raw_value(&value).unwrap_or_else(|_| RawValue::NULL.to_owned()).into())
    }
}

impl PartialEq for Json {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Json {}
