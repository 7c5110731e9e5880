//! Who shows a token: its account, if the token still holds.

use coracle_api::status::Status;
use coracle_api::{Value, catalogue};
use http::HeaderMap;

use super::{Bound, ISSUER, Named, Said, check, is_ours, is_over};
use crate::auth::UserInfo;
use crate::pki::NotOurs;
use crate::server::Core;

const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What is said of a token that is none of ours.
const INVALID: &str = "invalid bearer token";

/// Who shows a token, and for which of the wanted audiences it is.
#[derive(Debug)]
pub(crate) struct Shown {
    pub(crate) user: UserInfo,
    pub(crate) audiences: Vec<String>,
}

/// Why nobody is known by a token.
pub(crate) enum Refusal {
    /// The token does not hold, in words for the log and for who asks about tokens.
    Token(String),
    /// It could not be found out.
    Unknown(Status),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Unknown(status)
    }
}

impl From<String> for Refusal {
    fn from(why: String) -> Self {
        Refusal::Token(format!("[{INVALID}, {why}]"))
    }
}

/// The token of a request, if it has one.
pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(http::header::AUTHORIZATION)?.to_str().ok()?.trim();
    let (scheme, rest) = text.split_once(' ')?;
    let token = rest.split(' ').next()?;
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

impl Core {
    /// Who sends a request that shows a token; `None` if it shows none.
    pub(crate) async fn bearer_of(&self, headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
        let Some(token) = bearer(headers) else { return Ok(None) };
        match self.authenticate_token(token, &[ISSUER.to_owned()]).await {
            Ok(shown) => Ok(Some(shown.user)),
            Err(Refusal::Token(why)) => {
                tracing::debug!(why, "unable to authenticate the request");
                Err(Status::unauthorized())
            }
            Err(Refusal::Unknown(status)) => Err(status),
        }
    }

    /// Who shows `token` to one of `audiences`.
    pub(crate) async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Shown, Refusal> {
        let now = self.clock.now();
        let claims = match self.config.account_key.read(token) {
            Ok(claims) if is_ours(&claims) => claims,
            Err(NotOurs::Signature { claims }) if is_ours(&claims) => {
                return Err("go-jose/go-jose: error in cryptographic primitive".to_owned().into());
            }
            _ => return Err(Refusal::Token(INVALID.to_owned())),
        };
        let said = check(&claims, now).map_err(|why| Refusal::from(why.to_owned()))?;
        let shared: Vec<String> =
            said.audiences.iter().filter(|audience| audiences.contains(audience)).cloned().collect();
        if shared.is_empty() {
            let list = |names: &[String]| {
                names.iter().map(|name| coracle_api::field::go_quote(name)).collect::<Vec<_>>().join(" ")
            };
            return Err(format!(
                "token audiences [{}] is invalid for the target audiences [{}]",
                list(&said.audiences),
                list(audiences)
            )
            .into());
        }
        let account = self.object("serviceaccounts", &said.namespace, &said.account.name).await?;
        let Some(account) = account else {
            return Err(format!("serviceaccounts {:?} not found", said.account.name).into());
        };
        let uid = crate::prepare::text(&account, "uid");
        if uid != said.account.uid {
            return Err(
                format!("service account UID ({uid}) does not match claim ({})", said.account.uid).into()
            );
        }
        if is_over(&account, now) {
            return Err("service account has been deleted".to_owned().into());
        }
        match &said.bound {
            // The node of a Pod is told, not held against anything.
            Bound::Pod(pod, _) => self.still_there("pods", &said.namespace, pod).await?,
            Bound::Secret(secret) => self.still_there("secrets", &said.namespace, secret).await?,
            Bound::Node(node) => self.still_there("nodes", "", node).await?,
            Bound::Account => {}
        }
        Ok(Shown { user: user(&said), audiences: shared })
    }

    async fn still_there(&self, plural: &str, namespace: &str, bound: &Named) -> Result<(), Refusal> {
        let invalidated = || "service account token has been invalidated".to_owned();
        let object = self.object(plural, namespace, &bound.name).await?.ok_or_else(invalidated)?;
        let uid = crate::prepare::text(&object, "uid");
        if uid != bound.uid {
            let kind = plural.trim_end_matches('s');
            let why =
                format!("{kind} UID ({uid}) does not match service account {kind} ref claim ({})", bound.uid);
            return Err(why.into());
        }
        if is_over(&object, self.clock.now()) {
            return Err(invalidated().into());
        }
        Ok(())
    }

    /// An object of the core group, if it exists.
    pub(crate) async fn object(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Value>, Status> {
        let Some(row) = catalogue::find("", "v1", plural) else { return Ok(None) };
        let key = bytes::Bytes::from(row.storage_key(namespace, name));
        let (found, _) = self.store.get(&key).await.map_err(|error| crate::server::store_failed(&error))?;
        found.map(|kv| self.served(row, &kv)).transpose()
    }
}

fn user(said: &Said) -> UserInfo {
    let mut user = UserInfo::service_account(&said.namespace, &said.account.name);
    user.uid.clone_from(&said.account.uid);
    let mut tell = |key: &str, value: &str| {
        if !value.is_empty() {
            user.extra.insert(key.to_owned(), vec![value.to_owned()]);
        }
    };
    if !said.id.is_empty() {
        tell(CREDENTIAL, &format!("JTI={}", said.id));
    }
    if let Bound::Pod(pod, _) = &said.bound {
        tell(POD_NAME, &pod.name);
        tell(POD_UID, &pod.uid);
    }
    if let Bound::Pod(_, Some(node)) | Bound::Node(node) = &said.bound {
        tell(NODE_NAME, &node.name);
        tell(NODE_UID, &node.uid);
    }
    user
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_token_is_found_where_clients_put_it() {
        for (text, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("BEARER abc more", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearer  abc", None),
            ("", None),
        ] {
            let headers =
                HeaderMap::from_iter([(http::header::AUTHORIZATION, HeaderValue::from_static(text))]);
            assert_eq!(bearer(&headers), expected, "{text}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
