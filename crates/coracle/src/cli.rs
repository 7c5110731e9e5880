//! The command line. Parsing does nothing; [`crate::commands`] does.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::store::StoreAddress;

/// Kubernetes in one small binary.
///
/// Start a cluster with `coracle up`, then use kubectl as on any other cluster:
///
///   coracle up
///   export KUBECONFIG=$(coracle kubeconfig --path)
///   kubectl get nodes
///
/// `coracle down` stops it; `coracle down --purge` leaves the machine as it was.
#[derive(Debug, Parser)]
#[command(name = "coracle", version, verbatim_doc_comment, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which cluster is meant.
#[derive(Debug, Clone, Args)]
pub(crate) struct Target {
    /// Name of the cluster; several run side by side on one machine.
    #[arg(long, global = true, default_value = "coracle", env = "CORACLE_NAME", value_parser = cluster_name)]
    pub(crate) name: String,
    /// Directory that holds all clusters' data, one subdirectory for each.
    #[arg(long, global = true, default_value = "/var/lib/coracle", env = "CORACLE_DATA_DIR", value_parser = directory)]
    pub(crate) data_dir: PathBuf,
    /// Directory for what lives until the next boot: sockets and pinned namespaces.
    #[arg(long, global = true, default_value = "/run/coracle", env = "CORACLE_RUN_DIR", value_parser = directory)]
    pub(crate) run_dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a cluster in the background, with this machine as its first node, and wait until that is Ready.
    Up(Up),
    /// Run the same cluster in the foreground, for a service manager; logs go to standard error.
    Server(Server),
    /// Make this machine a node of a cluster that runs on another one.
    ///
    /// On the server, `coracle token create` prints the whole command. A machine that has joined once needs neither
    /// --server nor --token again. Stays in the foreground unless told to --detach.
    Node(Node),
    /// Make, list and remove the tokens by which other machines join this cluster.
    Token {
        #[command(subcommand)]
        command: Token,
    },
    /// Say what this machine has and lacks for a cluster, and which package or setting to change.
    ///
    /// Exit code 1 means that something is missing that a cluster needs. Every start looks as well.
    Check {
        #[command(flatten)]
        output: Output,
    },
    /// Write everything that makes the cluster itself into a file: its objects at one revision, keys and settings.
    ///
    /// Works while the cluster runs and while it is stopped. Whoever can read the file can act as anybody.
    Backup {
        /// The file; one that is there is replaced when the new one is complete.
        file: PathBuf,
    },
    /// Make the cluster what it was when the backup was written. It must be stopped.
    ///
    /// Containers and images are not in a backup: the next start makes the containers that the objects ask for.
    Restore {
        /// The file that `coracle backup` wrote.
        file: PathBuf,
        /// Replace a cluster that is here.
        #[arg(long)]
        force: bool,
    },
    /// Stop the cluster and its containers.
    Down {
        /// Also remove everything that the cluster left on this machine: data, images, network, cgroups.
        #[arg(long)]
        purge: bool,
    },
    /// Say whether the cluster runs, where, and what it uses.
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// Print the administrator's kubeconfig.
    Kubeconfig {
        /// Print the path of the file instead of its contents.
        #[arg(long)]
        path: bool,
    },
    Sim(Box<Sim>),
    /// Import, list and remove images of the node.
    Image {
        #[command(subcommand)]
        command: Image,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Up {
    #[command(flatten)]
    pub(crate) server: Server,
    /// Give up after so many seconds if the node is not Ready.
    #[arg(long, default_value_t = 60)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Server {
    /// Port of the API server; remembered for the next start. [default: 6443, or the next free one]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Addresses for Pods, in CIDR form; remembered. [default: 10.42.0.0/16, or the next range not in use]
    #[arg(long)]
    pub(crate) pod_cidr: Option<String>,
    /// Addresses for Services, in CIDR form; remembered. [default: 10.43.0.0/16, or the next range not in use]
    #[arg(long)]
    pub(crate) service_cidr: Option<String>,
    /// Another name or address under which this server is reached, for its certificate; may be repeated. Remembered
    /// until others are given.
    #[arg(long, value_name = "NAME", value_parser = name_or_address)]
    pub(crate) tls_san: Vec<String>,
    /// How many Pods that have ended may stay before the oldest are removed; 0 or less lets all of them. Remembered.
    /// [default: 12500]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    pub(crate) terminated_pod_gc_threshold: Option<i32>,
    #[command(flatten)]
    pub(crate) store: StoreOptions,
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
}

/// Where the cluster's objects are kept.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct StoreOptions {
    /// Where to keep the cluster's objects: `embedded`, or an etcd; remembered. [default: embedded]
    ///
    /// etcd://HOST:PORT[,HOST:PORT...][/PREFIX]: all members of one etcd, 3.4 or newer. The prefix comes before every
    /// key, so that one etcd holds several clusters; without it, objects are under /registry/.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) store: Option<StoreAddress>,
    /// Authority that signed etcd's certificate, a PEM file; turns on TLS. Remembered.
    #[arg(long, value_name = "FILE", requires = "store")]
    pub(crate) store_ca: Option<PathBuf>,
    /// Certificate to show to etcd, a PEM file. Remembered.
    #[arg(long, value_name = "FILE", requires_all = ["store_ca", "store_key"])]
    pub(crate) store_cert: Option<PathBuf>,
    /// Key of the certificate, a PEM file. Remembered.
    #[arg(long, value_name = "FILE", requires = "store_cert")]
    pub(crate) store_key: Option<PathBuf>,
}

/// What this machine is as a node.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MachineOptions {
    /// Name of this machine's Node; remembered. [default: the host name at the first start]
    #[arg(long, value_parser = node_name)]
    pub(crate) node_name: Option<String>,
    /// Address under which other machines reach this one; remembered, until another one is given, or 0.0.0.0 to
    /// forget it. [default: that of the default route]
    #[arg(long)]
    pub(crate) address: Option<Ipv4Addr>,
    /// The longest that this node waits before it restarts a container that ends again and again, from 1s to 5m;
    /// remembered. Less than 10s is also the first wait. [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = restart_period)]
    pub(crate) max_container_restart_period: Option<jiff::SignedDuration>,
    /// How many images this node fetches at a time; remembered. [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) max_parallel_image_pulls: Option<u16>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct Node {
    /// URL of the server, as https://192.0.2.1:6443; remembered.
    #[arg(long)]
    pub(crate) server: Option<String>,
    /// The join token. In a file, or in the environment, it does not show in the list of processes.
    #[arg(long, env = "CORACLE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// File that holds the join token.
    #[arg(long, conflicts_with = "token")]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) machine: MachineOptions,
    /// Run in the background, and return when the node is Ready.
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// With --detach: give up after so many seconds if the node is not Ready.
    #[arg(long, default_value_t = 60)]
    pub(crate) timeout: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Token {
    /// Make a token and print the command that joins with it. One machine can use it, once.
    Create {
        /// How long it works, as 30m or 24h.
        #[arg(long, default_value = "24h", value_parser = time_to_live)]
        ttl: jiff::SignedDuration,
        /// Let any number of machines use it until it expires.
        #[arg(long)]
        reusable: bool,
        #[command(flatten)]
        output: Output,
    },
    /// List the tokens, without their secrets.
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove tokens by id.
    Rm {
        /// Ids: the first six characters.
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Import images from a `docker save` archive or an OCI layout (directory or archive).
    ///
    /// Works while the cluster runs and while it is stopped. Imported images are never collected.
    Import {
        /// The archive or directory.
        path: PathBuf,
        /// Name to give to the image, for example `registry.example/app:1`.
        #[arg(long)]
        image: Option<String>,
    },
    /// List the node's images.
    Ls {
        #[command(flatten)]
        output: Output,
    },
    /// Remove images by name or id.
    Rm {
        /// Names or ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
}

/// Play a scenario on virtual time: a whole cluster in this process, hours of it in seconds.
///
/// A scenario is a YAML file that says which nodes there are, how programs behave, which objects
/// are applied when, what breaks, and what must be seen:
///
///   until: 10m
///   nodes: 3
///   images:
///     web:1: {pullTime: 2s, runs: [{exit: 1, after: 30s, times: 3}, {}]}
///   steps:
///     - {at: 2m, name: loss, powerLoss: node-1}
///   expect:
///     - within 20s: pod web-0 ready
///     - between 40s and 1m after loss: node node-1 condition Ready=Unknown
///     - never: pod web-0 phase Failed
///   ---
///   (manifests, applied at the start or by a step)
///
/// API server, scheduler, controllers and node agents are the real ones; only containers are
/// played. The same file and seed give the same run, to the byte. It needs no root and touches
/// nothing of this machine. The files in examples/sim explain every word.
///
/// Exit code 0: every expectation held; 1: one did not, or a rule of the cluster was broken;
/// 2: the scenario is wrong, and the message says in which line.
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Sim {
    /// The scenario.
    #[arg(required_unless_present_any = ["serve", "fuzz"])]
    pub(crate) file: Option<PathBuf>,
    /// Everything that is left to chance comes from this number. [default: what the file says, or 1]
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// End at this time instead of the file's, as 90s or 2h.
    #[arg(long, value_name = "TIME", value_parser = coracle_sim::scenario::time::parse)]
    pub(crate) until: Option<std::time::Duration>,
    /// How fast time passes: max, or as many times as fast as usual, as 1x or 100x.
    #[arg(long, default_value = "max", value_parser = speed)]
    pub(crate) speed: Speed,
    /// Write the trace into a file, too.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Print no trace, only what became of the expectations.
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Let kubectl and your controllers talk to the cluster. Its time stands still until you let it pass with Enter or a
    /// POST to /coracle/v1/advance?by=10m, or flows with --speed 1x. Such a run cannot be repeated.
    #[arg(long)]
    pub(crate) serve: bool,
    /// Instead of a scenario, random workloads and random faults from many seeds, under the rules that always hold.
    #[arg(long, conflicts_with_all = ["file", "serve", "until"])]
    pub(crate) fuzz: bool,
    /// With --fuzz: how many seeds, from --seed on.
    #[arg(long, requires = "fuzz", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seeds: u64,
    /// With --fuzz: how many minutes of virtual time each, before everything has to come to rest.
    #[arg(long, requires = "fuzz", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) minutes: u64,
    /// With --serve: write the kubeconfig here. [default: a file that goes with the cluster]
    #[arg(long, value_name = "FILE", requires = "serve")]
    pub(crate) kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How fast virtual time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speed {
    /// As fast as can be.
    Max,
    /// So many times as fast as the time of the real world.
    Times(u32),
}

fn speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    let times = text.strip_suffix('x').and_then(|times| times.parse().ok()).filter(|times| *times > 0);
    times.map(Speed::Times).ok_or_else(|| "a speed is max, or a whole number and x, as 1x or 100x".to_owned())
}

/// Form of the output.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Form of the output.
    #[arg(short, long, value_enum, default_value_t = Form::Text)]
    pub(crate) output: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Form {
    /// For people.
    Text,
    /// For machines.
    Json,
}

/// A cluster's name becomes part of directory, cgroup and file names.
fn cluster_name(text: &str) -> Result<String, String> {
    let fits = !text.is_empty()
        && text.len() <= 40
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    if fits {
        Ok(text.to_owned())
    } else {
        Err("a cluster name has 1 to 40 lower-case letters, digits and inner hyphens".to_owned())
    }
}

/// A directory, made absolute: the cluster's process works elsewhere than this one.
fn directory(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|error| error.to_string())
}

fn name_or_address(text: &str) -> Result<String, String> {
    if text.parse::<std::net::IpAddr>().is_ok() { Ok(text.to_owned()) } else { node_name(text) }
}

fn node_name(text: &str) -> Result<String, String> {
    match coracle_api::names::dns1123_subdomain(text).into_iter().next() {
        None => Ok(text.to_owned()),
        Some(problem) => Err(problem),
    }
}

fn time_to_live(text: &str) -> Result<jiff::SignedDuration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    let year = jiff::SignedDuration::from_hours(366 * 24);
    if duration >= jiff::SignedDuration::from_secs(1) && duration <= year {
        Ok(duration)
    } else {
        Err("a token lives for a second at least and a year at most".to_owned())
    }
}

/// The same setting as the kubelet's `crashLoopBackOff.maxContainerRestartPeriod`, with the same bounds.
fn restart_period(text: &str) -> Result<jiff::SignedDuration, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    let whole = duration.subsec_nanos() == 0;
    if whole && (1..=300).contains(&duration.as_secs()) {
        Ok(duration)
    } else {
        Err("it is at least 1s and at most 5m, in whole seconds".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_wait_before_a_restart_is_from_a_second_to_five_minutes() {
        assert_eq!(restart_period("1s"), Ok(jiff::SignedDuration::from_secs(1)));
        assert_eq!(restart_period("5m"), Ok(jiff::SignedDuration::from_mins(5)));
        for bad in ["0s", "301s", "500ms", "-1s", "soon"] {
            assert!(restart_period(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn directories_are_seen_from_where_the_command_was_given() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(directory("a/b").unwrap(), here.join("a/b"));
        assert_eq!(directory("/a").unwrap(), PathBuf::from("/a"));
        assert!(directory("").is_err());
    }

    #[test]
    fn tokens_live_for_a_sensible_time() {
        assert_eq!(time_to_live("30m"), Ok(jiff::SignedDuration::from_mins(30)));
        for bad in ["", "0s", "-1h", "soon", "9000h"] {
            assert!(time_to_live(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn speeds_are_whole_multiples() {
        assert_eq!(speed("max"), Ok(Speed::Max));
        assert_eq!(speed("100x"), Ok(Speed::Times(100)));
        for bad in ["", "x", "0x", "-1x", "1.5x", "100"] {
            assert!(speed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in ["", "..", "a/b", "-a", "a-", "A", "a b", &"x".repeat(41)] {
            assert!(cluster_name(bad).is_err(), "{bad:?}");
        }
        assert!(cluster_name("ci-7").is_ok());
    }
}
