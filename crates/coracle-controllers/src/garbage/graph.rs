//! Who owns whom, as far as the watches have told.

use std::collections::{BTreeMap, BTreeSet};

use coracle_api::catalogue::Resource;
use coracle_client::ObjectKey;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The UID of an object.
pub type Uid = String;

/// What a deleted object waits for before it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// That nothing names it as its owner.
    Orphan,
    /// That what it owns is gone.
    Foreground,
}

impl Hold {
    /// The finalizer that stands for it.
    #[must_use]
    pub fn finalizer(self) -> &'static str {
        match self {
            Hold::Orphan => "orphan",
            Hold::Foreground => "foregroundDeletion",
        }
    }

    /// What an object waits for that is being deleted; `None` if it is not, or waits for somebody else.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Option<Self> {
        let has = |hold: &Hold| meta.finalizers.iter().flatten().any(|name| name == hold.finalizer());
        meta.deletion_timestamp.as_ref()?;
        [Hold::Orphan, Hold::Foreground].into_iter().find(has)
    }
}

/// What is known of an object.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    /// Its kind.
    pub row: &'static Resource,
    /// Its name.
    pub key: ObjectKey,
    /// Whom it names as its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What it waits for, of what this controller does.
    pub hold: Option<Hold>,
}

impl Item {
    /// Whether `reference`, made by `by`, can mean this object: an owner is in the namespace of what it owns, or in none.
    #[must_use]
    pub fn is_meant(&self, reference: &OwnerReference, by: &Item) -> bool {
        let group = reference.api_version.rsplit_once('/').map_or("", |(group, _)| group);
        group == self.row.group
            && reference.kind == self.row.kind
            && reference.name == self.key.name
            && (!self.row.namespaced || self.key.namespace == by.key.namespace)
    }
}

/// Objects by UID, and who names whom as an owner.
#[derive(Debug, Default)]
pub struct Graph {
    items: BTreeMap<Uid, Item>,
    by_key: BTreeMap<(&'static str, ObjectKey), Uid>,
    /// By the UID of the owner, whether that is known or not.
    dependents: BTreeMap<Uid, BTreeSet<Uid>>,
}

impl Graph {
    /// An object.
    #[must_use]
    pub fn item(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// Those who name the object with this UID as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = (&Uid, &Item)> {
        let uids = self.dependents.get(uid).into_iter().flatten();
        uids.filter_map(|uid| self.items.get_key_value(uid))
    }

    /// Those whom a foreground deletion of the object waits for.
    pub fn blocking(&self, uid: &str) -> impl Iterator<Item = (&Uid, &Item)> {
        self.dependents(uid).filter(move |(_, item)| blocks(&item.owners, uid))
    }

    /// Whether somebody should look at an object: it waits for this controller, or an owner of it is not known, is not
    /// whom it names, or wants it gone.
    #[must_use]
    pub fn needs_look(&self, uid: &str) -> bool {
        let Some(item) = self.items.get(uid) else { return false };
        if item.deleting {
            return item.hold.is_some();
        }
        item.owners.iter().any(|reference| {
            self.items
                .get(&reference.uid)
                .is_none_or(|owner| owner.hold == Some(Hold::Foreground) || !owner.is_meant(reference, item))
        })
    }

    /// All objects that somebody should look at.
    #[must_use]
    pub fn all_that_need_a_look(&self) -> BTreeSet<Uid> {
        self.items.keys().filter(|uid| self.needs_look(uid)).cloned().collect()
    }

    /// Takes in what an object is now, `None` if it is gone, and says who should be looked at because of it.
    pub fn observe(
        &mut self,
        row: &'static Resource,
        key: &ObjectKey,
        now: Option<&ObjectMeta>,
    ) -> BTreeSet<Uid> {
        if let Some(meta) = now
            && self.is_known(row, key, meta)
        {
            return BTreeSet::new();
        }
        let uid = now.and_then(|meta| meta.uid.clone()).unwrap_or_default();
        let mut touched = BTreeSet::new();
        let place = (row.storage_prefix, key.clone());
        let before = self.by_key.get(&place).cloned();
        let mut owners_before = Vec::new();
        if let Some(before) = before {
            if let Some(item) = self.items.remove(&before) {
                for reference in &item.owners {
                    self.unlink(&reference.uid, &before);
                }
                owners_before = item.owners;
            }
            if before != uid {
                self.by_key.remove(&place);
                touched.extend(self.dependents(&before).map(|(uid, _)| uid.clone()));
            }
        }
        if let Some(meta) = now {
            let item = Item {
                row,
                key: key.clone(),
                owners: meta.owner_references.clone().unwrap_or_default(),
                deleting: meta.deletion_timestamp.is_some(),
                hold: Hold::of(meta),
            };
            for reference in &item.owners {
                self.dependents.entry(reference.uid.clone()).or_default().insert(uid.clone());
            }
            owners_before.extend(item.owners.iter().cloned());
            self.by_key.insert(place, uid.clone());
            self.items.insert(uid.clone(), item);
            touched.insert(uid.clone());
            // Those who wait for it to come, to go, or to let them go.
            touched.extend(self.dependents(&uid).map(|(uid, _)| uid.clone()));
        }
        touched.retain(|uid| self.needs_look(uid));
        touched.extend(
            owners_before
                .into_iter()
                .map(|reference| reference.uid)
                .filter(|uid| self.items.get(uid).is_some_and(|owner| owner.hold.is_some())),
        );
        touched
    }

    /// Whether a change says nothing new, and nobody waits for a look: most changes are of that kind.
    fn is_known(&self, row: &'static Resource, key: &ObjectKey, meta: &ObjectMeta) -> bool {
        let Some(uid) = &meta.uid else { return false };
        let Some(item) = self.items.get(uid) else { return false };
        item.row.storage_prefix == row.storage_prefix
            && item.key == *key
            && meta.deletion_timestamp.is_none()
            && !item.deleting
            && item.owners == meta.owner_references.as_deref().unwrap_or_default()
            && !self.needs_look(uid)
            && item.owners.iter().all(|of| self.items.get(&of.uid).is_none_or(|owner| owner.hold.is_none()))
            && !self.dependents.get(uid).into_iter().flatten().any(|uid| self.needs_look(uid))
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }
}

/// Whether these references keep the owner with this UID from going before them.
#[must_use]
pub fn blocks(owners: &[OwnerReference], uid: &str) -> bool {
    owners.iter().any(|reference| reference.uid == uid && reference.block_owner_deletion == Some(true))
}

#[cfg(test)]
mod tests {
    use coracle_api::catalogue;
    use serde_json::{Value, json};

    use super::*;

    fn row(plural: &str) -> &'static Resource {
        catalogue::find("", "v1", plural).unwrap()
    }

    fn meta(uid: &str, more: Value) -> ObjectMeta {
        let mut meta = json!({"namespace": "a", "name": uid, "uid": uid});
        meta.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        serde_json::from_value(meta).unwrap()
    }

    fn owned(by: &[&str]) -> Value {
        let reference = |uid| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": uid, "uid": uid, "blockOwnerDeletion": true});
        json!({"ownerReferences": by.iter().map(reference).collect::<Vec<_>>()})
    }

    fn key(uid: &str) -> ObjectKey {
        ObjectKey::namespaced("a", uid)
    }

    fn see(graph: &mut Graph, uid: &str, more: Value) -> Vec<Uid> {
        graph.observe(row("configmaps"), &key(uid), Some(&meta(uid, more))).into_iter().collect()
    }

    #[test]
    fn whoever_a_change_concerns_is_looked_at() {
        let mut graph = Graph::default();
        assert_eq!(see(&mut graph, "owner", json!({})), [] as [&str; 0]);
        assert_eq!(see(&mut graph, "known", owned(&["owner"])), [] as [&str; 0]);
        assert_eq!(see(&mut graph, "early", owned(&["later"])), ["early"], "its owner is not known");
        assert_eq!(see(&mut graph, "later", json!({})), [] as [&str; 0]);
        assert!(!graph.needs_look("early"));

        let foreground =
            json!({"deletionTimestamp": "2030-01-01T00:00:00Z", "finalizers": ["foregroundDeletion"]});
        assert_eq!(see(&mut graph, "owner", foreground), ["known", "owner"]);
        let mut going = owned(&["owner"]);
        going["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
        assert_eq!(see(&mut graph, "known", going), ["owner"], "whoever is going needs no more looks");
        assert_eq!(graph.blocking("owner").count(), 1);
        let gone = graph.observe(row("configmaps"), &key("known"), None);
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), ["owner"]);
        assert_eq!(graph.blocking("owner").count(), 0);

        let gone = graph.observe(row("configmaps"), &key("later"), None);
        assert_eq!(gone.into_iter().collect::<Vec<_>>(), ["early"]);
    }

    #[test]
    fn another_object_of_the_same_name_is_another_owner() {
        let mut graph = Graph::default();
        see(&mut graph, "owner", json!({}));
        see(&mut graph, "child", owned(&["owner"]));
        let again = meta("new-uid", json!({"name": "owner"}));
        let touched = graph.observe(row("configmaps"), &key("owner"), Some(&again));
        assert_eq!(touched.into_iter().collect::<Vec<_>>(), ["child"]);
        // Its UID is known, its name is not the one it goes by.
        assert_eq!(see(&mut graph, "child", owned(&["new-uid"])), ["child"]);
    }

    #[test]
    fn an_owner_is_in_the_same_namespace_or_in_none() {
        let mut graph = Graph::default();
        see(&mut graph, "owner", json!({}));
        let mut elsewhere = meta("x", owned(&["owner"]));
        elsewhere.namespace = Some("b".into());
        let key = ObjectKey::namespaced("b", "x");
        assert_eq!(graph.observe(row("configmaps"), &key, Some(&elsewhere)).len(), 1);

        let node = ObjectMeta { name: Some("n".into()), uid: Some("n".into()), ..ObjectMeta::default() };
        graph.observe(row("nodes"), &ObjectKey::cluster("n"), Some(&node));
        let by_node =
            json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "n"}]});
        assert_eq!(see(&mut graph, "mirror", by_node), [] as [&str; 0]);
    }
}
