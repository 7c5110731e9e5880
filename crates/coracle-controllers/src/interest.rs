//! Who has to look when a Pod changes: those that select it, and those that did.
//!
//! Pods change more often than what their watchers see of them. So what is seen of each Pod is kept, and a change that
//! shows nothing new wakes nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use coracle_client::ObjectKey;

/// What is seen of each Pod, and who looks at it.
pub(crate) struct Interest<T>(Mutex<BTreeMap<ObjectKey, Seen<T>>>);

struct Seen<T> {
    sight: T,
    watchers: BTreeSet<ObjectKey>,
}

impl<T: PartialEq> Interest<T> {
    pub(crate) fn new() -> Self {
        Interest(Mutex::new(BTreeMap::new()))
    }

    /// Takes in how a Pod looks now and who selects it, or that it is gone. Returns who has to look.
    pub(crate) fn changed(
        &self,
        pod: &ObjectKey,
        now: Option<(T, BTreeSet<ObjectKey>)>,
    ) -> BTreeSet<ObjectKey> {
        // Each change is one insertion or removal: a poisoned map is a whole one.
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = seen.remove(pod);
        let Some((sight, watchers)) = now else {
            return before.map(|before| before.watchers).unwrap_or_default();
        };
        let concerned = match &before {
            Some(before) if before.sight == sight && before.watchers == watchers => BTreeSet::new(),
            Some(before) => before.watchers.union(&watchers).cloned().collect(),
            None => watchers.clone(),
        };
        if !watchers.is_empty() {
            seen.insert(pod.clone(), Seen { sight, watchers });
        }
        concerned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_look_who_select_a_pod_or_did_and_only_when_something_is_to_be_seen() {
        let interest = Interest::new();
        let key = |name: &str| ObjectKey::namespaced("ns", name);
        let all = |names: &[&str]| names.iter().map(|name| key(name)).collect::<BTreeSet<_>>();
        let pod = key("p");
        assert_eq!(interest.changed(&pod, Some((1, all(&["a"])))), all(&["a"]));
        assert_eq!(interest.changed(&pod, Some((1, all(&["a"])))), all(&[]));
        assert_eq!(interest.changed(&pod, Some((2, all(&["a"])))), all(&["a"]));
        assert_eq!(interest.changed(&pod, Some((2, all(&["b"])))), all(&["a", "b"]));
        assert_eq!(interest.changed(&pod, Some((2, all(&[])))), all(&["b"]));
        assert_eq!(interest.changed(&pod, Some((3, all(&[])))), all(&[]));
        assert_eq!(interest.changed(&pod, Some((3, all(&["c"])))), all(&["c"]));
        assert_eq!(interest.changed(&pod, None), all(&["c"]));
        assert_eq!(interest.changed(&pod, None), all(&[]));
    }
}
