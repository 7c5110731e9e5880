//! Places that credentials are for: a host, perhaps with a port and the beginning of a path, perhaps with wildcards.

/// Host, with its port, and path of an image's repository or of an entry of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// The labels of the host.
    host: Vec<String>,
    /// Empty if none is given.
    port: String,
    /// With its leading slash; empty if there is none.
    path: String,
}

impl Place {
    /// Reads `HOST[:PORT][/PATH]`. `None` if the host cannot be one.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, ""),
        };
        // Who is at home there does not matter.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = split_port(authority)?;
        Some(Place {
            host: host.split('.').map(str::to_owned).collect(),
            port: port.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Whether what is meant by this place, read as a pattern, includes `repository`.
    pub(super) fn includes(&self, repository: &Place) -> bool {
        self.port == repository.port
            && self.host.len() == repository.host.len()
            && repository.path.starts_with(&self.path)
            && self.host.iter().zip(&repository.host).all(|(pattern, label)| matches(pattern, label))
    }
}

fn split_port(authority: &str) -> Option<(&str, &str)> {
    let numeric = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) if numeric(port) => Some((host, port)),
            None if rest.is_empty() => Some((host, "")),
            _ => None,
        };
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if numeric(port) && !host.contains(':') => Some((host, port)),
        Some(_) => None,
        None => Some((authority, "")),
    }
}

/// Whether a label of a host is meant by a pattern of `*`, `?`, `[a-z]` and `\x`.
fn matches(pattern: &str, label: &str) -> bool {
    let (pattern, label): (Vec<char>, Vec<char>) = (pattern.chars().collect(), label.chars().collect());
    let (mut at, mut here) = (0, 0);
    // Where to go on when what follows the last star does not fit here.
    let mut star: Option<(usize, usize)> = None;
    loop {
        if pattern.get(at) == Some(&'*') {
            star = Some((at + 1, here));
            at += 1;
            continue;
        }
        let step = match label.get(here) {
            None if at == pattern.len() => return true,
            None => return false,
            Some(letter) => one(&pattern[at..], *letter),
        };
        match (step, star) {
            (Some(taken), _) => {
                at += taken;
                here += 1;
            }
            (None, Some((after, from))) => {
                star = Some((after, from + 1));
                (at, here) = (after, from + 1);
            }
            (None, None) => return false,
        }
    }
}

/// How much of the pattern stands for this letter; `None` if its beginning does not.
fn one(pattern: &[char], letter: char) -> Option<usize> {
    match pattern.first()? {
        '?' => Some(1),
        '\\' => (pattern.get(1) == Some(&letter)).then_some(2),
        '[' => class(pattern, letter),
        plain => (*plain == letter).then_some(1),
    }
}

fn class(pattern: &[char], letter: char) -> Option<usize> {
    let negated = pattern.get(1) == Some(&'^');
    let mut at = if negated { 2 } else { 1 };
    let (begin, mut found) = (at, false);
    let literal = |at: &mut usize| {
        if pattern.get(*at) == Some(&'\\') {
            *at += 1;
        }
        let letter = pattern.get(*at).copied();
        *at += 1;
        letter
    };
    while pattern.get(at) != Some(&']') || at == begin {
        let low = literal(&mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&'-') {
            at += 1;
            high = literal(&mut at)?;
        }
        found |= (low..=high).contains(&letter);
    }
    (found != negated).then_some(at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn includes(pattern: &str, repository: &str) -> bool {
        let (Some(pattern), Some(repository)) = (Place::parse(pattern), Place::parse(repository)) else {
            return false;
        };
        pattern.includes(&repository)
    }

    #[test]
    fn hosts_ports_and_beginnings_of_paths_are_compared() {
        for (pattern, repository, expected) in [
            ("reg.example.org", "reg.example.org/a/b", true),
            ("reg.example.org/a", "reg.example.org/a/b", true),
            ("reg.example.org/a", "reg.example.org/ab", true),
            ("reg.example.org/a/b/c", "reg.example.org/a/b", false),
            ("reg.example.org:5000", "reg.example.org/a", false),
            ("reg.example.org", "reg.example.org:5000/a", false),
            ("reg.example.org:5000", "reg.example.org:5000/a", true),
            ("*.example.org", "reg.example.org/a", true),
            ("*.example.org", "example.org/a", false),
            ("*.example.org", "a.b.example.org/a", false),
            ("*.*.example.org", "a.b.example.org/a", true),
            ("*-reg.example.org:80/x", "eu-reg.example.org:80/x/y", true),
            // What follows is a query, as in any URL.
            ("r?g.example.org", "rug.example.org/a", false),
            ("r[ae]g.example.org", "reg.example.org/a", true),
            ("r[^a-e]g.example.org", "reg.example.org/a", false),
            ("someone@reg.example.org", "reg.example.org/a", true),
            ("[::1]:5000", "[::1]:5000/a", true),
            ("[a-z]eg.example.org", "reg.example.org/a", false),
            ("", "reg.example.org/a", false),
        ] {
            assert_eq!(includes(pattern, repository), expected, "{pattern} {repository}");
        }
    }

    #[test]
    fn stars_take_what_they_must() {
        for (pattern, label, expected) in [
            ("*", "", true),
            ("a*", "a", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("**", "x", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("[]a]", "]", true),
            ("[a", "a", false),
            ("x", "", false),
        ] {
            assert_eq!(matches(pattern, label), expected, "{pattern} {label}");
        }
    }
}
