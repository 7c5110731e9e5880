//! Acting as somebody else, as `kubectl --as` asks for: administrators may, nobody else.

use coracle_api::field::go_quote;
use coracle_api::status::Status;
use http::HeaderMap;

use crate::auth::{SYSTEM_AUTHENTICATED, SYSTEM_MASTERS, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
const ANONYMOUS: &str = "system:anonymous";

/// Who a request of `user` is to be treated as.
///
/// # Errors
/// 403 if the user may not act as another one, 401 if nobody asks.
pub(crate) fn acting(user: Option<UserInfo>, headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    if !headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
        return Ok(user);
    }
    let user = user.ok_or_else(Status::unauthorized)?;
    let all = |name: &str| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    let name = all(USER).pop().unwrap_or_default();
    if name.is_empty() {
        return Err(Status::bad_request("requested impersonation without impersonating a user"));
    }
    if !user.is_in(SYSTEM_MASTERS) {
        let why = format!(
            "User {} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            go_quote(&user.name)
        );
        return Err(Status::forbidden("", "users", &name, &why));
    }
    let groups = all(GROUP);
    let mut other = match service_account(&name).filter(|_| groups.is_empty()) {
        Some((namespace, account)) => UserInfo::service_account(namespace, account),
        None => UserInfo::new(&name, groups.iter().map(String::as_str)),
    };
    if name == ANONYMOUS {
        other.groups.retain(|group| group != SYSTEM_AUTHENTICATED);
    }
    other.uid = all(UID).pop().unwrap_or_default();
    for key in headers.keys() {
        if let Some(extra) = key.as_str().strip_prefix(EXTRA) {
            other.extra.insert(extra.to_owned(), all(key.as_str()));
        }
    }
    Ok(Some(other))
}

fn service_account(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix("system:serviceaccount:")?.split_once(':')
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn act(user: &UserInfo, headers: &[(&'static str, &'static str)]) -> Result<UserInfo, Status> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        acting(Some(user.clone()), &map).map(|user| user.expect("somebody"))
    }

    #[test]
    fn administrators_act_as_others_and_nobody_else_does() {
        let admin = UserInfo::new("kubernetes-admin", [SYSTEM_MASTERS]);
        let jane = UserInfo::new("jane", []);
        assert_eq!(act(&jane, &[]).unwrap(), jane);
        assert_eq!(act(&admin, &[(USER, "jane")]).unwrap(), jane);
        let grouped = act(&admin, &[(USER, "jane"), (GROUP, "a"), (GROUP, "b")]).unwrap();
        assert_eq!(grouped, UserInfo::new("jane", ["a", "b"]));
        assert_eq!(
            act(&admin, &[(USER, "system:serviceaccount:ns:me")]).unwrap(),
            UserInfo::service_account("ns", "me")
        );
        assert_eq!(act(&admin, &[(USER, ANONYMOUS)]).unwrap().groups, [""; 0]);
        let refused = act(&jane, &[(USER, "bob")]).unwrap_err();
        assert_eq!(
            (refused.code, refused.message.as_str()),
            (
                403,
                "users \"bob\" is forbidden: User \"jane\" cannot impersonate resource \"users\" in API group \
                 \"\" at the cluster scope"
            )
        );
        assert_eq!(act(&admin, &[(GROUP, "a")]).unwrap_err().code, 400);
        assert_eq!(
            acting(None, &HeaderMap::from_iter([(USER.parse().unwrap(), HeaderValue::from_static("x"))]))
                .unwrap_err()
                .code,
            401
        );
    }
}
