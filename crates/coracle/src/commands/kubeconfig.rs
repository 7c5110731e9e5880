//! `coracle kubeconfig`: the administrator's way in.

use std::process::ExitCode;

use anyhow::bail;

use crate::cluster::Cluster;
use crate::output;

pub(crate) fn run(cluster: &Cluster, path_only: bool) -> anyhow::Result<ExitCode> {
    let path = cluster.kubeconfig();
    match std::fs::read_to_string(&path) {
        Ok(_) if path_only => output::result(path.display()),
        Ok(text) => output::result(text.trim_end()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!(cluster.unknown())
        }
        Err(error) => bail!("cannot read {}: {error}; it belongs to root", path.display()),
    }
    Ok(ExitCode::SUCCESS)
}
