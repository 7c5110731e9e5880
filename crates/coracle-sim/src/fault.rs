//! What can go wrong, and be made good again.

use coracle_cri::scripted::Trouble;
use jiff::SignedDuration;
use serde::Deserialize;

/// A fault. One that lasts has a duration; without one it lasts until [`Fault::Heal`], or for ever.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum Fault {
    /// A node's machine loses its power: nothing on it runs any more, and its disk keeps what it has.
    PowerLoss {
        /// Which.
        node: String,
        /// After this it is back.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// The node agent of a node is killed. Containers go on.
    AgentCrash {
        /// Which.
        node: String,
        /// After this it is started again.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// Nothing gets through between a node and the API server.
    Partition {
        /// Which.
        node: String,
        /// After this the way is clear.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// Everything between a node and the API server takes longer.
    SlowLink {
        /// Which.
        node: String,
        /// By how much, in each direction.
        by: SignedDuration,
        /// After this it is fast again.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// Ends all faults of a node.
    Heal {
        /// Which.
        node: String,
    },
    /// The API server ends in order and is started again.
    ServerRestart {
        /// How long it is down.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// The API server is killed and started again.
    ServerCrash {
        /// How long it is down.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// The power of the API server's machine is cut and comes back: what was not flushed may be lost.
    ServerPowerLoss {
        /// How long it is down.
        #[serde(rename = "for")]
        lasts: SignedDuration,
        /// What is left of what was not flushed.
        #[serde(default)]
        leaves: Leftover,
    },
    /// The machine of the API server loses its power in the middle of one of the store's next writes.
    StoreCrash {
        /// In the middle of which step of the disk, from now: 1 is the next.
        step: u64,
    },
    /// One of the next flushes of the store fails.
    FlushFails {
        /// Which: 1 is the next.
        nth: u64,
    },
    /// The store's disk has no room.
    DiskFull {
        /// After this there is room again.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// Scheduler and controllers are killed and started again.
    ComponentsRestart {
        /// How long they are gone.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// Everything between scheduler and controllers and the API server takes longer: what they know is old.
    ComponentsSlow {
        /// By how much, in each direction.
        by: SignedDuration,
        /// After this it is fast again.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// What scheduler and controllers hear of changes comes later, while what they ask for is done at once: they plan
    /// from old copies.
    ComponentsStale {
        /// By how much.
        by: SignedDuration,
        /// Of changes of which kind, by its plural; of all, if nothing is said. What is heard of one kind is then older
        /// than what is heard of another, as two connections may have it.
        of: Option<String>,
        /// After this they hear at once again.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// The calendar of a node jumps.
    ClockJump {
        /// Which.
        node: String,
        /// How far; may be negative.
        by: SignedDuration,
    },
    /// The runtime of a node is slow, fails, or does not tell of what happens.
    RuntimeTrouble {
        /// Which.
        node: String,
        /// What is wrong with it.
        trouble: Trouble,
        /// After this it is well.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
    /// Somebody else writes to every Pod that changes, at once.
    Meddler {
        /// For how long.
        #[serde(rename = "for")]
        lasts: SignedDuration,
    },
    /// The network of a node's Pods is not ready.
    NetworkDown {
        /// Which.
        node: String,
        /// After this it is ready.
        #[serde(rename = "for")]
        lasts: Option<SignedDuration>,
    },
}

/// What a power cut leaves of what was not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Leftover {
    /// Nothing.
    Nothing,
    /// Any sectors of any writes.
    #[default]
    AnySectors,
    /// All but a part of the last write.
    AllButTheLast,
    /// All of it, by luck.
    All,
}
