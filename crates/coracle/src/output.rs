//! Talking to people: results on standard output, everything else on standard error, colour only on a terminal.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::Duration;

/// Prints an error with its causes, one to a line.
pub(crate) fn error(error: &anyhow::Error) {
    let mut stderr = std::io::stderr().lock();
    let label = paint(stderr.is_terminal(), "1;31", "error:");
    let _ = writeln!(stderr, "{label} {error}");
    for cause in causes(error) {
        let _ = writeln!(stderr, "  because: {cause}");
    }
}

/// The causes of an error, but for those that the line before ends with.
fn causes(error: &anyhow::Error) -> Vec<String> {
    let mut said = error.to_string();
    let mut causes = Vec::new();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.ends_with(&cause) {
            causes.push(cause.clone());
        }
        said = cause;
    }
    causes
}

/// Prints one line of progress, with the time since the start of the work.
pub(crate) fn progress(elapsed: Duration, line: impl Display) {
    let mut stderr = std::io::stderr().lock();
    let time = format!("{:>5.2}s", elapsed.as_secs_f64());
    let time = paint(stderr.is_terminal(), "2", &time);
    let _ = writeln!(stderr, "{time}  {line}");
}

/// Prints a remark that is no result.
pub(crate) fn note(line: impl Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Prints a result. A reader that has gone away is no error.
pub(crate) fn result(text: impl Display) {
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Aligns rows into columns under a header, as kubectl does.
pub(crate) fn columns(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([header[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        padded.join("   ").trim_end().to_owned()
    };
    let mut lines = vec![line(&mut header.iter().copied())];
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

fn paint(terminal: bool, code: &str, text: &str) -> String {
    if terminal { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error =
            anyhow::anyhow!("no such file").context("cannot open x: no such file").context("cannot import x");
        assert_eq!(causes(&error), ["cannot open x: no such file"]);
    }

    #[test]
    fn columns_align_under_their_header() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["longer".into(), "2".into()]];
        assert_eq!(columns(&["NAME", "N"], &rows), "NAME     N\na        1\nlonger   2");
    }
}
