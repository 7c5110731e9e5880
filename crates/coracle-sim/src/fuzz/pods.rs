//! Random Pods: any mixture of what a Pod can ask for, and programs that behave in any way.

use std::time::Duration;

use coracle_clock::Rng;
use coracle_cri::CriError;
use coracle_cri::scripted::{Answer, Exit, ImageScript, OnStop, RunScript};
use serde_json::{Value, json};

use crate::node::usual_image;

/// What containers of the main part of a Pod run.
pub(super) const IMAGES: [&str; 12] = [
    "ok:1",
    "ok:2",
    "once:1",
    "fails:1",
    "crash:1",
    "slow-stop:1",
    "never-stops:1",
    "late:1",
    "broken:1",
    "moody:1",
    "sick:1",
    "slow:1",
];

/// What comes before it.
const BEFORE: [&str; 6] = ["quick:1", "quick:1", "once:1", "once:1", "crash-once:1", "fails:1"];

/// What runs beside it.
const BESIDE: [&str; 5] = ["ok:1", "ok:1", "crash:1", "slow-stop:1", "moody:1"];

/// Each kind of probe has a path, a port and a command of its own, so that its answers can be told apart.
const KINDS: [(&str, &str, u16); 3] =
    [("startupProbe", "start", 81), ("livenessProbe", "live", 82), ("readinessProbe", "ready", 83)];

/// Makes Pods.
pub(super) struct Maker<'a>(pub(super) &'a mut Rng);

impl Maker<'_> {
    fn one_of<T: Clone>(&mut self, all: &[T]) -> T {
        let index = usize::try_from(self.0.below(all.len() as u64)).unwrap_or(0);
        all[index].clone()
    }

    fn one_in(&mut self, of: u64) -> bool {
        self.0.below(of) == 0
    }

    /// A Pod of this name; every second one is no more than a container or two.
    pub(super) fn pod(&mut self, name: &str) -> Value {
        let second = self.one_in(5);
        let policy = self.one_of(&["Always", "Always", "OnFailure", "Never"]);
        let grace = self.one_of(&[0, 1, 5, 30]);
        let cpu = self.one_of(&["0", "100m", "500m", "1500m", "3"]);
        let resources = json!({"requests": {"cpu": cpu, "memory": "64Mi"}});
        let mut app = json!({"name": "app", "image": self.one_of(&IMAGES), "resources": resources});
        let mut spec = json!({"restartPolicy": policy, "terminationGracePeriodSeconds": grace});
        if self.one_in(2) {
            self.decorate(&mut app);
            self.surround(&mut spec);
        }
        let mut containers = vec![app];
        if second {
            let mut side = json!({"name": "side", "image": self.one_of(&IMAGES)});
            if self.one_in(3) {
                self.decorate(&mut side);
            }
            containers.push(side);
        }
        spec["containers"] = containers.into();
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    }

    /// What a Pod has beside its containers.
    fn surround(&mut self, spec: &mut Value) {
        let mut init = Vec::new();
        for nth in 0..self.one_of(&[0, 0, 1, 2, 3]) {
            if self.one_in(2) {
                init.push(json!({"name": format!("init-{nth}"), "image": self.one_of(&BEFORE)}));
                continue;
            }
            let mut sidecar = json!({"name": format!("car-{nth}"), "image": self.one_of(&BESIDE),
                                     "restartPolicy": "Always"});
            if self.one_in(2) {
                self.decorate(&mut sidecar);
            }
            init.push(sidecar);
        }
        if !init.is_empty() {
            spec["initContainers"] = init.into();
        }
        if self.one_in(8) {
            spec["activeDeadlineSeconds"] = self.one_of(&[5, 20, 60]).into();
        }
        if self.one_in(8) {
            spec["readinessGates"] = json!([{"conditionType": super::plan::GATE}]);
        }
    }

    /// What a container has beside its program.
    fn decorate(&mut self, container: &mut Value) {
        for (field, word, port) in KINDS {
            if self.one_in(2) {
                container[field] = self.probe(field, word, port);
            }
        }
        if self.one_in(4) {
            container["lifecycle"]["postStart"] = self.hook("post");
        }
        if self.one_in(3) {
            container["lifecycle"]["preStop"] = self.hook("pre");
        }
        let is_sidecar = container.get("restartPolicy").is_some();
        if !is_sidecar && self.one_in(6) {
            container["restartPolicy"] = self.one_of(&["Always", "OnFailure", "Never"]).into();
            if self.one_in(2) {
                let action = self.one_of(&["Restart", "Restart", "RestartAllContainers"]);
                let operator = self.one_of(&["In", "NotIn"]);
                container["restartPolicyRules"] =
                    json!([{"action": action, "exitCodes": {"operator": operator, "values": [1, 3]}}]);
            }
        }
    }

    fn probe(&mut self, field: &str, word: &str, port: u16) -> Value {
        let mut probe = self.handler(word, port);
        if self.one_in(5) {
            probe = json!({"grpc": {"port": port}});
        }
        probe["periodSeconds"] = self.one_of(&[1, 2, 5, 10]).into();
        probe["timeoutSeconds"] = self.one_of(&[1, 1, 3]).into();
        probe["failureThreshold"] = self.one_of(&[1, 2, 3]).into();
        probe["initialDelaySeconds"] = self.one_of(&[0, 0, 2, 5]).into();
        if field == "readinessProbe" {
            probe["successThreshold"] = self.one_of(&[1, 1, 2]).into();
        } else if self.one_in(4) {
            probe["terminationGracePeriodSeconds"] = self.one_of(&[1, 3]).into();
        }
        probe
    }

    fn hook(&mut self, word: &str) -> Value {
        match self.0.below(4) {
            0 => json!({"sleep": {"seconds": self.one_of(&[0, 1, 4])}}),
            1 => json!({"exec": {"command": ["fail"]}}),
            2 => json!({"exec": {"command": ["slow"]}}),
            _ => self.handler(word, 84),
        }
    }

    fn handler(&mut self, word: &str, port: u16) -> Value {
        match self.0.below(3) {
            0 => json!({"exec": {"command": [word]}}),
            1 => json!({"httpGet": {"port": port, "path": format!("/{word}")}}),
            _ => json!({"tcpSocket": {"port": port}}),
        }
    }
}

/// Leaves of a Pod no more than its containers and how they end.
pub(super) fn strip(pod: &mut Value) {
    let keep = |object: &mut Value, fields: &[&str]| {
        if let Some(object) = object.as_object_mut() {
            object.retain(|name, _| fields.contains(&name.as_str()));
        }
    };
    let spec = &mut pod["spec"];
    keep(spec, &["restartPolicy", "terminationGracePeriodSeconds", "nodeName", "containers"]);
    for container in spec["containers"].as_array_mut().into_iter().flatten() {
        keep(container, &["name", "image", "resources"]);
    }
}

/// How the images behave.
pub(super) fn images() -> Vec<(&'static str, ImageScript)> {
    let millis = Duration::from_millis;
    let exits = |after: u64, code: i32| RunScript {
        exit: Some(Exit { after: millis(after), code, oom_killed: false }),
        answers: hooks(),
        ..RunScript::default()
    };
    let runs = |on_stop: OnStop| RunScript { on_stop, answers: hooks(), ..RunScript::default() };
    let with = |runs: Vec<RunScript>| ImageScript { runs, ..usual_image() };
    let polite = OnStop::Exits { after: millis(100), code: 143 };
    let slow = OnStop::Exits { after: millis(2500), code: 0 };
    let late = CriError::NotFound("no such image".to_owned());
    let broken = RunScript { start_error: Some("exec format error".to_owned()), ..RunScript::default() };
    vec![
        ("ok:1", with(vec![runs(polite)])),
        ("ok:2", with(vec![runs(polite)])),
        ("quick:1", with(vec![exits(150, 0)])),
        ("once:1", with(vec![exits(3000, 0)])),
        ("fails:1", with(vec![exits(1500, 3)])),
        ("crash:1", with(vec![exits(4000, 1), exits(100, 2), runs(OnStop::Dies)])),
        ("crash-once:1", with(vec![exits(700, 1), exits(300, 0)])),
        ("slow-stop:1", with(vec![runs(slow)])),
        ("never-stops:1", with(vec![runs(OnStop::Ignores)])),
        ("late:1", ImageScript { pull_failures: vec![late.clone(), late], ..usual_image() }),
        ("broken:1", with(vec![broken])),
        // Well, then not, then well again.
        ("moody:1", with(vec![asked(polite, 1500, &[(12_000, 500, 0), (31_000, 0, 0)])])),
        // Its first runs end up not answering; the third is slow, and well.
        (
            "sick:1",
            with(vec![
                asked(polite, 0, &[(9000, 1, 0)]),
                asked(slow, 6000, &[(20_000, 0, 30_000)]),
                asked(polite, 4000, &[]),
            ]),
        ),
        // Well, but slower than some can wait.
        ("slow:1", with(vec![asked(slow, 8000, &[(8000, 0, 1200), (40_000, 0, 10)])])),
    ]
}

/// A program that answers so: from when on, with which code, after how many milliseconds.
fn asked(on_stop: OnStop, ready_after: u64, times: &[(u64, i32, u64)]) -> RunScript {
    let answer = |(from, code, takes): &(u64, i32, u64)| Answer {
        from: Duration::from_millis(*from),
        takes: Duration::from_millis(*takes),
        code: *code,
        ..Answer::default()
    };
    let mut answers: Vec<_> = times.iter().map(answer).collect();
    answers.extend(hooks());
    RunScript { on_stop, ready_after: Duration::from_millis(ready_after), answers, ..RunScript::default() }
}

/// Commands of hooks that fail and that take their time.
fn hooks() -> Vec<Answer> {
    let command = |word: &str| vec![word.to_owned()];
    vec![
        Answer { command: command("fail"), code: 1, ..Answer::default() },
        Answer { command: command("slow"), takes: Duration::from_secs(4), ..Answer::default() },
    ]
}
