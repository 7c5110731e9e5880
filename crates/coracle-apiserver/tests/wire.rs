//! The server on a socket: TLS, identities, both versions of HTTP, and the pipe to a node agent.

#![allow(clippy::unwrap_used, reason = "a test")]

mod common;

use std::io::Read;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::config_map;
use common::socket::Cluster;
use coracle_apiserver::auth::{SYSTEM_MASTERS, UserInfo};
use coracle_apiserver::pki::{CertificateAuthority, CertificateRequest};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[tokio::test]
async fn identity_comes_from_the_certificate_alone() {
    let cluster = Cluster::new().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let other = CertificateAuthority::load_or_create(elsewhere.path(), cluster.clock.now()).unwrap();
    let request = CertificateRequest::client("kubernetes-admin", Some(SYSTEM_MASTERS));
    let forged = other.issue(&request, cluster.clock.now()).unwrap();
    let expired = cluster.authority.issue(&request, "2001-01-01T00:00:00Z".parse().unwrap()).unwrap();
    let admin = cluster.admin();
    let stranger =
        cluster.authority.issue(&CertificateRequest::client("jane", None), cluster.clock.now()).unwrap();
    let pods = "/api/v1/pods";
    for protocol in ["h2", "http/1.1"] {
        assert_eq!(cluster.get(Some(&admin), protocol, pods).await.0, 200);
        assert_eq!(cluster.get(Some(&stranger), protocol, pods).await.0, 403);
        for nobody in [None, Some(&forged), Some(&expired)] {
            let (code, body) = cluster.get(nobody, protocol, pods).await;
            assert_eq!(code, 401);
            let status: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(status["reason"], "Unauthorized");
            for open in ["/healthz", "/livez", "/readyz", "/version"] {
                assert_eq!(cluster.get(nobody, protocol, open).await.0, 200, "{open}");
            }
        }
    }
    cluster.stop().await;
}

#[tokio::test]
async fn garbage_on_the_socket_harms_nobody() {
    let cluster = Cluster::new().await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0u8; 4096], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(cluster.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
    }
    let mut stream = cluster.connect(None, "http/1.1").await;
    stream.write_all(b"NONSENSE\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // The server may close without a closing message of TLS; what it said before is what counts.
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(cluster.get(None, "http/1.1", "/livez").await.0, 200);
    cluster.stop().await;
}

#[tokio::test]
async fn a_watch_ends_when_the_server_does_and_the_server_does_not_wait() {
    let cluster = Cluster::new().await;
    let io = TokioIo::new(cluster.connect(Some(&cluster.admin()), "http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("/api/v1/configmaps?watch=1&resourceVersion=1").header("host", "localhost");
    let mut response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    let clock = cluster.clock.clone();
    let ended = clock.timeout(Duration::from_secs(5), cluster.stop()).await;
    assert!(ended.is_some(), "the server waits for a watch");
    while let Some(Ok(_)) = response.body_mut().frame().await {}
}

/// A node agent that writes down what it is asked, and echoes what comes over an upgraded connection.
async fn fake_agent(cluster: &Cluster, node: &str) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    let request = CertificateRequest::kubelet_server(node, &["127.0.0.1".parse().unwrap()]);
    let credential = cluster.authority.issue(&request, cluster.clock.now()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cluster.authority.certificate()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(credential.certificates().unwrap(), credential.key().unwrap())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let user = stream.get_ref().1.peer_certificates().and_then(|c| UserInfo::from_certificate(&c[0]));
            assert_eq!(user.unwrap().name, "kube-apiserver-kubelet-client");
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service_fn(agent_answer))
                .with_upgrades();
            tokio::spawn(connection);
        }
    });
    (address, task)
}

async fn agent_answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let url = request.uri().to_string();
    if url.starts_with("/containerLogs/default/p/gone") || url.contains("previous=true") {
        let mut refusal =
            Response::new(Full::from("previous terminated container \"c\" in pod \"p\" not found"));
        *refusal.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(refusal);
    }
    if request.headers().get("upgrade").is_some_and(|protocol| protocol != "websocket") {
        assert_eq!(request.headers()["x-stream-protocol-version"], "v4.channel.k8s.io");
        let mut refusal = Response::new(Full::from("container not found (\"c\")\n"));
        *refusal.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        return Ok(refusal);
    }
    if !url.starts_with("/exec/") {
        return Ok(Response::new(Full::from(format!("{url}\n"))));
    }
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert("connection", "Upgrade".parse().unwrap());
    answer.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    answer.headers_mut().insert("sec-websocket-protocol", "v5.channel.k8s.io".parse().unwrap());
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        stream.write_all(format!("{url}|").as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(count) => stream.write_all(&buffer[..count]).await.unwrap(),
            }
        }
    });
    Ok(answer)
}

async fn bound_pod(cluster: &Cluster, node: &str, agent: SocketAddr) {
    let admin = cluster.in_process();
    admin.post("/api/v1/nodes", &json!({ "metadata": { "name": node } })).await;
    let status = json!({ "status": {
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": agent.port() } } } });
    admin.patch(&format!("/api/v1/nodes/{node}/status"), "merge", &status).await;
    admin.post(common::PODS, &common::pod("p")).await;
    let binding = json!({ "metadata": { "name": "p" }, "target": { "name": node } });
    admin.post(&format!("{}/p/binding", common::PODS), &binding).await;
}

#[tokio::test]
async fn logs_come_from_the_node_agent_of_the_pod() {
    let cluster = Cluster::new().await;
    let (agent, task) = fake_agent(&cluster, "n1").await;
    let admin = cluster.admin();
    let logs = "/api/v1/namespaces/default/pods/p/log";
    cluster.in_process().post(common::PODS, &common::pod("p")).await;
    assert_eq!(cluster.get(Some(&admin), "h2", logs).await, (200, Bytes::new()), "no node, no log");
    bound_pod(&cluster, "n1", agent).await;
    let (code, body) = cluster.get(Some(&admin), "h2", &format!("{logs}?tailLines=5&follow=true")).await;
    assert_eq!((code, &body[..]), (200, &b"/containerLogs/default/p/c?follow=true&tailLines=5\n"[..]));
    for (query, code, message) in [
        ("container=x", 400, "container x is not valid for pod p"),
        ("previous=true", 400, "previous terminated container \"c\" in pod \"p\" not found"),
        ("tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
    ] {
        let (is, body) = cluster.get(Some(&admin), "http/1.1", &format!("{logs}?{query}")).await;
        let status: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(is, code);
        assert!(status["message"].as_str().unwrap().contains(message), "{status}");
    }
    task.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_that_is_another_node_is_not_believed() {
    let cluster = Cluster::new().await;
    let (agent, task) = fake_agent(&cluster, "n2").await;
    bound_pod(&cluster, "n1", agent).await;
    let (code, body) =
        cluster.get(Some(&cluster.admin()), "h2", "/api/v1/namespaces/default/pods/p/log").await;
    assert_eq!(code, 500);
    assert!(String::from_utf8_lossy(&body).contains("its certificate is not that of system:node:n1"));
    task.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn exec_is_a_pipe_to_the_node_agent() {
    let cluster = Cluster::new().await;
    let (agent, task) = fake_agent(&cluster, "n1").await;
    bound_pod(&cluster, "n1", agent).await;
    let url =
        "/api/v1/namespaces/default/pods/p/exec?command=sh&command=-c&stdin=true&stdout=true&stderr=true";
    let admin = cluster.admin();
    let head = |upgrade: &str| {
        format!(
            "GET {url} HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: {upgrade}\r\nsec-websocket-version: 13\r\nsec-websocket-key: eA==\r\nsec-websocket-protocol: v5.channel.k8s.io\r\nx-stream-protocol-version: v4.channel.k8s.io\r\n\r\n"
        )
    };
    let mut stream = cluster.connect(Some(&admin), "http/1.1").await;
    stream.write_all(head("websocket").as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.contains('|') {
        seen.push(char::from(stream.read_u8().await.unwrap()));
    }
    assert!(seen.starts_with("HTTP/1.1 101"), "{seen}");
    assert!(seen.contains("sec-websocket-protocol: v5.channel.k8s.io"), "{seen}");
    assert!(seen.ends_with("/exec/default/p/c?input=1&output=1&error=1&command=sh&command=-c|"), "{seen}");
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    drop(stream);

    let mut stream = cluster.connect(Some(&admin), "http/1.1").await;
    stream.write_all(head("SPDY/3.1").as_bytes()).await.unwrap();
    let mut seen = String::new();
    while !seen.ends_with(')') {
        seen.push(char::from(stream.read_u8().await.unwrap()));
    }
    assert!(seen.starts_with("HTTP/1.1 500"), "{seen}");
    assert!(seen.ends_with("\r\n\r\ncontainer not found (\"c\")"), "the agent's own words: {seen}");
    let (code, body) = cluster.get(Some(&admin), "h2", url).await;
    assert_eq!(code, 400);
    assert!(String::from_utf8_lossy(&body).contains("Upgrade request required"));
    task.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn large_lists_are_compressed_on_the_wire() {
    let cluster = Cluster::new().await;
    let admin = cluster.in_process();
    let mut map = config_map("a");
    map["data"]["k"] = "x".repeat(200_000).into();
    admin.post(common::MAPS, &map).await;
    let io = TokioIo::new(cluster.connect(Some(&cluster.admin()), "http/1.1").await);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(common::MAPS).header("host", "localhost").header("accept-encoding", "gzip");
    let response = sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let small = response.into_body().collect().await.unwrap().to_bytes();
    assert!(small.len() < 10_000);
    let mut whole = String::new();
    flate2::read::GzDecoder::new(&small[..]).read_to_string(&mut whole).unwrap();
    let list: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(list["items"][0]["data"], map["data"]);
    let (_, plain) = cluster.get(Some(&cluster.admin()), "h2", common::MAPS).await;
    assert_eq!(plain, whole.as_bytes());
    cluster.stop().await;
}

#[tokio::test]
async fn who_connects_and_asks_for_nothing_loses_the_place() {
    let cluster = Cluster::new().await;
    for protocol in ["h2", "http/1.1"] {
        let mut stream = cluster.connect(None, protocol).await;
        // From here on time passes as fast as nothing else happens.
        tokio::time::pause();
        let mut answer = Vec::new();
        let end = cluster.clock.timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        assert!(end.is_some(), "the server waits for ever for {protocol}");
        tokio::time::resume();
    }
    assert_eq!(cluster.get(None, "h2", "/livez").await.0, 200);
    cluster.stop().await;
}

#[tokio::test]
async fn an_agent_that_takes_the_connection_and_says_nothing_is_given_up() {
    let cluster = Cluster::new().await;
    let request = CertificateRequest::kubelet_server("n1", &["127.0.0.1".parse().unwrap()]);
    let credential = cluster.authority.issue(&request, cluster.clock.now()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(credential.certificates().unwrap(), credential.key().unwrap())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    bound_pod(&cluster, "n1", listener.local_addr().unwrap()).await;
    let (heard, asked) = tokio::sync::oneshot::channel();
    let agent = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await.unwrap();
        stream.read_u8().await.unwrap();
        heard.send(()).unwrap();
        std::future::pending::<()>().await;
    });
    let admin = cluster.in_process();
    let logs = tokio::spawn(async move { admin.get("/api/v1/namespaces/default/pods/p/log").await });
    asked.await.unwrap();
    tokio::time::pause();
    let answer = cluster.clock.timeout(Duration::from_secs(60), logs).await.expect("an answer").unwrap();
    assert_eq!(answer.message(500), "Internal error occurred: the kubelet of node \"n1\" does not answer");
    tokio::time::resume();
    let stopped = cluster.clock.clone().timeout(Duration::from_secs(5), cluster.stop()).await;
    assert!(stopped.is_some(), "the server waits for a node agent that is silent");
    agent.abort();
}
