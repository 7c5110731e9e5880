//! Where the logs of Pods are: `<root>/NAMESPACE_NAME_UID/CONTAINER/RESTARTS.log`.

use std::path::{Path, PathBuf};

/// The directory of all logs of one Pod, under the directory of all Pods' logs.
#[must_use]
pub fn pod_log_directory(root: &Path, namespace: &str, name: &str, uid: &str) -> PathBuf {
    root.join(format!("{namespace}_{name}_{uid}"))
}

/// The log of one container, relative to its Pod's log directory; `restart_count` says which container of this
/// name it is.
#[must_use]
pub fn container_log_path(container: &str, restart_count: u32) -> PathBuf {
    PathBuf::from(container).join(format!("{restart_count}.log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_upstreams() {
        let pod = pod_log_directory(Path::new("/var/log/pods"), "default", "web", "0a1b");
        assert_eq!(
            pod.join(container_log_path("app", 3)),
            Path::new("/var/log/pods/default_web_0a1b/app/3.log")
        );
    }
}
