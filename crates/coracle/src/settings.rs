//! What is decided when a cluster is first started: wishes, what is free, and what later starts may change.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, bail};
use coracle_api::join::ClusterNetwork;
use serde::{Deserialize, Serialize};

use crate::cli::{MachineOptions, Server};
use crate::ranges::{self, Range};
use crate::store::{self, EtcdSettings, StoreWish};

/// Services have a bitmap of their range, which the API server keeps this small.
const WIDEST_SERVICES: u32 = 12;

/// The first ports to try.
const API_PORT: u16 = 6443;
const KUBELET_PORT: u16 = 10250;

/// What was decided when the cluster was first started, and holds from then on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Form of this file and of the directory that it is in.
    #[serde(default = "first_format")]
    pub(crate) format: u32,
    /// Number of this cluster on this machine, from 0; the others are derived from it by default.
    pub(crate) index: u8,
    pub(crate) api_port: u16,
    pub(crate) kubelet_port: u16,
    pub(crate) bridge: String,
    pub(crate) pod_cidr: String,
    pub(crate) service_cidr: String,
    /// Name of this machine's Node. A host name that changes later makes no second Node.
    pub(crate) node_name: String,
    /// The cluster on another machine that this machine is a node of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) joined: Option<Joined>,
    /// The etcd that holds the objects; `None` if they are in the data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) store: Option<EtcdSettings>,
    /// Address under which other machines reach this one, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) address: Option<Ipv4Addr>,
    /// Other names and addresses in the API server's certificate.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) tls_san: Vec<String>,
    /// The longest wait before a container is restarted, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_restart_seconds: Option<i64>,
    /// How many images the node fetches at a time, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_pulls: Option<u16>,
    /// How many Pods that have ended may stay, if somebody said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) terminated_pods_max: Option<i32>,
}

/// What [`Settings::format`] is now. It rises when an older coracle could not go on with what a newer one left.
const FORMAT: u32 = 1;

/// The form of files that do not say theirs.
fn first_format() -> u32 {
    1
}

impl Settings {
    /// How many Pods that have ended may stay; `None` is any number.
    pub(crate) fn ended_pods_max(&self) -> Option<usize> {
        let all = coracle_controllers::pod_gc::ENDED_MAX;
        let max = self.terminated_pods_max.map_or(all, |max| usize::try_from(max).unwrap_or(0));
        (max > 0).then_some(max)
    }

    /// Reads settings that a coracle of this version, or an older one, wrote to `path`.
    pub(crate) fn read(path: &Path, bytes: &[u8]) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Form {
            #[serde(default = "first_format")]
            format: u32,
        }
        let damaged = || {
            format!(
                "{} is damaged: restore it from a backup, or remove the cluster with `coracle down --purge`",
                path.display()
            )
        };
        let Form { format } = serde_json::from_slice(bytes).with_context(damaged)?;
        if format > FORMAT {
            bail!(
                "{} was written by a newer coracle (format {format}, this one reads up to {FORMAT}): start the newer \
                 one",
                path.display()
            );
        }
        serde_json::from_slice(bytes).with_context(damaged)
    }
}

/// What a machine knows of the cluster that it has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// URL of the server.
    pub(crate) server: String,
    /// What all nodes agree on.
    pub(crate) network: ClusterNetwork,
}

/// What the command line asked for; `None` takes what is free.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wishes {
    pub(crate) api_port: Option<u16>,
    pub(crate) pod_cidr: Option<String>,
    pub(crate) service_cidr: Option<String>,
    pub(crate) node_name: Option<String>,
    pub(crate) store: Option<StoreWish>,
    /// The unspecified address forgets one that was given before.
    pub(crate) address: Option<Ipv4Addr>,
    /// Takes the place of what was given before, if it holds any.
    pub(crate) tls_san: Vec<String>,
    pub(crate) max_restart_seconds: Option<i64>,
    pub(crate) max_pulls: Option<u16>,
    pub(crate) terminated_pods_max: Option<i32>,
}

impl Wishes {
    pub(crate) fn of(options: &Server) -> anyhow::Result<Self> {
        Ok(Wishes {
            api_port: options.port,
            pod_cidr: options.pod_cidr.clone(),
            service_cidr: options.service_cidr.clone(),
            store: StoreWish::of(&options.store)?,
            tls_san: options.tls_san.clone(),
            terminated_pods_max: options.terminated_pod_gc_threshold,
            ..Wishes::of_machine(&options.machine)
        })
    }

    pub(crate) fn of_machine(machine: &MachineOptions) -> Self {
        Wishes {
            node_name: machine.node_name.clone(),
            address: machine.address,
            max_restart_seconds: machine.max_container_restart_period.map(|period| period.as_secs()),
            max_pulls: machine.max_parallel_image_pulls,
            ..Wishes::default()
        }
    }

    /// Takes over what may change at every start; whether `settings` have changed.
    pub(crate) fn amend(&self, settings: &mut Settings) -> bool {
        let before = settings.clone();
        if let Some(address) = self.address {
            settings.address = (!address.is_unspecified()).then_some(address);
        }
        if !self.tls_san.is_empty() {
            settings.tls_san.clone_from(&self.tls_san);
        }
        settings.max_restart_seconds = self.max_restart_seconds.or(settings.max_restart_seconds);
        settings.max_pulls = self.max_pulls.or(settings.max_pulls);
        settings.terminated_pods_max = self.terminated_pods_max.or(settings.terminated_pods_max);
        self.correct_store(settings);
        *settings != before
    }

    /// An etcd that was never used was perhaps the wrong one.
    fn correct_store(&self, settings: &mut Settings) {
        if let (Some(wish), Some(has)) = (&self.store, &settings.store)
            && !has.used
            && !wish.is(Some(has))
        {
            settings.store = wish.settings();
        }
    }

    /// Settings hold from the first start on: a different wish later is an error, not silently ignored.
    pub(crate) fn check(&self, settings: &Settings) -> anyhow::Result<()> {
        let differs = |flag: &str, wish: String, has: String| {
            bail!(
                "{flag} {wish} differs from {has}, which this cluster was made with; \
                 `coracle down --purge` removes it, or choose another --name"
            )
        };
        if let Some(port) = self.api_port.filter(|port| *port != settings.api_port) {
            return differs("--port", port.to_string(), settings.api_port.to_string());
        }
        if let Some(cidr) = self.pod_cidr.as_ref().filter(|cidr| **cidr != settings.pod_cidr) {
            return differs("--pod-cidr", cidr.clone(), settings.pod_cidr.clone());
        }
        if let Some(cidr) = self.service_cidr.as_ref().filter(|cidr| **cidr != settings.service_cidr) {
            return differs("--service-cidr", cidr.clone(), settings.service_cidr.clone());
        }
        if let Some(name) = self.node_name.as_ref().filter(|name| **name != settings.node_name) {
            return differs("--node-name", name.clone(), settings.node_name.clone());
        }
        if let Some(wish) = self.store.as_ref().filter(|wish| !wish.is(settings.store.as_ref())) {
            let (wish, has) = (wish.settings(), settings.store.as_ref());
            return differs("--store", store::describe(wish.as_ref()), store::describe(has));
        }
        Ok(())
    }
}

/// What is taken on this machine by others than clusters under the same directory.
pub(crate) struct Machine<'a> {
    pub(crate) port_is_free: &'a dyn Fn(u16) -> bool,
    pub(crate) link_exists: &'a dyn Fn(&str) -> bool,
    pub(crate) ranges: Vec<Range>,
}

impl Machine<'static> {
    /// This machine.
    pub(crate) fn this() -> Self {
        Machine { port_is_free: &port_is_free, link_exists: &link_exists, ranges: ranges::of_machine() }
    }
}

/// Chooses settings that collide with no other cluster's, and with nothing else on the machine.
pub(crate) fn choose(
    others: &[Settings],
    wishes: &Wishes,
    machine: &Machine<'_>,
) -> anyhow::Result<Settings> {
    let ranges: Vec<Range> = others
        .iter()
        .flat_map(|other| [&other.pod_cidr, &other.service_cidr])
        .filter_map(|cidr| cidr.parse().ok())
        .chain(machine.ranges.iter().copied())
        .collect();
    let wish = |flag: &str, wish: &Option<String>| {
        let Some(text) = wish else { return Ok(None) };
        let range: Range = text.parse().with_context(|| format!("{flag} {text}"))?;
        match ranges.iter().find(|used| used.overlaps(range)) {
            Some(used) => bail!("{flag} {text} overlaps {used}, which is in use on this machine"),
            None => Ok(Some(range)),
        }
    };
    let (pods, services) =
        (wish("--pod-cidr", &wishes.pod_cidr)?, wish("--service-cidr", &wishes.service_cidr)?);
    let range_of = |second: u16| -> Option<Range> { format!("10.{second}.0.0/16").parse().ok() };
    let ranges_of = |index: u8| {
        let first = 42 + 2 * u16::from(index);
        Some((pods.or_else(|| range_of(first))?, services.or_else(|| range_of(first + 1))?))
    };
    let taken =
        |range: Range, wish: Option<Range>| wish.is_none() && ranges.iter().any(|r| r.overlaps(range));
    let mut candidates = (0..=100).filter(|index| {
        others.iter().all(|other| other.index != *index) && !(machine.link_exists)(&bridge_name(*index))
    });
    let (index, pods, services) = candidates
        .find_map(|index| {
            let (pod_range, service_range) = ranges_of(index)?;
            let free = !taken(pod_range, pods) && !taken(service_range, services);
            free.then_some((index, pod_range, service_range))
        })
        .context(
            "there are already 100 clusters on this machine, or no range is free: remove a cluster with \
             `coracle down --purge`, or choose a --pod-cidr and a --service-cidr",
        )?;
    if services.length() < WIDEST_SERVICES {
        bail!("--service-cidr {services}: the prefix length must be from {WIDEST_SERVICES} to 24");
    }
    if services.overlaps(pods) {
        bail!("--service-cidr {services} overlaps the Pods' range {pods}");
    }
    let api_port = match wishes.api_port {
        Some(port) if !(machine.port_is_free)(port) => bail!("port {port} is in use: choose another --port"),
        Some(port) => port,
        None => free_port(API_PORT + u16::from(index), others, machine)
            .context("no free port for the API server: choose a --port")?,
    };
    let kubelet_port = free_port(KUBELET_PORT + u16::from(index), others, machine)
        .context("no free port for the node agent")?;
    let (pod_cidr, service_cidr) = (pods.to_string(), services.to_string());
    let node_name = match &wishes.node_name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let bridge = bridge_name(index);
    let store = wishes.store.as_ref().and_then(StoreWish::settings);
    let mut settings = Settings {
        format: FORMAT,
        index,
        api_port,
        kubelet_port,
        bridge,
        pod_cidr,
        service_cidr,
        node_name,
        joined: None,
        store,
        address: None,
        tls_san: Vec::new(),
        max_restart_seconds: None,
        max_pulls: None,
        terminated_pods_max: None,
    };
    wishes.amend(&mut settings);
    Ok(settings)
}

/// The first port from this one on that nobody has.
pub(crate) fn free_port(first: u16, others: &[Settings], machine: &Machine<'_>) -> Option<u16> {
    let taken = |port| others.iter().any(|other| other.api_port == port || other.kubelet_port == port);
    (first..first.saturating_add(2000)).find(|port| !taken(*port) && (machine.port_is_free)(*port))
}

/// The host name, in the form that the name of a Node has.
fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    let name: String = name
        .to_string_lossy()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '.' || c == '-' { c } else { '-' })
        .collect();
    let name = name.trim_matches(['-', '.']);
    Ok(if name.is_empty() { "node".to_owned() } else { name.to_owned() })
}

fn bridge_name(index: u8) -> String {
    format!("coracle{index}")
}

/// Whether the machine has a network link of this name: one of a cluster under another directory, for example.
fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn port_is_free(port: u16) -> bool {
    std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine<'static> {
        Machine { port_is_free: &|_| true, link_exists: &|_| false, ranges: Vec::new() }
    }

    #[test]
    fn clusters_side_by_side_share_nothing() {
        let first = choose(&[], &Wishes::default(), &machine()).unwrap();
        assert_eq!((first.api_port, first.kubelet_port, first.index), (6443, 10250, 0));
        assert_eq!((first.pod_cidr.as_str(), first.service_cidr.as_str()), ("10.42.0.0/16", "10.43.0.0/16"));
        let busy = Machine { port_is_free: &|port| port != 6444, ..machine() };
        let second = choose(std::slice::from_ref(&first), &Wishes::default(), &busy).unwrap();
        assert_eq!((second.api_port, second.kubelet_port, second.index), (6445, 10251, 1));
        assert_ne!(second.bridge, first.bridge);
        assert_ne!(second.pod_cidr, first.pod_cidr);
        let third = choose(&[second], &Wishes::default(), &machine()).unwrap();
        assert_eq!(third.index, 0, "a number that became free is used again");
    }

    #[test]
    fn ranges_are_chosen_around_those_in_use_and_wishes_for_them_are_refused() {
        let first = choose(&[], &Wishes::default(), &machine()).unwrap();
        let home = Machine { ranges: vec!["10.42.3.0/24".parse().unwrap()], ..machine() };
        let around = choose(&[], &Wishes::default(), &home).unwrap();
        assert_eq!(
            (around.index, around.pod_cidr.as_str(), around.service_cidr.as_str()),
            (1, "10.44.0.0/16", "10.45.0.0/16")
        );
        let refused = |others: &[Settings], machine: &Machine<'_>, pod: &str| {
            let wishes = Wishes { pod_cidr: Some(pod.into()), ..Wishes::default() };
            format!("{:#}", choose(others, &wishes, machine).unwrap_err())
        };
        assert_eq!(
            refused(&[], &home, "10.42.0.0/16"),
            "--pod-cidr 10.42.0.0/16 overlaps 10.42.3.0/24, which is in use on this machine"
        );
        assert_eq!(
            refused(&[first], &machine(), "10.43.9.0/24"),
            "--pod-cidr 10.43.9.0/24 overlaps 10.43.0.0/16, which is in use on this machine"
        );
        assert_eq!(refused(&[], &machine(), "x"), "--pod-cidr x: a range looks like 10.42.0.0/16");
        let both = Wishes {
            pod_cidr: Some("10.9.0.0/16".into()),
            service_cidr: Some("10.9.1.0/24".into()),
            ..Wishes::default()
        };
        let wide = Wishes { service_cidr: Some("11.0.0.0/8".into()), ..Wishes::default() };
        let message = choose(&[], &wide, &machine()).unwrap_err().to_string();
        assert!(message.contains("from 12 to 24"), "{message}");
        let message = choose(&[], &both, &machine()).unwrap_err().to_string();
        assert_eq!(message, "--service-cidr 10.9.1.0/24 overlaps the Pods' range 10.9.0.0/16");
    }

    #[test]
    fn address_and_names_are_remembered_until_others_are_given() {
        let wishes = |address: Option<[u8; 4]>, names: &[&str]| Wishes {
            address: address.map(Ipv4Addr::from),
            tls_san: names.iter().map(|&name| name.to_owned()).collect(),
            ..Wishes::default()
        };
        let mut settings =
            choose(&[], &wishes(Some([192, 0, 2, 1]), &["a.example", "198.51.100.1"]), &machine()).unwrap();
        assert_eq!(settings.address, Some([192, 0, 2, 1].into()));
        assert!(!wishes(None, &[]).amend(&mut settings), "nothing is wished");
        assert_eq!(settings.tls_san, ["a.example", "198.51.100.1"]);
        assert!(wishes(Some([0, 0, 0, 0]), &["b.example"]).amend(&mut settings));
        assert_eq!((settings.address, &settings.tls_san), (None, &vec!["b.example".to_owned()]));
        assert!(Wishes { max_restart_seconds: Some(5), ..Wishes::default() }.amend(&mut settings));
        assert!(!Wishes::default().amend(&mut settings));
        assert_eq!(settings.max_restart_seconds, Some(5));
    }

    #[test]
    fn any_number_of_ended_pods_may_stay_if_the_threshold_is_none() {
        let mut settings = choose(&[], &Wishes::default(), &machine()).unwrap();
        assert_eq!(settings.ended_pods_max(), Some(12_500));
        for (threshold, max) in [(7, Some(7)), (0, None), (-1, None)] {
            assert!(
                Wishes { terminated_pods_max: Some(threshold), ..Wishes::default() }.amend(&mut settings)
            );
            assert_eq!(settings.ended_pods_max(), max, "{threshold}");
        }
    }

    #[test]
    fn settings_of_a_newer_version_are_refused_and_of_an_older_one_read() {
        let settings = choose(&[], &Wishes::default(), &machine()).unwrap();
        let mut text = serde_json::to_value(&settings).unwrap();
        text.as_object_mut().unwrap().remove("format");
        let path = Path::new("/d/cluster.json");
        assert_eq!(Settings::read(path, text.to_string().as_bytes()).unwrap(), settings);
        text["format"] = 2.into();
        text.as_object_mut().unwrap().remove("api_port");
        let message = Settings::read(path, text.to_string().as_bytes()).unwrap_err().to_string();
        assert_eq!(
            message,
            "/d/cluster.json was written by a newer coracle (format 2, this one reads up to 1): start the newer one"
        );
        for damaged in ["", "{", "\0\0\0", "[]"] {
            let message = Settings::read(path, damaged.as_bytes()).unwrap_err().to_string();
            assert!(message.contains("/d/cluster.json is damaged: restore it"), "{message}");
        }
    }
}
