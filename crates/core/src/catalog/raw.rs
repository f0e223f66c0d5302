//! Catalog files as a tree in which every value knows where it was written, and the readers that turn it into typed values.
//!
//! A reader never stops at the first mistake: it notes the problem and gives nothing, and the caller goes on with a default that nobody
//! will see, because a catalog with problems is not handed out. The keys that a reader was asked for are the legal ones; whatever else
//! stands in the table is reported by [`Table::finish`].

use std::cell::RefCell;
use std::error::Error as _;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use super::load::Problem;
use crate::suggest::suggest;
use crate::time::parse_duration;
use crate::{Error, Result};

/// Problems beyond this many are dropped: nobody reads on, and a catalog of 32 MiB could have millions.
const MOST_PROBLEMS: usize = 200;

/// Where a key or value begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    file: usize,
    offset: usize,
}

/// A value with the place of its key, or of itself in an array.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) place: Place,
    pub(super) value: Node,
}

/// A TOML value.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Item>),
    Table(Fields),
}

/// The entries of a table in the order of the files.
pub(super) type Fields = Vec<(String, Item)>;

impl Node {
    fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// The same as JSON.
    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Text(text) | Self::Datetime(text) => Value::String(text.clone()),
            Self::Integer(integer) => (*integer).into(),
            Self::Float(float) => (*float).into(),
            Self::Boolean(boolean) => (*boolean).into(),
            Self::Array(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Table(fields) => fields.iter().map(|(key, item)| (key.clone(), item.value.to_json())).collect(),
        }
    }
}

/// The files that were read and what is wrong with them.
#[derive(Debug, Default)]
pub(super) struct Report {
    files: Vec<(String, String)>,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// Adds a file to refer to and gives the place of its beginning.
    pub(super) fn add_file(&mut self, path: String, text: String) -> Place {
        self.files.push((path, text));
        Place { file: self.files.len() - 1, offset: 0 }
    }

    /// The tree of a file. Errors of TOML itself are noted, all of them; the tree is then what could be read.
    pub(super) fn parse(&self, start: Place) -> Fields {
        let (table, errors) = DeTable::parse_recoverable(&self.files[start.file].1);
        for error in errors {
            let offset = error.span().map_or(0, |span| span.start);
            self.note(Place { file: start.file, offset }, "", error.message().trim());
        }
        fields(table.get_ref(), start.file)
    }

    /// Notes a problem with the value called `key`.
    pub(super) fn note(&self, place: Place, key: &str, message: impl Into<String>) {
        self.note_with_suggestion(place, key, message, None);
    }

    /// Notes a problem and the name that was probably meant.
    pub(super) fn note_with_suggestion(
        &self,
        place: Place,
        key: &str,
        message: impl Into<String>,
        suggestion: Option<&str>,
    ) {
        if self.problems.borrow().len() >= MOST_PROBLEMS {
            return;
        }
        let (file, text) = &self.files[place.file];
        let before = text.get(..place.offset).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        self.push(Problem {
            file: file.clone(),
            line,
            column,
            key: key.to_owned(),
            message: message.into(),
            suggestion: suggestion.map(str::to_owned),
        });
    }

    /// Notes a problem that has no place in a file that was read.
    pub(super) fn push(&self, problem: Problem) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < MOST_PROBLEMS {
            problems.push(problem);
        }
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.borrow().is_empty()
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    /// Where `place` is, for people: `apps/x/events.toml:12`.
    pub(super) fn locate(&self, place: Place) -> String {
        let (file, text) = &self.files[place.file];
        let line = text.get(..place.offset).unwrap_or_default().matches('\n').count() + 1;
        format!("{file}:{line}")
    }
}

fn fields(table: &DeTable<'_>, file: usize) -> Fields {
    let entry = |(key, value): (&toml::Spanned<toml::de::DeString<'_>>, &toml::Spanned<DeValue<'_>>)| {
        let place = Place { file, offset: key.span().start };
        (key.get_ref().to_string(), Item { place, value: node(value.get_ref(), file) })
    };
    let mut fields: Fields = table.iter().map(entry).collect();
    fields.sort_by_key(|(_, item)| item.place);
    fields
}

fn node(value: &DeValue<'_>, file: usize) -> Node {
    match value {
        DeValue::String(text) => Node::Text(text.to_string()),
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Node::Integer(integer),
            Err(_) => Node::Float(f64::INFINITY),
        },
        DeValue::Float(float) => Node::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(boolean) => Node::Boolean(*boolean),
        DeValue::Datetime(datetime) => Node::Datetime(datetime.to_string()),
        DeValue::Array(items) => {
            let item = |item: &toml::Spanned<DeValue<'_>>| Item {
                place: Place { file, offset: item.span().start },
                value: node(item.get_ref(), file),
            };
            Node::Array(items.iter().map(item).collect())
        }
        DeValue::Table(table) => Node::Table(fields(table, file)),
    }
}

/// `events."berth:updated".rooms`, as TOML would spell it.
pub(super) fn join(parent: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if parent.is_empty() { key } else { format!("{parent}.{key}") }
}

/// The sentence of an error with its cause.
fn explain(error: &Error) -> String {
    match error.source() {
        Some(source) => format!("{}: {source}", error.detail()),
        None => error.detail().to_owned(),
    }
}

/// A reader of one table.
#[derive(Debug)]
pub(super) struct Table<'a> {
    fields: &'a Fields,
    /// Where it begins.
    pub(super) place: Place,
    /// What it is called.
    pub(super) key: String,
    /// Where problems go.
    pub(super) report: &'a Report,
    asked: RefCell<Vec<&'static str>>,
}

impl<'a> Table<'a> {
    pub(super) fn new(fields: &'a Fields, place: Place, key: String, report: &'a Report) -> Self {
        Self { fields, place, key, report, asked: RefCell::default() }
    }

    /// The value of `key`, which becomes a legal key.
    pub(super) fn item(&self, key: &'static str) -> Option<&'a Item> {
        self.asked.borrow_mut().push(key);
        self.fields.iter().find(|(name, _)| name == key).map(|(_, item)| item)
    }

    /// The place of `key`, or of the table when it is not there. Makes nothing legal.
    pub(super) fn place_of(&self, key: &str) -> Place {
        self.fields.iter().find(|(name, _)| name == key).map_or(self.place, |(_, item)| item.place)
    }

    /// Notes a problem with `key`.
    pub(super) fn wrong(&self, key: &str, message: impl Into<String>) {
        self.report.note(self.place_of(key), &join(&self.key, key), message);
    }

    /// Notes that `key` names something unknown, with the nearest known name.
    pub(super) fn unknown<'n>(&self, key: &str, what: &str, name: &str, known: impl Iterator<Item = &'n str>) {
        let (place, path) = (self.place_of(key), join(&self.key, key));
        self.report.note_with_suggestion(place, &path, format!("unknown {what} {name:?}"), suggest(name, known));
    }

    fn expected(&self, item: &Item, key: &str, what: &str) {
        let found = item.value.type_name();
        self.report.note(item.place, &join(&self.key, key), format!("expected {what}, got {found}"));
    }

    /// A text.
    pub(super) fn text(&self, key: &'static str) -> Option<&'a str> {
        let item = self.item(key)?;
        let Node::Text(text) = &item.value else {
            self.expected(item, key, "a text");
            return None;
        };
        Some(text)
    }

    /// A text for people, empty when absent.
    pub(super) fn description(&self) -> String {
        self.text("description").unwrap_or_default().to_owned()
    }

    /// A text that has to be there.
    pub(super) fn required_text(&self, key: &'static str) -> Option<&'a str> {
        let text = self.text(key);
        self.require(key);
        text
    }

    /// Notes a problem when `key` is absent.
    pub(super) fn require(&self, key: &str) {
        if !self.fields.iter().any(|(name, _)| name == key) {
            self.report.note(self.place, &join(&self.key, key), "missing");
        }
    }

    /// A text that `parse` understands.
    pub(super) fn parsed<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T>) -> Option<T> {
        let text = self.text(key)?;
        parse(text).map_err(|error| self.wrong(key, explain(&error))).ok()
    }

    /// A duration.
    pub(super) fn duration(&self, key: &'static str) -> Option<Duration> {
        self.parsed(key, parse_duration)
    }

    /// A duration longer than nothing.
    pub(super) fn positive_duration(&self, key: &'static str) -> Option<Duration> {
        let duration = self.duration(key)?;
        if duration.is_zero() {
            self.wrong(key, "expected a duration longer than 0s");
        }
        Some(duration)
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(key)?;
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
        if found.is_none() {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            let message = format!("expected one of {}, got {text:?}", words.join(", "));
            let suggestion = suggest(text, words.into_iter());
            self.report.note_with_suggestion(self.place_of(key), &join(&self.key, key), message, suggestion);
        }
        found
    }

    /// A boolean, false when absent.
    pub(super) fn flag(&self, key: &'static str) -> bool {
        match self.item(key) {
            None => false,
            Some(Item { value: Node::Boolean(flag), .. }) => *flag,
            Some(item) => {
                self.expected(item, key, "true or false");
                false
            }
        }
    }

    /// An integer in `range`.
    pub(super) fn integer<T: TryFrom<i64>>(&self, key: &'static str, range: RangeInclusive<i64>) -> Option<T> {
        let item = self.item(key)?;
        let Node::Integer(integer) = item.value else {
            self.expected(item, key, "an integer");
            return None;
        };
        if !range.contains(&integer) {
            let (least, most) = range.into_inner();
            self.wrong(key, format!("expected a number from {least} to {most}, got {integer}"));
            return None;
        }
        T::try_from(integer).ok()
    }

    /// A number.
    pub(super) fn number(&self, key: &'static str) -> Option<f64> {
        let item = self.item(key)?;
        match item.value {
            Node::Integer(integer) => Some(integer as f64),
            Node::Float(float) => Some(float),
            _ => {
                self.expected(item, key, "a number");
                None
            }
        }
    }

    /// A list of texts, each with its place.
    pub(super) fn texts(&self, key: &'static str) -> Option<Vec<(Place, &'a str)>> {
        let item = self.item(key)?;
        let Node::Array(items) = &item.value else {
            self.expected(item, key, "a list of texts");
            return None;
        };
        let text = |item: &'a Item| match &item.value {
            Node::Text(text) => Some((item.place, text.as_str())),
            _ => {
                self.expected(item, key, "a text");
                None
            }
        };
        Some(items.iter().filter_map(text).collect())
    }

    /// A list of owned texts.
    pub(super) fn strings(&self, key: &'static str) -> Option<Vec<String>> {
        let texts = self.texts(key)?;
        Some(texts.into_iter().map(|(_, text)| text.to_owned()).collect())
    }

    /// A table inside this one.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        let item = self.item(key)?;
        self.sub_table(item, key, join(&self.key, key))
    }

    fn sub_table(&self, item: &'a Item, key: &str, path: String) -> Option<Table<'a>> {
        let Node::Table(fields) = &item.value else {
            self.expected(item, key, "a table");
            return None;
        };
        Some(Table::new(fields, item.place, path, self.report))
    }

    /// The entries of the table `key`, each itself a table called by a name: `[events.NAME]`.
    pub(super) fn entries(&self, key: &'static str) -> Vec<(&'a str, Table<'a>)> {
        let Some(table) = self.table(key) else {
            return Vec::new();
        };
        let entry = |(name, item): &'a (String, Item)| {
            Some((name.as_str(), table.sub_table(item, name, join(&table.key, name))?))
        };
        table.fields.iter().filter_map(entry).collect()
    }

    /// A list of tables: `[[rules]]`.
    pub(super) fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        let Some(item) = self.item(key) else {
            return Vec::new();
        };
        let Node::Array(items) = &item.value else {
            self.expected(item, key, "a list of tables");
            return Vec::new();
        };
        let path = join(&self.key, key);
        let table = |(index, item)| self.sub_table(item, key, format!("{path}[{index}]"));
        items.iter().enumerate().filter_map(table).collect()
    }

    /// All entries of a table whose keys are free, such as the parameters of a publication.
    pub(super) fn all(&self) -> &'a Fields {
        self.fields
    }

    /// Reports every key that was never asked for.
    pub(super) fn finish(self) {
        let asked = self.asked.into_inner();
        for (name, item) in self.fields {
            if !asked.contains(&name.as_str()) {
                let suggestion = suggest(name, asked.iter().copied());
                let message = match suggestion {
                    Some(_) => "unknown key".to_owned(),
                    None => format!("unknown key, expected one of {}", asked.join(", ")),
                };
                self.report.note_with_suggestion(item.place, &join(&self.key, name), message, suggestion);
            }
        }
    }
}
