//! Connections to registries, and to where they send us; why there is none, in words.

use std::error::Error as StdError;
use std::io;
use std::net::{IpAddr, Ipv4Addr};

use reqwest::{Certificate, Client, dns, redirect};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::Url;

use super::types::RegistryConfig;
use super::{ImageError, ImageResult};

/// How to reach a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Transport {
    pub(super) tls: bool,
    pub(super) loopback: bool,
}

/// Connections, which pulls share; they know nobody's credentials.
#[derive(Debug, Clone)]
pub(super) struct Connections {
    /// To registries, by the names that users give.
    pub(super) named: Client,
    /// To where registries send us.
    pub(super) elsewhere: Client,
}

impl Connections {
    /// Reads the system's certificates, which takes a while.
    pub(super) fn new(config: &RegistryConfig, transport: Transport) -> ImageResult<Self> {
        let mut authorities = Vec::new();
        for path in &config.extra_ca_files {
            let pem = std::fs::read(path).map_err(ImageError::io("cannot read", path))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let unusable = |error: String| ImageError::io("cannot read", path)(io::Error::other(error));
                let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
                authorities
                    .push(Certificate::from_der(&certificate).map_err(|error| unusable(error.to_string()))?);
            }
        }
        let build = |judge: bool, system: bool| {
            let builder = Client::builder();
            let mut builder = match system {
                true => builder.tls_certs_merge(authorities.clone()),
                false => builder.tls_certs_only(authorities.clone()),
            }
            .connect_timeout(config.connect_timeout)
            .user_agent(concat!("coracle/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false);
            if transport.loopback {
                // A proxy cannot reach what is on this machine.
                builder = builder.no_proxy();
            }
            if judge {
                builder = builder.dns_resolver(Judging);
            }
            builder.build()
        };
        let client = |judge: bool| match build(judge, true) {
            // Without TLS nobody needs the authorities, which a small system may not have; on loopback TLS is only
            // what is tried first.
            Err(_) if !transport.tls || transport.loopback => build(judge, false).map_err(no_client),
            made => made.map_err(no_client),
        };
        Ok(Connections { named: client(false)?, elsewhere: client(!transport.loopback)? })
    }
}

fn no_client(error: reqwest::Error) -> ImageError {
    let cause = root_cause(&error);
    let change = if cause.contains("CA certificates") { ": install the package ca-certificates" } else { "" };
    ImageError::Pull(format!("cannot make a registry client: {cause}{change}"))
}

/// Looks names up, and does not tell of addresses that only this machine can reach.
struct Judging;

impl dns::Resolve for Judging {
    fn resolve(&self, name: dns::Name) -> dns::Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<_> = found.into_iter().filter(|address| !is_private(address.ip())).collect();
            if public.is_empty() {
                return Err(format!("{} is an address of this machine", name.as_str()).into());
            }
            Ok(Box::new(public.into_iter()) as dns::Addrs)
        })
    }
}

/// Whether an address means this machine or its closest surroundings, where the metadata of clouds is served.
pub(super) fn is_private(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4 == Ipv4Addr::new(100, 100, 100, 200)
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unspecified() || v6.is_unicast_link_local(),
    }
}

/// Why a request failed, as a Go program says it: that is what people search for.
pub(super) fn words(error: &reqwest::Error, url: &Url) -> String {
    let cause = root_cause(error);
    if !error.is_connect() {
        return cause;
    }
    let kind = chain(error).find_map(|e| e.downcast_ref::<io::Error>()).map(io::Error::kind);
    let host = url.host_str().unwrap_or_default();
    let address = format!("{host}:{}", url.port_or_known_default().unwrap_or_default());
    match kind {
        Some(io::ErrorKind::ConnectionRefused) => format!("dial tcp {address}: connect: connection refused"),
        Some(io::ErrorKind::NetworkUnreachable) => {
            format!("dial tcp {address}: connect: network is unreachable")
        }
        Some(io::ErrorKind::HostUnreachable) => format!("dial tcp {address}: connect: no route to host"),
        Some(io::ErrorKind::TimedOut) => format!("dial tcp {address}: i/o timeout"),
        _ if error.is_timeout() => format!("dial tcp {address}: i/o timeout"),
        _ if chain(error).any(|e| e.to_string().contains("dns error")) => {
            format!("dial tcp: lookup {host}: {cause}")
        }
        _ => cause,
    }
}

/// Whether a TLS connection failed because the other side talks plain HTTP.
pub(super) fn speaks_plain_http(error: &reqwest::Error) -> bool {
    chain(error).any(|error| {
        // I/O errors hide what they were made from, several deep.
        let mut io = error.downcast_ref::<io::Error>();
        let mut innermost = error;
        while let Some(inner) = io.and_then(io::Error::get_ref) {
            innermost = inner;
            io = innermost.downcast_ref::<io::Error>();
        }
        matches!(innermost.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidMessage(_)))
    })
}

fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

pub(super) fn root_cause(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: &str = "CORACLE_TEST_WITHOUT_AUTHORITIES";

    /// Runs itself on a system that has no certificates: where they are is said by the environment of a process.
    #[test]
    fn a_system_without_authorities_has_registries_without_tls() {
        if std::env::var_os(ALONE).is_none() {
            let name = "image::dial::tests::a_system_without_authorities_has_registries_without_tls";
            let output = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--nocapture"])
                .envs([(ALONE, "1"), ("SSL_CERT_FILE", "/dev/null"), ("SSL_CERT_DIR", "/nonexistent")])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let config = RegistryConfig::default();
        for tls in [false, true] {
            Connections::new(&config, Transport { tls, loopback: true }).unwrap();
        }
        let error = Connections::new(&config, Transport { tls: true, loopback: false }).unwrap_err();
        assert!(error.to_string().contains("install the package ca-certificates"), "{error}");
    }
}
