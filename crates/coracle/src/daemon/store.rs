//! Opens the cluster's store. In an etcd, makes sure first that nobody else's objects are there.
//!
//! A cluster says that a place in etcd is its own with a key beside its objects, which holds the certificate of its
//! authority: what makes it this cluster. `down --purge` leaves the objects, which may be all that is left of the
//! cluster, and lets go of the key, so that the next `up` there goes on with them.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use coracle_clock::Clock;
use coracle_store::embedded::EmbeddedStore;
use coracle_store::etcd::{EtcdStore, Limits, Options};
use coracle_store::{Compare, ListRequest, Op, Revision, Store, StoreError, Txn, TxnOutcome};
use serde::{Deserialize, Serialize};

use super::progress;
use crate::cluster::Cluster;
use crate::settings::Settings;
use crate::store::EtcdSettings;

/// How long an etcd that does not answer is waited for.
const WAIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(500);
/// How often somebody who waits is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Under this are all objects, and the key that says whose they are.
const OBJECTS: &str = "/registry/";
const OWNER: &str = "/registry/coracle/owner";

/// Whose objects these are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    /// Name of the cluster.
    cluster: String,
    /// The machine where it was made.
    host: String,
    /// Certificate of its authority; `None` once the cluster has let go.
    authority: Option<String>,
}

/// Opens the store in the data directory; `None` if the objects are in an etcd.
pub(super) fn embedded(
    cluster: &Cluster,
    settings: &Settings,
    clock: &Clock,
) -> anyhow::Result<Option<Arc<dyn Store>>> {
    if settings.store.is_some() {
        return Ok(None);
    }
    let directory = cluster.store();
    // The authority is made after the store.
    if cluster.authority().exists() && !cluster.has_store() {
        bail!(
            "the objects of this cluster are gone: {} has no store, and the cluster was started before; restore them \
             with `coracle restore FILE --force`, or remove the cluster with {}",
            directory.display(),
            cluster.command("down --purge")
        );
    }
    let options = coracle_store::embedded::Options::default();
    let begin = clock.elapsed();
    let (store, recovery) = EmbeddedStore::open_dir(&directory, clock.clone(), options)
        .with_context(|| format!("cannot open the store in {}", directory.display()))?;
    let took_ms = (clock.elapsed() - begin).as_secs_f64() * 1000.0;
    tracing::info!(took_ms, ?recovery, "store is open");
    Ok(Some(store))
}

/// Opens the etcd that the settings name.
pub(super) async fn in_etcd(
    cluster: &Cluster,
    settings: &Settings,
    host: &str,
    authority_pem: &str,
    clock: &Clock,
) -> anyhow::Result<Arc<dyn Store>> {
    let etcd = settings.store.as_ref().context("the objects are in no etcd")?;
    let mine = Owner {
        cluster: cluster.name.clone(),
        host: host.to_owned(),
        authority: Some(authority_pem.to_owned()),
    };
    let store = connect(etcd, &mine, clock).await?;
    progress(&format!("store {} answers", etcd.address));
    if !etcd.used {
        cluster.store_is_used(settings)?;
    }
    Ok(store)
}

/// Waits for etcd, and claims the place in it.
async fn connect(etcd: &EtcdSettings, mine: &Owner, clock: &Clock) -> anyhow::Result<Arc<EtcdStore>> {
    let (target, tls) = (etcd.target()?, etcd.tls()?);
    let begun = clock.elapsed();
    let spent = || clock.elapsed().saturating_sub(begun);
    let mut tell = Duration::ZERO;
    loop {
        let attempt = async {
            let store = EtcdStore::connect(&target, tls.as_ref(), clock.clone(), Options::default()).await?;
            let claimed = claim(&*store, mine).await?;
            Ok::<_, StoreError>((store, claimed))
        };
        let why = match attempt.await {
            Ok((store, Claim::Ours)) => return Ok(store),
            Ok((_, Claim::Taken(owner))) => bail!(
                "{target} holds the objects of cluster {:?} of {}: choose another place in it, as in \
                 {target}/{}; if that cluster is gone for good and this one shall go on with its objects, run {}",
                owner.cluster,
                owner.host,
                mine.cluster,
                etcd.etcdctl(&format!("del {}{OWNER}", target.prefix()))?
            ),
            Ok((_, Claim::Foreign)) => bail!(
                "{target} holds objects under {}{OBJECTS} that no Coracle wrote: choose another place in it, as \
                 in {target}/{}",
                target.prefix(),
                mine.cluster
            ),
            Err(StoreError::Unavailable(why)) => why,
            Err(error) => return Err(error).with_context(|| format!("cannot use {target}")),
        };
        if spent() >= WAIT {
            bail!(
                "{target} does not answer after {} s: {why}; start it, or give another --store, then try again",
                WAIT.as_secs()
            );
        }
        if spent() >= tell {
            tell = spent() + TELL_EVERY;
            progress(&format!("waiting for {target}: {why}"));
        }
        clock.sleep(PAUSE).await;
    }
}

/// How an attempt to take a place ended.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Ours,
    /// It is another cluster's.
    Taken(Owner),
    /// There are objects, and nobody says whose.
    Foreign,
}

/// Takes the place, if it is free or already ours.
async fn claim(store: &dyn Store, mine: &Owner) -> Result<Claim, StoreError> {
    loop {
        let (found, _) = store.get(&Bytes::from_static(OWNER.as_bytes())).await?;
        let seen = found.as_ref().map_or(Revision(0), |kv| kv.mod_revision);
        match &found {
            Some(kv) => match serde_json::from_slice::<Owner>(&kv.value) {
                Ok(owner) if owner.authority == mine.authority => return Ok(Claim::Ours),
                Ok(owner) if owner.authority.is_some() => return Ok(Claim::Taken(owner)),
                Ok(released) => tracing::info!(?released, "going on with the objects of another cluster"),
                Err(_) => return Ok(Claim::Foreign),
            },
            None => {
                let prefix = Bytes::from_static(OBJECTS.as_bytes());
                let page = store.list(&ListRequest { prefix, limit: 1, ..ListRequest::default() }).await?;
                if !page.items.is_empty() {
                    return Ok(Claim::Foreign);
                }
            }
        }
        if write(store, mine, seen).await? {
            return Ok(Claim::Ours);
        }
        // Somebody else was faster: look whose it is now.
    }
}

/// Lets go of the place, if it is ours; whether it was.
async fn release(store: &dyn Store, mine: &Owner) -> Result<bool, StoreError> {
    let (found, _) = store.get(&Bytes::from_static(OWNER.as_bytes())).await?;
    let Some(kv) = found else { return Ok(false) };
    match serde_json::from_slice::<Owner>(&kv.value) {
        Ok(owner) if owner.authority == mine.authority => {
            write(store, &Owner { authority: None, ..owner }, kv.mod_revision).await
        }
        _ => Ok(false),
    }
}

async fn write(store: &dyn Store, owner: &Owner, seen: Revision) -> Result<bool, StoreError> {
    let key = Bytes::from_static(OWNER.as_bytes());
    let value = serde_json::to_vec(owner).map_err(|error| StoreError::Invalid(error.to_string()))?;
    let compares = vec![Compare { key: key.clone(), mod_revision: seen }];
    let outcome = store.txn(Txn { compares, ops: vec![Op::Put { key, value: value.into() }] }).await?;
    Ok(matches!(outcome, TxnOutcome::Committed(_)))
}

/// Lets go of the etcd of a cluster that is being purged; what to tell of what is left there.
pub(super) async fn let_go(cluster: &Cluster, etcd: &EtcdSettings) -> anyhow::Result<String> {
    let target = etcd.target()?;
    let authority = std::fs::read_to_string(cluster.pki().join("ca.crt")).ok();
    let mine = Owner { cluster: cluster.name.clone(), host: String::new(), authority };
    let limits = Limits { request: Duration::from_secs(3), ..Limits::default() };
    let options = Options { limits, compact_every: None, ..Options::default() };
    let attempt = async {
        let store = EtcdStore::connect(&target, etcd.tls()?.as_ref(), Clock::system(), options).await?;
        anyhow::Ok(release(&*store, &mine).await?)
    };
    let objects = format!("{}{OBJECTS}", target.prefix());
    let remove = etcd.etcdctl(&format!("del --prefix {objects}"))?;
    let kept = format!(
        "the cluster's objects are left in {target}, under {objects}: {remove} removes them, and a cluster that \
         is started with this --store goes on with them"
    );
    Ok(match attempt.await {
        Ok(_) => kept,
        Err(error) => format!(
            "{kept}, after {}: it could not be told that this cluster is gone ({error:#})",
            etcd.etcdctl(&format!("del {}{OWNER}", target.prefix()))?
        ),
    })
}

#[cfg(test)]
mod tests {
    use coracle_clock::Rng;
    use coracle_store::embedded::Execution;
    use coracle_store::simfs::SimFs;

    use super::*;

    fn owner(name: &str) -> Owner {
        let authority = Some(format!("certificate of {name}"));
        Owner { cluster: name.to_owned(), host: "h".to_owned(), authority }
    }

    #[tokio::test]
    async fn a_place_belongs_to_one_cluster_until_it_lets_go() {
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let options = coracle_store::embedded::Options {
            execution: Execution::Tasks,
            ..coracle_store::embedded::Options::default()
        };
        let (store, _) = EmbeddedStore::open(files, Clock::system(), options).unwrap();
        let (a, b) = (owner("a"), owner("b"));
        assert_eq!(claim(&*store, &a).await, Ok(Claim::Ours));
        assert_eq!(claim(&*store, &a).await, Ok(Claim::Ours), "again after a restart");
        assert_eq!(claim(&*store, &b).await, Ok(Claim::Taken(a.clone())));
        assert_eq!(release(&*store, &b).await, Ok(false));
        assert_eq!(release(&*store, &a).await, Ok(true));
        assert_eq!(claim(&*store, &b).await, Ok(Claim::Ours), "with the objects of the other");
    }

    #[tokio::test]
    async fn the_objects_of_others_are_not_touched() {
        let files = Arc::new(SimFs::new(Rng::seeded(1)));
        let options = coracle_store::embedded::Options {
            execution: Execution::Tasks,
            ..coracle_store::embedded::Options::default()
        };
        let (store, _) = EmbeddedStore::open(files, Clock::system(), options).unwrap();
        let key = Bytes::from_static(b"/registry/pods/default/a");
        let ops = vec![Op::Put { key, value: Bytes::from_static(b"k8s\0") }];
        store.txn(Txn { compares: Vec::new(), ops }).await.unwrap();
        assert_eq!(claim(&*store, &owner("a")).await, Ok(Claim::Foreign));
    }
}
