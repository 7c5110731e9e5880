//! The server on loopback, with certificates made here and a scripted runtime.

mod streams;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use coracle_client::LiveCertificate;
use coracle_clock::Clock;
use coracle_clock::watch;
use coracle_cri::{
    AttachRequest, Container, ContainerConfig, ContainerEvent, ContainerEventKind, ContainerFilter,
    ContainerId, ContainerState, ContainerStatus, CriError, CriResult, ExecRequest, ExecSyncResult,
    ImageSpec, LinuxContainerResources, PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxId,
    PodSandboxMetadata, PodSandboxState, PodSandboxStatus, PortStream, RuntimeService, RuntimeStatus,
    StreamSession, TerminalSize, Version,
};
use futures::{SinkExt, StreamExt};
use http::StatusCode;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_util::sync::CancellationToken;

use super::*;

/// A runtime with one container, `a`. Commands: `cat` copies its input and ends with it, `exit N [TEXT]` writes
/// TEXT to stderr and exits, `sizes` writes each size of the terminal, `hang` runs until it is ended.
struct Scripted {
    log_path: PathBuf,
    state: watch::Sender<ContainerState>,
    events: Mutex<Vec<mpsc::Sender<ContainerEvent>>>,
    /// Counts the commands that were ended by their client.
    ended: watch::Sender<usize>,
}

impl Scripted {
    fn stop(&self) {
        self.state.send_replace(ContainerState::Exited);
        for events in self.events.lock().unwrap().iter() {
            let event = ContainerEvent {
                kind: ContainerEventKind::Stopped,
                pod_uid: "u".to_owned(),
                container: Some(ContainerId("a".to_owned())),
            };
            let _ = events.try_send(event);
        }
    }
}

#[async_trait]
impl RuntimeService for Scripted {
    async fn version(&self) -> CriResult<Version> {
        Ok(Version { runtime_name: "coracle".to_owned(), runtime_version: "1".to_owned() })
    }
    async fn status(&self) -> CriResult<RuntimeStatus> {
        unreachable!()
    }
    async fn update_pod_cidr(&self, _: &str) -> CriResult<()> {
        unreachable!()
    }
    async fn run_pod_sandbox(&self, _: &PodSandboxConfig) -> CriResult<PodSandboxId> {
        unreachable!()
    }
    async fn stop_pod_sandbox(&self, _: &PodSandboxId) -> CriResult<()> {
        unreachable!()
    }
    async fn remove_pod_sandbox(&self, _: &PodSandboxId) -> CriResult<()> {
        unreachable!()
    }
    async fn pod_sandbox_status(&self, _: &PodSandboxId) -> CriResult<PodSandboxStatus> {
        unreachable!()
    }
    async fn list_pod_sandboxes(&self, filter: &PodSandboxFilter) -> CriResult<Vec<PodSandbox>> {
        let ours = filter.labels.get("io.kubernetes.pod.uid").is_some_and(|uid| uid == "u");
        let sandbox = |attempt| PodSandbox {
            id: PodSandboxId(format!("sandbox-{attempt}")),
            metadata: PodSandboxMetadata { attempt, ..PodSandboxMetadata::default() },
            state: PodSandboxState::Ready,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            labels: std::collections::BTreeMap::new(),
            annotations: std::collections::BTreeMap::new(),
        };
        Ok(if ours { vec![sandbox(2), sandbox(1)] } else { Vec::new() })
    }
    async fn create_container(
        &self,
        _: &PodSandboxId,
        _: &ContainerConfig,
        _: &PodSandboxConfig,
    ) -> CriResult<ContainerId> {
        unreachable!()
    }
    async fn start_container(&self, _: &ContainerId) -> CriResult<()> {
        unreachable!()
    }
    async fn stop_container(&self, _: &ContainerId, _: Duration) -> CriResult<()> {
        unreachable!()
    }
    async fn remove_container(&self, _: &ContainerId) -> CriResult<()> {
        unreachable!()
    }
    async fn list_containers(&self, _: &ContainerFilter) -> CriResult<Vec<Container>> {
        unreachable!()
    }
    async fn container_status(&self, id: &ContainerId) -> CriResult<ContainerStatus> {
        if id.0 != "a" {
            return Err(CriError::NotFound(format!("no container {id}")));
        }
        Ok(ContainerStatus {
            container: Container {
                id: id.clone(),
                sandbox: PodSandboxId("s".to_owned()),
                name: "app".to_owned(),
                attempt: 0,
                image: ImageSpec::default(),
                image_ref: String::new(),
                state: *self.state.borrow(),
                created_at: jiff::Timestamp::UNIX_EPOCH,
                labels: std::collections::BTreeMap::new(),
                annotations: std::collections::BTreeMap::new(),
            },
            started_at: None,
            finished_at: None,
            exit_code: None,
            reason: String::new(),
            message: String::new(),
            log_path: self.log_path.clone(),
            mounts: Vec::new(),
            user: None,
            pid: None,
            resources: LinuxContainerResources::default(),
        })
    }
    async fn update_container_resources(
        &self,
        _: &ContainerId,
        _: &LinuxContainerResources,
    ) -> CriResult<()> {
        unreachable!()
    }
    async fn reopen_container_log(&self, _: &ContainerId) -> CriResult<()> {
        unreachable!()
    }
    async fn exec_sync(
        &self,
        _: &ContainerId,
        _: &[String],
        _: Option<Duration>,
    ) -> CriResult<ExecSyncResult> {
        unreachable!()
    }
    async fn exec(&self, request: &ExecRequest) -> CriResult<StreamSession> {
        let (stdin, mut from_client) = mpsc::channel::<Bytes>(1);
        let (to_client, stdout) = mpsc::channel::<Bytes>(1);
        let (errors, stderr) = mpsc::channel::<Bytes>(1);
        let (resize, mut sizes) = mpsc::channel::<TerminalSize>(1);
        let (exited, exit) = oneshot::channel();
        let words: Vec<String> = request.command.clone();
        let ended = self.ended.clone();
        let program = async move {
            match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                ["cat"] => {
                    while let Some(data) = from_client.recv().await {
                        if to_client.send(data).await.is_err() {
                            return Err(());
                        }
                    }
                    Ok(0)
                }
                ["exit", code, rest @ ..] => {
                    for text in rest {
                        errors.send(Bytes::copy_from_slice(text.as_bytes())).await.map_err(drop)?;
                    }
                    Ok(code.parse::<i32>().unwrap())
                }
                ["sizes"] => {
                    while let Some(size) = sizes.recv().await {
                        let text = format!("{}x{};", size.width, size.height);
                        to_client.send(text.into()).await.map_err(drop)?;
                    }
                    Ok(0)
                }
                ["hang"] => {
                    to_client.closed().await;
                    Err(())
                }
                ["panic"] => panic!("as asked"),
                other => unreachable!("{other:?}"),
            }
        };
        if request.command == ["missing"] {
            return Err(CriError::Internal("executable file not found in $PATH".to_owned()));
        }
        tokio::spawn(async move {
            match program.await {
                Ok(code) => drop(exited.send(Ok(code))),
                Err(()) => ended.send_modify(|count| *count += 1),
            }
        });
        Ok(StreamSession {
            stdin: request.stdin.then_some(stdin),
            stdout,
            stderr,
            resize: request.tty.then_some(resize),
            exit,
        })
    }
    async fn attach(&self, request: &AttachRequest) -> CriResult<StreamSession> {
        self.begin_attach(request)
    }
    async fn port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        self.begin_port_forward(sandbox, port)
    }
    async fn container_events(&self) -> CriResult<mpsc::Receiver<ContainerEvent>> {
        let (sender, receiver) = mpsc::channel(8);
        self.events.lock().unwrap().push(sender);
        Ok(receiver)
    }
}

struct Pods(Vec<Arc<Pod>>);

impl PodSource for Pods {
    fn pods(&self) -> Vec<Arc<Pod>> {
        assert!(!self.0.is_empty(), "as asked: a panic in a request");
        self.0.clone()
    }
}

struct Authority {
    certificate_pem: String,
    key: KeyPair,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.distinguished_name.push(DnType::CommonName, "test");
        Authority { certificate_pem: params.self_signed(&key).unwrap().pem(), key }
    }

    fn issue(&self, name: &str, group: Option<&str>, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![usage];
        params.subject_alt_names = vec![SanType::IpAddress([127, 0, 0, 1].into())];
        let issuer = Issuer::from_ca_cert_pem(&self.certificate_pem, &self.key).unwrap();
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct Server {
    address: SocketAddr,
    authority: Authority,
    runtime: Arc<Scripted>,
    logs: tempfile::TempDir,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), ServerError>>,
}

const API_SERVER: (&str, Option<&str>) = ("kube-apiserver-kubelet-client", None);

impl Server {
    async fn start() -> Self {
        let status = |name: &str, state: Value, id: &str| {
            json!({"name": name, "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": state, "containerID": id})
        };
        let pod = json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u"},
            "spec": {"containers": [{"name": "app"}, {"name": "new"}, {"name": "gone"}]},
            "status": {"containerStatuses": [
                status("app", json!({"running": {"startedAt": "2026-11-21T12:00:00Z"}}), "coracle://a"),
                status("new", json!({"waiting": {"reason": "ContainerCreating"}}), ""),
                status("gone", json!({"terminated": {"exitCode": 0, "containerID": "coracle://b"}}), "coracle://b"),
            ]},
        });
        Self::with_pods(vec![Arc::new(serde_json::from_value(pod).unwrap())], Duration::from_secs(30)).await
    }

    async fn with_pods(pods: Vec<Arc<Pod>>, header_timeout: Duration) -> Self {
        let authority = Authority::new();
        let (certificate_pem, key_pem) = authority.issue("node", None, ExtendedKeyUsagePurpose::ServerAuth);
        let logs = tempfile::tempdir().unwrap();
        let log_path = logs.path().join("ns_web_u/app/0.log");
        std::fs::create_dir_all(log_path.parent().unwrap()).unwrap();
        std::fs::write(&log_path, "2026-11-21T11:00:00Z stdout F one\n2026-11-21T11:00:01Z stdout F two\n")
            .unwrap();
        let runtime = Arc::new(Scripted {
            log_path,
            state: watch::Sender::new(ContainerState::Running),
            events: Mutex::default(),
            ended: watch::Sender::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = ServerConfig {
            certificate: LiveCertificate::new(&certificate_pem, &key_pem).unwrap(),
            client_ca_pem: authority.certificate_pem.clone(),
            pods_log_dir: logs.path().to_owned(),
            header_timeout,
            shutdown_grace: Duration::from_secs(10),
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(KubeletServer::serve(
            listener,
            config,
            Arc::clone(&runtime) as Arc<dyn RuntimeService>,
            Arc::new(Pods(pods)),
            Clock::system(),
            shutdown.clone(),
        ));
        Server { address, authority, runtime, logs, shutdown, task }
    }

    async fn connect(&self, caller: Option<(&str, Option<&str>)>) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.authority.certificate_pem.as_bytes()).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match caller {
            None => config.with_no_client_auth(),
            Some((name, group)) => {
                let (certificate, key) =
                    self.authority.issue(name, group, ExtendedKeyUsagePurpose::ClientAuth);
                let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(vec![certificate], key).unwrap()
            }
        };
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// One request on a connection of its own; the body as it is on the wire, without chunk sizes.
    async fn request(&self, caller: Option<(&str, Option<&str>)>, method: &str, path: &str) -> (u16, String) {
        let mut stream = self.connect(caller).await;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        parse_answer(&answer)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.request(Some(API_SERVER), "GET", path).await
    }

    async fn exec(&self, query: &str, subprotocol: &str) -> Exec {
        let stream = self.connect(Some(API_SERVER)).await;
        let mut request = format!("ws://node/exec/ns/web/app?{query}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", subprotocol.parse().unwrap());
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let chosen = response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
        Exec { socket, chosen }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        within(self.task).await.unwrap().unwrap();
    }
}

fn parse_answer(answer: &[u8]) -> (u16, String) {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (code, body.to_owned());
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        if size == 0 {
            return (code, whole);
        }
        whole.push_str(&after[..size]);
        rest = &after[size + 2..];
    }
    (code, format!("torn: {whole}"))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    Clock::system().timeout(Duration::from_secs(10), future).await.expect("in time")
}

struct Exec {
    socket: WebSocketStream<TlsStream<TcpStream>>,
    chosen: String,
}

impl Exec {
    async fn send(&mut self, message: &[u8]) {
        self.socket.send(Message::Binary(Bytes::copy_from_slice(message))).await.unwrap();
    }

    /// The next message that is no ping or pong.
    async fn next(&mut self) -> Message {
        loop {
            match within(self.socket.next()).await.unwrap().unwrap() {
                Message::Ping(_) | Message::Pong(_) => {}
                message => return message,
            }
        }
    }

    async fn expect(&mut self, channel: u8, data: &[u8]) {
        let mut expected = vec![channel];
        expected.extend_from_slice(data);
        assert_eq!(self.next().await, Message::Binary(expected.into()));
    }

    /// The result, and that nothing but a normal close comes after it.
    async fn result(mut self) -> Value {
        let Message::Binary(message) = self.next().await else { panic!("no result") };
        assert_eq!(message[0], 3, "{message:?}");
        let Message::Close(Some(frame)) = self.next().await else { panic!("no close") };
        assert_eq!(u16::from(frame.code), 1000);
        serde_json::from_slice(&message[1..]).unwrap()
    }
}

const BOTH: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

#[tokio::test]
async fn callers_are_known_by_their_certificates() {
    let server = Server::start().await;
    let admin = Some(("admin", Some("system:masters")));
    let node = Some(("system:node:n", Some("system:nodes")));
    assert_eq!(server.request(None, "GET", "/healthz").await, (200, "ok".to_owned()));
    assert_eq!(server.request(None, "GET", "/pods").await, (401, "Unauthorized".to_owned()));
    assert_eq!(server.request(Some(API_SERVER), "GET", "/pods").await.0, 200);
    assert_eq!(server.request(admin, "GET", "/pods").await.0, 200);
    let words = "Forbidden (user=system:node:n, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
    assert_eq!(server.request(node, "GET", "/pods").await, (403, words.to_owned()));
    let words = "Forbidden (user=system:node:n, verb=create, resource=nodes, subresource(s)=[proxy])\n";
    assert_eq!(server.request(node, "POST", "/exec/ns/web/app").await, (403, words.to_owned()));
    assert_eq!(server.get("/nothing").await.0, 404);
    assert_eq!(server.request(admin, "DELETE", "/pods").await, (405, "Method Not Allowed".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_ends_the_handshake() {
    let mut server = Server::start().await;
    let own = std::mem::replace(&mut server.authority, Authority::new());
    let (certificate, key) =
        server.authority.issue("x", Some("system:masters"), ExtendedKeyUsagePurpose::ClientAuth);
    server.authority = own;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.authority.certificate_pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let stream = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::IpAddress(server.address.ip().into());
    let refused = async {
        let mut stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"GET /pods HTTP/1.1\r\nHost: node\r\n\r\n").await?;
        stream.read_u8().await
    };
    within(refused).await.unwrap_err();
    server.stop().await;
}

#[tokio::test]
async fn slow_callers_are_cut_off() {
    let server = Server::with_pods(Vec::new(), Duration::from_millis(500)).await;
    let mut silent = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(within(silent.read(&mut [0; 16])).await.unwrap_or(0), 0, "no TLS handshake");
    let mut slow = server.connect(Some(API_SERVER)).await;
    slow.write_all(b"GET /pods HTTP/1.1\r\nHost:").await.unwrap();
    let mut rest = Vec::new();
    let _ = within(slow.read_to_end(&mut rest)).await;
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"), "an unfinished head is not answered");
    server.stop().await;
}

#[tokio::test]
async fn a_panic_is_the_requests_own() {
    let server = Server::with_pods(Vec::new(), Duration::from_secs(30)).await;
    assert_eq!(server.get("/pods").await.0, 500);
    assert_eq!(server.request(None, "GET", "/healthz").await.0, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_pods_are_a_list() {
    let server = Server::start().await;
    let (code, body) = server.get("/pods").await;
    let list: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("PodList"), &json!("v1")));
    assert_eq!(list["items"][0]["metadata"]["name"], "web");
    assert_eq!(list["items"][0].get("kind"), None);
    server.stop().await;
}

#[tokio::test]
async fn logs_are_served_or_refused_in_upstreams_words() {
    let server = Server::start().await;
    let table = [
        ("ns/web/app", 200, "one\ntwo\n"),
        ("ns/web/app?tailLines=1", 200, "two\n"),
        ("ns/web/app?limitBytes=2&timestamps=false", 200, "on"),
        ("ns/web/app?tailLines=-1", 422, r#"{"message": "Invalid request."}"#),
        ("ns/web/app?tailLines=x", 400, r#"{"message": "Unable to decode query."}"#),
        ("ns/web/app?previous=true", 400, r#"previous terminated container "app" in pod "web" not found"#),
        ("ns/web/new", 400, r#"container "new" in pod "web" is waiting to start: ContainerCreating"#),
        ("ns/web/gone", 400, "unable to retrieve container logs for coracle://b"),
        ("ns/web/other", 404, r#"container "other" not found in pod "web""#),
        ("ns/other/app", 404, r#"pod "other" does not exist"#),
        ("other/web/app", 404, r#"pod "web" does not exist"#),
    ];
    for (path, code, text) in table {
        assert_eq!(server.get(&format!("/containerLogs/{path}")).await, (code, text.to_owned()), "{path}");
    }
    assert_eq!(server.request(Some(API_SERVER), "POST", "/containerLogs/ns/web/app").await.0, 405);

    std::fs::remove_file(&server.runtime.log_path).unwrap();
    let (code, text) = server.get("/containerLogs/ns/web/app").await;
    assert_eq!(code, 400);
    assert!(text.starts_with("failed to open log file"), "{text}");
    server.stop().await;
}

/// Reads until `text` has come.
async fn read_until(stream: &mut TlsStream<TcpStream>, text: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(text) {
        let mut buffer = [0; 1024];
        let length = within(stream.read(&mut buffer)).await.unwrap();
        assert_ne!(length, 0, "the end instead of {text:?} after {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    seen
}

#[tokio::test]
async fn a_followed_log_ends_with_its_container_or_the_server() {
    let server = Server::start().await;
    for by_shutdown in [false, true] {
        server.runtime.state.send_replace(ContainerState::Running);
        let mut stream = server.connect(Some(API_SERVER)).await;
        let request = b"GET /containerLogs/ns/web/app?follow=true&tailLines=0 HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        read_until(&mut stream, "200 OK").await;
        let mut log = std::fs::OpenOptions::new().append(true).open(&server.runtime.log_path).unwrap();
        std::io::Write::write_all(&mut log, b"2026-11-21T11:00:02Z stdout F three\n").unwrap();
        read_until(&mut stream, "three\n").await;
        if by_shutdown {
            server.shutdown.cancel();
        } else {
            server.runtime.stop();
        }
        let mut rest = Vec::new();
        within(stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.ends_with(b"0\r\n\r\n"), "{rest:?}");
    }
    drop(server.logs);
    within(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_command_gets_its_input_and_its_end() {
    let server = Server::start().await;
    let mut exec = server.exec("command=cat&input=1&output=1&error=1", BOTH).await;
    assert_eq!(exec.chosen, "v5.channel.k8s.io");
    exec.expect(1, b"").await;
    exec.send(b"\0hello").await;
    exec.expect(1, b"hello").await;
    exec.socket.send(Message::Ping(Bytes::from_static(b"x"))).await.unwrap();
    assert_eq!(within(exec.socket.next()).await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"x")));
    // An empty message is not the end, closing the channel is.
    exec.send(b"\0").await;
    exec.send(b"\x09unknown channel").await;
    exec.send(b"\0again").await;
    exec.expect(1, b"again").await;
    exec.send(&[255, 0]).await;
    assert_eq!(exec.result().await, json!({"metadata": {}, "status": "Success"}));
    server.stop().await;
}

#[tokio::test]
async fn exit_codes_and_failures_are_told_in_upstreams_words() {
    let server = Server::start().await;
    for (subprotocol, chosen) in [(BOTH, "v5.channel.k8s.io"), ("v4.channel.k8s.io", "v4.channel.k8s.io")] {
        let mut exec = server.exec("command=exit&command=3&command=oops&stderr=true", subprotocol).await;
        assert_eq!(exec.chosen, chosen);
        exec.expect(2, b"").await;
        exec.expect(2, b"oops").await;
        let expected = json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: error executing command [exit 3 oops], exit code 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        });
        assert_eq!(exec.result().await, expected);
    }

    let mut exec = server.exec("command=missing&output=1", BOTH).await;
    exec.expect(1, b"").await;
    let status = exec.result().await;
    let words = "error executing command in container: executable file not found in $PATH";
    assert_eq!(status["message"], format!("Internal error occurred: {words}"));
    assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));

    let mut exec = server.exec("command=panic&output=1", BOTH).await;
    exec.expect(1, b"").await;
    assert_eq!(exec.result().await["reason"], "InternalError");
    // Output that nobody asked for is not sent.
    let mut exec = server.exec("command=exit&command=0&command=oops&output=1", BOTH).await;
    exec.expect(1, b"").await;
    assert_eq!(exec.result().await["status"], "Success");
    server.stop().await;
}

#[tokio::test]
async fn a_terminal_is_resized() {
    let server = Server::start().await;
    let mut exec = server.exec("command=sizes&input=1&output=1&error=1&tty=1", "v4.channel.k8s.io").await;
    exec.expect(1, b"").await;
    exec.send(b"\x04{\"Width\":80,\"Height\":24}").await;
    exec.expect(1, b"80x24;").await;
    exec.send(b"\x04nonsense").await;
    // Subprotocol v4 has no way to close a channel.
    exec.send(&[255, 4]).await;
    exec.send(b"\x04{\"Width\":132,\"Height\":50}\n").await;
    exec.expect(1, b"132x50;").await;
    drop(exec);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_its_command() {
    let server = Server::start().await;
    let mut ended = server.runtime.ended.subscribe();
    let mut exec = server.exec("command=hang&input=1&output=1", BOTH).await;
    exec.expect(1, b"").await;
    drop(exec);
    within(ended.wait_for(|count| *count == 1)).await.unwrap();

    let mut exec = server.exec("command=hang&input=1&output=1", BOTH).await;
    exec.expect(1, b"").await;
    exec.socket.close(None).await.unwrap();
    within(ended.wait_for(|count| *count == 2)).await.unwrap();

    let mut exec = server.exec("command=hang&output=1", BOTH).await;
    exec.expect(1, b"").await;
    server.shutdown.cancel();
    let Message::Close(Some(frame)) = exec.next().await else { panic!("no close") };
    assert_eq!(u16::from(frame.code), 1001);
    within(ended.wait_for(|count| *count == 3)).await.unwrap();
    drop(exec);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stalls_the_program_and_loses_nothing() {
    let server = Server::start().await;
    let exec = server.exec("command=cat&input=1&output=1", BOTH).await;
    let (mut sink, mut source) = exec.socket.split();
    let sent = 16_usize << 20;
    let block = Bytes::from([vec![0], vec![b'x'; 64 << 10]].concat());
    let writer = tokio::spawn(async move {
        for _ in 0..sent / (64 << 10) {
            sink.send(Message::Binary(block.clone())).await.unwrap();
        }
        sink.send(Message::Binary(Bytes::from_static(&[255, 0]))).await.unwrap();
        sink
    });
    let mut received = 0;
    loop {
        match within(source.next()).await.unwrap().unwrap() {
            Message::Binary(data) if data[0] == 1 => received += data.len() - 1,
            Message::Binary(data) => {
                assert_eq!(data[0], 3);
                break;
            }
            Message::Ping(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(received, sent);
    drop(within(writer).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn requests_that_cannot_be_upgraded_are_refused() {
    let server = Server::start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let old = format!("{upgrade}Sec-WebSocket-Protocol: base64.channel.k8s.io\r\n");
    let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n";
    let table = [
        ("GET", "ns/web/app?output=1&command=a", "", 400, "Upgrade request required"),
        ("POST", "ns/web/app?output=1&command=a", spdy, 400, "unable to upgrade: SPDY is not supported"),
        (
            "GET",
            "ns/web/app?output=1&command=a",
            &old,
            403,
            "requested protocol(s) are not supported: [base64",
        ),
        ("GET", "ns/web/app?command=a", upgrade, 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("GET", "ns/other/app?output=1&command=a", upgrade, 404, "pod does not exist"),
        ("GET", "ns/web/new?output=1&command=a", upgrade, 500, r#"container not found ("new")"#),
        ("GET", "ns/web/x/app?output=1&command=a", upgrade, 500, r#"container not found ("app")"#),
        ("DELETE", "ns/web/app?output=1&command=a", upgrade, 405, "405: Method Not Allowed"),
    ];
    for (method, path, headers, code, text) in table {
        let mut stream = server.connect(Some(API_SERVER)).await;
        let request = format!("{method} /exec/{path} HTTP/1.1\r\nHost: node\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let seen = read_until(&mut stream, text).await;
        assert!(seen.starts_with(&format!("HTTP/1.1 {code}")), "{path}: {seen}");
    }
    let mut stream = server.connect(Some(API_SERVER)).await;
    let request = format!(
        "GET /exec/ns/web/u/app?output=1&command=hang HTTP/1.1\r\nHost: node\r\n{upgrade}Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let seen = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
    assert!(seen.starts_with(&format!("http/1.1 {}", StatusCode::SWITCHING_PROTOCOLS.as_u16())), "{seen}");
    assert!(seen.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{seen}");
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_broken_frame_is_answered_with_its_code() {
    let server = Server::start().await;
    let mut exec = server.exec("command=hang&output=1", BOTH).await;
    exec.expect(1, b"").await;
    // An unmasked frame from a client is against the protocol.
    exec.socket.get_mut().write_all(&[0x82, 0x01, 0x00]).await.unwrap();
    let Message::Close(Some(frame)) = exec.next().await else { panic!("no close") };
    assert_eq!(frame.code, tungstenite::protocol::frame::coding::CloseCode::Protocol);
    drop(exec);
    server.stop().await;
}
