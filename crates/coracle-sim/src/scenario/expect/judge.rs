//! Judges expectations while a run goes on.
//!
//! The judge hears of three things: that time has come to a moment ([`Judge::time`]), that a step is about to be taken
//! ([`Judge::step`]), and that something changed ([`Judge::changed`]). Each expectation opens its time, looks at every
//! revision in it, and closes with a [`Verdict`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::seen::{Id, Line, Objects, Seen};
use super::super::time;
use super::holds::{explain, holds, selected};
use super::{Anchor, Expectation, Moment, Predicate, When};

/// How many of the last lines about the objects of a failed expectation are shown.
const LAST: usize = 10;

/// What became of one expectation.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// As it was written.
    pub text: String,
    /// The line of the file.
    pub line: usize,
    /// When it was decided.
    pub at: Duration,
    /// How.
    pub outcome: Outcome,
}

/// How an expectation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As expected.
    Held,
    /// Otherwise.
    Failed {
        /// Why, in short: when it was otherwise.
        because: String,
        /// How things were instead.
        saw: Vec<String>,
        /// The last of what happened to the objects that it is about.
        last: Vec<Line>,
    },
    /// The run was cut short before it could be said.
    Unreached,
}

/// The expectations of a run.
#[derive(Debug)]
pub struct Judge {
    open: Vec<Watch>,
    steps: BTreeMap<String, Duration>,
    /// The planned end of the run, which `end` means.
    end: Duration,
    now: Duration,
    nothing: Objects,
}

#[derive(Debug)]
struct Watch {
    expectation: Expectation,
    /// When its own anchors that are predicates came true.
    first: [Option<Duration>; 2],
    /// How things were when its time began.
    then: Option<Objects>,
    /// Its time has begun.
    begun: bool,
    /// It has looked at how things were at the beginning, or later.
    looked: bool,
    /// The kinds whose changes matter to it.
    kinds: Vec<&'static str>,
}

impl Judge {
    /// A judge of a run that is planned to last until `end`.
    #[must_use]
    pub fn new(expectations: Vec<Expectation>, end: Duration) -> Self {
        let open = expectations.into_iter().map(Watch::new).collect();
        Judge { open, steps: BTreeMap::new(), end, now: Duration::ZERO, nothing: Objects::new() }
    }

    /// The kinds of objects whose changes it has to hear of.
    #[must_use]
    pub fn kinds(&self) -> BTreeSet<&'static str> {
        self.open.iter().flat_map(|watch| watch.kinds.iter().copied()).collect()
    }

    /// A named step is taken now.
    pub fn step(&mut self, name: &str, seen: &Seen) -> Vec<Verdict> {
        self.steps.insert(name.to_owned(), self.now);
        self.look(seen, None)
    }

    /// Time has come to `now`, and nothing has changed yet at that moment. Call it before each change and at the end.
    pub fn time(&mut self, now: Duration, seen: &Seen) -> Vec<Verdict> {
        let before = self.now;
        if now <= before && now != Duration::ZERO {
            return Vec::new();
        }
        let mut verdicts = Vec::new();
        let (steps, end) = (&self.steps, self.end);
        let known = Known { steps, end };
        let nothing = &self.nothing;
        self.open.retain_mut(|watch| match watch.time_passes(now, &known, seen, nothing) {
            Some((at, outcome)) => {
                verdicts.push(watch.verdict(at, outcome));
                false
            }
            None => true,
        });
        self.now = now;
        verdicts
    }

    /// An object of this kind changed, now.
    pub fn changed(&mut self, kind: &str, seen: &Seen) -> Vec<Verdict> {
        self.look(seen, Some(kind))
    }

    fn look(&mut self, seen: &Seen, kind: Option<&str>) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        let (now, nothing) = (self.now, &self.nothing);
        let known = Known { steps: &self.steps, end: self.end };
        self.open.retain_mut(|watch| {
            if kind.is_some_and(|kind| !watch.kinds.contains(&kind)) {
                return true;
            }
            match watch.look(now, &known, seen, nothing) {
                Some(outcome) => {
                    verdicts.push(watch.verdict(now, outcome));
                    false
                }
                None => true,
            }
        });
        verdicts
    }

    /// The run is over at `now`: what is still open is decided.
    pub fn finish(mut self, now: Duration, seen: &Seen) -> Vec<Verdict> {
        let mut verdicts = self.time(now, seen);
        let known = Known { steps: &self.steps, end: self.end };
        for mut watch in std::mem::take(&mut self.open) {
            let outcome = watch.finish(now, &known, seen, &self.nothing);
            verdicts.push(watch.verdict(now, outcome));
        }
        verdicts
    }
}

struct Known<'a> {
    steps: &'a BTreeMap<String, Duration>,
    end: Duration,
}

impl Watch {
    fn new(expectation: Expectation) -> Self {
        let mut kinds: Vec<&'static str> = Vec::new();
        let mut add = |predicate: &Predicate| {
            for claim in predicate.claims() {
                kinds.push(claim.filter.kind);
                // An Event is an object of its own, and what it says is about another.
                kinds.extend(claim.counts_events().then_some("event"));
            }
        };
        add(&expectation.what);
        for moment in expectation.when.moments() {
            if let Anchor::First(predicate) = &moment.anchor {
                add(predicate);
            }
        }
        Watch { expectation, first: [None; 2], then: None, begun: false, looked: false, kinds }
    }

    fn verdict(&self, at: Duration, outcome: Outcome) -> Verdict {
        Verdict { text: self.expectation.text.clone(), line: self.expectation.mark.line, at, outcome }
    }

    fn resolve(&self, nth: usize, known: &Known<'_>) -> Option<Duration> {
        let moments = self.expectation.when.moments();
        let moment: &Moment = moments.get(nth)?;
        let base = match &moment.anchor {
            Anchor::Start => Duration::ZERO,
            Anchor::End => known.end,
            Anchor::Step(name) => *known.steps.get(name)?,
            Anchor::First(_) => self.first[nth]?,
        };
        Some(base.saturating_add(moment.plus))
    }

    /// The time in which it looks; `None` while its beginning is not known.
    fn span(&self, known: &Known<'_>) -> Option<(Duration, Duration)> {
        let begin = self.resolve(0, known)?;
        Some(match &self.expectation.when {
            When::At(_) => (begin, begin),
            When::Within { span, .. } => (begin, begin.saturating_add(*span)),
            When::Between { to, .. } => (begin, begin.saturating_add(*to)),
            When::Always { .. } | When::Never { .. } => {
                (begin, self.resolve(1, known).unwrap_or(Duration::MAX))
            }
        })
    }

    /// Nothing changes any more before `now`.
    fn time_passes(
        &mut self,
        now: Duration,
        known: &Known<'_>,
        seen: &Seen,
        nothing: &Objects,
    ) -> Option<(Duration, Outcome)> {
        let (begin, end) = self.span(known)?;
        if now >= begin && !self.begun {
            self.begin(seen);
        }
        // Without a change at the beginning itself, this is how things were then.
        if now > begin && !self.looked {
            self.looked = true;
            if let Some(outcome) = self.judge(begin, begin, seen, nothing) {
                return Some((begin, outcome));
            }
        }
        if now <= end {
            return None;
        }
        Some((end, self.close(end, seen, nothing)))
    }

    /// Something changed at `now`, or a step was taken.
    fn look(&mut self, now: Duration, known: &Known<'_>, seen: &Seen, nothing: &Objects) -> Option<Outcome> {
        for (nth, moment) in self.expectation.when.moments().into_iter().enumerate() {
            if let (Anchor::First(predicate), None) = (&moment.anchor, self.first[nth])
                && holds(predicate, seen, nothing)
            {
                self.first[nth] = Some(now);
            }
        }
        let (begin, end) = self.span(known)?;
        if now < begin || now > end {
            return None;
        }
        if !self.begun {
            self.begin(seen);
        }
        self.looked = true;
        self.judge(begin, now, seen, nothing)
    }

    fn begin(&mut self, seen: &Seen) {
        self.begun = true;
        if self.expectation.what.looks_back() {
            self.then = Some(seen.objects.clone());
        }
    }

    /// What is decided by how things are at `now`, within the time of the expectation.
    fn judge(&self, begin: Duration, now: Duration, seen: &Seen, nothing: &Objects) -> Option<Outcome> {
        let what = &self.expectation.what;
        let is_so = || holds(what, seen, self.then.as_ref().unwrap_or(nothing));
        match &self.expectation.when {
            When::At(_) => None,
            When::Within { .. } => is_so().then_some(Outcome::Held),
            When::Between { from, .. } => {
                let early = now < begin.saturating_add(*from);
                match (is_so(), early) {
                    (false, _) => None,
                    (true, false) => Some(Outcome::Held),
                    (true, true) => {
                        let after = time::show(now.saturating_sub(begin));
                        Some(self.failed(
                            &format!("it was so at {}, after {after} already", time::show(now)),
                            seen,
                            nothing,
                        ))
                    }
                }
            }
            When::Always { .. } => (!is_so())
                .then(|| self.failed(&format!("it was not so at {}", time::show(now)), seen, nothing)),
            When::Never { .. } => {
                is_so().then(|| self.failed(&format!("it was so at {}", time::show(now)), seen, nothing))
            }
        }
    }

    /// What is decided by its time being over.
    fn close(&self, end: Duration, seen: &Seen, nothing: &Objects) -> Outcome {
        match &self.expectation.when {
            When::At(_) => {
                if holds(&self.expectation.what, seen, self.then.as_ref().unwrap_or(nothing)) {
                    Outcome::Held
                } else {
                    self.failed(&format!("it was not so at {}", time::show(end)), seen, nothing)
                }
            }
            When::Within { .. } | When::Between { .. } => {
                self.failed(&format!("it was not so until {}", time::show(end)), seen, nothing)
            }
            When::Always { .. } | When::Never { .. } => Outcome::Held,
        }
    }

    /// What is decided by the run being over.
    fn finish(&mut self, now: Duration, known: &Known<'_>, seen: &Seen, nothing: &Objects) -> Outcome {
        match self.span(known) {
            Some((begin, _)) if begin > now => Outcome::Unreached,
            Some((_, end)) => match self.expectation.when {
                When::Always { .. } | When::Never { .. } if end >= known.end && now < known.end => {
                    Outcome::Unreached
                }
                When::Within { .. } | When::Between { .. } if end > now && now < known.end => {
                    Outcome::Unreached
                }
                _ => self.close(end.min(now), seen, nothing),
            },
            None if now < known.end => Outcome::Unreached,
            None => self.failed("the moment from which it counts never came", seen, nothing),
        }
    }

    fn failed(&self, because: &str, seen: &Seen, nothing: &Objects) -> Outcome {
        let what = &self.expectation.what;
        let saw = explain(what, seen, self.then.as_ref().unwrap_or(nothing));
        Outcome::Failed { because: because.to_owned(), saw, last: last_lines(what, seen) }
    }
}

impl When {
    /// The moments in it, the beginning first.
    fn moments(&self) -> Vec<&Moment> {
        match self {
            When::At(moment) | When::Within { of: moment, .. } | When::Between { after: moment, .. } => {
                vec![moment]
            }
            When::Always { from, until } | When::Never { from, until } => vec![from, until],
        }
    }
}

/// The last lines about all objects, there or gone, that the claims mean.
fn last_lines(what: &Predicate, seen: &Seen) -> Vec<Line> {
    let mut about: Vec<&Id> = Vec::new();
    for claim in what.claims() {
        about.extend(selected(&claim.filter, &seen.objects).map(|(id, _)| id));
        about.extend(selected(&claim.filter, &seen.former).map(|(id, _)| id));
    }
    about.sort();
    about.dedup();
    let mut lines: Vec<Line> = about.into_iter().flat_map(|id| seen.lines(id).cloned()).collect();
    lines.sort_by_key(|line| line.at);
    lines.split_off(lines.len().saturating_sub(LAST))
}
