//! Where an etcd is: `etcd://host:port[,host:port…][/prefix]`. Pure.

use std::fmt;

use bytes::Bytes;

/// The port at which etcd listens for clients.
const PORT: u16 = 2379;

/// An address of an etcd, and where in it this store is.
///
/// The path of the address is put in front of every key, so that one etcd holds several stores; without it, keys are
/// in etcd what they are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host:port` of each member, in the order in which they are tried.
    endpoints: Vec<String>,
    /// What comes before every key: empty, or `/a/b`.
    prefix: String,
}

/// Why an address is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// Another scheme.
    #[error("an address of etcd begins with etcd://, as in etcd://10.0.0.5:2379")]
    Scheme,
    /// No host, or something that is none.
    #[error("{0:?} is no host:port: write etcd://10.0.0.5:2379, with commas between several members")]
    Endpoint(String),
    /// A path that cannot come before keys.
    #[error("{0:?} is no prefix of keys: use letters, digits, hyphens, dots and underscores between slashes")]
    Prefix(String),
}

impl Target {
    /// Reads an address.
    ///
    /// # Errors
    /// If it is none.
    pub fn parse(text: &str) -> Result<Target, TargetError> {
        let rest = text.strip_prefix("etcd://").ok_or(TargetError::Scheme)?;
        let (hosts, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
        let path = path.trim_end_matches('/');
        let is_segment = |segment: &str| {
            !segment.is_empty() && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
        };
        if !path.split('/').skip(1).all(is_segment) {
            return Err(TargetError::Prefix(path.to_owned()));
        }
        Ok(Target { endpoints, prefix: path.to_owned() })
    }

    /// `host:port` of each member.
    #[must_use]
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// What comes before every key.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The prefix as the store puts it.
    pub(super) fn key_prefix(&self) -> Bytes {
        Bytes::copy_from_slice(self.prefix.as_bytes())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}{}", self.endpoints.join(","), self.prefix)
    }
}

fn endpoint(text: &str) -> Result<String, TargetError> {
    let wrong = || TargetError::Endpoint(text.to_owned());
    // An IPv6 address is in brackets, as in every URL: its colons are not that of the port.
    let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            address.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?;
            (&text[..address.len() + 2], port)
        }
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(wrong)?,
        None if port.is_empty() => PORT,
        None => return Err(wrong()),
    };
    let is_name = host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if host.is_empty() || !(host.starts_with('[') || is_name) {
        return Err(wrong());
    }
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_members_and_a_prefix() {
        for (text, shown, prefix) in [
            ("etcd://127.0.0.1:2379", "etcd://127.0.0.1:2379", ""),
            ("etcd://a", "etcd://a:2379", ""),
            ("etcd://a,b.example:2380/", "etcd://a:2379,b.example:2380", ""),
            ("etcd://[::1]:2379,[fd00::2]/x", "etcd://[::1]:2379,[fd00::2]:2379/x", "/x"),
            ("etcd://a:1/team/one", "etcd://a:1/team/one", "/team/one"),
        ] {
            let target = Target::parse(text).unwrap();
            assert_eq!((target.to_string().as_str(), target.prefix()), (shown, prefix));
            assert_eq!(Target::parse(shown), Ok(target), "what is shown is read again");
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_the_part_that_is_wrong() {
        for (text, wrong) in [
            ("", TargetError::Scheme),
            ("http://a:2379", TargetError::Scheme),
            ("etcd://", TargetError::Endpoint(String::new())),
            ("etcd:///x", TargetError::Endpoint(String::new())),
            ("etcd://a,,b", TargetError::Endpoint(String::new())),
            ("etcd://a:0", TargetError::Endpoint("a:0".to_owned())),
            ("etcd://a:65536", TargetError::Endpoint("a:65536".to_owned())),
            ("etcd://a:b:c", TargetError::Endpoint("a:b:c".to_owned())),
            ("etcd://user@a:1", TargetError::Endpoint("user@a:1".to_owned())),
            ("etcd://::1", TargetError::Endpoint("::1".to_owned())),
            ("etcd://[x]:1", TargetError::Endpoint("[x]:1".to_owned())),
            ("etcd://a//b", TargetError::Prefix("//b".to_owned())),
            ("etcd://a/x?y", TargetError::Prefix("/x?y".to_owned())),
        ] {
            assert_eq!(Target::parse(text), Err(wrong), "{text}");
        }
    }
}
