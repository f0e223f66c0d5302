//! Durations as the catalog spells them. The facade tests that both read them alike.

use std::time::Duration;

/// Reads `250ms`, `30s`, `5m`, `24h` or `7d`, at most ten years; the error is a sentence.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "expected a duration such as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\", at most ten years, got {text:?}"
        )
    };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "ms" => number / 1_000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        "d" => number * 86_400.0,
        _ => return Err(wrong()),
    };
    if !(0.0..=315_360_000.0).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_micros((seconds * 1e6).round() as u64))
}
