//! `coracle sim --serve`: kubectl and controllers of the real world talk to the simulated cluster, whose time stands still
//! until somebody lets it pass.

use std::time::Duration;

use coracle_sim::scenario::{Play, Stopped, time};
use serde_json::Value;

use super::edge::{Edge, Wish, time_json};
use crate::cli::{Sim, Speed};
use crate::output;

/// Virtual time passes in pieces of this length, between which clients have a moment.
const PIECE: Duration = Duration::from_secs(1);
/// The moment, of real time.
const MOMENT: Duration = Duration::from_millis(1);

/// Serves until the end of the scenario, or until it is enough.
pub(super) fn run(play: &mut Play, options: &Sim) -> Result<(), Stopped> {
    let door = play.world().open_door();
    let edge = Edge::open(door, options.speed, options.kubeconfig.as_deref());
    let mut edge = edge.map_err(|error| Stopped::host(std::io::Error::other(format!("{error:#}"))))?;
    introduce(&edge, options.speed);
    // What happens at the very start.
    play.advance(Duration::ZERO)?;
    while !play.is_over() {
        match play.world().stand_still(edge.wishes.recv()) {
            None | Some(Wish::Quit) => return Ok(()),
            Some(Wish::Time(answer)) => drop(answer.send(now(play))),
            Some(Wish::Advance(by, answer)) => {
                advance(play, &edge, by)?;
                match answer {
                    Some(answer) => drop(answer.send(now(play))),
                    None => output::note(format_args!("it is {} now", time::show(play.now()))),
                }
            }
        }
    }
    Ok(())
}

fn advance(play: &mut Play, edge: &Edge, by: Duration) -> Result<(), Stopped> {
    let then = play.now().saturating_add(by).min(play.end());
    while play.now() < then && !play.is_over() {
        let next = play.now().saturating_add(PIECE).min(then);
        play.advance(next)?;
        let moment = edge.moment(MOMENT);
        play.world().stand_still(moment);
    }
    Ok(())
}

fn now(play: &mut Play) -> Value {
    let elapsed = play.now();
    time_json(elapsed, play.world().now())
}

fn introduce(edge: &Edge, speed: Speed) {
    let kubeconfig = edge.kubeconfig.display();
    output::note(format_args!(
        "The cluster is served. In another terminal:\n\n  export KUBECONFIG={kubeconfig}"
    ));
    output::note("  kubectl get nodes\n");
    match speed {
        Speed::Max => output::note(
            "Time stands still. Let it pass with Enter (10s), with a time as 10m, or from elsewhere:\n\n  \
             kubectl create --raw '/coracle/v1/advance?by=10m' -f /dev/null\n\nq ends it.\n",
        ),
        Speed::Times(times) => {
            output::note(format_args!("Time passes at {times} times its usual pace. q ends it.\n"));
        }
    }
}
