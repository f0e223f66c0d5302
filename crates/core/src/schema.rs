//! The shape of data, written in the catalog's shorthand: `{ berthId = "string", price = "number?", tags = ["string"] }`.
//!
//! Fields that the shape does not name are allowed, so that a publisher can be a version ahead of its listeners. Checking valid data
//! allocates nothing: the path of a field is only written down when something is wrong with it.

use std::borrow::Cow;
use std::fmt;

use serde_json::Value;

use crate::FieldError;

/// A compiled shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    shape: Shape,
    optional: bool,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    String,
    Integer,
    Number,
    Boolean,
    Uuid,
    Datetime,
    Object,
    Array,
    Any,
    List(Box<Schema>),
    Fields(Vec<(Box<str>, Schema)>),
}

/// The names of the shorthand.
const NAMES: [(&str, Shape); 9] = [
    ("string", Shape::String),
    ("integer", Shape::Integer),
    ("number", Shape::Number),
    ("boolean", Shape::Boolean),
    ("uuid", Shape::Uuid),
    ("datetime", Shape::Datetime),
    ("object", Shape::Object),
    ("array", Shape::Array),
    ("any", Shape::Any),
];

/// Where a value stands: a chain on the stack that becomes text only in an error.
enum Place<'a> {
    Root(&'a str),
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Schema {
    /// The most errors that [`Schema::validate`] leaves in its list.
    pub const MAX_ERRORS: usize = 20;
    /// How deep a shape may nest.
    pub const MAX_DEPTH: usize = 16;

    /// Compiles the shorthand, as JSON. The error says what was expected and what was found.
    pub fn parse(shorthand: &Value) -> Result<Self, String> {
        Self::parse_within(shorthand, 0)
    }

    fn parse_within(shorthand: &Value, depth: usize) -> Result<Self, String> {
        if depth > Self::MAX_DEPTH {
            return Err(format!("expected at most {} levels", Self::MAX_DEPTH));
        }
        match shorthand {
            Value::String(text) => Self::parse_name(text),
            Value::Array(items) => match items.as_slice() {
                [item] => {
                    let item = Self::parse_within(item, depth + 1)?;
                    Ok(Self { shape: Shape::List(Box::new(item)), optional: false })
                }
                _ => Err(format!("expected one type in the list, such as [\"string\"], got {}", shown(shorthand))),
            },
            Value::Object(entries) => {
                let parse = |(name, field): (&String, &Value)| {
                    if name.ends_with('?') {
                        return Err(format!(
                            "{name}: put the ? behind the type, as in {} = \"string?\"",
                            name.trim_end_matches('?')
                        ));
                    }
                    let field = Self::parse_within(field, depth + 1).map_err(|error| format!("{name}: {error}"))?;
                    Ok((name.as_str().into(), field))
                };
                let fields = entries.iter().map(parse).collect::<Result<Vec<_>, String>>()?;
                Ok(Self { shape: Shape::Fields(fields), optional: false })
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {
                Err(format!("expected a type such as \"string\", got {}", shown(shorthand)))
            }
        }
    }

    fn parse_name(text: &str) -> Result<Self, String> {
        let (name, optional) = text.strip_suffix('?').map_or((text, false), |name| (name, true));
        match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, shape)) => Ok(Self { shape: shape.clone(), optional }),
            None => {
                let names = NAMES.map(|(known, _)| known);
                let hint = crate::suggest::suggest(name, names.into_iter());
                let hint = hint.map_or(String::new(), |hint| format!("; did you mean \"{hint}\"?"));
                Err(format!("unknown type {text:?}, expected one of {}{hint}", names.join(", ")))
            }
        }
    }

    /// Adds what is wrong with `value` to `errors`, with paths that begin with `root` (`data.items[3].id`). Does nothing once the list
    /// holds [`Schema::MAX_ERRORS`]. For an optional field, `null` and absence are the same.
    pub fn validate(&self, value: &Value, root: &str, errors: &mut Vec<FieldError>) {
        self.check(Some(value), &Place::Root(root), errors);
    }

    fn check(&self, value: Option<&Value>, place: &Place<'_>, errors: &mut Vec<FieldError>) {
        let Some(value) = value else {
            if !self.optional {
                self.refuse(None, place, errors);
            }
            return;
        };
        if self.optional && value.is_null() {
            return;
        }
        let fits = match (&self.shape, value) {
            (Shape::Any, _)
            | (Shape::String, Value::String(_))
            | (Shape::Number, Value::Number(_))
            | (Shape::Boolean, Value::Bool(_))
            | (Shape::Object, Value::Object(_))
            | (Shape::Array, Value::Array(_)) => true,
            (Shape::Integer, Value::Number(number)) => !number.is_f64(),
            (Shape::Uuid, Value::String(text)) => text.len() == 36 && uuid::Uuid::try_parse(text).is_ok(),
            (Shape::Datetime, Value::String(text)) => text.parse::<jiff::Timestamp>().is_ok(),
            (Shape::List(item), Value::Array(values)) => {
                for (index, value) in values.iter().enumerate() {
                    item.check(Some(value), &Place::Item(place, index), errors);
                    if errors.len() >= Self::MAX_ERRORS {
                        break;
                    }
                }
                true
            }
            (Shape::Fields(fields), Value::Object(values)) => {
                for (name, field) in fields {
                    field.check(values.get(&**name), &Place::Field(place, name), errors);
                }
                true
            }
            _ => false,
        };
        if !fits {
            self.refuse(Some(value), place, errors);
        }
    }

    #[cold]
    fn refuse(&self, value: Option<&Value>, place: &Place<'_>, errors: &mut Vec<FieldError>) {
        if errors.len() < Self::MAX_ERRORS {
            let got = value.map_or(Cow::Borrowed("nothing"), |value| shown(value).into());
            let message = format!("expected {}, got {got}", self.type_name());
            errors.push(FieldError { path: place.to_string(), message });
        }
    }

    /// The JSON-facing name of the outermost type.
    fn type_name(&self) -> &'static str {
        match &self.shape {
            Shape::List(_) => "array",
            Shape::Fields(_) => "object",
            named => NAMES.iter().find(|(_, shape)| shape == named).map_or("any", |(name, _)| name),
        }
    }

    /// Whether the value may be left out.
    pub fn is_optional(&self) -> bool {
        self.optional
    }

    /// The names of the top-level fields in byte order; none when the shape is not an object with fields.
    pub fn fields(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().map(|(name, _)| &**name)
    }

    /// The names of the top-level fields that must be there.
    pub fn required_fields(&self) -> impl Iterator<Item = &str> {
        self.entries().iter().filter(|(_, field)| !field.optional).map(|(name, _)| &**name)
    }

    /// The shape of the top-level field `name`.
    pub fn field(&self, name: &str) -> Option<&Self> {
        self.entries().iter().find(|(known, _)| &**known == name).map(|(_, field)| field)
    }

    fn entries(&self) -> &[(Box<str>, Self)] {
        match &self.shape {
            Shape::Fields(fields) => fields,
            _ => &[],
        }
    }

    /// The shorthand again.
    pub fn to_json(&self) -> Value {
        match &self.shape {
            Shape::List(item) => Value::Array(vec![item.to_json()]),
            Shape::Fields(fields) => fields.iter().map(|(name, field)| (name.to_string(), field.to_json())).collect(),
            _ => Value::String(format!("{}{}", self.type_name(), if self.optional { "?" } else { "" })),
        }
    }
}

/// A value as JSON, cut to 60 characters.
fn shown(value: &Value) -> String {
    let mut text = value.to_string();
    if let Some((cut, _)) = text.char_indices().nth(60) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema(shorthand: Value) -> Schema {
        Schema::parse(&shorthand).expect("schema")
    }

    fn errors(shorthand: Value, value: &Value) -> Vec<String> {
        let mut errors = Vec::new();
        schema(shorthand).validate(value, "data", &mut errors);
        errors.into_iter().map(|error| format!("{}: {}", error.path, error.message)).collect()
    }

    #[test]
    fn what_fits_is_silent_and_unknown_fields_are_allowed() {
        let shape = json!({
            "s": "string", "i": "integer", "n": "number", "b": "boolean", "u": "uuid", "t": "datetime", "o": "object",
            "a": "array", "x": "any", "l": ["string"], "f": { "deep": ["integer"] }, "q": "string?",
        });
        let value = json!({
            "s": "", "i": -3, "n": 1.5, "b": true, "u": "01890a5d-ac96-774b-bcce-b302099a8057", "t": "2026-01-31T08:00:00.000Z",
            "o": {}, "a": [1, "x"], "x": null, "l": ["a"], "f": { "deep": [u64::MAX] }, "extra": 1,
        });
        assert_eq!(errors(shape.clone(), &value), Vec::<String>::new());
        let mut with_null = value;
        with_null["q"] = json!(null);
        assert_eq!(errors(shape, &with_null), Vec::<String>::new());
    }

    #[test]
    fn errors_say_where_what_was_expected_and_what_was_found() {
        assert_eq!(
            errors(json!({ "amount": "number" }), &json!({ "amount": "12" })),
            ["data.amount: expected number, got \"12\""]
        );
        assert_eq!(errors(json!({ "id": "string" }), &json!({})), ["data.id: expected string, got nothing"]);
        assert_eq!(errors(json!({ "id": "string" }), &json!({ "id": null })), ["data.id: expected string, got null"]);
        assert_eq!(errors(json!({ "id": "string" }), &json!([])), ["data: expected object, got []"]);
        let items = json!({ "items": [{ "id": "uuid" }] });
        assert_eq!(
            errors(
                items.clone(),
                &json!({ "items": [{ "id": "01890a5d-ac96-774b-bcce-b302099a8057" }, { "id": "1" }, 4] })
            ),
            ["data.items[1].id: expected uuid, got \"1\"", "data.items[2]: expected object, got 4"]
        );
        assert_eq!(errors(items, &json!({ "items": {} })), ["data.items: expected array, got {}"]);
        for (shape, wrong) in [
            ("integer", json!(1.5)),
            ("integer", json!(2.0)),
            ("integer", json!("2")),
            ("uuid", json!("{01890a5d-ac96-774b-bcce-b302099a8057}")),
            ("datetime", json!("2026-01-31")),
            ("datetime", json!(1_700_000_000)),
            ("boolean", json!(0)),
            ("object", json!([])),
            ("array", json!({})),
        ] {
            assert_eq!(errors(json!(shape), &wrong), [format!("data: expected {shape}, got {wrong}")]);
        }
    }

    #[test]
    fn errors_are_bounded_in_number_and_length() {
        let value: Value = (0..100).map(|_| json!("é".repeat(1_000))).collect();
        let errors = errors(json!(["integer"]), &value);
        assert_eq!(errors.len(), Schema::MAX_ERRORS);
        assert!(errors.iter().all(|error| error.chars().count() < 120 && error.ends_with('…')));
    }

    #[test]
    fn nonsense_is_refused_with_a_hint() {
        let error = |shorthand| Schema::parse(&shorthand).expect_err("nonsense");
        assert!(error(json!({ "a": "strng" })).starts_with("a: unknown type \"strng\", expected one of string, "));
        assert!(error(json!({ "a": "strng" })).ends_with("did you mean \"string\"?"));
        assert_eq!(error(json!({ "a?": "string" })), "a?: put the ? behind the type, as in a = \"string?\"");
        assert!(error(json!({ "a": { "b": [] } })).starts_with("a: b: expected one type in the list"));
        assert_eq!(error(json!({ "a": 1 })), "a: expected a type such as \"string\", got 1");
        let deep = (0..40).fold(json!("string"), |inner, _| json!([inner]));
        assert_eq!(error(deep), "expected at most 16 levels");
    }

    #[test]
    fn the_shorthand_comes_back() {
        let shorthand = json!({ "a": "string?", "b": [{ "c": "uuid" }], "d": ["any"] });
        let schema = schema(shorthand.clone());
        assert_eq!(schema.to_json(), shorthand);
        assert_eq!(schema.fields().collect::<Vec<_>>(), ["a", "b", "d"]);
        assert_eq!(schema.required_fields().collect::<Vec<_>>(), ["b", "d"]);
    }
}
