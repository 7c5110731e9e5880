//! Which objects an owner holds, which strangers it takes in, and whom it lets go.

use std::sync::Arc;

use coracle_api::selector::LabelSelector;
use coracle_client::request::{self, PatchBody};
use coracle_client::{ErrorExt as _, Object, key_of, revision_of, uid_of};
use kube::{Client, Error};
use serde_json::{Value, json};

use super::{controller_of, controller_reference, selects};

/// What an owner makes of the objects around it.
#[derive(Debug)]
pub(crate) struct Claims<C> {
    /// Its own.
    pub(crate) held: Vec<Arc<C>>,
    /// Without an owner, and selected: to be taken in.
    pub(crate) adopt: Vec<Arc<C>>,
    /// Its own, and no longer selected: to be let go.
    pub(crate) release: Vec<Arc<C>>,
}

/// Decides about all objects that name `owner`, whichever of that name, and those that name nobody.
pub(crate) fn decide<O: Object, C: Object>(
    owner: &O,
    selector: &LabelSelector,
    children: Vec<Arc<C>>,
    orphans: Vec<Arc<C>>,
) -> Claims<C> {
    let leaving = owner.meta().deletion_timestamp.is_some();
    let own = |child: &Arc<C>| controller_of(child.as_ref()).is_some_and(|named| named.uid == uid_of(owner));
    let (held, strays): (Vec<_>, Vec<_>) =
        children.into_iter().filter(own).partition(|child| selects(selector, child.as_ref()));
    // Who is on the way out takes in nobody, and lets go of nobody: the collector of garbage decides.
    let adopt = orphans
        .into_iter()
        .filter(|child| child.meta().deletion_timestamp.is_none() && selects(selector, child.as_ref()));
    Claims {
        held,
        adopt: if leaving { Vec::new() } else { adopt.collect() },
        release: if leaving { Vec::new() } else { strays },
    }
}

/// What came of writing down who was taken in and let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CarriedOut {
    /// Nothing was to be written.
    Nothing,
    /// It is written; this is the newest revision.
    Newest(u64),
    /// All that was to be written is about objects that are not so any more.
    InVain,
}

/// Writes down who was taken in and let go.
///
/// Children may carry a finalizer of the owner's while they are its own.
pub(crate) async fn carry_out<O: Object, C: Object>(
    client: &Client,
    owner: &O,
    claims: &Claims<C>,
    finalizer: Option<&str>,
) -> Result<CarriedOut, Error> {
    if claims.adopt.is_empty() && claims.release.is_empty() {
        return Ok(CarriedOut::Nothing);
    }
    let mut newest = None;
    if !claims.adopt.is_empty() {
        // The copy may be of before its deletion, or of another one of this name.
        let fresh = request::get::<O>(client, &key_of(owner)).await;
        let may = match &fresh {
            Ok(fresh) => uid_of(fresh) == uid_of(owner) && fresh.meta().deletion_timestamp.is_none(),
            Err(error) if error.is_not_found() => false,
            Err(_) => return fresh.map(|_| CarriedOut::InVain),
        };
        for child in claims.adopt.iter().filter(|_| may) {
            newest = newest.max(change(client, child, adoption(owner, child, finalizer)).await?);
        }
    }
    for child in &claims.release {
        newest = newest.max(change(client, child, release(owner, child, finalizer)).await?);
    }
    Ok(newest.map_or(CarriedOut::InVain, CarriedOut::Newest))
}

/// The revision of the change; `None` if there is nothing left to change.
async fn change<C: Object>(client: &Client, child: &Arc<C>, patch: Value) -> Result<Option<u64>, Error> {
    let key = key_of(child.as_ref());
    match request::patch::<C>(client, &key, &PatchBody::Strategic(patch)).await {
        Ok(changed) => Ok(Some(revision_of(&changed))),
        // It is gone, or another one by now.
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(None),
        Err(error) => Err(error),
    }
}

fn adoption<O: Object, C: Object>(owner: &O, child: &Arc<C>, finalizer: Option<&str>) -> Value {
    let mut metadata = json!({
        "uid": uid_of(child.as_ref()), "ownerReferences": [controller_reference(owner)],
    });
    if let Some(finalizer) = finalizer {
        metadata["finalizers"] = json!([finalizer]);
    }
    json!({ "metadata": metadata })
}

fn release<O: Object, C: Object>(owner: &O, child: &Arc<C>, finalizer: Option<&str>) -> Value {
    let mut metadata = json!({
        "uid": uid_of(child.as_ref()), "ownerReferences": [{"$patch": "delete", "uid": uid_of(owner)}],
    });
    if let Some(finalizer) = finalizer {
        metadata["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
    }
    json!({ "metadata": metadata })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    use super::*;

    fn pod(name: &str, app: &str, owner: Option<&str>) -> Arc<Pod> {
        let owners: Vec<Value> = owner
            .map(|uid| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": uid, "controller": true}))
            .into_iter()
            .collect();
        Arc::new(
            serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {"app": app}, "ownerReferences": owners},
            }))
            .unwrap(),
        )
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
    }

    #[test]
    fn own_are_held_strangers_are_taken_in_and_strays_let_go() {
        let mut owner: ReplicaSet = serde_json::from_value(json!({
            "metadata": {"name": "r", "uid": "u"}, "spec": {"selector": {}},
        }))
        .unwrap();
        let selector = LabelSelector::parse("app=a").unwrap();
        let children = || {
            vec![pod("own", "a", Some("u")), pod("stray", "b", Some("u")), pod("namesake's", "a", Some("v"))]
        };
        let orphans = || vec![pod("orphan", "a", None), pod("stranger", "b", None)];
        let claims = decide(&owner, &selector, children(), orphans());
        assert_eq!(names(&claims.held), ["own"]);
        assert_eq!(names(&claims.adopt), ["orphan"]);
        assert_eq!(names(&claims.release), ["stray"]);
        owner.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let claims = decide(&owner, &selector, children(), orphans());
        assert_eq!(names(&claims.held), ["own"]);
        assert!(claims.adopt.is_empty() && claims.release.is_empty());
    }

    #[tokio::test]
    async fn what_the_server_has_no_more_is_claimed_in_vain() {
        let owner: ReplicaSet =
            serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "r", "uid": "u"}})).unwrap();
        let selector = LabelSelector::parse("app=a").unwrap();
        let answering = |code: u16| {
            coracle_client::in_process(tower::service_fn(
                move |request: http::Request<kube::client::Body>| {
                    let own = request.method() == http::Method::GET;
                    let object = json!({"metadata": {"name": "r", "uid": "u", "resourceVersion": "7"}});
                    let refusal = json!({"status": "Failure", "code": code, "reason": "Conflict"});
                    let (code, body) = if own || code == 200 { (200, object) } else { (code, refusal) };
                    let answer = http::Response::builder().status(code);
                    let body = kube::client::Body::from(body.to_string().into_bytes());
                    std::future::ready(answer.body(body).map_err(tower::BoxError::from))
                },
            ))
        };
        let strays =
            || decide(&owner, &selector, vec![pod("stray", "b", Some("u"))], vec![pod("o", "a", None)]);
        let client = answering(409);
        assert_eq!(carry_out(&client, &owner, &strays(), None).await.unwrap(), CarriedOut::InVain);
        let client = answering(200);
        assert_eq!(carry_out(&client, &owner, &strays(), None).await.unwrap(), CarriedOut::Newest(7));
        let none = decide(&owner, &selector, vec![pod("own", "a", Some("u"))], Vec::new());
        assert_eq!(carry_out(&client, &owner, &none, None).await.unwrap(), CarriedOut::Nothing);
    }
}
