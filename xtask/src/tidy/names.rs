//! Names of files, folders and modules: the tree is the architecture, so a name must say what is inside.

use super::tree::Tree;
use super::{Violation, exceptions};

const SAY_NOTHING: [&str; 7] = ["common", "helpers", "manager", "misc", "types", "util", "utils"];

/// Files, folders and inline modules whose name would fit anything.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let paths = tree.paths().filter(|path| !exceptions::may_be_named_so(path)).filter_map(|path| {
        let name = path.split('/').map(stem).find(|name| SAY_NOTHING.contains(name))?;
        Some(Violation::new(path, 1, sentence(name)))
    });
    let modules = tree.texts().filter(|(path, _)| path.ends_with(".rs")).flat_map(|(path, text)| {
        text.lines().enumerate().filter_map(move |(index, line)| {
            let name = inline_module(line).filter(|name| SAY_NOTHING.contains(name))?;
            Some(Violation::new(path, index + 1, sentence(name)))
        })
    });
    paths.chain(modules).collect()
}

fn sentence(name: &str) -> String {
    format!("`{name}` fits anything: name it after what it holds, in the words of the glossary")
}

fn stem(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

/// The name of a module with its body in the same file; the others are found by their path.
fn inline_module(line: &str) -> Option<&str> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        ["mod", name, "{", ..] | [_, "mod", name, "{", ..] => Some(name),
        _ => None,
    }
}
