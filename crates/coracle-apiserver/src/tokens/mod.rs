//! Tokens of service accounts: who may show one, what it says, and whether it still holds.
//!
//! [`claims`] decides what a token says, [`check`] whether its time is right; `request` makes tokens,
//! `authenticate` turns one into a user. A token is worth nothing once the account, or the object it is bound to, is
//! gone.

mod authenticate;
mod request;

pub(crate) use authenticate::Refusal;
pub(crate) use request::account_of;

use coracle_api::{Timestamp, Value};
use jiff::SignedDuration;
use serde_json::{Map, json};

use crate::body::{Body, full};

/// Who signs tokens, and for whom they are unless somebody else is named.
pub(crate) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Clocks may differ by this much, and what is deleted may be used for this long after its time.
const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// The lifetime that admission asks for: whoever asks for exactly this may not know yet that tokens end.
const USUAL_SECONDS: i64 = 60 * 60 + 7;

/// How long such a token is taken in fact.
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;

/// An object that a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) name: String,
    /// Empty if the object was not there.
    pub(crate) uid: String,
}

impl Named {
    pub(crate) fn of(object: &Value) -> Self {
        let text = |field: &str| crate::prepare::text(object, field).to_owned();
        Named { name: text("name"), uid: text("uid") }
    }

    fn to_value(&self) -> Value {
        if self.uid.is_empty() {
            json!({ "name": self.name })
        } else {
            json!({ "name": self.name, "uid": self.uid })
        }
    }

    fn from_value(value: Option<&Value>) -> Option<Self> {
        let value = value?;
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Named { name: text("name"), uid: text("uid") })
    }
}

/// What a token ends with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Its account.
    Account,
    /// A Pod, and the node that the Pod is on.
    Pod(Named, Option<Named>),
    Secret(Named),
    Node(Named),
}

/// A token that is asked for.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) namespace: String,
    pub(crate) account: Named,
    pub(crate) bound: Bound,
    pub(crate) audiences: Vec<String>,
    pub(crate) seconds: i64,
    /// Tells this token from all others.
    pub(crate) id: String,
}

/// What a token says.
pub(crate) fn claims(wanted: &Wanted, now: Timestamp) -> Value {
    let usual = matches!(wanted.bound, Bound::Pod(..))
        && wanted.seconds == USUAL_SECONDS
        && !wanted.audiences.is_empty()
        && wanted.audiences.iter().all(|audience| audience == ISSUER);
    let lifetime = if usual { EXTENDED_SECONDS } else { wanted.seconds };
    let now = now.as_second();
    let mut own = Map::new();
    own.insert("namespace".to_owned(), wanted.namespace.as_str().into());
    let mut name = |kind: &str, named: &Named| own.insert(kind.to_owned(), named.to_value());
    match &wanted.bound {
        Bound::Account => {}
        Bound::Pod(pod, node) => {
            if let Some(node) = node {
                name("node", node);
            }
            name("pod", pod);
        }
        Bound::Secret(secret) => {
            name("secret", secret);
        }
        Bound::Node(node) => {
            name("node", node);
        }
    }
    name("serviceaccount", &wanted.account);
    if usual {
        own.insert("warnafter".to_owned(), (now + wanted.seconds).into());
    }
    json!({
        "aud": wanted.audiences,
        "exp": now + lifetime,
        "iat": now,
        "iss": ISSUER,
        "jti": wanted.id,
        "kubernetes.io": own,
        "nbf": now,
        "sub": format!("system:serviceaccount:{}:{}", wanted.namespace, wanted.account.name),
    })
}

/// What a token of ours says, read back.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) namespace: String,
    pub(crate) account: Named,
    pub(crate) bound: Bound,
    pub(crate) audiences: Vec<String>,
    pub(crate) id: String,
}

/// Whether it was us who signed, going by what a token says of itself.
pub(crate) fn is_ours(claims: &Value) -> bool {
    claims.get("iss").and_then(Value::as_str) == Some(ISSUER)
}

/// Reads what a token says, if it says it at the right time. Who signed it has been verified.
pub(crate) fn check(claims: &Value, now: Timestamp) -> Result<Said, &'static str> {
    let time = |name: &str| {
        let seconds = claims.get(name).and_then(Value::as_i64)?;
        Timestamp::from_second(seconds).ok()
    };
    let (early, late) = (now.saturating_sub(LEEWAY), now.saturating_add(LEEWAY));
    let (early, late) = (early.unwrap_or(now), late.unwrap_or(now));
    if time("nbf").is_none_or(|begin| late < begin) {
        return Err("service account token is not valid yet");
    }
    if time("exp").is_none_or(|end| early > end) {
        return Err("service account token has expired");
    }
    if time("iat").is_none_or(|issued| late < issued) {
        return Err("service account token is issued in the future");
    }
    let own = claims.get("kubernetes.io").unwrap_or(&Value::Null);
    let named = |kind: &str| Named::from_value(own.get(kind));
    let bound = match (named("pod"), named("secret"), named("node")) {
        (Some(pod), None, node) => Bound::Pod(pod, node),
        (None, Some(secret), None) => Bound::Secret(secret),
        (None, None, Some(node)) => Bound::Node(node),
        (None, None, None) => Bound::Account,
        _ => return Err("service account token claims could not be validated due to unexpected bindings"),
    };
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = text(own.get("namespace"));
    let account = named("serviceaccount").filter(|account| !account.name.is_empty() && !namespace.is_empty());
    let account =
        account.ok_or("service account token claims could not be validated: no account is named")?;
    let audiences = claims.get("aud").and_then(Value::as_array).into_iter().flatten();
    let audiences = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
    Ok(Said { namespace, account, bound, audiences, id: text(claims.get("jti")) })
}

/// Whether an object was deleted so long ago that nothing bound to it holds any more.
pub(crate) fn is_over(object: &Value, now: Timestamp) -> bool {
    let at: Option<Timestamp> = crate::prepare::text(object, "deletionTimestamp").parse().ok();
    at.is_some_and(|at| at < now.saturating_sub(LEEWAY).unwrap_or(now))
}

/// `/.well-known/openid-configuration`: where those who verify tokens find the key.
pub(crate) fn discovery(advertise: std::net::SocketAddr) -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{advertise}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// A document for those who verify tokens, who may keep it for an hour.
pub(crate) fn document(kind: &'static str, value: &Value) -> http::Response<Body> {
    let mut response = http::Response::new(full(value.to_string()));
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("public, max-age=3600"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2030-01-01T12:00:00Z".parse().unwrap()
    }

    fn named(name: &str) -> Named {
        Named { name: name.to_owned(), uid: format!("uid-{name}") }
    }

    fn wanted(bound: Bound) -> Wanted {
        Wanted {
            namespace: "ns".to_owned(),
            account: named("me"),
            bound,
            audiences: vec![ISSUER.to_owned()],
            seconds: 3607,
            id: "one".to_owned(),
        }
    }

    #[test]
    fn a_token_of_a_pod_says_what_upstreams_says() {
        let begin = now().as_second();
        let said = claims(&wanted(Bound::Pod(named("p"), Some(named("n")))), now());
        let expected = json!({
            "aud": [ISSUER], "exp": begin + 31_536_000, "iat": begin, "iss": ISSUER, "jti": "one",
            "kubernetes.io": {
                "namespace": "ns",
                "node": { "name": "n", "uid": "uid-n" },
                "pod": { "name": "p", "uid": "uid-p" },
                "serviceaccount": { "name": "me", "uid": "uid-me" },
                "warnafter": begin + 3607,
            },
            "nbf": begin, "sub": "system:serviceaccount:ns:me",
        });
        assert_eq!(said.to_string(), expected.to_string());
    }

    #[test]
    fn only_the_usual_token_of_a_pod_for_this_server_lives_longer_than_asked() {
        let lifetime = |wanted: &Wanted| {
            let said = claims(wanted, now());
            let warned = said["kubernetes.io"].get("warnafter").is_some();
            (said["exp"].as_i64().unwrap() - now().as_second(), warned)
        };
        let pod = || Bound::Pod(named("p"), None);
        assert_eq!(lifetime(&wanted(pod())), (31_536_000, true));
        assert_eq!(lifetime(&Wanted { seconds: 3600, ..wanted(pod()) }), (3600, false));
        assert_eq!(lifetime(&Wanted { audiences: vec!["vault".to_owned()], ..wanted(pod()) }), (3607, false));
        for bound in [Bound::Account, Bound::Secret(named("s")), Bound::Node(named("n"))] {
            assert_eq!(lifetime(&wanted(bound)), (3607, false));
        }
    }

    #[test]
    fn what_a_token_says_is_read_back() {
        for bound in [
            Bound::Account,
            Bound::Pod(named("p"), None),
            Bound::Pod(named("p"), Some(named("n"))),
            Bound::Pod(named("p"), Some(Named { name: "n".to_owned(), uid: String::new() })),
            Bound::Secret(named("s")),
            Bound::Node(named("n")),
        ] {
            let asked = wanted(bound.clone());
            let said = check(&claims(&asked, now()), now()).unwrap();
            assert_eq!((said.bound, said.account, said.namespace), (bound, named("me"), "ns".to_owned()));
            assert_eq!((said.audiences, said.id), (asked.audiences, asked.id));
        }
    }

    #[test]
    fn a_token_holds_from_its_begin_to_its_end_and_a_minute_around() {
        let said = claims(&Wanted { seconds: 600, ..wanted(Bound::Account) }, now());
        let at = |seconds: i64| {
            let then = now().saturating_add(SignedDuration::from_secs(seconds)).unwrap();
            check(&said, then).map(|_| ())
        };
        assert_eq!(at(-61), Err("service account token is not valid yet"));
        assert_eq!(at(-60), Ok(()));
        assert_eq!(at(660), Ok(()));
        assert_eq!(at(661), Err("service account token has expired"));
        for missing in ["exp", "nbf", "iat"] {
            let mut cut = said.clone();
            cut.as_object_mut().unwrap().shift_remove(missing);
            assert!(check(&cut, now()).is_err(), "{missing}");
        }
        let mut nobody = said.clone();
        nobody["kubernetes.io"].as_object_mut().unwrap().shift_remove("serviceaccount");
        assert!(check(&nobody, now()).is_err());
    }
}
