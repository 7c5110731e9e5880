//! Private files: read only if nobody else can read them, written so that a crash leaves the old or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::PkiError;

fn failed<'a>(action: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> PkiError + 'a {
    move |source| PkiError::File { action, path: path.to_path_buf(), source }
}

/// Makes `path` and its parents if they are missing, readable by their owner alone.
pub(super) fn private_directory(path: &Path) -> Result<(), PkiError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("create the directory", path))
}

/// Reads a file that nobody but its owner, this process, may read or write. Damage shows when it is used: what is no
/// text is no key either.
pub(super) fn read_private(path: &Path) -> Result<String, PkiError> {
    let metadata = fs::metadata(path).map_err(failed("look at", path))?;
    let exposed =
        |problem: String, remedy: String| PkiError::Exposed { path: path.to_path_buf(), problem, remedy };
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return Err(exposed(
            format!("belongs to user {} but this process runs as user {me}", metadata.uid()),
            format!("run as its owner, or: chown {me} {}", path.display()),
        ));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(exposed(
            format!("has mode {mode:04o}: others can use it"),
            format!("chmod 600 {}", path.display()),
        ));
    }
    let bytes = fs::read(path).map_err(failed("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes `contents` to `path` with mode 0600: a reader, or a crash at any moment, sees the old file or the
/// whole new one, and what was written survives a power cut once this returns.
///
/// # Errors
/// [`PkiError::File`] with what failed; a file that existed before is then unchanged.
pub fn write_private(path: &Path, contents: &[u8]) -> Result<(), PkiError> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || {
        // Whatever a crash left here is not ours to trust: its mode may be wrong.
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", path))
}
