//! The client's side of SPDY, for tests.

use super::headers::tests::stored;

/// What a client says.
pub(in crate::server) enum Said<'a> {
    Open { stream: u32, headers: &'a [(&'a str, &'a str)] },
    Data { stream: u32, data: &'a [u8], fin: bool },
    Reset { stream: u32 },
    Ping { id: u32 },
    Raw(&'a [u8]),
}

/// What a client hears.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::server) enum Heard {
    Reply { stream: u32 },
    Data { stream: u32, data: Vec<u8>, fin: bool },
    Reset { stream: u32, why: u32 },
    Ping { id: u32 },
}

#[derive(Default)]
pub(in crate::server) struct Client {
    begun: bool,
    buffer: Vec<u8>,
}

impl Client {
    pub(in crate::server) fn say(&mut self, said: Said<'_>) -> Vec<u8> {
        let control = |kind: u8, body: &[u8]| {
            let mut out = vec![0x80, 3, 0, kind];
            out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            out.extend_from_slice(body);
            out
        };
        match said {
            Said::Open { stream, headers } => {
                let block = stored(headers, !std::mem::replace(&mut self.begun, true));
                control(1, &[&stream.to_be_bytes()[..], &[0; 6], &block].concat())
            }
            Said::Data { stream, data, fin } => {
                let length = u32::try_from(data.len()).unwrap() | u32::from(fin) << 24;
                [&stream.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
            }
            Said::Reset { stream } => control(3, &[stream.to_be_bytes(), 5u32.to_be_bytes()].concat()),
            Said::Ping { id } => control(6, &id.to_be_bytes()),
            Said::Raw(bytes) => bytes.to_vec(),
        }
    }

    pub(in crate::server) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    pub(in crate::server) fn hear(&mut self) -> Option<Heard> {
        let number = |at: usize| u32::from_be_bytes(self.buffer[at..at + 4].try_into().unwrap());
        if self.buffer.len() < 8 {
            return None;
        }
        let length = (number(4) & 0xff_ffff) as usize;
        if self.buffer.len() < 8 + length {
            return None;
        }
        let heard = match number(0) {
            0x8003_0002 => Heard::Reply { stream: number(8) },
            0x8003_0003 => Heard::Reset { stream: number(8), why: number(12) },
            0x8003_0006 => Heard::Ping { id: number(8) },
            stream if stream & 0x8000_0000 == 0 => {
                let fin = self.buffer[4] & 1 == 1;
                Heard::Data { stream, data: self.buffer[8..8 + length].to_vec(), fin }
            }
            other => panic!("an unexpected frame {other:x}"),
        };
        self.buffer.drain(..8 + length);
        Some(heard)
    }
}
