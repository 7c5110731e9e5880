//! What scripted containers write: real lines in real log files, in the form that runtimes use.

use std::io::Write as _;
use std::path::Path;

use jiff::Timestamp;

use super::{Line, ScriptedRuntime};
use crate::{ContainerId, ContainerState};

impl ScriptedRuntime {
    /// Writes the lines when their time comes, as long as the container runs.
    pub(super) fn write_output(&self, id: &ContainerId, lines: Vec<Line>) {
        let (runtime, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let begun = runtime.0.clock.elapsed();
            for line in lines {
                let passed = runtime.0.clock.elapsed().saturating_sub(begun);
                runtime.0.clock.sleep(line.after.saturating_sub(passed)).await;
                let path = {
                    let state = runtime.state();
                    let run = state.containers.get(&id);
                    let runs = run.filter(|run| run.status.container.state == ContainerState::Running);
                    runs.map(|run| run.status.log_path.clone())
                };
                let Some(path) = path else { return };
                // What a full disk of the host does to a simulated log is of no interest.
                let _ = append(&path, runtime.now(), &line);
                runtime.show(&id, line.stderr, format!("{}\n", line.text).into());
            }
        });
    }
}

pub(super) fn append(path: &Path, now: Timestamp, line: &Line) -> std::io::Result<()> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    let stream = if line.stderr { "stderr" } else { "stdout" };
    writeln!(file, "{now:.9} {stream} F {}", line.text)
}
