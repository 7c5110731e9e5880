//! `coracle sim`: plays a scenario on virtual time and says which expectations held.

mod edge;
mod fuzz;
mod serve;

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use coracle_clock::Clock;
use coracle_sim::scenario::{self, Play, Report, Scenario, Stopped, Tell};

use crate::cli::{Form, Sim, Speed};
use crate::{memory, output};

/// Something did not hold.
const FAILED: u8 = 1;
/// The scenario is none.
const BAD_INPUT: u8 = 2;
/// How much real time passes between two steps of a run that is not as fast as can be.
const BEAT: Duration = Duration::from_millis(50);

/// What is served without a scenario.
const BARE: &str = "scenario: three nodes and nothing else\nuntil: 3650d\nnodes: 3\n";

pub(crate) fn run(options: &Sim) -> anyhow::Result<ExitCode> {
    memory::be_fast();
    if options.fuzz {
        return fuzz::run(options);
    }
    let (name, text) = match &options.file {
        Some(file) => match std::fs::read_to_string(file) {
            Ok(text) => (file.display().to_string(), text),
            Err(error) => {
                output::error(&anyhow::anyhow!("cannot read {}: {error}", file.display()));
                return Ok(ExitCode::from(BAD_INPUT));
            }
        },
        None => ("the scenario".to_owned(), BARE.to_owned()),
    };
    let base = options.file.as_deref().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
    let load = |file: &str| std::fs::read_to_string(base.join(file));
    let mut scenario = match scenario::read(&text, &load) {
        Ok(scenario) => scenario,
        Err(problems) => return Ok(bad_input(&name, &problems)),
    };
    let seed = options.seed.unwrap_or(scenario.seed);
    let trace = Trace::open(options)?;
    if options.serve && !scenario.start_is_given {
        // Clients of the real world compare times with their own clocks.
        scenario.start = Clock::system().now();
    }
    if options.output.output == Form::Text {
        introduce(&scenario, seed, options.until);
    }
    let mut play = Play::new(scenario, seed, options.until, trace.tell())?;
    let played =
        if options.serve { serve::run(&mut play, options) } else { play_through(&mut play, options.speed) };
    match played {
        Ok(()) => {}
        Err(Stopped::BadStep(problems)) => {
            trace.finish()?;
            return Ok(bad_input(&name, &problems));
        }
        Err(error) => return Err(error.into()),
    }
    let report = play.finish();
    trace.finish()?;
    tell(&report, &replay(options, seed), options.output.output, !options.quiet)?;
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Plays to the end, as fast as can be or at a pace.
fn play_through(play: &mut Play, speed: Speed) -> Result<(), Stopped> {
    let Speed::Times(times) = speed else {
        let end = play.end();
        return play.advance(end);
    };
    let clock = Clock::system();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(Stopped::host)?;
    while !play.is_over() {
        runtime.block_on(clock.sleep(BEAT));
        let next = play.now().saturating_add(BEAT.saturating_mul(times));
        play.advance(next.min(play.end()))?;
    }
    Ok(())
}

fn introduce(scenario: &Scenario, seed: u64, until: Option<Duration>) {
    if !scenario.title.is_empty() {
        output::result(&scenario.title);
    }
    let until = scenario::time::show(until.unwrap_or(scenario.until));
    let nodes = match scenario.nodes.len() {
        1 => "1 node".to_owned(),
        count => format!("{count} nodes"),
    };
    output::result(format_args!("{nodes}, until {until}, seed {seed}\n"));
}

/// Where the trace goes: to standard output for people, and to a file if one is named.
struct Trace {
    sink: Arc<Mutex<Sink>>,
}

struct Sink {
    show: bool,
    file: Option<BufWriter<File>>,
    failed: Option<std::io::Error>,
}

impl Trace {
    fn open(options: &Sim) -> anyhow::Result<Self> {
        let file = match &options.trace {
            None => None,
            Some(path) => {
                let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
                Some(BufWriter::new(file))
            }
        };
        let show = options.output.output == Form::Text && !options.quiet;
        Ok(Trace { sink: Arc::new(Mutex::new(Sink { show, file, failed: None })) })
    }

    fn tell(&self) -> Tell {
        let sink = Arc::clone(&self.sink);
        Box::new(move |line| sink.lock().unwrap_or_else(PoisonError::into_inner).line(line))
    }

    fn finish(&self) -> anyhow::Result<()> {
        let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
        let flushed = sink.file.as_mut().map_or(Ok(()), BufWriter::flush);
        match sink.failed.take().map_or(flushed, Err) {
            Ok(()) => Ok(()),
            Err(error) => Err(anyhow::Error::from(error).context("cannot write the trace")),
        }
    }
}

impl Sink {
    fn line(&mut self, line: &str) {
        if self.show {
            output::result(line);
        }
        if let Some(file) = &mut self.file
            && let Err(error) = writeln!(file, "{line}")
        {
            self.failed.get_or_insert(error);
        }
    }
}

fn tell(report: &Report, replay: &str, form: Form, shown: bool) -> anyhow::Result<()> {
    match form {
        // Set off from the trace.
        Form::Text if shown => output::result(format_args!("\n{}", report.to_text(replay))),
        Form::Text => output::result(report.to_text(replay)),
        Form::Json => output::result(serde_json::to_string_pretty(&report.to_json(replay))?),
    }
    Ok(())
}

/// Says what is wrong with a scenario: file, line, field, reason.
fn bad_input(name: &str, problems: &scenario::problem::Problems) -> ExitCode {
    for problem in problems.list() {
        let field = if problem.field.is_empty() { String::new() } else { format!("{}: ", problem.field) };
        output::error(&anyhow::anyhow!("{name}:{}: {field}{}", problem.mark.line, problem.reason));
    }
    ExitCode::from(BAD_INPUT)
}

/// The command that does the same again.
fn replay(options: &Sim, seed: u64) -> String {
    let mut command = "coracle sim".to_owned();
    if let Some(file) = &options.file {
        command.push_str(&format!(" {}", quoted(file)));
    }
    command.push_str(&format!(" --seed {seed}"));
    if let Some(until) = options.until {
        command.push_str(&format!(" --until {}", scenario::time::show(until)));
    }
    command
}

fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
