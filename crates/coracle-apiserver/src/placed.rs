//! Which Pods are on which node, as far as this server has written or read it.
//!
//! It says where to look first when a node agent asks for what its Pods use. What it says is looked up in the store, and
//! what it does not know is looked for there: it may lack Pods that another server wrote, and be late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use coracle_store::Op;

use crate::object;

/// How the keys of Pods begin.
const PODS: &[u8] = b"/registry/pods/";

/// Pods by node, and nodes by Pod.
#[derive(Debug, Default)]
pub(crate) struct Placed(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<Bytes, Box<str>>,
    pods: BTreeMap<Box<str>, BTreeSet<Bytes>>,
}

impl Placed {
    /// Takes note of what was written.
    pub(crate) fn wrote(&self, op: &Op) {
        match op {
            Op::Put { key, value } if key.starts_with(PODS) => {
                // Where a Pod is does not change.
                if !self.state().nodes.contains_key(key)
                    && let Some(node) =
                        object::text_at(value, "spec.nodeName").filter(|node| !node.is_empty())
                {
                    self.learn(key, &node);
                }
            }
            Op::Delete { key } if key.starts_with(PODS) => self.forget(key),
            Op::Put { .. } | Op::Delete { .. } => {}
        }
    }

    /// The Pod with this key is on this node.
    pub(crate) fn learn(&self, key: &Bytes, node: &str) {
        let mut state = self.state();
        if state.nodes.get(key).is_some_and(|known| **known == *node) {
            return;
        }
        state.forget(key);
        state.nodes.insert(key.clone(), node.into());
        state.pods.entry(node.into()).or_default().insert(key.clone());
    }

    /// The Pod with this key is gone, or is not where it was.
    pub(crate) fn forget(&self, key: &Bytes) {
        self.state().forget(key);
    }

    /// Keys of Pods on a node that begin so.
    pub(crate) fn on(&self, node: &str, prefix: &[u8]) -> Vec<Bytes> {
        let state = self.state();
        let pods = state.pods.get(node).into_iter().flatten();
        pods.filter(|key| key.starts_with(prefix)).cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever a panic leaves is made good by the store.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget(&mut self, key: &Bytes) {
        let Some(node) = self.nodes.remove(key) else { return };
        if let Some(pods) = self.pods.get_mut(&node) {
            pods.remove(key);
            if pods.is_empty() {
                self.pods.remove(&node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_their_node_until_they_are_gone() {
        let placed = Placed::default();
        let key = |name: &str| Bytes::from(format!("/registry/pods/default/{name}"));
        let put = |name: &str, node: &str| {
            let value = format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{{"nodeName":"{node}"}}}}"#);
            placed.wrote(&Op::Put { key: key(name), value: value.into() });
        };
        put("a", "one");
        put("b", "");
        put("c", "two");
        let of_another_kind = Bytes::from_static(b"/registry/secrets/default/a");
        placed.wrote(&Op::Put { key: of_another_kind, value: Bytes::from_static(b"{}") });
        assert_eq!(placed.on("one", b"/registry/pods/default/"), [key("a")]);
        assert!(placed.on("one", b"/registry/pods/other/").is_empty());
        placed.wrote(&Op::Delete { key: key("a") });
        assert!(placed.on("one", PODS).is_empty());
        // Another one by this name, somewhere else.
        put("a", "two");
        assert_eq!(placed.on("two", PODS), [key("a"), key("c")]);
        placed.learn(&key("c"), "one");
        assert_eq!((placed.on("one", PODS), placed.on("two", PODS)), (vec![key("c")], vec![key("a")]));
    }
}
