//! Who asks: identities, and how a client certificate becomes one.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The group of cluster administrators, who may do everything.
pub const SYSTEM_MASTERS: &str = "system:masters";
/// The group of everyone who has shown who they are.
pub const SYSTEM_AUTHENTICATED: &str = "system:authenticated";
/// The group of the node agents.
pub const SYSTEM_NODES: &str = "system:nodes";

/// The group of all service accounts.
pub const SYSTEM_SERVICE_ACCOUNTS: &str = "system:serviceaccounts";

/// An authenticated user, component or service account.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserInfo {
    /// Unique name, such as `system:kube-scheduler`.
    pub name: String,
    /// Identifies the user over time, if known.
    pub uid: String,
    /// Groups, [`SYSTEM_AUTHENTICATED`] included.
    pub groups: Vec<String>,
    /// What else the authenticator knows.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// `name`, member of `groups` and of [`SYSTEM_AUTHENTICATED`].
    #[must_use]
    pub fn new<'a>(name: &str, groups: impl IntoIterator<Item = &'a str>) -> Self {
        let mut groups: Vec<String> = groups.into_iter().map(str::to_owned).collect();
        if !groups.iter().any(|group| group == SYSTEM_AUTHENTICATED) {
            groups.push(SYSTEM_AUTHENTICATED.to_owned());
        }
        UserInfo { name: name.to_owned(), groups, ..UserInfo::default() }
    }

    /// The identity of the service account `name` of `namespace`.
    #[must_use]
    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::new(
            &format!("system:serviceaccount:{namespace}:{name}"),
            [SYSTEM_SERVICE_ACCOUNTS, format!("system:serviceaccounts:{namespace}").as_str()],
        )
    }

    /// The identity of the node agent of `node`.
    #[must_use]
    pub fn node(node: &str) -> Self {
        Self::new(&format!("system:node:{node}"), [SYSTEM_NODES])
    }

    /// Whether the user belongs to `group`.
    #[must_use]
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The node that this is the agent of.
    #[must_use]
    pub fn node_name(&self) -> Option<&str> {
        if !self.is_in(SYSTEM_NODES) {
            return None;
        }
        self.name.strip_prefix("system:node:").filter(|name| !name.is_empty())
    }

    /// The owner of a client certificate whose signature the TLS layer has already verified: the common name is
    /// the user, organizations are groups. `None` if it has no common name.
    #[must_use]
    pub fn from_certificate(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let subject = parsed.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        if name.is_empty() {
            return None;
        }
        let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
        Some(Self::new(name, groups))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{CertificateAuthority, CertificateRequest};

    #[test]
    fn a_certificate_names_its_user_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let now = "2026-11-21T11:00:00Z".parse().unwrap();
        let ca = CertificateAuthority::load_or_create(&dir.path().join("pki"), now).unwrap();
        let credential = ca.issue(&CertificateRequest::kubelet_client("n1"), now).unwrap();
        let user = UserInfo::from_certificate(&credential.certificates().unwrap()[0]).unwrap();
        assert_eq!(user, UserInfo::node("n1"));
        assert_eq!(user.node_name(), Some("n1"));
        assert!(user.is_in(SYSTEM_AUTHENTICATED));
    }

    #[test]
    fn only_a_member_of_the_nodes_group_is_a_node() {
        assert_eq!(UserInfo::new("system:node:n1", []).node_name(), None);
        assert_eq!(UserInfo::new("jane", [SYSTEM_NODES]).node_name(), None);
    }
}
