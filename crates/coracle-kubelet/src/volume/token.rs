//! Tokens of service accounts in volumes: asked for on behalf of a Pod, bound to it, and renewed in time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_client::{ObjectKey, request};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use serde_json::json;
use tracing::warn;

use super::payload::TokenWanted;
use crate::context::Context;
use crate::spec::PodIdentity;

/// A token is renewed after this time even if it is good for longer.
const AGE_MAX: SignedDuration = SignedDuration::from_hours(24);
/// Up to so much earlier, so that Pods that came together do not renew together.
const SPREAD_MS: u64 = 10_000;
/// Pause before a renewal that failed is tried again while the token is still good.
const RETRY: SignedDuration = SignedDuration::from_secs(60);
/// The longest that the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
struct Token {
    text: String,
    expires: Timestamp,
    renew_at: Timestamp,
}

/// The tokens of one Pod.
#[derive(Debug, Default)]
pub(super) struct Tokens(Mutex<BTreeMap<TokenWanted, Token>>);

impl Tokens {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<TokenWanted, Token>> {
        // Entries are replaced as a whole: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the token has to be renewed, if there is one.
    pub(super) fn renew_at(&self, wanted: &TokenWanted) -> Option<Timestamp> {
        self.lock().get(wanted).map(|token| token.renew_at)
    }

    /// The token, asked for anew if it is time to.
    ///
    /// # Errors
    /// Why there is none, in upstream's words.
    pub(super) async fn get(
        &self,
        context: &Context,
        pod: &Pod,
        wanted: &TokenWanted,
    ) -> Result<String, String> {
        let known = self.lock().get(wanted).cloned();
        if let Some(known) = known.as_ref().filter(|known| context.clock.now() < known.renew_at) {
            return Ok(known.text.clone());
        }
        let asked = context.clock.timeout(PATIENCE, ask(context, pod, wanted)).await;
        let asked = asked.unwrap_or_else(|| Err("the API server does not answer".to_owned()));
        let now = context.clock.now();
        match (asked, known) {
            (Ok(token), _) => {
                let text = token.text.clone();
                self.lock().insert(wanted.clone(), token);
                Ok(text)
            }
            (Err(why), None) => Err(format!("failed to fetch token: {why}")),
            (Err(why), Some(known)) if known.expires <= now => Err(format!(
                "token of pod {} expired and refresh failed: {why}",
                PodIdentity::of(pod).full_name()
            )),
            (Err(why), Some(known)) => {
                warn!(pod = %PodIdentity::of(pod).full_name(), error = %why, "cannot renew a token yet");
                let later = Token { renew_at: (now + RETRY).min(known.expires), ..known.clone() };
                self.lock().insert(wanted.clone(), later);
                Ok(known.text)
            }
        }
    }
}

async fn ask(context: &Context, pod: &Pod, wanted: &TokenWanted) -> Result<Token, String> {
    let identity = PodIdentity::of(pod);
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
    let account = account.filter(|name| !name.is_empty()).unwrap_or("default");
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": {
            "audiences": wanted.audience.iter().collect::<Vec<_>>(),
            "expirationSeconds": wanted.seconds,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": identity.name, "uid": identity.uid},
        },
    });
    let key = ObjectKey::namespaced(&identity.namespace, account);
    let answer =
        request::create_subresource::<ServiceAccount, TokenRequest>(&context.client, &key, "token", &body);
    let answer = answer.await.map_err(|why| match why {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    })?;
    let seconds = answer.spec.and_then(|spec| spec.expiration_seconds).unwrap_or(wanted.seconds);
    let status = answer.status.unwrap_or_default();
    let (Some(text), Some(expires)) = (status.token, status.expiration_timestamp) else {
        return Err("the API server has answered without a token".to_owned());
    };
    let renew_at = renewal(expires.0, seconds, spread(&identity.uid));
    Ok(Token { text, expires: expires.0, renew_at })
}

/// When a token is renewed: at four fifths of its life, or after a day, whichever is first.
fn renewal(expires: Timestamp, seconds: i64, spread: SignedDuration) -> Timestamp {
    let life = SignedDuration::from_secs(seconds);
    let issued = expires.checked_sub(life).unwrap_or(expires);
    let at = (issued + AGE_MAX).min(expires.checked_sub(life / 5).unwrap_or(expires));
    at.checked_sub(spread).unwrap_or(at)
}

/// The same for a Pod at all times.
fn spread(uid: &str) -> SignedDuration {
    let sum = uid.bytes().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
    SignedDuration::from_millis(i64::try_from(sum % SPREAD_MS).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_four_fifths_of_its_life_or_after_a_day() {
        let issued: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let renewed = |seconds: i64| {
            let expires = issued + SignedDuration::from_secs(seconds);
            (renewal(expires, seconds, SignedDuration::ZERO) - issued).get_seconds()
        };
        assert_eq!(renewed(600), 480);
        assert_eq!(renewed(3600), 2880);
        assert_eq!(renewed(7 * 86400), 86400);
        let early = renewal(issued + SignedDuration::from_secs(600), 600, SignedDuration::from_secs(9));
        assert_eq!((early - issued).get_seconds(), 471);
    }

    #[test]
    fn pods_are_spread_over_ten_seconds() {
        for uid in ["", "a", "0b2d7d6e-7f47-4a5e-9c0c-b3a4c9d2f6aa"] {
            assert!(spread(uid) < SignedDuration::from_secs(10) && spread(uid) == spread(uid));
        }
        assert_ne!(spread("a"), spread("b"));
    }
}
