//! What becomes of an object whose owners have been looked at.

use std::collections::BTreeSet;

use coracle_client::Propagation;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::graph::{Hold, Uid};

/// What an owner that an object names turned out to be when it was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It is there.
    Solid,
    /// It is there, and goes as soon as what it owns is gone.
    Waiting,
    /// There is no such object.
    Gone,
    /// It cannot be an owner of this object, or nobody knows its kind.
    Unknowable,
}

/// What is to be done about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// It stays, and no longer names these owners.
    Disown(BTreeSet<Uid>),
    /// It goes, and what it owns in this way.
    Delete {
        /// What becomes of what it owns.
        propagation: Propagation,
        /// It and somebody whom it owns wait for each other: first it stops to block its owners.
        unblock: bool,
    },
}

/// Decides about an object that is not being deleted, by what its owners turned out to be, in the order of its
/// references, and by what those that it owns wait for.
#[must_use]
pub fn decide(meta: &ObjectMeta, owners: &[Owner], dependents: &[Option<Hold>]) -> Action {
    let references = meta.owner_references.as_deref().unwrap_or_default();
    if references.is_empty() || owners.contains(&Owner::Unknowable) {
        return Action::Keep;
    }
    if owners.contains(&Owner::Solid) {
        let leaving: BTreeSet<_> = references
            .iter()
            .zip(owners)
            .filter(|(_, owner)| **owner != Owner::Solid)
            .map(|(reference, _)| reference.uid.clone())
            .collect();
        return if leaving.is_empty() { Action::Keep } else { Action::Disown(leaving) };
    }
    if owners.contains(&Owner::Waiting) && !dependents.is_empty() {
        let unblock = dependents.contains(&Some(Hold::Foreground));
        return Action::Delete { propagation: Propagation::Foreground, unblock };
    }
    let has = |hold: Hold| meta.finalizers.iter().flatten().any(|name| name == hold.finalizer());
    let propagation = if has(Hold::Orphan) {
        Propagation::Orphan
    } else if has(Hold::Foreground) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    Action::Delete { propagation, unblock: false }
}

/// A patch of this very state of an object.
fn patch(meta: &ObjectMeta, changes: Value) -> Value {
    let mut metadata = json!({"uid": meta.uid, "resourceVersion": meta.resource_version});
    if let (Some(metadata), Value::Object(changes)) = (metadata.as_object_mut(), changes) {
        metadata.extend(changes);
    }
    json!({"metadata": metadata})
}

/// The patch by which an object no longer names these owners.
#[must_use]
pub fn disown(meta: &ObjectMeta, leaving: &BTreeSet<Uid>) -> Value {
    let references = meta.owner_references.as_deref().unwrap_or_default();
    let left: Vec<_> = references.iter().filter(|reference| !leaving.contains(&reference.uid)).collect();
    patch(meta, json!({"ownerReferences": if left.is_empty() { Value::Null } else { json!(left) }}))
}

/// The patch by which an object no longer keeps its owners from going.
#[must_use]
pub fn unblock(meta: &ObjectMeta) -> Value {
    let mut references = meta.owner_references.clone().unwrap_or_default();
    for reference in &mut references {
        if reference.block_owner_deletion.is_some() {
            reference.block_owner_deletion = Some(false);
        }
    }
    patch(meta, json!({"ownerReferences": references}))
}

/// The patch by which an object no longer waits for this.
#[must_use]
pub fn release(meta: &ObjectMeta, hold: Hold) -> Value {
    let finalizers = meta.finalizers.as_deref().unwrap_or_default();
    let left: Vec<_> = finalizers.iter().filter(|name| *name != hold.finalizer()).collect();
    patch(meta, json!({"finalizers": if left.is_empty() { Value::Null } else { json!(left) }}))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(owners: usize, finalizers: &[&str]) -> ObjectMeta {
        let reference = |i| json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": format!("u{i}"), "blockOwnerDeletion": true});
        serde_json::from_value(json!({
            "uid": "me", "resourceVersion": "7", "finalizers": finalizers,
            "ownerReferences": (0..owners).map(reference).collect::<Vec<_>>(),
        }))
        .unwrap()
    }

    #[test]
    fn an_object_goes_when_no_owner_is_left() {
        use Owner::{Gone, Solid, Unknowable, Waiting};
        let delete = |propagation| Action::Delete { propagation, unblock: false };
        let disown = |uids: &[&str]| Action::Disown(uids.iter().map(|uid| (*uid).to_owned()).collect());
        let background = delete(Propagation::Background);
        let free: &[Option<Hold>] = &[None];
        let going: &[Option<Hold>] = &[Some(Hold::Foreground)];
        for (owners, finalizers, dependents, expected) in [
            (&[][..], &[][..], &[][..], Action::Keep),
            (&[Solid], &[], &[], Action::Keep),
            (&[Gone], &[], &[], background.clone()),
            (&[Gone, Gone], &[], free, background.clone()),
            (&[Gone], &["orphan"], &[], delete(Propagation::Orphan)),
            (&[Gone], &["foregroundDeletion"], &[], delete(Propagation::Foreground)),
            (&[Solid, Gone], &[], &[], disown(&["u1"])),
            (&[Gone, Waiting, Solid], &[], &[], disown(&["u0", "u1"])),
            (&[Waiting], &[], &[], background.clone()),
            (&[Waiting, Gone], &[], free, delete(Propagation::Foreground)),
            (&[Waiting], &[], going, Action::Delete { propagation: Propagation::Foreground, unblock: true }),
            (&[Gone], &[], going, background),
            (&[Gone, Unknowable], &[], &[], Action::Keep),
        ] {
            let decision = decide(&meta(owners.len(), finalizers), owners, dependents);
            assert_eq!(decision, expected, "{owners:?} {finalizers:?} {dependents:?}");
        }
    }

    #[test]
    fn patches_are_of_the_state_that_was_looked_at() {
        let leaving = BTreeSet::from(["u0".to_owned()]);
        let patch = disown(&meta(2, &[]), &leaving);
        assert_eq!(patch["metadata"]["uid"], "me");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        assert_eq!(patch["metadata"]["ownerReferences"][0]["uid"], "u1");
        assert_eq!(disown(&meta(1, &[]), &leaving)["metadata"]["ownerReferences"], Value::Null);
        assert_eq!(unblock(&meta(1, &[]))["metadata"]["ownerReferences"][0]["blockOwnerDeletion"], false);
        let released = release(&meta(0, &["a/b", "orphan"]), Hold::Orphan);
        assert_eq!(released["metadata"]["finalizers"], json!(["a/b"]));
        assert_eq!(release(&meta(0, &["orphan"]), Hold::Orphan)["metadata"]["finalizers"], Value::Null);
    }
}
