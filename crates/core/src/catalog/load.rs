//! Reading a catalog: `app.toml` and the files that it includes, merged, resolved and checked in one go.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::alerts::alerts;
use super::raw::{Fields, Item, Node, Place, Report, Table, join};
use super::{Catalog, realtime, rules, work};

/// The most files of one catalog, `app.toml` among them.
const MOST_FILES: usize = 32;
/// The largest file of a catalog in bytes.
const LARGEST_FILE: u64 = 1024 * 1024;
/// The most events, queues, jobs, schedules and so on, of each.
const MOST_ENTRIES: usize = 10_000;
/// The longest name of an event, queue, job or schedule in bytes.
const LONGEST_NAME: usize = 128;

/// One mistake in a catalog and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, with the folder as it was given to [`load`].
    pub file: String,
    /// The line, from 1; 0 when the file itself is the problem.
    pub line: usize,
    /// The column in characters, from 1; 0 when the file itself is the problem.
    pub column: usize,
    /// The key at fault: `events."berth:updated".rooms`. Empty when the file is not TOML.
    pub key: String,
    /// What was expected and what was found.
    pub message: String,
    /// The name that was probably meant.
    pub suggestion: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, "; did you mean {suggestion:?}?")?;
        }
        Ok(())
    }
}

/// A catalog that cannot be used. Shown as one problem per line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    /// Every problem that was found, at most 200, by file and line.
    pub problems: Vec<Problem>,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let newline = if index == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for LoadError {}

/// Reads the catalog in the folder `dir`: `app.toml` and the files of its `include`, which are plain names of files in the same folder.
/// At most 32 files of at most 1 MiB.
///
/// The error lists everything that is wrong, except that references are only looked at once all files are TOML.
pub fn load(dir: &Path) -> Result<Catalog, LoadError> {
    let mut report = Report::default();
    let root = read_all(dir, &mut report);
    finish(report, root)
}

/// Reads a catalog from the text of a single `app.toml` without includes. Problems call the file `app.toml`.
pub fn parse(text: &str) -> Result<Catalog, LoadError> {
    let mut report = Report::default();
    let start = report.add_file("app.toml".to_owned(), text.to_owned());
    let root = report.parse(start);
    finish(report, Some((start, root)))
}

fn finish(report: Report, root: Option<(Place, Fields)>) -> Result<Catalog, LoadError> {
    let catalog = match &root {
        Some((start, root)) if report.is_clean() => Some(resolve(root, *start, &report)),
        Some(_) | None => None,
    };
    let mut problems = report.into_problems();
    match catalog {
        Some(catalog) if problems.is_empty() => Ok(catalog),
        Some(_) | None => {
            problems.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
            Err(LoadError { problems })
        }
    }
}

fn read_all(dir: &Path, report: &mut Report) -> Option<(Place, Fields)> {
    let (start, mut root) = read_file(dir, "app.toml", report)?;
    let mut names: Vec<&str> = vec!["app.toml"];
    let includes = root.iter().position(|(key, _)| key == "include").map(|index| root.remove(index).1);
    let mut included = Vec::new();
    let includes: Vec<_> = includes.iter().flat_map(|item| include_names(item, report)).collect();
    for (place, name) in includes {
        let is_plain = name.ends_with(".toml") && !name.starts_with('.') && !name.contains(['/', '\\', ':', '\0']);
        if !is_plain {
            report.note(
                place,
                "include",
                format!("expected the name of a .toml file in the same folder, got {name:?}"),
            );
        } else if names.contains(&name) {
            report.note(place, "include", format!("{name:?} is included twice"));
        } else if names.len() == MOST_FILES {
            report.note(place, "include", format!("expected at most {MOST_FILES} files"));
            break;
        } else {
            names.push(name);
            included.extend(read_file(dir, name, report));
        }
    }
    for (_, fields) in included {
        if let Some((_, item)) = fields.iter().find(|(key, _)| key == "include") {
            report.note(item.place, "include", "only app.toml can include files");
        }
        merge(&mut root, fields.into_iter().filter(|(key, _)| key != "include"), "", report);
    }
    Some((start, root))
}

fn include_names<'a>(item: &'a Item, report: &Report) -> Vec<(Place, &'a str)> {
    let list = match &item.value {
        Node::Array(items) => items.as_slice(),
        _ => &[],
    };
    let name = |item: &'a Item| match &item.value {
        Node::Text(name) => Some((item.place, name.as_str())),
        _ => None,
    };
    let names: Vec<_> = list.iter().filter_map(name).collect();
    if names.is_empty() || names.len() < list.len() {
        report.note(item.place, "include", "expected a list of file names, such as [\"events.toml\"]");
    }
    names
}

fn read_file(dir: &Path, name: &str, report: &mut Report) -> Option<(Place, Fields)> {
    let path = dir.join(name);
    let shown = path.display().to_string();
    let mut text = String::new();
    let read = File::open(&path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_string(&mut text));
    let message = match read {
        Ok(size) if size as u64 <= LARGEST_FILE => {
            let start = report.add_file(shown, text);
            return Some((start, report.parse(start)));
        }
        Ok(_) => "expected a file of at most 1 MiB".to_owned(),
        Err(error) => format!("cannot be read: {error}"),
    };
    let problem = Problem { file: shown, line: 0, column: 0, key: String::new(), message, suggestion: None };
    report.push(problem);
    None
}

/// Adds the tables of a file to those that are there. Tables of the first level are joined entry by entry and lists one behind the other;
/// anything that two files declare is a problem.
fn merge(into: &mut Fields, from: impl Iterator<Item = (String, Item)>, parent: &str, report: &Report) {
    let mut known: HashMap<String, usize> =
        into.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
    for (key, item) in from {
        let Some(index) = known.get(&key) else {
            known.insert(key.clone(), into.len());
            into.push((key, item));
            continue;
        };
        let existing = &mut into[*index].1;
        let is_section = parent.is_empty();
        match (&mut existing.value, item.value) {
            (Node::Table(into), Node::Table(from)) if is_section => merge(into, from.into_iter(), &key, report),
            (Node::Array(into), Node::Array(from)) if is_section => into.extend(from),
            _ => {
                let path = join(parent, &key);
                report.note(item.place, &path, format!("already declared at {}", report.locate(existing.place)));
            }
        }
    }
}

fn resolve(root: &Fields, start: Place, report: &Report) -> Catalog {
    let top = Table::new(root, start, String::new(), report);
    let app = realtime::app(&top);
    let auth = realtime::auth(&top, &app);
    let realtime = realtime::realtime(&top);
    let rooms = realtime::rooms(&top, &auth);
    let events = realtime::events(&top, &auth, &rooms);
    let queues = work::queues(&top);
    let jobs = work::jobs(&top, &queues);
    let messages = realtime::messages(&top, &auth, &rooms, &events, &jobs);
    let schedules = work::schedules(&top, &app, &jobs);
    let rules = rules::rules(&top, &auth, &events, &jobs);
    let alerts = alerts(&top, &auth, &events, &jobs);
    let caches = work::caches(&top);
    top.finish();
    Catalog { app, auth, realtime, rooms, events, messages, queues, jobs, schedules, rules, alerts, caches }
}

/// The entries of `[section.NAME]`, with at most 10,000 of them and each name checked.
pub(super) fn named_entries<'a>(top: &Table<'a>, section: &'static str) -> Vec<(&'a str, Table<'a>)> {
    let mut entries = top.entries(section);
    if entries.len() > MOST_ENTRIES {
        top.wrong(section, format!("expected at most {MOST_ENTRIES} entries, got {}", entries.len()));
        entries.truncate(MOST_ENTRIES);
    }
    for (name, table) in &entries {
        let is_name = (1..=LONGEST_NAME).contains(&name.len())
            && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '*');
        if !is_name {
            let message =
                format!("expected a name of 1 to {LONGEST_NAME} bytes without spaces, control characters or *");
            report_name(table, message);
        }
    }
    entries
}

/// Notes a problem with the name of an entry.
pub(super) fn report_name(table: &Table<'_>, message: impl Into<String>) {
    table.report.note(table.place, &table.key, message);
}
