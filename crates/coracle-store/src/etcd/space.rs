//! Which of etcd's keys are this store's, and what they are called there. Pure.

use bytes::Bytes;

use super::proto::{
    self, CompareTarget, DeleteRangeRequest, PutRequest, RangeRequest, Request, RequestOp, TargetUnion,
    TxnRequest,
};
use crate::contract::{Compare, KeyValue, Op, Revision, StoreError, StoreResult, Txn, prefix_end};

/// No key is empty, and etcd refuses the empty one.
const FROM_FIRST: Bytes = Bytes::from_static(b"\0");
/// As the end of a range.
const TO_LAST: Bytes = Bytes::from_static(b"\0");

/// The part of etcd's keys that this store has.
#[derive(Debug, Clone)]
pub(super) struct Space {
    prefix: Bytes,
}

impl Space {
    pub(super) fn new(prefix: Bytes) -> Self {
        Space { prefix }
    }

    /// A key as etcd has it.
    pub(super) fn key(&self, key: &[u8]) -> Bytes {
        [&self.prefix, key].concat().into()
    }

    /// What etcd calls the keys with `prefix` after `after`: the first, and the one after the last.
    pub(super) fn range(&self, prefix: &Bytes, after: Option<&Bytes>) -> (Bytes, Bytes) {
        let under = if prefix.is_empty() && !self.prefix.is_empty() {
            // Beside a store of prefix `/a` there may be one of prefix `/ab`.
            self.key(b"/")
        } else {
            self.key(prefix)
        };
        let first = match after {
            Some(after) if after >= prefix => self.key(&[after, &b"\0"[..]].concat()),
            _ if under.is_empty() => FROM_FIRST,
            _ => under.clone(),
        };
        (first, prefix_end(&under).unwrap_or(TO_LAST))
    }

    /// Reads nothing, as of `revision`: for what the answer says besides.
    pub(super) fn nothing(&self, revision: i64) -> RangeRequest {
        RangeRequest { key: self.key(b"\0"), limit: 1, revision, count_only: true, ..RangeRequest::default() }
    }

    /// Whether a key of etcd is in this store.
    fn is_ours(&self, key: &[u8]) -> bool {
        let rest = key.strip_prefix(&self.prefix[..]);
        rest.is_some_and(|rest| self.prefix.is_empty() || rest.starts_with(b"/"))
    }

    /// Refuses a transaction with a key that would be in another store.
    pub(super) fn check(&self, txn: &Txn) -> StoreResult<()> {
        let keys = txn.compares.iter().map(|compare| &compare.key).chain(txn.ops.iter().map(Op::key));
        for key in keys {
            if !self.is_ours(&self.key(key)) {
                let key = String::from_utf8_lossy(key);
                let prefix = String::from_utf8_lossy(&self.prefix);
                let what = format!("the key {key:?} does not begin with a slash, and would leave {prefix}");
                return Err(StoreError::Invalid(what));
            }
        }
        Ok(())
    }

    /// A key with its value as this store has it.
    pub(super) fn read(&self, kv: proto::KeyValue) -> Option<KeyValue> {
        self.is_ours(&kv.key).then(|| KeyValue {
            key: kv.key.slice(self.prefix.len()..),
            value: kv.value,
            create_revision: Revision(kv.create_revision.unsigned_abs()),
            mod_revision: Revision(kv.mod_revision.unsigned_abs()),
        })
    }

    pub(super) fn txn(&self, txn: Txn) -> TxnRequest {
        let compare = |compare: &Compare| proto::Compare {
            target: CompareTarget::Mod.into(),
            key: self.key(&compare.key),
            target_union: Some(TargetUnion::ModRevision(
                i64::try_from(compare.mod_revision.0).unwrap_or(i64::MAX),
            )),
        };
        let change = |op: Op| -> RequestOp {
            match op {
                Op::Put { key, value } => Request::Put(PutRequest { key: self.key(&key), value }),
                Op::Delete { key } => Request::DeleteRange(DeleteRangeRequest { key: self.key(&key) }),
            }
            .into()
        };
        let look = |compare: &Compare| -> RequestOp {
            Request::Range(RangeRequest { key: self.key(&compare.key), ..RangeRequest::default() }).into()
        };
        TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            failure: txn.compares.iter().map(look).collect(),
            success: txn.ops.into_iter().map(change).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_in_the_store() {
        let b = |text: &'static str| Bytes::from_static(text.as_bytes());
        let whole = Space::new(Bytes::new());
        let part = Space::new(b("/a"));
        for (space, prefix, after, first, end) in [
            (&whole, "/x/", None, "/x/", "/x0"),
            (&whole, "/x/", Some("/x/1"), "/x/1\0", "/x0"),
            (&whole, "/x/", Some("/b"), "/x/", "/x0"),
            (&whole, "", None, "\0", "\0"),
            (&whole, "", Some("/x"), "/x\0", "\0"),
            (&part, "/x/", None, "/a/x/", "/a/x0"),
            (&part, "", None, "/a/", "/a0"),
            (&part, "", Some("/x"), "/a/x\0", "/a0"),
        ] {
            let range = space.range(&b(prefix), after.map(b).as_ref());
            assert_eq!(range, (b(first), b(end)), "{prefix:?} after {after:?}");
        }
        let highest = whole.range(&Bytes::from_static(b"\xff\xff"), None);
        assert_eq!(highest.1, TO_LAST);
        let read = |key| part.read(proto::KeyValue { key: b(key), ..Default::default() }).map(|kv| kv.key);
        assert_eq!(read("/a/x"), Some(b("/x")));
        assert_eq!((read("/ab/x"), read("/x")), (None, None));
    }
}
