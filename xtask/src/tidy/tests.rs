//! The rules about more than one file, each on a checkout of a few lines.

use super::tree::Tree;
use super::{Violation, catalogs, check, crates, links, names};

fn shown(found: &[Violation]) -> Vec<String> {
    found.iter().map(ToString::to_string).collect()
}

/// A manifest that breaks no rule, with `dependencies`.
fn manifest(name: &str, dependencies: &str) -> String {
    format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n[dependencies]\n{dependencies}")
}

/// What the rules about crates say when `core` and `store` are there and another crate is added.
fn with_crate(folder: &str, name: &str, dependencies: &str) -> Vec<String> {
    let path = format!("{folder}/Cargo.toml");
    let tree = Tree::of(&[
        (
            "Cargo.toml",
            "[workspace.dependencies]\ntidewire-core = { path = \"crates/core\" }\ntidewire-store = { path = \"crates/store\" }\n",
        ),
        ("crates/core/Cargo.toml", &manifest("tidewire-core", "")),
        ("crates/store/Cargo.toml", &manifest("tidewire-store", "tidewire-core.workspace = true\n")),
        ("bench/Cargo.toml", &manifest("tidewire-bench", "tidewire-store.workspace = true\n")),
        (&path, &manifest(name, dependencies)),
    ]);
    shown(&crates::check(&tree))
}

#[test]
fn the_parts_know_core_and_not_each_other() {
    assert_eq!(with_crate("crates/runtime", "tidewire-runtime", "tidewire-core.workspace = true\n"), [""; 0]);
    assert_eq!(
        with_crate(
            "crates/runtime",
            "tidewire-runtime",
            "tidewire-core.workspace = true\ntidewire-store.workspace = true\n"
        ),
        ["crates/runtime/Cargo.toml:7: tidewire-runtime may not depend on tidewire-store; it may on tidewire-core"]
    );
    assert_eq!(
        with_crate("crates/wire", "tidewire-wire", "x = { package = \"tidewire-bench\", path = \"../../bench\" }\n"),
        [
            "crates/wire/Cargo.toml:6: tidewire-wire may not depend on tidewire-bench; it may on no crate of this project"
        ]
    );
}

#[test]
fn a_part_may_be_tried_on_another_in_its_tests() {
    let store = "tidewire-core.workspace = true\n\n[dev-dependencies]\ntidewire-store.workspace = true\n";
    assert_eq!(with_crate("crates/gateway", "tidewire-gateway", store), [""; 0]);
    assert_eq!(
        with_crate("crates/runtime", "tidewire-runtime", store),
        ["crates/runtime/Cargo.toml:9: tidewire-runtime may not depend on tidewire-store; it may on tidewire-core"]
    );
    assert_eq!(
        with_crate("crates/gateway", "tidewire-gateway", "tidewire-store.workspace = true\n"),
        [
            "crates/gateway/Cargo.toml:6: tidewire-gateway may not depend on tidewire-store; it may on tidewire-core, tidewire-wire"
        ]
    );
}

#[test]
fn an_app_stands_on_the_facade_and_the_binary_on_the_apps() {
    let facade = manifest("tidewire", "");
    let app = manifest("shop", "tidewire = { path = \"../../crates/tidewire\" }\n");
    let cli = manifest("tidewire-cli", "shop = { path = \"../../apps/shop\" }\n");
    let files =
        [("crates/tidewire/Cargo.toml", &*facade), ("apps/shop/Cargo.toml", &app), ("crates/cli/Cargo.toml", &cli)];
    assert_eq!(shown(&crates::check(&Tree::of(&files))), [""; 0]);
    assert_eq!(
        with_crate("apps/shop", "shop", "tidewire-core.workspace = true\n"),
        ["apps/shop/Cargo.toml:6: shop may not depend on tidewire-core; it may on tidewire"]
    );
}

#[test]
fn a_new_crate_gets_its_place_first() {
    assert_eq!(
        with_crate("crates/mail", "tidewire-mail", ""),
        ["crates/mail/Cargo.toml:1: tidewire-mail is new: say in xtask/src/tidy/crates.rs what it may depend on"]
    );
    assert_eq!(
        with_crate("bench/peers/mail", "mail", "serde = \"1\"\n[workspace]\n"),
        [""; 0],
        "a workspace of its own"
    );
}

#[test]
fn some_crates_are_for_some_of_ours() {
    assert_eq!(with_crate("crates/server", "tidewire-server", "hyper = \"1\"\n"), [""; 0]);
    assert_eq!(
        with_crate("crates/server", "tidewire-server", "db = { package = \"rusqlite\", version = \"1\" }\n"),
        [
            "crates/server/Cargo.toml:6: rusqlite is for tidewire-store and tidewire alone: only the store knows SQL, and the facade lends it out"
        ]
    );
    assert_eq!(
        with_crate("crates/wire", "tidewire-wire", "tokio-util = \"1\"\n"),
        ["crates/wire/Cargo.toml:6: tidewire-wire does no IO and needs no tokio-util"]
    );
}

#[test]
fn a_dependency_has_one_version_and_a_user() {
    assert_eq!(
        with_crate("crates/gateway", "tidewire-gateway", "tidewire-core = { path = \"../core\" }\n"),
        ["crates/gateway/Cargo.toml:6: tidewire-core has one version for all: write `tidewire-core.workspace = true`"]
    );
    let root = "[workspace.dependencies]\n\nserde = \"1\"\n";
    let core = manifest("tidewire-core", "serde = \"1\"\n");
    assert_eq!(
        shown(&crates::check(&Tree::of(&[("Cargo.toml", root), ("crates/core/Cargo.toml", &core)]))),
        [
            "crates/core/Cargo.toml:6: serde has one version for all: write `serde.workspace = true`",
            "Cargo.toml:3: no crate uses serde: remove it",
        ]
    );
}

#[test]
fn a_crate_has_lints_and_says_what_it_is() {
    let tree =
        Tree::of(&[("xtask/Cargo.toml", "[package]\nname = \"xtask\"\n"), ("xtask/src/main.rs", "fn main() {}\n")]);
    assert_eq!(
        shown(&crates::check(&tree)),
        [
            "xtask/Cargo.toml:1: the lints of the workspace are missing: add `workspace = true` under [lints]",
            "xtask/src/main.rs:1: a crate starts with `//!`: what it is, and what it is not",
        ]
    );
}

#[test]
fn every_file_of_a_catalog_is_read() {
    let app = "# A shop.\ninclude = [\n  \"events.toml\",\n  \"jobs.toml\",\n]\n[app]\n";
    let tree = Tree::of(&[
        ("apps/shop/app.toml", app),
        ("apps/shop/events.toml", "[events.sold]\nschema = \"schemas/sold.json\"\n"),
        ("apps/shop/extra.toml", ""),
        ("apps/shop/Cargo.toml", ""),
        ("apps/shop/schemas/sold.json", "{}"),
        ("apps/shop/schemas/lost.json", "{}"),
        ("apps/shop/src/lib.rs", ""),
        ("apps/empty/events.toml", ""),
    ]);
    assert_eq!(
        shown(&catalogs::check(&tree)),
        [
            "apps/empty/app.toml:1: an app has its catalog here",
            "apps/shop/extra.toml:1: nobody reads this file: add \"extra.toml\" to `include` in apps/shop/app.toml",
            "apps/shop/schemas/lost.json:1: nobody reads this file: no `schema = \"schemas/lost.json\"` in apps/shop",
        ]
    );
}

#[test]
fn links_lead_somewhere() {
    let page = "[root](../README.md#start) [a](a.md) and [folder](./pictures/) <img src=\"pictures/one.png\">\n\
                [web](https://example.com/x.md) [here](#above) [mail](mailto:a@b.c)\n\
                ```\nlist[0](gone.md)\n```\n\
                [gone](gone.md \"title\")\n[out](../../elsewhere.md)\n[name]: <pictures/two.png>\n";
    let tree = Tree::of(&[("README.md", ""), ("docs/a.md", page), ("docs/pictures/one.png", "")]);
    assert_eq!(
        shown(&links::check(&tree)),
        [
            "docs/a.md:6: a link to docs/gone.md, which is not there",
            "docs/a.md:7: the link ../../elsewhere.md leaves the checkout",
            "docs/a.md:8: a link to docs/pictures/two.png, which is not there",
        ]
    );
}

#[test]
fn names_say_what_is_inside() {
    let tree = Tree::of(&[
        ("a/src/utils/x.rs", ""),
        ("a/src/helpers.rs", ""),
        ("a/src/event_types.rs", "mod types;\npub(crate) mod misc {\n}\nmod common {\n}\n"),
    ]);
    assert_eq!(
        shown(&names::check(&tree))
            .iter()
            .map(|line| line.split(" fits").next().unwrap_or_default())
            .collect::<Vec<_>>(),
        [
            "a/src/helpers.rs:1: `helpers`",
            "a/src/utils/x.rs:1: `utils`",
            "a/src/event_types.rs:2: `misc`",
            "a/src/event_types.rs:4: `common`",
        ]
    );
}

#[test]
fn violations_come_by_file_and_line() {
    let tree = Tree::of(&[("b.md", "x \n[y](z)\n"), ("a.css", "x \n")]);
    let found = check(&tree);
    assert_eq!(
        found.iter().map(|one| (one.path.as_str(), one.line)).collect::<Vec<_>>(),
        [("a.css", 1), ("b.md", 1), ("b.md", 2)]
    );
}
