//! The credentials in Secrets, and which of them are for an image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use coracle_cri::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::place::Place;
use super::records::Proof;

/// Entries with this key are for images that name no registry.
const USUAL_REGISTRY: &str = "index.docker.io";

/// Credentials, and which Secret they come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Credential {
    pub(crate) auth: AuthConfig,
    pub(crate) proof: Proof,
}

/// All credentials of a Pod.
#[derive(Debug, Default)]
pub(crate) struct Keyring {
    /// By the place that they are for.
    places: BTreeMap<String, Vec<Credential>>,
}

/// `.dockerconfigjson`.
#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: Option<DockerConfig>,
}

/// `.dockercfg`.
type DockerConfig = BTreeMap<String, Entry>;

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<String>,
    /// Both, in base64.
    #[serde(default)]
    auth: Option<String>,
}

impl Keyring {
    /// The credentials in Secrets of the types that are meant for this.
    ///
    /// # Errors
    /// Why one of them cannot be read. What it holds is never told.
    pub(crate) fn of(secrets: &[Arc<Secret>]) -> Result<Self, String> {
        let mut keyring = Keyring::default();
        for secret in secrets {
            let data = |key: &str| {
                let data = secret.data.as_ref()?.get(key)?;
                Some(data.0.as_slice()).filter(|data| !data.is_empty())
            };
            let name = secret.metadata.name.as_deref().unwrap_or_default();
            let wrong = |why: serde_json::Error| {
                let (line, column) = (why.line(), why.column());
                format!("the pull secret \"{name}\" does not hold credentials: line {line} column {column}")
            };
            let entries = match secret.type_.as_deref() {
                Some("kubernetes.io/dockerconfigjson") => data(".dockerconfigjson").map(|data| {
                    let config: DockerConfigJson = serde_json::from_slice(data).map_err(wrong)?;
                    Ok::<DockerConfig, String>(config.auths.unwrap_or_default())
                }),
                Some("kubernetes.io/dockercfg") => {
                    data(".dockercfg").map(|data| serde_json::from_slice(data).map_err(wrong))
                }
                _ => None,
            };
            for (location, entry) in entries.transpose()?.unwrap_or_default() {
                let unreadable =
                    |why: &str| format!("the pull secret \"{name}\" does not hold credentials: {why}");
                let auth = entry.auth().map_err(unreadable)?;
                let proof = Proof::of(secret, &auth);
                keyring.places.entry(place_key(&location)).or_default().push(Credential { auth, proof });
            }
        }
        Ok(keyring)
    }

    /// The credentials for a repository by its full name, those of the longest place first.
    pub(crate) fn lookup(&self, repository: &str) -> Vec<Credential> {
        let Some(wanted) = Place::parse(repository) else { return Vec::new() };
        let fitting = |place: &str| Place::parse(place).is_some_and(|place| place.includes(&wanted));
        let found: Vec<_> = self.places.iter().rev().filter(|(place, _)| fitting(place)).collect();
        if found.is_empty() && repository.starts_with("docker.io/") {
            return self.places.get(USUAL_REGISTRY).cloned().unwrap_or_default();
        }
        found.into_iter().flat_map(|(_, credentials)| credentials.iter().cloned()).collect()
    }
}

/// The host and path of a location as people write it: with a scheme or without, with the version of the API or without.
fn place_key(location: &str) -> String {
    let bare = ["https://", "http://"].into_iter().find_map(|scheme| location.strip_prefix(scheme));
    let bare = bare.unwrap_or(location);
    let bare = bare.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = match bare.find('/') {
        Some(slash) => bare.split_at(slash),
        None => (bare, ""),
    };
    let path = match ["/v1/", "/v2/"].into_iter().find(|version| path.starts_with(version)) {
        Some(version) => &path[version.len() - 1..],
        None => path,
    };
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    format!("{host}{}", if path == "/" { "" } else { path })
}

impl Entry {
    fn auth(self) -> Result<AuthConfig, &'static str> {
        let Entry { username, password, auth } = self;
        let (username, password) = match auth.filter(|auth| !auth.is_empty()) {
            None => (username.unwrap_or_default(), password.unwrap_or_default()),
            Some(auth) => {
                let padded = auth.trim().ends_with('=');
                let decoded = if padded { STANDARD.decode(&auth) } else { STANDARD_NO_PAD.decode(&auth) };
                let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
                let text = text.ok_or("the auth field is no text in base64")?;
                let both = text.split_once(':');
                let (username, password) =
                    both.ok_or("unable to parse auth field, must be formatted as base64(username:password)")?;
                (username.to_owned(), password.to_owned())
            }
        };
        Ok(AuthConfig { username, password, registry_token: String::new() })
    }
}

/// What tells credentials from others without telling what they are.
pub(super) fn hash(auth: &AuthConfig) -> String {
    let mut hash = Sha256::new();
    for part in [&auth.username, &auth.password, &auth.registry_token] {
        hash.update(part.len().to_le_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What several attempts came to: each message once.
pub(crate) fn all_of(messages: Vec<String>) -> String {
    let mut seen = BTreeSet::new();
    let mut each: Vec<String> = messages.into_iter().filter(|message| seen.insert(message.clone())).collect();
    if each.len() == 1 { each.remove(0) } else { format!("[{}]", each.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn secret(name: &str, kind: &str, key: &str, content: &Value) -> Arc<Secret> {
        let data = STANDARD.encode(content.to_string());
        let secret = json!({
            "metadata": {"name": name, "namespace": "ns", "uid": format!("uid-{name}")},
            "type": kind, "data": {key: data},
        });
        Arc::new(serde_json::from_value(secret).unwrap())
    }

    fn config(name: &str, auths: Value) -> Arc<Secret> {
        secret(name, "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &json!({ "auths": auths }))
    }

    fn user(name: &str) -> Value {
        json!({"username": name, "password": "p"})
    }

    fn found(secrets: &[Arc<Secret>], repository: &str) -> Vec<String> {
        let credentials = Keyring::of(secrets).unwrap().lookup(repository);
        credentials.into_iter().map(|found| found.auth.username).collect()
    }

    #[test]
    fn the_longest_place_comes_first_whatever_secret_it_is_in() {
        let secrets = [
            config("one", json!({"reg.example.org": user("host"), "*.example.org": user("any")})),
            config(
                "two",
                json!({"https://reg.example.org/v2/team": user("team"), "other.org": user("other")}),
            ),
        ];
        assert_eq!(found(&secrets, "reg.example.org/team/app"), ["team", "host", "any"]);
        assert_eq!(found(&secrets, "reg.example.org/app"), ["host", "any"]);
        assert_eq!(found(&secrets, "eu.example.org/app"), ["any"]);
        assert_eq!(found(&secrets, "example.org/app"), [""; 0]);
        let same =
            [config("a", json!({"reg.org": user("a")})), config("b", json!({"http://reg.org/": user("b")}))];
        assert_eq!(found(&same, "reg.org/x"), ["a", "b"]);
    }

    #[test]
    fn images_without_a_registry_have_the_usual_ones() {
        let usual = [config("s", json!({"https://index.docker.io/v1/": user("me")}))];
        assert_eq!(found(&usual, "docker.io/library/busybox"), ["me"]);
        assert_eq!(found(&usual, "quay.io/library/busybox"), [""; 0]);
        let named =
            [config("s", json!({"https://index.docker.io/v1/": user("me"), "docker.io/team": user("team")}))];
        assert_eq!(found(&named, "docker.io/team/app"), ["team"]);
        assert_eq!(found(&named, "docker.io/library/app"), ["me"]);
    }

    #[test]
    fn both_types_and_both_forms_are_read_and_others_are_not() {
        let auth = |text: &str| json!({"auth": text, "username": "ignored"});
        for (text, expected) in [
            (STANDARD.encode("me:se:cret"), Ok(("me", "se:cret"))),
            (STANDARD_NO_PAD.encode("me:secret12"), Ok(("me", "secret12"))),
            (STANDARD.encode("nobody"), Err("must be formatted as base64(username:password)")),
            ("%".to_owned(), Err("the auth field is no text in base64")),
        ] {
            let old = secret("s", "kubernetes.io/dockercfg", ".dockercfg", &json!({"reg.org": auth(&text)}));
            let keyring = Keyring::of(&[old]);
            match expected {
                Ok((username, password)) => {
                    let found = keyring.unwrap().lookup("reg.org/a").remove(0).auth;
                    assert_eq!((found.username.as_str(), found.password.as_str()), (username, password));
                }
                Err(part) => assert!(keyring.unwrap_err().contains(part)),
            }
        }
        let other = secret("s", "Opaque", ".dockerconfigjson", &json!({"auths": {"reg.org": user("me")}}));
        assert_eq!(found(&[other], "reg.org/a"), [""; 0]);
        let empty =
            secret("s", "kubernetes.io/dockerconfigjson", ".dockerconfigjson", &json!({"auths": null}));
        assert_eq!(found(&[empty], "reg.org/a"), [""; 0]);
        let wrong = config("s", json!({"reg.org": {"username": {"hunter2": 1}}}));
        let why = Keyring::of(&[wrong]).unwrap_err();
        assert!(why.contains("the pull secret \"s\"") && !why.contains("hunter2"), "{why}");
    }

    #[test]
    fn messages_of_several_attempts_are_told_once_each() {
        let all = |messages: &[&str]| all_of(messages.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(all(&["a"]), "a");
        assert_eq!(all(&["a", "a"]), "a");
        assert_eq!(all(&["a", "b", "a"]), "[a, b]");
    }
}
