//! Container logs: where they are and how they are read.
//!
//! A log is a file of lines `RFC3339Nano stdout|stderr F|P text`, the format of the Container Runtime Interface.
//! The runtime writes it; this module only reads. `options` is what a request asks for, `decode` turns lines into
//! output without doing I/O, `file` opens files safely and finds the last lines, `reader` puts them together and
//! follows a log while it grows and is rotated.

mod options;
mod paths;

pub use options::{LogOptions, LogOptionsError, LogStream};
pub use paths::{container_log_path, pod_log_directory};
