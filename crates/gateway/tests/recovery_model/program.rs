//! Programs: what happens to the clients, one step after the other, all of it drawn from a seed.

use std::time::Duration;

use tidewire_core::Timestamp;

use crate::line::Way;
use crate::oracle::{BERTHS, HISTORY_SECONDS, Kind, Logged, TENANTS, USERS, Whose};
use crate::world::Ending;

/// `SplitMix64` (Steele, Lea, Flood 2014).
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, most: usize) -> usize {
        (self.next() % most as u64) as usize
    }

    /// True in so many of a hundred throws.
    pub(crate) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())].clone()
    }
}

/// One step. Clients are named by their place; a step that does not fit what a client is doing passes.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Publish {
        tenant: usize,
        events: Vec<Logged>,
    },
    /// Connects, or comes back; from an open transport too, which then is only half gone.
    Connect {
        client: usize,
        way: Way,
        show: Show,
        /// What is published to its tenant at the same time, commit after commit.
        amid: Vec<Vec<Logged>>,
    },
    /// Shows a credential that has been revoked.
    Intrude {
        client: usize,
    },
    /// Takes what is there.
    Read {
        client: usize,
    },
    Lose {
        client: usize,
        orderly: bool,
        amid_poll: bool,
    },
    Leave {
        client: usize,
    },
    Room {
        client: usize,
        room: String,
        join: bool,
    },
    Types {
        client: usize,
        pattern: &'static str,
        add: bool,
    },
    /// Other roles, for a live client with a renewed credential, for another one when it is back.
    Roles {
        client: usize,
        roles: Vec<&'static str>,
    },
    Switch {
        client: usize,
    },
    Revoke {
        client: usize,
    },
    Restart(Ending),
    Wait(Duration),
}

/// Which session a client says it had.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Show {
    Nothing,
    Own,
    OwnWithoutOffset,
    Forged,
    /// That of another client, by its place.
    Foreign(usize),
    /// One that it left for good.
    Left,
    OtherLog,
}

const PATTERNS: [&str; 6] = ["said", "berth:*", "berth:noted", "user:*", "lead:created", "vault:opened"];
const ROLES: [&[&str]; 4] = [&[], &["admin"], &["staff"], &["admin", "staff"]];

pub(crate) fn roles(dice: &mut Dice) -> Vec<&'static str> {
    dice.pick(&ROLES).to_vec()
}

pub(crate) fn way(dice: &mut Dice) -> Way {
    match dice.below(10) {
        0..5 => Way::WebSocket,
        5..8 => Way::Polling,
        8 => Way::Upgrade { amid: true },
        _ => Way::Upgrade { amid: false },
    }
}

/// The steps of a program for so many clients.
pub(crate) fn steps(dice: &mut Dice, clients: usize) -> Vec<Step> {
    let length = 10 + dice.below(25);
    (0..length).map(|_| step(dice, clients)).collect()
}

fn step(dice: &mut Dice, clients: usize) -> Step {
    let client = dice.below(clients);
    match dice.below(100) {
        0..30 => publish(dice),
        30..52 => {
            let commits = if dice.percent(30) { 1 + dice.below(6) } else { 0 };
            let amid = (0..commits).map(|_| events(dice, 2)).collect();
            Step::Connect { client, way: way(dice), show: show(dice, clients), amid }
        }
        52..60 => Step::Read { client },
        60..70 => Step::Lose { client, orderly: dice.percent(30), amid_poll: dice.percent(50) },
        70..72 => Step::Leave { client },
        72..82 => Step::Room { client, room: room(dice), join: dice.percent(65) },
        82..86 => Step::Types { client, pattern: dice.pick(&PATTERNS), add: dice.percent(75) },
        86..90 => Step::Roles { client, roles: roles(dice) },
        90..92 => Step::Switch { client },
        92..93 => Step::Revoke { client },
        93..94 => Step::Intrude { client },
        94..97 => Step::Restart(dice.pick(&[Ending::Orderly, Ending::Killed, Ending::KilledAtOnce])),
        97..98 => Step::Wait(Duration::from_secs(HISTORY_SECONDS + 60)),
        _ => Step::Wait(Duration::from_secs(HISTORY_SECONDS / 3)),
    }
}

fn show(dice: &mut Dice, clients: usize) -> Show {
    match dice.below(100) {
        0..76 => Show::Own,
        76..82 => Show::OwnWithoutOffset,
        82..86 => Show::Nothing,
        86..89 => Show::Forged,
        89..93 => Show::Foreign(dice.below(clients)),
        93..97 => Show::Left,
        _ => Show::OtherLog,
    }
}

fn room(dice: &mut Dice) -> String {
    let (tenant, berth) = (dice.pick(&TENANTS), dice.pick(&BERTHS));
    match dice.below(9) {
        0..3 => format!("berth:{berth}"),
        3 => format!("vault:{berth}"),
        4 => format!("map:{tenant}"),
        5 => format!("port:{tenant}"),
        6 => format!("staff:{tenant}"),
        7 => "global".to_owned(),
        _ => format!("user:{}", dice.pick(&USERS)),
    }
}

fn publish(dice: &mut Dice) -> Step {
    // Now and then more than history holds.
    let many = if dice.percent(8) { 14 } else { 1 + dice.below(5) };
    Step::Publish { tenant: dice.below(2), events: events(dice, many) }
}

fn events(dice: &mut Dice, many: usize) -> Vec<Logged> {
    let event = |dice: &mut Dice| Logged {
        kind: dice.pick(&Kind::ALL),
        berth: dice.pick(&BERTHS),
        user: dice.pick(&USERS),
        number: 0,
        time: Timestamp::default(),
        whose: Whose::Own,
    };
    (0..many).map(|_| event(dice)).collect()
}
