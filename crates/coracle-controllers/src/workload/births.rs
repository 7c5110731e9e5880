//! Making Pods: their names, and how many at a time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_client::{ErrorExt as _, ObjectKey, key_of, request};
use coracle_clock::{Rng, name_suffix};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Client, Error};

/// Longest part of a name before its random end.
const PREFIX_MAX: usize = 63 - SUFFIX;
const SUFFIX: usize = 5;

/// Makes Pods for owners.
///
/// A request whose answer is lost may have been carried out. So names are drawn here, and the name of a Pod whose fate is
/// not known is used again before a new one: the Pod that is there already is found under it, and no owner gets more
/// than it asked for.
pub(crate) struct Births {
    names: Mutex<Names>,
}

struct Names {
    rng: Rng,
    unsure: BTreeMap<ObjectKey, Vec<String>>,
}

impl Births {
    pub(crate) fn new(rng: Rng) -> Self {
        Births { names: Mutex::new(Names { rng, unsure: BTreeMap::new() }) }
    }

    /// Makes a Pod for `owner`; its `generateName` says how its name begins.
    pub(crate) async fn create(
        &self,
        client: &Client,
        owner: &ObjectKey,
        mut pod: Pod,
    ) -> Result<Pod, Error> {
        let prefix = pod.metadata.generate_name.clone().unwrap_or_default();
        let (name, again) = self.draw(owner, &prefix);
        pod.metadata.name = Some(name.clone());
        match request::create::<Pod>(client, &pod).await {
            Err(error) if again && error.is_already_exists() => request::get(client, &key_of(&pod)).await,
            Err(error) => {
                if error.is_transient() {
                    self.lock().unsure.entry(owner.clone()).or_default().push(name);
                }
                Err(error)
            }
            made => made,
        }
    }

    /// Forgets what is not known for an owner that is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.lock().unsure.remove(owner);
    }

    /// Forgets the names of Pods that have been seen.
    pub(crate) fn settle(&self, owner: &ObjectKey, seen: impl Fn(&str) -> bool) {
        if let Some(unsure) = self.lock().unsure.get_mut(owner) {
            unsure.retain(|name| !seen(name));
        }
    }

    fn draw(&self, owner: &ObjectKey, prefix: &str) -> (String, bool) {
        let mut names = self.lock();
        // Pods of one owner may begin differently, as those of an indexed Job do.
        if let Some(unsure) = names.unsure.get_mut(owner)
            && let Some(at) = unsure.iter().position(|name| name.starts_with(cut(prefix)))
        {
            return (unsure.remove(at), true);
        }
        let suffix = name_suffix(&mut names.rng, SUFFIX);
        (format!("{}{suffix}", cut(prefix)), false)
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        // A poisoned generator is still a generator.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cut(prefix: &str) -> &str {
    let mut end = prefix.len().min(PREFIX_MAX);
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    &prefix[..end]
}

/// Does `count` things, one, then two, then four at a time: what goes wrong goes wrong seldom. Stops after the first
/// batch with a failure; the results of all that were tried.
pub(crate) async fn slow_start<T, E, W: Future<Output = Result<T, E>>>(
    count: usize,
    act: impl Fn(usize) -> W,
) -> Vec<Result<T, E>> {
    let mut results = Vec::new();
    let mut batch = 1;
    while results.len() < count {
        let end = count.min(results.len() + batch);
        let done = join_all((results.len()..end).map(&act)).await;
        let failed = done.iter().any(Result::is_err);
        results.extend(done);
        if failed {
            break;
        }
        batch *= 2;
    }
    results
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn batches_double_until_something_fails() {
        let tried = RefCell::new(Vec::new());
        let act = |index| {
            tried.borrow_mut().push(index);
            std::future::ready(if index == 4 { Err(index) } else { Ok(()) })
        };
        let results = slow_start(100, act).now_or_never().unwrap();
        assert_eq!(results.len(), 7, "1 + 2 + 4");
        assert_eq!(*tried.borrow(), (0..7).collect::<Vec<_>>());
        assert_eq!(slow_start(3, |_| std::future::ready(Ok::<_, ()>(()))).now_or_never().unwrap().len(), 3);
    }

    #[test]
    fn a_name_whose_fate_is_unknown_comes_first() {
        let births = Births::new(Rng::seeded(1));
        let owner = ObjectKey::namespaced("n", "r");
        let (name, again) = births.draw(&owner, "r-");
        assert!(!again && name.starts_with("r-") && name.len() == 7);
        births.lock().unsure.insert(owner.clone(), vec!["r-aaaaa".to_owned()]);
        assert!(!births.draw(&owner, "other-").1);
        assert_eq!(births.draw(&owner, "r-"), ("r-aaaaa".to_owned(), true));
        assert!(!births.draw(&owner, "r-").1);
        let long = "x".repeat(80);
        assert_eq!(births.draw(&owner, &long).0.len(), 63);
    }
}
