//! What is chosen at a first start, and kept.

use super::*;
use crate::store::{EtcdSettings, StoreWish};

fn cluster(base: &Path, name: &str) -> Cluster {
    let register = Register::at(base.join("clusters"));
    elsewhere(base, name, register)
}

fn elsewhere(base: &Path, name: &str, register: Register) -> Cluster {
    let target = Target { name: name.into(), data_dir: base.join("data"), run_dir: base.join("run") };
    Cluster::on(&target, register)
}

#[test]
fn clusters_that_choose_at_once_choose_differently_wherever_their_directories_are() {
    let machine = tempfile::tempdir().unwrap();
    let register = Register::at(machine.path().join("clusters"));
    let names = ["a", "b", "c", "d"];
    let clusters = names.map(|name| elsewhere(&machine.path().join(name), name, register.clone()));
    let chosen: Vec<Settings> = std::thread::scope(|scope| {
        let choosers = clusters.each_ref().map(|cluster| {
            scope.spawn(|| {
                let settings = cluster.settings_or_choose(&Wishes::default()).unwrap();
                assert_eq!(cluster.settings().unwrap().as_ref(), Some(&settings));
                settings
            })
        });
        choosers.into_iter().map(|chooser| chooser.join().unwrap()).collect()
    });
    let different = |what: &dyn Fn(&Settings) -> String| {
        let all: BTreeSet<String> = chosen.iter().map(what).collect();
        assert_eq!(all.len(), names.len(), "{all:?}");
    };
    different(&|settings| settings.pod_cidr.clone());
    different(&|settings| settings.service_cidr.clone());
    different(&|settings| settings.bridge.clone());
    different(&|settings| settings.api_port.to_string());
    different(&|settings| settings.kubelet_port.to_string());
    let wish = Wishes { pod_cidr: Some(chosen[1].pod_cidr.clone()), ..Wishes::default() };
    let another = elsewhere(&machine.path().join("e"), "e", register);
    let message = another.settings_or_choose(&wish).unwrap_err().to_string();
    assert!(message.contains("which is in use on this machine"), "{message}");
    assert!(another.check_alone(&chosen[2]).is_err());
    fs::remove_dir_all(&clusters[1].data).unwrap();
    clusters[1].forget().unwrap();
    assert_eq!(another.settings_or_choose(&wish).unwrap().pod_cidr, chosen[1].pod_cidr, "it is free again");
}

#[test]
fn two_clusters_of_one_name_are_not_on_one_machine() {
    let machine = tempfile::tempdir().unwrap();
    let register = Register::at(machine.path().join("clusters"));
    let [first, second] =
        ["a", "b"].map(|place| elsewhere(&machine.path().join(place), "same", register.clone()));
    first.settings_or_choose(&Wishes::default()).unwrap();
    first.settings_or_choose(&Wishes::default()).unwrap();
    let message = second.settings_or_choose(&Wishes::default()).unwrap_err().to_string();
    let place = machine.path().canonicalize().unwrap().join("a/data/same");
    assert!(message.starts_with(&format!("{} belongs to a cluster \"same\"", place.display())), "{message}");
    assert_eq!((second.elsewhere(), first.elsewhere()), (Some(place), None));
    fs::remove_dir_all(&first.data).unwrap();
    second.settings_or_choose(&Wishes::default()).unwrap();
}

#[test]
fn a_cluster_is_known_again_from_its_next_start_on_after_the_register_was_lost() {
    let machine = tempfile::tempdir().unwrap();
    let register = Register::at(machine.path().join("clusters"));
    let first = elsewhere(&machine.path().join("a"), "a", register.clone());
    let made = first.settings_or_choose(&Wishes::default()).unwrap();
    fs::remove_file(machine.path().join("clusters")).unwrap();
    assert_eq!(first.settings_or_choose(&Wishes::default()).unwrap(), made);
    let second = elsewhere(&machine.path().join("b"), "b", register);
    assert_ne!(second.settings_or_choose(&Wishes::default()).unwrap().pod_cidr, made.pod_cidr);
    for cluster in [first, second] {
        fs::remove_dir_all(&cluster.data).unwrap();
        cluster.forget().unwrap();
    }
    assert_eq!(fs::read_dir(machine.path().join("a")).unwrap().count(), 0, "nothing is left");
    assert!(!machine.path().join("clusters").exists());
}

#[test]
fn settings_are_kept_and_a_different_wish_later_is_refused() {
    let base = tempfile::tempdir().unwrap();
    let cluster = cluster(base.path(), "a");
    let wishes = Wishes { pod_cidr: Some("10.99.0.0/16".into()), ..Wishes::default() };
    let made = cluster.settings_or_choose(&wishes).unwrap();
    assert_eq!(cluster.settings_or_choose(&Wishes::default()).unwrap(), made);
    let other = Wishes { pod_cidr: Some("10.98.0.0/16".into()), ..Wishes::default() };
    let message = cluster.settings_or_choose(&other).unwrap_err().to_string();
    assert!(message.contains("--pod-cidr 10.98.0.0/16 differs from 10.99.0.0/16"), "{message}");
}

#[test]
fn a_store_may_be_corrected_until_it_is_used() {
    let base = tempfile::tempdir().unwrap();
    let cluster = cluster(base.path(), "a");
    let wish = |address: &str| {
        let address = address.to_owned();
        let etcd = EtcdSettings { address, ca: None, cert: None, key: None, used: false };
        Wishes { store: Some(StoreWish::Etcd(etcd)), ..Wishes::default() }
    };
    cluster.settings_or_choose(&wish("etcd://wrong:2379")).unwrap();
    let settings = cluster.settings_or_choose(&wish("etcd://right:2379")).unwrap();
    assert_eq!(cluster.settings_or_choose(&Wishes::default()).unwrap(), settings, "it is remembered");
    cluster.store_is_used(&settings).unwrap();
    cluster.settings_or_choose(&wish("etcd://right:2379")).unwrap();
    let message = cluster.settings_or_choose(&wish("etcd://other:2379")).unwrap_err().to_string();
    assert!(message.contains("--store etcd://other:2379 differs from etcd://right:2379"), "{message}");
    let embedded = Wishes { store: Some(StoreWish::Embedded), ..Wishes::default() };
    let message = cluster.settings_or_choose(&embedded).unwrap_err().to_string();
    assert!(message.contains("--store embedded differs from etcd://right:2379"), "{message}");
}

#[test]
fn a_cluster_with_damaged_settings_can_be_removed() {
    let base = tempfile::tempdir().unwrap();
    let cluster = cluster(base.path(), "a");
    let made = cluster.settings_or_choose(&Wishes::default()).unwrap();
    cluster.remember_settings(&made).unwrap();
    fs::remove_file(cluster.settings_file()).unwrap();
    assert_eq!(cluster.settings_to_remove().unwrap().as_ref(), Some(&made), "also if it is gone");
    fs::write(cluster.settings_file(), "{").unwrap();
    assert!(cluster.settings().unwrap_err().to_string().contains("is damaged"));
    assert_eq!(cluster.settings_to_remove().unwrap(), Some(made));
    fs::remove_file(cluster.last_settings_file()).unwrap();
    assert_eq!(cluster.settings_to_remove().unwrap(), None);
}
