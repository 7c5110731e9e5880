//! This machine as a node of a cluster that runs on another one: joining, and running from then on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use coracle_api::join::{Authority, JoinAnswer, JoinRequest, Token, clock_problem};
use coracle_apiserver::pki::{
    CertificateRequest, Credential, OwnKey, certificate_fingerprint, fits, validity_of, write_private,
};
use coracle_client::{ConnectOptions, Informer, ListOptions, LiveCertificate, connect, connect_unverified};
use coracle_clock::{Clock, Rng};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::host::Host;
use super::identity::live;
use super::node::{self, Membership};
use super::sockets::Sockets;
use super::{progress, renewal};
use crate::cluster::Cluster;
use crate::lock::Lock;
use crate::settings::{Joined, Settings};

/// Where and with what to join.
#[derive(Debug, Clone, Default)]
pub(crate) struct Invitation {
    /// URL of the server.
    pub(crate) server: Option<String>,
    /// The token as it was given.
    pub(crate) token: Option<String>,
}

/// Runs this machine as a node until a signal ends it.
pub(super) async fn run(
    cluster: &Cluster,
    mut settings: Settings,
    invitation: &Invitation,
    sockets: Sockets,
    lock: &mut Lock,
    clock: Clock,
    mut rng: Rng,
) -> anyhow::Result<()> {
    let host = &Host::this(&settings);
    let identity = Identity::load_or_join(cluster, &mut settings, host, invitation, &clock).await?;
    let joined = settings.joined.clone().context("a node knows its server once it has joined")?;
    progress(&format!("node of {}", joined.server));

    let stop = CancellationToken::new();
    let client = |certificate: &LiveCertificate| {
        connect(&ConnectOptions {
            server: joined.server.clone(),
            authority: identity.authority_pem.clone(),
            certificate: Some(certificate.clone()),
        })
    };
    let agent = client(&identity.node)?;
    let nodes =
        Informer::start(client(&identity.network)?, ListOptions::default(), clock.clone(), rng.fork("nodes"));
    let membership = Membership {
        socket: sockets.node_agent,
        client: agent.clone(),
        nodes: nodes.clone(),
        serving: identity.serving.clone(),
        authority_pem: identity.authority_pem.clone(),
        network: joined.network.clone(),
    };
    let running = node::start(cluster, &settings, host, membership, &clock, &mut rng, &stop).await?;
    lock.begin();
    progress("node agent is up");
    let renewing = {
        let (host, clock, stop) = (host.clone(), clock.clone(), stop.clone());
        tokio::spawn(async move {
            renewal::keep(clock.clone(), stop, || identity.renew_if_due(&agent, &host, &clock)).await;
        })
    };
    node::wait_for_the_end(&nodes, &host.name, &stop, lock).await?;
    stop.cancel();
    let outcome = running.ended().await;
    renewing.await.context("renewal ended badly")?;
    outcome
}

/// A node's key and certificates, in files and in use.
struct Identity {
    directory: PathBuf,
    key: OwnKey,
    authority_pem: String,
    node: LiveCertificate,
    serving: LiveCertificate,
    network: LiveCertificate,
}

/// Certificates that a node has, by the names of their files.
const AUTHORITY: &str = "authority.crt";
const NODE: &str = "node.crt";
const SERVING: &str = "serving.crt";
const NETWORK: &str = "network.crt";
const KEY: &str = "node.key";

impl Identity {
    async fn load_or_join(
        cluster: &Cluster,
        settings: &mut Settings,
        host: &Host,
        invitation: &Invitation,
        clock: &Clock,
    ) -> anyhow::Result<Self> {
        let directory = cluster.node_pki();
        let key = OwnKey::load_or_create(&directory.join(KEY))?;
        match (&settings.joined, &invitation.server) {
            (Some(joined), Some(server)) if joined.server != *server => bail!(
                "this machine is a node of {}: `coracle down --purge` ends that, or choose another --name",
                joined.server
            ),
            (Some(joined), _) => {
                let server = joined.server.clone();
                if let Some(why) = no_member(&directory, &key, &server, host, clock).await? {
                    if invitation.token.is_none() {
                        bail!(
                            "{why}: join again, with the command that `coracle token create` on the server prints"
                        );
                    }
                    progress(&why);
                    let answer = join(&server, invitation, host, &key, clock).await?;
                    store(&directory, &answer)?;
                    progress("joined again");
                }
            }
            (None, None) => bail!("this machine did not get to join: give --server and --token again"),
            (None, Some(server)) => {
                let answer = join(server, invitation, host, &key, clock).await?;
                store(&directory, &answer)?;
                settings.joined = Some(Joined { server: server.clone(), network: answer.network });
                // Last: a stop before this joins again, which the same key may.
                cluster.keep_settings(settings)?;
                progress("joined");
            }
        }
        let identity = Self::load(directory, key)?;
        if let Some(joined) = &settings.joined {
            identity.look_at_the_server(&joined.server, host, clock).await;
        }
        Ok(identity)
    }

    fn load(directory: PathBuf, key: OwnKey) -> anyhow::Result<Self> {
        let certificate = |name: &str| {
            let credential = Credential { certificate_pem: read(&directory, name)?, key_pem: key.pem() };
            live(&credential).with_context(|| format!("{} is not usable", directory.join(name).display()))
        };
        Ok(Identity {
            authority_pem: read(&directory, AUTHORITY)?,
            node: certificate(NODE)?,
            serving: certificate(SERVING)?,
            network: certificate(NETWORK)?,
            directory,
            key,
        })
    }

    /// Says what would keep this node from working, and renews what no longer fits. A server that is away is no
    /// reason not to start: containers run on.
    async fn look_at_the_server(&self, server: &str, host: &Host, clock: &Clock) {
        match known(server).await {
            Err(error) => {
                progress(&format!("the server does not answer yet: {error:#}"));
                tracing::warn!(error = format!("{error:#}"), "the server does not answer yet");
            }
            Ok(known) => {
                if let Some(problem) = clock_problem(clock.now(), known.time) {
                    progress(&format!("warning: {problem}"));
                    tracing::warn!(problem, "clock");
                }
            }
        }
        let agent = connect(&ConnectOptions {
            server: server.to_owned(),
            authority: self.authority_pem.clone(),
            certificate: Some(self.node.clone()),
        });
        let renewed = match agent {
            Ok(agent) => self.renew_if_due(&agent, host, clock).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = renewed {
            progress(&format!("warning: certificates could not be renewed: {error:#}"));
            tracing::warn!(error = format!("{error:#}"), "certificates could not be renewed");
        }
    }

    /// Whether all certificates are what this node would ask for now.
    fn fits(&self, host: &Host, now: Timestamp) -> bool {
        let holds = |name: &str, request: &CertificateRequest| {
            read(&self.directory, name).is_ok_and(|certificate_pem| {
                let credential = Credential { certificate_pem, key_pem: self.key.pem() };
                fits(&self.authority_pem, &credential, request, now)
            })
        };
        holds(NODE, &CertificateRequest::kubelet_client(&host.name))
            && holds(SERVING, &CertificateRequest::kubelet_server(&host.name, &[host.address]))
    }

    async fn renew_if_due(&self, agent: &kube::Client, host: &Host, clock: &Clock) -> anyhow::Result<()> {
        if self.fits(host, clock.now()) {
            return Ok(());
        }
        let request = ask(host, &self.key, String::new(), clock)?;
        let answer: JoinAnswer = post(agent, "/coracle/v1/renew", &request).await?;
        store(&self.directory, &answer)?;
        let key = self.key.pem();
        self.node.replace(&answer.node_certificate, &key)?;
        self.serving.replace(&answer.serving_certificate, &key)?;
        self.network.replace(&answer.network_certificate, &key)?;
        tracing::info!("certificates renewed");
        Ok(())
    }
}

/// Why this machine, which has joined once, is no node of the cluster any more, if so. Certificates that have ended
/// are seen here; a Node that is gone is the server's to say, if it answers.
async fn no_member(
    directory: &Path,
    key: &OwnKey,
    server: &str,
    host: &Host,
    clock: &Clock,
) -> anyhow::Result<Option<String>> {
    let (authority, certificate_pem) = (read(directory, AUTHORITY)?, read(directory, NODE)?);
    let path = directory.join(NODE);
    let (begin, end) = validity_of(&certificate_pem).with_context(|| {
        format!("{} holds no certificate: `coracle down --purge` and join again", path.display())
    })?;
    let now = clock.now();
    if now < begin {
        bail!("{} is valid from {begin} on, but the clock says {now}: set the clock", path.display());
    }
    if now >= end {
        return Ok(Some(format!("this node's certificates ended at {end}, and the clock says {now}")));
    }
    let credential = Credential { certificate_pem, key_pem: key.pem() };
    let agent = connect(&ConnectOptions {
        server: server.to_owned(),
        authority,
        certificate: Some(live(&credential).with_context(|| format!("{} is not usable", path.display()))?),
    })?;
    let request = http::Request::get(format!("/api/v1/nodes/{}", host.name)).body(Vec::new())?;
    Ok(match agent.request::<serde_json::Value>(request).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {
            Some(format!("node {:?} was deleted from the cluster of {server}", host.name))
        }
        _ => None,
    })
}

/// Shows the token to the server that it is for, and to no other.
async fn join(
    server: &str,
    invitation: &Invitation,
    host: &Host,
    key: &OwnKey,
    clock: &Clock,
) -> anyhow::Result<JoinAnswer> {
    let token = invitation.token.as_deref().context(
        "a --token is missing: `coracle token create` on the server prints one, with the whole command",
    )?;
    let token: Token = token.parse()?;
    let known = known(server).await.with_context(|| format!("cannot reach the server at {server}"))?;
    if certificate_fingerprint(&known.certificate).as_ref() != Some(&token.authority) {
        bail!(
            "the server at {server} is of another cluster than the token: check the address, and that the token was \
             made there"
        );
    }
    if let Some(problem) = clock_problem(clock.now(), known.time) {
        bail!("{problem}");
    }
    let client = connect(&ConnectOptions {
        server: server.to_owned(),
        authority: known.certificate,
        certificate: None,
    })?;
    let request = ask(host, key, token.to_string(), clock)?;
    post(&client, "/coracle/v1/join", &request).await
}

fn ask(host: &Host, key: &OwnKey, token: String, clock: &Clock) -> anyhow::Result<JoinRequest> {
    Ok(JoinRequest {
        token,
        node: host.name.clone(),
        addresses: vec![host.address],
        certificate_request: key.request()?,
        time: clock.now(),
    })
}

/// What a server says of itself; nothing of it is believed yet.
async fn known(server: &str) -> anyhow::Result<Authority> {
    let client = connect_unverified(server)?;
    let request = http::Request::get("/coracle/v1/authority").body(Vec::new())?;
    client.request(request).await.map_err(in_words)
}

async fn post<T: serde::de::DeserializeOwned>(
    client: &kube::Client,
    path: &str,
    body: &JoinRequest,
) -> anyhow::Result<T> {
    let request = http::Request::post(path)
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(serde_json::to_vec(body)?)?;
    client.request(request).await.map_err(in_words)
}

/// A refusal is its message; anything else is its chain of causes.
fn in_words(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

fn store(directory: &Path, answer: &JoinAnswer) -> anyhow::Result<()> {
    for (name, pem) in [
        (AUTHORITY, &answer.authority),
        (NETWORK, &answer.network_certificate),
        (SERVING, &answer.serving_certificate),
        (NODE, &answer.node_certificate),
    ] {
        write_private(&directory.join(name), pem.as_bytes())?;
    }
    Ok(())
}

fn read(directory: &Path, name: &str) -> anyhow::Result<String> {
    let path = directory.join(name);
    std::fs::read_to_string(&path).with_context(|| {
        format!("cannot read {}: restore it, or `coracle down --purge` and join again", path.display())
    })
}
