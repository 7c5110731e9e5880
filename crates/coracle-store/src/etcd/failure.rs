//! What a failed call means: whether it happened, and whether it is worth another try. Pure.

use std::error::Error;

use tonic::{Code, ConnectError, Status};

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// There was no connection, so it did not happen. Worth another try.
    Unconnected(String),
    /// It was refused before anything was decided, so it did not happen. Worth another try.
    NotDone(String),
    /// Whether it happened is unknown. Worth another try if that changes nothing.
    Unknown(String),
    /// The revision asked for is compacted.
    Compacted,
    /// The revision asked for has not happened yet.
    Future,
    /// No room: it did not happen.
    NoSpace(String),
    /// The request is wrong: it did not happen.
    Invalid(String),
    /// This client may not do that: it did not happen.
    Refused(String),
}

impl Failure {
    /// Reads what gRPC, or etcd through it, says.
    pub(super) fn of(status: &Status) -> Failure {
        let words = status.message();
        // etcd tells its errors apart by their words: several share a code.
        let says = |part: &str| words.contains(part);
        if says("required revision has been compacted") {
            return Failure::Compacted;
        }
        if says("required revision is a future revision") {
            return Failure::Future;
        }
        let too_much = [
            "database space exceeded",
            "request is too large",
            "too many operations",
            // What is far too large does not even get as far.
            "received message larger than max",
        ];
        if too_much.iter().any(|part| says(part)) {
            return Failure::NoSpace(words.to_owned());
        }
        // Both are said before the request is proposed to anybody.
        if says("etcdserver: no leader") || says("etcdserver: too many requests") {
            return Failure::NotDone(words.to_owned());
        }
        if is_connect_error(status) {
            return Failure::Unconnected(chain(status));
        }
        match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::Unimplemented => {
                Failure::Invalid(words.to_owned())
            }
            Code::PermissionDenied | Code::Unauthenticated => Failure::Refused(words.to_owned()),
            _ => Failure::Unknown(if says("etcdserver:") { words.to_owned() } else { chain(status) }),
        }
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(status);
    while let Some(error) = next {
        if error.is::<ConnectError>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// The words of an error of the connection, down to the operating system's.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        // A status shows itself with code and metadata; its message is what it says.
        let text = match error.downcast_ref::<Status>() {
            Some(status) => status.message().to_owned(),
            None => error.to_string(),
        };
        if !words.iter().any(|said| said.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcd_is_told_by_its_words() {
        let of = |code, words: &str| Failure::of(&Status::new(code, words));
        assert_eq!(
            of(Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted"),
            Failure::Compacted
        );
        assert_eq!(
            of(Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision"),
            Failure::Future
        );
        for words in ["etcdserver: mvcc: database space exceeded", "etcdserver: request is too large"] {
            assert_eq!(of(Code::ResourceExhausted, words), Failure::NoSpace(words.to_owned()));
        }
        let words = "etcdserver: no leader";
        assert_eq!(of(Code::Unavailable, words), Failure::NotDone(words.to_owned()));
        let words = "etcdserver: permission denied";
        assert_eq!(of(Code::PermissionDenied, words), Failure::Refused(words.to_owned()));
    }

    #[test]
    fn what_may_have_happened_is_never_taken_for_undone() {
        for (code, words) in [
            (Code::Unavailable, "etcdserver: request timed out"),
            (Code::Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"),
            (Code::Unavailable, "etcdserver: leader changed"),
            (Code::Unavailable, "etcdserver: server stopped"),
            (Code::Unknown, "transport error"),
            (Code::Internal, "h2 protocol error"),
            (Code::Cancelled, "operation was canceled"),
            (Code::DeadlineExceeded, "context deadline exceeded"),
        ] {
            let failure = Failure::of(&Status::new(code, words));
            assert_eq!(failure, Failure::Unknown(words.to_owned()), "{code:?}");
        }
    }
}
