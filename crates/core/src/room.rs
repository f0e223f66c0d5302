//! Room names and their templates: `berth:{berthId}`, `global`, `lead-{leadId}`, `pitch:{0}`.
//!
//! A template is rendered when an event is committed and matched when a client asks for a room, so neither uses a regular
//! expression nor allocates more than its result. The two are inverse: what renders from some values matches back to the same values,
//! because a value may not contain the text that ends it.

use std::borrow::Cow;
use std::fmt;

use crate::{Error, Result};

/// A room name with named holes. Streams and conflation keys use it as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoomTemplate {
    source: Box<str>,
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    Param(Box<str>),
}

/// A parameter that has no value, or one that cannot stand in a room name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingParam {
    /// The parameter, as the template names it.
    pub name: Box<str>,
    /// What is wrong: `no value`, or why the value was refused.
    pub reason: &'static str,
}

impl fmt::Display for MissingParam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl std::error::Error for MissingParam {}

impl RoomTemplate {
    /// The longest template in bytes.
    pub const MAX_BYTES: usize = 200;
    /// The longest value of a parameter in bytes.
    pub const MAX_VALUE_BYTES: usize = 200;

    /// Reads a template. Code `room.invalid` when it is empty, over 200 bytes, has a control character, an unclosed or empty brace,
    /// two holes that touch (nothing would tell where one value ends) or one name twice.
    pub fn parse(source: &str) -> Result<Self> {
        let wrong = |what: String| Error::invalid("room.invalid", what);
        if source.is_empty() || source.len() > Self::MAX_BYTES || source.chars().any(char::is_control) {
            let limit = Self::MAX_BYTES;
            return Err(wrong(format!("expected a name of 1 to {limit} bytes without control characters")));
        }
        let mut parts = Vec::new();
        let mut rest = source;
        while !rest.is_empty() {
            let text_end = rest.find(['{', '}']).unwrap_or(rest.len());
            if text_end > 0 {
                parts.push(Part::Text(rest[..text_end].into()));
                rest = &rest[text_end..];
                continue;
            }
            let inside = rest.strip_prefix('{').and_then(|rest| rest.split_once('}'));
            let Some((name, after)) = inside else {
                return Err(wrong(format!("expected {{name}} in {source:?}, found a single brace")));
            };
            if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return Err(wrong(format!("expected a name of letters, digits and _ between braces, got {{{name}}}")));
            }
            if let Some(Part::Param(before)) = parts.last() {
                return Err(wrong(format!("expected some text between {{{before}}} and {{{name}}}")));
            }
            if parts.iter().any(|part| matches!(part, Part::Param(other) if &**other == name)) {
                return Err(wrong(format!("{{{name}}} stands twice in {source:?}")));
            }
            parts.push(Part::Param(name.into()));
            rest = after;
        }
        Ok(Self { source: source.into(), parts: parts.into() })
    }

    /// The name with every hole filled by `lookup`. A value is 1 to 200 bytes, has no control character and does not contain the text
    /// that follows its hole.
    pub fn render<'a>(&self, mut lookup: impl FnMut(&str) -> Option<Cow<'a, str>>) -> Result<String, MissingParam> {
        let mut out = String::with_capacity(self.source.len() + 40);
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            let name = match part {
                Part::Text(text) => {
                    out.push_str(text);
                    continue;
                }
                Part::Param(name) => name,
            };
            let refuse = |reason| MissingParam { name: name.clone(), reason };
            let value = lookup(name).ok_or_else(|| refuse("no value"))?;
            if !is_value(&value) {
                return Err(refuse("expected 1 to 200 bytes without control characters"));
            }
            let start = out.len();
            out.push_str(&value);
            if let Some(Part::Text(end)) = parts.peek() {
                parts.next();
                out.push_str(end);
                if out[start..].find(&**end) != Some(value.len()) {
                    return Err(refuse("the value contains the text that ends it in the room's name"));
                }
            }
        }
        Ok(out)
    }

    /// The values in `room` by parameter, in the order of the template; `None` when `room` is not made by this template.
    pub fn match_room<'a>(&'a self, room: &'a str) -> Option<Vec<(&'a str, &'a str)>> {
        let mut values = Vec::new();
        self.walk(room, |name, value| values.push((name, value))).then_some(values)
    }

    /// Whether `room` is made by this template. Allocates nothing.
    pub fn matches(&self, room: &str) -> bool {
        self.walk(room, |_, _| ())
    }

    fn walk<'a>(&'a self, room: &'a str, mut found: impl FnMut(&'a str, &'a str)) -> bool {
        let mut rest = room;
        let mut parts = self.parts.iter();
        while let Some(part) = parts.next() {
            match part {
                Part::Text(text) => match rest.strip_prefix(&**text) {
                    Some(after) => rest = after,
                    None => return false,
                },
                Part::Param(name) => {
                    let (value, after) = match parts.next() {
                        Some(Part::Text(end)) => match rest.split_once(&**end) {
                            Some(split) => split,
                            None => return false,
                        },
                        Some(Part::Param(_)) | None => (rest, ""),
                    };
                    if !is_value(value) {
                        return false;
                    }
                    found(name, value);
                    rest = after;
                }
            }
        }
        rest.is_empty()
    }

    /// The names of the holes, in order.
    pub fn params(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Param(name) => Some(&**name),
            Part::Text(_) => None,
        })
    }

    /// Whether both make the same rooms: equal text and holes at the same places, whatever the holes are called.
    pub fn same_shape(&self, other: &Self) -> bool {
        self.parts.len() == other.parts.len()
            && self.parts.iter().zip(&other.parts).all(|pair| match pair {
                (Part::Text(one), Part::Text(two)) => one == two,
                (Part::Param(_), Part::Param(_)) => true,
                (Part::Text(_), Part::Param(_)) | (Part::Param(_), Part::Text(_)) => false,
            })
    }

    /// How many bytes of a room's name it says itself. Of several templates that make a room, the one that says most of it is meant.
    pub fn fixed_bytes(&self) -> usize {
        let fixed = |part: &Part| if let Part::Text(text) = part { text.len() } else { 0 };
        self.parts.iter().map(fixed).sum()
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

impl fmt::Display for RoomTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

fn is_value(value: &str) -> bool {
    (1..=RoomTemplate::MAX_VALUE_BYTES).contains(&value.len()) && !value.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn template(source: &str) -> RoomTemplate {
        RoomTemplate::parse(source).expect(source)
    }

    #[test]
    fn the_templates_of_the_five_systems_render_and_match() {
        for (source, room, values) in [
            ("berth:{berthId}", "berth:b-1", vec![("berthId", "b-1")]),
            ("global", "global", vec![]),
            ("lead-{leadId}", "lead-7", vec![("leadId", "7")]),
            ("{userId}", "u:1", vec![("userId", "u:1")]),
            ("pitch:{0}", "pitch:42", vec![("0", "42")]),
            ("tenant:{t}:role:{role}", "tenant:a:role:sales:lead", vec![("t", "a"), ("role", "sales:lead")]),
            ("{a}-end", "x-end", vec![("a", "x")]),
        ] {
            let template = template(source);
            assert_eq!(template.match_room(room).as_ref(), Some(&values), "{source}");
            let find = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
            assert_eq!(template.render(find).expect(source), room);
            assert_eq!(template.params().collect::<Vec<_>>(), values.iter().map(|(name, _)| *name).collect::<Vec<_>>());
            assert_eq!(template.to_string(), source);
        }
    }

    #[test]
    fn another_room_does_not_match() {
        for (source, room) in [
            ("berth:{berthId}", "berth:"),
            ("berth:{berthId}", "user:1"),
            ("berth:{berthId}", "berth:a\nb"),
            ("global", "globals"),
            ("a:{x}:end", "a:1:end:end"),
            ("a:{x}:b:{y}", "a:1:c:2"),
        ] {
            assert!(!template(source).matches(room), "{source} {room}");
        }
    }

    #[test]
    fn a_value_that_would_make_another_room_is_refused() {
        let render = |source: &str, value: &'static str| template(source).render(|_| Some(value.into()));
        assert_eq!(template("user:{id}").render(|_| None).expect_err("missing").to_string(), "id: no value");
        for (source, value) in [("user:{id}", ""), ("user:{id}", "a\u{7}"), ("a:{x}:b", "1:b"), ("{x}::{y}", "a:")] {
            assert_eq!(&*render(source, value).expect_err(source).name, source.split(['{', '}']).nth(1).expect("name"));
        }
        assert!(template("user:{id}").render(|_| Some("x".repeat(201).into())).is_err());
        assert_eq!(render("user:{id}", "a:b").as_deref(), Ok("user:a:b"));
    }

    #[test]
    fn shapes_ignore_what_the_holes_are_called() {
        assert!(template("user:{assigneeId}").same_shape(&template("user:{userId}")));
        assert!(!template("user:{id}").same_shape(&template("users:{id}")));
        assert!(!template("user:{id}").same_shape(&template("user:id")));
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["", "a:{", "a:}", "a:{}", "{a}{b}", "{a}:{a}", "{a b}", "a\n", "{{a}}", &"x".repeat(201)] {
            assert_eq!(RoomTemplate::parse(bad).expect_err(bad).code(), "room.invalid");
        }
    }

    proptest! {
        #[test]
        fn what_renders_matches_back(a in "[a-c:|-]{0,6}", b in "[a-c:|-]{0,6}", shape in 0_usize..4) {
            let source = ["r:{a}:{b}", "{a}|:|{b}", "x{a}::", "{a}-b{b}-"][shape];
            let template = template(source);
            let values = [("a", &*a), ("b", &*b)];
            let find = |name: &str| values.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into());
            if let Ok(room) = template.render(find) {
                let expected: Vec<_> = values.into_iter().take(template.params().count()).collect();
                prop_assert_eq!(template.match_room(&room), Some(expected));
            }
        }
    }
}
