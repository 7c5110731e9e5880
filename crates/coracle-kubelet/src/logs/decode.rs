//! From the lines of a log file to what a reader sees. No I/O.

use std::ops::ControlFlow;

use jiff::Timestamp;

use super::{LogOptions, LogStream};

/// What comes before the text of a line is never longer: a timestamp, a stream, a list of tags.
const HEAD_MAX: usize = 256;

/// Turns pieces of a log file, cut anywhere, into output.
///
/// The text of a line passes through as it comes, so that a line of any length needs no memory. A line that is
/// not in the format is left out.
#[derive(Debug)]
pub(super) struct Decoder {
    since: Option<Timestamp>,
    timestamps: bool,
    stream: LogStream,
    bytes_left: Option<u64>,
    lines_left: Option<u64>,
    state: State,
    /// Whether the next text begins a line of the output: the one before ended with a newline.
    at_line_start: bool,
    head: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Before the text; what there is of it is in `head`.
    Head,
    /// In the text.
    Text { shown: bool, partial: bool, tracked: bool, empty: bool },
    /// In a line that is not in the format.
    Skip,
}

/// What stands before the text.
struct Head<'a> {
    timestamp: &'a str,
    at: Timestamp,
    stream: LogStream,
    partial: bool,
}

impl Decoder {
    pub(super) fn new(options: &LogOptions) -> Self {
        Decoder {
            since: options.since,
            timestamps: options.timestamps,
            stream: options.stream,
            bytes_left: options.limit_bytes,
            // Only so many lines, even if the file grows while it is read; a follower wants what comes.
            lines_left: options.tail_lines.filter(|_| !options.follow),
            state: State::Head,
            at_line_start: true,
            head: Vec::new(),
        }
    }

    /// Whether nothing more will come out.
    pub(super) fn is_done(&self) -> bool {
        self.bytes_left == Some(0) || self.lines_left == Some(0)
    }

    /// Takes the next piece of the file. `Break` when nothing more will come out.
    pub(super) fn push(&mut self, mut input: &[u8], output: &mut Vec<u8>) -> ControlFlow<()> {
        while !input.is_empty() {
            if self.is_done() {
                return ControlFlow::Break(());
            }
            let line_end = input.iter().position(|byte| *byte == b'\n');
            input = match self.state {
                State::Head => self.take_head(input, line_end, output),
                State::Text { .. } => self.take_text(input, line_end, output),
                State::Skip => match line_end {
                    Some(end) => {
                        self.state = State::Head;
                        &input[end + 1..]
                    }
                    None => &[],
                },
            };
        }
        if self.is_done() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The file is at its end and another one follows: a torn line is not continued there.
    pub(super) fn end_of_file(&mut self) {
        self.state = State::Head;
        self.head.clear();
    }

    fn take_head<'a>(&mut self, input: &'a [u8], line_end: Option<usize>, output: &mut Vec<u8>) -> &'a [u8] {
        let line = &input[..line_end.unwrap_or(input.len())];
        let spaces_before = self.head.iter().filter(|byte| **byte == b' ').count();
        let third_space = line.iter().enumerate().filter(|(_, byte)| **byte == b' ').nth(2 - spaces_before);
        let Some((end, _)) = third_space else {
            return match line_end {
                Some(end) => {
                    self.head.clear();
                    &input[end + 1..]
                }
                None if self.head.len() + line.len() > HEAD_MAX => {
                    self.head.clear();
                    self.state = State::Skip;
                    &[]
                }
                None => {
                    self.head.extend_from_slice(line);
                    &[]
                }
            };
        };
        self.head.extend_from_slice(&line[..end]);
        let head = std::mem::take(&mut self.head);
        self.state = match parse_head(&head) {
            None => State::Skip,
            Some(head) => {
                let tracked = self.stream == LogStream::All || self.stream == head.stream;
                let shown = tracked && self.since.is_none_or(|since| head.at >= since);
                if shown && self.timestamps && self.at_line_start {
                    let prefix = fixed_width(head.timestamp);
                    self.emit(prefix.as_bytes(), output);
                }
                State::Text { shown, partial: head.partial, tracked, empty: true }
            }
        };
        self.head = head;
        self.head.clear();
        &input[end + 1..]
    }

    fn take_text<'a>(&mut self, input: &'a [u8], line_end: Option<usize>, output: &mut Vec<u8>) -> &'a [u8] {
        let State::Text { shown, partial, tracked, empty } = self.state else { return input };
        let Some(end) = line_end else {
            if shown {
                self.emit(input, output);
            }
            self.state = State::Text { shown, partial, tracked, empty: false };
            return &[];
        };
        if shown {
            // The newline of a partial line is the format's, not the text's.
            self.emit(&input[..if partial { end } else { end + 1 }], output);
        }
        if tracked {
            self.at_line_start = !partial || (empty && end == 0);
        }
        if let Some(lines) = &mut self.lines_left {
            *lines = lines.saturating_sub(1);
        }
        self.state = State::Head;
        &input[end + 1..]
    }

    fn emit(&mut self, bytes: &[u8], output: &mut Vec<u8>) {
        let room = self.bytes_left.map_or(bytes.len(), |left| {
            usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()))
        });
        output.extend_from_slice(&bytes[..room]);
        if let Some(left) = &mut self.bytes_left {
            *left -= room as u64;
        }
    }
}

fn parse_head(head: &[u8]) -> Option<Head<'_>> {
    let mut parts = std::str::from_utf8(head).ok()?.split(' ');
    let timestamp = parts.next()?;
    // `2006-01-02T15:04:05` and a zone at least; the parser alone would take other forms too.
    if timestamp.len() < 20 || timestamp.as_bytes()[10] != b'T' || timestamp.as_bytes()[16] != b':' {
        return None;
    }
    let at = timestamp.parse().ok()?;
    let stream = match parts.next()? {
        "stdout" => LogStream::Stdout,
        "stderr" => LogStream::Stderr,
        _ => return None,
    };
    // There may be more tags in the future, separated by colons.
    let partial = parts.next()?.split(':').next() == Some("P");
    Some(Head { timestamp, at, stream, partial })
}

/// The timestamp with nine digits of fraction, in its own zone, and a space.
fn fixed_width(timestamp: &str) -> String {
    let (seconds, rest) = timestamp.split_at(19);
    let rest = rest.strip_prefix(['.', ',']).unwrap_or(rest);
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let (fraction, zone) = rest.split_at(digits);
    let fraction = &fraction[..digits.min(9)];
    format!("{seconds}.{fraction:0<9}{zone} ")
}
