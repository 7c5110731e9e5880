//! How another machine becomes a node: join tokens, and what is said when one joins or renews its certificates.
//!
//! A token is kept as a Secret of type `bootstrap.kubernetes.io/token` in `kube-system`, in upstream's form
//! (<https://kubernetes.io/docs/reference/access-authn-authz/bootstrap-tokens/>), with two entries more: a token is
//! spent by the first node that uses it unless it was made to be used again. What is handed to people also carries
//! the fingerprint of the cluster's authority, so that a machine never joins whatever happens to answer.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Namespace of the tokens.
pub const NAMESPACE: &str = "kube-system";
/// Type of the Secrets that are tokens.
pub const SECRET_TYPE: &str = "bootstrap.kubernetes.io/token";
/// Annotation of a Node that joined: the fingerprint of the key that its certificates are for.
pub const KEY_ANNOTATION: &str = "coracle.dev/node-key";
/// How far the clocks of a node and its server may be apart when the node joins: certificates begin this long
/// before they are made.
pub const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
const FINGERPRINT_LENGTH: usize = 64;

/// A token as people hold it: `ID.SECRET.FINGERPRINT`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Names the Secret; no secret itself.
    pub id: String,
    /// What only who may join knows.
    pub secret: String,
    /// SHA-256 of the authority's certificate in DER, in hexadecimal.
    pub authority: String,
}

/// A text that is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "a join token looks like ID.SECRET.FINGERPRINT (6, 16 and 64 characters): copy all of what `coracle token create` printed on the server"
)]
pub struct NotAToken;

impl Token {
    /// A new token from random bytes, of which 22 are used.
    #[must_use]
    pub fn from_random(bytes: [u8; ID_LENGTH + SECRET_LENGTH], authority: &str) -> Self {
        // 32 of the 36 letters: no letter is more likely than another.
        const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
        let text: String = bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect();
        let (id, secret) = text.split_at(ID_LENGTH);
        Token { id: id.to_owned(), secret: secret.to_owned(), authority: authority.to_owned() }
    }

    /// Name of the Secret that keeps this token.
    #[must_use]
    pub fn secret_name(&self) -> String {
        secret_name(&self.id)
    }
}

/// Name of the Secret that keeps the token with this id.
#[must_use]
pub fn secret_name(id: &str) -> String {
    format!("bootstrap-token-{id}")
}

impl FromStr for Token {
    type Err = NotAToken;

    fn from_str(text: &str) -> Result<Self, NotAToken> {
        let mut parts = text.trim().split('.');
        let (Some(id), Some(secret), Some(authority), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(NotAToken);
        };
        let fits = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        if fits(id, ID_LENGTH) && fits(secret, SECRET_LENGTH) && fits(authority, FINGERPRINT_LENGTH) {
            Ok(Token { id: id.to_owned(), secret: secret.to_owned(), authority: authority.to_owned() })
        } else {
            Err(NotAToken)
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.id, self.secret, self.authority)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the cluster keeps of a token.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenRecord {
    /// See [`Token::id`].
    pub id: String,
    /// See [`Token::secret`].
    pub secret: String,
    /// From when on it no longer works; `None` for never.
    pub expires: Option<Timestamp>,
    /// Whether it works for more than one node.
    pub reusable: bool,
    /// Node and key fingerprint of who used it.
    pub spent_by: Option<(String, String)>,
}

impl fmt::Debug for TokenRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenRecord")
            .field("id", &self.id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Why a token does not let its holder in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenProblem {
    /// There is none with this id, or the secret is another one.
    #[error(
        "the join token is not one of this cluster's: make one with `coracle token create` on the server"
    )]
    Wrong,
    /// Its time is over.
    #[error("the join token expired at {0}: make a new one with `coracle token create` on the server")]
    Expired(Timestamp),
    /// Another node has used it.
    #[error(
        "the join token was already used by node {0:?}: make a new one with `coracle token create` on the server"
    )]
    Spent(String),
}

impl TokenRecord {
    /// The Secret that keeps the record.
    #[must_use]
    pub fn to_secret(&self) -> Value {
        let mut data = BTreeMap::from([
            ("token-id", self.id.clone()),
            ("token-secret", self.secret.clone()),
            ("usage-coracle-join", "true".to_owned()),
        ]);
        if let Some(expires) = self.expires {
            data.insert("expiration", expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        }
        if self.reusable {
            data.insert("coracle-reusable", "true".to_owned());
        }
        if let Some((node, key)) = &self.spent_by {
            data.insert("coracle-spent-by", node.clone());
            data.insert("coracle-spent-key", key.clone());
        }
        let data: BTreeMap<_, _> = data.into_iter().map(|(key, text)| (key, STANDARD.encode(text))).collect();
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": SECRET_TYPE,
            "metadata": { "name": secret_name(&self.id), "namespace": NAMESPACE },
            "data": data,
        })
    }

    /// The record that a Secret keeps; `None` if it keeps none that lets nodes join.
    #[must_use]
    pub fn from_secret(secret: &Value) -> Option<Self> {
        if secret.get("type")?.as_str()? != SECRET_TYPE {
            return None;
        }
        let entry = |key: &str| {
            let bytes = STANDARD.decode(secret.get("data")?.get(key)?.as_str()?).ok()?;
            String::from_utf8(bytes).ok()
        };
        if entry("usage-coracle-join")? != "true" {
            return None;
        }
        // An expiration that does not parse must not mean that the token works for ever.
        let expires = match entry("expiration") {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        Some(TokenRecord {
            id: entry("token-id")?,
            secret: entry("token-secret")?,
            expires,
            reusable: entry("coracle-reusable").as_deref() == Some("true"),
            spent_by: entry("coracle-spent-by").zip(entry("coracle-spent-key")),
        })
    }

    /// Whether the holder of `token`, whose key has this fingerprint, may join as `node`. The node that spent a
    /// token may use it again: its answer may have been lost.
    pub fn check(&self, token: &Token, node: &str, key: &str, now: Timestamp) -> Result<(), TokenProblem> {
        if !same_secret(&self.secret, &token.secret) || self.id != token.id {
            return Err(TokenProblem::Wrong);
        }
        if let Some(expires) = self.expires.filter(|expires| now >= *expires) {
            return Err(TokenProblem::Expired(expires));
        }
        match &self.spent_by {
            Some((by, by_key)) if !self.reusable && (by != node || by_key != key) => {
                Err(TokenProblem::Spent(by.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// Compares without telling by its time how much is right.
fn same_secret(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

/// What everyone may ask: whose cluster this is, and what time it is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Authority {
    /// The authority's certificate, PEM.
    pub certificate: String,
    /// The server's clock.
    pub time: Timestamp,
}

/// A machine asks to become a node.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// The whole token. Empty when a node renews its certificates.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub token: String,
    /// Name of the Node.
    pub node: String,
    /// Addresses of the node, for its serving certificate.
    pub addresses: Vec<IpAddr>,
    /// PKCS#10, PEM: shows the node's public key, and that it has the private one.
    pub certificate_request: String,
    /// The node's clock.
    pub time: Timestamp,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What a node gets. All certificates are for the key of its request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// The authority's certificate, PEM.
    pub authority: String,
    /// As the node agent.
    pub node_certificate: String,
    /// For the node agent's own API.
    pub serving_certificate: String,
    /// As the node's network, which has to know all nodes.
    pub network_certificate: String,
    /// What all nodes have in common.
    pub network: ClusterNetwork,
}

/// What all nodes of a cluster have to agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterNetwork {
    /// Addresses of all Pods.
    pub pod_cidr: String,
    /// Addresses of all Services.
    pub service_cidr: String,
    /// Number of the overlay between the nodes.
    pub vni: u32,
}

/// What is wrong with a node's clock, if it is too far from the server's.
#[must_use]
pub fn clock_problem(node: Timestamp, server: Timestamp) -> Option<String> {
    let ahead = node.duration_since(server);
    if ahead.abs() <= CLOCK_TOLERANCE {
        return None;
    }
    let direction = if ahead.is_positive() { "ahead of" } else { "behind" };
    let minutes = ahead.abs().as_secs() / 60;
    let amount =
        if minutes >= 120 { format!("{} hours", minutes / 60) } else { format!("{minutes} minutes") };
    Some(format!(
        "this machine's clock is {amount} {direction} the server's ({} here, {} there): set it, for example with \
         `timedatectl set-ntp true`, and try again",
        node.strftime("%Y-%m-%d %H:%M:%S UTC"),
        server.strftime("%Y-%m-%d %H:%M:%S UTC"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> Token {
        Token::from_random(*b"0123456789abcdefghijkl", &"a1".repeat(32))
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn record() -> TokenRecord {
        let token = token();
        TokenRecord {
            id: token.id,
            secret: token.secret,
            expires: Some(at("2026-11-22T12:00:00Z")),
            reusable: false,
            spent_by: None,
        }
    }

    #[test]
    fn a_token_is_read_as_it_was_printed_and_nothing_else_is() {
        let token = token();
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret), "a secret stays out of logs");
        let text = token.to_string();
        for bad in ["", "abc", &text[..text.len() - 1], &format!("{text}.x"), &text.to_uppercase(), "a.b.c"] {
            assert_eq!(bad.parse::<Token>(), Err(NotAToken), "{bad}");
        }
    }

    #[test]
    fn secrets_are_the_same_only_as_a_whole() {
        assert!(same_secret("0123456789abcdef", "0123456789abcdef"));
        for other in ["", "0", "0123456789abcde", "0123456789abcdeg", "1123456789abcdef", "0123456789abcdef0"]
        {
            assert!(!same_secret("0123456789abcdef", other), "{other}");
            assert!(!same_secret(other, "0123456789abcdef"), "{other}");
        }
    }

    #[test]
    fn a_record_survives_its_secret() {
        for record in [
            record(),
            TokenRecord { expires: None, reusable: true, ..record() },
            TokenRecord { spent_by: Some(("n1".into(), "k1".into())), ..record() },
        ] {
            assert_eq!(TokenRecord::from_secret(&record.to_secret()), Some(record));
        }
        let mut damaged = record().to_secret();
        damaged["data"]["expiration"] = json!(STANDARD.encode("tomorrow"));
        assert_eq!(TokenRecord::from_secret(&damaged), None, "not for ever");
        let mut other = record().to_secret();
        other["type"] = json!("Opaque");
        assert_eq!(TokenRecord::from_secret(&other), None);
    }

    #[test]
    fn a_token_lets_in_who_it_is_for() {
        let now = at("2026-11-21T12:00:00Z");
        let spent = TokenRecord { spent_by: Some(("n1".into(), "k1".into())), ..record() };
        let wrong = Token { secret: "x".repeat(16), ..token() };
        let late = at("2026-11-22T12:00:00Z");
        for (record, token, node, key, now, expected) in [
            (&record(), &token(), "n1", "k1", now, Ok(())),
            (&record(), &wrong, "n1", "k1", now, Err(TokenProblem::Wrong)),
            (&record(), &token(), "n1", "k1", late, Err(TokenProblem::Expired(late))),
            (&spent, &token(), "n1", "k1", now, Ok(())),
            (&spent, &token(), "n1", "k2", now, Err(TokenProblem::Spent("n1".into()))),
            (&spent, &token(), "n2", "k1", now, Err(TokenProblem::Spent("n1".into()))),
            (&TokenRecord { reusable: true, ..spent.clone() }, &token(), "n2", "k2", now, Ok(())),
        ] {
            assert_eq!(record.check(token, node, key, now), expected);
        }
    }

    #[test]
    fn clocks_far_apart_are_told_with_what_to_do() {
        let server = at("2026-11-21T12:00:00Z");
        assert_eq!(clock_problem(at("2026-11-21T12:04:59Z"), server), None);
        let text = clock_problem(at("2026-11-21T11:00:00Z"), server).unwrap();
        assert!(text.starts_with("this machine's clock is 60 minutes behind the server's"), "{text}");
        assert!(text.contains("timedatectl"), "{text}");
        assert!(clock_problem(at("2026-11-23T12:00:00Z"), server).unwrap().contains("48 hours ahead of"));
    }
}
