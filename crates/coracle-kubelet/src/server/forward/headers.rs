//! Blocks of headers in SPDY/3.1: pairs of names and values, compressed as one zlib stream for each direction, which
//! begins with a dictionary that both sides know.
//!
//! What is received is inflated with bounded memory. What is sent is stored, not compressed: it is next to nothing.

use std::sync::LazyLock;

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_HAS_MORE_INPUT;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// A block that is longer, inflated, ends the connection.
const BLOCK_BYTES_MAX: usize = 16 * 1024;
/// How far back a zlib stream may refer.
const WINDOW: usize = 32 * 1024;

/// The dictionary's words, each after its length, and what follows them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host \
    if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 \
    Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept \
    Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=\
    utf-8charset=iso-8859-1,utf-,*,enq=0.";
/// Its checksum (Adler-32), by which a stream names it.
const DICTIONARY_ID: u32 = 0xe3c6_a7c2;

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS.split(' ') {
        let word = word.replace('_', " ");
        dictionary.extend_from_slice(&u32::try_from(word.len()).unwrap_or_default().to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
});

/// Names and values, in the order in which they came. Names are lower case.
pub(super) type Headers = Vec<(String, String)>;

/// Why a block is not understood. Nothing after it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HeaderError {
    #[error("headers are compressed in an unknown way")]
    Stream,
    #[error("headers are not compressed as they should be")]
    Inflate,
    #[error("headers are longer than {BLOCK_BYTES_MAX} bytes")]
    TooLong,
    #[error("headers are cut off")]
    Cut,
}

/// Reads the blocks of one direction, in order.
pub(super) struct HeaderReader {
    inflate: Box<DecompressorOxide>,
    window: Box<[u8]>,
    position: usize,
    /// The beginning of the stream, which is not yet complete.
    prelude: Option<Vec<u8>>,
}

impl HeaderReader {
    pub(super) fn new() -> Self {
        let mut window = vec![0; WINDOW].into_boxed_slice();
        window[..DICTIONARY.len()].copy_from_slice(&DICTIONARY);
        HeaderReader {
            inflate: Box::default(),
            window,
            position: DICTIONARY.len(),
            prelude: Some(Vec::new()),
        }
    }

    /// Reads one block.
    pub(super) fn read(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        // Two bytes of zlib's, and the name of the dictionary.
        if let Some(prelude) = &mut self.prelude {
            let missing = (6 - prelude.len()).min(block.len());
            prelude.extend_from_slice(&block[..missing]);
            block = &block[missing..];
            let [method, flags, id @ ..] = prelude.as_slice() else { return Err(HeaderError::Cut) };
            let valid = method & 0x0f == 8 && u16::from_be_bytes([*method, *flags]).is_multiple_of(31);
            if !valid || flags & 0x20 == 0 || id != DICTIONARY_ID.to_be_bytes() {
                return Err(HeaderError::Stream);
            }
            self.prelude = None;
        }
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, mut block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut out = Vec::new();
        loop {
            let (status, used, made) = decompress(
                &mut self.inflate,
                block,
                &mut self.window,
                self.position,
                TINFL_FLAG_HAS_MORE_INPUT,
            );
            out.extend_from_slice(&self.window[self.position..self.position + made]);
            self.position = (self.position + made) % WINDOW;
            block = &block[used..];
            if out.len() > BLOCK_BYTES_MAX {
                return Err(HeaderError::TooLong);
            }
            match status {
                TINFLStatus::NeedsMoreInput if block.is_empty() => return Ok(out),
                TINFLStatus::HasMoreOutput => {}
                _ => return Err(HeaderError::Inflate),
            }
        }
    }
}

fn parse(block: &[u8]) -> Result<Headers, HeaderError> {
    let mut rest = block;
    let count = number(&mut rest)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let (name, value) = (text(&mut rest)?, text(&mut rest)?);
        headers.push((name.to_ascii_lowercase(), value));
    }
    Ok(headers)
}

fn number(rest: &mut &[u8]) -> Result<usize, HeaderError> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(HeaderError::Cut)?;
    *rest = after;
    usize::try_from(u32::from_be_bytes(*number)).map_err(|_| HeaderError::Cut)
}

fn text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(HeaderError::Cut)?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Writes the blocks of one direction, in order.
#[derive(Default)]
pub(super) struct HeaderWriter {
    begun: bool,
}

impl HeaderWriter {
    /// A block without headers, which is all that is ever said.
    pub(super) fn empty(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            // Deflate with a dictionary, and a check that makes it a multiple of 31.
            out.extend_from_slice(&[0x78, 0x20]);
            out.extend_from_slice(&DICTIONARY_ID.to_be_bytes());
        }
        // Four zeros as a stored block, and an empty one, which is how a stream is flushed.
        out.extend_from_slice(&[0, 4, 0, !4, !0, 0, 0, 0, 0]);
        out.extend_from_slice(&[0, 0, 0, !0, !0]);
        out
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    /// A block as a client would send it, stored.
    pub(in crate::server) fn stored(headers: &[(&str, &str)], first: bool) -> Vec<u8> {
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        let length = u16::try_from(block.len()).unwrap();
        let mut out = if first { vec![0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2] } else { Vec::new() };
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(&block);
        out.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        out
    }

    /// What kubectl 1.37 and 1.32 sent for the error stream of their first connection to port 8080.
    const FROM_KUBECTL: [&str; 2] = [
        "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c60616061c0c0c0c0590489c64c50f2663400000000ffff",
        "78f9e3c6a7c202253a060606ce2248fc6482d22da30138e59514a526e6420b17d65450d0430aea22709eb030b03000000000ffff",
    ];

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        assert_eq!((DICTIONARY.len(), adler32(&DICTIONARY)), (1423, DICTIONARY_ID));
    }

    #[test]
    fn blocks_of_a_real_client_are_read() {
        for block in FROM_KUBECTL {
            let bytes: Vec<u8> = (0..block.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&block[at..at + 2], 16).unwrap())
                .collect();
            let mut headers = HeaderReader::new().read(&bytes).unwrap();
            headers.sort();
            let expected = [("port", "8080"), ("requestid", "0"), ("streamtype", "error")];
            assert_eq!(headers, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::new());
        for _ in 0..3 {
            assert_eq!(reader.read(&writer.empty()), Ok(Vec::new()));
        }
        let mut reader = HeaderReader::new();
        let pairs = [("Port", "80"), ("streamType", "data")];
        let expected = [("port", "80"), ("streamtype", "data")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        assert_eq!(reader.read(&stored(&pairs, true)).unwrap(), expected);
        assert_eq!(reader.read(&stored(&pairs, false)).unwrap(), expected);
    }

    #[test]
    fn broken_blocks_are_refused() {
        let read = |bytes: &[u8]| HeaderReader::new().read(bytes).unwrap_err();
        assert_eq!(read(&[0x78]), HeaderError::Cut);
        assert_eq!(read(&[0x78, 0x9c, 0, 0, 0, 0]), HeaderError::Stream);
        assert_eq!(read(&[0x78, 0x20, 0, 0, 0, 1]), HeaderError::Stream);
        let mut bad = stored(&[("a", "b")], true);
        bad[7] ^= 1;
        assert_eq!(read(&bad), HeaderError::Inflate);
        let mut many = stored(&[("a", "b")], true);
        many[11] = 0xff;
        assert_eq!(read(&many), HeaderError::Cut);
        // A zero and its repetitions in fixed codes: 258 bytes for each 13 bits.
        let repeat = [1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0];
        let start = [0, 1, 0, 0, 0, 1, 1, 0, 0, 0, 0];
        let bits: Vec<u8> = start.into_iter().chain(repeat.repeat(4000)).collect();
        let bytes = bits.chunks(8).map(|bits| bits.iter().rev().fold(0u8, |byte, bit| byte << 1 | bit));
        let bomb: Vec<u8> = [0x78, 0x20, 0xe3, 0xc6, 0xa7, 0xc2].into_iter().chain(bytes).collect();
        assert_eq!(read(&bomb), HeaderError::TooLong);
    }
}
