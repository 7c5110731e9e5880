//! Registries that lie, hang, cut and redirect: each pull ends soon with words that help, leaves nothing, and the next
//! one works.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use coracle_clock::Rng;
use coracle_cri::{AuthConfig, ImageService};

use super::registry::{pull, spec, wait_until};
use super::*;

/// How long a store waits for a registry that hangs, and for one that does not, however busy the machine is.
const SOON: Duration = Duration::from_millis(500);
const LONG: Duration = Duration::from_secs(60);

/// A layer that does not shrink, and a small one.
static LAYERS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut rng = Rng::seeded(1);
    let noise: Vec<u8> = (0..25_000).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
    vec![layer(&[Item::File("a", noise, 0o644)]), layer(&[Item::File("b", b"2".to_vec(), 0o644)])]
});

/// A request as it came: its path, and its head in lower case.
struct Asked {
    path: String,
    head: String,
}

type Answer = Box<dyn Fn(&Asked, &mut TcpStream) -> bool + Send + Sync>;

/// A registry that answers as a test says, and honestly where the test says nothing.
struct Liar {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

fn say(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> bool {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n");
    // Who hangs up early does not hear the rest.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
    true
}

/// Until the client hangs up.
fn hang(stream: &mut TcpStream) -> bool {
    let _ = stream.read(&mut [0; 1]);
    true
}

fn endless(stream: &mut TcpStream) -> bool {
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    while stream.write_all(&[b'x'; 65536]).is_ok() {}
    true
}

/// The files of an image by their path.
fn honest() -> BTreeMap<String, Vec<u8>> {
    let layers = &LAYERS;
    let layout = oci_layout("x", layers, gzip);
    let index: serde_json::Value = serde_json::from_slice(&layout["index.json"]).unwrap();
    let digest = index["manifests"][1]["digest"].as_str().unwrap().to_owned();
    let manifest = layout[&digest.replace("sha256:", "blobs/sha256/")].clone();
    let config = config(layers);
    let mut files = BTreeMap::from([
        ("/v2/x/manifests/1".to_owned(), manifest.clone()),
        (format!("/v2/x/manifests/{digest}"), manifest),
        (config_path(), config),
    ]);
    for layer in layers.iter() {
        files.insert(blob_path(&gzip(layer)), gzip(layer));
    }
    files
}

fn blob_path(bytes: &[u8]) -> String {
    format!("/v2/x/blobs/{}", Digest::of(bytes))
}

fn config_path() -> String {
    blob_path(&config(&LAYERS))
}

/// The path of the larger layer, and its bytes.
fn layer_of() -> (String, Vec<u8>) {
    let bytes = gzip(&LAYERS[0]);
    (blob_path(&bytes), bytes)
}

impl Liar {
    /// `lie` returns whether it has answered.
    fn start(lie: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> Liar {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (files, lie) = (Arc::new(honest()), Arc::<Answer>::new(Box::new(lie)));
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (files, lie, seen) = (Arc::clone(&files), Arc::clone(&lie), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &files, &lie, &seen));
            }
        });
        Liar { port, asked }
    }

    fn name(&self) -> String {
        format!("localhost:{}/x:1", self.port)
    }

    fn count(&self, of: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.path.contains(of)).count()
    }
}

fn serve(mut stream: TcpStream, files: &BTreeMap<String, Vec<u8>>, lie: &Answer, seen: &Mutex<Vec<Asked>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).unwrap_or(0) == 0 {
            return;
        }
    }
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let asked = Asked { path, head: head.to_lowercase() };
    let answered = lie(&asked, &mut stream);
    if !answered {
        match files.get(&asked.path) {
            Some(bytes) => say(&mut stream, "200 OK", "", bytes),
            None => say(&mut stream, "404 Not Found", "", b""),
        };
    }
    seen.lock().unwrap().push(asked);
}

/// A store that speaks plain HTTP with these registries.
fn store(fixture: &Fixture, registries: &[&Liar], idle: Duration) -> ImageStore {
    let mut config = fixture.config();
    config.registry.idle_timeout = idle;
    config.registry.plain_http = registries.iter().map(|liar| format!("localhost:{}", liar.port)).collect();
    ImageStore::open(config, Clock::system()).unwrap()
}

/// A pull that has to fail soon, leave nothing, and not stand in the way of the next.
async fn refused(
    what: &str,
    expected: &str,
    lie: impl Fn(&Asked, &mut TcpStream) -> bool + Send + Sync + 'static,
) {
    let (liar, good) = (Liar::start(lie), Liar::start(|_, _| false));
    let fixture = Fixture::new();
    let hangs = expected.contains("timeout")
        || expected.contains("within")
        || expected.contains("failed to do request");
    let store = store(&fixture, &[&liar, &good], if hangs { SOON } else { LONG });
    let clock = Clock::system();
    let name = liar.name();
    let outcome = clock.timeout(LONG, pull(&store, &name)).await;
    let error = outcome.unwrap_or_else(|| panic!("{what}: no end")).expect_err(what).to_string();
    assert!(error.starts_with(&format!("failed to pull and unpack image \"{name}\": ")), "{what}: {error}");
    assert!(error.contains(expected), "{what}: {error}");
    assert!(error.len() < 1000, "{what}: {error}");
    assert!(store.list().unwrap().is_empty(), "{what}");
    // Files go when the last of the work has noticed, which nobody waits for.
    wait_until(&clock, || fixture.names("operations").is_empty()).await;
    let patient = self::store(&fixture, &[&good], LONG);
    pull(&patient, &good.name()).await.unwrap();
}

fn is(asked: &Asked, path: &str) -> bool {
    asked.path == path
}

const MANIFEST: &str = "/v2/x/manifests/1";

#[tokio::test(flavor = "multi_thread")]
async fn content_is_what_its_digest_and_size_say_or_refused() {
    let (layer, bytes) = layer_of();
    let flipped = {
        let mut bytes = bytes.clone();
        bytes[100] ^= 1;
        bytes
    };
    let at = layer.clone();
    refused("another layer", "failed to extract layer", move |asked, stream| {
        is(asked, &at) && say(stream, "200 OK", "", &flipped)
    })
    .await;
    let (at, short) = (layer.clone(), bytes[..bytes.len() - 10].to_vec());
    refused("a shorter layer", "size of blob", move |asked, stream| {
        is(asked, &at) && say(stream, "200 OK", "", &short)
    })
    .await;
    let (at, long) = (layer.clone(), [&bytes[..], b"more"].concat());
    refused("a longer layer", "size of blob", move |asked, stream| {
        is(asked, &at) && say(stream, "200 OK", "", &long)
    })
    .await;
    let at = layer.clone();
    refused("an endless layer", "size of blob", move |asked, stream| is(asked, &at) && endless(stream)).await;
    let (at, plain) = (layer, vec![b'x'; bytes.len()]);
    refused("a layer that is no archive", "failed to extract layer", move |asked, stream| {
        is(asked, &at) && say(stream, "200 OK", "", &plain)
    })
    .await;
    let other = config(&LAYERS).iter().map(u8::to_ascii_uppercase).collect::<Vec<u8>>();
    refused("another configuration", "image configuration: expected sha256:", move |asked, stream| {
        is(asked, &config_path()) && say(stream, "200 OK", "", &other)
    })
    .await;
    refused("no configuration", "not found", |asked, stream| {
        is(asked, &config_path()) && say(stream, "404 Not Found", "", b"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_is_none_is_refused() {
    refused("a login page", "unexpected media type text/html", |asked, stream| {
        is(asked, MANIFEST) && say(stream, "200 OK", "Content-Type: text/html; charset=utf-8\r\n", b"<html>")
    })
    .await;
    for (what, body) in
        [("no JSON", &b"hello"[..]), ("nothing", b""), ("a list", b"[]"), ("no manifest", b"{}")]
    {
        refused(what, "manifest", move |asked, stream| {
            is(asked, MANIFEST) && say(stream, "200 OK", "", body)
        })
        .await;
    }
    let unknown =
        br#"{"schemaVersion":2,"mediaType":"application/vnd.example+json","config":{},"layers":[]}"#;
    refused("an unknown type", "image manifest", move |asked, stream| {
        is(asked, MANIFEST) && say(stream, "200 OK", "", unknown)
    })
    .await;
    refused("an endless manifest", "is larger than 8388608 bytes", |asked, stream| {
        is(asked, MANIFEST) && endless(stream)
    })
    .await;
    // By its digest, it has to be that manifest.
    let liar = Liar::start(|asked, stream| {
        asked.path.contains("/manifests/") && say(stream, "200 OK", "", b"{\"schemaVersion\":2}")
    });
    let fixture = Fixture::new();
    let digest = Digest::of(b"x");
    let error = pull(&store(&fixture, &[&liar], LONG), &format!("localhost:{}/x@{digest}", liar.port)).await;
    let error = error.unwrap_err().to_string();
    assert!(error.contains(&format!("manifest: expected {digest}, got sha256:")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_answer_is_not_waited_for() {
    refused("no answer", "timeout awaiting response headers", |asked, stream| {
        is(asked, MANIFEST) && hang(stream)
    })
    .await;
    for part in ["/manifests/1", "/blobs/"] {
        let drip = move |asked: &Asked, stream: &mut TcpStream| {
            if !asked.path.contains(part) {
                return false;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n");
            let clock = std::sync::Condvar::new();
            while stream.write_all(b"x").is_ok() {
                let lock = Mutex::new(());
                drop(clock.wait_timeout(lock.lock().unwrap(), Duration::from_millis(20)).unwrap());
            }
            true
        };
        // What claims to be larger than it may be is not waited for at all.
        let expected = if part == "/blobs/" { "size of blob" } else { "less than 64 KiB within 500ms" };
        refused("a byte at a time", expected, drip).await;
    }
    let (layer, _) = layer_of();
    refused("a layer that does not come", "less than 64 KiB within 500ms", move |asked, stream| {
        is(asked, &layer) && stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nsome").is_ok() && hang(stream)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end_and_credentials_stay() {
    refused("a circle", "stopped after 10 redirects", |asked, stream| {
        is(asked, MANIFEST) && say(stream, "307 Temporary Redirect", "Location: /v2/x/manifests/1\r\n", b"")
    })
    .await;
    refused("nowhere", "redirect without a location", |asked, stream| {
        is(asked, MANIFEST) && say(stream, "302 Found", "", b"")
    })
    .await;
    refused("a file", "redirect to \"file:///etc/passwd\" refused", |asked, stream| {
        is(asked, MANIFEST) && say(stream, "302 Found", "Location: file:///etc/passwd\r\n", b"")
    })
    .await;

    let elsewhere = Liar::start(|_, _| false);
    let port = elsewhere.port;
    let liar = Liar::start(move |asked, stream| {
        if !asked.head.contains("authorization: basic dxnlcjpzzwnyzxq=") {
            return say(stream, "401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"");
        }
        let to = format!("Location: http://localhost:{port}{}\r\n", asked.path);
        asked.path.contains("/blobs/") && say(stream, "307 Temporary Redirect", &to, b"")
    });
    let fixture = Fixture::new();
    let auth =
        AuthConfig { username: "user".into(), password: "secret".into(), registry_token: String::new() };
    let store = store(&fixture, &[&liar], LONG);
    store.pull_image(&spec(liar.name()), Some(&auth), None).await.unwrap();
    assert_eq!(elsewhere.count("/blobs/"), 3);
    let asked = elsewhere.asked.lock().unwrap();
    assert!(asked.iter().all(|asked| !asked.head.contains("authorization")), "credentials went elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn token_servers_are_judged_as_registries_are() {
    let challenge = |asked: &Asked, stream: &mut TcpStream| {
        let port =
            asked.head.split("host: localhost:").nth(1).unwrap().split('\r').next().unwrap().to_owned();
        let header =
            format!("WWW-Authenticate: Bearer realm=\"http://localhost:{port}/token\",service=\"reg\"\r\n");
        !asked.path.starts_with("/token") && say(stream, "401 Unauthorized", &header, b"")
    };
    type Token = fn(&mut TcpStream) -> bool;
    let cases: [(&str, &str, Token); 7] = [
        ("let in for nothing", "pull access denied", |s| say(s, "200 OK", "", b"{\"token\":\"t\"}")),
        ("denied", "pull access denied", |s| say(s, "403 Forbidden", "", b"")),
        ("no answer", "failed to fetch anonymous token: failed to do request", hang),
        ("a page", "unable to decode token response", |s| say(s, "200 OK", "", b"<html>")),
        ("no token", "did not include a token", |s| say(s, "200 OK", "", b"{}")),
        ("endless", "larger than 1048576 bytes", endless),
        ("sent on", "unexpected status from GET request", |s| {
            say(s, "302 Found", "Location: /token\r\n", b"")
        }),
    ];
    for (what, expected, token) in cases {
        refused(what, expected, move |asked, stream| challenge(asked, stream) || token(stream)).await;
    }
    refused("a realm that is none", "realm \"nonsense\"", |_, stream| {
        say(stream, "401 Unauthorized", "WWW-Authenticate: Bearer realm=\"nonsense\"\r\n", b"")
    })
    .await;
    // And one that does its work: asked once, for this repository.
    let liar = Liar::start(move |asked, stream| match asked.head.contains("authorization: bearer abc") {
        true => false,
        false => challenge(asked, stream) || say(stream, "200 OK", "", b"{\"access_token\":\"abc\"}"),
    });
    let fixture = Fixture::new();
    pull(&store(&fixture, &[&liar], LONG), &liar.name()).await.unwrap();
    assert_eq!(liar.count("/token?service=reg&scope=repository%3Ax%3Apull"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_is_asked_again_and_one_that_fails_is_quoted() {
    let busy = Mutex::new(2);
    let liar = Liar::start(move |asked, stream| {
        let mut busy = busy.lock().unwrap();
        if !is(asked, MANIFEST) || *busy == 0 {
            return false;
        }
        *busy -= 1;
        say(stream, "429 Too Many Requests", "Retry-After: 0\r\n", b"")
    });
    let fixture = Fixture::new();
    pull(&store(&fixture, &[&liar], LONG), &liar.name()).await.unwrap();
    assert_eq!(liar.count(MANIFEST), 3);
    for after in ["0", "3600"] {
        refused("always busy", "429 Too Many Requests: TOOMANYREQUESTS: slow down", move |_, stream| {
            let said = br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u0007 down"}]}"#;
            say(stream, "429 Too Many Requests", &format!("Retry-After: {after}\r\n"), said)
        })
        .await;
    }
    refused("broken", "unexpected status from GET request to http://localhost", |asked, stream| {
        is(asked, MANIFEST) && say(stream, "500 Internal Server Error", "", &[0xff; 200_000])
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_is_cut_goes_on_where_it_was() {
    let (layer, bytes) = layer_of();
    let half = bytes.len() / 2;
    for ranges in [true, false] {
        let (layer, bytes, cuts) = (layer.clone(), bytes.clone(), Mutex::new(1));
        let liar = Liar::start(move |asked, stream| {
            if !is(asked, &layer) {
                return false;
            }
            let mut cuts = cuts.lock().unwrap();
            if *cuts > 0 {
                *cuts -= 1;
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", bytes.len());
                return stream
                    .write_all(head.as_bytes())
                    .and_then(|()| stream.write_all(&bytes[..half]))
                    .is_ok();
            }
            let Some(from) = asked.head.split("range: bytes=").nth(1).filter(|_| ranges) else {
                return false;
            };
            let from: usize = from.split('-').next().unwrap().parse().unwrap();
            let range = format!("Content-Range: bytes {from}-{}/{}\r\n", bytes.len() - 1, bytes.len());
            say(stream, "206 Partial Content", &range, &bytes[from..])
        });
        let fixture = Fixture::new();
        pull(&store(&fixture, &[&liar], LONG), &liar.name()).await.unwrap();
        assert_eq!(liar.count("/blobs/"), 4, "one blob in two parts");
    }
    let at = layer.clone();
    refused("always cut", "failed to copy", move |asked, stream| {
        is(asked, &at) && stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome").is_ok()
    })
    .await;
    refused("another part", "size of blob", move |asked, stream| {
        let range = "Content-Range: bytes 0-9/10\r\n";
        is(asked, &layer) && say(stream, "206 Partial Content", range, b"0123456789")
    })
    .await;
}
