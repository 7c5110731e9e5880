//! How fast nodes may be tainted so that Pods leave them: a rate a zone, which depends on how much of the zone is down.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;

/// One node in ten seconds.
const NORMAL: Duration = Duration::from_secs(10);
/// One node in a hundred seconds.
const SLOW: Duration = Duration::from_secs(100);
/// A zone that is partly down is drained slowly if it has more nodes than this, and not at all if not.
const LARGE_ZONE: usize = 50;

/// How much of a zone is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nobody has looked yet.
    Initial,
    /// Little.
    Normal,
    /// 55 % or more, and more than two nodes.
    Partial,
    /// Everything.
    Full,
}

/// How many nodes of a zone are Ready, and how many are not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Those that are.
    pub ready: usize,
    /// Those that are not.
    pub not_ready: usize,
}

impl Count {
    /// What that means.
    #[must_use]
    pub fn state(self) -> State {
        let Count { ready, not_ready } = self;
        if ready == 0 && not_ready > 0 {
            State::Full
        } else if not_ready > 2 && not_ready * 100 >= (ready + not_ready) * 55 {
            State::Partial
        } else {
            State::Normal
        }
    }
}

/// Lets one through at a time, with a pause after each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gate {
    /// `None` lets nobody through.
    pause: Option<Duration>,
    opens: Duration,
}

impl Gate {
    fn set(&mut self, pause: Option<Duration>, elapsed: Duration) {
        if self.pause == pause {
            return;
        }
        // Whoever waited before waits the new pause.
        if elapsed < self.opens || self.pause.is_none() {
            self.opens = elapsed + pause.unwrap_or_default();
        }
        self.pause = pause;
    }
}

#[derive(Debug)]
struct Zone {
    state: State,
    gate: Gate,
}

/// All zones.
#[derive(Debug, Default)]
pub struct Zones(BTreeMap<String, Zone>);

/// What the state of all zones together comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overall {
    /// Some node answers.
    Partly,
    /// No node answers any more: rather the cluster's eyes are shut than all nodes dead.
    Nothing,
    /// Nodes answer again, after none did.
    Back,
}

impl Zones {
    /// The zone of a node.
    #[must_use]
    pub fn of(node: &Node) -> String {
        let labels = node.metadata.labels.as_ref();
        let label = |names: [&str; 2]| {
            names.iter().find_map(|name| labels?.get(*name)).map(String::as_str).unwrap_or_default()
        };
        let region = label(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
        let zone = label(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
        format!("{region}:{zone}")
    }

    /// Takes in how many nodes of each zone are Ready, and sets the rates.
    pub fn update(&mut self, counts: &BTreeMap<String, Count>, elapsed: Duration) -> Overall {
        self.0.retain(|name, _| counts.contains_key(name));
        let was_down = !self.0.is_empty() && self.0.values().all(|zone| zone.state == State::Full);
        let is_down = !counts.is_empty() && counts.values().all(|count| count.state() == State::Full);
        for (name, count) in counts {
            let gate = Gate { pause: Some(NORMAL), opens: elapsed };
            let zone = self.0.entry(name.clone()).or_insert(Zone { state: State::Initial, gate });
            zone.state = count.state();
            let size = count.ready + count.not_ready;
            let pause = match zone.state {
                _ if is_down => None,
                State::Partial if size > LARGE_ZONE => Some(SLOW),
                State::Partial => None,
                // A zone that is down as a whole is given up as quickly as any, while others live.
                State::Initial | State::Normal | State::Full => Some(NORMAL),
            };
            zone.gate.set(pause, elapsed);
        }
        match (was_down, is_down) {
            (_, true) => Overall::Nothing,
            (true, false) => Overall::Back,
            (false, false) => Overall::Partly,
        }
    }

    /// Lets one node of a zone through, if its time has come.
    pub fn pass(&mut self, zone: &str, elapsed: Duration) -> bool {
        let Some(Zone { gate, .. }) = self.0.get_mut(zone) else { return false };
        match gate.pause {
            Some(pause) if gate.opens <= elapsed => {
                gate.opens = elapsed + pause;
                true
            }
            _ => false,
        }
    }

    /// When the next node of a zone may pass.
    #[must_use]
    pub fn opens(&self, zone: &str) -> Option<Duration> {
        let gate = self.0.get(zone)?.gate;
        gate.pause.map(|_| gate.opens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn count(ready: usize, not_ready: usize) -> Count {
        Count { ready, not_ready }
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_zone_is_judged_by_its_share_of_dead_nodes() {
        for (ready, not_ready, state) in [
            (3, 0, State::Normal),
            (0, 0, State::Normal),
            (0, 1, State::Full),
            (1, 2, State::Normal),
            (2, 3, State::Partial),
            (3, 3, State::Normal),
            (45, 55, State::Partial),
            (46, 54, State::Normal),
        ] {
            assert_eq!(count(ready, not_ready).state(), state, "{ready} {not_ready}");
        }
    }

    fn zones(counts: &[(&str, Count)]) -> BTreeMap<String, Count> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn one_node_passes_in_ten_seconds_and_slower_when_much_is_down() {
        let mut all = Zones::default();
        all.update(&zones(&[("a", count(9, 1))]), seconds(0));
        assert!(all.pass("a", seconds(0)));
        assert!(!all.pass("a", seconds(9)));
        assert_eq!(all.opens("a"), Some(seconds(10)));
        assert!(all.pass("a", seconds(10)));
        // A small zone that is mostly down stops, and waits anew afterwards.
        all.update(&zones(&[("a", count(3, 7))]), seconds(11));
        assert_eq!(all.opens("a"), None);
        assert!(!all.pass("a", seconds(1000)));
        all.update(&zones(&[("a", count(9, 1))]), seconds(1000));
        assert!(!all.pass("a", seconds(1009)));
        assert!(all.pass("a", seconds(1010)));
        // A large one goes on at a tenth of the rate.
        all.update(&zones(&[("a", count(30, 70))]), seconds(1011));
        assert!(!all.pass("a", seconds(1110)));
        assert!(all.pass("a", seconds(1111)));
    }

    #[test]
    fn when_everything_is_down_nothing_passes() {
        let mut all = Zones::default();
        assert_eq!(
            all.update(&zones(&[("a", count(1, 1)), ("b", count(0, 2))]), seconds(0)),
            Overall::Partly
        );
        assert!(all.pass("b", seconds(0)), "a zone that is down as a whole, while another lives");
        assert_eq!(
            all.update(&zones(&[("a", count(0, 2)), ("b", count(0, 2))]), seconds(1)),
            Overall::Nothing
        );
        assert!(!all.pass("b", seconds(100)));
        assert_eq!(all.update(&zones(&[("a", count(1, 1)), ("b", count(0, 2))]), seconds(2)), Overall::Back);
        assert_eq!(
            all.update(&zones(&[("a", count(1, 1)), ("b", count(0, 2))]), seconds(3)),
            Overall::Partly
        );
    }
}
