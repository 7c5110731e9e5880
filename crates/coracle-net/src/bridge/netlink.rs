//! A small synchronous netlink client: batches of requests on a socket that belongs to one network namespace.
//!
//! Asynchronous clients need a task and a wake-up for each answer; these answers come in microseconds, on a
//! thread that may wait.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::error::NetError;

/// Bytes of one receive: the kernel fills at most 32 KiB.
const BUFFER: usize = 64 << 10;

/// One request: what it is for, flags beside `REQUEST` and `ACK`, and the message.
pub(crate) struct Request {
    pub(crate) what: String,
    pub(crate) flags: u16,
    pub(crate) message: RouteNetlinkMessage,
}

/// A socket to the kernel's routing subsystem.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// A socket in the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Netlink, NetError> {
        let failed = |source: rustix::io::Errno| NetError::Link {
            action: "open a netlink socket".to_owned(),
            source: source.into(),
        };
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE is protocol 0.
            None,
        )
        .map_err(failed)?;
        rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
        Ok(Netlink { socket, sequence: 0 })
    }

    /// A socket in the network namespace pinned at `path`, and that namespace itself.
    pub(crate) fn open_in(path: &Path) -> Result<(Netlink, File), NetError> {
        let namespace = File::open(path).map_err(NetError::file("cannot open network namespace", path))?;
        let entered = |namespace: &File| -> Result<Netlink, NetError> {
            nix::sched::setns(namespace.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)
                .map_err(NetError::file("cannot enter network namespace", path))?;
            Netlink::open()
        };
        // On a thread of its own, which ends there: a thread of a pool would have to find its way back.
        let netlink = std::thread::scope(|scope| {
            std::thread::Builder::new()
                .name("netns".to_owned())
                .stack_size(64 << 10)
                .spawn_scoped(scope, || entered(&namespace))
                .map_err(|error| NetError::Unfinished(error.to_string()))?
                .join()
                .unwrap_or_else(|_| Err(NetError::Unfinished("panic in a network namespace".to_owned())))
        })?;
        Ok((netlink, namespace))
    }

    /// Carries out requests in order, all sent at once; the outcome of each.
    pub(crate) fn batch(&mut self, requests: Vec<Request>) -> Result<Vec<io::Result<()>>, NetError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::with_capacity(512 * requests.len());
        let count = requests.len();
        for request in requests {
            self.append(&mut bytes, request.message, NLM_F_ACK | request.flags);
        }
        self.send(&bytes)?;
        let mut outcomes: Vec<Option<io::Result<()>>> = (0..count).map(|_| None).collect();
        while outcomes.iter().any(Option::is_none) {
            for message in self.receive()? {
                let index = message.header.sequence_number.wrapping_sub(first) as usize;
                if let (Some(outcome), NetlinkPayload::Error(error)) =
                    (outcomes.get_mut(index), message.payload)
                {
                    *outcome = Some(if error.code.is_some() { Err(error.to_io()) } else { Ok(()) });
                }
            }
        }
        Ok(outcomes.into_iter().flatten().collect())
    }

    /// Carries out requests in order; the first failure is the result, although what follows it was tried.
    pub(crate) fn run(&mut self, requests: Vec<Request>) -> Result<(), NetError> {
        let names: Vec<String> = requests.iter().map(|request| request.what.clone()).collect();
        for (what, outcome) in names.into_iter().zip(self.batch(requests)?) {
            outcome.map_err(|source| NetError::Link { action: what, source })?;
        }
        Ok(())
    }

    /// Asks for one thing; `None` if there is no such thing.
    pub(crate) fn get(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Option<RouteNetlinkMessage>, NetError> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, 0);
        self.send(&bytes)?;
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => return Ok(Some(message)),
                    NetlinkPayload::Error(error) if error.raw_code() == -libc_enodev() => return Ok(None),
                    NetlinkPayload::Error(error) => return Err(query_failed(error.to_io())),
                    _ => {}
                }
            }
        }
    }

    /// Asks for everything of a kind.
    pub(crate) fn dump(
        &mut self,
        message: RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetError> {
        let mut bytes = Vec::new();
        self.append(&mut bytes, message, NLM_F_DUMP);
        self.send(&bytes)?;
        let mut found = Vec::new();
        loop {
            for message in self.receive()? {
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(found),
                    NetlinkPayload::Error(error) => return Err(query_failed(error.to_io())),
                    _ => {}
                }
            }
        }
    }

    fn append(&mut self, bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        // Messages begin at multiples of four.
        let length = message.buffer_len();
        bytes.resize(start + length.next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..start + length]);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NetError> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, bytes, SendFlags::empty(), &kernel)
            .map_err(|source| query_failed(source.into()))?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<NetlinkMessage<RouteNetlinkMessage>>, NetError> {
        let mut buffer = vec![0; BUFFER];
        let length = loop {
            match rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((length, _)) => break length,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(query_failed(error.into())),
            }
        };
        let mut messages = Vec::new();
        let mut rest = &buffer[..length];
        while rest.len() >= 16 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|error| query_failed(io::Error::other(error.to_string())))?;
            let used = (message.header.length as usize).next_multiple_of(4);
            if used == 0 {
                break;
            }
            rest = rest.get(used..).unwrap_or_default();
            messages.push(message);
        }
        Ok(messages)
    }
}

fn libc_enodev() -> i32 {
    rustix::io::Errno::NODEV.raw_os_error()
}

fn query_failed(source: io::Error) -> NetError {
    NetError::Link { action: "talk to the kernel over netlink".to_owned(), source }
}
