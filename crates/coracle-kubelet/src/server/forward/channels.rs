//! The older way to forward ports over a WebSocket, which clients other than kubectl use: the ports are in the query,
//! and each has a channel for data and one for errors, on which it is named first. One connection a port; the
//! WebSocket ends with the last of them.

use std::sync::Arc;

use bytes::Bytes;
use coracle_cri::PodSandboxId;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

use super::connection::{Connection, FRAMES_IN_FLIGHT, PIECES_IN_FLIGHT};
use super::transport::{Sink, Source};
use super::{CLOSE_LIMIT, parse_port};
use crate::server::routes::Shared;

/// Channels are numbered by one byte, two for each port.
const PORTS_MAX: usize = 127;

/// The ports that a query asks for, in the kubelet's words or the API's.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, String> {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let asked = pairs.filter(|(name, _)| name == "port" || name == "ports");
    let asked: Vec<String> =
        asked.flat_map(|(_, v)| v.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
    if asked.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    if asked.len() > PORTS_MAX {
        return Err(format!("at most {PORTS_MAX} ports may be asked for"));
    }
    asked.iter().map(|text| parse_port(text)).collect()
}

/// A message: the channel, and what is on it. There is no word for the end of a channel.
fn message(channel: u32, data: &[u8], _: bool) -> Bytes {
    let mut message = Vec::with_capacity(data.len() + 1);
    message.extend(u8::try_from(channel));
    message.extend_from_slice(data);
    message.into()
}

/// Serves a client until it leaves or all connections have ended.
pub(super) async fn serve(
    shared: &Shared,
    sandbox: PodSandboxId,
    ports: Vec<u16>,
    mut source: impl Source,
    mut sink: impl Sink,
) {
    let (frames, mut waiting) = mpsc::channel::<Bytes>(FRAMES_IN_FLIGHT);
    let mut to_pods = Vec::new();
    let mut connections = JoinSet::new();
    let mut begin = Vec::new();
    for (channel, port) in (0..).step_by(2).zip(ports) {
        let streams = [channel + 1, channel];
        begin.extend([channel, channel + 1].map(|channel| message(channel, &port.to_le_bytes(), false)));
        let (to_pod, from_client) = mpsc::channel(PIECES_IN_FLIGHT);
        to_pods.push(to_pod);
        let connection = Connection {
            runtime: Arc::clone(&shared.runtime),
            clock: shared.clock.clone(),
            sandbox: sandbox.clone(),
            port,
            streams,
            frame: message,
            frames: frames.clone(),
        };
        connections.spawn(connection.run(from_client, CancellationToken::new()));
    }
    drop(frames);
    let write = async {
        for message in begin {
            sink.send(message).await?;
        }
        // Ends with the last connection.
        while let Some(message) = waiting.recv().await {
            // An end, which cannot be told.
            if message.len() > 1 {
                sink.send(message).await?;
            }
        }
        Ok::<_, std::io::Error>(())
    };
    let read = async {
        while let Ok(Some(message)) = source.next().await {
            let Some((channel, _)) = message.split_first() else { continue };
            let is_data = channel % 2 == 0;
            if is_data && let Some(to_pod) = to_pods.get(usize::from(channel / 2)) {
                // Waits for the Pod. One that has closed its side wants no more.
                let _ = to_pod.send(message.slice(1..)).await;
            }
        }
    };
    coracle_clock::select! {
        () = shared.shutdown.cancelled() => {}
        _ = write => {}
        () = read => {}
    }
    drop(connections);
    shared.clock.timeout(CLOSE_LIMIT, sink.close()).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_in_the_query() {
        assert_eq!(ports("port=80&port=81"), Ok(vec![80, 81]));
        assert_eq!(ports("ports=80,81"), Ok(vec![80, 81]));
        assert_eq!(ports("x=1"), Err("query parameter \"port\" is required".to_owned()));
        for wrong in ["0", "x", "65536"] {
            assert_eq!(
                ports(&format!("port={wrong}")),
                Err(format!("unable to parse \"{wrong}\" as a port"))
            );
        }
        let many = vec!["port=1"; 128].join("&");
        assert_eq!(ports(&many), Err("at most 127 ports may be asked for".to_owned()));
    }
}
