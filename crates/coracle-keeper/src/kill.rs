//! Killing the members of a control group, and nobody else.
//!
//! A list of process ids is old when it has been read: a process may have ended meanwhile and another one have its
//! id. So each is held by a descriptor first, and killed by way of that if the id is in the list still.

use std::collections::HashSet;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// Kills the processes that `members` lists, which it does anew each time; says whether there were any. Processes
/// that join meanwhile are for the next call.
pub fn kill_members(mut members: impl FnMut() -> Vec<Pid>) -> bool {
    let before = members();
    let held: Vec<_> =
        before.iter().filter_map(|pid| Some((*pid, pidfd_open(*pid, PidfdFlags::empty()).ok()?))).collect();
    if !held.is_empty() {
        let now: HashSet<Pid> = members().into_iter().collect();
        for (pid, descriptor) in held {
            if now.contains(&pid) {
                // It may have ended by now, which is as good.
                let _ = pidfd_send_signal(&descriptor, Signal::KILL);
            }
        }
    }
    !before.is_empty()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    fn process() -> (Child, Pid) {
        let child = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[test]
    fn who_has_the_id_of_a_dead_member_lives_on() {
        let (mut member, of_member) = process();
        let (mut stranger, of_stranger) = process();
        // The stranger is in the list when it is read, and not in the group when it is looked at again.
        let mut lists = [vec![of_stranger, of_member], vec![of_member]].into_iter();
        assert!(kill_members(|| lists.next().unwrap()));
        assert!(!member.wait().unwrap().success());
        let (mut to, mut from) = (stranger.stdin.take().unwrap(), stranger.stdout.take().unwrap());
        let _ = to.write_all(b"you live");
        drop(to);
        let mut heard = String::new();
        from.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "you live");
        assert!(stranger.wait().unwrap().success());
        assert!(!kill_members(Vec::new));
    }
}
