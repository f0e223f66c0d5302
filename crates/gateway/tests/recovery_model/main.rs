//! Recovery against a model: clients publish, join, lose their transports, come back, and are taken over, put out and moved, while the
//! process restarts under them. Whatever they are sent is compared with what they were to get: nothing missing, nothing twice, nothing
//! out of order, nothing that is not for them; or they are told that continuity is lost, within what the catalog calls history never.
//!
//! A program is drawn from a seed, which is printed when it fails. `TIDEWIRE_SEED=7` runs that one alone, `TIDEWIRE_CASES=100000` more of
//! them. The store and the gateway have threads of their own, so a rare failure may need its seed a few times:
//! `TIDEWIRE_SEED=7 TIDEWIRE_REPEAT=200`.

mod client;
mod forgetful;
mod line;
mod oracle;
mod program;
mod world;

use std::time::Duration;

use serde_json::json;
use tidewire_core::Timestamp;

use client::{Client, Shown, Told};
use line::Way;
use oracle::{Kind, Logged, Standing, USERS, Whose};
use program::{Dice, Show, Step};
use world::{Ending, World};

/// How many programs an ordinary run has.
const CASES: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}: expected a number, got {text:?}")))
}

#[test]
fn clients_get_what_they_missed_and_may_see_once_and_in_order_or_are_told() {
    let seed = number("TIDEWIRE_SEED");
    let cases = number("TIDEWIRE_CASES").unwrap_or(if seed.is_some() { 1 } else { CASES });
    let first = seed.unwrap_or(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let mut told = Told::default();
    for seed in first..first + cases {
        for _ in 0..number("TIDEWIRE_REPEAT").unwrap_or(1) {
            let ran = runtime.block_on(run(seed));
            told.recovered += ran.recovered;
            told.missed += ran.missed;
            told.lost += ran.lost;
            told.events += ran.events;
            told.refused += ran.refused;
        }
    }
    eprintln!("{cases} programs: {told:?}");
    if cases >= CASES {
        let least = [told.recovered, told.missed, told.lost, told.events].into_iter().min();
        assert!(least >= Some(cases / 4) && told.refused > 0, "the programs are too tame: {told:?}");
    }
}

#[test]
fn who_was_away_for_longer_than_rooms_are_kept_is_told_so() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (mut world, mut client) = connected().await;
        join(&world, &mut client).await;
        // Nothing happens meanwhile. The client checks that it has its room or is told that continuity is lost.
        for (wait, lost) in [(oracle::HISTORY_SECONDS / 2, 0), (oracle::HISTORY_SECONDS * 3, 1)] {
            world.restart(Ending::Orderly).await;
            client.lose_all();
            world.advance(Duration::from_secs(wait));
            client.connect(&world, Way::WebSocket, Shown::Own { offset: true }, false).await;
            assert_eq!(client.told.lost, lost, "after {wait} s");
        }
        world.end().await;
    });
}

#[test]
fn rooms_are_kept_for_as_long_as_history_after_a_kill_too() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (mut world, mut client) = connected().await;
        join(&world, &mut client).await;
        // What was written of it is half as old as it gets when the process is killed.
        world.advance(Duration::from_secs(oracle::HISTORY_SECONDS / 2));
        world.publish(0, vec![event(Kind::Noted)]).await;
        client.read(&world).await;
        world.restart(Ending::KilledAtOnce).await;
        client.lose_all();
        world.advance(Duration::from_secs(oracle::HISTORY_SECONDS * 9 / 10));
        world.publish(0, vec![event(Kind::Noted)]).await;
        client.connect(&world, Way::WebSocket, Shown::Own { offset: true }, false).await;
        client.read(&world).await;
        assert_eq!((client.told.recovered, client.told.missed), (1, 1));
        world.end().await;
    });
}

#[test]
fn subscribed_types_survive_a_switch_of_tenants_and_a_kill() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let (mut world, mut client) = connected().await;
        let mut next = client.session.as_ref().expect("a session").ledger.standing().clone();
        next.types = Some(["said".to_owned()].into());
        client.change(&world, "subscribe", &json!({ "eventTypes": ["said"] }), next).await;
        client.switch(&world).await;
        world.restart(Ending::KilledAtOnce).await;
        client.lose_all();
        world.publish(1, vec![event(Kind::Level), event(Kind::Said)]).await;
        client.connect(&world, Way::WebSocket, Shown::Own { offset: true }, false).await;
        client.read(&world).await;
        assert_eq!((client.told.recovered, client.told.events), (1, 1));
        world.end().await;
    });
}

/// A world with one client in it.
async fn connected() -> (World, Client) {
    let world = World::new(false, false).await;
    let mut client = Client::new(0, USERS[0], Vec::new());
    client.connect(&world, Way::WebSocket, Shown::Nothing, false).await;
    (world, client)
}

/// The client asks for a room.
async fn join(world: &World, client: &mut Client) {
    let mut next = client.session.as_ref().expect("a session").ledger.standing().clone();
    next.join("berth:b1");
    client.change(world, "join", &json!("berth:b1"), next).await;
}

fn event(kind: Kind) -> Logged {
    Logged { kind, berth: "b1", user: USERS[0], number: 0, time: Timestamp::default(), whose: Whose::Own }
}

/// Prints the program when a check has failed.
struct Trace {
    seed: u64,
    done: Vec<String>,
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, done) = (self.seed, self.done.join("\n  "));
            eprintln!("TIDEWIRE_SEED={seed}\n  {done}");
        }
    }
}

async fn run(seed: u64) -> Told {
    let mut dice = Dice::new(seed);
    let (on_disk, narrow) = (dice.percent(2), dice.percent(40));
    let mut world = World::new(on_disk, narrow).await;
    let count = 1 + dice.below(4);
    let mut clients: Vec<Client> =
        (0..count).map(|_| Client::new(dice.below(2), dice.pick(&USERS), program::roles(&mut dice))).collect();
    let mut trace = Trace { seed, done: vec![format!("disk {on_disk}, narrow {narrow}")] };
    for (index, client) in clients.iter_mut().enumerate() {
        trace.done.push(format!("{index}: {} of {} as {:?}", client.user, client.home, client.roles));
        client.connect(&world, program::way(&mut dice), Shown::Nothing, false).await;
    }
    let mut revoked = [[false; 2]; 2];
    for step in program::steps(&mut dice, count) {
        trace.done.push(format!("{step:?}"));
        world.advance(Duration::from_secs(1));
        take(&mut world, &mut clients, &mut revoked, step).await;
        for client in clients.iter_mut().filter(|_| dice.percent(60)) {
            client.read(&world).await;
        }
    }
    trace.done.push("the end".to_owned());
    for client in &mut clients {
        if !client.is_online() {
            client.connect(&world, Way::WebSocket, Shown::Own { offset: true }, false).await;
        }
        client.read(&world).await;
        // Behind everything that was queued for this client.
        client.ask(&world, "leave", &json!("berth:none")).await;
    }
    world.end().await;
    let add = |sum: Told, client: &Client| Told {
        recovered: sum.recovered + client.told.recovered,
        missed: sum.missed + client.told.missed,
        lost: sum.lost + client.told.lost,
        events: sum.events + client.told.events,
        refused: sum.refused + client.told.refused,
    };
    clients.iter().fold(Told::default(), add)
}

async fn take(world: &mut World, clients: &mut [Client], revoked: &mut [[bool; 2]; 2], step: Step) {
    match step {
        Step::Publish { tenant, events } => world.publish(tenant, events).await,
        Step::Connect { client, way, show, amid } => {
            let shown = shown(clients, client, show);
            let session = clients[client].session.as_ref();
            let tenant = session.map_or(clients[client].home, |session| session.ledger.standing().tenant);
            let commits: Vec<_> = amid.into_iter().map(|events| world.publish(tenant, events)).collect();
            let publishing = tokio::spawn(async {
                for commit in commits {
                    commit.await;
                }
            });
            clients[client].connect(world, way, shown, false).await;
            publishing.await.expect("published");
        }
        Step::Intrude { client } => {
            let client = &mut clients[client];
            if revoked[client.home][usize::from(client.user == USERS[1])] {
                client.connect(world, Way::WebSocket, Shown::Own { offset: true }, true).await;
            }
        }
        Step::Read { client } => clients[client].read(world).await,
        Step::Lose { client, orderly, amid_poll } => clients[client].lose(orderly, amid_poll).await,
        Step::Leave { client } => clients[client].leave().await,
        Step::Room { client, room, join } => {
            change(world, &mut clients[client], if join { "join" } else { "leave" }, &json!(room), |to| {
                if join && !to.may_join(&room) {
                    return false;
                }
                if join {
                    to.join(&room)
                } else {
                    to.leave(&room)
                }
                true
            })
            .await;
        }
        Step::Types { client, pattern, add } => {
            let argument = json!({ "eventTypes": [pattern] });
            change(world, &mut clients[client], if add { "subscribe" } else { "unsubscribe" }, &argument, |to| {
                if add {
                    to.types.get_or_insert_default().insert(pattern.to_owned());
                } else if let Some(types) = &mut to.types {
                    types.remove(pattern);
                }
                true
            })
            .await;
        }
        Step::Roles { client, roles } => {
            let client = &mut clients[client];
            client.roles.clone_from(&roles);
            let token = world.token(client.home, client.user, &roles, false);
            let renewed = json!({ "token": token });
            change(world, client, "auth", &renewed, |to| {
                *to = to.with_roles(&roles);
                // A live session forgets what it may not have; only what was kept for its return may still know.
                true
            })
            .await;
        }
        Step::Switch { client } => {
            if clients[client].is_online() {
                clients[client].switch(world).await;
            }
        }
        Step::Revoke { client } => {
            let (home, user) = (clients[client].home, clients[client].user);
            revoked[home][usize::from(user == USERS[1])] = true;
            world.revoke(home, user);
            for client in clients.iter_mut().filter(|client| (client.home, client.user) == (home, user)) {
                client.read_to_the_end(world).await;
            }
        }
        Step::Restart(ending) => {
            world.restart(ending).await;
            clients.iter_mut().for_each(Client::lose_all);
            if ending == Ending::KilledAtOnce {
                // Nobody waits for a session that was left to be written as ended.
                clients.iter_mut().for_each(|client| client.left.clear());
            }
        }
        Step::Wait(time) => {
            // A live client would show signs of life meanwhile, on the timers of real time.
            for client in clients.iter_mut() {
                client.lose(false, false).await;
                // That a session was left is not kept for ever.
                client.left.clear();
            }
            world.advance(time);
        }
    }
}

/// Sends a message that changes a live client's standing; one that cannot be granted passes.
async fn change(
    world: &World,
    client: &mut Client,
    name: &str,
    argument: &serde_json::Value,
    change: impl FnOnce(&mut Standing) -> bool,
) {
    let Some(session) = client.session.as_ref().filter(|_| client.is_online()) else { return };
    let mut next = session.ledger.standing().clone();
    if change(&mut next) {
        client.change(world, name, argument, next).await;
    } else {
        let refused = client.ask(world, name, argument).await;
        assert!(refused.is_none_or(|answer| answer["error"]["code"] == "room.forbidden"));
    }
}

fn shown(clients: &[Client], client: usize, show: Show) -> Shown {
    let foreign = |place: usize| {
        let other = clients.get(place).filter(|other| other.user != clients[client].user)?;
        other.session.as_ref().map(|session| session.pid.clone())
    };
    match show {
        Show::Nothing => Shown::Nothing,
        Show::Own => Shown::Own { offset: true },
        Show::OwnWithoutOffset => Shown::Own { offset: false },
        Show::Forged => Shown::Other("forged".to_owned()),
        Show::Foreign(place) => foreign(place).map_or(Shown::Own { offset: true }, Shown::Other),
        Show::Left => clients[client].left.last().map_or(Shown::Own { offset: true }, |pid| Shown::Other(pid.clone())),
        Show::OtherLog => Shown::OtherLog,
    }
}
