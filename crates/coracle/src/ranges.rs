//! IPv4 ranges, and which of them this machine already uses.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range with room for a /24 for each node, written with its first address: `10.42.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    first: u32,
    mask: u32,
}

/// Why a text is no such range.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadRange {
    #[error("a range looks like 10.42.0.0/16")]
    Form,
    #[error("the prefix length must be from 8 to 24")]
    Length,
    #[error("the address has bits set after the prefix")]
    Address,
}

impl Range {
    /// Length of the prefix.
    pub(crate) fn length(self) -> u32 {
        self.mask.leading_ones()
    }

    pub(crate) fn overlaps(self, other: Range) -> bool {
        let common = self.mask & other.mask;
        self.first & common == other.first & common
    }
}

impl FromStr for Range {
    type Err = BadRange;

    fn from_str(text: &str) -> Result<Self, BadRange> {
        let (address, length) = text.split_once('/').ok_or(BadRange::Form)?;
        let address: Ipv4Addr = address.parse().map_err(|_| BadRange::Form)?;
        let length: u32 = length.parse().map_err(|_| BadRange::Form)?;
        if !(8..=24).contains(&length) {
            return Err(BadRange::Length);
        }
        if address.to_bits() << length != 0 {
            return Err(BadRange::Address);
        }
        Ok(Range { first: address.to_bits(), mask: u32::MAX << (32 - length) })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from_bits(self.first), self.mask.leading_ones())
    }
}

/// What the machine's links and routes lead to, but for the default route.
pub(crate) fn of_machine() -> Vec<Range> {
    routes(&std::fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// Reads the kernel's table of routes: addresses are hexadecimal, in the byte order of the machine.
fn routes(table: &str) -> Vec<Range> {
    let number = |text: Option<&&str>| text.and_then(|t| u32::from_str_radix(t, 16).ok()).map(u32::from_be);
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            Some(Range { first: number(fields.get(1))?, mask: number(fields.get(7))? })
        })
        .filter(|range| range.mask != 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> Range {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_that_cannot_work_are_refused() {
        for (bad, why) in [
            ("10.42.0.0", BadRange::Form),
            ("x/16", BadRange::Form),
            ("fd00::/64", BadRange::Form),
            ("10.42.0.0/33", BadRange::Length),
            ("10.42.0.0/28", BadRange::Length),
            ("10.42.0.1/16", BadRange::Address),
        ] {
            assert_eq!(bad.parse::<Range>(), Err(why), "{bad}");
        }
        assert_eq!(range("10.42.0.0/16").to_string(), "10.42.0.0/16");
    }

    #[test]
    fn ranges_overlap_if_one_is_within_the_other() {
        assert!(range("10.42.0.0/16").overlaps(range("10.42.7.0/24")));
        assert!(range("10.42.7.0/24").overlaps(range("10.0.0.0/8")));
        assert!(!range("10.42.0.0/16").overlaps(range("10.43.0.0/16")));
    }

    #[test]
    fn the_kernels_table_is_read_without_its_default_route() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                     coracle0\t00002A0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(routes(table), [range("10.42.0.0/24")]);
        assert_eq!(routes(""), []);
    }
}
