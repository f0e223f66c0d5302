//! Rust in the README is an example that compiles, word for word.

use super::Violation;
use super::tree::Tree;

const README: &str = "README.md";
const OPEN: &str = "```rust";

/// Rust blocks of the README that stand in no example of the facade.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    let examples = || tree.texts().filter(|(path, _)| path.starts_with("crates/tidewire/examples/"));
    let blocks = rust(tree.text(README).unwrap_or_default());
    let strangers = blocks.into_iter().filter(|(_, code)| !examples().any(|(_, example)| example.contains(code)));
    strangers
        .map(|(line, _)| {
            let sentence =
                "this Rust stands in no file of crates/tidewire/examples, so nobody compiles it: copy it from there";
            Violation::new(README, line, sentence)
        })
        .collect()
}

/// The Rust blocks of a text, each with the line where it opens.
fn rust(text: &str) -> Vec<(usize, &str)> {
    let opened = text.match_indices(OPEN).filter_map(|(at, _)| {
        let line = text[..at].lines().count() + 1;
        let (_, rest) = text[at..].split_once('\n')?;
        Some((line, rest.split("```").next().unwrap_or(rest)))
    });
    opened.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_blocks_are_found_with_their_lines() {
        let text = "# A\n\n```sh\nls\n```\n\n```rust\nlet a = 1;\n```\n\n```rust\nlet b;\n```\n";
        assert_eq!(rust(text), [(7, "let a = 1;\n"), (11, "let b;\n")]);
    }
}
