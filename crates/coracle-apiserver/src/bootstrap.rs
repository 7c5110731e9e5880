//! What every cluster has: its namespaces, the system's priority classes, an account for the Pods of `default`, and the Service `kubernetes` with the
//! server's address behind it.
//!
//! All of it goes through the same door as everybody's requests. What is deleted of it is made again.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::Value;
use coracle_api::catalogue;
use coracle_api::priority_class::SYSTEM_PRIORITY_CLASSES;
use futures::FutureExt as _;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tower::Service;

use crate::body::full;
use crate::hub::{Event, Scope, WatchEnd, Watcher};
use crate::server::{Core, InProcess, StartError};

/// A pause after what could not be restored.
const RETRY: Duration = Duration::from_secs(10);

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub(crate) async fn run(core: &Arc<Core>) -> Result<(), StartError> {
    for name in NAMESPACES {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        ensure(core, "/api/v1/namespaces", namespace).await?;
    }
    for (name, value, description) in SYSTEM_PRIORITY_CLASSES {
        let class = json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": { "name": name },
            "value": value, "description": description,
        });
        ensure(core, "/apis/scheduling.k8s.io/v1/priorityclasses", class).await?;
    }
    let config = &core.config;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default",
                      "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": { "type": "ClusterIP", "clusterIP": config.service_range.first().to_string(),
                  "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port() }] },
    });
    ensure(core, "/api/v1/namespaces/default/services", service).await?;
    let (ip, port) = (config.advertise.ip(), config.advertise.port());
    let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default" } });
    ensure(core, "/api/v1/namespaces/default/serviceaccounts", account).await?;
    // Endpoints are for others: an address that leads everyone to themselves is none.
    let subsets = if ip.is_loopback() || ip.is_unspecified() {
        json!([])
    } else {
        json!([{ "addresses": [{ "ip": ip.to_string() }],
                 "ports": [{ "name": "https", "port": port, "protocol": "TCP" }] }])
    };
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": "kubernetes", "namespace": "default",
                      "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": subsets.clone(),
    });
    let path = "/api/v1/namespaces/default/endpoints";
    ensure(core, path, endpoints.clone()).await?;
    // Those of an earlier run may show an earlier address.
    let (code, answer) = send(core, Method::PUT, &format!("{path}/kubernetes"), &endpoints).await;
    if !code.is_success() {
        return Err(failed("Endpoints kubernetes", &answer, code));
    }
    let reached = if subsets == json!([]) {
        json!([])
    } else {
        json!([{ "addresses": [ip.to_string()], "conditions": { "ready": true } }])
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "kubernetes", "namespace": "default",
                      "labels": { "kubernetes.io/service-name": "kubernetes" } },
        "addressType": if ip.is_ipv4() { "IPv4" } else { "IPv6" },
        "endpoints": reached, "ports": [{ "name": "https", "port": port, "protocol": "TCP" }],
    });
    let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    ensure(core, path, slice.clone()).await?;
    let (code, answer) = send(core, Method::PUT, &format!("{path}/kubernetes"), &slice).await;
    if code.is_success() { Ok(()) } else { Err(failed("EndpointSlice kubernetes", &answer, code)) }
}

/// Makes again what is deleted, until the server ends.
pub(crate) async fn keep(core: Arc<Core>) {
    let draining = core.draining.clone();
    coracle_clock::select! {
        () = draining.cancelled() => {}
        () = async {
            loop {
                // It ends when changes may have been missed, or with the hub.
                watch_and_restore(&core).await;
                core.clock.sleep(RETRY).await;
                restore(&core).await;
            }
        } => {}
    }
}

async fn watch_and_restore(core: &Arc<Core>) {
    let mut kept = Vec::new();
    let classes = SYSTEM_PRIORITY_CLASSES.map(|(name, ..)| name);
    for (group, plural, namespace, names) in [
        ("", "namespaces", "", &NAMESPACES[..]),
        ("", "services", "default", &["kubernetes"]),
        ("", "endpoints", "default", &["kubernetes"]),
        ("discovery.k8s.io", "endpointslices", "default", &["kubernetes"]),
        ("scheduling.k8s.io", "priorityclasses", "", &classes[..]),
    ] {
        let Some(row) = catalogue::find(group, "v1", plural) else { continue };
        let keys: Vec<String> = names.iter().map(|name| row.storage_key(namespace, name)).collect();
        match core.hub.watch(row.storage_prefix, Scope::All, core.hub.progress()).await {
            Ok(watcher) => kept.push((watcher, keys)),
            Err(_) => return,
        }
    }
    loop {
        let waits: Vec<_> = kept.iter_mut().map(|(watcher, keys)| deleted(watcher, keys).boxed()).collect();
        let (missing, ..) = futures::future::select_all(waits).await;
        if missing.is_err() {
            return;
        }
        restore(core).await;
    }
}

async fn restore(core: &Arc<Core>) {
    while let Err(error) = run(core).await {
        tracing::warn!(%error, "could not restore what every cluster has");
        core.clock.sleep(RETRY).await;
    }
}

/// Waits until one of `keys` is removed.
async fn deleted(watcher: &mut Watcher, keys: &[String]) -> Result<(), WatchEnd> {
    let gone = |event: &Arc<Event>| event.new.is_none() && keys.iter().any(|key| key.as_bytes() == event.key);
    while !watcher.next().await?.iter().any(gone) {}
    Ok(())
}

async fn ensure(core: &Arc<Core>, path: &str, object: Value) -> Result<(), StartError> {
    let (code, answer) = send(core, Method::POST, path, &object).await;
    if code.is_success() || answer["reason"] == "AlreadyExists" {
        return Ok(());
    }
    let what = format!("{} {}", object["kind"], object["metadata"]["name"]).replace('"', "");
    Err(failed(&what, &answer, code))
}

fn failed(what: &str, answer: &Value, code: StatusCode) -> StartError {
    let mut status = coracle_api::status::Status::internal("");
    status.code = code.as_u16();
    status.message = answer["message"].as_str().unwrap_or_default().to_owned();
    StartError::Bootstrap { what: what.to_owned(), status }
}

/// Sends a request as the server itself.
pub(crate) async fn send(
    core: &Arc<Core>,
    method: Method,
    path: &str,
    object: &Value,
) -> (StatusCode, Value) {
    let mut request = Request::new(full(object.to_string()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    let response = match InProcess::own(core).call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    (parts.status, serde_json::from_slice(&bytes).unwrap_or_default())
}
