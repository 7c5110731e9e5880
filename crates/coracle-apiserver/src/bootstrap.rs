//! What every cluster has: its namespaces, and the Service `kubernetes` with the server's address behind it.
//!
//! All of it goes through the same door as everybody's requests.

use coracle_api::Value;
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::json;
use tower::Service;

use crate::body::full;
use crate::server::{ApiServer, StartError};

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub(crate) async fn run(server: &ApiServer) -> Result<(), StartError> {
    for name in NAMESPACES {
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
        ensure(server, "/api/v1/namespaces", namespace).await?;
    }
    let config = &server.core.config;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "kubernetes", "namespace": "default",
                      "labels": { "component": "apiserver", "provider": "kubernetes" } },
        "spec": { "type": "ClusterIP", "clusterIP": config.service_range.first().to_string(),
                  "ports": [{ "name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port() }] },
    });
    ensure(server, "/api/v1/namespaces/default/services", service).await?;
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": { "name": "kubernetes", "namespace": "default",
                      "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" } },
        "subsets": [{ "addresses": [{ "ip": config.advertise.ip().to_string() }],
                      "ports": [{ "name": "https", "port": config.advertise.port(), "protocol": "TCP" }] }],
    });
    let path = "/api/v1/namespaces/default/endpoints";
    ensure(server, path, endpoints.clone()).await?;
    // Those of an earlier run may show an earlier address.
    let (code, answer) = send(server, Method::PUT, &format!("{path}/kubernetes"), &endpoints).await;
    if code.is_success() { Ok(()) } else { Err(failed("Endpoints kubernetes", &answer, code)) }
}

async fn ensure(server: &ApiServer, path: &str, object: Value) -> Result<(), StartError> {
    let (code, answer) = send(server, Method::POST, path, &object).await;
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

async fn send(server: &ApiServer, method: Method, path: &str, object: &Value) -> (StatusCode, Value) {
    let mut request = Request::new(full(object.to_string()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap_or_default();
    request
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    let response = match server.admin().call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.map(|collected| collected.to_bytes()).unwrap_or_default();
    (parts.status, serde_json::from_slice(&bytes).unwrap_or_default())
}
