//! The control plane: the store on its disk, the API server that is started anew whenever it ends, and the components.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::pki::AccountKey;
use coracle_apiserver::{ApiServer, Config};
use coracle_client::in_process;
use coracle_clock::{Clock, Ids, Rng, select};
use coracle_controllers::{ControllerInputs, ControllersConfig, Identity};
use coracle_scheduler::{Profile, Scheduler, SchedulerInputs};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::{PowerCut, SimFs};
use coracle_store::{ListRequest, Revision, Store, StoreResult};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::hook::Hook;
use crate::invariants::Scope;
use crate::observer::ROOT;
use crate::wire::{Address, Wire};

/// Who feeds the informers that components share.
const INFORMERS: &str = "system:coracle-informers";
/// How long whoever looks after the process takes to start it anew after it ended by itself.
const RESTART: Duration = Duration::from_secs(2);
/// Small enough that a run of minutes has many files.
const SEGMENT_BYTES: u64 = 1 << 20;

/// How the API server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Asked to, with all the time it wants.
    Orderly,
    /// Killed: what it wrote is with the operating system.
    Killed,
    /// With the machine that it is on.
    PowerCut(PowerCut),
}

/// Ends the API server, and starts it again after a while.
#[derive(Debug)]
pub(crate) struct Restart {
    pub(crate) how: End,
    pub(crate) down: Duration,
}

/// What keeps the API server up.
pub(crate) struct Keeper {
    pub(crate) disk: SimFs,
    pub(crate) address: Address,
    pub(crate) clock: Clock,
    pub(crate) hook: Hook,
    pub(crate) rng: Rng,
    /// Outlives the server, as the file that it is elsewhere.
    pub(crate) account_key: Arc<AccountKey>,
}

impl Keeper {
    /// Runs for ever.
    pub(crate) async fn run(mut self, mut restarts: mpsc::UnboundedReceiver<Restart>) {
        loop {
            let (store, server) = match self.start().await {
                Ok(started) => started,
                Err(why) => {
                    self.hook.observer(|observer| observer.say(&format!("api server cannot start: {why}")));
                    if !self.disk.is_on() {
                        self.disk.restart(PowerCut::TearSectors);
                    }
                    self.clock.sleep(RESTART).await;
                    continue;
                }
            };
            self.address.come_up(Arc::clone(&server));
            self.hook.observer(|observer| {
                observer.say("api server is up");
                observer.invariants.calm.end(self.clock.elapsed(), Scope::Cluster);
            });
            let Restart { how, down } = select! {
                restart = restarts.recv() => match restart {
                    Some(restart) => restart,
                    None => std::future::pending().await,
                },
                end = server.ended() => {
                    self.hook.observer(|observer| observer.say(&format!("api server ends by itself: {end}")));
                    let how = if self.disk.is_on() { End::Killed } else { End::PowerCut(PowerCut::TearSectors) };
                    Restart { how, down: RESTART }
                }
            };
            self.hook.observer(|observer| {
                observer.unfollow();
                observer.invariants.calm.begin(Scope::Cluster);
                observer.say(&format!("api server is down ({how:?})"));
            });
            self.address.go_down();
            match how {
                End::Orderly => {}
                // Whoever still holds a file of the process that ended finds it dead.
                End::Killed => self.disk.restart(PowerCut::KeepAll),
                End::PowerCut(cut) => self.disk.restart(cut),
            }
            server.stop().await;
            drop((server, store));
            self.clock.sleep(down).await;
        }
    }

    async fn start(&mut self) -> Result<(Arc<dyn Store>, Arc<ApiServer>), String> {
        let options =
            Options { execution: Execution::Tasks, segment_bytes: SEGMENT_BYTES, ..Options::default() };
        let opened = EmbeddedStore::open(Arc::new(self.disk.clone()), self.clock.clone(), options);
        let (store, _) = opened.map_err(|why| why.to_string())?;
        let store: Arc<dyn Store> = store;
        self.compare(&*store).await.map_err(|why| why.to_string())?;
        self.hook.observer(|observer| observer.follow(Arc::clone(&store)));
        let config = Config {
            service_range: "10.96.0.0/16".parse().expect("a range of addresses"),
            advertise: ([192, 0, 2, 1], 6443).into(),
            kubelet: None,
            joining: None,
            account_key: Arc::clone(&self.account_key),
        };
        let ids = Arc::new(Ids::new(self.rng.fork("ids")));
        let started = ApiServer::start(config, Arc::clone(&store), self.clock.clone(), ids).await;
        match started {
            Ok(server) => Ok((store, server)),
            Err(why) => {
                self.hook.observer(|observer| observer.unfollow());
                Err(why.to_string())
            }
        }
    }

    /// Holds the opened store against what was seen of it before.
    async fn compare(&self, store: &dyn Store) -> StoreResult<()> {
        let last = self.hook.observer(|observer| observer.revision());
        let revision = store.revision().await?;
        let mut items = Vec::new();
        if last > 0 && revision.0 >= last {
            let at = Some(Revision(last));
            let request = ListRequest { prefix: Bytes::from_static(ROOT), after: None, limit: 0, at };
            items = store.list(&request).await?.items;
        }
        self.hook.observer(|observer| observer.compare(revision, &items));
        Ok(())
    }
}

/// Scheduler and controllers.
pub(crate) struct Components {
    tasks: Vec<JoinHandle<()>>,
}

impl Components {
    pub(crate) fn start(wire: &Wire, clock: &Clock, rng: &mut Rng) -> Self {
        let client = |user: UserInfo| in_process(wire.caller(user));
        let informers = ControllerInputs::start(&client(UserInfo::new(INFORMERS, [])), clock, rng);
        let scheduling = {
            let inputs = SchedulerInputs { pods: informers.pods.clone(), nodes: informers.nodes.clone() };
            let client = client(UserInfo::new("system:kube-scheduler", []));
            let (clock, rng) = (clock.clone(), rng.fork("scheduler"));
            tokio::spawn(async move {
                let scheduler = Scheduler::new(Profile::default());
                scheduler.run(client, inputs, clock, rng, std::future::pending()).await;
            })
        };
        let controlling = {
            let config = ControllersConfig {
                cluster_cidr: "10.128.0.0/9".parse().expect("a range of addresses"),
                node_prefix: 24,
                root_ca: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n".to_owned(),
                ended_pods_max: Some(coracle_controllers::pod_gc::ENDED_MAX),
            };
            let wire = wire.clone();
            let client = move |identity: Identity| {
                let user = UserInfo::service_account("kube-system", identity.service_account());
                in_process(wire.caller(user))
            };
            let (clock, rng) = (clock.clone(), rng.fork("controllers"));
            let pending = std::future::pending();
            tokio::spawn(coracle_controllers::run_all(config, client, informers, clock, rng, pending))
        };
        Components { tasks: vec![scheduling, controlling] }
    }

    /// Ends them as `kill -9` would.
    pub(crate) async fn kill(self) {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
    }
}
