//! Rules about the lines of a file: its length, its white space, and words that have no place in finished source.
//!
//! The words are spelled in two halves here, so that this file obeys itself.

use super::tree::Tree;
use super::{Violation, exceptions};

/// Past this many lines a file has two subjects.
const MOST_LINES: usize = 600;

/// Marks of unfinished work, as whole words.
const UNFINISHED: [&str; 2] = [concat!("TO", "DO"), concat!("FIX", "ME")];

/// Rust macros that must not be committed.
const MACROS: [&str; 3] = [concat!("todo", "!"), concat!("unimplemented", "!"), concat!("dbg", "!")];

/// A Rust test that is switched off.
const SWITCHED_OFF: &str = concat!("#[", "ignore");

/// A JavaScript test that switches off all others.
const ALONE: &str = concat!(".on", "ly(");

/// Folders of one machine, which a checkout does not have.
const ELSEWHERE: [&str; 4] =
    [concat!("../sha", "red"), concat!("/work/sha", "red"), concat!("/work/ma", "in"), concat!(".lib", "rary")];

/// What may follow the keyword in Rust.
const KEYWORD: &str = concat!("un", "safe");
const AFTER_KEYWORD: [&str; 6] = ["{", "(", "fn ", "impl ", "impl<", "trait "];

/// Everything about the text of the files that somebody writes by hand.
pub(super) fn check(tree: &Tree) -> Vec<Violation> {
    tree.texts().filter(|(path, _)| !exceptions::is_not_ours(path)).flat_map(|(path, text)| file(path, text)).collect()
}

fn file(path: &str, text: &str) -> Vec<Violation> {
    let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
    let is_rust = ending == "rs";
    let is_script = matches!(ending, "js" | "mjs" | "ts" | "tsx");
    let mut found = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let mut note = |sentence: String| found.push(Violation::new(path, index + 1, sentence));
        if line.contains('\t') {
            note("a tab: indent with spaces, write \\t in a string".to_owned());
        }
        if line.ends_with([' ', '\t', '\r']) {
            note("white space at the end of the line".to_owned());
        }
        for word in UNFINISHED.iter().filter(|word| has_word(line, word)) {
            note(format!("{word}: finish it, or write it down under \"Known gaps\" in CHANGELOG.md"));
        }
        for folder in ELSEWHERE.iter().filter(|folder| line.contains(*folder)) {
            note(format!("{folder} is not in the checkout: say it here"));
        }
        if is_script && line.contains(ALONE) {
            note(format!("`{ALONE}` switches all other tests off"));
        }
        if is_rust {
            for name in MACROS.iter().filter(|name| starts_a_word(line, name)) {
                note(format!("`{name}` must not stay in the source"));
            }
            if line.contains(SWITCHED_OFF) {
                note(format!("`{SWITCHED_OFF}]`: a test that does not run proves nothing; make it fast or remove it"));
            }
            if is_unchecked(line) && !exceptions::may_be_unchecked(path) {
                note(format!("`{KEYWORD}`: find a way that the compiler can check"));
            }
        }
    }
    let lines = text.lines().count();
    if (is_rust || is_script || ending == "css") && lines > MOST_LINES && !exceptions::may_be_long(path) {
        let sentence = format!("{lines} lines, at most {MOST_LINES}: find the second subject and give it a file");
        found.push(Violation::new(path, MOST_LINES + 1, sentence));
    }
    found
}

/// Whether the code of a Rust line uses the keyword; what follows `//` is prose.
fn is_unchecked(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or(line);
    places(code, KEYWORD).any(|(before, after)| {
        let after = after.trim_start();
        !ends_in_a_word(before)
            && (AFTER_KEYWORD.iter().any(|next| after.starts_with(next)) || after.starts_with("extern"))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    places(line, word).any(|(before, after)| {
        !ends_in_a_word(before) && !after.starts_with(|next: char| next.is_alphanumeric() || next == '_')
    })
}

fn starts_a_word(line: &str, word: &str) -> bool {
    places(line, word).any(|(before, _)| !ends_in_a_word(before))
}

fn ends_in_a_word(text: &str) -> bool {
    text.ends_with(|last: char| last.is_alphanumeric() || last == '_')
}

/// What stands before and after each occurrence of `needle`.
fn places<'a>(line: &'a str, needle: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
    line.match_indices(needle).map(move |(index, _)| (&line[..index], &line[index + needle.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentences(path: &str, text: &str) -> Vec<String> {
        file(path, text).into_iter().map(|violation| format!("{}: {}", violation.line, violation.sentence)).collect()
    }

    #[test]
    fn white_space_is_clean() {
        assert!(sentences("a.md", "one\n\ntwo\n").is_empty());
        let found = sentences("a.md", "one \n\ttwo\nthree\r\n");
        assert_eq!(found.len(), 3);
        assert!(
            found[0].starts_with("1: white space")
                && found[1].starts_with("2: a tab")
                && found[2].starts_with("3: white")
        );
    }

    #[test]
    fn unfinished_work_is_found_as_a_whole_word() {
        for word in UNFINISHED {
            assert_eq!(sentences("a.css", &format!("/* {word}: later */")).len(), 1);
            assert!(sentences("a.css", &format!("/* {word}S and MY_{word} */")).is_empty());
        }
    }

    #[test]
    fn macros_and_switched_off_tests_have_no_place_in_rust() {
        for name in MACROS {
            assert_eq!(sentences("a.rs", &format!("let x = {name}(1);")).len(), 1);
            assert!(sentences("a.rs", &format!("let x = my_{name}(1);")).is_empty());
            assert!(sentences("a.md", &format!("`{name}`")).is_empty());
        }
        assert_eq!(sentences("a.rs", &format!("    {SWITCHED_OFF} = \"slow\"]")).len(), 1);
    }

    #[test]
    fn a_script_runs_all_its_tests() {
        assert_eq!(sentences("a.mjs", &format!("test{ALONE}\"one\", run);")).len(), 1);
        assert!(sentences("a.rs", &format!("filter{ALONE}1)")).is_empty());
    }

    #[test]
    fn the_compiler_checks_everything() {
        for code in ["{ x() }", "fn x() {}", "impl Send for X {}", "extern \"C\" {}", "(no_mangle)"] {
            assert_eq!(sentences("a.rs", &format!("{KEYWORD} {code}")).len(), 1, "{code}");
        }
        for line in ["// an KEY fn x()", "is_KEY (x)", "KEY_code = 1", "the KEY word"] {
            assert!(sentences("a.rs", &line.replace("KEY", KEYWORD)).is_empty(), "{line}");
        }
    }

    #[test]
    fn the_text_needs_nothing_outside_the_checkout() {
        for folder in ELSEWHERE {
            assert_eq!(sentences("docs/a.md", &format!("see {folder}/x")).len(), 1);
        }
    }

    #[test]
    fn a_long_file_is_two() {
        assert!(sentences("a.rs", &"x\n".repeat(MOST_LINES)).is_empty());
        assert!(sentences("a.sql", &"x\n".repeat(MOST_LINES + 1)).is_empty());
        for path in ["a.rs", "a.mjs", "a.js", "a.css"] {
            assert_eq!(
                sentences(path, &"x\n".repeat(MOST_LINES + 1)),
                ["601: 601 lines, at most 600: find the second subject and give it a file"]
            );
        }
    }
}
