//! One probe of one container: when to ask, and what follows from the answers. Pure.
//!
//! ```text
//!   new instance ──▶ Idle ──gate opens──▶ Due ──ask──▶ Asking ──answer──▶ Due … until nothing more is to be asked: Held
//! ```
//!
//! The gate is whether the container has started: before, only the startup probe asks, and after, only the others do.
//! Due times count from the start of the instance: readiness is asked at once, or after `initialDelaySeconds`; startup
//! and liveness after `initialDelaySeconds`, or one period if there is no such delay. A program is given that time,
//! as upstream's ticks give it on average.

use std::time::Duration;

use coracle_cri::ContainerId;
use k8s_openapi::api::core::v1::Probe;

use super::{ProbeKind, Verdict};

/// One prober. It follows a container from instance to instance.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    kind: ProbeKind,
    initial_delay: Duration,
    period: Duration,
    /// Equal answers in a row that make a verdict.
    successes: u32,
    failures: u32,
    instance: Option<ContainerId>,
    verdict: Verdict,
    /// Nothing is asked before.
    not_before: Duration,
    last: Option<bool>,
    in_a_row: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is not this probe's turn.
    Idle,
    /// To be asked at this time.
    Due(Duration),
    /// Asked at this time.
    Asking(Duration),
    /// All has been said about this instance.
    Held,
}

/// A running instance, as a prober needs to see it. Times are those of the measuring clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Instance<'a> {
    /// Which one.
    pub(crate) id: &'a ContainerId,
    /// How long it has been running.
    pub(crate) age: Duration,
    /// It has started, which is what the startup probe itself finds out.
    pub(crate) started: bool,
    /// Its Pod is on its way out.
    pub(crate) ending: bool,
    /// What was known of this instance before this node agent began, if it is older.
    pub(crate) before: Option<Before>,
}

/// What an earlier node agent has found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Before {
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// How long to wait, so that not all containers of the node are asked at once.
    pub(crate) wait: Duration,
}

impl Prober {
    pub(crate) fn new(kind: ProbeKind, probe: &Probe) -> Self {
        let seconds = |given: Option<i32>, usual: u64, least: u64| {
            Duration::from_secs(given.map_or(usual, |given| u64::try_from(given).unwrap_or(0)).max(least))
        };
        let count =
            |given: Option<i32>, usual| given.map_or(usual, |given| u32::try_from(given).unwrap_or(0)).max(1);
        Prober {
            kind,
            initial_delay: seconds(probe.initial_delay_seconds, 0, 0),
            period: seconds(probe.period_seconds, 10, 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
            instance: None,
            verdict: kind.initial(),
            not_before: Duration::ZERO,
            last: None,
            in_a_row: 0,
            state: State::Idle,
        }
    }

    /// What holds now.
    pub(crate) fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The time between two questions.
    pub(crate) fn period(&self) -> Duration {
        self.period
    }

    /// The instance that it is about.
    pub(crate) fn instance(&self) -> Option<&ContainerId> {
        self.instance.as_ref()
    }

    /// An answer is on its way.
    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.state, State::Asking(_))
    }

    /// When to ask next, unless something happens before.
    pub(crate) fn due(&self) -> Option<Duration> {
        match self.state {
            State::Due(at) => Some(at),
            State::Idle | State::Asking(_) | State::Held => None,
        }
    }

    /// Looks at the running instance.
    pub(crate) fn observe(&mut self, now: Duration, seen: &Instance<'_>) {
        if self.instance.as_ref() != Some(seen.id) {
            let wait = self.initial_delay.saturating_sub(seen.age);
            let before = seen.before;
            *self = Prober {
                instance: Some(seen.id.clone()),
                verdict: before.map_or(self.kind.initial(), |before| before.verdict),
                not_before: now + before.map_or(wait, |before| before.wait.max(wait)),
                last: None,
                in_a_row: 0,
                state: State::Idle,
                ..self.clone()
            };
        }
        if seen.ending && self.kind != ProbeKind::Readiness {
            self.verdict = Verdict::Success;
            self.state = State::Held;
        }
        let its_turn = match self.kind {
            ProbeKind::Startup => self.verdict == Verdict::Unknown,
            ProbeKind::Liveness | ProbeKind::Readiness => seen.started,
        };
        self.state = match self.state {
            State::Held => State::Held,
            _ if !its_turn => State::Idle,
            State::Idle => State::Due(self.first(now)),
            other => other,
        };
    }

    /// No instance runs, or none that anybody has been shown.
    pub(crate) fn observe_none(&mut self) {
        if self.state != State::Held {
            self.state = State::Idle;
        }
    }

    fn first(&self, now: Duration) -> Duration {
        if self.kind == ProbeKind::Readiness || self.not_before > now {
            self.not_before.max(now)
        } else {
            now + self.period
        }
    }

    /// The question is being asked.
    pub(crate) fn asked(&mut self, now: Duration) {
        self.state = State::Asking(now);
    }

    /// The answer is here: yes, no, or (`None`) that the asking went wrong, which counts for nothing. True if the
    /// verdict is another one now.
    pub(crate) fn answered(&mut self, now: Duration, answer: Option<bool>) -> bool {
        let State::Asking(since) = self.state else { return false };
        self.state = State::Due((since + self.period).max(now));
        let Some(yes) = answer else { return false };
        self.in_a_row = if self.last == Some(yes) { self.in_a_row.saturating_add(1) } else { 1 };
        self.last = Some(yes);
        if self.in_a_row < if yes { self.successes } else { self.failures } {
            return false;
        }
        // After these somebody else acts: the kill, or the gate.
        if (!yes && self.kind != ProbeKind::Readiness) || (yes && self.kind == ProbeKind::Startup) {
            self.state = State::Held;
        }
        let verdict = if yes { Verdict::Success } else { Verdict::Failure };
        std::mem::replace(&mut self.verdict, verdict) != verdict
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn prober(kind: ProbeKind, fields: Value) -> Prober {
        Prober::new(kind, &serde_json::from_value(fields).unwrap())
    }

    fn id(name: &str) -> ContainerId {
        ContainerId(name.to_owned())
    }

    fn running(id: &ContainerId, started: bool) -> Instance<'_> {
        Instance { id, age: Duration::ZERO, started, ending: false, before: None }
    }

    /// Asks at the due time, which must be `at`, and answers at once.
    #[track_caller]
    fn ask(prober: &mut Prober, at: Duration, answer: Option<bool>) -> bool {
        assert_eq!(prober.due(), Some(at));
        prober.asked(at);
        assert!(prober.is_asking() && prober.due().is_none());
        prober.answered(at, answer)
    }

    #[test]
    fn new_containers_are_alive_and_not_ready_and_nobody_knows_whether_they_have_started() {
        for (kind, verdict) in [
            (ProbeKind::Startup, Verdict::Unknown),
            (ProbeKind::Liveness, Verdict::Success),
            (ProbeKind::Readiness, Verdict::Failure),
        ] {
            let mut prober = prober(kind, json!({}));
            prober.observe(S, &running(&id("a"), kind != ProbeKind::Startup));
            assert_eq!(prober.verdict(), verdict);
        }
    }

    #[test]
    fn the_first_question_comes_after_the_delay_from_the_start_of_the_container() {
        use ProbeKind::{Liveness, Readiness, Startup};
        let first = |kind, fields, age| {
            let mut prober = prober(kind, fields);
            let id = id("a");
            let seen = Instance { age, ..running(&id, kind != Startup) };
            prober.observe(100 * S, &seen);
            prober.due().unwrap() - 100 * S
        };
        let delay = json!({"initialDelaySeconds": 5});
        assert_eq!(first(Readiness, json!({}), Duration::ZERO), Duration::ZERO);
        assert_eq!(first(Liveness, json!({}), Duration::ZERO), 10 * S);
        assert_eq!(first(Startup, json!({"periodSeconds": 2}), Duration::ZERO), 2 * S);
        assert_eq!(first(Readiness, delay.clone(), 2 * S), 3 * S);
        assert_eq!(first(Liveness, delay.clone(), 2 * S), 3 * S);
        assert_eq!(first(Startup, delay.clone(), Duration::ZERO), 5 * S);
        // Its delay was over before the container had started.
        assert_eq!(first(Liveness, delay, 20 * S), 10 * S);
    }

    #[test]
    fn a_verdict_takes_as_many_equal_answers_in_a_row_as_the_threshold_says() {
        let fields = json!({"periodSeconds": 2, "successThreshold": 2, "failureThreshold": 3});
        let mut prober = prober(ProbeKind::Readiness, fields);
        prober.observe(Duration::ZERO, &running(&id("a"), true));
        let answers = [
            (Some(true), false),
            (Some(false), false),
            (Some(true), false),
            (Some(true), true),
            (Some(true), false),
            (Some(false), false),
            (Some(false), false),
            (Some(true), false),
            (Some(false), false),
            (Some(false), false),
            (Some(false), true),
        ];
        let mut at = Duration::ZERO;
        for (answer, changed) in answers {
            assert_eq!(ask(&mut prober, at, answer), changed, "{at:?}");
            at += 2 * S;
        }
        assert_eq!(prober.verdict(), Verdict::Failure);
        assert_eq!(prober.due(), Some(at), "readiness goes on");
    }

    #[test]
    fn what_goes_wrong_in_the_asking_counts_for_nothing() {
        let mut prober = prober(ProbeKind::Liveness, json!({"failureThreshold": 2}));
        prober.observe(Duration::ZERO, &running(&id("a"), true));
        assert!(!ask(&mut prober, 10 * S, Some(false)));
        assert!(!ask(&mut prober, 20 * S, None));
        assert_eq!(prober.verdict(), Verdict::Success);
        assert!(ask(&mut prober, 30 * S, Some(false)));
        assert_eq!(prober.verdict(), Verdict::Failure);
    }

    #[test]
    fn after_a_failure_of_liveness_nothing_is_asked_before_a_new_instance() {
        let mut prober = prober(ProbeKind::Liveness, json!({"failureThreshold": 1}));
        let (a, b) = (id("a"), id("b"));
        prober.observe(Duration::ZERO, &running(&a, true));
        assert!(ask(&mut prober, 10 * S, Some(false)));
        for at in 10..100 {
            prober.observe(at * S, &running(&a, true));
            assert_eq!((prober.due(), prober.verdict()), (None, Verdict::Failure));
            prober.observe_none();
        }
        prober.observe(100 * S, &running(&b, true));
        assert_eq!((prober.due(), prober.verdict()), (Some(110 * S), Verdict::Success));
    }

    #[test]
    fn a_thousand_instances_are_asked_by_one_prober_one_question_at_a_time() {
        let mut prober = prober(ProbeKind::Liveness, json!({"failureThreshold": 1}));
        let mut now = Duration::ZERO;
        for instance in 0..1000 {
            let id = id(&instance.to_string());
            // However often somebody looks.
            for _ in 0..3 {
                prober.observe(now, &running(&id, true));
            }
            assert!(ask(&mut prober, now + 10 * S, Some(false)) && prober.due().is_none());
            prober.observe_none();
            now += 20 * S;
        }
    }

    #[test]
    fn only_startup_asks_before_the_start_and_never_after_it() {
        let a = id("a");
        let mut startup = prober(ProbeKind::Startup, json!({"periodSeconds": 3}));
        let mut liveness = prober(ProbeKind::Liveness, json!({}));
        let mut readiness = prober(ProbeKind::Readiness, json!({}));
        for prober in [&mut startup, &mut liveness, &mut readiness] {
            prober.observe(Duration::ZERO, &running(&a, false));
        }
        assert_eq!((liveness.due(), readiness.due()), (None, None));
        assert!(!ask(&mut startup, 3 * S, Some(false)));
        assert!(ask(&mut startup, 6 * S, Some(true)));
        for prober in [&mut startup, &mut liveness, &mut readiness] {
            prober.observe(6 * S, &running(&a, true));
        }
        assert_eq!((startup.due(), liveness.due(), readiness.due()), (None, Some(16 * S), Some(6 * S)));
        // A new instance has to start again.
        let b = id("b");
        startup.observe(50 * S, &running(&b, false));
        readiness.observe(50 * S, &running(&b, false));
        assert_eq!((startup.verdict(), startup.due()), (Verdict::Unknown, Some(53 * S)));
        assert_eq!((readiness.verdict(), readiness.due()), (Verdict::Failure, None));
    }

    #[test]
    fn when_the_pod_ends_liveness_and_startup_stop_with_success_and_readiness_goes_on() {
        let a = id("a");
        for kind in ProbeKind::ALL {
            let mut prober = prober(kind, json!({"failureThreshold": 1}));
            let started = kind != ProbeKind::Startup;
            prober.observe(Duration::ZERO, &running(&a, started));
            prober.asked(10 * S);
            prober.observe(11 * S, &Instance { ending: true, ..running(&a, started) });
            if kind == ProbeKind::Readiness {
                assert!(prober.is_asking());
                assert!(prober.answered(12 * S, Some(true)));
                assert_eq!(prober.due(), Some(20 * S));
            } else {
                assert_eq!((prober.is_asking(), prober.due()), (false, None));
                assert!(!prober.answered(12 * S, Some(false)));
                assert_eq!(prober.verdict(), Verdict::Success);
            }
        }
    }

    #[test]
    fn an_instance_older_than_the_node_agent_keeps_what_was_known_of_it() {
        let a = id("a");
        let before = Some(Before { verdict: Verdict::Success, wait: 4 * S });
        let seen = Instance { age: 1000 * S, before, ..running(&a, true) };
        for kind in ProbeKind::ALL {
            let mut prober = prober(kind, json!({}));
            prober.observe(S, &seen);
            let due = (kind != ProbeKind::Startup).then_some(5 * S);
            assert_eq!((prober.verdict(), prober.due()), (Verdict::Success, due), "{kind}");
            // Only once.
            prober.observe(S, &Instance { before: None, ..seen });
            assert_eq!((prober.verdict(), prober.due()), (Verdict::Success, due), "{kind}");
        }
    }

    #[test]
    fn questions_keep_their_rhythm_however_long_an_answer_takes() {
        let mut prober = prober(ProbeKind::Readiness, json!({"periodSeconds": 5}));
        prober.observe(Duration::ZERO, &running(&id("a"), true));
        prober.asked(Duration::ZERO);
        prober.answered(2 * S, Some(true));
        assert_eq!(prober.due(), Some(5 * S));
        prober.asked(5 * S);
        prober.answered(12 * S, Some(true));
        assert_eq!(prober.due(), Some(12 * S));
    }

    #[test]
    fn nothing_is_asked_of_a_container_that_does_not_run() {
        let a = id("a");
        let mut prober = prober(ProbeKind::Readiness, json!({}));
        prober.observe(Duration::ZERO, &running(&a, true));
        prober.asked(Duration::ZERO);
        prober.observe_none();
        assert_eq!((prober.is_asking(), prober.due()), (false, None));
        assert!(!prober.answered(S, Some(true)), "an answer that comes too late");
    }
}
