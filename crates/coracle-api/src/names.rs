//! The syntax of names, label keys and values, ports and keys, with upstream's words for what is wrong.
//!
//! Each check answers the list of complaints about a value; an empty list means that it is well-formed.

/// A list of complaints.
pub type Complaints = Vec<String>;

/// Most bytes of a label of a domain name, and of a label's name and value.
pub const LABEL_BYTES_MAX: usize = 63;
/// Most bytes of a DNS subdomain.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const SEARCH_DOMAIN_FORMAT: &str = r"_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*";
const LABEL_1035_FORMAT: &str = "[a-z]([-a-z0-9]*[a-z0-9])?";
const QUALIFIED_FORMAT: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";
const LABEL_VALUE_FORMAT: &str = "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?";
const CONFIG_KEY_FORMAT: &str = "[-._a-zA-Z0-9]+";

fn too_long(max: usize) -> String {
    format!("must be no more than {max} bytes")
}

fn format_complaint(what: &str, format: &str, examples: &[&str]) -> String {
    // Upstream joins "'a', " and "'b', " by " or ", which leaves two spaces.
    let examples: Vec<String> = examples.iter().map(|example| format!("'{example}', ")).collect();
    format!("{what} (e.g. {}regex used for validation is '{format}')", examples.join(" or "))
}

fn lower_alphanumeric(b: u8) -> bool {
    b.is_ascii_lowercase() || b.is_ascii_digit()
}

fn label_shape(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    lower_alphanumeric(first)
        && lower_alphanumeric(last)
        && bytes.iter().all(|&b| lower_alphanumeric(b) || b == b'-')
}

fn subdomain_shape(value: &str) -> bool {
    value.split('.').all(label_shape)
}

/// `([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]`
fn qualified_shape(value: &str) -> bool {
    let bytes = value.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    first.is_ascii_alphanumeric()
        && last.is_ascii_alphanumeric()
        && bytes.iter().all(|&b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// A label as in RFC 1123: names of Namespaces, containers, volumes.
#[must_use]
pub fn dns1123_label(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        out.push(too_long(LABEL_BYTES_MAX));
    }
    if !label_shape(value) {
        out.push(if subdomain_shape(value) {
            "must not contain dots".to_owned()
        } else {
            format_complaint(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
                 must start and end with an alphanumeric character",
                LABEL_FORMAT,
                &["my-name", "123-abc"],
            )
        });
    }
    out
}

/// A domain name as in RFC 1123: most names of objects.
#[must_use]
pub fn dns1123_subdomain(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > SUBDOMAIN_BYTES_MAX {
        out.push(too_long(SUBDOMAIN_BYTES_MAX));
    }
    if !subdomain_shape(value) {
        out.push(format_complaint(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
             and must start and end with an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    out
}

/// A domain to search names in, which may have underscores.
#[must_use]
pub fn search_domain(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > SUBDOMAIN_BYTES_MAX {
        out.push(too_long(SUBDOMAIN_BYTES_MAX));
    }
    let label = |label: &str| {
        let bytes = label.strip_prefix('_').unwrap_or(label).as_bytes();
        bytes.first().is_some_and(|&b| lower_alphanumeric(b))
            && bytes.last().is_some_and(|&b| lower_alphanumeric(b))
            && bytes.iter().all(|&b| lower_alphanumeric(b) || matches!(b, b'-' | b'_'))
    };
    if !value.split('.').all(label) {
        out.push(format_complaint(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', \
             and must start and end with an alphanumeric character",
            SEARCH_DOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    out
}

/// The name of a header of an HTTP request.
#[must_use]
pub fn http_header(value: &str) -> Complaints {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![format_complaint(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// A label as in RFC 1035: names of Services.
#[must_use]
pub fn dns1035_label(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        out.push(too_long(LABEL_BYTES_MAX));
    }
    if !(label_shape(value) && value.as_bytes()[0].is_ascii_lowercase()) {
        out.push(format_complaint(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
             alphabetic character, and end with an alphanumeric character",
            LABEL_1035_FORMAT,
            &["my-name", "abc-123"],
        ));
    }
    out
}

/// A name that can be a segment of a URL's path: the least that any name must be.
#[must_use]
pub fn path_segment(value: &str) -> Complaints {
    for exact in [".", ".."] {
        if value == exact {
            return vec![format!("may not be '{exact}'")];
        }
    }
    ["/", "%"].iter().filter(|c| value.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A name with an optional domain in front: label keys, annotation keys, resource names, taint keys.
#[must_use]
pub fn qualified_name(value: &str) -> Complaints {
    let mut out = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts.as_slice() {
        [name] => *name,
        [prefix, name] => {
            if prefix.is_empty() {
                out.push("prefix part must be non-empty".to_owned());
            } else {
                out.extend(dns1123_subdomain(prefix).into_iter().map(|c| format!("prefix part {c}")));
            }
            *name
        }
        _ => {
            let complaint = format_complaint(
                "a qualified name must consist of alphanumeric characters, '-', '_' or '.', and must start \
                 and end with an alphanumeric character",
                QUALIFIED_FORMAT,
                &["MyName", "my.name", "123-abc"],
            );
            out.push(format!(
                "{complaint} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            ));
            return out;
        }
    };
    if name.is_empty() {
        out.push("name part must be non-empty".to_owned());
    } else if name.len() > LABEL_BYTES_MAX {
        out.push(format!("name part {}", too_long(LABEL_BYTES_MAX)));
    }
    if !qualified_shape(name) {
        out.push(format_complaint(
            "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with \
             an alphanumeric character",
            QUALIFIED_FORMAT,
            &["MyName", "my.name", "123-abc"],
        ));
    }
    out
}

/// The value of a label.
#[must_use]
pub fn label_value(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > LABEL_BYTES_MAX {
        out.push(too_long(LABEL_BYTES_MAX));
    }
    if !(value.is_empty() || qualified_shape(value)) {
        out.push(format_complaint(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', \
             and must start and end with an alphanumeric character",
            LABEL_VALUE_FORMAT,
            &["MyValue", "my_value", "12345"],
        ));
    }
    out
}

/// A key of a ConfigMap or Secret, which is also a file's name.
#[must_use]
pub fn config_key(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > SUBDOMAIN_BYTES_MAX {
        out.push(too_long(SUBDOMAIN_BYTES_MAX));
    }
    let shape = !value.is_empty()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !shape {
        out.push(format_complaint(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            CONFIG_KEY_FORMAT,
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match value {
        "." => out.push("must not be '.'".to_owned()),
        ".." => out.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => out.push("must not start with '..'".to_owned()),
        _ => {}
    }
    out
}

/// The name of an environment variable.
#[must_use]
pub fn env_var_name(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.is_empty() {
        out.push("environment variable name must be non-empty".to_owned());
    }
    if value.chars().any(|c| !(' '..='~').contains(&c) || c == '=') {
        out.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    out
}

/// The name of a port.
#[must_use]
pub fn port_name(value: &str) -> Complaints {
    let mut out = Vec::new();
    if value.len() > 15 {
        out.push(too_long(15));
    }
    if value.is_empty() || !value.bytes().all(|b| lower_alphanumeric(b) || b == b'-') {
        out.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !value.bytes().any(|b| b.is_ascii_lowercase()) {
        out.push("must contain at least one letter (a-z)".to_owned());
    }
    if value.contains("--") {
        out.push("must not contain consecutive hyphens".to_owned());
    }
    if value.starts_with('-') || value.ends_with('-') {
        out.push("must not begin or end with a hyphen".to_owned());
    }
    out
}

/// The words for a number outside `low..=high`.
#[must_use]
pub fn not_in_range(low: i64, high: i64) -> String {
    format!("must be between {low} and {high}, inclusive")
}

/// A number of a TCP, UDP or SCTP port.
#[must_use]
pub fn port_number(value: i64) -> Complaints {
    if (1..=65535).contains(&value) { Vec::new() } else { vec![not_in_range(1, 65535)] }
}

/// A user's or group's number.
#[must_use]
pub fn unix_id(value: i64) -> Complaints {
    if (0..=0xffff_ffff).contains(&value) { Vec::new() } else { vec![not_in_range(0, 0xffff_ffff)] }
}

/// An IPv4 or IPv6 address, written so that everybody reads the same one.
#[must_use]
pub fn ip(value: &str) -> Complaints {
    use std::net::IpAddr;
    match value.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => {
            vec!["must not be an IPv4-mapped IPv6 address".to_owned()]
        }
        Ok(_) => Vec::new(),
        // Some read numbers that begin with 0 as octal ones, some as decimal ones.
        Err(_) if without_leading_zeros(value).parse::<std::net::Ipv4Addr>().is_ok() => {
            vec!["must not have leading 0s".to_owned()]
        }
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

fn without_leading_zeros(value: &str) -> String {
    let parts = value.split('.').map(|part| match part.trim_start_matches('0') {
        "" if !part.is_empty() => "0",
        rest => rest,
    });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_upstreams() {
        assert_eq!(
            dns1123_label("A"),
            ["a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and \
              must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used \
              for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"]
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            dns1123_subdomain("a_b"),
            [
                "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
              and must start and end with an alphanumeric character (e.g. 'example.com', regex used for \
              validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(
            qualified_name("a b"),
            ["name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
              with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
              validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"]
        );
        assert_eq!(dns1123_label(&"a".repeat(64)), ["must be no more than 63 bytes"]);
        assert_eq!(path_segment("a/b"), ["may not contain '/'"]);
    }

    #[test]
    fn addresses_read_the_same_for_everybody() {
        for address in ["10.0.0.1", "0.0.0.0", "::1", "FD00::0:1"] {
            assert!(ip(address).is_empty(), "{address}");
        }
        assert_eq!(ip("010.0.0.1"), ["must not have leading 0s"]);
        assert_eq!(ip("10.0.00.1"), ["must not have leading 0s"]);
        assert_eq!(ip("::ffff:10.0.0.1"), ["must not be an IPv4-mapped IPv6 address"]);
        for bad in ["", "10.0.0", "10.0.0.256", "x", "10..0.1"] {
            assert_eq!(ip(bad), ["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"], "{bad}");
        }
    }

    #[test]
    fn well_formed_names_pass() {
        for name in ["a", "a-b", "0", "a.b-c.d"] {
            assert!(dns1123_subdomain(name).is_empty(), "{name}");
        }
        for name in ["a", "example.com/Name_1.x", "A"] {
            assert!(qualified_name(name).is_empty(), "{name}");
        }
        for bad in ["", "-a", "a-", "a/b/c", "/a", "a/", "A.com/x"] {
            assert!(!qualified_name(bad).is_empty(), "{bad}");
        }
        assert!(!dns1035_label("0a").is_empty());
        assert!(!dns1035_label("").is_empty());
        assert!(dns1035_label("a0").is_empty());
        assert!(label_value("").is_empty());
        assert_eq!(config_key(".."), ["must not be '..'"]);
        assert!(config_key("a_b.C-1").is_empty());
        assert!(port_name("http-1").is_empty());
        assert!(!port_name("1").is_empty());
    }
}
