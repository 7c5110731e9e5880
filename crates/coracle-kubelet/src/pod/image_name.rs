//! Names of images: whether they parse, and the tag that is meant when none is written.

const INVALID: &str = "invalid reference format";

/// The name with `:latest` appended if it has neither tag nor digest.
///
/// # Errors
/// The waiting message of `InvalidImageName`.
pub fn with_default_tag(image: &str) -> Result<String, String> {
    match parse(image) {
        Ok(Parts { tag: None, digest: None, .. }) => Ok(format!("{image}:latest")),
        Ok(_) => Ok(image.to_owned()),
        Err(why) => Err(format!(
            "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": {why}"
        )),
    }
}

/// The pull policy that is meant when none is written: `Always` for `latest`, else `IfNotPresent`.
#[must_use]
pub fn default_policy(image: &str) -> &'static str {
    match parse(image) {
        Ok(Parts { tag: None, digest: None, .. }) => "Always",
        Ok(Parts { tag: Some(tag), digest: None, .. }) if tag == "latest" => "Always",
        _ => "IfNotPresent",
    }
}

/// The repository in full, with the registry that is meant when none is named: `docker.io/library/busybox`. `None` if the
/// name does not parse.
pub(crate) fn repository(image: &str) -> Option<String> {
    let Parts { name, .. } = parse(image).ok()?;
    let named = |host: &str| host.contains(['.', ':']) || host == "localhost" || has_upper(host);
    Some(match name.split_once('/') {
        Some(("index.docker.io" | "docker.io", path)) => usual(path),
        Some((host, _)) if named(host) => name.clone(),
        _ => usual(&name),
    })
}

/// The path of a repository in the registry that is meant when none is named.
fn usual(path: &str) -> String {
    if path.contains('/') { format!("docker.io/{path}") } else { format!("docker.io/library/{path}") }
}

/// The name in full, with its tag or digest.
pub(crate) fn full(image: &str) -> Option<String> {
    let Parts { tag, digest, .. } = parse(image).ok()?;
    let repository = repository(image)?;
    Some(match (digest, tag) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, tag) => format!("{repository}:{}", tag.as_deref().unwrap_or("latest")),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Parts {
    /// What stands before tag and digest.
    name: String,
    tag: Option<String>,
    digest: Option<String>,
}

fn parse(image: &str) -> Result<Parts, String> {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    if digest.is_some_and(|d| !is_digest(d)) {
        return Err(INVALID.to_owned());
    }
    let path_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[path_start..].find(':') {
        Some(colon) => (&rest[..path_start + colon], Some(&rest[path_start + colon + 1..])),
        None => (rest, None),
    };
    if tag.is_some_and(|t| !is_tag(t)) || name.is_empty() || name.len() > 255 {
        return Err(INVALID.to_owned());
    }
    let path = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" || has_upper(host) => {
            if !is_host(host) {
                return Err(INVALID.to_owned());
            }
            path
        }
        _ => name,
    };
    if !path.split('/').all(is_component) {
        if path.to_ascii_lowercase().split('/').all(is_component) {
            return Err(format!("{INVALID}: repository name ({path}) must be lowercase"));
        }
        return Err(INVALID.to_owned());
    }
    Ok(Parts { name: name.to_owned(), tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
}

fn has_upper(text: &str) -> bool {
    text.bytes().any(|b| b.is_ascii_uppercase())
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || b"+.-_".contains(&b))
            && hex.len() >= 32
            && hex.bytes().all(|b| b.is_ascii_hexdigit())
    })
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (host, None),
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let ipv6 = name.starts_with('[') && name.ends_with(']');
    let port_ok = port.is_none_or(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()));
    port_ok
        && (name.split('.').all(label)
            || (ipv6 && name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok()))
}

/// Lower case letters and digits, separated by one `.`, one or two `_`, or any number of `-`.
fn is_component(component: &str) -> bool {
    let bytes = component.as_bytes();
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().copied().is_some_and(alnum) || !bytes.last().copied().is_some_and(alnum) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_tags_become_latest() {
        let digest = format!("busybox@sha256:{}", "a".repeat(64));
        for (name, expected) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.37", "busybox:1.37"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("registry.example.org/a_b/c--d:v1", "registry.example.org/a_b/c--d:v1"),
            (digest.as_str(), digest.as_str()),
        ] {
            assert_eq!(with_default_tag(name).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn names_that_do_not_parse_are_refused_in_upstreams_words() {
        let refused = |name: &str| with_default_tag(name).unwrap_err();
        assert_eq!(
            refused("a b"),
            "Failed to apply default image tag \"a b\": couldn't parse image name \"a b\": invalid reference format"
        );
        assert!(refused("Busybox").ends_with("repository name (Busybox) must be lowercase"));
        for bad in ["", ":x", "a//b", "a:", "a@sha256:12", "a..b", "-a", "a:t!"] {
            assert!(refused(bad).contains(INVALID), "{bad}");
        }
    }

    #[test]
    fn names_in_full_say_their_registry() {
        for (name, repository, full) in [
            ("busybox", "docker.io/library/busybox", "docker.io/library/busybox:latest"),
            ("team/app:1", "docker.io/team/app", "docker.io/team/app:1"),
            ("docker.io/busybox:1", "docker.io/library/busybox", "docker.io/library/busybox:1"),
            ("index.docker.io/team/app", "docker.io/team/app", "docker.io/team/app:latest"),
            ("localhost/a:1", "localhost/a", "localhost/a:1"),
            ("localhost:5000/a/b", "localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("quay.io/a:1", "quay.io/a", "quay.io/a:1"),
        ] {
            assert_eq!(super::repository(name).as_deref(), Some(repository));
            assert_eq!(super::full(name).as_deref(), Some(full));
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(full(&format!("a:1@{digest}")), Some(format!("docker.io/library/a@{digest}")));
        assert_eq!(repository("A b"), None);
    }

    #[test]
    fn latest_is_pulled_always() {
        assert_eq!(default_policy("busybox"), "Always");
        assert_eq!(default_policy("busybox:latest"), "Always");
        assert_eq!(default_policy("busybox:1"), "IfNotPresent");
    }
}
