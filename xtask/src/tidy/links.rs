//! Links between the files of the checkout: what a page points at is there.

use super::Violation;
use super::tree::Tree;

/// Relative links of Markdown pages that lead nowhere.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    tree.texts().filter(|(path, _)| path.ends_with(".md")).flat_map(|(path, text)| page(tree, path, text)).collect()
}

fn page(tree: &Tree, path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        if is_code {
            continue;
        }
        for target in targets(line).into_iter().filter(|target| is_relative(target)) {
            let file = target.split(['#', '?']).next().unwrap_or(target);
            if file.is_empty() {
                continue;
            }
            match resolve(path, file) {
                Some(resolved) if tree.has(&resolved) => {}
                Some(resolved) => {
                    found.push(Violation::new(path, index + 1, format!("a link to {resolved}, which is not there")))
                }
                None => found.push(Violation::new(path, index + 1, format!("the link {target} leaves the checkout"))),
            }
        }
    }
    found
}

/// What a line links to: `[text](target "title")`, `[name]: target`, `src="target"`, `href="target"`.
fn targets(line: &str) -> Vec<&str> {
    let mut targets = Vec::new();
    for (start, end) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
        targets.extend(line.split(start).skip(1).filter_map(|rest| rest.split_once(end)).map(|(target, _)| target));
    }
    if line.starts_with('[') {
        targets.extend(line.split_once("]: ").map(|(_, target)| target));
    }
    targets
        .into_iter()
        .filter_map(|target| target.split_whitespace().next())
        .map(|target| target.trim_matches(['<', '>']))
        .collect()
}

/// Whether the target is a file of ours: no scheme, no host.
fn is_relative(target: &str) -> bool {
    !target.starts_with('/') && !target.split(['/', '#', '?']).next().unwrap_or(target).contains(':')
}

/// The path from the root that `target` means on the page at `path`; `None` outside the root.
fn resolve(path: &str, target: &str) -> Option<String> {
    let mut folders: Vec<&str> = path.split('/').collect();
    folders.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                folders.pop()?;
            }
            name => folders.push(name),
        }
    }
    Some(folders.join("/"))
}
