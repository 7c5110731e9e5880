//! From what a Pod's spec says of a handler to what is asked: ports, paths, headers, commands. Pure.

use std::time::Duration;

use coracle_api::field::go_quote;
use coracle_cri::ContainerId;
use coracle_cri::probe::{GrpcHealth, HttpGet, TcpConnect};
use k8s_openapi::api::core::v1::{Container, GRPCAction, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::spec::env::expand;

/// The part of upstream's version that handlers name themselves with.
const VERSION: &str = "1.37";

/// Whom a handler concerns.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// The container as the spec has it.
    pub(crate) container: &'a Container,
    /// The instance.
    pub(crate) id: &'a ContainerId,
    /// The address of the Pod: where handlers go that name no host.
    pub(crate) pod_ip: &'a str,
}

/// What a request says it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// `kube-probe`.
    Probe,
    /// `kube-lifecycle`.
    Lifecycle,
}

/// The request of an `httpGet` handler.
pub(crate) fn http_get(
    action: &HTTPGetAction,
    subject: Subject<'_>,
    purpose: Purpose,
    timeout: Option<Duration>,
) -> Result<HttpGet, String> {
    let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(subject.pod_ip);
    Ok(HttpGet {
        container: subject.id.clone(),
        https: action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")),
        host: host.to_owned(),
        port: port(&action.port, subject.container)?,
        path: request_path(action.path.as_deref().unwrap_or_default()),
        headers: headers(action, purpose),
        timeout,
    })
}

/// The request of a `tcpSocket` handler.
pub(crate) fn tcp_connect(
    action: &TCPSocketAction,
    subject: Subject<'_>,
    timeout: Duration,
) -> Result<TcpConnect, String> {
    let host = action.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(subject.pod_ip);
    let port = port(&action.port, subject.container)?;
    Ok(TcpConnect { container: subject.id.clone(), host: host.to_owned(), port, timeout })
}

/// The request of a `grpc` handler.
pub(crate) fn grpc_health(
    action: &GRPCAction,
    subject: Subject<'_>,
    timeout: Duration,
) -> Result<GrpcHealth, String> {
    Ok(GrpcHealth {
        container: subject.id.clone(),
        host: subject.pod_ip.to_owned(),
        port: valid_port(action.port)?,
        service: action.service.clone().unwrap_or_default(),
        timeout,
    })
}

/// The command of an `exec` probe: `$(NAME)` stands for the literal values of the container's own variables alone.
pub(crate) fn probe_command(command: &[String], container: &Container) -> Vec<String> {
    let variables = container.env.as_deref().unwrap_or_default();
    // Of two by one name the later one counts.
    let value_of = |name: &str| {
        let found = variables.iter().rev().find(|variable| variable.name == name);
        found.map(|variable| variable.value.as_deref().unwrap_or_default())
    };
    command.iter().map(|word| expand(word, value_of)).collect()
}

fn port(given: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match given {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            match named {
                Some(port) => port.container_port,
                // A number that was stored as text.
                None => name
                    .parse()
                    .map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", go_quote(name)))?,
            }
        }
    };
    valid_port(number)
}

fn valid_port(number: i32) -> Result<u16, String> {
    u16::try_from(number)
        .ok()
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
}

/// The path and query of a request, from a text that was meant to be one: what URLs do not take is escaped, a host in
/// front and a fragment behind are left out.
fn request_path(given: &str) -> String {
    let escapes_are_whole = {
        let path = given.split(['?', '#']).next().unwrap_or_default().as_bytes();
        let whole =
            |at: usize| path.get(at + 1..at + 3).is_some_and(|two| two.iter().all(u8::is_ascii_hexdigit));
        path.iter().enumerate().all(|(at, byte)| *byte != b'%' || whole(at))
    };
    if !escapes_are_whole || given.bytes().any(|byte| byte.is_ascii_control()) {
        // Not even nearly a URL: all of it is the name of something.
        return with_slash(escape(given, |byte| !matches!(byte, b'%' | b'?')));
    }
    let without_fragment = given.split('#').next().unwrap_or_default();
    let (path, query) = match without_fragment.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (without_fragment, None),
    };
    let path = ["http://", "https://", "//"]
        .iter()
        .find_map(|start| path.strip_prefix(start))
        .map_or(path, |rest| rest.find('/').map_or("", |slash| &rest[slash..]));
    let path = with_slash(escape(path, |_| true));
    match query {
        Some(query) => format!("{path}?{}", escape(query, |_| true)),
        None => path,
    }
}

fn with_slash(path: String) -> String {
    if path.starts_with('/') { path } else { format!("/{path}") }
}

fn escape(text: &str, also: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@!'()*[]%?".contains(&byte);
        if plain && also(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

fn headers(action: &HTTPGetAction, purpose: Purpose) -> Vec<(String, String)> {
    let mut headers: Vec<(String, String)> = action
        .http_headers
        .iter()
        .flatten()
        .map(|header| (header.name.clone(), header.value.clone()))
        .collect();
    let user_agent = match purpose {
        Purpose::Probe => format!("kube-probe/{VERSION}"),
        Purpose::Lifecycle => format!("kube-lifecycle/{VERSION}"),
    };
    for (name, usual) in [("User-Agent", user_agent), ("Accept", "*/*".to_owned())] {
        let given = headers.iter().find(|(given, _)| given.eq_ignore_ascii_case(name));
        match given {
            None => headers.push((name.to_owned(), usual)),
            // Said to be empty: it is not sent.
            Some((_, value)) if value.is_empty() => {
                headers.retain(|(given, _)| !given.eq_ignore_ascii_case(name));
            }
            Some(_) => {}
        }
    }
    headers
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn container() -> Container {
        serde_json::from_value(json!({
            "name": "c",
            "ports": [{"name": "web", "containerPort": 8080}, {"containerPort": 81}],
            "env": [
                {"name": "A", "value": "old"}, {"name": "A", "value": "a$(B)"},
                {"name": "F", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            ],
        }))
        .unwrap()
    }

    fn request(action: Value) -> Result<HttpGet, String> {
        let action: HTTPGetAction = serde_json::from_value(action).unwrap();
        let (container, id) = (container(), ContainerId("id".to_owned()));
        let subject = Subject { container: &container, id: &id, pod_ip: "10.0.0.5" };
        http_get(&action, subject, Purpose::Probe, None)
    }

    #[test]
    fn ports_are_numbers_or_names_of_the_container() {
        for (port, expected) in [
            (json!(80), Ok(80)),
            (json!("web"), Ok(8080)),
            (json!("9090"), Ok(9090)),
            (json!("http"), Err("strconv.Atoi: parsing \"http\": invalid syntax")),
            (json!(0), Err("invalid port number: 0")),
            (json!("70000"), Err("invalid port number: 70000")),
        ] {
            let got = request(json!({"port": port})).map(|request| request.port);
            assert_eq!(got, expected.map_err(str::to_owned), "{port}");
        }
    }

    #[test]
    fn requests_go_to_the_pod_unless_a_host_is_named() {
        let plain = request(json!({"port": 80})).unwrap();
        assert_eq!(plain.url(), "http://10.0.0.5:80/");
        let headers = [("User-Agent", "kube-probe/1.37"), ("Accept", "*/*")];
        assert_eq!(plain.headers, headers.map(|(k, v)| (k.to_owned(), v.to_owned())));
        let other = json!({"port": 443, "host": "example.com", "scheme": "HTTPS", "path": "/a"});
        assert_eq!(request(other).unwrap().url(), "https://example.com:443/a");
    }

    #[test]
    fn headers_replace_what_is_usual_and_empty_ones_remove_it() {
        let request = request(json!({"port": 80, "httpHeaders": [
            {"name": "user-agent", "value": "me"}, {"name": "Accept", "value": ""}, {"name": "X", "value": "1"},
            {"name": "X", "value": "2"},
        ]}));
        let expected = [("user-agent", "me"), ("X", "1"), ("X", "2")];
        assert_eq!(request.unwrap().headers, expected.map(|(k, v)| (k.to_owned(), v.to_owned())));
    }

    #[test]
    fn paths_are_made_fit_for_the_wire() {
        for (given, sent) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/healthz?verbose=1&x=a b", "/healthz?verbose=1&x=a%20b"),
            ("/a b/ü", "/a%20b/%C3%BC"),
            ("/a%2Fb", "/a%2Fb"),
            ("/100%?x", "/100%25%3Fx"),
            ("/a\r\nX: y", "/a%0D%0AX:%20y"),
            ("http://elsewhere:1/x", "/x"),
            ("//elsewhere/x", "/x"),
            ("//elsewhere", "/"),
            ("/x#part", "/x"),
        ] {
            assert_eq!(request_path(given), sent, "{given:?}");
        }
    }

    #[test]
    fn commands_see_literal_variables_only() {
        let command = ["sh", "$(A)", "$(F)", "$(GONE)", "$$(A)"].map(str::to_owned);
        assert_eq!(probe_command(&command, &container()), ["sh", "a$(B)", "", "$(GONE)", "$(A)"]);
    }
}
