//! Frames of SPDY/3.1, as far as port forwarding needs them. No I/O.
//!
//! Data is passed on in the pieces in which it comes, so that a frame of any length needs no memory.

use bytes::{Buf, Bytes, BytesMut};

use super::headers::{HeaderError, HeaderReader, HeaderWriter, Headers};

/// A control frame that is longer ends the connection.
const CONTROL_BYTES_MAX: usize = 64 * 1024;
const HEAD: usize = 8;
const FLAG_FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Why a stream is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reset {
    /// It cannot be taken now.
    Refused = 3,
    /// It is not wanted.
    Cancel = 5,
}

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// A new stream.
    Open { stream: u32, headers: Headers, fin: bool },
    /// A piece of a stream; with `fin` the last.
    Data { stream: u32, data: Bytes, fin: bool },
    /// A stream is broken off.
    Reset { stream: u32 },
    /// To be sent back.
    Ping { id: u32 },
    /// Nothing more will be opened.
    GoAway,
}

/// Why a connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("a frame of version {0} of SPDY")]
    Version(u16),
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    #[error("a frame of type {0} is too short")]
    TooShort(u16),
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// Cuts what comes into frames.
pub(super) struct Parser {
    buffer: BytesMut,
    /// The frame of data that is under way: its stream, what is missing, and whether it is the last.
    data: Option<(u32, usize, bool)>,
    headers: HeaderReader,
}

impl Parser {
    pub(super) fn new() -> Self {
        Parser { buffer: BytesMut::new(), data: None, headers: HeaderReader::new() }
    }

    /// Takes what has come.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, or piece of one, that is there.
    pub(super) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some((stream, left, last)) = self.data {
                let length = left.min(self.buffer.len());
                if length == 0 && left > 0 {
                    return Ok(None);
                }
                let data = self.buffer.split_to(length).freeze();
                let whole = length == left;
                self.data = (!whole).then_some((stream, left - length, last));
                return Ok(Some(Frame::Data { stream, data, fin: whole && last }));
            }
            let Some(head) = self.buffer.first_chunk::<HEAD>() else { return Ok(None) };
            let [a, b, c, d, flags, length @ ..] = *head;
            let length = usize::try_from(u32::from_be_bytes([0, length[0], length[1], length[2]]))
                .map_err(|_| FrameError::TooLong(usize::MAX))?;
            if a & 0x80 == 0 {
                self.buffer.advance(HEAD);
                self.data = Some((u32::from_be_bytes([a, b, c, d]), length, flags & FLAG_FIN != 0));
                continue;
            }
            let (version, kind) = (u16::from_be_bytes([a & 0x7f, b]), u16::from_be_bytes([c, d]));
            if version != 3 {
                return Err(FrameError::Version(version));
            }
            if length > CONTROL_BYTES_MAX {
                return Err(FrameError::TooLong(length));
            }
            if self.buffer.len() < HEAD + length {
                return Ok(None);
            }
            self.buffer.advance(HEAD);
            let body = self.buffer.split_to(length);
            if let Some(frame) = self.control(kind, flags, &body)? {
                return Ok(Some(frame));
            }
        }
    }

    fn control(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Option<Frame>, FrameError> {
        let number = |at: usize| match body.get(at..at + 4) {
            // The first bit is reserved.
            Some(&[a, b, c, d]) => Ok(u32::from_be_bytes([a & 0x7f, b, c, d])),
            _ => Err(FrameError::TooShort(kind)),
        };
        let block = |from: usize| body.get(from..).ok_or(FrameError::TooShort(kind));
        Ok(match kind {
            SYN_STREAM => {
                // After the stream come one that it belongs to, a priority and a slot.
                let headers = self.headers.read(block(10)?)?;
                Some(Frame::Open { stream: number(0)?, headers, fin: flags & FLAG_FIN != 0 })
            }
            SYN_REPLY | HEADERS => {
                // Nothing that is wanted here, but all blocks are one stream.
                self.headers.read(block(4)?)?;
                None
            }
            RST_STREAM => Some(Frame::Reset { stream: number(0)? }),
            PING => Some(Frame::Ping { id: number(0)? }),
            GOAWAY => Some(Frame::GoAway),
            // Settings, windows, and what is yet to come.
            _ => None,
        })
    }
}

fn frame(kind: u16, body: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(HEAD + body.len());
    out.extend_from_slice(&[0x80, 3]);
    out.extend_from_slice(&kind.to_be_bytes());
    // Without flags, the length fits in the three bytes behind them.
    out.extend_from_slice(&u32::try_from(body.len()).unwrap_or_default().to_be_bytes());
    out.extend_from_slice(body);
    out.into()
}

/// A stream is taken.
pub(super) fn reply(stream: u32, headers: &mut HeaderWriter) -> Bytes {
    frame(SYN_REPLY, &[&stream.to_be_bytes()[..], &headers.empty()].concat())
}

/// A stream is broken off.
pub(super) fn reset(stream: u32, why: Reset) -> Bytes {
    frame(RST_STREAM, &[stream.to_be_bytes(), (why as u32).to_be_bytes()].concat())
}

/// The answer to a ping.
pub(super) fn pong(id: u32) -> Bytes {
    frame(PING, &id.to_be_bytes())
}

/// A piece of a stream of at most 16 MiB; with `fin` the last.
pub(super) fn data(stream: u32, data: &[u8], fin: bool) -> Bytes {
    let mut out = Vec::with_capacity(HEAD + data.len());
    out.extend_from_slice(&stream.to_be_bytes());
    let length = u32::try_from(data.len()).unwrap_or_default();
    out.extend_from_slice(&(u32::from(fin) << 24 | length).to_be_bytes());
    out.extend_from_slice(data);
    out.into()
}

#[cfg(test)]
mod tests {
    use super::super::headers::tests::stored;
    use super::*;

    fn open(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
        let body = [&stream.to_be_bytes()[..], &[0; 6], block].concat();
        let mut bytes = frame(SYN_STREAM, &body).to_vec();
        bytes[4] = flags;
        bytes
    }

    fn all(parser: &mut Parser) -> Vec<Frame> {
        std::iter::from_fn(|| parser.next().unwrap()).collect()
    }

    /// A connection's worth of what a client says.
    fn conversation() -> (Vec<u8>, Vec<Frame>) {
        let headers = vec![("port".to_owned(), "80".to_owned())];
        let bytes = [
            open(1, FLAG_FIN, &stored(&[("port", "80")], true)),
            open(3, 0, &stored(&[("port", "80")], false)),
            data(3, b"hello", false).to_vec(),
            // Settings, which are passed over.
            frame(4, &[0; 4]).to_vec(),
            pong(7).to_vec(),
            data(3, b"", true).to_vec(),
            reset(1, Reset::Cancel).to_vec(),
            frame(GOAWAY, &[0; 8]).to_vec(),
        ]
        .concat();
        let frames = vec![
            Frame::Open { stream: 1, headers: headers.clone(), fin: true },
            Frame::Open { stream: 3, headers, fin: false },
            Frame::Data { stream: 3, data: "hello".into(), fin: false },
            Frame::Ping { id: 7 },
            Frame::Data { stream: 3, data: Bytes::new(), fin: true },
            Frame::Reset { stream: 1 },
            Frame::GoAway,
        ];
        (bytes, frames)
    }

    #[test]
    fn frames_are_cut_wherever_the_network_cuts() {
        let (bytes, frames) = conversation();
        let mut parser = Parser::new();
        parser.feed(&bytes);
        assert_eq!(all(&mut parser), frames);
        let mut parser = Parser::new();
        let mut seen = Vec::new();
        for byte in bytes {
            parser.feed(&[byte]);
            seen.extend(all(&mut parser));
        }
        // Data comes in pieces then.
        let data = |frame: &&Frame| matches!(frame, Frame::Data { stream: 3, .. });
        let pieces: Vec<u8> = seen
            .iter()
            .filter(data)
            .flat_map(|frame| if let Frame::Data { data, .. } = frame { data.to_vec() } else { Vec::new() })
            .collect();
        assert_eq!(pieces, b"hello");
        assert_eq!(seen.last(), Some(&Frame::GoAway));
    }

    #[test]
    fn a_long_frame_of_data_is_passed_on_as_it_comes() {
        let mut parser = Parser::new();
        parser.feed(&[0, 0, 0, 5, 1, 0xff, 0xff, 0xff]);
        assert_eq!(parser.next(), Ok(None));
        let mut left: usize = 0xff_ffff;
        while left > 0 {
            let piece = left.min(100_000);
            parser.feed(&vec![b'x'; piece]);
            left -= piece;
            let Ok(Some(Frame::Data { stream: 5, data, fin })) = parser.next() else { panic!("no data") };
            assert_eq!((data.len(), fin), (piece, left == 0));
        }
        assert_eq!(parser.next(), Ok(None));
    }

    #[test]
    fn what_is_no_frame_ends_the_connection() {
        let table: &[(&[u8], FrameError)] = &[
            (&[0x80, 2, 0, 1, 0, 0, 0, 0], FrameError::Version(2)),
            (&[0x80, 3, 0, 1, 0, 1, 0, 1], FrameError::TooLong(65537)),
            (&[0x80, 3, 0, 1, 0, 0, 0, 2, 0, 0], FrameError::TooShort(1)),
            (&[0x80, 3, 0, 3, 0, 0, 0, 3, 0, 0, 1], FrameError::TooShort(3)),
            (&[0x80, 3, 0, 6, 0, 0, 0, 0], FrameError::TooShort(6)),
        ];
        for (bytes, expected) in table {
            let mut parser = Parser::new();
            parser.feed(bytes);
            assert_eq!(parser.next().as_ref(), Err(expected));
        }
    }
}
