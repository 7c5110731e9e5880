//! Interactive sessions: exec, attach and port-forward as byte channels.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use crate::{ContainerId, CriResult};

/// A command to run in a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// The container.
    pub container: ContainerId,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Give the command a terminal; its stderr is then part of stdout.
    pub tty: bool,
    /// Whether the command has standard input.
    pub stdin: bool,
}

/// A container whose first process's streams are wanted, from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// The container.
    pub container: ContainerId,
    /// Whether to write to its standard input. A container that was made without one takes none.
    pub stdin: bool,
    /// Whether to read its standard output, or its terminal.
    pub stdout: bool,
    /// Whether to read its standard error. A terminal has none.
    pub stderr: bool,
}

/// A connection to a port of a Pod.
pub type PortStream = Box<dyn Duplex>;

/// Bytes both ways.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

/// One running session.
///
/// Dropping `stdin` closes standard input. Output channels end when the stream ends. Dropping the whole session
/// ends the command (exec) or detaches (attach). All channels are bounded. A reader of an exec that stalls stalls the
/// program, and nothing is lost; one of an attach is cut off, because the program is not its own.
#[derive(Debug)]
pub struct StreamSession {
    /// Standard input.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Standard output, or the terminal.
    pub stdout: mpsc::Receiver<Bytes>,
    /// Standard error; ends at once with a terminal.
    pub stderr: mpsc::Receiver<Bytes>,
    /// Changes of the terminal's size.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
    /// The exit code, when the command has ended; all output has been sent before. Of an attach it is 0, once the
    /// container has ended or the attacher has closed a standard input that is not the container's to lose.
    pub exit: oneshot::Receiver<CriResult<i32>>,
}
