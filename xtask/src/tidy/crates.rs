//! Which crate may depend on which, and how they say so.
//!
//! The direction: `core` knows nobody, the parts know `core` and never each other, `server` and the facade compose them, and what a
//! user starts stands on the facade.

use super::Violation;
use super::manifest::{Dependency, Manifest};
use super::tree::Tree;

const CORE: &str = "tidewire-core";
const WIRE: &str = "tidewire-wire";
const STORE: &str = "tidewire-store";
const RUNTIME: &str = "tidewire-runtime";
const DERIVE: &str = "tidewire-derive";
const GATEWAY: &str = "tidewire-gateway";
const SERVER: &str = "tidewire-server";
const FACADE: &str = "tidewire";
const CLI: &str = "tidewire-cli";
const BENCH: &str = "tidewire-bench";
const XTASK: &str = "xtask";

/// Crates of others that only some of ours may use: which, who, and why.
const RESERVED: [(&str, &[&str], &str); 3] = [
    ("rusqlite", &[STORE, FACADE], "only the store knows SQL, and the facade lends it out"),
    ("hyper", &[GATEWAY, SERVER], "only they speak HTTP below axum"),
    ("anyhow", &[CLI, BENCH, XTASK], "a library has errors of its own, with codes"),
];

/// Who may try itself out on which other part in its own tests, where nothing smaller would prove anything.
const TRIED_ON: [(&str, &str); 1] = [(GATEWAY, STORE)];

/// Crates without IO.
const PURE: [&str; 2] = [CORE, WIRE];

/// A crate of this project.
struct Member<'a> {
    /// The folder of its Cargo.toml.
    folder: &'a str,
    path: &'a str,
    manifest: Manifest,
}

impl Member<'_> {
    fn name(&self) -> &str {
        &self.manifest.name
    }

    fn is_app(&self) -> bool {
        self.folder.starts_with("apps/")
    }

    /// What the crate may use of this project; `None` when nobody decided that yet.
    fn may_use<'b>(&self, members: &'b [Member<'_>]) -> Option<Vec<&'b str>> {
        Some(match self.name() {
            CORE | WIRE | DERIVE | XTASK => vec![],
            STORE | RUNTIME => vec![CORE],
            GATEWAY => vec![CORE, WIRE],
            SERVER => vec![CORE, GATEWAY, RUNTIME],
            // Its own tests turn its testing kit on by depending on it.
            FACADE => vec![CORE, WIRE, STORE, RUNTIME, DERIVE, GATEWAY, SERVER, FACADE],
            BENCH => vec![CORE, WIRE, STORE, RUNTIME, GATEWAY, SERVER, FACADE],
            CLI => members.iter().filter(|member| member.is_app()).map(Member::name).chain([FACADE]).collect(),
            _ if self.is_app() => vec![FACADE],
            _ => return None,
        })
    }
}

/// The direction of dependencies, who may use what, one version for all, and the lints and essay of each crate.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let shared = Manifest::parse(tree.text("Cargo.toml").unwrap_or_default()).workspace_dependencies;
    let manifests = tree.texts().filter_map(|(path, text)| Some((path, path.strip_suffix("/Cargo.toml")?, text)));
    // What begins a workspace of its own, as a peer of the benches does, is no crate of ours.
    let manifests = manifests.filter(|(_, _, text)| !text.lines().any(|line| line.trim() == "[workspace]"));
    let members: Vec<_> =
        manifests.map(|(path, folder, text)| Member { folder, path, manifest: Manifest::parse(text) }).collect();

    let mut found = Vec::new();
    for member in &members {
        let dependencies: Vec<_> =
            member.manifest.dependencies.iter().map(|entry| (entry, package(entry, &shared))).collect();
        found.extend(direction(member, &dependencies, &members));
        found.extend(reserved(member, &dependencies));
        found.extend(pinned(member, &dependencies, &shared));
        found.extend(roots(tree, member));
    }
    found.extend(unused(&members, &shared));
    found
}

/// The package that an entry means, through the workspace when it is inherited.
fn package<'a>(entry: &'a Dependency, shared: &'a [Dependency]) -> &'a str {
    let inherited = shared.iter().find(|shared| entry.is_inherited && shared.key == entry.key);
    &inherited.unwrap_or(entry).package
}

fn direction(member: &Member<'_>, dependencies: &[(&Dependency, &str)], members: &[Member<'_>]) -> Vec<Violation> {
    let name = member.name();
    let Some(allowed) = member.may_use(members) else {
        let sentence = format!("{name} is new: say in xtask/src/tidy/crates.rs what it may depend on");
        return vec![Violation::new(member.path, 1, sentence)];
    };
    let ours = dependencies.iter().filter(|(_, package)| members.iter().any(|other| other.name() == *package));
    let is_tried = |entry: &Dependency, package: &str| entry.is_dev && TRIED_ON.contains(&(name, package));
    let wrong = ours.filter(|(entry, package)| !allowed.contains(package) && !is_tried(entry, package));
    wrong
        .map(|(entry, package)| {
            let list = if allowed.is_empty() { "no crate of this project".to_owned() } else { allowed.join(", ") };
            Violation::new(member.path, entry.line, format!("{name} may not depend on {package}; it may on {list}"))
        })
        .collect()
}

fn reserved(member: &Member<'_>, dependencies: &[(&Dependency, &str)]) -> Vec<Violation> {
    let name = member.name();
    let mut found = Vec::new();
    for (entry, package) in dependencies {
        for (_, only, why) in RESERVED.iter().filter(|(reserved, only, _)| reserved == package && !only.contains(&name))
        {
            let sentence = format!("{package} is for {} alone: {why}", only.join(" and "));
            found.push(Violation::new(member.path, entry.line, sentence));
        }
        if PURE.contains(&name) && package.starts_with("tokio") {
            found.push(Violation::new(member.path, entry.line, format!("{name} does no IO and needs no {package}")));
        }
    }
    found
}

/// Dependencies with a version of their own where the workspace has one for all.
fn pinned(member: &Member<'_>, dependencies: &[(&Dependency, &str)], shared: &[Dependency]) -> Vec<Violation> {
    let own = dependencies.iter().filter(|(entry, _)| !entry.is_inherited);
    let twice = own.filter(|(_, package)| shared.iter().any(|shared| shared.package == *package));
    twice
        .map(|(entry, package)| {
            let sentence = format!("{package} has one version for all: write `{package}.workspace = true`");
            Violation::new(member.path, entry.line, sentence)
        })
        .collect()
}

/// What each crate must have: the lints of the house, and a first line that says what it is.
fn roots(tree: &Tree, member: &Member<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    if !member.manifest.has_workspace_lints {
        let sentence = "the lints of the workspace are missing: add `workspace = true` under [lints]";
        found.push(Violation::new(member.path, 1, sentence));
    }
    for file in ["lib.rs", "main.rs"] {
        let path = format!("{}/src/{file}", member.folder);
        if tree.text(&path).is_some_and(|text| !text.starts_with("//! ")) {
            found.push(Violation::new(&path, 1, "a crate starts with `//!`: what it is, and what it is not"));
        }
    }
    found
}

/// Versions that nobody asks for.
fn unused(members: &[Member<'_>], shared: &[Dependency]) -> Vec<Violation> {
    let is_used = |shared: &Dependency| {
        let mut entries = members.iter().flat_map(|member| &member.manifest.dependencies);
        entries.any(|entry| entry.is_inherited && entry.key == shared.key)
    };
    let unused = shared.iter().filter(|shared| !is_used(shared));
    unused
        .map(|entry| Violation::new("Cargo.toml", entry.line, format!("no crate uses {}: remove it", entry.key)))
        .collect()
}
