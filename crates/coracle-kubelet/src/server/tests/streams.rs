//! Attaching, and connections to ports over both transports.

use coracle_cri::{AttachRequest, PortStream};

use super::*;
use crate::server::forward::testing::{Client, Heard, Said};

impl Scripted {
    /// What is typed comes back, and its end is the end.
    pub(super) fn begin_attach(&self, request: &AttachRequest) -> CriResult<StreamSession> {
        assert_eq!(request.container.0, "a");
        let (stdin, mut typed) = mpsc::channel::<Bytes>(1);
        let (to_client, stdout) = mpsc::channel::<Bytes>(1);
        let (_, stderr) = mpsc::channel::<Bytes>(1);
        let (exited, exit) = oneshot::channel();
        let ended = self.ended.clone();
        tokio::spawn(async move {
            while let Some(data) = typed.recv().await {
                if data == "cut" {
                    let why = "what the container writes was not read fast enough".to_owned();
                    return drop(exited.send(Err(CriError::Internal(why))));
                }
                if to_client.send(data).await.is_err() {
                    return ended.send_modify(|count| *count += 1);
                }
            }
            if exited.send(Ok(0)).is_err() {
                ended.send_modify(|count| *count += 1);
            }
        });
        Ok(StreamSession { stdin: request.stdin.then_some(stdin), stdout, stderr, resize: None, exit })
    }

    /// Port 80 sends back what comes, 81 refuses, 82 says something and closes, 83 takes nothing.
    pub(super) fn begin_port_forward(&self, sandbox: &PodSandboxId, port: u16) -> CriResult<PortStream> {
        assert_eq!(sandbox.0, "sandbox-2", "the newest");
        let (near, mut far) = tokio::io::duplex(1024);
        match port {
            80 => drop(tokio::spawn(async move {
                let (mut read, mut write) = tokio::io::split(far);
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.shutdown().await.unwrap();
            })),
            82 => drop(tokio::spawn(async move {
                far.write_all(b"bye").await.unwrap();
            })),
            83 => drop(tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(far);
            })),
            _ => {
                return Err(CriError::Internal(format!("failed to connect to localhost:{port}: refused")));
            }
        }
        Ok(Box::new(near))
    }
}

impl Server {
    async fn attach(&self, query: &str) -> Exec {
        let stream = self.connect(Some(API_SERVER)).await;
        let mut request = format!("ws://node/attach/ns/web/app?{query}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", BOTH.parse().unwrap());
        let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
        let chosen = response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
        Exec { socket, chosen }
    }

    /// A client that forwards ports, in a WebSocket or on the bare connection.
    async fn forward(&self, tunnelled: bool) -> Forward {
        let mut stream = self.connect(Some(API_SERVER)).await;
        if tunnelled {
            let mut request = "ws://node/portForward/ns/web".into_client_request().unwrap();
            let protocol = "SPDY/3.1+portforward.k8s.io";
            request.headers_mut().insert("sec-websocket-protocol", protocol.parse().unwrap());
            let (socket, response) = tokio_tungstenite::client_async(request, stream).await.unwrap();
            assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
            return Forward { wire: Wire::Tunnel(Box::new(socket)), client: Client::default() };
        }
        let request = "POST /portForward/ns/web HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: \
                       SPDY/3.1\r\nX-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut stream, "\r\n\r\n").await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101"), "{answer}");
        assert!(answer.contains("upgrade: spdy/3.1"), "{answer}");
        assert!(answer.contains("x-stream-protocol-version: portforward.k8s.io"), "{answer}");
        Forward { wire: Wire::Bare(Box::new(stream)), client: Client::default() }
    }
}

enum Wire {
    Tunnel(Box<WebSocketStream<TlsStream<TcpStream>>>),
    Bare(Box<TlsStream<TcpStream>>),
}

struct Forward {
    wire: Wire,
    client: Client,
}

impl Forward {
    async fn say(&mut self, said: Said<'_>) {
        let bytes = self.client.say(said);
        match &mut self.wire {
            Wire::Tunnel(socket) => socket.send(Message::Binary(bytes.into())).await.unwrap(),
            Wire::Bare(stream) => stream.write_all(&bytes).await.unwrap(),
        }
    }

    /// The next frame; `None` at the end.
    async fn hear(&mut self) -> Option<Heard> {
        loop {
            if let Some(heard) = self.client.hear() {
                return Some(heard);
            }
            let bytes = match &mut self.wire {
                Wire::Tunnel(socket) => match within(socket.next()).await?.unwrap() {
                    Message::Binary(data) => data,
                    Message::Close(_) => return None,
                    _ => continue,
                },
                Wire::Bare(stream) => {
                    let mut buffer = vec![0; 4096];
                    let length = within(stream.read(&mut buffer)).await.unwrap_or(0);
                    if length == 0 {
                        return None;
                    }
                    buffer.truncate(length);
                    buffer.into()
                }
            };
            self.client.feed(&bytes);
        }
    }

    /// Opens a pair of streams for a port, the error stream with the lower number.
    async fn open(&mut self, first: u32, port: &str) {
        let request = first.to_string();
        for (stream, kind) in [(first, "error"), (first + 2, "data")] {
            let headers = [("port", port), ("requestid", &*request), ("streamtype", kind)];
            self.say(Said::Open { stream, headers: &headers }).await;
            assert_eq!(self.hear().await, Some(Heard::Reply { stream }));
        }
        self.say(Said::Data { stream: first, data: b"", fin: true }).await;
    }

    /// Everything of these streams up to their ends.
    async fn ends(&mut self, streams: [u32; 2]) -> [Vec<u8>; 2] {
        let mut all = [Vec::new(), Vec::new()];
        let mut open = streams.to_vec();
        while !open.is_empty() {
            let Some(Heard::Data { stream, data, fin }) = self.hear().await else { panic!("no data") };
            let at = streams.iter().position(|known| *known == stream).unwrap();
            all[at].extend_from_slice(&data);
            if fin {
                open.retain(|known| *known != stream);
            }
        }
        all
    }
}

#[tokio::test]
async fn who_attaches_types_sees_and_is_told_of_the_end() {
    let server = Server::start().await;
    let mut attached = server.attach("input=1&output=1&error=1&tty=1").await;
    assert_eq!(attached.chosen, "v5.channel.k8s.io");
    attached.expect(1, b"").await;
    attached.send(b"\0hello").await;
    attached.expect(1, b"hello").await;
    attached.send(&[255, 0]).await;
    assert_eq!(attached.result().await, json!({"metadata": {}, "status": "Success"}));

    let mut attached = server.attach("input=1&output=1").await;
    attached.expect(1, b"").await;
    attached.send(b"\0cut").await;
    let status = attached.result().await;
    let words = "error attaching to container: what the container writes was not read fast enough";
    assert_eq!(status["message"], format!("Internal error occurred: {words}"));

    // Leaving detaches.
    let mut ended = server.runtime.ended.subscribe();
    let mut attached = server.attach("input=1&output=1").await;
    attached.expect(1, b"").await;
    drop(attached);
    within(ended.wait_for(|count| *count == 1)).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn what_cannot_be_attached_to_is_refused_in_upstreams_words() {
    let server = Server::start().await;
    let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let table = [
        ("ns/web/app", 400, "you must specify at least 1 of stdin, stdout, stderr"),
        ("ns/other/app?output=1", 404, "pod does not exist"),
        ("ns/web/new?output=1", 500, "container new not found in pod web_ns"),
        ("ns/web/x/app?output=1", 500, "container app not found in pod web_ns"),
        ("ns/web/app?output=1", 403, "requested protocol(s) are not supported: []"),
    ];
    let refused = async |path: &str| {
        let mut stream = server.connect(Some(API_SERVER)).await;
        let request = format!("GET /{path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n{upgrade}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The connection is closed under TLS, which is as good as an end here.
        let _ = within(stream.read_to_end(&mut answer)).await;
        parse_answer(&answer)
    };
    for (path, code, text) in table {
        let (found, said) = refused(&format!("attach/{path}")).await;
        assert!(found == code && said.contains(text), "{path}: {found} {said}");
    }
    server.runtime.stop();
    let said = refused("attach/ns/web/app?output=1").await;
    assert_eq!(said, (500, "container is in CONTAINER_EXITED state".to_owned()));

    let table = [
        ("ns/other", 404, "pod does not exist"),
        ("ns/web/x", 500, "pod not found (\"web_ns\")"),
        (
            "ns/web",
            403,
            "requested protocol(s) are not supported: []; supports [SPDY/3.1+portforward.k8s.io v4.channel.k8s.io]",
        ),
    ];
    for (path, code, text) in table {
        assert_eq!(refused(&format!("portForward/{path}")).await, (code, text.to_owned()), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_port_is_spoken_to_over_both_transports() {
    let server = Server::start().await;
    for tunnelled in [true, false] {
        let mut client = server.forward(tunnelled).await;
        client.open(1, "80").await;
        client.say(Said::Data { stream: 3, data: b"hello", fin: false }).await;
        assert_eq!(client.hear().await, Some(Heard::Data { stream: 3, data: b"hello".to_vec(), fin: false }));
        client.say(Said::Ping { id: 1 }).await;
        assert_eq!(client.hear().await, Some(Heard::Ping { id: 1 }));
        // Another beside it.
        client.open(5, "80").await;
        client.say(Said::Data { stream: 7, data: b"other", fin: true }).await;
        assert_eq!(client.ends([5, 7]).await, [b"".to_vec(), b"other".to_vec()]);
        client.say(Said::Data { stream: 3, data: b", all", fin: true }).await;
        assert_eq!(client.ends([1, 3]).await, [b"".to_vec(), b", all".to_vec()]);
        // The Pod's side may be the first to end.
        client.open(9, "82").await;
        assert_eq!(client.ends([9, 11]).await, [b"".to_vec(), b"bye".to_vec()]);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_port_that_refuses_is_told_on_the_error_stream() {
    let server = Server::start().await;
    let mut client = server.forward(true).await;
    client.open(1, "81").await;
    let words = "error forwarding port 81 to pod sandbox-2, uid : failed to connect to localhost:81: refused";
    assert_eq!(client.ends([1, 3]).await, [words.as_bytes().to_vec(), Vec::new()]);
    // And the others go on.
    client.open(5, "82").await;
    assert_eq!(client.ends([5, 7]).await[1], b"bye");
    // What is no stream for a port is broken off.
    client.say(Said::Open { stream: 9, headers: &[("port", "80"), ("streamtype", "x")] }).await;
    assert_eq!(client.hear().await, Some(Heard::Reset { stream: 9, why: 5 }));
    client.say(Said::Open { stream: 11, headers: &[("streamtype", "data")] }).await;
    assert_eq!(client.hear().await, Some(Heard::Reset { stream: 11, why: 5 }));
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_broken_off_ends_its_connection_alone() {
    let server = Server::start().await;
    let mut client = server.forward(true).await;
    client.open(1, "83").await;
    client.open(5, "80").await;
    client.say(Said::Reset { stream: 3 }).await;
    assert_eq!(client.ends([1, 3]).await, [b"".to_vec(), b"".to_vec()]);
    client.say(Said::Data { stream: 7, data: b"still", fin: true }).await;
    assert_eq!(client.ends([5, 7]).await[1], b"still");
    server.stop().await;
}

#[tokio::test]
async fn a_pod_that_does_not_read_stalls_its_client_with_bounded_memory() {
    let server = Server::start().await;
    let mut client = server.forward(false).await;
    client.open(1, "83").await;
    let flood = async {
        loop {
            client.say(Said::Data { stream: 3, data: &[b'x'; 65536], fin: false }).await;
        }
    };
    assert_eq!(Clock::system().timeout(Duration::from_millis(500), flood).await, None);
    // The server ends all the same.
    server.stop().await;
}

#[tokio::test]
async fn much_goes_there_and_back() {
    let server = Server::start().await;
    for tunnelled in [true, false] {
        let mut client = server.forward(tunnelled).await;
        client.open(1, "80").await;
        let (block, mut back) = (vec![b'x'; 50_000], 0);
        for turn in 1..=100 {
            client.say(Said::Data { stream: 3, data: &block, fin: turn == 100 }).await;
            // What comes back is read on the way: there is little room in between.
            while back + 100_000 < turn * block.len() {
                let Some(Heard::Data { stream: 3, data, .. }) = client.hear().await else {
                    panic!("no data")
                };
                back += data.len();
            }
        }
        let [errors, rest] = client.ends([1, 3]).await;
        assert_eq!((errors, back + rest.len()), (Vec::new(), 5_000_000));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_speak_spdy_is_left() {
    let server = Server::start().await;
    for (tunnelled, nonsense) in
        [(true, &b"GET / HTTP/1.1\r\n\r\n"[..]), (false, &[0x80, 2, 0, 1, 0, 0, 0, 0])]
    {
        let mut client = server.forward(tunnelled).await;
        client.say(Said::Raw(nonsense)).await;
        // A frame of data for a stream that nobody knows is none; what is no control frame of this version is the end.
        if tunnelled {
            client.say(Said::Ping { id: 3 }).await;
        } else {
            assert_eq!(client.hear().await, None);
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn ports_are_forwarded_over_channels_too() {
    let server = Server::start().await;
    let connect = async |query: &str| {
        let stream = server.connect(Some(API_SERVER)).await;
        let mut request = format!("ws://node/portForward/ns/web?{query}").into_client_request().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", BOTH.parse().unwrap());
        tokio_tungstenite::client_async(request, stream).await.map(|(socket, response)| {
            let chosen = response.headers()["sec-websocket-protocol"].to_str().unwrap().to_owned();
            Exec { socket, chosen }
        })
    };
    let mut client = connect("port=80&port=82&port=81").await.unwrap();
    assert_eq!(client.chosen, "v4.channel.k8s.io");
    for (channel, port) in [(0, 80u16), (1, 80), (2, 82), (3, 82), (4, 81), (5, 81)] {
        client.expect(channel, &port.to_le_bytes()).await;
    }
    client.send(b"\0hello").await;
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let Message::Binary(message) = client.next().await else { panic!("no data") };
        heard.push(String::from_utf8_lossy(&message).into_owned());
    }
    heard.sort();
    let refused =
        "error forwarding port 81 to pod sandbox-2, uid : failed to connect to localhost:81: refused";
    assert_eq!(heard, ["\0hello", "\u{2}bye", &format!("\u{5}{refused}")]);
    drop(client);
    // The end of the last connection is the end.
    let mut client = connect("ports=82").await.unwrap();
    client.expect(0, &82u16.to_le_bytes()).await;
    client.expect(1, &82u16.to_le_bytes()).await;
    client.expect(0, b"bye").await;
    assert!(matches!(client.next().await, Message::Close(_)));
    assert!(connect("x=1").await.is_err());
    server.stop().await;
}
