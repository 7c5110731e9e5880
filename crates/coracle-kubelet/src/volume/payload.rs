//! Which files a volume shows: from plain data to a list of paths with their contents.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, PodSpec, Secret, Volume,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::objects::not_found;
use crate::spec::fields::{metadata_field, resource_field};

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) data: Vec<u8>,
    /// Permission bits.
    pub(crate) mode: u32,
    /// Who owns it, if not the node agent.
    pub(crate) owner: Option<u32>,
}

/// Files by path below the volume.
pub(crate) type Payload = BTreeMap<String, FileContent>;

/// A source as it was found: `Ok(None)` says that there is none.
pub(crate) type Found<T> = Result<Option<Arc<T>>, String>;

/// Names the token that a volume asks for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenWanted {
    pub(crate) audience: Option<String>,
    pub(crate) seconds: i64,
}

/// What the sources of a Pod's volumes are at the moment.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, Found<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Found<Secret>>,
    pub(crate) tokens: BTreeMap<TokenWanted, Result<String, String>>,
    /// What the node has for Pods.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

const DEFAULT_MODE: i32 = 0o644;
/// Of a token that is meant for one user or group.
const OWN_TOKEN_MODE: u32 = 0o600;
const TOKEN_SECONDS: i64 = 3600;

/// The files of a volume that shows some.
///
/// # Errors
/// Why they are not known, in upstream's words.
pub(crate) fn payload(pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Payload, String> {
    let mut files = Payload::new();
    if let Some(source) = &volume.config_map {
        let optional = source.optional == Some(true);
        let map = found(&sources.config_maps, &source.name, optional)?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.extend(config_map(map.as_deref(), source.items.as_deref(), mode, optional)?);
    } else if let Some(source) = &volume.secret {
        let optional = source.optional == Some(true);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let secret = found(&sources.secrets, name, optional)?;
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.extend(self::secret(secret.as_deref(), source.items.as_deref(), mode, optional)?);
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.extend(downward(pod, source.items.as_deref(), mode, sources)?);
    } else if volume.projected.is_some() {
        files = projected(pod, volume, sources)?;
    }
    Ok(files)
}

fn projected(pod: &Pod, volume: &Volume, sources: &Sources) -> Result<Payload, String> {
    let Some(projected) = &volume.projected else { return Ok(Payload::new()) };
    let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
    let mut files = Payload::new();
    let mut errors: Vec<String> = Vec::new();
    for source in projected.sources.iter().flatten() {
        let made = if let Some(source) = &source.config_map {
            let optional = source.optional == Some(true);
            found(&sources.config_maps, &source.name, optional)
                .and_then(|map| config_map(map.as_deref(), source.items.as_deref(), mode, optional))
        } else if let Some(source) = &source.secret {
            let optional = source.optional == Some(true);
            found(&sources.secrets, &source.name, optional)
                .and_then(|secret| self::secret(secret.as_deref(), source.items.as_deref(), mode, optional))
        } else if let Some(source) = &source.downward_api {
            downward(pod, source.items.as_deref(), mode, sources)
        } else if let Some(source) = &source.service_account_token {
            let wanted = token_wanted(source);
            let token = sources.tokens.get(&wanted).cloned();
            token.unwrap_or_else(|| Err("failed to fetch token: it was not asked for".to_owned())).map(
                |token| {
                    let owner = only_user(pod);
                    let own = owner.is_some() || super::fs_group(pod).is_some();
                    let mode = if own { OWN_TOKEN_MODE } else { permissions(mode) };
                    Payload::from([(
                        source.path.clone(),
                        FileContent { data: token.into_bytes(), mode, owner },
                    )])
                },
            )
        } else {
            Err("a source of this kind is not supported by this node".to_owned())
        };
        match made {
            Ok(made) => files.extend(made),
            Err(why) => errors.push(why),
        }
    }
    match errors.len() {
        0 => Ok(files),
        1 => Err(errors.remove(0)),
        _ => Err(format!("[{}]", errors.join(", "))),
    }
}

/// Which token a source asks for.
pub(crate) fn token_wanted(
    source: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection,
) -> TokenWanted {
    TokenWanted {
        audience: source.audience.clone().filter(|audience| !audience.is_empty()),
        seconds: source.expiration_seconds.unwrap_or(TOKEN_SECONDS),
    }
}

fn found<T: crate::objects::Referable>(
    all: &BTreeMap<String, Found<T>>,
    name: &str,
    optional: bool,
) -> Result<Option<Arc<T>>, String> {
    match all.get(name).cloned().unwrap_or(Ok(None))? {
        None if !optional => Err(not_found::<T>(name)),
        found => Ok(found),
    }
}

fn permissions(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o777
}

fn file(data: &[u8], mode: i32) -> FileContent {
    FileContent { data: data.to_vec(), mode: permissions(mode), owner: None }
}

fn config_map(
    map: Option<&ConfigMap>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let texts = || map.iter().flat_map(|map| map.data.iter().flatten()).map(|(k, v)| (k, v.as_bytes()));
    let bytes =
        || map.iter().flat_map(|map| map.binary_data.iter().flatten()).map(|(k, v)| (k, v.0.as_slice()));
    let all: BTreeMap<&String, &[u8]> = bytes().chain(texts()).collect();
    select(&all, items, mode, optional, "configmap references non-existent config key")
}

fn secret(
    secret: Option<&Secret>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
) -> Result<Payload, String> {
    let data = secret.iter().flat_map(|secret| secret.data.iter().flatten());
    let all: BTreeMap<&String, &[u8]> = data.map(|(key, value)| (key, value.0.as_slice())).collect();
    select(&all, items, mode, optional, "references non-existent secret key")
}

fn select(
    all: &BTreeMap<&String, &[u8]>,
    items: Option<&[KeyToPath]>,
    mode: i32,
    optional: bool,
    missing: &str,
) -> Result<Payload, String> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(all.iter().map(|(key, data)| ((*key).clone(), file(data, mode))).collect());
    };
    let mut files = Payload::new();
    for item in items {
        match all.get(&item.key) {
            Some(data) => {
                files.insert(item.path.clone(), file(data, item.mode.unwrap_or(mode)));
            }
            None if optional => {}
            None => return Err(format!("{missing}: {}", item.key)),
        }
    }
    Ok(files)
}

fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    mode: i32,
    sources: &Sources,
) -> Result<Payload, String> {
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let mut files = Payload::new();
    for item in items.into_iter().flatten() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => metadata_field(pod, &field.field_path)
                .ok_or_else(|| format!("unsupported fieldPath: {}", field.field_path))?,
            (None, Some(field)) => resource_field(field, spec, None, &sources.allocatable)?,
            (None, None) => continue,
        };
        files.insert(item.path.clone(), file(text.as_bytes(), item.mode.unwrap_or(mode)));
    }
    Ok(files)
}

/// The user that all containers run as, if the spec says so and it is the same one.
fn only_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|context| context.run_as_user);
    let user = |container: &Container| {
        container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod)
    };
    let mut users = spec.init_containers.iter().flatten().chain(&spec.containers).map(user);
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok())?
}
