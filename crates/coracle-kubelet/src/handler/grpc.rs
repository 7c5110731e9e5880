//! Calls of the gRPC health service (`grpc.health.v1.Health/Check`), the only two messages of which are written by hand.

use std::pin::pin;

use bytes::{BufMut as _, Bytes, BytesMut};
use coracle_cri::probe::{GrpcHealth, join_host_port};
use futures::future::Either;
use http::{HeaderMap, Method, Request, Uri, Version};

use super::socket::{First, Socket};

/// More than any answer of a health service needs.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Protobuf: field 1 as bytes.
const FIELD_1_BYTES: u8 = 0x0A;
/// Protobuf: field 1 as a number.
const FIELD_1_NUMBER: u8 = 0x08;
const SERVING: u64 = 1;

/// Why a service is not known to serve.
pub(super) enum Trouble {
    /// There is no connection that speaks HTTP/2; upstream's client goes on trying until time is up.
    NotConnected,
    /// The text that users see.
    Answered(String),
}

/// Whether somebody answered as a server of HTTP/2: whether the connection or the answer is late is said differently.
pub(super) fn is_connected(first: &First) -> bool {
    // The first frame of a server is SETTINGS: type 4, in the byte behind the three of its length.
    first.bytes().get(3) == Some(&4)
}

/// Asks once.
pub(super) async fn check(ask: &GrpcHealth, first: &First) -> Result<(), Trouble> {
    let socket = Socket::connect(&ask.host, ask.port, first.clone()).await;
    let socket = socket.map_err(|_| Trouble::NotConnected)?;
    let lost = |why: &h2::Error| {
        if is_connected(first) {
            failed("Unavailable", &format!("error reading from server: {why}"))
        } else {
            Trouble::NotConnected
        }
    };
    let (sender, connection) = h2::client::handshake(socket).await.map_err(|why| lost(&why))?;
    let call = async {
        let mut sender = sender.ready().await.map_err(|why| lost(&why))?;
        let (answer, mut body) = sender.send_request(request(ask)?, false).map_err(|why| lost(&why))?;
        body.send_data(question(&ask.service), true).map_err(|why| lost(&why))?;
        let (head, mut body) = answer.await.map_err(|why| lost(&why))?.into_parts();
        if head.status != 200 {
            let text =
                format!("unexpected HTTP status code received from server: {}", status_text(head.status));
            return Err(failed(code_of_status(head.status.as_u16()), &text));
        }
        // An answer without a message has its outcome in the head.
        if head.headers.contains_key("grpc-status") {
            outcome(&head.headers)?;
        }
        let mut message = BytesMut::new();
        while let Some(data) = body.data().await {
            let data = data.map_err(|why| lost(&why))?;
            // A window that stays shut ends the answer, as it should if this is no health service.
            let _ = body.flow_control().release_capacity(data.len());
            message.extend_from_slice(&data);
            if message.len() > ANSWER_BYTES_MAX {
                return Err(failed("ResourceExhausted", "grpc: received message larger than max"));
            }
        }
        let trailers = body.trailers().await.map_err(|why| lost(&why))?;
        outcome(&trailers.unwrap_or_default())?;
        serving(&message)
    };
    match futures::future::select(pin!(call), pin!(connection)).await {
        Either::Left((done, _)) => done,
        Either::Right((_, call)) => call.await,
    }
}

fn request(ask: &GrpcHealth) -> Result<Request<()>, Trouble> {
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::builder()
        .scheme("http")
        .authority(join_host_port(&ask.host, ask.port))
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()
        .map_err(|_| Trouble::NotConnected)?;
    for (name, value) in
        [("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "kube-probe/1.37")]
    {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    Ok(request)
}

/// The question, in the frame of gRPC: a byte that says that it is not compressed, and its length.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(FIELD_1_BYTES);
        let mut length = service.len();
        while length >= 0x80 {
            message.put_u8(u8::try_from(length & 0x7F).unwrap_or(0) | 0x80);
            length >>= 7;
        }
        message.put_u8(u8::try_from(length).unwrap_or(0));
        message.put_slice(service.as_bytes());
    }
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(0));
    frame.extend_from_slice(&message);
    frame.freeze()
}

fn failed(code: &str, why: &str) -> Trouble {
    Trouble::Answered(format!("error: health rpc probe failed: rpc error: code = {code} desc = {why}"))
}

/// The outcome that a server sends behind its answer.
fn outcome(headers: &HeaderMap) -> Result<(), Trouble> {
    let text = |name: &str| {
        headers
            .get(name)
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .unwrap_or_default()
    };
    let message = unescape(&text("grpc-message"));
    match text("grpc-status").parse::<u32>() {
        Ok(0) => Ok(()),
        Ok(12) => Err(Trouble::Answered(format!(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
        ))),
        Ok(code) => Err(failed(&code_name(code), &message)),
        Err(_) => Err(failed("Internal", "server closed the stream without sending trailers")),
    }
}

/// Whether the answer says SERVING.
fn serving(frame: &[u8]) -> Result<(), Trouble> {
    let garbled = || failed("Internal", "grpc: failed to unmarshal the received message");
    let Some((head, message)) = frame.split_at_checked(5) else {
        return Err(failed("Internal", "server closed the stream without sending a message"));
    };
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || usize::try_from(length) != Ok(message.len()) {
        return Err(garbled());
    }
    let said = match message {
        [] => 0,
        [FIELD_1_NUMBER, digits @ ..] => number(digits).ok_or_else(garbled)?,
        _ => return Err(garbled()),
    };
    if said == SERVING {
        return Ok(());
    }
    let name = match said {
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    Err(Trouble::Answered(format!("service unhealthy (responded with {name:?})")))
}

/// A number as protobuf writes it, if that is all there is.
fn number(digits: &[u8]) -> Option<u64> {
    let (last, rest) = digits.split_last()?;
    if *last >= 0x80 || rest.len() > 8 || rest.iter().any(|digit| *digit < 0x80) {
        return None;
    }
    Some(digits.iter().rev().fold(0, |number, digit| number << 7 | u64::from(digit & 0x7F)))
}

/// Undoes the escapes in a `grpc-message`.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match hex.and_then(|two| u8::from_str_radix(two, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status_text(status: http::StatusCode) -> String {
    format!("{} ({})", status.as_u16(), status.canonical_reason().unwrap_or_default())
}

/// The code that an HTTP status stands for, by the rules of gRPC.
fn code_of_status(status: u16) -> &'static str {
    match status {
        400 => "Internal",
        401 => "Unauthenticated",
        403 => "PermissionDenied",
        404 => "Unimplemented",
        429 | 502 | 503 | 504 => "Unavailable",
        _ => "Unknown",
    }
}

fn code_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let known = usize::try_from(code).ok().and_then(|code| NAMES.get(code));
    known.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(message: &[u8]) -> Result<(), String> {
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
        frame.extend(message);
        serving(&frame).map_err(text)
    }

    fn text(trouble: Trouble) -> String {
        match trouble {
            Trouble::NotConnected => "not connected".to_owned(),
            Trouble::Answered(text) => text,
        }
    }

    #[test]
    fn only_serving_is_healthy() {
        assert_eq!(said(&[8, 1]), Ok(()));
        for (message, shown) in [
            (&[][..], "service unhealthy (responded with \"UNKNOWN\")"),
            (&[8, 2], "service unhealthy (responded with \"NOT_SERVING\")"),
            (&[8, 3], "service unhealthy (responded with \"SERVICE_UNKNOWN\")"),
            (&[8, 0x81, 1], "service unhealthy (responded with \"129\")"),
        ] {
            assert_eq!(said(message), Err(shown.to_owned()));
        }
        for garbled in [&[8][..], &[8, 0x80], &[9, 9], &[8, 1, 1]] {
            assert!(said(garbled).unwrap_err().contains("failed to unmarshal"), "{garbled:?}");
        }
    }

    #[test]
    fn the_question_names_the_service() {
        assert_eq!(question(""), &[0u8, 0, 0, 0, 0][..]);
        assert_eq!(question("ab"), &[0u8, 0, 0, 0, 4, FIELD_1_BYTES, 2, b'a', b'b'][..]);
        let long = "x".repeat(200);
        assert_eq!(question(&long)[5..8], [FIELD_1_BYTES, 200 & 0x7F | 0x80, 1]);
    }

    #[test]
    fn outcomes_read_like_upstreams() {
        let headers = |status: &'static str, message: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-status", http::HeaderValue::from_static(status));
            headers.insert("grpc-message", http::HeaderValue::from_static(message));
            outcome(&headers).map_err(text)
        };
        assert_eq!(headers("0", ""), Ok(()));
        assert_eq!(
            headers("5", "unknown%20service"),
            Err("error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"
                .to_owned())
        );
        assert_eq!(
            headers("12", "unknown service grpc.health.v1.Health"),
            Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown \
                 service grpc.health.v1.Health"
                .to_owned())
        );
        assert!(outcome(&HeaderMap::new()).is_err());
    }
}
