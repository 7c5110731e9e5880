//! Clients that are slow, greedy or mean: each is bounded, and others are served meanwhile.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::socket::Cluster;
use common::{MAPS, World, config_map};
use coracle_apiserver::Limits;
use coracle_apiserver::auth::{SYSTEM_MASTERS, UserInfo};
use futures::stream;
use http::Request;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tower::Service;

/// Limits that a test can wait for, beside one that it never reaches.
fn limits() -> Limits {
    let never = Duration::from_secs(300);
    Limits { handshake: never, head: never, stuck: never, connections: 1000 }
}

const SOON: Duration = Duration::from_millis(300);

/// Reads until the server ends the connection, and returns what it said; it must end.
async fn end(cluster: &Cluster, stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut said = Vec::new();
    // A connection that is cut is an end as well.
    let ended = cluster.clock.timeout(Duration::from_secs(30), stream.read_to_end(&mut said)).await;
    assert!(ended.is_some(), "the server keeps the connection: {}", String::from_utf8_lossy(&said));
    said
}

/// Sends a byte every few milliseconds until the server hangs up.
async fn drip(cluster: &Cluster, stream: impl AsyncRead + AsyncWrite + Unpin, head: &[u8]) -> Vec<u8> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let (clock, head) = (&cluster.clock, head.to_vec());
    let dripping = async {
        for byte in head.iter().chain(std::iter::repeat(&b'x')) {
            if writing.write_all(&[*byte]).await.is_err() || writing.flush().await.is_err() {
                break;
            }
            clock.sleep(Duration::from_millis(10)).await;
        }
        std::future::pending::<()>().await;
    };
    coracle_clock::select! {
        said = end(cluster, &mut reading) => said,
        () = dripping => unreachable!(),
    }
}

async fn served(cluster: &Cluster) {
    let answer = cluster.clock.timeout(Duration::from_secs(20), cluster.get(None, "h2", "/livez")).await;
    assert_eq!(answer.expect("somebody else is served").0, 200);
}

async fn metric(cluster: &Cluster, name: &str) -> u64 {
    let text = cluster.in_process().get("/metrics").await.bytes;
    let text = String::from_utf8(text.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until there are no more connections than this.
async fn connections(cluster: &Cluster, most: u64) {
    let fewer = async {
        while metric(cluster, "coracle_connections").await > most {
            cluster.clock.sleep(Duration::from_millis(10)).await;
        }
    };
    cluster.clock.timeout(Duration::from_secs(30), fewer).await.expect("connections end");
}

/// Objects that are no small answer.
async fn fill(cluster: &Cluster) {
    let admin = cluster.in_process();
    for i in 0..12 {
        let mut map = config_map(&format!("large{i}"));
        map["data"]["k"] = "x".repeat(900_000).into();
        admin.post(MAPS, &map).await.expect(201);
    }
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_not_waited_for() {
    let cluster = Cluster::limited(Limits { head: SOON, ..limits() }).await;
    let stream = cluster.connect(None, "http/1.1").await;
    let said = drip(&cluster, stream, b"GET /livez HTTP/1.1\r\nhost: localhost\r\nlong: ").await;
    assert!(!said.starts_with(b"HTTP/1.1 200"));
    // A connection that was served once and then drips is treated alike.
    let mut stream = cluster.connect(None, "http/1.1").await;
    stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), b'H');
    drip(&cluster, stream, b"GET /").await;
    let mut head = h2::PREFACE.to_vec();
    head.extend(h2::frame(h2::SETTINGS, 0, 0, &[]));
    // A frame that promises more than comes.
    head.extend([0, 0x3f, 0xff, h2::HEADERS, 0, 0, 0, 0, 1]);
    drip(&cluster, cluster.connect(None, "h2").await, &head).await;
    served(&cluster).await;
    connections(&cluster, 0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_ended() {
    let cluster = Cluster::limited(Limits { handshake: SOON, ..limits() }).await;
    let mut silent = TcpStream::connect(cluster.address).await.unwrap();
    assert!(end(&cluster, &mut silent).await.is_empty());
    // A record of a handshake that comes byte by byte.
    let stream = TcpStream::connect(cluster.address).await.unwrap();
    drip(&cluster, stream, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    served(&cluster).await;
    connections(&cluster, 0).await;
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_byte_by_byte_is_not_waited_for() {
    let world = World::new().await;
    let mut service = world.server.in_process(UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS]));
    let clock = world.clock.clone();
    let begin = world.clock.elapsed();
    let drops = stream::unfold((), move |()| {
        let clock = clock.clone();
        async move {
            clock.sleep(Duration::from_secs(1)).await;
            Some((Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b" "))), ()))
        }
    });
    let request = Request::post(MAPS).body(StreamBody::new(Box::pin(drops))).unwrap();
    let response = service.call(request).await.unwrap();
    assert_eq!(response.status(), 504);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(status["message"], "Timeout: the request body did not arrive in time");
    assert_eq!(world.clock.elapsed() - begin, Duration::from_secs(60));
}

#[tokio::test]
async fn who_does_not_read_its_answer_loses_the_connection_but_a_watch_may_rest() {
    let cluster = Cluster::limited(Limits { stuck: SOON, ..limits() }).await;
    fill(&cluster).await;
    let admin = cluster.admin();
    let get = |url: &str| format!("GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut watch = cluster.connect(Some(&admin), "http/1.1").await;
    watch.write_all(get(&format!("{MAPS}?watch=1")).as_bytes()).await.unwrap();
    let mut over_h2 = h2::open(&cluster, Some(&admin), &[]).await;
    over_h2.write_all(&h2::get(1, &format!("{MAPS}?watch=1"))).await.unwrap();
    assert_eq!(watch.read_u8().await.unwrap(), b'H');

    let mut never = cluster.connect(Some(&admin), "http/1.1").await;
    never.write_all(get(MAPS).as_bytes()).await.unwrap();
    // A window of one byte, which is never opened again, and 100 answers that want to go through.
    let mut tiny = h2::open(&cluster, Some(&admin), &[(h2::INITIAL_WINDOW, 1)]).await;
    for stream in 0..100 {
        tiny.write_all(&h2::get(stream * 2 + 1, MAPS)).await.unwrap();
    }
    tiny.flush().await.unwrap();
    // The windows as they are, and nobody opens them.
    let mut closed = h2::open(&cluster, Some(&admin), &[]).await;
    closed.write_all(&h2::get(1, MAPS)).await.unwrap();
    connections(&cluster, 2).await;
    served(&cluster).await;
    for stream in [&mut never, &mut tiny, &mut closed] {
        assert!(end(&cluster, stream).await.len() < 11_000_000);
    }
    // They have rested for longer, with more to be sent than any buffer holds.
    assert_eq!(metric(&cluster, "coracle_connections").await, 2);
    let mut seen = vec![0; 2_000_000];
    watch.read_exact(&mut seen).await.unwrap();
    drop((watch, over_h2));
    cluster.stop().await;
}

#[tokio::test]
async fn who_holds_a_place_without_need_gives_way_to_who_asks() {
    let cluster = Cluster::limited(Limits { connections: 20, ..limits() }).await;
    let admin = cluster.admin();
    let url = "/api/v1/configmaps?watch=1";
    // In use, and so not to be taken away.
    let mut watch = cluster.connect(Some(&admin), "http/1.1").await;
    watch.write_all(format!("GET {url} HTTP/1.1\r\nhost: localhost\r\n\r\n").as_bytes()).await.unwrap();
    assert_eq!(watch.read_u8().await.unwrap(), b'H');
    // Known, and idle.
    let idle = cluster.connect(Some(&admin), "h2").await;
    let mut idlers = Vec::new();
    for round in 0..5 {
        for _ in 0..20 {
            idlers.push(TcpStream::connect(cluster.address).await.unwrap());
            idlers.push(cluster.connect(None, "http/1.1").await.into_inner().0);
        }
        served(&cluster).await;
        assert!(metric(&cluster, "coracle_connections").await <= 20 + 64, "round {round}");
    }
    assert!(metric(&cluster, "coracle_connections_turned_away_total").await >= 180);
    let mut idle = h2::over(idle, &[]).await;
    idle.write_all(&h2::get(1, "/livez")).await.unwrap();
    h2::until(&cluster, &mut idle, |kind, _, _| kind == h2::HEADERS).await;
    cluster.in_process().post(MAPS, &config_map("a")).await.expect(201);
    let mut seen = String::new();
    while !seen.contains("ADDED") {
        seen.push(char::from(watch.read_u8().await.unwrap()));
    }
    drop((watch, idle, idlers));
    cluster.stop().await;
}

#[tokio::test]
async fn ten_thousand_idle_connections_stay_within_the_descriptors() {
    let descriptors =
        rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    // Both ends are in this process.
    let most = usize::try_from(descriptors).unwrap() / 8;
    let cluster = Cluster::limited(Limits { connections: most.min(2000), ..limits() }).await;
    let mut idlers = Vec::new();
    for _ in 0..(most * 4).min(10_000) {
        idlers.push(TcpStream::connect(cluster.address).await.unwrap());
        if idlers.len() % 1000 == 0 {
            served(&cluster).await;
        }
    }
    served(&cluster).await;
    assert!(metric(&cluster, "coracle_connections").await <= 2000 + 64);
    cluster.stop().await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let cluster = Cluster::limited(limits()).await;
    let huge = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let many = format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{}\r\n", "x: y\r\n".repeat(1000));
    let long = format!("GET /livez?{} HTTP/1.1\r\nhost: localhost\r\n\r\n", "y".repeat(200_000));
    for head in [&huge, &many, &long] {
        let mut stream = cluster.connect(None, "http/1.1").await;
        // It may hang up while we are still talking.
        let _ = stream.write_all(head.as_bytes()).await;
        let said = end(&cluster, &mut stream).await;
        let code = String::from_utf8_lossy(&said[..said.len().min(12)]).into_owned();
        assert!(["HTTP/1.1 431", "HTTP/1.1 414", ""].contains(&code.as_str()), "{code}");
    }
    // Fields that name what the table of the compression holds: few bytes that become many.
    let mut stream = h2::open(&cluster, None, &[]).await;
    let mut block = h2::head("/livez");
    block.extend(h2::literal_indexed("x", &"y".repeat(2000)));
    block.extend([0xbe; 12_000]);
    stream.write_all(&h2::frame(h2::HEADERS, h2::END_STREAM | h2::END_HEADERS, 1, &block)).await.unwrap();
    let refused = |kind: u8, _, payload: &[u8]| match kind {
        h2::RST_STREAM | h2::GOAWAY => true,
        // 431 as a literal or from the table; never 200, which is 0x88.
        h2::HEADERS => payload.first() != Some(&0x88),
        _ => false,
    };
    h2::until(&cluster, &mut stream, refused).await;
    served(&cluster).await;
    cluster.stop().await;
}

#[tokio::test]
async fn requests_that_are_taken_back_at_once_are_not_worked_on_for_ever() {
    let cluster = Cluster::limited(limits()).await;
    let admin = cluster.admin();
    let stream = h2::open(&cluster, Some(&admin), &[]).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let flood = async {
        for number in 0..50_000_u32 {
            let mut bytes = h2::get(number * 2 + 1, MAPS);
            bytes.extend(h2::frame(h2::RST_STREAM, 0, number * 2 + 1, &8_u32.to_be_bytes()));
            if writing.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = writing.flush().await;
        std::future::pending::<()>().await;
    };
    let others = async {
        for _ in 0..5 {
            served(&cluster).await;
        }
    };
    let (said, ()) = coracle_clock::select! {
        both = futures::future::join(end(&cluster, &mut reading), others) => both,
        () = flood => unreachable!(),
    };
    assert!(h2::frames(&said).iter().any(|(kind, _, _)| *kind == h2::GOAWAY), "the client is sent away");
    connections(&cluster, 0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn streams_of_a_connection_are_bounded() {
    let cluster = Cluster::limited(limits()).await;
    let mut stream = h2::open(&cluster, Some(&cluster.admin()), &[]).await;
    for number in 0..400_u32 {
        stream.write_all(&h2::get(number * 2 + 1, "/api/v1/configmaps?watch=1")).await.unwrap();
    }
    stream.flush().await.unwrap();
    let mut refused = 0;
    h2::until(&cluster, &mut stream, |kind, _, payload| {
        // REFUSED_STREAM: to be tried again.
        refused += u32::from(kind == h2::RST_STREAM && payload == 7_u32.to_be_bytes());
        refused == 150
    })
    .await;
    served(&cluster).await;
    drop(stream);
    connections(&cluster, 0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_head_that_goes_on_for_ever_ends_the_connection() {
    let cluster = Cluster::limited(limits()).await;
    let stream = h2::open(&cluster, None, &[]).await;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let flood = async {
        let _ = writing.write_all(&h2::frame(h2::HEADERS, h2::END_STREAM, 1, &h2::head("/livez"))).await;
        while writing.write_all(&h2::frame(h2::CONTINUATION, 0, 1, &[])).await.is_ok() {
            let field = h2::literal_indexed("x", "y");
            if writing.write_all(&h2::frame(h2::CONTINUATION, 0, 1, &field)).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    coracle_clock::select! {
        _ = end(&cluster, &mut reading) => {}
        () = flood => unreachable!(),
    }
    served(&cluster).await;
    connections(&cluster, 0).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_request_has_one_length_or_none() {
    let cluster = Cluster::limited(limits()).await;
    let smuggled = "GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n";
    for fields in [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: +5\r\n",
        "content-length: 0x5\r\n",
        "content-length: -1\r\n",
        "content-length: 99999999999999999999999\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding : chunked\r\n",
        " transfer-encoding: chunked\r\n",
        "transfer-encoding:\r\n chunked\r\n",
    ] {
        let mut stream = cluster.connect(None, "http/1.1").await;
        let request = format!("POST /livez HTTP/1.1\r\nhost: localhost\r\n{fields}\r\nhello{smuggled}");
        let _ = stream.write_all(request.as_bytes()).await;
        let said = String::from_utf8_lossy(&end(&cluster, &mut stream).await).into_owned();
        assert!(said.starts_with("HTTP/1.1 400"), "{fields:?}: {said}");
        assert_eq!(said.matches("HTTP/1.1").count(), 1, "{fields:?}: {said}");
    }
    // Both: what is chunked counts, and chunks are read strictly.
    for chunk in
        ["5;\r\nhello\r\n-1\r\n", "5\r\nhelloXX0\r\n\r\n", "FFFFFFFFFFFFFFFFFF\r\nhello", "5\nhello\n0\n\n"]
    {
        let mut stream = cluster.connect(Some(&cluster.admin()), "http/1.1").await;
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        let _ = stream.write_all(format!("{head}{chunk}{smuggled}").as_bytes()).await;
        let said = String::from_utf8_lossy(&end(&cluster, &mut stream).await).into_owned();
        assert!(!said.contains("gitVersion"), "{chunk:?}: {said}");
    }
    served(&cluster).await;
    cluster.stop().await;
}

#[tokio::test]
async fn an_answer_that_is_given_before_the_body_has_come_does_not_wait_for_it() {
    let cluster = Cluster::limited(limits()).await;
    // Nobody may post here, so that nobody reads what is posted.
    let mut stream = cluster.connect(None, "http/1.1").await;
    let head = format!("POST {MAPS} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let said = end(&cluster, &mut stream).await;
    assert!(said.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&said));
    cluster.stop().await;
}

/// Just enough of HTTP/2 to do what no library does.
mod h2 {
    use super::*;

    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const CONTINUATION: u8 = 9;
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const INITIAL_WINDOW: u16 = 4;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut bytes = length[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn text(text: &str) -> Vec<u8> {
        let (mut bytes, mut length) = (Vec::new(), text.len());
        if length < 127 {
            bytes.push(u8::try_from(length).unwrap());
        } else {
            bytes.push(127);
            length -= 127;
            while length >= 128 {
                bytes.push(0x80 | u8::try_from(length % 128).unwrap());
                length /= 128;
            }
            bytes.push(u8::try_from(length).unwrap());
        }
        bytes.extend(text.as_bytes());
        bytes
    }

    /// A field that the other side remembers under number 62.
    pub(super) fn literal_indexed(name: &str, value: &str) -> Vec<u8> {
        [vec![0x40], text(name), text(value)].concat()
    }

    /// GET over https at localhost.
    pub(super) fn head(path: &str) -> Vec<u8> {
        [vec![0x82, 0x87, 0x01], text("localhost"), vec![0x04], text(path)].concat()
    }

    pub(super) fn get(stream: u32, path: &str) -> Vec<u8> {
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(path))
    }

    pub(super) async fn open(
        cluster: &Cluster,
        who: Option<&coracle_apiserver::pki::Credential>,
        settings: &[(u16, u32)],
    ) -> TlsStream<TcpStream> {
        over(cluster.connect(who, "h2").await, settings).await
    }

    pub(super) async fn over(
        mut stream: TlsStream<TcpStream>,
        settings: &[(u16, u32)],
    ) -> TlsStream<TcpStream> {
        let mut payload = Vec::new();
        for (name, value) in settings {
            payload.extend(name.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        stream.write_all(PREFACE).await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, &payload)).await.unwrap();
        stream.write_all(&frame(SETTINGS, 1, 0, &[])).await.unwrap();
        stream
    }

    /// The frames in what was read.
    pub(super) fn frames(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while bytes.len() >= 9 {
            let length = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]) as usize;
            let stream = u32::from_be_bytes([bytes[5], bytes[6], bytes[7], bytes[8]]);
            let payload = bytes.get(9..9 + length).unwrap_or(&bytes[9..]).to_vec();
            frames.push((bytes[3], stream, payload));
            bytes = bytes.get(9 + length..).unwrap_or_default();
        }
        frames
    }

    /// Reads frames until one is what is waited for.
    pub(super) async fn until(
        cluster: &Cluster,
        stream: &mut TlsStream<TcpStream>,
        mut wanted: impl FnMut(u8, u32, &[u8]) -> bool,
    ) {
        let reading = async {
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
                let mut payload = vec![0; length];
                stream.read_exact(&mut payload).await.unwrap();
                let number = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
                if wanted(head[3], number, &payload) {
                    return;
                }
            }
        };
        cluster.clock.timeout(Duration::from_secs(30), reading).await.expect("the frame comes");
    }
}
