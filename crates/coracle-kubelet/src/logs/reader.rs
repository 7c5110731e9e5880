//! Reading a log: from where the request begins, through rotations, to where it ends.

use std::fs::File;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;

use super::LogOptions;
use super::decode::Decoder;
use super::file::{BLOCK, LogError, LogPlace, start_of_last_lines};
use super::watch::{LogWatcher, Subscription};

/// A log being read.
///
/// Nothing is read ahead: the next piece of the file is read when the next piece of output is asked for. The
/// blocking reads happen on Tokio's threads for them.
pub struct LogReader {
    /// Away while a read is under way.
    cursor: Option<Cursor>,
    follow: Option<Follow>,
}

struct Follow {
    changes: Subscription,
    ended: BoxFuture<'static, ()>,
    has_ended: bool,
}

/// A place in a log. All its methods block.
struct Cursor {
    place: LogPlace,
    file: File,
    /// The file after this one, once there is one.
    next: Option<File>,
    position: u64,
    decoder: Decoder,
}

enum Step {
    Output(Bytes),
    /// At the end of what has been written so far.
    CaughtUp,
    /// Nothing more is wanted.
    Done,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("follows", &self.follow.is_some()).finish_non_exhaustive()
    }
}

impl LogReader {
    /// Opens the log `path`, which must be below the directory `root`.
    ///
    /// With `options.follow` it goes on until `ended` resolves and all that was written by then has been read.
    ///
    /// # Errors
    /// See [`LogError`].
    pub async fn open(
        root: &Path,
        path: &Path,
        options: &LogOptions,
        watcher: &Arc<LogWatcher>,
        ended: BoxFuture<'static, ()>,
    ) -> Result<Self, LogError> {
        let (root, path, options) = (root.to_owned(), path.to_owned(), options.clone());
        let watcher = options.follow.then(|| Arc::clone(watcher));
        let (cursor, changes) = blocking(move || {
            let place = LogPlace::locate(&root, &path)?;
            // Watched before it is read: a change in between is seen twice, and never missed.
            let changes = watcher.map(|watcher| watcher.subscribe(place.directory())).transpose();
            let changes = changes.map_err(|source| LogError::Watch {
                path: path.parent().unwrap_or(&path).to_owned(),
                source,
            })?;
            Ok::<_, LogError>((Cursor::open(place, &options)?, changes))
        })
        .await?;
        let follow = changes.map(|changes| Follow { changes, ended, has_ended: false });
        Ok(LogReader { cursor: Some(cursor), follow })
    }

    /// The next piece of output; `None` at the end. After an error there is nothing more.
    ///
    /// Not to be called again after its future was dropped.
    pub async fn next_chunk(&mut self) -> Option<Result<Bytes, LogError>> {
        loop {
            let mut cursor = self.cursor.take()?;
            let follows = self.follow.is_some();
            let (step, cursor) = blocking(move || (cursor.step(follows), cursor)).await;
            match step {
                Err(error) => return Some(Err(error)),
                Ok(Step::Done) => return None,
                Ok(Step::Output(output)) => {
                    self.cursor = Some(cursor);
                    return Some(Ok(output));
                }
                Ok(Step::CaughtUp) => {
                    let follow = self.follow.as_mut()?;
                    if follow.has_ended {
                        return None;
                    }
                    coracle_clock::select! {
                        () = &mut follow.ended => follow.has_ended = true,
                        () = follow.changes.changed() => {}
                    }
                    self.cursor = Some(cursor);
                }
            }
        }
    }
}

impl Cursor {
    fn open(place: LogPlace, options: &LogOptions) -> Result<Self, LogError> {
        let file = place.open()?;
        let position = match options.tail_lines {
            Some(lines) => start_of_last_lines(&file, lines).map_err(|source| place.read_error(source))?,
            None => 0,
        };
        Ok(Cursor { place, file, next: None, position, decoder: Decoder::new(options) })
    }

    /// Reads until there is some output, or no more to read.
    fn step(&mut self, follows: bool) -> Result<Step, LogError> {
        if self.decoder.is_done() {
            return Ok(Step::Done);
        }
        let mut block = vec![0; BLOCK];
        let mut output = Vec::new();
        loop {
            let length = match self.file.read_at(&mut block, self.position) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                length => length.map_err(|source| self.place.read_error(source))?,
            };
            self.position += length as u64;
            let flow = self.decoder.push(&block[..length], &mut output);
            if !output.is_empty() {
                return Ok(Step::Output(output.into()));
            }
            if flow == ControlFlow::Break(()) {
                return Ok(Step::Done);
            }
            if length == 0 && !(follows && self.advance()?) {
                return Ok(Step::CaughtUp);
            }
        }
    }

    /// At the end of the file: whether there is more to read after all.
    fn advance(&mut self) -> Result<bool, LogError> {
        if let Some(next) = self.next.take() {
            self.file = next;
            self.position = 0;
            self.decoder.end_of_file();
            return Ok(true);
        }
        self.next = self.place.successor(&self.file)?;
        if self.next.is_some() {
            // Something may have been written to this one after we came to its end: once more.
            return Ok(true);
        }
        let length = self.file.metadata().map_err(|source| self.place.read_error(source))?.len();
        if length < self.position {
            tracing::debug!(path = %self.place.path().display(), "log truncated, reading it from its start");
            self.position = 0;
            self.decoder.end_of_file();
            return Ok(true);
        }
        Ok(false)
    }
}

/// The end of a log, for a termination message: of the last `lines` lines the last `bytes` bytes. Blocks.
///
/// # Errors
/// See [`LogError`].
pub fn last_output(root: &Path, path: &Path, lines: u64, bytes: usize) -> Result<Vec<u8>, LogError> {
    let options = LogOptions { tail_lines: Some(lines), ..LogOptions::default() };
    let mut cursor = Cursor::open(LogPlace::locate(root, path)?, &options)?;
    let mut end = Vec::new();
    while let Step::Output(output) = cursor.step(false)? {
        end.extend_from_slice(&output);
        end.drain(..end.len().saturating_sub(bytes));
    }
    Ok(end)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels it, and then nobody waits for us.
            Err(_) => std::future::pending().await,
        },
    }
}
