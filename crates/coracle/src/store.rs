//! Where a cluster keeps its objects: what the command line may say, and what is remembered of it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use coracle_store::etcd::{Target, TargetError, Tls};
use serde::{Deserialize, Serialize};

use crate::cli::StoreOptions;

/// Where objects are kept, as the command line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreAddress {
    /// In the cluster's data directory.
    Embedded,
    /// In an etcd.
    Etcd(Target),
}

impl FromStr for StoreAddress {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text {
            "embedded" => Ok(StoreAddress::Embedded),
            _ => Target::parse(text).map(StoreAddress::Etcd),
        }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreAddress::Embedded => f.write_str("embedded"),
            StoreAddress::Etcd(target) => target.fmt(f),
        }
    }
}

/// An etcd, and how to talk to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EtcdSettings {
    /// As [`Target`] shows it.
    pub(crate) address: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cert: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<PathBuf>,
    /// The cluster has objects there. Until then another wish is no contradiction but a correction.
    #[serde(default)]
    pub(crate) used: bool,
}

/// What the command line wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreWish {
    Embedded,
    Etcd(EtcdSettings),
}

impl StoreWish {
    /// What `options` ask for, if anything.
    pub(crate) fn of(options: &StoreOptions) -> anyhow::Result<Option<StoreWish>> {
        let files = [&options.store_ca, &options.store_cert, &options.store_key];
        match &options.store {
            None => Ok(None),
            Some(StoreAddress::Embedded) if files.iter().any(|file| file.is_some()) => {
                bail!(
                    "--store-ca, --store-cert and --store-key are for an etcd: give --store etcd://host:port"
                )
            }
            Some(StoreAddress::Embedded) => Ok(Some(StoreWish::Embedded)),
            Some(StoreAddress::Etcd(target)) => {
                // The background process has another working directory.
                let [ca, cert, key] = files.map(|file| file.as_deref().map(absolute).transpose());
                let settings = EtcdSettings {
                    address: target.to_string(),
                    ca: ca?,
                    cert: cert?,
                    key: key?,
                    used: false,
                };
                settings.tls()?;
                Ok(Some(StoreWish::Etcd(settings)))
            }
        }
    }

    /// Whether `settings` are what is wished.
    pub(crate) fn is(&self, settings: Option<&EtcdSettings>) -> bool {
        match (self, settings) {
            (StoreWish::Embedded, None) => true,
            (StoreWish::Etcd(wish), Some(has)) => EtcdSettings { used: has.used, ..wish.clone() } == *has,
            _ => false,
        }
    }

    /// What is to be remembered.
    pub(crate) fn settings(&self) -> Option<EtcdSettings> {
        match self {
            StoreWish::Embedded => None,
            StoreWish::Etcd(settings) => Some(settings.clone()),
        }
    }
}

/// How a message names a store: its address, and the files if there are any.
pub(crate) fn describe(settings: Option<&EtcdSettings>) -> String {
    let Some(settings) = settings else { return "embedded".to_owned() };
    let mut text = settings.address.clone();
    for (flag, file) in
        [("--store-ca", &settings.ca), ("--store-cert", &settings.cert), ("--store-key", &settings.key)]
    {
        if let Some(file) = file {
            text.push_str(&format!(" {flag} {}", file.display()));
        }
    }
    text
}

impl EtcdSettings {
    /// The address, which was one when it was written down.
    pub(crate) fn target(&self) -> anyhow::Result<Target> {
        Target::parse(&self.address).with_context(|| format!("the store's address {}", self.address))
    }

    /// The files' content; `None` without TLS.
    pub(crate) fn tls(&self) -> anyhow::Result<Option<Tls>> {
        let Some(ca) = &self.ca else { return Ok(None) };
        let client = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some((read("--store-cert", cert)?, read("--store-key", key)?)),
            _ => None,
        };
        Ok(Some(Tls { ca_pem: read("--store-ca", ca)?, client }))
    }

    /// A command line of etcd's own tool.
    pub(crate) fn etcdctl(&self, command: &str) -> anyhow::Result<String> {
        let target = self.target()?;
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        let endpoints: Vec<String> =
            target.endpoints().iter().map(|endpoint| format!("{scheme}://{endpoint}")).collect();
        let mut line = format!("etcdctl --endpoints={}", endpoints.join(","));
        for (flag, file) in [("--cacert", &self.ca), ("--cert", &self.cert), ("--key", &self.key)] {
            if let Some(file) = file {
                line.push_str(&format!(" {flag}={}", file.display()));
            }
        }
        Ok(format!("`{line} {command}`"))
    }
}

fn read(flag: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {flag} {}", path.display()))
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(address: &str) -> EtcdSettings {
        EtcdSettings { address: address.to_owned(), ca: None, cert: None, key: None, used: false }
    }

    #[test]
    fn a_wish_is_compared_without_what_has_become_of_it() {
        let wish = StoreWish::Etcd(etcd("etcd://a:2379"));
        assert!(wish.is(Some(&EtcdSettings { used: true, ..etcd("etcd://a:2379") })));
        assert!(!wish.is(Some(&etcd("etcd://a:2379/b"))));
        assert!(!wish.is(Some(&EtcdSettings { ca: Some("/ca".into()), ..etcd("etcd://a:2379") })));
        assert!(!wish.is(None));
        assert!(StoreWish::Embedded.is(None) && !StoreWish::Embedded.is(Some(&etcd("etcd://a:2379"))));
    }

    #[test]
    fn the_command_that_looks_into_etcd_can_be_copied() {
        let mut settings = etcd("etcd://a:1,b:2/x");
        assert_eq!(
            settings.etcdctl("get --prefix /x/").unwrap(),
            "`etcdctl --endpoints=http://a:1,http://b:2 get --prefix /x/`"
        );
        settings.ca = Some("/ca.crt".into());
        assert_eq!(
            settings.etcdctl("get /x").unwrap(),
            "`etcdctl --endpoints=https://a:1,https://b:2 --cacert=/ca.crt get /x`"
        );
    }
}
