//! `cargo xtask tidy`: the rules of the house that a compiler does not know, checked on the text of the checkout in a moment.
//!
//! Each rule is a pure function from the [`Tree`] to [`Violation`]s. What a rule does not bind stands in [`exceptions`], with the reason.

mod catalogs;
mod crates;
mod exceptions;
mod lines;
mod links;
mod manifest;
mod names;
mod snippets;
#[cfg(test)]
mod tests;
mod tree;

use std::fmt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;

use tree::Tree;

/// One place that breaks a rule. Shown as `path:line: sentence`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    path: String,
    /// From 1.
    line: usize,
    /// What is wrong and what to do.
    sentence: String,
}

impl Violation {
    fn new(path: &str, line: usize, sentence: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, sentence: sentence.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.sentence)
    }
}

/// Prints what breaks a rule; exit code 1 when anything does.
pub(crate) fn run(root: &Path) -> Result<ExitCode> {
    let tree = Tree::read(root)?;
    let mut found = check(&tree);
    found.extend(exceptions::check(&tree));
    for violation in &found {
        println!("{violation}");
    }
    if found.is_empty() {
        println!("tidy: nothing to say about {} files", tree.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {} places break a rule", found.len());
    Ok(ExitCode::FAILURE)
}

/// Everything that breaks a rule, by file and line.
fn check(tree: &Tree) -> Vec<Violation> {
    let rules = [names::check, lines::check, crates::check, catalogs::check, links::check, snippets::check];
    let mut found: Vec<_> = rules.iter().flat_map(|rule| rule(tree)).collect();
    found.sort();
    found
}
