//! JSON with holes: `{ contactId = "{{ data.id }}", title = "Hello {{ user.name }}" }`.
//!
//! A string that is one hole and nothing else becomes the value with its type; holes inside a longer string are spliced in as text.
//! Only dotted paths and integer indexes, no filters and no logic: what a template cannot say belongs in a handler.

use serde_json::Value;

use crate::{Error, Result};

/// A compiled JSON template. Rendering cannot fail: what is missing becomes `null`, or nothing inside a longer text.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Node);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Constant(Value),
    Hole(Path),
    Text(Vec<Piece>),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
}

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Hole(Path),
}

/// `data.items.0.id`; never empty.
#[derive(Clone, Debug, PartialEq)]
struct Path(String);

impl Template {
    /// Compiles `value`. Code `template.invalid` for a hole that is not closed, is not a dotted path, or whose first name is none of
    /// `allowed_roots`.
    pub fn parse(value: Value, allowed_roots: &[&str]) -> Result<Self> {
        parse_node(value, allowed_roots).map(Self)
    }

    /// The value with every hole filled from `scope`, an object of the roots.
    pub fn render(&self, scope: &Value) -> Value {
        self.0.render(scope)
    }

    /// The top-level keys, when the template is an object.
    pub fn keys(&self) -> Option<impl Iterator<Item = &str>> {
        match &self.0 {
            Node::Object(entries) => Some(entries.iter().map(|(key, _)| key.as_str())),
            Node::Constant(_) | Node::Hole(_) | Node::Text(_) | Node::Array(_) => None,
        }
    }

    /// The path of the hole that is the whole value of the top-level key `key`.
    pub fn hole(&self, key: &str) -> Option<&str> {
        let Node::Object(entries) = &self.0 else {
            return None;
        };
        entries.iter().find_map(|(name, node)| match node {
            Node::Hole(path) if name == key => Some(path.0.as_str()),
            _ => None,
        })
    }

    /// What stands for the top-level key `key`, where it has no holes.
    pub fn constant(&self, key: &str) -> Option<&Value> {
        let Node::Object(entries) = &self.0 else {
            return None;
        };
        entries.iter().find_map(|(name, node)| match node {
            Node::Constant(value) if name == key => Some(value),
            _ => None,
        })
    }

    /// What stands in a single pair of braces, as `{id}`, and so is no hole.
    pub fn stray_braces(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.0.collect_stray_braces(&mut found);
        found
    }

    /// Every path that a hole mentions, such as `data.id`.
    pub fn paths(&self) -> Vec<&str> {
        let mut found = Vec::new();
        self.0.collect_paths(&mut found);
        found
    }
}

fn wrong(what: impl Into<String>) -> Error {
    Error::invalid("template.invalid", what)
}

fn parse_node(value: Value, roots: &[&str]) -> Result<Node> {
    Ok(match value {
        Value::String(text) => parse_text(text, roots)?,
        Value::Array(items) => {
            let nodes: Vec<Node> = items.into_iter().map(|item| parse_node(item, roots)).collect::<Result<_>>()?;
            fold_constants(Node::Array(nodes))
        }
        Value::Object(fields) => {
            let parse = |(key, value)| Ok((key, parse_node(value, roots)?));
            let entries = fields.into_iter().map(parse).collect::<Result<_>>()?;
            Node::Object(entries)
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => Node::Constant(value),
    })
}

/// An array without holes is one constant, which renders with one clone.
fn fold_constants(node: Node) -> Node {
    match node {
        Node::Array(items) if items.iter().all(|item| matches!(item, Node::Constant(_))) => {
            let constant = |item| match item {
                Node::Constant(value) => value,
                Node::Hole(_) | Node::Text(_) | Node::Array(_) | Node::Object(_) => Value::Null,
            };
            Node::Constant(Value::Array(items.into_iter().map(constant).collect()))
        }
        other => other,
    }
}

fn parse_text(text: String, roots: &[&str]) -> Result<Node> {
    if !text.contains("{{") {
        return Ok(Node::Constant(Value::String(text)));
    }
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while let Some((before, from)) = rest.split_once("{{") {
        let Some((hole, after)) = from.split_once("}}") else {
            return Err(wrong(format!("expected \"}}}}\" after \"{{{{\" in {text:?}")));
        };
        if !before.is_empty() {
            pieces.push(Piece::Text(before.to_owned()));
        }
        pieces.push(Piece::Hole(Path::parse(hole.trim(), roots)?));
        rest = after;
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(match pieces.pop() {
        Some(Piece::Hole(path)) if pieces.is_empty() => Node::Hole(path),
        last => {
            pieces.extend(last);
            Node::Text(pieces)
        }
    })
}

impl Path {
    fn parse(text: &str, roots: &[&str]) -> Result<Self> {
        let is_name =
            |name: &str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-$".contains(&b));
        if !text.split('.').all(is_name) {
            return Err(wrong(format!(
                "expected a dotted path such as {{{{ data.items.0.id }}}} without filters or operators, got {{{{ {text} }}}}"
            )));
        }
        let root = text.split('.').next().unwrap_or_default();
        if !roots.contains(&root) {
            return Err(wrong(format!(
                "unknown name {root:?} in {{{{ {text} }}}}; expected one of {}",
                roots.join(", ")
            )));
        }
        Ok(Self(text.to_owned()))
    }

    fn find<'a>(&self, scope: &'a Value) -> Option<&'a Value> {
        self.0.split('.').try_fold(scope, |value, name| match value {
            Value::Object(fields) => fields.get(name),
            Value::Array(items) => items.get(name.parse::<usize>().ok()?),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
        })
    }
}

impl Node {
    fn render(&self, scope: &Value) -> Value {
        match self {
            Self::Constant(value) => value.clone(),
            Self::Hole(path) => path.find(scope).cloned().unwrap_or_default(),
            Self::Text(pieces) => Value::String(splice(pieces, scope)),
            Self::Array(items) => items.iter().map(|item| item.render(scope)).collect(),
            Self::Object(entries) => entries.iter().map(|(key, node)| (key.clone(), node.render(scope))).collect(),
        }
    }

    fn collect_stray_braces<'a>(&'a self, found: &mut Vec<&'a str>) {
        match self {
            Self::Constant(Value::String(text)) => found.extend(stray_braces(text)),
            Self::Constant(_) | Self::Hole(_) => {}
            Self::Text(pieces) => found.extend(pieces.iter().flat_map(|piece| match piece {
                Piece::Text(text) => stray_braces(text),
                Piece::Hole(_) => Vec::new(),
            })),
            Self::Array(items) => items.iter().for_each(|item| item.collect_stray_braces(found)),
            Self::Object(entries) => entries.iter().for_each(|(_, node)| node.collect_stray_braces(found)),
        }
    }

    fn collect_paths<'a>(&'a self, found: &mut Vec<&'a str>) {
        match self {
            Self::Constant(_) => {}
            Self::Hole(path) => found.push(&path.0),
            Self::Text(pieces) => found.extend(pieces.iter().filter_map(|piece| match piece {
                Piece::Hole(path) => Some(path.0.as_str()),
                Piece::Text(_) => None,
            })),
            Self::Array(items) => items.iter().for_each(|item| item.collect_paths(found)),
            Self::Object(entries) => entries.iter().for_each(|(_, node)| node.collect_paths(found)),
        }
    }
}

/// Paths in single braces, with them.
fn stray_braces(text: &str) -> Vec<&str> {
    let is_path =
        |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.".contains(&b));
    let opened = text.match_indices('{').filter_map(|(at, _)| Some((at, text[at + 1..].find('}')?)));
    opened.filter(|(at, len)| is_path(&text[at + 1..at + 1 + len])).map(|(at, len)| &text[at..at + len + 2]).collect()
}

fn splice(pieces: &[Piece], scope: &Value) -> String {
    let mut out = String::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Hole(path) => match path.find(scope) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => out.push_str(text),
                Some(other) => out.push_str(&other.to_string()),
            },
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ROOTS: &[&str] = &["data", "user"];

    fn render(template: Value) -> Value {
        let scope = json!({
            "data": { "id": 7, "name": "Ann", "tags": ["a", { "b": true }], "nothing": null },
            "user": { "id": "u1" },
        });
        Template::parse(template, ROOTS).expect("template").render(&scope)
    }

    #[test]
    fn a_lone_hole_keeps_its_type_and_text_is_spliced() {
        assert_eq!(render(json!("{{ data.id }}")), json!(7));
        assert_eq!(render(json!("{{data.tags.1}}")), json!({ "b": true }));
        assert_eq!(render(json!("Hi {{ data.name }}, no. {{ data.id }}!")), json!("Hi Ann, no. 7!"));
        assert_eq!(render(json!("{{ data.id }}{{ data.id }}")), json!("77"));
        assert_eq!(render(json!("<{{ data.tags.1 }}>")), json!("<{\"b\":true}>"));
        assert_eq!(
            render(json!({ "a": ["{{ user.id }}", 1], "b": { "c": false } })),
            json!({ "a": ["u1", 1], "b": { "c": false } })
        );
    }

    #[test]
    fn what_is_missing_is_null_or_nothing() {
        assert_eq!(render(json!("{{ data.missing.deeper }}")), json!(null));
        assert_eq!(render(json!("{{ data.tags.9 }}")), json!(null));
        assert_eq!(render(json!("[{{ data.missing }}{{ data.nothing }}]")), json!("[]"));
    }

    #[test]
    fn anything_but_a_path_is_refused() {
        for bad in [
            "{{ data.id",
            "{{ }}",
            "{{ data..id }}",
            "{{ data.id | upper }}",
            "{{ data.id + 1 }}",
            "{{ date.id }}",
            "{{ {{ data }} }}",
        ] {
            assert_eq!(Template::parse(json!({ "x": [bad] }), ROOTS).expect_err(bad).code(), "template.invalid");
        }
        let error = Template::parse(json!("{{ event.id }}"), ROOTS).expect_err("root");
        assert_eq!(error.detail(), "unknown name \"event\" in {{ event.id }}; expected one of data, user");
    }

    #[test]
    fn its_keys_and_paths_can_be_listed() {
        let template =
            Template::parse(json!({ "a": "{{ data.id }}", "b": ["x {{ user.id }}"] }), ROOTS).expect("template");
        assert_eq!(template.keys().expect("object").collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(template.paths(), ["data.id", "user.id"]);
        assert_eq!((template.hole("a"), template.hole("b")), (Some("data.id"), None));
    }

    #[test]
    fn what_is_no_hole_can_be_listed() {
        let template = json!({ "a": 1, "b": [{ "c": "no. {0} of {data.id}" }], "d": "{{ data.id }} { x } {} {" });
        let template = Template::parse(template, ROOTS).expect("template");
        assert_eq!((template.constant("a"), template.constant("d")), (Some(&json!(1)), None));
        assert_eq!(template.stray_braces(), ["{0}", "{data.id}"]);
    }
}
