//! A first start that fails leaves nothing but imported images: the next one begins anew, and may wish otherwise.

use super::teardown::{Kept, purge};
use crate::cluster::Cluster;
use crate::lock::Purpose;

/// Takes back what a first start has left of a cluster that nobody has used. Somebody else who starts or stops it
/// meanwhile sees to it.
pub(crate) fn undo_first_start(cluster: &Cluster) {
    let undo = || -> anyhow::Result<()> {
        let settings = cluster.settings_file();
        if !settings.exists() {
            // Nothing of a cluster is made before its settings are: whatever else has its name is another's.
            let _ = std::fs::remove_file(settings.with_extension("partial"));
            let _ = std::fs::remove_dir(&cluster.data);
            return cluster.forget();
        }
        if cluster.holder()?.is_some() {
            return Ok(());
        }
        let lock = cluster.lock(Purpose::Stopping)?;
        let undone = purge(cluster, Kept::Images);
        drop(lock);
        undone
    };
    if let Err(error) = undo() {
        crate::output::note(format_args!(
            "warning: what this start has made could not be taken back: {error:#}; {} does it",
            cluster.command("down --purge")
        ));
    }
}
