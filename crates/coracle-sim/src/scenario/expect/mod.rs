//! Expectations: what a scenario says must be seen, and when.
//!
//! An expectation is one line, `WHEN: WHAT`. It is parsed to the data of this file ([`grammar`]) and judged while the
//! run goes on ([`judge`]) by pure functions over what has been seen ([`holds`], [`super::seen`]).
//!
//! # WHEN
//! ```text
//! at MOMENT                         it is so at that moment, after everything that happens then
//! within SPAN [of MOMENT]           it is so at some time of the span that begins there (or at the start)
//! between SPAN and SPAN [after MOMENT]   it becomes so then: neither earlier nor later
//! always [from MOMENT] [until MOMENT]    it is so at every revision
//! never [from MOMENT] [until MOMENT]     it is so at no revision
//!
//! MOMENT   6m | end | the name of a step | SPAN after MOMENT | a WHAT: the first time that it is so
//! SPAN     90s | 6m | 1h30m | 250ms | 2d
//! ```
//!
//! # WHAT
//! ```text
//! CLAIM, joined by `and` and `or` (`and` binds closer), with parentheses and `not` in front
//!
//! CLAIM    KIND NAME [in NAMESPACE] TESTS
//!          AMOUNT KIND [LABELS] [NAME with *] [in NAMESPACE | in any namespace] [on NODE] [TESTS]
//! AMOUNT   every | some | no | exactly N | at least N | at most N       (`every` wants at least one)
//! LABELS   app=web,tier!=db
//! TESTS    TEST, joined by `and`: of the same object
//! TEST     `not` in front turns it round; an object that is not there passes no test but `gone`
//!          exists | gone | terminating
//!          ready                             Pods and Nodes
//!          complete                          a Deployment that is rolled out, a Job that is done
//!          phase PHASE                       PHASE and REASON may be several: Failed|Succeeded
//!          reason REASON                     of the status
//!          condition TYPE=STATUS [reason REASON]
//!          on NODE                           Pods
//!          taint KEY[:EFFECT]                Nodes
//!          replaced on another node          Pods: those of the beginning are gone, going or failed, and as many new
//!                                            ones are ready on other nodes
//!          event REASON [COMPARE N]          how often it was told
//!          restarts COMPARE N                of all containers
//!          container NAME running
//!          container NAME waiting [REASON]
//!          container NAME [last] terminated [REASON] [exit N]
//!          container NAME ready
//!          container NAME restarts COMPARE N
//!          container NAME restart delays SPAN SPAN ... [give or take SPAN]
//!                                            from each end to the next start; 1s is given or taken
//!          field PATH COMPARE VALUE | field PATH exists | field PATH absent
//! PATH     .status.readyReplicas | .spec.containers[0].image | .metadata.annotations["a.b/c"] | .a[name=x].b
//! COMPARE  = | != | < | <= | > | >=
//! ```

mod claims;
mod grammar;
mod holds;
mod judge;
mod words;

pub use grammar::{Context, expectation, kind_of};
pub use judge::{Judge, Outcome, Verdict};

use std::time::Duration;

use coracle_api::selector::LabelSelector;

use super::yaml::Mark;

/// One expectation of a scenario.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// As it was written, `WHEN: WHAT`.
    pub text: String,
    /// Where it stands.
    pub mark: Mark,
    /// When.
    pub when: When,
    /// What.
    pub what: Predicate,
}

/// When something is expected.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the head of this file says what they mean")]
pub enum When {
    At(Moment),
    Within { span: Duration, of: Moment },
    Between { from: Duration, to: Duration, after: Moment },
    Always { from: Moment, until: Moment },
    Never { from: Moment, until: Moment },
}

/// A point in the time of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Moment {
    /// What it is counted from.
    pub anchor: Anchor,
    /// How long after that.
    pub plus: Duration,
}

/// What a moment is counted from.
#[derive(Clone, Debug, PartialEq)]
pub enum Anchor {
    /// The start of the run.
    Start,
    /// Its end.
    End,
    /// The step of that name.
    Step(String),
    /// The first time that something is so.
    First(Box<Predicate>),
}

impl When {
    /// The latest time that it names itself, counted from the start; `None` if that depends on what happens.
    #[must_use]
    pub fn latest(&self) -> Option<Duration> {
        let fixed = |moment: &Moment| (moment.anchor == Anchor::Start).then_some(moment.plus);
        match self {
            When::At(moment) => fixed(moment),
            When::Within { span, of } => Some(fixed(of)?.saturating_add(*span)),
            When::Between { to, after, .. } => Some(fixed(after)?.saturating_add(*to)),
            When::Always { from, until } | When::Never { from, until } => fixed(until).or(fixed(from)),
        }
    }
}

impl Moment {
    /// That time after the start.
    #[must_use]
    pub fn after_start(plus: Duration) -> Self {
        Moment { anchor: Anchor::Start, plus }
    }

    /// The end of the run.
    #[must_use]
    pub fn end() -> Self {
        Moment { anchor: Anchor::End, plus: Duration::ZERO }
    }
}

/// Something that is so or is not, at one revision.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "as in logic")]
pub enum Predicate {
    All(Vec<Predicate>),
    Any(Vec<Predicate>),
    Not(Box<Predicate>),
    Claim(Claim),
}

impl Predicate {
    /// All claims in it.
    #[must_use]
    pub fn claims(&self) -> Vec<&Claim> {
        match self {
            Predicate::All(parts) | Predicate::Any(parts) => {
                parts.iter().flat_map(Predicate::claims).collect()
            }
            Predicate::Not(part) => part.claims(),
            Predicate::Claim(claim) => vec![claim],
        }
    }

    /// Whether it compares with how things were at the beginning of its time.
    #[must_use]
    pub fn looks_back(&self) -> bool {
        self.claims().iter().any(|claim| claim.tests.iter().any(|(_, test)| *test == Test::Replaced))
    }
}

/// That objects pass tests.
#[derive(Clone, Debug, PartialEq)]
pub struct Claim {
    /// How many of the selected objects must pass.
    pub amount: Amount,
    /// Which objects.
    pub filter: Filter,
    /// What each of them must pass; `false` turns a test round.
    pub tests: Vec<(bool, Test)>,
}

impl Claim {
    /// Whether it is about how often something was told.
    #[must_use]
    pub fn counts_events(&self) -> bool {
        self.tests.iter().any(|(_, test)| matches!(test, Test::Event { .. }))
    }
}

/// How many objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the head of this file says what they mean")]
pub enum Amount {
    /// The object of that name.
    The,
    Every,
    Some,
    No,
    Exactly(usize),
    AtLeast(usize),
    AtMost(usize),
}

/// Which objects are meant.
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// The kind in lower case, as `pod`.
    pub kind: &'static str,
    /// The name, in which `*` stands for anything; `None` for any.
    pub name: Option<String>,
    /// Their labels.
    pub labels: LabelSelector,
    /// Their namespace; `None` for any, and for kinds that have none.
    pub namespace: Option<String>,
    /// The node that they are on; `None` for any.
    pub node: Option<String>,
}

/// One thing that an object passes or does not.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the head of this file says what they mean")]
pub enum Test {
    Exists,
    Gone,
    Terminating,
    Ready,
    Complete,
    Phase(OneOf),
    Reason(OneOf),
    Condition { kind: String, status: String, reason: Option<OneOf> },
    On(String),
    Taint { key: String, effect: Option<String> },
    Replaced,
    Event { reason: OneOf, count: Compare },
    Restarts(Compare),
    Container { name: String, test: ContainerTest },
    Field { path: FieldPath, test: FieldTest },
}

/// One thing that a container of a Pod passes or does not.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the head of this file says what they mean")]
pub enum ContainerTest {
    Running,
    Ready,
    Waiting(Option<OneOf>),
    Terminated { last: bool, reason: Option<OneOf>, code: Option<i64> },
    Restarts(Compare),
    Delays { delays: Vec<Duration>, give_or_take: Duration },
}

/// One of several words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OneOf(pub Vec<String>);

impl OneOf {
    /// Whether it is one of them.
    #[must_use]
    pub fn has(&self, word: &str) -> bool {
        self.0.iter().any(|one| one == word)
    }
}

/// A comparison with a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// How.
    pub operator: Operator,
    /// With what.
    pub number: i64,
}

impl Compare {
    /// Whether the number compares so.
    #[must_use]
    pub fn holds(self, number: i64) -> bool {
        self.operator.holds(number.cmp(&self.number))
    }
}

/// How two values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in arithmetic")]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    More,
    AtLeast,
}

impl Operator {
    /// Whether this is how they compare.
    #[must_use]
    pub fn holds(self, order: std::cmp::Ordering) -> bool {
        match self {
            Operator::Equal => order.is_eq(),
            Operator::NotEqual => order.is_ne(),
            Operator::Less => order.is_lt(),
            Operator::AtMost => order.is_le(),
            Operator::More => order.is_gt(),
            Operator::AtLeast => order.is_ge(),
        }
    }
}

/// The way to a field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldPath {
    /// As it was written.
    pub text: String,
    /// Step by step.
    pub steps: Vec<PathStep>,
}

/// One step on the way to a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathStep {
    /// To the field of a mapping.
    Name(String),
    /// To an item of a list.
    Index(usize),
    /// To the item of a list whose field has this value.
    Where {
        /// The field.
        field: String,
        /// Its value.
        value: String,
    },
}

/// What a field must be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the head of this file says what they mean")]
pub enum FieldTest {
    Exists,
    Absent,
    Compare(Operator, String),
}

#[cfg(test)]
mod tests;
