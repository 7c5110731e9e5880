//! What an image or a container may try.

use std::os::unix::fs::symlink;

use coracle_cri::{Mount, MountPropagation};

use crate::host::{Host, output, shell};

#[tokio::test(flavor = "multi_thread")]
async fn links_of_an_image_write_nothing_on_the_host() {
    let host = Host::new();
    let victim = host.dir.path().join("victim");
    std::fs::create_dir(&victim).unwrap();
    std::fs::write(victim.join("resolv.conf"), "untouched").unwrap();
    for name in ["dev", "proc", "sys"] {
        symlink(&victim, host.image().join(name)).unwrap();
    }
    symlink(victim.join("resolv.conf"), host.image().join("etc/resolv.conf")).unwrap();
    symlink("../../../../../../../..", host.image().join("up")).unwrap();
    symlink("/run", host.image().join("var/run")).unwrap();
    let runtime = host.open().await;
    let volume = host.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("token"), "secret\n").unwrap();
    let mount = |path: &str| Mount {
        container_path: path.into(),
        host_path: volume.clone(),
        readonly: true,
        recursive_readonly: false,
        image: None,
        propagation: MountPropagation::Private,
    };
    let mut config = shell(
        "cat /run/secrets/x/token; cat /up/data/token; echo x > /dev/null; ls -ld /dev | head -c 1; echo",
    );
    config.mounts = vec![mount("/var/run/secrets/x"), mount("/up/data")];
    assert_eq!(output(&host, &runtime, &config).await, "secret\nsecret\nd\n");
    let left: Vec<_> = std::fs::read_dir(&victim).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["resolv.conf"]);
    assert_eq!(std::fs::read_to_string(victim.join("resolv.conf")).unwrap(), "untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_of_the_host_cannot_be_opened() {
    let host = Host::new();
    let runtime = host.open().await;
    let text = output(
        &host,
        &runtime,
        &shell("mknod /tmp/m c 1 1 2>/dev/null; (cat /tmp/m | head -c 1) 2>&1 | head -n 1; head -c 1 /dev/zero | busybox wc -c"),
    )
    .await;
    assert!(text.contains("can't open") && text.ends_with("1\n"), "{text}");
}

/// Whatever the control groups say: the device is one that they let everybody have.
#[tokio::test(flavor = "multi_thread")]
async fn a_device_node_of_an_image_opens_nothing() {
    let host = Host::new();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        host.image().join("zero"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 5),
    )
    .unwrap();
    let runtime = host.open().await;
    let script = "head -c 1 /zero | busybox wc -c; head -c 1 /dev/zero | busybox wc -c; \
                  touch /new 2>/dev/null && echo writable; true";
    for (readonly, privileged, expected) in [
        (false, false, "0\n1\nwritable\n"),
        (true, false, "0\n1\n"),
        (false, true, "1\n1\nwritable\n"),
        (true, true, "1\n1\n"),
    ] {
        let mut config = shell(script);
        config.security_context.readonly_rootfs = readonly;
        config.security_context.privileged = privileged;
        let text = output(&host, &runtime, &config).await;
        assert_eq!(text, expected, "read-only: {readonly}, privileged: {privileged}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keepers_program_cannot_be_written() {
    let host = Host::new();
    let runtime = host.open().await;
    // The shell asks to be replaced by whoever starts it; there is only itself, and its image is its own.
    let text = output(&host, &runtime, &shell("readlink /proc/1/exe; readlink /proc/self/exe")).await;
    assert_eq!(text, "/bin/busybox\n/bin/busybox\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_the_usual_capabilities_and_filter() {
    let host = Host::new();
    let runtime = host.open().await;
    let script = "busybox grep -E 'CapBnd|CapEff|Seccomp:|NoNewPrivs' /proc/self/status; \
                  busybox unshare -m true 2>/dev/null || echo refused";
    let root = output(&host, &runtime, &shell(script)).await;
    let words: Vec<&str> = root.split_whitespace().collect();
    let usual = "00000000a80425fb";
    assert_eq!(words, ["CapEff:", usual, "CapBnd:", usual, "NoNewPrivs:", "0", "Seccomp:", "2", "refused"]);

    let mut config = shell(script);
    config.security_context.run_as_user = Some(101);
    config.security_context.no_new_privs = true;
    config.security_context.drop_capabilities = vec!["ALL".into()];
    let user = output(&host, &runtime, &config).await;
    let none = "0000000000000000";
    let words: Vec<&str> = user.split_whitespace().collect();
    assert_eq!(words, ["CapEff:", none, "CapBnd:", none, "NoNewPrivs:", "1", "Seccomp:", "2", "refused"]);

    let mut config = shell(script);
    config.security_context.seccomp_unconfined = true;
    let free = output(&host, &runtime, &config).await;
    let words: Vec<&str> = free.split_whitespace().collect();
    assert_eq!(words, ["CapEff:", usual, "CapBnd:", usual, "NoNewPrivs:", "0", "Seccomp:", "0", "refused"]);

    let mut config = shell("exec sleep 1000");
    config.security_context.run_as_user = Some(101);
    let id = crate::host::run(&host, &runtime, &config).await;
    let command = [
        "sh".to_owned(),
        "-c".to_owned(),
        "busybox grep -E 'CapEff|CapBnd|Seccomp:|^Uid' /proc/self/status".to_owned(),
    ];
    let result = coracle_cri::RuntimeService::exec_sync(&*runtime, &id, &command, None).await.unwrap();
    let text = String::from_utf8(result.stdout).unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(
        words,
        ["Uid:", "101", "101", "101", "101", "CapEff:", none, "CapBnd:", usual, "Seccomp:", "2"]
    );
}
