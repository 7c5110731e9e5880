//! The scripted runtime against the suite for all runtimes, and what only scripts do.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;
use std::time::Duration;

use coracle_clock::Clock;
use coracle_cri::runtime_suite;
use coracle_cri::scripted::{
    Answer, Exit, ImageScript, Line, Memory, OnStop, RunScript, ScriptedRuntime, Trouble,
};
use coracle_cri::suite::{Program, Subject};
use coracle_cri::{
    ContainerConfig, ContainerId, ContainerState, CriError, ExecRequest, ImageService as _, ImageSpec,
    PodSandboxConfig, PodSandboxMetadata, RuntimeService,
};

struct Scripted {
    runtime: ScriptedRuntime,
    clock: Clock,
    logs: tempfile::TempDir,
}

impl Subject for Scripted {
    fn runtime(&self) -> Arc<dyn RuntimeService> {
        Arc::new(self.runtime.clone())
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn pod(&self, name: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: name.to_owned(),
                uid: format!("uid-{name}"),
                namespace: "default".to_owned(),
                attempt: 0,
            },
            log_directory: self.logs.path().join(name),
            ..PodSandboxConfig::default()
        }
    }

    fn container(&self, program: Program) -> ContainerConfig {
        let up = vec![Line { text: "up".to_owned(), ..Line::default() }];
        let ends = |code| Exit { after: Duration::from_millis(20), code, oom_killed: false };
        let answers = vec![
            Answer {
                command: self.command(),
                code: 5,
                stdout: "out\n".to_owned(),
                stderr: "err\n".to_owned(),
                ..Answer::default()
            },
            Answer { command: self.slow_command(), takes: Duration::from_secs(777), ..Answer::default() },
        ];
        let usual = RunScript::default();
        let run = match program {
            Program::Deaf => RunScript { on_stop: OnStop::Ignores, output: up, answers, ..usual },
            Program::Polite => {
                RunScript { on_stop: OnStop::Exits { after: Duration::ZERO, code: 7 }, output: up, ..usual }
            }
            Program::Ends(code) => RunScript { exit: Some(ends(code)), ..usual },
            Program::Broken => RunScript { start_error: Some("permission denied".to_owned()), ..usual },
            Program::Hungry => {
                let memory = Memory { bytes: 1 << 20, bytes_per_second: 8 << 20 };
                RunScript { memory: Some(memory), ..usual }
            }
            Program::Echo => RunScript { echo: true, output: up, ..usual },
            Program::Serves => RunScript { ports: vec![4242], output: up, ..usual },
        };
        self.runs(&format!("{program:?}:1"), vec![run])
    }

    fn command(&self) -> Vec<String> {
        vec!["speak".to_owned()]
    }

    fn slow_command(&self) -> Vec<String> {
        vec!["sleep".to_owned(), "777".to_owned()]
    }
}

impl Scripted {
    fn runs(&self, image: &str, runs: Vec<RunScript>) -> ContainerConfig {
        self.runtime.script(image, ImageScript { present: true, runs, ..ImageScript::default() });
        ContainerConfig {
            name: "main".to_owned(),
            image: ImageSpec { image: image.to_owned() },
            log_path: "main/0.log".into(),
            ..ContainerConfig::default()
        }
    }

    async fn start(&self, run: RunScript) -> ContainerId {
        let pod = self.pod("p");
        let sandbox = self.runtime.run_pod_sandbox(&pod).await.unwrap();
        let config = self.runs("image:1", vec![run]);
        let id = self.runtime.create_container(&sandbox, &config, &pod).await.unwrap();
        self.runtime.start_container(&id).await.unwrap();
        id
    }

    async fn code(&self, id: &ContainerId) -> i32 {
        self.runtime.exec_sync(id, &["probe".to_owned()], None).await.unwrap().exit_code
    }
}

async fn open() -> Scripted {
    let clock = Clock::starting_at(jiff::Timestamp::UNIX_EPOCH);
    Scripted { runtime: ScriptedRuntime::new(clock.clone()), clock, logs: tempfile::tempdir().unwrap() }
}

runtime_suite!(suite, #[tokio::test(start_paused = true)], super::open);

#[tokio::test(start_paused = true)]
async fn answers_change_with_time() {
    let subject = open().await;
    let answer = |from: u64, code: i32| Answer { from: Duration::from_secs(from), code, ..Answer::default() };
    let run = RunScript {
        ready_after: Duration::from_secs(10),
        answers: vec![answer(60, 0), answer(30, 1)],
        ..RunScript::default()
    };
    let id = subject.start(run).await;
    let mut codes = Vec::new();
    for _ in 0..8 {
        codes.push(subject.code(&id).await);
        subject.clock.sleep(Duration::from_secs(9)).await;
    }
    // Not ready, then ready, then unwell from 30 to 60 s.
    assert_eq!(codes, [1, 1, 0, 0, 1, 1, 1, 0]);
}

#[tokio::test(start_paused = true)]
async fn memory_grows_and_a_command_ends_with_its_container() {
    let subject = open().await;
    let memory = Memory { bytes: 100, bytes_per_second: 50 };
    let slow = Answer { takes: Duration::from_secs(100), ..Answer::default() };
    let exit = Exit { after: Duration::from_secs(5), code: 0, oom_killed: false };
    let run =
        RunScript { memory: Some(memory), exit: Some(exit), answers: vec![slow], ..RunScript::default() };
    let id = subject.start(run).await;
    subject.clock.sleep(Duration::from_secs(2)).await;
    assert_eq!(subject.runtime.memory_of(&id), Some(200));
    assert_eq!(subject.code(&id).await, 137);
    assert_eq!(subject.clock.elapsed(), Duration::from_secs(5));
    assert_eq!(subject.runtime.memory_of(&id), None);
}

#[tokio::test(start_paused = true)]
async fn a_session_answers_as_a_command_does() {
    let subject = open().await;
    let answer = Answer { code: 9, stdout: "hello".to_owned(), ..Answer::default() };
    let id = subject.start(RunScript { answers: vec![answer], ..RunScript::default() }).await;
    let request = ExecRequest { container: id, command: vec!["sh".to_owned()], tty: false, stdin: true };
    let mut session = subject.runtime.exec(&request).await.unwrap();
    assert_eq!(session.stdout.recv().await.unwrap(), "hello");
    assert_eq!(session.exit.await.unwrap(), Ok(9));
}

#[tokio::test(start_paused = true)]
async fn trouble_slows_and_fails_calls_and_keeps_events() {
    let subject = open().await;
    let id = subject.start(RunScript::default()).await;
    let mut events = subject.runtime.container_events().await.unwrap();
    let down = CriError::Internal("down".to_owned());
    let calls = vec!["container_status".to_owned()];
    let slow = Duration::from_secs(3);
    subject.runtime.set_trouble(Trouble { calls, slow, fails: Some(down.clone()), ..Trouble::default() });
    assert_eq!(subject.runtime.container_status(&id).await, Err(down));
    assert_eq!(subject.clock.elapsed(), slow);
    assert!(subject.runtime.version().await.is_ok());
    subject.runtime.set_trouble(Trouble { events_late: Duration::from_secs(2), ..Trouble::default() });
    subject.runtime.crash(&id, 1);
    assert!(events.try_recv().is_err());
    subject.clock.sleep(Duration::from_secs(3)).await;
    assert!(events.try_recv().is_ok());
    subject.runtime.set_trouble(Trouble { events_lost: true, ..Trouble::default() });
    subject.runtime.remove_container(&id).await.unwrap();
    subject.clock.sleep(Duration::from_secs(600)).await;
    assert!(events.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn addresses_come_from_the_range_and_go_back() {
    let subject = open().await;
    subject.runtime.update_pod_cidr("10.9.8.0/30").await.unwrap();
    let address = async |name: &str| {
        let id = subject.runtime.run_pod_sandbox(&subject.pod(name)).await?;
        let ips = subject.runtime.pod_sandbox_status(&id).await?.ips;
        Ok::<_, CriError>((id, ips[0].to_string()))
    };
    let (first, ip) = address("a").await.unwrap();
    assert_eq!(ip, "10.9.8.1");
    assert_eq!(address("b").await.unwrap().1, "10.9.8.2");
    assert!(address("c").await.is_err(), "the range is used up");
    subject.runtime.stop_pod_sandbox(&first).await.unwrap();
    assert_eq!(address("c").await.unwrap().1, "10.9.8.1");
}

#[tokio::test(start_paused = true)]
async fn an_image_without_a_script_behaves_as_said_for_others() {
    let subject = open().await;
    let image = ImageSpec { image: "any:1".to_owned() };
    assert!(matches!(subject.runtime.pull_image(&image, None, None).await, Err(CriError::NotFound(_))));
    let pull_time = Duration::from_secs(1);
    subject.runtime.script_others(ImageScript { pull_time, ..ImageScript::default() });
    subject.runtime.pull_image(&image, None, None).await.unwrap();
    assert_eq!(subject.clock.elapsed(), pull_time);
    let id = subject.start(RunScript::default()).await;
    assert_eq!(subject.runtime.container_status(&id).await.unwrap().container.state, ContainerState::Running);
}
