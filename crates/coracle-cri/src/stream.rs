//! Interactive sessions: exec, attach and port-forward as byte channels.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
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
/// ends the command (exec) or detaches (attach). All channels are bounded: a reader that stalls stalls the
/// program, and nothing is lost.
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
    /// The exit code, when the command has ended; all output has been sent before.
    pub exit: oneshot::Receiver<CriResult<i32>>,
}
