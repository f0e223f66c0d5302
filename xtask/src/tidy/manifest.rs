//! Reading a Cargo.toml: its package's name and what it depends on. Only the forms of TOML that manifests use.

/// What the rules need to know of one Cargo.toml.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    /// `package.name`; empty for a workspace without a package.
    pub(super) name: String,
    /// Whether `[lints]` says `workspace = true`.
    pub(super) has_workspace_lints: bool,
    /// The dependencies of all kinds and targets.
    pub(super) dependencies: Vec<Dependency>,
    /// `[workspace.dependencies]`.
    pub(super) workspace_dependencies: Vec<Dependency>,
}

/// One entry of a table of dependencies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dependency {
    /// The name in this manifest.
    pub(super) key: String,
    /// The name of the package, which `package = …` sets apart from the key.
    pub(super) package: String,
    /// Where the entry starts, from 1.
    pub(super) line: usize,
    /// Whether the entry says `workspace = true`.
    pub(super) is_inherited: bool,
    /// Whether only tests have it.
    pub(super) is_dev: bool,
}

impl Manifest {
    /// Reads what is there; what is not understood is cargo's to complain about.
    pub(super) fn parse(text: &str) -> Self {
        let mut manifest = Self::default();
        let mut section: Vec<&str> = Vec::new();
        let entries = entries(text);
        for (line, entry) in &entries {
            if let Some(header) = entry.strip_prefix('[') {
                section = segments(header.trim_end_matches(']'));
                // `[dependencies.serde]` is an entry even when nothing follows.
                manifest.read(&section, "", *line);
            } else if let Some((key, value)) = entry.split_once('=') {
                let path: Vec<&str> = section.iter().copied().chain(segments(key)).collect();
                manifest.read(&path, value.trim(), *line);
            }
        }
        manifest
    }

    /// Takes in one entry by its whole path: `dependencies`, `serde`, `workspace`.
    fn read(&mut self, path: &[&str], value: &str, line: usize) {
        let path = if let ["target", _, rest @ ..] = path { rest } else { path };
        match path {
            ["package", "name"] => self.name = unquoted(value).to_owned(),
            ["lints", "workspace"] => self.has_workspace_lints = value == "true",
            ["workspace", "dependencies", key, field @ ..] => {
                take(&mut self.workspace_dependencies, key, field, value, line);
            }
            [kind @ ("dependencies" | "dev-dependencies" | "build-dependencies"), key, field @ ..] => {
                take(&mut self.dependencies, key, field, value, line);
                if let Some(taken) = self.dependencies.last_mut() {
                    taken.is_dev = *kind == "dev-dependencies";
                }
            }
            _ => {}
        }
    }
}

/// Adds what an entry says about the dependency `key`: all of it, or one field as in `serde.workspace = true`.
fn take(dependencies: &mut Vec<Dependency>, key: &str, field: &[&str], value: &str, line: usize) {
    // Dotted fields of one dependency follow each other; the same key further up is another kind or target.
    if field.is_empty() || dependencies.last().is_none_or(|last| last.key != key) {
        let (key, package) = (key.to_owned(), key.to_owned());
        dependencies.push(Dependency { key, package, line, is_inherited: false, is_dev: false });
    }
    let Some(dependency) = dependencies.last_mut() else { return };
    let fields = match field {
        [] => inline_table(value),
        [field, ..] => vec![(*field, value)],
    };
    for (field, value) in fields {
        match field {
            "workspace" => dependency.is_inherited = value == "true",
            "package" => dependency.package = unquoted(value).to_owned(),
            _ => {}
        }
    }
}

/// The fields of `{ version = "1", features = ["a", "b"] }`; none of a plain version.
fn inline_table(value: &str) -> Vec<(&str, &str)> {
    let Some(inside) = value.strip_prefix('{').and_then(|value| value.strip_suffix('}')) else { return Vec::new() };
    let fields = split(inside, ',').into_iter().filter_map(|field| field.split_once('='));
    fields.map(|(key, value)| (key.trim(), value.trim())).collect()
}

/// The parts of a key: `target.'cfg(unix)'.dependencies`.
fn segments(key: &str) -> Vec<&str> {
    split(key, '.').into_iter().map(unquoted).collect()
}

fn unquoted(text: &str) -> &str {
    text.trim().trim_matches(['"', '\''])
}

/// The logical lines: without comments and blank lines, and each as long as its brackets are open.
fn entries(text: &str) -> Vec<(usize, String)> {
    let mut entries: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    for (index, line) in text.lines().enumerate() {
        let code = split(line, '#')[0].trim();
        match entries.last_mut().filter(|_| depth > 0) {
            Some((_, entry)) => entry.push_str(code),
            None if code.is_empty() => continue,
            None => entries.push((index + 1, code.to_owned())),
        }
        depth += plain(code).map(|(_, character)| change(character)).sum::<i32>();
    }
    entries
}

/// Splits at a character that stands outside quotes and brackets. At least one part.
fn split(text: &str, at: char) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0);
    for (index, character) in plain(text) {
        depth += change(character);
        if character == at && (depth == 0 || at == '#') {
            parts.push(&text[start..index]);
            start = index + character.len_utf8();
        }
    }
    parts.push(&text[start..]);
    parts
}

fn change(character: char) -> i32 {
    match character {
        '[' | '{' => 1,
        ']' | '}' => -1,
        _ => 0,
    }
}

/// The characters outside quotes. Manifests have no escaped quotes in their strings.
fn plain(text: &str) -> impl Iterator<Item = (usize, char)> {
    let mut quote = None;
    text.char_indices().filter(move |&(_, character)| match quote {
        Some(open) => {
            if character == open {
                quote = None;
            }
            false
        }
        None => {
            if matches!(character, '"' | '\'') {
                quote = Some(character);
            }
            quote.is_none()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_dependency_is_read() {
        let manifest = Manifest::parse(
            r##"
[package] # the crate
name = "a#b"
[lints]
workspace = true

[dependencies]
one = "1" # not = this
two.workspace = true
three = { workspace = true, features = [
    "x", # why
    "y",
] }
four = { package = "real-four", version = "4" }
five.version = "5"
five.features = ["workspace = true"]

[target.'cfg(target.os = "linux")'.build-dependencies]
six = "6"

[dev-dependencies.seven]
version = "7"
package = "real-seven"

[profile.dev.package."*"]
eight = 1
"##,
        );
        assert_eq!(manifest.name, "a#b");
        assert!(manifest.has_workspace_lints);
        let found: Vec<_> = manifest
            .dependencies
            .iter()
            .map(|dependency| {
                (dependency.key.as_str(), dependency.package.as_str(), dependency.line, dependency.is_inherited)
            })
            .collect();
        assert_eq!(
            found,
            [
                ("one", "one", 8, false),
                ("two", "two", 9, true),
                ("three", "three", 10, true),
                ("four", "real-four", 14, false),
                ("five", "five", 15, false),
                ("six", "six", 19, false),
                ("seven", "real-seven", 21, false),
            ]
        );
        assert!(manifest.workspace_dependencies.is_empty());
    }

    #[test]
    fn a_workspace_has_dependencies_of_its_own() {
        let manifest = Manifest::parse("[workspace.dependencies]\na = { path = \"crates/a\" }\nb = \"1\"\n");
        let keys: Vec<_> = manifest.workspace_dependencies.iter().map(|dependency| dependency.key.as_str()).collect();
        assert_eq!(keys, ["a", "b"]);
        assert!(manifest.dependencies.is_empty() && manifest.name.is_empty());
    }
}
