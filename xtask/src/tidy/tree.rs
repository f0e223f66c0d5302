//! The files of the checkout, read once.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Every file that git does not ignore, by its path from the root with `/` between the folders.
///
/// Read from the disk and not from git's index, so that a new file is checked before its first commit, and an archive without
/// `.git` as well.
pub(super) struct Tree {
    /// The text, absent for what is not UTF-8.
    files: BTreeMap<String, Option<String>>,
}

impl Tree {
    /// Reads the checkout at `root`.
    pub(super) fn read(root: &Path) -> Result<Self> {
        let ignored = Ignored::parse(&fs::read_to_string(root.join(".gitignore")).context("reading .gitignore")?);
        let mut tree = Self { files: BTreeMap::new() };
        tree.read_folder(root, "", &ignored)?;
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str, ignored: &Ignored) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let entry = entry?;
            let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type()?;
            if ignored.matches(&path) {
                continue;
            }
            if kind.is_dir() {
                self.read_folder(&entry.path(), &format!("{path}/"), ignored)?;
            } else if kind.is_file() {
                let bytes = fs::read(entry.path()).with_context(|| format!("reading {path}"))?;
                self.files.insert(path, String::from_utf8(bytes).ok());
            }
        }
        Ok(())
    }

    /// A tree of the given files.
    #[cfg(test)]
    pub(super) fn of(files: &[(&str, &str)]) -> Self {
        let files = files.iter().map(|&(path, text)| (path.to_owned(), Some(text.to_owned())));
        Self { files: files.collect() }
    }

    /// How many files there are.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// All paths in order.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// All files that hold text: path and text.
    pub(super) fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, text)| Some((path.as_str(), text.as_deref()?)))
    }

    /// The text of one file.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        self.files.get(path)?.as_deref()
    }

    /// Whether there is a file or a folder at `path`; the empty path is the root.
    pub(super) fn has(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        path.is_empty() || self.files.contains_key(path) || self.paths().any(|file| file.starts_with(&folder))
    }
}

/// The lines of `.gitignore`, of which the project uses two forms: a path (from the root with a leading `/`, anywhere without), and
/// `*` with an ending.
struct Ignored {
    patterns: Vec<String>,
}

impl Ignored {
    fn parse(text: &str) -> Self {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self { patterns: lines.map(|line| line.trim_end_matches('/').to_owned()).collect() }
    }

    fn matches(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        name == ".git"
            || self.patterns.iter().any(|pattern| match (pattern.strip_prefix('/'), pattern.strip_prefix('*')) {
                (Some(from_root), _) => path == from_root,
                (None, Some(ending)) => name.ends_with(ending),
                (None, None) if pattern.contains('/') => path == pattern,
                (None, None) => name == pattern,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_git_ignores_is_not_read() {
        let ignored = Ignored::parse("# built\n/target\nnode_modules/\n*.db\nui/dist\n");
        for path in [".git", "target", "node_modules", "tests/node_modules", "a/b.db", "ui/dist"] {
            assert!(ignored.matches(path), "{path}");
        }
        for path in ["crates/target", "node_modules.md", "db", "clients/ui/dist", ".gitignore"] {
            assert!(!ignored.matches(path), "{path}");
        }
    }

    #[test]
    fn the_checkout_is_read_without_what_was_built_in_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a root");
        let tree = Tree::read(root).expect("the checkout");
        assert!(tree.has("xtask/src/tidy/tree.rs") && tree.has("xtask/src") && tree.has(""));
        assert!(!tree.has("xtask/sr") && !tree.has("target") && !tree.has(".git"));
    }
}
