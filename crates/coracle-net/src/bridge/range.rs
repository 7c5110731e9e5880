//! The node's Pod range: which addresses there are, and which one comes next.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::error::NetError;

/// A range of addresses. The first host address is the bridge's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodRange {
    network: IpAddr,
    prefix: u8,
}

impl PodRange {
    pub(crate) fn parse(text: &str) -> Result<PodRange, NetError> {
        let (address, prefix) =
            text.split_once('/').ok_or_else(|| NetError::range(text, "it has no prefix length"))?;
        let address: IpAddr = address.parse().map_err(NetError::bad_address(text))?;
        let prefix: u8 = prefix.parse().map_err(|_| NetError::range(text, "bad prefix length"))?;
        let bits = bits(address);
        // A bridge, a Pod, and for IPv4 the two addresses at the ends.
        if prefix == 0 || prefix > bits - 2 {
            return Err(NetError::range(text, format!("the prefix must be 1 to {} long", bits - 2)));
        }
        let mask = u128::MAX.checked_shl(u32::from(bits - prefix)).unwrap_or(0);
        let network = from_number(to_number(address) & mask, address);
        Ok(PodRange { network, prefix })
    }

    /// The first address, which nothing has.
    pub(crate) fn network(&self) -> IpAddr {
        self.network
    }

    pub(crate) fn prefix(&self) -> u8 {
        self.prefix
    }

    /// The bridge's address: the Pods' gateway.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.network.is_ipv4()
            && (to_number(address) ^ to_number(self.network)) >> (bits(self.network) - self.prefix) == 0
    }

    /// The next free address after `last`, going round. Addresses that were given back last come last, so that
    /// what still remembers them has forgotten.
    pub(crate) fn next_free(&self, last: Option<IpAddr>, used: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let (first, end) = (2, self.end());
        let start = last
            .filter(|last| self.contains(*last))
            .map(|last| to_number(last) - to_number(self.network) + 1)
            .filter(|offset| (first..end).contains(offset))
            .unwrap_or(first);
        (start..end).chain(first..start).map(|offset| self.at(offset)).find(|ip| !used.contains(ip))
    }

    /// One past the offset of the last usable address: the broadcast address of IPv4 is none.
    fn end(&self) -> u128 {
        let size = 1u128 << (bits(self.network) - self.prefix);
        if self.network.is_ipv4() { size - 1 } else { size }
    }

    fn at(&self, offset: u128) -> IpAddr {
        from_number(to_number(self.network) + offset, self.network)
    }
}

impl fmt::Display for PodRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn to_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// The address of `number` in the family of `like`.
fn from_number(number: u128, like: IpAddr) -> IpAddr {
    match like {
        // Numbers of this family come from 32 bits and stay within the range.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

/// The link-layer address that goes with an address: the same one each time, so that a neighbour's memory of an
/// address that was given out again is still right. The prefix is the one that CNI's bridges use.
pub(crate) fn link_address(address: IpAddr) -> [u8; 6] {
    let tail: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let octets = address.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    [0x0a, 0x58, tail[0], tail[1], tail[2], tail[3]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_parse_and_know_their_addresses() {
        let range = PodRange::parse("10.42.7.9/24").unwrap();
        assert_eq!((range.to_string().as_str(), range.gateway()), ("10.42.7.0/24", ip("10.42.7.1")));
        assert!(
            range.contains(ip("10.42.7.255"))
                && !range.contains(ip("10.42.8.0"))
                && !range.contains(ip("::1"))
        );
        let six = PodRange::parse("fd00:1::/64").unwrap();
        assert_eq!(six.next_free(None, &BTreeSet::new()), Some(ip("fd00:1::2")));
        for bad in ["", "10.0.0.0", "10.0.0.0/31", "10.0.0.0/0", "10.0.0/24", "10.0.0.0/x", "fd00::/127"] {
            assert!(PodRange::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_go_round_and_run_out() {
        let range = PodRange::parse("10.0.0.0/29").unwrap();
        let mut used = BTreeSet::new();
        let mut last = None;
        for expected in ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"] {
            last = range.next_free(last, &used);
            assert_eq!(last, Some(ip(expected)));
            used.insert(ip(expected));
        }
        assert_eq!(range.next_free(last, &used), None);
        used.remove(&ip("10.0.0.3"));
        assert_eq!(range.next_free(last, &used), Some(ip("10.0.0.3")));
        used.clear();
        assert_eq!(
            range.next_free(Some(ip("10.0.0.4")), &used),
            Some(ip("10.0.0.5")),
            "not the one just freed"
        );
        assert_eq!(range.next_free(Some(ip("192.168.0.1")), &used), Some(ip("10.0.0.2")));
    }
}
