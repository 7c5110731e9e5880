//! How faults begin and end.

use std::collections::BTreeMap;
use std::time::Duration;

use coracle_cri::scripted::Trouble;
use coracle_store::simfs::PowerCut;
use jiff::SignedDuration;

use super::{SimError, World};
use crate::control::{End, Restart};
use crate::fault::{Fault, Leftover};
use crate::invariants::Scope;
use crate::node::SimNode;
use crate::wire::Lag;
use crate::{meddler, wire};

impl World {
    /// Whether the API server is up.
    #[must_use]
    pub fn server_is_up(&self) -> bool {
        self.address.is_up()
    }

    /// Makes something go wrong, now. What lasts for a while ends by itself.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn inject(&mut self, fault: &Fault) -> Result<(), SimError> {
        self.say(&format!("fault: {fault:?}"));
        match fault {
            Fault::PowerLoss { node, lasts } => {
                self.begin(node)?;
                let World { nodes, runtime, .. } = self;
                let machine = found(nodes, node)?;
                runtime.block_on(machine.lose_power());
                self.ends(node, *lasts, |machine| machine.boot());
            }
            Fault::AgentCrash { node, lasts } => {
                self.begin(node)?;
                let World { nodes, runtime, .. } = self;
                let machine = found(nodes, node)?;
                runtime.block_on(machine.kill_agent());
                self.ends(node, *lasts, SimNode::start_agent);
            }
            Fault::Partition { node, lasts } => {
                self.begin(node)?.wire.set(|trouble| trouble.cut = true);
                self.ends(node, *lasts, |machine| machine.wire.set(|trouble| trouble.cut = false));
            }
            Fault::SlowLink { node, by, lasts } => {
                let by = whole(*by);
                self.begin(node)?.wire.set(|trouble| trouble.delay = by);
                self.ends(node, *lasts, |machine| {
                    machine.wire.set(|trouble| trouble.delay = Duration::ZERO);
                });
            }
            Fault::NetworkDown { node, lasts } => {
                self.begin(node)?.runtime.set_network(Err("the network plugin is not ready".to_owned()));
                self.ends(node, *lasts, |machine| machine.runtime.set_network(Ok(())));
            }
            Fault::RuntimeTrouble { node, trouble, lasts } => {
                self.begin(node)?.runtime.set_trouble(trouble.clone());
                self.ends(node, *lasts, |machine| machine.runtime.set_trouble(Trouble::default()));
            }
            Fault::Meddler { lasts } => {
                let (client, rng) = (self.client(), self.fork_rng("meddler"));
                let meddler = self.runtime.spawn(meddler::run(client, self.clock.clone(), rng));
                let meddler = meddler.abort_handle();
                // Two of them would react to each other for ever.
                if let Some(before) = self.meddler.replace(meddler.clone()) {
                    before.abort();
                }
                let end = self.elapsed() + whole(*lasts);
                self.at(end, move |_| {
                    meddler.abort();
                    Ok(())
                });
            }
            Fault::Heal { node } => {
                let machine = found(&mut self.nodes, node)?;
                let _guard = self.runtime.enter();
                machine.wire.set(|trouble| *trouble = wire::Trouble::default());
                machine.runtime.set_network(Ok(()));
                machine.runtime.set_trouble(Trouble::default());
                machine.boot();
                machine.start_agent();
                self.calm(Some(node));
            }
            Fault::ClockJump { node, by } => {
                self.begin(node)?.clock.jump(*by);
                self.calm(Some(node));
            }
            Fault::ServerRestart { lasts } => self.restart_server(End::Orderly, *lasts),
            Fault::ServerCrash { lasts } => self.restart_server(End::Killed, *lasts),
            Fault::ServerPowerLoss { lasts, leaves } => {
                self.restart_server(End::PowerCut(power_cut(*leaves)), *lasts);
            }
            Fault::StoreCrash { step } => {
                self.disk.power_off_at(self.disk.steps() + (*step).max(1));
            }
            Fault::FlushFails { nth } => self.disk.fail_sync((*nth).max(1)),
            Fault::DiskFull { lasts } => {
                self.hook.observer(|observer| observer.invariants.calm.begin(Scope::Cluster));
                self.disk.set_capacity(Some(self.disk.used()));
                if let Some(lasts) = lasts {
                    let end = self.elapsed() + whole(*lasts);
                    self.at(end, |world| {
                        world.disk.set_capacity(None);
                        world.calm(None);
                        Ok(())
                    });
                }
            }
            Fault::ComponentsSlow { by, lasts } => {
                let by = whole(*by);
                self.control_wire.set(|trouble| trouble.delay = by);
                let end = self.elapsed() + whole(*lasts);
                self.at(end, |world| {
                    world.control_wire.set(|trouble| trouble.delay = Duration::ZERO);
                    Ok(())
                });
            }
            Fault::ComponentsStale { by, of, lasts } => {
                let lag = Lag { by: whole(*by), of: of.as_deref().map(plural).transpose()? };
                self.control_wire.set(|trouble| trouble.lag = lag);
                let end = self.elapsed() + whole(*lasts);
                self.at(end, |world| {
                    world.control_wire.set(|trouble| trouble.lag = Lag::default());
                    Ok(())
                });
            }
            Fault::ComponentsRestart { lasts } => {
                self.hook.observer(|observer| observer.invariants.calm.begin(Scope::Cluster));
                if let Some(components) = self.components.take() {
                    self.runtime.block_on(components.kill());
                }
                let end = self.elapsed() + whole(*lasts);
                self.at(end, |world| {
                    if world.components.is_none() {
                        world.start_components();
                    }
                    world.calm(None);
                    Ok(())
                });
            }
        }
        Ok(())
    }

    /// Ends what ends by itself, at once: nothing that was planned is left, the disk and the server work.
    ///
    /// # Errors
    /// If an invariant breaks on the way.
    pub(crate) fn make_good(&mut self) -> Result<(), SimError> {
        while let Some((_, deed)) = self.agenda.pop_first() {
            deed(self)?;
        }
        self.disk.make_good();
        Ok(())
    }

    /// Containers that run for Pods that are not there, in words.
    pub(crate) fn strays(&self) -> Vec<String> {
        self.hook.observer(|observer| observer.invariants.strays())
    }

    fn begin(&mut self, node: &str) -> Result<&mut SimNode, SimError> {
        let machine = found(&mut self.nodes, node)?;
        let scope = Scope::Node(node.to_owned());
        self.hook.observer(|observer| observer.invariants.calm.begin(scope));
        Ok(machine)
    }

    fn calm(&self, node: Option<&str>) {
        let _guard = self.runtime.enter();
        let scope = node.map_or(Scope::Cluster, |node| Scope::Node(node.to_owned()));
        let now = self.clock.elapsed();
        self.hook.observer(|observer| {
            observer.say(&format!("end of fault: {scope:?}"));
            observer.invariants.calm.end(now, scope);
        });
    }

    fn ends(&mut self, node: &str, lasts: Option<SignedDuration>, end: impl FnOnce(&mut SimNode) + 'static) {
        let Some(lasts) = lasts else { return };
        let (then, node) = (self.elapsed() + whole(lasts), node.to_owned());
        self.at(then, move |world| {
            let guard = world.runtime.enter();
            end(found(&mut world.nodes, &node)?);
            drop(guard);
            world.calm(Some(&node));
            Ok(())
        });
    }

    fn restart_server(&self, how: End, down: SignedDuration) {
        let _guard = self.runtime.enter();
        // Nobody receives only when the world ends.
        let _ = self.restarts.send(Restart { how, down: whole(down) });
    }
}

fn found<'a>(nodes: &'a mut BTreeMap<String, SimNode>, name: &str) -> Result<&'a mut SimNode, SimError> {
    nodes.get_mut(name).ok_or_else(|| SimError::Unknown(format!("there is no node {name}")))
}

/// A kind by the plural of its name.
fn plural(name: &str) -> Result<&'static str, SimError> {
    let mut all = coracle_api::catalogue::resources().iter().map(|resource| resource.plural);
    all.find(|plural| *plural == name).ok_or_else(|| SimError::Unknown(format!("there is no kind {name}")))
}

fn whole(duration: SignedDuration) -> Duration {
    Duration::try_from(duration).unwrap_or(Duration::ZERO)
}

fn power_cut(leaves: Leftover) -> PowerCut {
    match leaves {
        Leftover::Nothing => PowerCut::DropUnflushed,
        Leftover::AnySectors => PowerCut::TearSectors,
        Leftover::AllButTheLast => PowerCut::TearLastWrite,
        Leftover::All => PowerCut::KeepAll,
    }
}
