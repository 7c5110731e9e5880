//! Container logs: where they are and how they are read.
//!
//! A log is a file of lines `RFC3339Nano stdout|stderr F|P text`, the format of the Container Runtime Interface.
//! The runtime writes it; this module only reads. `options` is what a request asks for, `decode` turns lines into
//! output without doing I/O, `file` opens files safely and finds the last lines, `watch` tells of changes, and
//! `reader` puts them together: it follows a log while it grows and is rotated, with bounded memory.
//!
//! As upstream, a reader begins in the current file: what was rotated away before it began is not shown.

mod decode;
mod file;
mod options;
mod paths;
mod reader;
#[cfg(test)]
mod tests;
mod watch;

pub use file::LogError;
pub(crate) use file::remove_logs;
pub use options::{LogOptions, LogOptionsError, LogStream};
pub use paths::{container_log_path, pod_log_directory};
pub use reader::{LogReader, last_output};
pub use watch::LogWatcher;
