//! What is told of a Pod that could not be scheduled, and when it is better left unsaid.

use std::sync::Arc;

use coracle_apiserver::auth::UserInfo;
use coracle_apiserver::{ApiServer, Config};
use coracle_client::{ObjectKey, in_process, request};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::shell::{condition_patch, show_condition};

fn scheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| c.type_ == "PodScheduled").map(|c| c.status.clone())
}

#[tokio::test(start_paused = true)]
async fn a_report_that_comes_late_does_not_call_a_bound_pod_unschedulable() {
    let clock = Clock::starting_at("2030-01-01T00:00:00Z".parse().unwrap());
    let options = Options { execution: Execution::Tasks, ..Options::default() };
    let files = Arc::new(SimFs::new(Rng::seeded(1)));
    let (store, _) = EmbeddedStore::open(files, clock.clone(), options).unwrap();
    let config = Config {
        service_range: "10.96.0.0/16".parse().unwrap(),
        advertise: "192.0.2.1:6443".parse().unwrap(),
        kubelet: None,
        joining: None,
        account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
    };
    let ids = Arc::new(Ids::new(Rng::seeded(2)));
    let server = ApiServer::start(config, store, clock.clone(), ids).await.unwrap();
    let admin = in_process(server.in_process(UserInfo::new("admin", ["system:masters"])));
    let key = ObjectKey::namespaced("default", "p");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"namespace": "default", "name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]},
    }))
    .unwrap();
    let seen = Arc::new(request::create(&admin, &pod).await.unwrap());
    let report =
        |pod: Arc<Pod>| show_condition(&admin, &key, pod, |pod| condition_patch(pod, "x", "y", clock.now()));

    // Somebody else writes to the Pod, which still waits.
    let label = request::PatchBody::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    request::patch::<Pod>(&admin, &key, &label).await.unwrap();
    report(seen.clone()).await;
    let waiting = request::get::<Pod>(&admin, &key).await.unwrap();
    assert_eq!(scheduled(&waiting).as_deref(), Some("False"));

    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p", "namespace": "default"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n"},
    });
    request::create_subresource::<Pod, Value>(&admin, &key, "binding", &binding).await.unwrap();
    for late in [seen, Arc::new(waiting)] {
        report(late).await;
        let bound = request::get::<Pod>(&admin, &key).await.unwrap();
        assert_eq!(scheduled(&bound).as_deref(), Some("True"));
    }
}
