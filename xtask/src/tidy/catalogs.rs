//! The folders under apps/: each is a catalog, and each of its files is read. Whether a catalog is right is `tidewire check`'s to say.

use std::collections::BTreeSet;

use super::Violation;
use super::tree::Tree;

/// Apps without an app.toml, and files of apps that no catalog reads.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let apps: BTreeSet<&str> =
        tree.paths().filter_map(|path| path.strip_prefix("apps/")?.split_once('/')).map(|(app, _)| app).collect();
    apps.into_iter().flat_map(|app| catalog(tree, &format!("apps/{app}"))).collect()
}

fn catalog(tree: &Tree, folder: &str) -> Vec<Violation> {
    let main = format!("{folder}/app.toml");
    let Some(text) = tree.text(&main) else {
        return vec![Violation::new(&main, 1, "an app has its catalog here")];
    };
    let included = includes(text);
    let inside = format!("{folder}/");
    let mine = || tree.texts().filter_map(|(path, text)| Some((path, path.strip_prefix(&inside)?, text)));
    let tables: Vec<_> = mine().filter(|(_, name, _)| name.ends_with(".toml") && *name != "Cargo.toml").collect();

    let mut found = Vec::new();
    for (path, name, _) in mine() {
        let is_table = name.ends_with(".toml") && !["app.toml", "Cargo.toml"].contains(&name);
        if is_table && !included.contains(&name) {
            found.push(Violation::new(
                path,
                1,
                format!("nobody reads this file: add \"{name}\" to `include` in {main}"),
            ));
        }
        let quoted = format!("\"{name}\"");
        if name.starts_with("schemas/") && !tables.iter().any(|(_, _, text)| text.contains(&quoted)) {
            found.push(Violation::new(path, 1, format!("nobody reads this file: no `schema = {quoted}` in {folder}")));
        }
    }
    found
}

/// The names in `include = [ … ]`, which stands before the first table.
fn includes(text: &str) -> Vec<&str> {
    let list = text.lines().scan(0, |offset, line| {
        let start = *offset;
        *offset += line.len() + 1;
        (!line.starts_with('[')).then_some((start, line))
    });
    let is_include = |line: &str| line.split_once('=').is_some_and(|(key, _)| key.trim() == "include");
    let Some((start, _)) = list.into_iter().find(|(_, line)| is_include(line)) else { return Vec::new() };
    let list = text[start..].split(']').next().unwrap_or_default();
    list.split('"').skip(1).step_by(2).collect()
}
