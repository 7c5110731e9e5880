//! Quantities: `500m`, `1Gi`, `1e3`. Exact fixed-point numbers that remember how they were written.

use std::cmp::Ordering;
use std::fmt;
use std::ops::{Add, AddAssign, Sub, SubAssign};
use std::str::FromStr;

/// Billionths in one.
const NANO: i128 = 1_000_000_000;
/// The largest magnitude of a quantity, in whole units.
const MAX_UNITS: i128 = i64::MAX as i128;

/// The suffixes a quantity is printed with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`, ...
    BinarySi,
    /// `m`, `k`, `M`, ...
    #[default]
    DecimalSi,
    /// `e3`, `e6`, ...
    DecimalExponent,
}

/// An exact number with at most nine decimal places.
///
/// Equality and order look at the number alone: `1Gi` equals `1024Mi`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuantityError {
    /// The text has another shape.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Syntax,
    /// The suffix is none of those that exist.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::DecimalSi };

    /// A whole number.
    #[must_use]
    pub fn units(value: i64, format: Format) -> Self {
        Quantity { nanos: i128::from(value) * NANO, format }
    }

    /// A number of thousandths.
    #[must_use]
    pub fn millis(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// The number rounded up to whole units (away from zero, as upstream rounds).
    #[must_use]
    pub fn value(self) -> i64 {
        saturate(divide_away_from_zero(self.nanos, NANO))
    }

    /// The number rounded up to thousandths.
    #[must_use]
    pub fn milli_value(self) -> i64 {
        saturate(divide_away_from_zero(self.nanos, NANO / 1000))
    }

    /// The number rounded up to thousandths, as a quantity: the precision of stored resource lists.
    #[must_use]
    pub fn rounded_to_milli(self) -> Self {
        let unit = NANO / 1000;
        Quantity { nanos: divide_away_from_zero(self.nanos, unit) * unit, format: self.format }
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Less than nothing.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number.
    #[must_use]
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// How it is printed.
    #[must_use]
    pub fn format(self) -> Format {
        self.format
    }
}

fn divide_away_from_zero(value: i128, unit: i128) -> i128 {
    let (quotient, rest) = (value / unit, value % unit);
    if rest == 0 { quotient } else { quotient + value.signum() }
}

fn saturate(value: i128) -> i64 {
    i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
}

fn capped(nanos: i128) -> i128 {
    nanos.clamp(-MAX_UNITS * NANO, MAX_UNITS * NANO)
}

impl FromStr for Quantity {
    type Err = ParseQuantityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (negative, rest) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let digits_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, suffix) = rest.split_at(digits_end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
            return Err(ParseQuantityError::Syntax);
        }
        if !suffix.bytes().all(|b| b.is_ascii_digit() || b"eEinumkKMGTP+-".contains(&b)) {
            return Err(ParseQuantityError::Syntax);
        }
        let (format, base, exponent) = parse_suffix(suffix).ok_or(ParseQuantityError::Suffix)?;
        let magnitude = match base {
            Base::Two => scaled_by_two(whole, fraction, exponent),
            Base::Ten => scaled_by_ten(whole, fraction, exponent),
        };
        let nanos = if negative { -magnitude } else { magnitude };
        Ok(Quantity { nanos: capped(nanos), format })
    }
}

#[derive(Clone, Copy)]
enum Base {
    Two,
    Ten,
}

fn parse_suffix(suffix: &str) -> Option<(Format, Base, i32)> {
    let decimal = |exponent| Some((Format::DecimalSi, Base::Ten, exponent));
    let binary = |exponent| Some((Format::BinarySi, Base::Two, exponent));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let exponent = suffix.strip_prefix(['e', 'E'])?;
            let exponent = exponent.parse::<i32>().ok()?;
            Some((Format::DecimalExponent, Base::Ten, exponent))
        }
    }
}

/// `whole.fraction * 10^exponent` in billionths, rounded up, capped.
fn scaled_by_ten(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    // The number of digits in front of the point once the result counts billionths.
    let point = i64::try_from(whole.len()).unwrap_or(i64::MAX) + i64::from(exponent) + 9;
    let mut value: i128 = 0;
    let mut rest = false;
    for (index, digit) in digits.iter().enumerate() {
        let digit = i128::from(digit - b'0');
        if i64::try_from(index).unwrap_or(i64::MAX) < point {
            value = value.saturating_mul(10).saturating_add(digit);
        } else {
            rest |= digit > 0;
        }
    }
    let missing = point - i64::try_from(digits.len()).unwrap_or(i64::MAX);
    for _ in 0..missing.clamp(0, 60) {
        value = value.saturating_mul(10);
    }
    capped(value).saturating_add(i128::from(rest))
}

/// `whole.fraction * 2^exponent` in billionths, rounded up, capped.
fn scaled_by_two(whole: &str, fraction: &str, exponent: i32) -> i128 {
    let factor = 1_i128 << exponent.clamp(0, 60);
    let units = whole.bytes().fold(0_i128, |value, digit| {
        value.saturating_mul(10).saturating_add(i128::from(digit - b'0')).min(MAX_UNITS)
    });
    // 18 places are enough to make a difference of one billionth at the largest factor visible as rounding.
    let mut part: i128 = 0;
    let mut rest = false;
    for (index, digit) in fraction.bytes().enumerate() {
        if index < 18 {
            part = part * 10 + i128::from(digit - b'0');
        } else {
            rest |= digit != b'0';
        }
    }
    let places = u32::try_from(fraction.len().min(18)).unwrap_or(18);
    let scale = 10_i128.pow(places);
    // part * factor stays under 10^18 * 2^60, which is below 2^120.
    let shifted = part * factor;
    let (whole_part, remainder) = (shifted / scale, shifted % scale);
    let below = remainder * NANO / scale;
    let inexact = rest || remainder * NANO % scale != 0;
    capped(units.saturating_mul(factor).saturating_mul(NANO))
        .saturating_add(whole_part * NANO)
        .saturating_add(below)
        .saturating_add(i128::from(inexact))
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let binary = self.format == Format::BinarySi
            && self.is_whole()
            && !(-1024 < self.nanos / NANO && self.nanos / NANO < 1024);
        if binary {
            const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
            let (mut value, mut step) = (self.nanos / NANO, 0);
            while value % 1024 == 0 && step + 1 < SUFFIXES.len() {
                value /= 1024;
                step += 1;
            }
            return write!(f, "{value}{}", SUFFIXES[step]);
        }
        const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let (mut value, mut step) = (self.nanos, 0);
        while value % 1000 == 0 && step + 1 < SUFFIXES.len() {
            value /= 1000;
            step += 1;
        }
        match self.format {
            Format::DecimalExponent if step != 3 => {
                write!(f, "{value}e{}", i64::try_from(step).unwrap_or(0) * 3 - 9)
            }
            Format::DecimalExponent => write!(f, "{value}"),
            Format::BinarySi | Format::DecimalSi => write!(f, "{value}{}", SUFFIXES[step]),
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Quantity;

    /// The sum, printed as the first number was, or as the second if the first was nothing.
    fn add(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: capped(self.nanos + other.nanos), format }
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: capped(self.nanos - other.nanos), format }
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(quantities: I) -> Self {
        quantities.fold(Quantity::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    #[test]
    fn canonical_forms_are_upstreams() {
        for (text, canonical) in [
            ("0", "0"),
            ("0Ki", "0"),
            ("10000", "10k"),
            ("10k", "10k"),
            ("1E4", "10e3"),
            ("1e4", "10e3"),
            ("10Ki", "10Ki"),
            ("0.1m", "100u"),
            ("1000m", "1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("1023", "1023"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("1024", "1024"),
            ("-1500m", "-1500m"),
            ("+5", "5"),
            ("1e3", "1e3"),
            ("1e-3", "1e-3"),
            ("100", "100"),
            ("9223372036854775807", "9223372036854775807"),
            ("99999999999999999999", "9223372036854775807"),
            ("0.0000000001", "1n"),
            ("12E", "9223372036854775807"),
            ("1E", "1E"),
        ] {
            assert_eq!(quantity(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "x", "1..2", ".", "-", "1 Gi", "1Mix", "Ki"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert_eq!("1KiB".parse::<Quantity>(), Err(ParseQuantityError::Syntax));
        assert_eq!("1mm".parse::<Quantity>(), Err(ParseQuantityError::Suffix));
        assert_eq!("1e".parse::<Quantity>(), Err(ParseQuantityError::Suffix));
    }

    #[test]
    fn numbers_are_exact() {
        assert_eq!(quantity("1E4").value(), 10_000);
        assert_eq!(quantity("0.1m").milli_value(), 1);
        assert_eq!(quantity("0.1m").rounded_to_milli().to_string(), "1m");
        assert_eq!(quantity("10Ki").value(), 10_240);
        assert_eq!(quantity("1Gi"), quantity("1024Mi"));
        assert!(quantity("1G") < quantity("1Gi"));
        assert_eq!((quantity("1Gi") + quantity("512Mi")).to_string(), "1536Mi");
        assert_eq!((quantity("1") - quantity("1500m")).to_string(), "-500m");
        assert_eq!(["100m", "1", "0.4"].map(quantity).into_iter().sum::<Quantity>().to_string(), "1500m");
    }

    proptest! {
        #[test]
        fn printing_and_parsing_keeps_the_number(nanos in -(MAX_UNITS * NANO)..(MAX_UNITS * NANO), format in 0..3) {
            let format = [Format::BinarySi, Format::DecimalSi, Format::DecimalExponent][format as usize];
            let original = Quantity { nanos, format };
            prop_assert_eq!(quantity(&original.to_string()), original);
        }
    }
}
