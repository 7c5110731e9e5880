//! The ports of a cluster's process, taken before anything else is made of it.
//!
//! They were chosen when they were free. Somebody who is faster than the first start gets them, and the cluster gets
//! others; from then on they are the cluster's, and who has them is told.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context;

use crate::cluster::Cluster;
use crate::settings::Settings;

/// How often others may be faster.
const ATTEMPTS: usize = 20;

/// Sockets that listen.
pub(super) struct Sockets {
    /// The API server's, on the machine that has it.
    pub(super) api: Option<TcpListener>,
    pub(super) node_agent: TcpListener,
}

/// What is to listen, and what may still be changed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    /// This machine has the API server.
    pub(super) api: bool,
    /// Nobody knows the ports yet: others may be taken.
    pub(super) new: bool,
    /// Somebody asked for the API server's.
    pub(super) api_wished: bool,
}

impl Sockets {
    /// Takes the ports, or others at a first start, which are kept then.
    pub(super) fn bind(cluster: &Cluster, settings: &mut Settings, ports: Ports) -> anyhow::Result<Self> {
        let mut attempts = 1;
        loop {
            let api = ports.api.then(|| listen(settings.api_port)).transpose();
            let node_agent = listen(settings.kubelet_port);
            let taken =
                |error: Option<&std::io::Error>| error.is_some_and(|e| e.kind() == ErrorKind::AddrInUse);
            let (api_taken, agent_taken) = (taken(api.as_ref().err()), taken(node_agent.as_ref().err()));
            let free_to_choose = ports.new && !(api_taken && ports.api_wished) && attempts < ATTEMPTS;
            if (api_taken || agent_taken) && free_to_choose {
                drop((api, node_agent));
                cluster.choose_ports_again(settings, api_taken)?;
                attempts += 1;
                continue;
            }
            return Ok(Sockets {
                api: api.with_context(|| cannot(settings.api_port, "the API server"))?,
                node_agent: node_agent.with_context(|| cannot(settings.kubelet_port, "the node agent"))?,
            });
        }
    }
}

fn cannot(port: u16, what: &str) -> String {
    format!(
        "cannot listen on port {port}, which this cluster was made with, for {what}: stop what has it \
         (`ss -ltnp 'sport = {port}'` names it)"
    )
}

fn listen(port: u16) -> std::io::Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Target;
    use crate::register::Register;
    use crate::settings::Wishes;

    #[test]
    fn a_first_start_goes_around_who_was_faster_and_a_later_one_tells() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().to_owned();
        let target =
            Target { name: "a".into(), data_dir: directory.join("data"), run_dir: directory.join("run") };
        let cluster = Cluster::on(&target, Register::at(directory.join("clusters")));
        let mut settings = cluster.settings_or_choose(&Wishes::default()).unwrap();
        let others = [settings.api_port, settings.kubelet_port].map(|port| listen(port).unwrap());
        let mut taken = settings.clone();
        let ports = Ports { api: true, new: true, api_wished: false };
        let sockets = Sockets::bind(&cluster, &mut settings, ports).unwrap();
        let has = |socket: &TcpListener| socket.local_addr().unwrap().port();
        assert_eq!(has(sockets.api.as_ref().unwrap()), settings.api_port);
        assert_eq!(has(&sockets.node_agent), settings.kubelet_port);
        assert!(settings.api_port != taken.api_port && settings.kubelet_port != taken.kubelet_port);
        assert_eq!(cluster.settings().unwrap(), Some(settings), "it is remembered");

        let refused = |settings: &mut Settings, ports| {
            Sockets::bind(&cluster, settings, ports).err().map(|error| error.to_string()).unwrap()
        };
        let wished = refused(&mut taken.clone(), Ports { api_wished: true, ..ports });
        assert!(wished.contains("for the API server"), "{wished}");
        let later = refused(&mut taken, Ports { api: false, new: false, ..ports });
        assert!(later.contains("for the node agent: stop what has it"), "{later}");
        drop(others);
    }
}
