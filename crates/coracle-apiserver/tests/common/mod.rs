//! A server on the real embedded store over simulated files, and a client without a socket.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries, each of which uses its part"
)]

pub mod socket;

use std::sync::Arc;

use bytes::Bytes;
use coracle_apiserver::auth::{SYSTEM_MASTERS, UserInfo};
use coracle_apiserver::{ApiServer, Body, Config, InProcess, Joining, ServiceRange};
use coracle_clock::{Clock, Ids, Rng};
use coracle_store::Store;
use coracle_store::embedded::{EmbeddedStore, Execution, Options};
use coracle_store::simfs::SimFs;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::Service;

pub struct World {
    pub server: Arc<ApiServer>,
    pub store: Arc<EmbeddedStore>,
    pub clock: Clock,
}

impl World {
    /// A new cluster at noon of the first of January 2030.
    pub async fn new() -> Self {
        Self::on(SimFs::new(Rng::seeded(1))).await
    }

    /// A cluster on the disk `files`.
    pub async fn on(files: SimFs) -> Self {
        Self::with(files, |store| store, None).await
    }

    /// A cluster on the disk `files`, whose server has what `wrap` makes of the store.
    pub async fn behind(files: SimFs, wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>) -> Self {
        Self::with(files, wrap, None).await
    }

    /// A cluster that takes nodes in.
    pub async fn open_to_nodes(joining: Joining) -> Self {
        Self::with(SimFs::new(Rng::seeded(1)), |store| store, Some(joining)).await
    }

    async fn with(
        files: SimFs,
        wrap: impl FnOnce(Arc<dyn Store>) -> Arc<dyn Store>,
        joining: Option<Joining>,
    ) -> Self {
        let clock = Clock::starting_at("2030-01-01T12:00:00Z".parse().unwrap());
        let options = Options { execution: Execution::Tasks, ..Options::default() };
        let (store, _) = EmbeddedStore::open(Arc::new(files), clock.clone(), options).unwrap();
        let config = Config {
            service_range: ServiceRange::default(),
            advertise: "192.0.2.10:6443".parse().unwrap(),
            kubelet: None,
            joining,
            account_key: coracle_apiserver::pki::AccountKey::unkept().unwrap().into(),
        };
        let ids = Arc::new(Ids::new(Rng::seeded(2)));
        let engine: Arc<dyn Store> = Arc::<EmbeddedStore>::clone(&store);
        let server = ApiServer::start(config, wrap(engine), clock.clone(), ids).await.unwrap();
        World { server, store, clock }
    }

    pub fn admin(&self) -> Client {
        self.user(UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS]))
    }

    pub fn user(&self, user: UserInfo) -> Client {
        Client(self.server.in_process(user))
    }
}

#[derive(Clone)]
pub struct Client(InProcess);

pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub bytes: Bytes,
}

impl Answer {
    /// The body, if the code is `code`.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }

    #[track_caller]
    pub fn message(self, code: u16) -> String {
        self.expect(code)["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    pub fn new(service: InProcess) -> Self {
        Client(service)
    }

    pub async fn raw(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).unwrap();
        self.0.clone().call(request).await.unwrap()
    }

    pub async fn send(&self, method: &str, url: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
        let (parts, body) = self.raw(method, url, headers, body).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&bytes).unwrap_or_default();
        Answer { code: parts.status.as_u16(), headers: parts.headers, body, bytes }
    }

    pub async fn get(&self, url: &str) -> Answer {
        self.send("GET", url, &[], Bytes::new()).await
    }

    pub async fn get_as(&self, url: &str, accept: &str) -> Answer {
        self.send("GET", url, &[("accept", accept)], Bytes::new()).await
    }

    pub async fn post(&self, url: &str, body: &Value) -> Answer {
        self.send("POST", url, &[], body.to_string().into()).await
    }

    pub async fn put(&self, url: &str, body: &Value) -> Answer {
        self.send("PUT", url, &[], body.to_string().into()).await
    }

    pub async fn patch(&self, url: &str, kind: &str, body: &Value) -> Answer {
        let media_type = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send("PATCH", url, &[("content-type", &media_type)], body.to_string().into()).await
    }

    pub async fn delete(&self, url: &str, options: Option<&Value>) -> Answer {
        self.send("DELETE", url, &[], options.map(Value::to_string).unwrap_or_default().into()).await
    }

    pub async fn watch(&self, url: &str) -> Watch {
        self.watch_as(url, "application/json").await
    }

    pub async fn watch_as(&self, url: &str, accept: &str) -> Watch {
        let response = self.raw("GET", url, &[("accept", accept)], Bytes::new()).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), buffer: Vec::new() }
    }
}

/// The lines of a watch.
pub struct Watch {
    body: Body,
    buffer: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.buffer.extend_from_slice(&frame.into_data().unwrap());
        }
    }

    /// The next event as `TYPE name`.
    pub async fn say(&mut self) -> String {
        match self.next().await {
            None => "end".to_owned(),
            Some(event) => {
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
                format!("{} {name}", event["type"].as_str().unwrap())
            }
        }
    }
}

pub fn config_map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

pub fn pod(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "containers": [{ "name": "c", "image": "busybox" }] } })
}

pub fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub const MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
