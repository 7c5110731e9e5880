//! Moments and spans as people write them: `90s`, `6m`, `1h30m`, `250ms`, `1d`.

use std::time::Duration;

/// Units, largest first, in milliseconds.
const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// The longest time that a scenario may name: ten years.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Reads a span of time.
///
/// # Errors
/// Why the text is none.
pub fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if text.starts_with('-') {
        return Err(format!("{text:?} is before the start: times are not negative"));
    }
    if text.is_empty() || !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(format!("{text:?} is no time: write 90s, 6m, 1h30m or 250ms"));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        if unit.is_empty() && after.is_empty() {
            return Err(format!("{text:?} has no unit: write {text}s for seconds, or m, h, d, ms"));
        }
        let Some((_, millis)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(format!("{text:?} is no time: write 90s, 6m, 1h30m or 250ms"));
        };
        let part =
            part(number, *millis).ok_or_else(|| format!("{text:?} is no time: {number:?} is no number"))?;
        total = total.checked_add(part).filter(|total| *total <= LONGEST).ok_or_else(too_long(text))?;
        rest = after;
    }
    Ok(total)
}

fn too_long(text: &str) -> impl Fn() -> String {
    move || format!("{text:?} is too long: ten years are the most")
}

/// A decimal number of units. Anything too large becomes longer than the longest.
fn part(number: &str, millis: u64) -> Option<Duration> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.contains('.') || fraction.len() > 9 {
        return None;
    }
    let whole: u64 = whole.parse().unwrap_or(u64::MAX);
    let scale = 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    let fraction: u64 = fraction.parse().ok()?;
    let nanos = u128::from(fraction) * u128::from(millis) * 1_000_000 / u128::from(scale);
    let whole = Duration::from_millis(whole.saturating_mul(millis));
    Some(whole.saturating_add(Duration::from_nanos(u64::try_from(nanos).ok()?)))
}

/// The span in the form that [`parse`] reads, to the millisecond: `1h30m`, `5m40.25s`, `0s`.
#[must_use]
pub fn show(time: Duration) -> String {
    let seconds = time.as_secs();
    let millis = time.subsec_millis();
    let mut text = String::new();
    for (unit, size) in [("d", 86_400), ("h", 3600), ("m", 60)] {
        let count = match unit {
            "d" => seconds / size,
            "h" => seconds % 86_400 / size,
            _ => seconds % 3600 / size,
        };
        if count > 0 {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    let seconds = seconds % 60;
    if millis > 0 {
        let decimals = format!("{millis:03}");
        text.push_str(&format!("{seconds}.{}s", decimals.trim_end_matches('0')));
    } else if seconds > 0 || text.is_empty() {
        text.push_str(&format!("{seconds}s"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_people_write_them() {
        for (text, millis) in [
            ("90s", 90_000),
            ("6m", 360_000),
            ("1h30m", 5_400_000),
            ("250ms", 250),
            ("1.5s", 1500),
            ("0s", 0),
            ("1d", 86_400_000),
            ("5m40s", 340_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn impossible_times_say_why() {
        for (text, word) in [
            ("-5s", "not negative"),
            ("90", "has no unit"),
            ("", "is no time"),
            ("soon", "is no time"),
            ("5 m", "is no time"),
            ("1..5s", "no number"),
            ("5y", "is no time"),
            ("99999999999999999999s", "too long"),
            ("4000d", "too long"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_shown_can_be_read() {
        for text in ["0s", "90s", "1h30m", "5m40.25s", "1d1s", "250ms", "59.999s"] {
            let time = parse(text).unwrap();
            assert_eq!(parse(&show(time)), Ok(time), "{text} is shown as {}", show(time));
        }
        assert_eq!(show(Duration::from_millis(340_250)), "5m40.25s");
    }
}
