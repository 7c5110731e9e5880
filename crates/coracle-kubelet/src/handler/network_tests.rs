//! Handlers against real servers on loopback: what is sent, what is understood, what is said when nothing comes of it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use coracle_cri::ContainerId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// A server that does the same with every connection, and its address.
async fn serve<F, Fut>(each: F) -> SocketAddr
where
    F: Fn(TcpStream) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(each(stream));
        }
    });
    address
}

/// A server that reads a request and answers it with these bytes.
async fn answers(bytes: impl Into<Vec<u8>>) -> SocketAddr {
    let bytes: Vec<u8> = bytes.into();
    serve(move |mut stream| {
        let bytes = bytes.clone();
        async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(&bytes).await;
        }
    })
    .await
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

fn page(address: SocketAddr, path: &str) -> HttpGet {
    HttpGet {
        container: ContainerId("c".to_owned()),
        https: false,
        host: address.ip().to_string(),
        port: address.port(),
        path: path.to_owned(),
        headers: vec![
            ("User-Agent".to_owned(), "kube-probe/1.37".to_owned()),
            ("Accept".to_owned(), "*/*".to_owned()),
        ],
        timeout: Some(SECOND),
    }
}

fn network() -> HostNetwork {
    HostNetwork::new(Clock::system())
}

async fn get(request: &HttpGet) -> Result<HttpAnswer, HttpError> {
    network().http_get(request).await
}

/// What a request fails with, its URL and the ports of this run taken out.
async fn failure(request: &HttpGet) -> String {
    let text = get(request).await.unwrap_err().to_string();
    let text = text.strip_prefix(&request.failed("")).unwrap_or(&text);
    text.replace(&request.port.to_string(), "PORT")
}

/// A port on which nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_probe_sends_what_upstream_sends() {
    let (heard, mut requests) = mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let heard = heard.clone();
        async move {
            heard.send(read_head(&mut stream).await).unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let mut request = page(address, "/healthz?full=1");
    assert_eq!(get(&request).await, Ok(HttpAnswer { status: 200, body: b"ok".to_vec() }));
    let head = requests.recv().await.unwrap();
    assert!(head.starts_with("GET /healthz?full=1 HTTP/1.1\r\n"), "{head}");
    for line in
        [&format!("Host: {address}"), "User-Agent: kube-probe/1.37", "Accept: */*", "Connection: close"]
    {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    request.headers = [("host", "example.com"), ("X-A", "1"), ("X-A", "2")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    get(&request).await.unwrap();
    let head = requests.recv().await.unwrap();
    assert!(head.contains("\r\nHost: example.com\r\n") && !head.contains("User-Agent"), "{head}");
    assert!(head.contains("X-A: 1\r\n") && head.contains("X-A: 2\r\n"), "{head}");
}

#[tokio::test]
async fn every_status_is_an_answer() {
    for status in [200, 204, 304, 399, 400, 404, 500, 503] {
        let address = answers(format!("HTTP/1.1 {status} X\r\n\r\n")).await;
        assert_eq!(get(&page(address, "/")).await.unwrap().status, status);
    }
    // Old servers, and those that send their answers in pieces.
    let address = answers("HTTP/1.0 200 OK\r\n\r\nall").await;
    assert_eq!(get(&page(address, "/")).await.unwrap().body, b"all");
    let pieces = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    assert_eq!(get(&page(answers(pieces).await, "/")).await.unwrap().body, b"abcde");
}

#[tokio::test]
async fn failures_read_like_upstreams() {
    let request = page(nobody().await, "/x");
    assert_eq!(failure(&request).await, "dial tcp 127.0.0.1:PORT: connect: connection refused");
    let wordless = serve(|mut stream| async move {
        read_head(&mut stream).await;
    });
    assert_eq!(failure(&page(wordless.await, "/")).await, "EOF");
    let text = failure(&page(answers("SSH-2.0-x\r\n").await, "/")).await;
    assert_eq!(text, "net/http: HTTP/1.x transport connection broken: malformed HTTP response \"SSH-2.0-x\"");
    let reset = serve(|mut stream| async move {
        read_head(&mut stream).await;
        rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).unwrap();
    });
    let text = failure(&page(reset.await, "/")).await;
    assert!(
        text.starts_with("read tcp 127.0.0.1:") && text.ends_with("read: connection reset by peer"),
        "{text}"
    );
    let mut named = page(nobody().await, "/");
    named.host = "no-such-name.invalid".to_owned();
    named.timeout = Some(10 * SECOND);
    assert_eq!(failure(&named).await, "dial tcp: lookup no-such-name.invalid: no such host");
    let mut wrong = page(nobody().await, "/");
    wrong.headers = vec![("X-A".to_owned(), "a\nb".to_owned())];
    assert_eq!(failure(&wrong).await, "net/http: invalid header field value for \"X-A\"");
}

#[tokio::test]
async fn an_answer_that_does_not_come_in_time_is_given_up() {
    let silent = serve(|mut stream| async move {
        read_head(&mut stream).await;
        std::future::pending::<()>().await;
    });
    let mut request = page(silent.await, "/");
    request.timeout = Some(SECOND / 10);
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(failure(&request).await, late);
    // Drop by drop, for ever: in the head, and in the body.
    let drips = serve(|mut stream| async move {
        read_head(&mut stream).await;
        while stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await.is_ok() {
            tokio::task::yield_now().await;
        }
    });
    let mut request = page(drips.await, "/");
    request.timeout = Some(SECOND);
    assert!(get(&request).await.is_err());
    let stalls = serve(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
        std::future::pending::<()>().await;
    });
    let mut request = page(stalls.await, "/");
    request.timeout = Some(SECOND / 10);
    let late = "context deadline exceeded (Client.Timeout or context cancellation while reading body)";
    assert_eq!(get(&request).await, Err(HttpError::Unreadable(late.to_owned())));
    let cut = answers("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    assert_eq!(get(&page(cut, "/")).await, Err(HttpError::Unreadable("unexpected EOF".to_owned())));
}

#[tokio::test]
async fn a_flood_is_read_no_further_than_anybody_is_shown() {
    let sent: &'static AtomicUsize = Box::leak(Box::default());
    let flood = serve(move |mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while stream.write_all(&[b'x'; 65536]).await.is_ok() {
            sent.fetch_add(65536, Ordering::Relaxed);
        }
    })
    .await;
    let answer = get(&page(flood, "/")).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (200, 10 * 1024));
    // What the sockets of both sides hold is all that can be on its way.
    assert!(sent.load(Ordering::Relaxed) < 32 << 20);
    let head = answers(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(8 << 20))).await;
    assert!(failure(&page(head, "/")).await.contains("server response headers are too long"));
}

/// A server that redirects by its path: `/to?URL` to the URL, and all else is `ok`.
async fn redirects() -> SocketAddr {
    serve(|mut stream| async move {
        let head = read_head(&mut stream).await;
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let answer = match path.strip_prefix("/to?") {
            Some(location) => {
                format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 5\r\n\r\nmoved")
            }
            None => format!("HTTP/1.1 200 OK\r\n\r\n{head}"),
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn redirects_on_the_host_are_followed_and_others_are_left() {
    let address = redirects().await;
    let other = redirects().await;
    let answer = get(&page(address, "/to?/healthz")).await.unwrap();
    let head = String::from_utf8(answer.body).unwrap();
    assert!(answer.status == 200 && head.starts_with("GET /healthz "), "{head}");
    assert!(head.contains(&format!("Referer: http://{address}/to?/healthz\r\n")), "{head}");
    // Another port is the same host.
    let answer = get(&page(address, &format!("/to?http://{other}/x"))).await.unwrap();
    assert_eq!(answer.status, 200);
    let elsewhere = get(&page(address, "/to?http://192.0.2.1/x")).await.unwrap();
    assert_eq!(elsewhere, HttpAnswer { status: 302, body: b"moved".to_vec() });
    let nowhere = get(&page(address, "/to?")).await.unwrap();
    assert_eq!(nowhere.status, 302);
    // A host that was asked for by name stays with redirects that name none.
    let mut named = page(address, "/to?/healthz");
    named.headers.push(("Host".to_owned(), "example.com".to_owned()));
    let head = String::from_utf8(get(&named).await.unwrap().body).unwrap();
    assert!(head.contains("Host: example.com\r\n"), "{head}");
}

#[tokio::test]
async fn nobody_is_sent_around_for_ever() {
    let turns: &'static AtomicUsize = Box::leak(Box::default());
    let address = serve(move |mut stream| async move {
        read_head(&mut stream).await;
        turns.fetch_add(1, Ordering::Relaxed);
        stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n").await.unwrap();
    })
    .await;
    let text = get(&page(address, "/")).await.unwrap_err().to_string();
    assert_eq!(text, "Get \"/again\": stopped after 10 redirects");
    assert_eq!(turns.load(Ordering::Relaxed), 10);
}

/// A server with a certificate of its own making, that speaks these protocols.
async fn tls_server(protocols: &[&[u8]]) -> SocketAddr {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["elsewhere".to_owned()]).unwrap().self_signed(&key).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    serve(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let service = hyper::service::service_fn(
                |request: http_types::Request<hyper::body::Incoming>| async move {
                    let text = format!("{:?} {}", request.version(), request.uri().path());
                    Ok::<_, std::convert::Infallible>(http_types::Response::new(
                        http_body_util::Full::<Bytes>::from(text),
                    ))
                },
            );
            let server = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            let _ = server.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
        }
    })
    .await
}

use ::http as http_types;

#[tokio::test]
async fn https_takes_any_certificate_and_both_versions_of_http() {
    for (protocols, version) in
        [(&[&b"http/1.1"[..]][..], "HTTP/1.1"), (&[&b"h2"[..], b"http/1.1"], "HTTP/2.0"), (&[], "HTTP/1.1")]
    {
        let mut request = page(tls_server(protocols).await, "/x");
        request.https = true;
        request.timeout = Some(10 * SECOND);
        let answer = get(&request).await.unwrap();
        let body = String::from_utf8(answer.body).unwrap();
        assert_eq!((answer.status, body), (200, format!("{version} /x")));
    }
}

#[tokio::test]
async fn a_server_without_tls_is_found_out() {
    let mut request = page(answers("x").await, "/");
    request.https = true;
    // A server of HTTP that was greeted in TLS answers so.
    let plain = serve(|mut stream| async move {
        let mut hello = [0; 1024];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n").await;
        let _ = stream.read(&mut hello).await;
    });
    request.port = plain.await.port();
    let text = request.failed("http: server gave HTTP response to HTTPS client");
    assert_eq!(get(&request).await, Err(HttpError::PlainHttp(text)));
    let garbage = serve(|mut stream| async move {
        let mut hello = [0; 1024];
        let _ = stream.read(&mut hello).await;
        let _ = stream.write_all(b"\x00\x01\x02\x03\x04\x05\x06\x07\x08").await;
        let _ = stream.read(&mut hello).await;
    });
    request.port = garbage.await.port();
    assert_eq!(failure(&request).await, "tls: first record does not look like a TLS handshake");
}

#[tokio::test]
async fn a_connection_is_enough_for_tcp() {
    let connect = |address: SocketAddr| TcpConnect {
        container: ContainerId("c".to_owned()),
        host: address.ip().to_string(),
        port: address.port(),
        timeout: SECOND,
    };
    let (closed, mut closes) = mpsc::unbounded_channel();
    let address = serve(move |mut stream| {
        let closed = closed.clone();
        async move {
            closed.send(stream.read(&mut [0; 1]).await.map_err(|why| why.kind())).unwrap();
        }
    })
    .await;
    assert_eq!(network().tcp_connect(&connect(address)).await, Ok(()));
    // The other side reads an end, and not an error.
    assert_eq!(closes.recv().await.unwrap(), Ok(0));
    let nobody = nobody().await;
    let text = format!("dial tcp {nobody}: connect: connection refused");
    assert_eq!(network().tcp_connect(&connect(nobody)).await, Err(text));
}

#[tokio::test]
async fn a_probe_leaves_no_socket_behind() {
    let address = answers("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    for _ in 0..50 {
        get(&page(address, "/")).await.unwrap();
        let connect = TcpConnect {
            container: ContainerId("c".to_owned()),
            host: address.ip().to_string(),
            port: address.port(),
            timeout: SECOND,
        };
        network().tcp_connect(&connect).await.unwrap();
    }
    let port = format!(":{:04X}", address.port());
    let left = || {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let waiting = table.lines().filter(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            // Remote end, and the state of those that wait after their end.
            fields.len() > 3 && fields[2].ends_with(&port) && fields[3] == "06"
        });
        waiting.count()
    };
    assert_eq!(left(), 0);
}

/// A health service that answers with these frames and outcomes.
async fn grpc_server(message: &'static [u8], outcome: &'static str) -> SocketAddr {
    serve(move |stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            let head = http_types::Response::builder().header("content-type", "application/grpc");
            let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
            body.send_data(Bytes::from_static(message), false).unwrap();
            let mut trailers = http_types::HeaderMap::new();
            trailers.insert("grpc-status", outcome.parse().unwrap());
            trailers.insert("grpc-message", "not%20here".parse().unwrap());
            body.send_trailers(trailers).unwrap();
        }
    })
    .await
}

async fn health(address: SocketAddr, timeout: Duration) -> Result<(), String> {
    let request = GrpcHealth {
        container: ContainerId("c".to_owned()),
        host: address.ip().to_string(),
        port: address.port(),
        service: "s".to_owned(),
        timeout,
    };
    let done = network().grpc_health(&request).await;
    done.map_err(|text| text.replace(&address.port().to_string(), "PORT"))
}

#[tokio::test]
async fn grpc_health_is_understood() {
    let long = 10 * SECOND;
    assert_eq!(health(grpc_server(&[0, 0, 0, 0, 2, 8, 1], "0").await, long).await, Ok(()));
    for (message, outcome, text) in [
        (&[0, 0, 0, 0, 2, 8, 2][..], "0", "service unhealthy (responded with \"NOT_SERVING\")"),
        (&[0, 0, 0, 0, 0], "0", "service unhealthy (responded with \"UNKNOWN\")"),
        (&[], "5", "error: health rpc probe failed: rpc error: code = NotFound desc = not here"),
        (
            &[],
            "12",
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): not here",
        ),
        (
            &[0, 0, 0, 0, 9, 8, 2],
            "0",
            "error: health rpc probe failed: rpc error: code = Internal desc = grpc: failed to unmarshal the received message",
        ),
    ] {
        assert_eq!(health(grpc_server(message, outcome).await, long).await, Err(text.to_owned()));
    }
}

#[tokio::test]
async fn grpc_says_whether_the_connection_or_the_answer_is_late() {
    let connecting =
        "timeout: failed to connect service \"127.0.0.1:PORT\" within 200ms: context deadline exceeded";
    let short = Duration::from_millis(200);
    assert_eq!(health(nobody().await, short).await, Err(connecting.to_owned()));
    let silent = serve(|stream| async move {
        let _stream = stream;
        std::future::pending::<()>().await;
    });
    assert_eq!(health(silent.await, short).await, Err(connecting.to_owned()));
    let garbage = serve(|mut stream| async move {
        let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n").await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    assert_eq!(health(garbage.await, short).await, Err(connecting.to_owned()));
    let mute = serve(|stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let _kept = connection.accept().await;
        let _ = connection.accept().await;
    });
    let answering = "timeout: health rpc did not complete within 200ms";
    assert_eq!(health(mute.await, short).await, Err(answering.to_owned()));
}

#[tokio::test]
async fn a_grpc_answer_without_end_is_cut() {
    let flood = serve(|stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            let mut body = respond.send_response(http_types::Response::new(()), false).unwrap();
            tokio::spawn(async move {
                while body.send_data(Bytes::from_static(&[0; 8192]), false).is_ok() {
                    Clock::system().sleep(Duration::from_millis(1)).await;
                }
            });
        }
    });
    let text = health(flood.await, 10 * SECOND).await.unwrap_err();
    assert!(text.contains("code = ResourceExhausted"), "{text}");
}

/// A socket that listens and takes nobody: once its queue is full, further requests to connect are not answered.
#[tokio::test]
async fn an_address_that_swallows_connections_times_out() {
    use std::os::fd::AsFd as _;
    let socket =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(socket.as_fd(), &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(socket.as_fd(), 0).unwrap();
    let address: SocketAddr = rustix::net::getsockname(socket.as_fd()).unwrap().try_into().unwrap();
    let mut waiting = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(SECOND / 4, TcpStream::connect(address)).await {
        waiting.push(stream);
        assert!(waiting.len() < 100, "the queue is never full");
    }
    let request = TcpConnect {
        container: ContainerId("c".to_owned()),
        host: address.ip().to_string(),
        port: address.port(),
        timeout: SECOND / 4,
    };
    let expected = format!("dial tcp {address}: i/o timeout");
    assert_eq!(network().tcp_connect(&request).await, Err(expected));
}
