//! A kubeconfig: where a cluster is, whom to trust, and who one is.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::pki::{Credential, PkiError, write_private};

/// What a kubeconfig says.
#[derive(Debug, Clone)]
pub struct Kubeconfig<'a> {
    /// Name of cluster and context, such as `coracle`.
    pub cluster: &'a str,
    /// Name of the user, such as `kubernetes-admin`.
    pub user: &'a str,
    /// `https://HOST:PORT`.
    pub server: &'a str,
    /// The authority to trust, PEM.
    pub authority_pem: &'a str,
    /// The client certificate with its key.
    pub credential: &'a Credential,
}

impl Kubeconfig<'_> {
    /// The file's text, with certificates and key inside.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let Kubeconfig { cluster, user, server, .. } = self;
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let (cluster, user, server) = (quoted(cluster), quoted(user), quoted(server));
        let context = quoted(&format!("{}@{}", self.user, self.cluster));
        let encode = |pem: &str| STANDARD.encode(pem);
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- cluster:\n    certificate-authority-data: {}\n    \
             server: {server}\n  name: {cluster}\ncontexts:\n- context:\n    cluster: {cluster}\n    \
             user: {user}\n  name: {context}\ncurrent-context: {context}\npreferences: {{}}\nusers:\n- name: \
             {user}\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
            encode(self.authority_pem),
            encode(&self.credential.certificate_pem),
            encode(&self.credential.key_pem),
        )
    }

    /// Writes the file, readable by its owner alone, whole or not at all.
    ///
    /// # Errors
    /// [`PkiError::File`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), PkiError> {
        write_private(path, self.to_yaml().as_bytes())
    }
}
