//! TokenRequest, the kind of the subresource `serviceaccounts/token`.

use jiff::Timestamp;
use serde_json::Value;

use crate::catalogue::Strategy;
use crate::field::{FieldError, Path};
use crate::table::Column;
use crate::tree::{at, int_at, is_empty, object_in, set_default};

/// What is special about TokenRequests.
pub(crate) struct TokenRequestStrategy;

const DEFAULT_SECONDS: i64 = 60 * 60;
const SECONDS_MIN: i64 = 10 * 60;
const SECONDS_MAX: i64 = 1 << 32;

impl Strategy for TokenRequestStrategy {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object_in(object, "spec") {
            set_default(spec, "expirationSeconds", DEFAULT_SECONDS);
        }
    }

    fn validate_create(&self, object: &Value) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let spec = Path::new("spec");
        let seconds = int_at(object, &["spec", "expirationSeconds"]).unwrap_or(0);
        let path = spec.child("expirationSeconds");
        if seconds < SECONDS_MIN {
            let why = "may not specify a duration less than 10 minutes";
            errors.push(FieldError::invalid(&path, seconds, why));
        }
        if seconds > SECONDS_MAX {
            let why = "may not specify a duration larger than 2^32 seconds";
            errors.push(FieldError::invalid(&path, seconds, why));
        }
        if !is_empty(at(object, &["spec", "attestations"])) {
            let why = "attestations are not supported by Coracle";
            errors.push(FieldError::forbidden(&spec.child("attestations"), why));
        }
        errors
    }

    fn columns(&self) -> &'static [Column] {
        super::NAME_AND_AGE
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        super::name_and_age(object, now)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_lifetime_of_a_token_is_bounded_and_an_hour_if_nothing_is_said() {
        let complaints = |seconds: Value| {
            let mut object = json!({ "spec": { "expirationSeconds": seconds } });
            TokenRequestStrategy.default(&mut object);
            let errors = TokenRequestStrategy.validate_create(&object);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        for (seconds, expected) in [
            (json!(null), ""),
            (json!(600), ""),
            (json!(1_i64 << 32), ""),
            (
                json!(599),
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 minutes",
            ),
            (
                json!(0),
                "spec.expirationSeconds: Invalid value: 0: may not specify a duration less than 10 minutes",
            ),
            (
                json!((1_i64 << 32) + 1),
                "spec.expirationSeconds: Invalid value: 4294967297: may not specify a duration larger than 2^32 \
                 seconds",
            ),
        ] {
            assert_eq!(complaints(seconds.clone()), expected, "{seconds}");
        }
        let mut object = json!({});
        TokenRequestStrategy.default(&mut object);
        assert_eq!(object["spec"]["expirationSeconds"], 3600);
    }
}
