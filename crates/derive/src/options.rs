//! What stands in `#[job(…)]`, read and checked.

use std::time::Duration;

use syn::meta::ParseNestedMeta;
use syn::{Attribute, Error, Lit, LitInt, LitStr, Result};

use crate::duration;
use crate::unique::{Template, Unique};

const KNOWN: &str = "type, queue, attempts, backoff, timeout, ttl, retry_for, priority, key, unique";

/// The most runs that a job may have; the store's own bound.
const MAX_ATTEMPTS: u16 = 1_000;

/// The longest list of delays.
const MAX_DELAYS: usize = 100;

/// The options of a job type. Absent ones are the catalog's.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) kind: Option<String>,
    pub(crate) queue: Option<String>,
    pub(crate) attempts: Option<u16>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) ttl: Option<Duration>,
    pub(crate) retry_for: Option<Duration>,
    pub(crate) priority: Option<u8>,
    pub(crate) key: Option<Template>,
    pub(crate) unique: Option<Unique>,
}

/// The waiting times between attempts.
#[derive(Debug, PartialEq)]
pub(crate) enum Backoff {
    Fixed { base: Duration, jitter: Jitter },
    Exponential { base: Duration, factor: f64, cap: Duration, jitter: Jitter },
    Delays(Vec<Duration>),
}

/// Randomness in a delay.
#[derive(Debug, PartialEq)]
pub(crate) enum Jitter {
    Share(f64),
    Added(Duration),
}

impl Options {
    /// Reads all `#[job(…)]` of a type.
    pub(crate) fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut options = Self::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("job")) {
            attribute.parse_nested_meta(|meta| options.option(&meta))?;
        }
        Ok(options)
    }

    fn option(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let name = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
        let is_new = match name.as_str() {
            "type" => self.kind.replace(name_of(meta)?).is_none(),
            "queue" => self.queue.replace(name_of(meta)?).is_none(),
            "attempts" => self.attempts.replace(attempts(meta)?).is_none(),
            "backoff" => self.backoff.replace(text(meta, backoff)?).is_none(),
            "timeout" => self.timeout.replace(text(meta, |text| some_time("timeout", text))?).is_none(),
            "ttl" => self.ttl.replace(text(meta, |text| some_time("ttl", text))?).is_none(),
            "retry_for" => self.retry_for.replace(text(meta, |text| some_time("retry_for", text))?).is_none(),
            "priority" => self.priority.replace(priority(meta)?).is_none(),
            "key" => self.key.replace(text(meta, Template::read)?).is_none(),
            "unique" => self.unique.replace(Unique::read(meta)?).is_none(),
            _ => return Err(meta.error(format!("there is no such option of a job; expected one of {KNOWN}"))),
        };
        if is_new { Ok(()) } else { Err(meta.error(format!("`{name}` is given twice"))) }
    }
}

/// A text that `read` understands; its error stands at the text.
fn text<T>(meta: &ParseNestedMeta<'_>, read: impl FnOnce(&str) -> std::result::Result<T, String>) -> Result<T> {
    let text: LitStr = meta.value()?.parse()?;
    read(&text.value()).map_err(|wrong| Error::new(text.span(), wrong))
}

fn name_of(meta: &ParseNestedMeta<'_>) -> Result<String> {
    text(meta, |name| match name {
        "" => Err("expected the name that the catalog has for it".to_owned()),
        name => Ok(name.to_owned()),
    })
}

fn attempts(meta: &ParseNestedMeta<'_>) -> Result<u16> {
    let number: LitInt = meta.value()?.parse()?;
    let attempts = number.base10_parse::<u16>().ok().filter(|attempts| (1..=MAX_ATTEMPTS).contains(attempts));
    attempts.ok_or_else(|| Error::new(number.span(), format!("attempts: expected 1 to {MAX_ATTEMPTS}")))
}

fn priority(meta: &ParseNestedMeta<'_>) -> Result<u8> {
    let given: Lit = meta.value()?.parse()?;
    let priority = match &given {
        Lit::Int(number) => number.base10_parse::<u8>().ok().filter(|priority| (1..=5).contains(priority)),
        Lit::Str(name) => match name.value().as_str() {
            "critical" => Some(1),
            "high" => Some(2),
            "normal" => Some(3),
            "low" => Some(4),
            _ => None,
        },
        _ => None,
    };
    priority.ok_or_else(|| {
        Error::new(given.span(), "priority: expected 1 (first) to 5, \"critical\", \"high\", \"normal\" or \"low\"")
    })
}

fn some_time(name: &str, text: &str) -> std::result::Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err(format!("{name}: expected more than 0")),
        time => Ok(time),
    }
}

/// `fixed(5s)`, `exponential(1s, factor 2, cap 5m)`, each with `jitter 0.2` or `jitter 1s` if wanted, or a list such as `1s, 10s, 1m`.
fn backoff(text: &str) -> std::result::Result<Backoff, String> {
    let text = text.trim();
    let Some((kind, inner)) = text.split_once('(') else {
        let delays =
            text.split(',').map(|delay| duration::parse(delay.trim())).collect::<std::result::Result<Vec<_>, _>>();
        let delays = delays.map_err(|wrong| {
            let forms = "\"fixed(5s)\", \"exponential(1s, factor 2, cap 5m)\" or a list such as \"1s, 10s, 1m\"";
            format!("backoff: expected {forms}; in a list: {wrong}")
        })?;
        if delays.len() > MAX_DELAYS {
            return Err(format!("backoff: expected at most {MAX_DELAYS} delays, got {}", delays.len()));
        }
        return Ok(Backoff::Delays(delays));
    };
    let inner = inner.strip_suffix(')').ok_or("backoff: the parenthesis is not closed")?;
    let mut parts = inner.split(',').map(str::trim);
    let base = duration::parse(parts.next().unwrap_or_default()).map_err(|wrong| format!("backoff: {wrong}"))?;
    let (mut factor, mut cap, mut jitter) = (None, None, None);
    for part in parts {
        let (name, value) = part.split_once(' ').unwrap_or((part, ""));
        let value = value.trim();
        let is_new = match (kind, name) {
            ("exponential", "factor") => factor.replace(factor_of(value)?).is_none(),
            ("exponential", "cap") => {
                cap.replace(duration::parse(value).map_err(|wrong| format!("backoff: cap: {wrong}"))?).is_none()
            }
            ("exponential" | "fixed", "jitter") => jitter.replace(jitter_of(value)?).is_none(),
            ("exponential", _) => return Err(format!("backoff: expected factor, cap or jitter, got {part:?}")),
            _ => return Err(format!("backoff: after the delay expected jitter, got {part:?}")),
        };
        if !is_new {
            return Err(format!("backoff: {name} is given twice"));
        }
    }
    let jitter = jitter.unwrap_or(Jitter::Share(0.0));
    match kind {
        "fixed" => Ok(Backoff::Fixed { base, jitter }),
        "exponential" => {
            let (factor, cap) = (factor.unwrap_or(2.0), cap.unwrap_or(Duration::from_secs(300)));
            Ok(Backoff::Exponential { base, factor, cap, jitter })
        }
        _ => Err(format!("backoff: expected fixed(…), exponential(…) or a list of delays, got {kind:?}")),
    }
}

fn factor_of(value: &str) -> std::result::Result<f64, String> {
    let factor = value.parse().ok().filter(|factor| (1.0..=1000.0).contains(factor));
    factor.ok_or_else(|| format!("backoff: factor: expected a number from 1 to 1000, got {value:?}"))
}

fn jitter_of(value: &str) -> std::result::Result<Jitter, String> {
    let wrong = || format!("backoff: jitter: expected a share from 0 to 1 or a duration, got {value:?}");
    match value.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(Jitter::Share(share)),
        Ok(_) => Err(wrong()),
        Err(_) => duration::parse(value).map(Jitter::Added).map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use syn::DeriveInput;

    use super::*;

    fn read(options: &str) -> Result<Options> {
        let input: DeriveInput = syn::parse_str(&format!("#[job({options})] struct SendWelcome;")).expect("a struct");
        Options::read(&input.attrs)
    }

    fn waits(text: &str) -> Backoff {
        read(&format!("backoff = {text:?}")).expect(text).backoff.expect("a backoff")
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn every_option_is_read() {
        let all = r#"type = "welcome", queue = "email", attempts = 5, backoff = "fixed(5s)", timeout = "90s", ttl = "1h",
            retry_for = "2h", priority = 2"#;
        let expected = Options {
            kind: Some("welcome".to_owned()),
            queue: Some("email".to_owned()),
            attempts: Some(5),
            backoff: Some(Backoff::Fixed { base: SECOND * 5, jitter: Jitter::Share(0.0) }),
            timeout: Some(SECOND * 90),
            ttl: Some(SECOND * 3_600),
            retry_for: Some(SECOND * 7_200),
            priority: Some(2),
            key: None,
            unique: None,
        };
        assert_eq!(read(all).expect("options"), expected);
        assert_eq!(read("").expect("nothing"), Options::default());
        let one =
            read(r#"key = "{to}", unique(key = "{to}", window = "1h", while = "waiting", on_conflict = "latest")"#);
        assert!(one.is_ok_and(|one| one.key.is_some() && one.unique.is_some_and(|unique| unique != Unique::default())));
        assert_eq!(read("unique").expect("by its data").unique, Some(Unique::default()));
        for bad in
            [r#"unique(keys = "a")"#, r#"unique(while = "done")"#, r#"unique(on_conflict = "win")"#, r#"key = "{""#]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(read(r#"priority = "critical""#).expect("a name").priority, Some(1));
    }

    #[test]
    fn a_backoff_is_fixed_exponential_or_a_list() {
        let (factor, cap, jitter) = (2.0, SECOND * 300, Jitter::Share(0.0));
        assert_eq!(waits("exponential(1s)"), Backoff::Exponential { base: SECOND, factor, cap, jitter });
        let (factor, cap, jitter) = (10.0, SECOND * 60, Jitter::Share(0.5));
        let full = waits("exponential(1s, factor 10, cap 1m, jitter 0.5)");
        assert_eq!(full, Backoff::Exponential { base: SECOND, factor, cap, jitter });
        assert_eq!(waits("fixed(2s, jitter 1s)"), Backoff::Fixed { base: SECOND * 2, jitter: Jitter::Added(SECOND) });
        assert_eq!(waits("1s, 10s,1m"), Backoff::Delays(vec![SECOND, SECOND * 10, SECOND * 60]));
    }

    #[test]
    fn what_is_wrong_is_said_where_it_stands() {
        for (options, said) in [
            ("colour = 1", "there is no such option of a job; expected one of type, queue,"),
            ("queue = 5", "expected string literal"),
            (r#"queue = """#, "expected the name that the catalog has for it"),
            (r#"queue = "a", queue = "b""#, "`queue` is given twice"),
            ("attempts = 0", "attempts: expected 1 to 1000"),
            ("attempts = 70000", "attempts: expected 1 to 1000"),
            ("priority = 6", "priority: expected 1 (first) to 5"),
            (r#"priority = "urgent""#, "priority: expected 1 (first) to 5"),
            (r#"timeout = "soon""#, "expected a duration such as"),
            (r#"ttl = "0s""#, "ttl: expected more than 0"),
            (r#"retry_for = "0s""#, "retry_for: expected more than 0"),
            (r#"retry_for = "1h", retry_for = "2h""#, "`retry_for` is given twice"),
            (r#"timeout = "0s""#, "timeout: expected more than 0"),
            (r#"backoff = "linear(1s)""#, "expected fixed(…), exponential(…) or a list"),
            (r#"backoff = "often""#, "backoff: expected \"fixed(5s)\", \"exponential("),
            (r#"backoff = "fixed(1s""#, "the parenthesis is not closed"),
            (r#"backoff = "fixed(1s, factor 2)""#, "after the delay expected jitter"),
            (r#"backoff = "exponential(1s, factor 0.5)""#, "factor: expected a number from 1 to 1000"),
            (r#"backoff = "exponential(1s, cap 1m, cap 2m)""#, "cap is given twice"),
            (r#"backoff = "exponential(1s, jitter 2)""#, "jitter: expected a share from 0 to 1 or a duration"),
        ] {
            let error = read(options).expect_err(options);
            assert!(error.to_string().contains(said), "{options}: {error}");
        }
        let wrong = r#"queue = "email", timeout = "soon""#;
        let column = read(wrong).expect_err(wrong).span().start().column;
        assert_eq!(
            column,
            r#"#[job(queue = "email", timeout = "#.len(),
            "the error points at the text, not at the struct"
        );
    }
}
